// `npm run verify -- DIR...`: golden cases (a case, a system, a folder of systems) and counts.json files, checked by the
// same builders as the tests. Without arguments: the cases of this repository. The work is test/golden/verify.ts.
import { spawnSync } from 'node:child_process';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const compiler = join(dirname(createRequire(import.meta.url).resolve('typescript/package.json')), 'bin', 'tsc');

// Types are the business of `npm run lint`; --noCheck makes this a second or two, and the build info less the next time.
const compiled = spawnSync(
  process.execPath,
  [compiler, '-p', join(root, 'test', 'golden', 'tsconfig.json'), '--noCheck'],
  {
    stdio: 'inherit',
  },
);
if (compiled.status !== 0) process.exit(1);

const { verify } = await import(pathToFileURL(join(root, 'build', 'verify', 'test', 'golden', 'verify.js')).href);
const paths = process.argv.slice(2);
try {
  process.exitCode = verify(paths.length > 0 ? paths : [join(root, 'test', 'golden', 'cases')]);
} catch (error) {
  console.error(`verify: ${error instanceof Error ? error.message : String(error)}`);
  process.exitCode = 1;
}
