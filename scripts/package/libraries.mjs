/** The shared libraries that a published addon needs from LibTorch, and what it asks of the system. Linux only. */
import { execFileSync } from 'node:child_process';
import { existsSync, readdirSync, realpathSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { SetupError, compareVersions, output } from '../build/tools.mjs';

/**
 * The libraries of LibTorch's folder among all that the dynamic linker loads for `addon`.
 * @param {string} addon linked against this LibTorch
 * @param {string} libtorch
 * @returns {{ name: string, path: string }[]} `name` is the one that the linker looks for
 */
export function neededLibraries(addon, libtorch) {
  const lines = execFileSync('ldd', [addon], { encoding: 'utf8' }).split('\n');
  const folders = [join(libtorch, 'lib'), join(libtorch, '..', 'torch.libs')];
  const found = lines.flatMap((line) => {
    const [, name, path] = /^\s*(\S+) => (\S+)/.exec(line) ?? [];
    if (path === 'not')
      throw new SetupError(`The linker finds no ${name} for ${addon}: build it again (npm run build:native).`);
    return name !== undefined && path !== undefined && folders.includes(dirname(path))
      ? [{ name, path: realpathSync(path) }]
      : [];
  });
  if (!found.some(({ name }) => name.startsWith('libtorch_cpu.'))) {
    throw new SetupError(
      `${addon} does not run on the LibTorch in ${libtorch}: build it again (npm run build:native).`,
    );
  }
  return found;
}

/**
 * Copies a library without the symbols that only a debugger needs.
 * @param {string} from
 * @param {string} to
 */
export function copyStripped(from, to) {
  execFileSync('strip', ['--strip-unneeded', '-o', to, from]);
}

/**
 * The newest versions of the system's C and C++ libraries that these files ask for, for example GLIBC 2.34.
 * @param {readonly string[]} files
 * @returns {Record<string, string>}
 */
export function systemRequirements(files) {
  /** @type {Record<string, string>} */
  const newest = {};
  for (const file of files) {
    const symbols = execFileSync('readelf', ['--version-info', '--wide', file], {
      encoding: 'utf8',
      maxBuffer: 1 << 28,
    });
    for (const [, library = '', version = ''] of symbols.matchAll(/Name: (GLIBC|GLIBCXX)_([\d.]+)/g)) {
      if (compareVersions(version, newest[library] ?? '0') > 0) newest[library] = version;
    }
  }
  return newest;
}

/** Programs of the GNU tools that all this needs. */
export function requireBinutils() {
  const missing = ['ldd', 'readelf', 'strip'].filter((name) => output(name, ['--version']) === null);
  if (missing.length > 0) throw new SetupError(`Not on the PATH: ${missing.join(', ')}; apt-get install binutils.`);
}

/**
 * The folder of the license texts that came with LibTorch's wheel; null where there are none.
 * @param {string} libtorch
 * @returns {string | null}
 */
export function findLicenses(libtorch) {
  const parent = dirname(libtorch);
  const info = readdirSync(parent).find((name) => /^torch-.*\.dist-info$/.test(name));
  const folders = [join(libtorch, 'licenses'), ...(info === undefined ? [] : [join(parent, info, 'licenses')])];
  return folders.find((folder) => existsSync(folder)) ?? null;
}
