/**
 * The Python of the exchange tests: a virtual environment with PyTorch (CPU), timm, transformers, peft and safetensors,
 * made once per user in the cache. `node scripts/interop/environment.mjs` makes it and prints its Python.
 */
import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  closeSync,
  existsSync,
  linkSync,
  mkdirSync,
  openSync,
  readdirSync,
  readSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { pytorchIndex } from '../build/fetch-libtorch.mjs';
import { cacheRoot, cachedTorch, completeMark, fetchedVersion } from '../build/find-libtorch.mjs';
import { isAlive, withLock } from '../build/lock.mjs';
import { SetupError, compareVersions, findPython, output, runScript } from '../build/tools.mjs';

const torch = `torch==${process.platform === 'darwin' ? fetchedVersion.replace(/\+.*/, '') : fetchedVersion}`;
/** What the scripts are tested with. */
const packages = ['numpy', 'safetensors==0.8.0', 'transformers==5.23.0', 'peft==0.21.2', 'pyyaml', 'pillow'];
/**
 * Without what they require: a PyTorch that torchvision was built for would come along. Its operators do not load beside
 * this one, and its classifiers need none; see `torchvision_works` in models.py.
 */
const alone = ['timm==1.0.29', 'torchvision==0.28.0'];

/** `pip --python` is as old as this. */
const pipMinimum = '22.3';
/** The newest Python that these packages no longer serve. */
const pythonMinimum = '3.10';

/**
 * Where the environment is, complete or not; a new set of packages gets a new folder.
 * @param {string} pythonVersion
 * @param {NodeJS.ProcessEnv} env
 */
function folderOf(pythonVersion, env) {
  const digest = createHash('sha256')
    .update(JSON.stringify([torch, packages, alone, pythonVersion]))
    .digest('hex');
  return join(cacheRoot(env), `python-${digest.slice(0, 12)}-${process.platform}-${process.arch}`);
}

/** @param {string} folder */
const pythonIn = (folder) =>
  process.platform === 'win32' ? join(folder, 'Scripts', 'python.exe') : join(folder, 'bin', 'python');

/**
 * Runs a program to its end. A SetupError with the last line of its errors when it fails.
 * @param {string} command
 * @param {readonly string[]} args
 * @param {NodeJS.ProcessEnv} env
 */
async function run(command, args, env) {
  const child = spawn(command, args, { env, stdio: ['ignore', 'ignore', 'pipe'] });
  let text = '';
  child.stderr.setEncoding('utf8').on('data', (chunk) => (text += chunk));
  const code = await new Promise((resolve) => {
    child.on('error', (error) => {
      text += error.message;
      resolve(1);
    });
    child.on('close', resolve);
  });
  if (code === 0) return;
  const lines = text.trim().split('\n');
  throw new SetupError(
    (lines.filter((line) => line.startsWith('ERROR')).at(-1) ?? lines.at(-1) ?? `${command} failed`).trim(),
  );
}

/**
 * Whether two files hold the same bytes.
 * @param {string} a
 * @param {string} b
 */
function sameContent(a, b) {
  if (statSync(a).size !== statSync(b).size) return false;
  const files = [openSync(a, 'r'), openSync(b, 'r')];
  const [left, right] = [Buffer.alloc(1 << 22), Buffer.alloc(1 << 22)];
  try {
    for (;;) {
      const [n, m] = [
        readSync(/** @type {number} */ (files[0]), left),
        readSync(/** @type {number} */ (files[1]), right),
      ];
      if (n !== m || left.compare(right, 0, n, 0, n) !== 0) return false;
      if (n === 0) return true;
    }
  } finally {
    for (const file of files) closeSync(file);
  }
}

/**
 * Lets the environment's PyTorch share the libraries that the build has unpacked already: 400 MB that need not be on the
 * disk twice. Where that cannot be (another file system), the copies stay.
 * @param {string} folder
 * @param {NodeJS.ProcessEnv} env
 */
function shareLibraries(folder, env) {
  const cached = cachedTorch(env);
  const site = output(pythonIn(folder), ['-c', "import sysconfig; print(sysconfig.get_paths()['purelib'])"], env);
  if (cached === null || site === null) return;
  const [from, to] = [join(cached.dir, 'lib'), join(site, 'torch', 'lib')];
  if (!existsSync(to)) return;
  for (const name of readdirSync(to).filter((file) => existsSync(join(from, file)))) {
    const [source, target] = [join(from, name), join(to, name)];
    if (!statSync(source).isFile() || !sameContent(source, target)) continue;
    try {
      linkSync(source, `${target}.shared`);
      renameSync(`${target}.shared`, target);
    } catch {
      return;
    }
  }
}

/**
 * Makes the environment in `folder`.
 * @param {string} folder
 * @param {string} python
 * @param {NodeJS.ProcessEnv} env
 */
async function make(folder, python, env) {
  const prefix = `${basename(folder)}.partial-`;
  for (const name of readdirSync(dirname(folder)).filter((file) => file.startsWith(prefix))) {
    const left = join(dirname(folder), name);
    if (!isAlive(Number(name.slice(prefix.length)))) rmSync(left, { recursive: true, force: true });
  }
  const partial = join(dirname(folder), `${prefix}${process.pid}`);
  try {
    // Without pip of its own: Debian's Python cannot install it, and any pip can install into another environment.
    await run(python, ['-m', 'venv', '--without-pip', partial], env);
    const pip = ['-m', 'pip', '--python', pythonIn(partial), 'install', '--quiet', '--only-binary=:all:'];
    console.error(`Making the Python environment ${folder} (PyTorch, timm, transformers, peft; once per user) ...`);
    try {
      await run(python, [...pip, torch], env);
    } catch {
      await run(python, [...pip, '--extra-index-url', pytorchIndex, torch], env);
    }
    await run(python, [...pip, torch, ...packages], env);
    await run(python, [...pip, '--no-deps', ...alone], env);
    shareLibraries(partial, env);
    writeFileSync(join(partial, completeMark), '');
    // Someone may have been as quick, after both took over a dead lock; and what is in use must stay.
    if (existsSync(join(folder, completeMark))) return;
    rmSync(folder, { recursive: true, force: true });
    renameSync(partial, folder);
  } finally {
    rmSync(partial, { recursive: true, force: true });
  }
}

/**
 * The Python to exchange models with: `TORCHGRAFT_INTEROP_PYTHON` if it is set, else the environment of the cache, made
 * now if need be. Any number of processes may ask at once.
 * @param {NodeJS.ProcessEnv} [env]
 * @returns {Promise<string>}
 * @throws {SetupError} where Python, pip or the packages cannot be had, saying why
 */
export async function obtainPython(env = process.env) {
  const own = env['TORCHGRAFT_INTEROP_PYTHON'];
  if (own) {
    if (
      output(own, ['-c', 'import models; models.import_timm(); import transformers, peft'], {
        ...env,
        PYTHONPATH: here,
      }) === null
    )
      throw new SetupError(
        `TORCHGRAFT_INTEROP_PYTHON is ${own}, which lacks torch, timm, transformers, peft or safetensors`,
      );
    return own;
  }
  const found = findPython(env);
  if (!found.ok || found.command === null) throw new SetupError(found.advice ?? 'there is no Python');
  const version = found.version ?? '3';
  const folder = folderOf(version, env);
  const isThere = () => existsSync(join(folder, completeMark));
  if (isThere()) return pythonIn(folder);
  if (compareVersions(version, pythonMinimum) < 0)
    throw new SetupError(`python3 is ${version}; PyTorch and its companions need ${pythonMinimum}`);
  const pip = /^pip (\S+)/.exec(output(found.command, ['-m', 'pip', '--version'], env) ?? '')?.[1] ?? '0';
  if (compareVersions(pip, pipMinimum) < 0)
    throw new SetupError(`pip is ${pip}; an environment is made with ${pipMinimum} or newer`);
  mkdirSync(dirname(folder), { recursive: true });
  const onWait = (/** @type {number | null} */ pid) =>
    console.error(`Process ${pid ?? '(unknown)'} is making the Python environment ${folder}; waiting for it ...`);
  await withLock(`${folder}.lock`, onWait, async () => {
    if (!isThere()) await make(folder, /** @type {string} */ (found.command), env);
  });
  return pythonIn(folder);
}

const here = fileURLToPath(new URL('.', import.meta.url));

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  await runScript(async () => console.log(await obtainPython()));
}
