/**
 * Finding and fetching LibTorch, with a tiny fake wheel that pip finds in a folder. A python3 of our own stands first on
 * the PATH: it says where "its" torch package is, delays pip when asked to, and hands everything else to the real one.
 */
import { spawn, spawnSync, type ChildProcess } from 'node:child_process';
import { chmodSync, existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { hostname, tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { cachedDir, cacheRoot, completeMark, findLibtorch, inspectLibtorch } from '../../scripts/build/find-libtorch.mjs';
import { compareVersions, findCmake, findCompiler, findPython, requireTools } from '../../scripts/build/tools.mjs';

const fetchModule = new URL('../../scripts/build/fetch-libtorch.mjs', import.meta.url).href;
const suffix = process.platform === 'darwin' ? 'dylib' : 'so';

/** Python itself, not what a version manager puts on the PATH. */
const realPython = spawnSync('python3', ['-c', 'import sys; print(sys.executable)'], { encoding: 'utf8' }).stdout.trim();

let folder: string;
let env: NodeJS.ProcessEnv;

/** The files of a LibTorch of some version, empty but for what is read. */
function fakeFiles(version: string, cuda: string | null = null): Record<string, string> {
  const [major, minor, patch] = version.split(/[.+]/);
  const header = `#define TORCH_VERSION_MAJOR ${major}\n#define TORCH_VERSION_MINOR ${minor}\n#define TORCH_VERSION_PATCH ${patch}\n`;
  const libraries = ['torch', 'torch_cpu', 'c10', ...(cuda === null ? [] : ['torch_cuda', 'c10_cuda'])];
  return {
    'include/torch/headeronly/version.h': header,
    'include/torch/library.h': '',
    'version.py': `__version__ = '${version}'\ncuda: Optional[str] = ${cuda === null ? 'None' : `'${cuda}'`}\n`,
    ...Object.fromEntries(libraries.map((name) => [`lib/lib${name}.${suffix}`, ''])),
  };
}

function write(dir: string, files: Record<string, string>): string {
  for (const [path, text] of Object.entries(files)) {
    mkdirSync(dirname(join(dir, path)), { recursive: true });
    writeFileSync(join(dir, path), text);
  }
  return dir;
}

const fakeLibtorch = (name: string, version: string, cuda: string | null = null): string =>
  write(join(folder, name), fakeFiles(version, cuda));

/** A wheel with the files of a fake LibTorch and some that a C++ program does not need. */
function fakeWheel(files: Record<string, string> = fakeFiles('2.13.0+cpu')): void {
  const version = process.platform === 'darwin' ? '2.13.0' : '2.13.0+cpu';
  const info = `torch-${version}.dist-info`;
  const source = write(join(folder, 'wheel-source'), {
    ...Object.fromEntries(Object.entries(files).map(([path, text]) => [`torch/${path}`, text])),
    [`torch/lib/libtorch_python.${suffix}`]: 'not needed',
    'torch/nn/modules.py': 'not needed',
    [`${info}/METADATA`]: `Metadata-Version: 2.1\nName: torch\nVersion: ${version}\n`,
    [`${info}/WHEEL`]: 'Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: py3-none-any\n',
    [`${info}/RECORD`]: '',
  });
  mkdirSync(join(folder, 'wheels'), { recursive: true });
  const wheel = join(folder, 'wheels', `torch-${version}-py3-none-any.whl`);
  const code = 'import shutil, sys; shutil.make_archive(sys.argv[1], "zip", sys.argv[2])';
  expect(spawnSync('python3', ['-c', code, join(folder, 'archive'), source]).status).toBe(0);
  rmSync(wheel, { force: true });
  expect(spawnSync('mv', [join(folder, 'archive.zip'), wheel]).status).toBe(0);
}

interface Outcome {
  readonly code: number | null;
  readonly text: string;
}

/** `obtainLibtorch()` in a process of its own; `text` is all its output. */
function obtain(extra: NodeJS.ProcessEnv = {}): { child: ChildProcess; done: Promise<Outcome> } {
  const code = `const { obtainLibtorch } = await import(process.argv[1]);
    try { console.log('RESULT ' + (await obtainLibtorch()).dir); } catch (error) { console.log(error.message); process.exit(3); }`;
  const child = spawn(process.execPath, ['--input-type=module', '-e', code, fetchModule], { env: { ...env, ...extra }, detached: true });
  let text = '';
  child.stdout.on('data', (chunk: Buffer) => (text += chunk.toString()));
  child.stderr.on('data', (chunk: Buffer) => (text += chunk.toString()));
  const done = new Promise<Outcome>((resolve) => child.on('close', (code) => resolve({ code, text })));
  return { child, done };
}

async function until(condition: () => boolean, what: string): Promise<void> {
  for (let i = 0; i < 600; i++) {
    if (condition()) return;
    await sleep(50);
  }
  throw new Error(`Never came: ${what}`);
}

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'torchgraft-libtorch-'));
  const shim = join(folder, 'bin', 'python3');
  write(join(folder, 'bin'), {
    python3: `#!/bin/sh
case "$*" in
  *find_spec*) echo "$FAKE_PYTHON_TORCH"; exit 0;;
  *"pip download"*) sleep "\${FAKE_PIP_DELAY:-0}";;
esac
exec "${realPython}" "$@"
`,
  });
  chmodSync(shim, 0o755);
  env = {
    PATH: `${join(folder, 'bin')}:${process.env['PATH'] ?? ''}`,
    HOME: join(folder, 'home'),
    TORCHGRAFT_CACHE: join(folder, 'cache'),
    PIP_CONFIG_FILE: '/dev/null',
    PIP_NO_INDEX: '1',
    PIP_FIND_LINKS: join(folder, 'wheels'),
    PIP_DISABLE_PIP_VERSION_CHECK: '1',
  };
});

afterEach(() => rmSync(folder, { recursive: true, force: true }));

describe('where LibTorch is looked for', () => {
  it('takes LIBTORCH before python before the cache', () => {
    const cache = cachedDir(env);
    write(join(cache, 'torch'), fakeFiles('2.13.0'));
    writeFileSync(join(cache, completeMark), '');
    expect(findLibtorch(env).libtorch).toMatchObject({ origin: 'cache', dir: join(cache, 'torch') });
    const ofPython = { ...env, FAKE_PYTHON_TORCH: fakeLibtorch('site-packages/torch', '2.12.1') };
    expect(findLibtorch(ofPython).libtorch).toMatchObject({ origin: 'python', version: '2.12.1' });
    const ofVariable = { ...ofPython, LIBTORCH: fakeLibtorch('mine', '2.11.0') };
    expect(findLibtorch(ofVariable).libtorch).toMatchObject({ origin: 'LIBTORCH', version: '2.11.0' });
  });

  it('says what it tried when there is none', () => {
    const { libtorch, tried } = findLibtorch(env);
    expect(libtorch).toBeNull();
    expect(tried).toEqual([
      'the variable LIBTORCH is not set',
      'python3 on the PATH has no torch package',
      `the cache has no ${cachedDir(env)}`,
    ]);
  });

  it('puts the cache where TORCHGRAFT_CACHE, XDG_CACHE_HOME or the home say', () => {
    expect(cacheRoot({ TORCHGRAFT_CACHE: '/a/b', XDG_CACHE_HOME: '/x', HOME: '/h' })).toBe('/a/b');
    expect(cacheRoot({ XDG_CACHE_HOME: '/x', HOME: '/h' })).toBe('/x/torchgraft');
    expect(cacheRoot({ HOME: '/h' })).toMatch(/^\/h\/.*torchgraft$/);
  });

  it('knows CUDA builds', () => {
    expect(inspectLibtorch(fakeLibtorch('cuda', '2.13.0+cu130', '13.0'), 'LIBTORCH')?.cuda).toBe('13.0');
    expect(inspectLibtorch(fakeLibtorch('cpu', '2.13.0+cpu'), 'LIBTORCH')?.cuda).toBeNull();
  });

  it.each(['2.10.2', '2.15.0', '1.13.1', '3.0.0'])('refuses version %s in one sentence', (version) => {
    const dir = fakeLibtorch('other', version);
    expect(() => findLibtorch({ ...env, LIBTORCH: dir })).toThrow(
      `LibTorch ${version} in ${dir} does not fit: torchgraft needs at least 2.11 and less than 2.15 (set LIBTORCH to another one, or unset it).`,
    );
  });

  it.each(['2.11.0', '2.12.0+cpu', '2.14.1', '2.14.9+cu130'])('accepts version %s', (version) => {
    expect(findLibtorch({ ...env, LIBTORCH: fakeLibtorch('other', version) }).libtorch?.version).toBe(version);
  });

  it("passes over python's torch of another version, and says so", () => {
    const { libtorch, tried } = findLibtorch({ ...env, FAKE_PYTHON_TORCH: fakeLibtorch('old/torch', '2.5.1') });
    expect(libtorch).toBeNull();
    expect(tried[1]).toContain('LibTorch 2.5.1 in');
    expect(tried[1]).toContain('LIBTORCH=DIR overrides it');
  });

  it('refuses a LIBTORCH that holds none', () => {
    expect(() => findLibtorch({ ...env, LIBTORCH: folder })).toThrow(/which is no LibTorch: expected lib\/libtorch_cpu/);
  });

  it('ignores a cache that was not unpacked to its end', () => {
    write(join(cachedDir(env), 'torch'), fakeFiles('2.13.0'));
    expect(findLibtorch(env).libtorch).toBeNull();
  });
});

describe('fetching LibTorch', () => {
  it('unpacks what a C++ program needs, and nothing else', async () => {
    fakeWheel();
    const { code, text } = await obtain().done;
    expect(text).toContain(`RESULT ${join(cachedDir(env), 'torch')}`);
    expect(code).toBe(0);
    expect(findLibtorch(env).libtorch).toMatchObject({ origin: 'cache', version: '2.13.0+cpu' });
    expect(readdirSync(cacheRoot(env))).toEqual([cachedDir(env).slice(cacheRoot(env).length + 1)]);
    expect(readdirSync(join(cachedDir(env), 'torch')).sort()).toEqual(['include', 'lib', 'version.py']);
    expect(existsSync(join(cachedDir(env), 'torch', 'lib', `libtorch_python.${suffix}`))).toBe(false);
  });

  it('fetches once when several processes ask at the same time', async () => {
    fakeWheel();
    const outcomes = await Promise.all([1, 2, 3].map(() => obtain({ FAKE_PIP_DELAY: '1.5' }).done));
    expect(outcomes.map(({ code }) => code)).toEqual([0, 0, 0]);
    expect(outcomes.filter(({ text }) => text.includes('Unpacking into'))).toHaveLength(1);
    const waited = outcomes.filter(({ text }) => /Process \d+ is fetching LibTorch into .*; waiting for it/.test(text));
    expect(waited).toHaveLength(2);
    expect(readdirSync(cacheRoot(env))).toHaveLength(1);
  });

  it('leaves no half cache when killed, and recovers', async () => {
    fakeWheel();
    const { child, done } = obtain({ FAKE_PIP_DELAY: '30' });
    await until(() => existsSync(cacheRoot(env)) && readdirSync(cacheRoot(env)).some((name) => name.includes('partial')), 'partial');
    process.kill(-child.pid!, 'SIGKILL');
    await done;
    expect(readdirSync(cacheRoot(env)).sort()).toEqual([
      expect.stringMatching(/^\.libtorch.*\.partial-/),
      expect.stringMatching(/\.lock$/),
    ]);
    expect(findLibtorch(env).libtorch).toBeNull();
    const { code, text } = await obtain().done;
    expect(text).not.toContain('waiting for it');
    expect(code).toBe(0);
    expect(readdirSync(cacheRoot(env))).toHaveLength(1);
  });

  it('takes over the lock of a dead process and replaces a half-unpacked folder', async () => {
    fakeWheel();
    write(join(cachedDir(env), 'torch'), { 'lib/junk': 'half' });
    const dead = spawnSync(process.execPath, ['-e', '']).pid;
    writeFileSync(`${cachedDir(env)}.lock`, JSON.stringify({ pid: dead, host: hostname() }));
    expect((await obtain().done).code).toBe(0);
    expect(existsSync(join(cachedDir(env), 'torch', 'lib', 'junk'))).toBe(false);
  });

  it('names both sources and the ways out when there is no wheel', async () => {
    mkdirSync(join(folder, 'wheels'));
    const { code, text } = await obtain().done;
    expect(code).toBe(3);
    expect(text).toMatch(/LibTorch could not be fetched \(torch==2\.13\.0/);
    expect(text).toMatch(/pip as configured: ERROR: .*\n.*PyTorch's download site: ERROR: /);
    expect(text).toContain('set LIBTORCH to its folder');
    expect(readdirSync(cacheRoot(env))).toEqual([]);
  });

  it('refuses a wheel without a complete LibTorch', async () => {
    fakeWheel({ 'version.py': "__version__ = '2.13.0+cpu'\n" });
    const { code, text } = await obtain().done;
    expect(code).toBe(3);
    expect(text).toContain('holds no complete LibTorch');
    expect(readdirSync(cacheRoot(env))).toEqual([]);
  });

  it('says that Python is needed where there is none', async () => {
    const { code, text } = await obtain({ PATH: join(folder, 'empty') }).done;
    expect(code).toBe(3);
    expect(text).toMatch(/To fetch it, Python 3 with pip is needed: no python3 on the PATH: .*install/);
  });
});

describe('tools', () => {
  it('compares versions by their numbers', () => {
    expect(compareVersions('2.13.0+cpu', '2.13')).toBe(0);
    expect(compareVersions('3.9', '3.18')).toBeLessThan(0);
    expect(compareVersions('12.2.0', '11')).toBeGreaterThan(0);
  });

  it('says what to install for each one that is missing', () => {
    const none = { PATH: join(folder, 'empty') };
    const tools = [findCompiler(none), findCmake(none), findPython(none)];
    expect(tools.every((tool) => !tool.ok)).toBe(true);
    expect(() => requireTools(tools)).toThrow(/C\+\+20 compiler: .*install[^]*CMake: .*install[^]*Python 3 with pip: .*install/);
  });

  it('refuses what is too old', () => {
    write(join(folder, 'old'), { cmake: '#!/bin/sh\necho cmake version 3.10.2\n', 'g++': '#!/bin/sh\necho "g++ (Old) 9.4.0"\n' });
    for (const name of ['cmake', 'g++']) chmodSync(join(folder, 'old', name), 0o755);
    const old = { PATH: `${join(folder, 'old')}:/bin`, CXX: 'g++' };
    expect(findCmake(old)).toMatchObject({ ok: false, advice: expect.stringContaining('cmake is 3.10.2; 3.18 or newer') as string });
    expect(findCompiler(old)).toMatchObject({ ok: false, advice: expect.stringContaining('version 11 or newer') as string });
  });
});

describe('a build folder', () => {
  it("is CMake's where CMake has generated its files, not where node-gyp's Makefile stands in their place", async () => {
    const { hasBuildFiles } = await import('../../scripts/build/native.mjs');
    expect(hasBuildFiles(folder)).toBe(false);
    writeFileSync(join(folder, 'Makefile'), '# We borrow heavily from the kernel build setup\n');
    expect(hasBuildFiles(folder)).toBe(false);
    writeFileSync(join(folder, 'Makefile'), '# CMAKE generated file: DO NOT EDIT!\n');
    expect(hasBuildFiles(folder)).toBe(true);
    rmSync(join(folder, 'Makefile'));
    writeFileSync(join(folder, 'build.ninja'), '');
    expect(hasBuildFiles(folder)).toBe(true);
  });
});
