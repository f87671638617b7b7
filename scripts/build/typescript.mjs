/** Compiles lib/ into dist/, with declarations and as one file; does next to nothing when nothing changed. */
import { spawnSync } from 'node:child_process';
import { chmodSync, existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { root } from './native.mjs';
import { SetupError } from './tools.mjs';

/**
 * Path of a program that a development dependency brings.
 * @param {string} name of the package
 * @param {string} [program] when it differs from the package's name
 * @returns {string}
 */
export function packageProgram(name, program = name) {
  const folder = join(root, 'node_modules', name);
  if (!existsSync(folder)) throw new SetupError(`The package ${name} is not installed: run \`npm ci\` first.`);
  const { bin } = JSON.parse(readFileSync(join(folder, 'package.json'), 'utf8'));
  return join(folder, typeof bin === 'string' ? bin : bin[program]);
}

/** @returns {Promise<void>} */
export async function buildTypescript() {
  const args = [packageProgram('typescript', 'tsc'), '-p', join(root, 'tsconfig.json')];
  const result = spawnSync(process.execPath, args, { cwd: root, stdio: ['ignore', 2, 2] });
  if (result.status !== 0) throw new SetupError('lib/ did not compile; the errors stand above.');
  const program = join(root, 'dist', 'cli', 'main.js');
  if (existsSync(program)) chmodSync(program, 0o755);
  // Here, since rolldown is there only once the packages are installed.
  const { bundleModules } = await import('./bundle.mjs');
  await bundleModules(root);
}
