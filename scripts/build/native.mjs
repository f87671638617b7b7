/** Configures and compiles csrc/ into build/Release/torchgraft.node; does next to nothing when nothing changed. */
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { SetupError, findCmake, findCompiler, output, requireTools } from './tools.mjs';
import { obtainLibtorch } from './fetch-libtorch.mjs';
import { withLock } from './lock.mjs';

export const root = fileURLToPath(new URL('../../', import.meta.url));
export const buildDir = join(root, 'build');
export const addonPath = join(buildDir, 'Release', 'torchgraft.node');

/**
 * A variable of the CMake cache, or null.
 * @param {string} name
 */
function cached(name) {
  const file = join(buildDir, 'CMakeCache.txt');
  if (!existsSync(file)) return null;
  return new RegExp(`^${name}:[A-Z]+=(.*)$`, 'm').exec(readFileSync(file, 'utf8'))?.[1] ?? null;
}

/**
 * Runs cmake; its output goes to standard error, since standard output may be a report.
 * @param {string[]} args
 * @param {string} failure
 */
function cmake(args, failure) {
  const env = {
    ...process.env,
    // ccache accepts precompiled headers only when told that their time stamps do not matter.
    CCACHE_SLOPPINESS: process.env['CCACHE_SLOPPINESS'] ?? 'pch_defines,time_macros,include_file_mtime,include_file_ctime',
  };
  const result = spawnSync('cmake', args, { cwd: root, env, stdio: ['ignore', 2, 2] });
  if (result.error) throw result.error;
  if (result.status !== 0) throw new SetupError(failure);
}

/**
 * Compile jobs at a time: TORCHGRAFT_JOBS, else the processors, at most 8 (a job needs up to 1.5 GB).
 * @returns {number}
 */
function jobs() {
  const asked = Number(process.env['TORCHGRAFT_JOBS']);
  return Number.isInteger(asked) && asked > 0 ? asked : Math.min(availableParallelism(), 8);
}

/**
 * Builds the addon. Two builds of one folder at a time would spoil each other's precompiled headers: the second waits.
 * @param {{ cmakeArgs?: readonly string[] }} [options] extra arguments for the configure step
 * @returns {Promise<string>} path of the addon
 */
export async function buildNative({ cmakeArgs = [] } = {}) {
  requireTools([findCmake(), findCompiler()]);
  const libtorch = await obtainLibtorch();
  mkdirSync(buildDir, { recursive: true });
  const onWait = (/** @type {number | null} */ pid) => {
    console.error(`Waiting for another build of this folder (process ${pid ?? 'unknown'}).`);
  };
  await withLock(join(buildDir, '.lock'), onWait, async () => compile(libtorch.dir, cmakeArgs));
  return addonPath;
}

/**
 * Whether CMake has generated its build files. A Makefile may be node-gyp's, which uses the same folder and would call us
 * again: CMake then writes its own in its place.
 * @param {string} folder
 */
export function hasBuildFiles(folder) {
  if (existsSync(join(folder, 'build.ninja'))) return true;
  const makefile = join(folder, 'Makefile');
  return existsSync(makefile) && readFileSync(makefile, 'utf8').startsWith('# CMAKE generated file');
}

/**
 * Configures if need be, and compiles what changed.
 * @param {string} libtorch
 * @param {readonly string[]} cmakeArgs
 */
function compile(libtorch, cmakeArgs) {
  const configured =
    hasBuildFiles(buildDir) && cached('LIBTORCH') === libtorch && cmakeArgs.length === 0;
  if (!configured) {
    const args = ['-S', root, '-B', buildDir, `-DLIBTORCH=${libtorch}`, ...cmakeArgs];
    // A build folder keeps its first generator; CMake refuses another one.
    if (cached('CMAKE_GENERATOR') === null && output('ninja', ['--version']) !== null) args.push('-G', 'Ninja');
    if (output('ccache', ['--version']) !== null) args.push('-DCMAKE_CXX_COMPILER_LAUNCHER=ccache');
    cmake(args, 'CMake could not configure the native addon; the reason stands above. `npm run doctor` checks the tools.');
  }
  cmake(
    ['--build', buildDir, '--parallel', String(jobs())],
    'The native addon did not compile; the first error stands above. `npm run doctor` checks the tools.',
  );
}
