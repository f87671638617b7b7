/** Fetches LibTorch into the user's cache when none is found: a CPU wheel of torch, unpacked, never installed. */
import { spawn } from 'node:child_process';
import { mkdirSync, readdirSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { hostname } from 'node:os';
import { basename, dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { cachedDir, cachedTorch, completeMark, fetchedVersion, findLibtorch, inspectLibtorch } from './find-libtorch.mjs';
import { isAlive, withLock } from './lock.mjs';
import { SetupError, compareVersions, findPython } from './tools.mjs';

/** PyTorch's own download site: asked when pip, as the user has configured it, has no such wheel. */
export const pytorchIndex = 'https://download.pytorch.org/whl/cpu';

/** Pythons that the wheel's release serves by itself; for others a wheel of another Python is named. */
const servedPython = { minimum: '3.10', named: '312' };

const say = (/** @type {string} */ text) => console.error(text);

/**
 * Runs a program; its output goes to standard error, since standard output may be a report.
 * @param {string} command
 * @param {readonly string[]} args
 * @param {NodeJS.ProcessEnv} env
 * @returns {Promise<{ ok: boolean, text: string }>} `text` is what it wrote to standard error
 */
function run(command, args, env) {
  return new Promise((resolve) => {
    const child = spawn(command, args, { env, stdio: ['ignore', 'inherit', 'pipe'] });
    let text = '';
    child.stderr.setEncoding('utf8').on('data', (chunk) => (text += chunk));
    child.on('error', (error) => resolve({ ok: false, text: error.message }));
    child.on('close', (code) => resolve({ ok: code === 0, text }));
  });
}

/** pip's arguments that ask for a wheel of this platform, whatever Python runs pip. */
function foreignPythonArgs() {
  const machine = process.arch === 'arm64' ? 'aarch64' : 'x86_64';
  const platform = process.platform === 'darwin' ? 'macosx_14_0_arm64' : `manylinux_2_28_${machine}`;
  const { named } = servedPython;
  return ['--platform', platform, '--python-version', named, '--implementation', 'cp', '--abi', `cp${named}`];
}

/**
 * Downloads the wheel into `folder` and returns its path.
 * @param {string} folder
 * @param {string} pythonVersion
 * @param {NodeJS.ProcessEnv} env
 */
async function download(folder, pythonVersion, env) {
  const pip = ['-m', 'pip', 'download', '--no-deps', '--only-binary=:all:', '--dest', folder];
  // PyTorch's macOS wheels have no local version.
  const requirement = `torch==${process.platform === 'darwin' ? fetchedVersion.replace(/\+.*/, '') : fetchedVersion}`;
  const tags = compareVersions(pythonVersion, servedPython.minimum) < 0 ? foreignPythonArgs() : [];
  const sources = [
    { name: 'pip as configured', args: [] },
    { name: "PyTorch's download site", args: ['--index-url', pytorchIndex] },
  ];
  const failures = [];
  for (const { name, args } of sources) {
    say(`Fetching LibTorch ${fetchedVersion} (about 190 MB, once per user) from ${name} ...`);
    const { ok, text } = await run('python3', [...pip, ...tags, ...args, requirement], env);
    const wheel = readdirSync(folder).find((file) => file.endsWith('.whl'));
    if (ok && wheel !== undefined) return join(folder, wheel);
    failures.push(`  ${name}: ${text.trim().split('\n').filter((line) => line.startsWith('ERROR')).at(-1) ?? text.trim()}`);
  }
  throw new SetupError(
    `LibTorch could not be fetched (${requirement}):\n${failures.join('\n')}\n` +
      'Give pip a way to it (a proxy, an index), or install torch for python3, or unpack a LibTorch and set LIBTORCH to its folder.',
  );
}

/**
 * Fetches and unpacks into a folder beside the final one, then renames: the final name never holds half a LibTorch.
 * @param {string} final
 * @param {string} pythonVersion
 * @param {NodeJS.ProcessEnv} env
 */
async function fetchInto(final, pythonVersion, env) {
  const parent = dirname(final);
  const prefix = `.${basename(final)}.partial-${hostname()}-`;
  for (const name of readdirSync(parent).filter((name) => name.startsWith(prefix))) {
    if (!isAlive(Number(name.slice(prefix.length)))) rmSync(join(parent, name), { recursive: true, force: true });
  }
  const partial = join(parent, `${prefix}${process.pid}`);
  const wheelFolder = join(partial, 'wheel');
  try {
    mkdirSync(wheelFolder, { recursive: true });
    const wheel = await download(wheelFolder, pythonVersion, env);
    say(`Unpacking into ${final} ...`);
    const script = fileURLToPath(new URL('./unpack-wheel.py', import.meta.url));
    const { ok, text } = await run('python3', [script, wheel, partial], env);
    if (!ok) throw new SetupError(`The wheel of LibTorch could not be unpacked: ${text.trim()}. Run the same command again.`);
    rmSync(wheelFolder, { recursive: true });
    if (inspectLibtorch(join(partial, 'torch'), 'cache') === null) {
      throw new SetupError(`${basename(wheel)} holds no complete LibTorch (lib/ and include/).`);
    }
    writeFileSync(join(partial, completeMark), '');
    // Someone may have been as quick, after both took over a dead lock; and what is in use must stay.
    if (cachedTorch(env) !== null) return;
    rmSync(final, { recursive: true, force: true });
    renameSync(partial, final);
  } finally {
    rmSync(partial, { recursive: true, force: true });
  }
}

/**
 * Finds LibTorch, fetching it into the cache first if there is none. Any number of processes may call this at once: one
 * fetches, the others wait for it with a message.
 * @param {NodeJS.ProcessEnv} [env]
 * @returns {Promise<import('./find-libtorch.mjs').LibTorch>}
 */
export async function obtainLibtorch(env = process.env) {
  const found = findLibtorch(env);
  if (found.libtorch !== null) return found.libtorch;

  const python = findPython(env);
  if (!python.ok) {
    const tried = found.tried.map((reason) => `  ${reason}`).join('\n');
    throw new SetupError(
      `There is no LibTorch yet:\n${tried}\nTo fetch it, Python 3 with pip is needed: ${python.advice}. Or set LIBTORCH to an unpacked LibTorch.`,
    );
  }
  const final = cachedDir(env);
  mkdirSync(dirname(final), { recursive: true });
  const onWait = (/** @type {number | null} */ pid) =>
    say(`Process ${pid ?? '(unknown)'} is fetching LibTorch into ${final}; waiting for it (lock ${final}.lock) ...`);
  await withLock(`${final}.lock`, onWait, async () => {
    if (cachedTorch(env) === null) await fetchInto(final, python.version ?? '3', env);
  });
  const { libtorch } = findLibtorch(env);
  if (libtorch === null) throw new SetupError(`LibTorch was fetched into ${final} but cannot be found there; remove this folder and try again.`);
  return libtorch;
}
