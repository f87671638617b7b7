/**
 * `npm run docs:api`: the API reference of all public names as HTML, into build/api/. Every warning is an error: a public
 * name without a comment, a link that leads nowhere. With `--check` nothing is written.
 */
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { root } from '../build/native.mjs';
import { runScript, SetupError } from '../build/tools.mjs';
import { packageProgram } from '../build/typescript.mjs';

const options = {
  entryPoints: join(root, 'lib', 'index.ts'),
  tsconfig: join(root, 'tsconfig.json'),
  name: 'torchgraft',
  readme: 'none',
  // Sources are named by file and line; there is no server to link to.
  disableGit: true,
  sourceLinkTemplate: '#{path}-{line}',
};

/** What a reader may rightly expect a sentence on. Properties of options say it where their names do not. */
const documented = ['Module', 'Namespace', 'Enum', 'Variable', 'Function', 'Class', 'Interface', 'TypeAlias'];

await runScript(() => {
  const args = Object.entries(options).flatMap(([name, value]) => [`--${name}`, String(value)]);
  args.push('--excludePrivate', '--excludeExternals', '--treatWarningsAsErrors', '--validation.notDocumented');
  // Types are checked by `npm run lint`, which also runs this.
  args.push('--skipErrorChecking');
  // What is not exported is an internal type in a signature: shown by name, without a page.
  args.push('--validation.notExported', 'false', '--logLevel', 'Warn');
  for (const kind of documented) args.push('--requiredToBeDocumented', kind);
  args.push(...(process.argv.includes('--check') ? ['--emit', 'none'] : ['--out', join(root, 'build', 'api')]));
  const { status } = spawnSync(process.execPath, [packageProgram('typedoc'), ...args], { cwd: root, stdio: 'inherit' });
  if (status !== 0) throw new SetupError('The API reference has gaps: the warnings stand above.');
});
