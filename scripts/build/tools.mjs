/** The programs a build needs: where they are, whether they are new enough, and what to install when they are not. */
import { spawnSync } from 'node:child_process';

/** A failure that the user can mend; printed as its message alone, without a stack. */
export class SetupError extends Error {
  /** @override */
  name = 'SetupError';
}

/** Oldest CMake that CMakeLists.txt understands. */
export const cmakeMinimum = '3.18';

/**
 * Runs a program and returns its standard output, trimmed, or null when it is missing or fails.
 * @param {string} command
 * @param {readonly string[]} args
 * @param {NodeJS.ProcessEnv} [env]
 * @returns {string | null}
 */
export function output(command, args, env = process.env) {
  const result = spawnSync(command, args, { env, encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] });
  return result.status === 0 ? result.stdout.trim() : null;
}

/**
 * Negative, zero or positive as version `a` is older than, equal to or newer than `b`; only leading numbers count, so
 * that '2.13.0+cpu' equals '2.13'.
 * @param {string} a
 * @param {string} b
 */
export function compareVersions(a, b) {
  const numbers = (/** @type {string} */ text) => (/^\d+(\.\d+)*/.exec(text)?.[0] ?? '0').split('.').map(Number);
  const [left, right] = [numbers(a), numbers(b)];
  for (let i = 0; i < Math.max(left.length, right.length); i++) {
    const difference = (left[i] ?? 0) - (right[i] ?? 0);
    if (difference !== 0) return difference;
  }
  return 0;
}

const packages = {
  compiler: {
    debian: 'apt-get install g++',
    fedora: 'dnf install gcc-c++',
    mac: 'xcode-select --install',
  },
  cmake: { debian: 'apt-get install cmake', fedora: 'dnf install cmake', mac: 'brew install cmake' },
  python: {
    debian: 'apt-get install python3 python3-pip',
    fedora: 'dnf install python3 python3-pip',
    mac: 'brew install python',
  },
};

/**
 * What to type to install one of the three things a build needs.
 * @param {keyof typeof packages} what
 * @returns {string}
 */
export function installHint(what) {
  const commands = packages[what];
  if (process.platform === 'darwin') return commands.mac;
  return `${commands.debian} (Debian, Ubuntu) or ${commands.fedora} (Fedora, RHEL)`;
}

/**
 * @typedef {{ name: string, command: string | null, version: string | null, ok: boolean, advice: string | null }} Tool
 *   One program: `advice` says what to do when `ok` is false.
 */

/**
 * The C++ compiler: `CXX` if set, else the first of c++, g++, clang++. GCC 11 and Clang 14 are the first with what our
 * C++20 code and LibTorch's headers need.
 * @param {NodeJS.ProcessEnv} [env]
 * @returns {Tool}
 */
export function findCompiler(env = process.env) {
  const name = 'C++20 compiler';
  for (const command of env['CXX'] ? [env['CXX']] : ['c++', 'g++', 'clang++']) {
    const text = output(command, ['--version'], env);
    if (text === null) continue;
    const line = text.split('\n')[0] ?? '';
    const version = / (\d+\.\d+(\.\d+)?)/.exec(line)?.[1] ?? null;
    const minimum = /clang/i.test(line) ? '14' : '11';
    const ok = version === null || compareVersions(version, minimum) >= 0;
    const advice = ok ? null : `${command} is ${line}; version ${minimum} or newer is needed: ${installHint('compiler')}, or set CXX`;
    return { name, command, version: line, ok, advice };
  }
  const missing = env['CXX'] ? `CXX is ${env['CXX']}, which does not run` : 'no C++ compiler on the PATH';
  return { name, command: null, version: null, ok: false, advice: `${missing}: ${installHint('compiler')}` };
}

/**
 * @param {NodeJS.ProcessEnv} [env]
 * @returns {Tool}
 */
export function findCmake(env = process.env) {
  const name = 'CMake';
  const text = output('cmake', ['--version'], env);
  const version = text === null ? null : (/version (\S+)/.exec(text)?.[1] ?? null);
  if (version === null) {
    return { name, command: null, version, ok: false, advice: `no cmake on the PATH: ${installHint('cmake')}` };
  }
  const ok = compareVersions(version, cmakeMinimum) >= 0;
  const advice = ok ? null : `cmake is ${version}; ${cmakeMinimum} or newer is needed: ${installHint('cmake')}`;
  return { name, command: 'cmake', version, ok, advice };
}

/**
 * Python 3 with pip: needed only to fetch LibTorch, and by scripts that compare with PyTorch.
 * @param {NodeJS.ProcessEnv} [env]
 * @returns {Tool}
 */
export function findPython(env = process.env) {
  const name = 'Python 3 with pip';
  const text = output('python3', ['--version'], env);
  if (text === null) {
    return { name, command: null, version: null, ok: false, advice: `no python3 on the PATH: ${installHint('python')}` };
  }
  const version = text.replace(/^Python /, '');
  const pip = output('python3', ['-m', 'pip', '--version'], env);
  const advice = pip === null ? `python3 ${version} has no pip: ${installHint('python')}` : null;
  return { name, command: 'python3', version, ok: pip !== null, advice };
}

/**
 * Throws a SetupError listing every tool that is missing or too old.
 * @param {readonly Tool[]} tools
 */
export function requireTools(tools) {
  const lacking = tools.filter((tool) => !tool.ok);
  if (lacking.length === 0) return;
  const lines = lacking.map((tool) => `  ${tool.name}: ${tool.advice}`);
  throw new SetupError(`torchgraft cannot be built yet:\n${lines.join('\n')}\nThen run the same command again.`);
}

/**
 * Runs `main` as a script's body: a SetupError is printed as its message, anything else with its stack.
 * @param {() => void | Promise<void>} main
 */
export async function runScript(main) {
  try {
    await main();
  } catch (error) {
    console.error(error instanceof SetupError ? `\n${error.message}` : error);
    process.exitCode = 1;
  }
}
