/**
 * The library as one file, `dist/torchgraft.js`: Node opens one module instead of some four hundred, which takes a third off
 * the time to the first tensor. The modules themselves stay in dist/ for the command line, which loads what it needs.
 */
import { existsSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { rolldown } from 'rolldown';

/**
 * All modules of the library in one file; Node's own and the dependencies stay outside.
 * @param {string} dist the compiled library
 * @param {string} cwd what the names of modules in its comments are relative to
 * @param {import('rolldown').OutputOptions} output
 * @returns {Promise<readonly string[]>} the names that it exports
 */
export async function bundleLibrary(dist, cwd, output) {
  const bundle = await rolldown({
    input: join(dist, 'index.js'),
    cwd,
    platform: 'node',
    external: (id) => !id.startsWith('.') && !id.startsWith('/'),
    onLog(level, log, handle) {
      if (level === 'warn') throw new Error(log.message);
      handle(level, log);
    },
  });
  // Messages name classes, two of which may be called alike.
  const written = await bundle.write({ keepNames: true, ...output });
  await bundle.close();
  return written.output[0].exports;
}

/**
 * Writes `dist/torchgraft.js` unless it is newer than what it is made of.
 * @param {string} root of the repository
 * @returns {Promise<void>}
 */
export async function bundleModules(root) {
  const dist = join(root, 'dist');
  const file = join(dist, 'torchgraft.js');
  const age = (/** @type {string} */ path) => (existsSync(path) ? statSync(path).mtimeMs : 0);
  if (age(file) > age(join(dist, '.tsbuildinfo'))) return;
  await bundleLibrary(dist, root, { file, format: 'esm' });
}
