/** Loads the compiled addon of this package. */
import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { RawAddon } from './types.js';

const require = createRequire(import.meta.url);

/** Where the addon is looked for, in the order in which it is tried; shared with the checks of `torchgraft doctor`. */
const loader = join('scripts', 'build', 'load-addon.cjs');

/** The package's folder: the nearest above this file with the loader, from `lib/`, `dist/`, `dist/cjs/` and `build/verify/` alike. */
function findPackageRoot(): string {
  let folder = dirname(fileURLToPath(import.meta.url));
  while (!existsSync(join(folder, loader)) && dirname(folder) !== folder) folder = dirname(folder);
  return folder;
}

const packageRoot = findPackageRoot();

/**
 * Loads the addon of the package in `root`: the build of this machine, else the prebuilt binary of this platform.
 *
 * @throws Error that lists every place tried, why each failed, and what helps.
 */
export function loadAddon(root: string = packageRoot): RawAddon {
  const { loadAddon: load } = require(join(packageRoot, loader)) as {
    loadAddon: (root: string) => { addon: unknown };
  };
  return load(root).addon as RawAddon;
}

export const native: RawAddon = loadAddon();
