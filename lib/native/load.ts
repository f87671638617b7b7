/** Finds and loads the compiled addon: the build of this machine, else a prebuilt binary for this platform. */
import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { RawAddon } from './types.js';

const require = createRequire(import.meta.url);

/** The package's folder: the nearest above this file with a package.json, from `lib/`, `dist/` and `build/verify/` alike. */
function findPackageRoot(): string {
  let folder = dirname(fileURLToPath(import.meta.url));
  while (!existsSync(join(folder, 'package.json')) && dirname(folder) !== folder) folder = dirname(folder);
  return folder;
}

const packageRoot = findPackageRoot();

const message = (error: unknown): string => (error instanceof Error ? error.message : String(error));

/** Addon files that exist, best first, and a line for each place that has none. */
function candidates(root: string): { files: string[]; missing: string[] } {
  const files: string[] = [];
  const missing: string[] = [];
  const built = join(root, 'build', 'Release', 'torchgraft.node');
  if (existsSync(built)) files.push(built);
  else missing.push(`${built}: no such file`);
  try {
    const { resolve } = require('node-gyp-build') as { resolve: (dir: string) => string };
    const prebuilt = resolve(root);
    if (!files.includes(prebuilt)) files.push(prebuilt);
  } catch {
    missing.push(
      `${join(root, 'prebuilds', `${process.platform}-${process.arch}`)}: no prebuilt binary for this platform`,
    );
  }
  return { files, missing };
}

/**
 * Loads the addon of the package in `root`.
 *
 * @throws Error that lists every place tried, why each failed, and what helps.
 */
export function loadAddon(root: string = packageRoot): RawAddon {
  const { files, missing } = candidates(root);
  const failures: string[] = [];
  for (const file of files) {
    try {
      return require(file) as RawAddon;
    } catch (error) {
      failures.push(`${file}: ${message(error)}`);
    }
  }
  const advice =
    failures.length === 0
      ? 'It has not been built: run `npm run build:native` in the package folder.'
      : 'If LibTorch was moved or replaced since the build, run `npm run build:native` in the package folder.';
  throw new Error(
    `The native addon of torchgraft could not be loaded. Tried:\n${[...failures, ...missing].map((line) => `  ${line}`).join('\n')}\n` +
      `${advice} \`npx torchgraft doctor\` checks this machine and says what is missing.`,
  );
}

export const native: RawAddon = loadAddon();
