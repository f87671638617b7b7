/**
 * `npm test`: finds or fetches LibTorch, builds, lints, type-checks, runs every test. With arguments, which go to vitest
 * (`npm test -- test/nn`), it builds and runs these tests only.
 */
import { spawnSync } from 'node:child_process';
import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { buildNative, root } from './native.mjs';
import { readReport, reportPath } from './test-report.mjs';
import { SetupError, runScript } from './tools.mjs';
import { buildTypescript, packageProgram } from './typescript.mjs';

/** @param {readonly string[]} args */
const runNode = (args) => spawnSync(process.execPath, args, { cwd: root, stdio: 'inherit' }).status === 0;

await runScript(async () => {
  const only = process.argv.slice(2);
  rmSync(reportPath, { force: true });
  await buildNative();
  await buildTypescript();
  const failures = [];
  if (only.length === 0 && !runNode([join(root, 'scripts', 'lint', 'lint.mjs')])) failures.push('lint');
  const reporters = ['--reporter=default', '--reporter=json', `--outputFile.json=${reportPath}`];
  if (!runNode([packageProgram('vitest'), 'run', ...reporters, ...only])) failures.push('tests');
  const { passed, failed } = readReport();
  if (passed + failed === 0) failures.push('no test ran');
  if (failures.length > 0) throw new SetupError(`Failed: ${failures.join(', ')}.`);
});
