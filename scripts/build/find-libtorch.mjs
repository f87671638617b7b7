/** Where LibTorch comes from, first hit wins: LIBTORCH, the torch package of python3 on the PATH, the user's cache folder. */
import { existsSync, readFileSync } from 'node:fs';
import { homedir } from 'node:os';
import { join, resolve } from 'node:path';
import { SetupError, compareVersions, output } from './tools.mjs';

/** LibTorch versions that torchgraft compiles against: at least `minimum`, less than `below`. */
export const supported = { minimum: '2.11', below: '2.15' };

/** The version that is fetched when none is found. */
export const fetchedVersion = '2.13.0+cpu';

/**
 * @typedef {'LIBTORCH' | 'python' | 'cache'} Origin
 * @typedef {{ dir: string, version: string, cuda: string | null, origin: Origin }} LibTorch
 *   `cuda` is the CUDA release of a CUDA build ('13.0', or 'unknown' if the build does not say), null for a CPU build.
 * @typedef {{ libtorch: LibTorch | null, tried: string[] }} Search
 *   `tried` has a sentence for each place that had no usable LibTorch.
 */

const libraryName = (/** @type {string} */ name) =>
  process.platform === 'win32' ? `${name}.dll` : `lib${name}.${process.platform === 'darwin' ? 'dylib' : 'so'}`;

/**
 * Reads what lies in a folder; null when it is not a complete LibTorch.
 * @param {string} dir
 * @param {Origin} origin
 * @returns {LibTorch | null}
 */
export function inspectLibtorch(dir, origin) {
  const header = ['include/torch/headeronly/version.h', 'include/torch/csrc/api/include/torch/version.h']
    .map((path) => join(dir, path))
    .find((path) => existsSync(path));
  const complete = ['torch', 'torch_cpu', 'c10'].every((name) => existsSync(join(dir, 'lib', libraryName(name))));
  if (header === undefined || !complete || !existsSync(join(dir, 'include/torch/library.h'))) return null;

  const python = existsSync(join(dir, 'version.py')) ? readFileSync(join(dir, 'version.py'), 'utf8') : '';
  const part = (/** @type {string} */ name) =>
    new RegExp(`#define TORCH_VERSION_${name} (\\d+)`).exec(readFileSync(header, 'utf8'))?.[1] ?? '0';
  const version = /^__version__ = '([^']+)'/m.exec(python)?.[1] ?? ['MAJOR', 'MINOR', 'PATCH'].map(part).join('.');
  const cuda = existsSync(join(dir, 'lib', libraryName('torch_cuda')))
    ? (/^cuda\b.*= '([^']+)'/m.exec(python)?.[1] ?? 'unknown')
    : null;
  return { dir, version, cuda, origin };
}

/**
 * One sentence that says why a version does not fit, or null when it does.
 * @param {LibTorch} libtorch
 * @returns {string | null}
 */
export function versionProblem({ dir, version, origin }) {
  if (compareVersions(version, supported.minimum) >= 0 && compareVersions(version, supported.below) < 0) return null;
  const remedy = origin === 'LIBTORCH' ? 'set LIBTORCH to another one, or unset it' : 'LIBTORCH=DIR overrides it';
  return `LibTorch ${version} in ${dir} does not fit: torchgraft needs at least ${supported.minimum} and less than ${supported.below} (${remedy}).`;
}

/**
 * The user's folder of fetched LibTorchs: TORCHGRAFT_CACHE, else the platform's cache folder.
 * @param {NodeJS.ProcessEnv} [env]
 */
export function cacheRoot(env = process.env) {
  if (env['TORCHGRAFT_CACHE']) return resolve(env['TORCHGRAFT_CACHE']);
  if (env['XDG_CACHE_HOME']) return join(resolve(env['XDG_CACHE_HOME']), 'torchgraft');
  const home = env['HOME'] ?? homedir();
  return join(home, process.platform === 'darwin' ? 'Library/Caches' : '.cache', 'torchgraft');
}

/**
 * The folder of one fetched version inside the cache.
 * @param {NodeJS.ProcessEnv} [env]
 */
export function cachedDir(env = process.env) {
  return join(cacheRoot(env), `libtorch-${fetchedVersion}-${process.platform}-${process.arch}`);
}

/** Written last into an unpacked folder. */
export const completeMark = '.complete';

/**
 * The LibTorch of the cache; null when there is none, or only one that was not unpacked to its end.
 * @param {NodeJS.ProcessEnv} [env]
 * @returns {LibTorch | null}
 */
export function cachedTorch(env = process.env) {
  const dir = cachedDir(env);
  return existsSync(join(dir, completeMark)) ? inspectLibtorch(join(dir, 'torch'), 'cache') : null;
}

/**
 * The torch package of python3 on the PATH, found without importing it (an import takes seconds).
 * @param {NodeJS.ProcessEnv} env
 */
function pythonTorchDir(env) {
  const code = "import importlib.util as u; s = u.find_spec('torch'); print((list(s.submodule_search_locations or ['']) if s else [''])[0])";
  return output('python3', ['-c', code], env) || null;
}

/**
 * Looks for LibTorch without fetching anything. A LIBTORCH that holds none, or one of another version, is an error, since the
 * user asked for it; Python's torch of another version is passed over, with a sentence in `tried`.
 * @param {NodeJS.ProcessEnv} [env]
 * @returns {Search}
 */
export function findLibtorch(env = process.env) {
  /** @type {string[]} */
  const tried = [];
  if (env['LIBTORCH']) {
    const dir = resolve(env['LIBTORCH']);
    const libtorch = inspectLibtorch(dir, 'LIBTORCH');
    if (libtorch === null) {
      throw new SetupError(
        `LIBTORCH is ${dir}, which is no LibTorch: expected lib/${libraryName('torch_cpu')} and include/torch/library.h in it. Correct the variable, or unset it to let torchgraft look elsewhere.`,
      );
    }
    const problem = versionProblem(libtorch);
    if (problem !== null) throw new SetupError(problem);
    return { libtorch, tried };
  }
  tried.push('the variable LIBTORCH is not set');

  const pythonDir = pythonTorchDir(env);
  const ofPython = pythonDir === null ? null : inspectLibtorch(pythonDir, 'python');
  if (ofPython !== null) {
    const problem = versionProblem(ofPython);
    if (problem === null) return { libtorch: ofPython, tried };
    tried.push(problem);
  } else {
    tried.push(
      pythonDir === null
        ? 'python3 on the PATH has no torch package'
        : `the torch package of python3 in ${pythonDir} has no headers or libraries`,
    );
  }

  const cached = cachedTorch(env);
  if (cached !== null) {
    const problem = versionProblem(cached);
    if (problem === null) return { libtorch: cached, tried };
    tried.push(problem);
  } else {
    tried.push(`the cache has no ${cachedDir(env)}`);
  }
  return { libtorch: null, tried };
}
