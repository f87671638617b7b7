/**
 * What is published: the three tarballs, installed where there is Node and nothing else, used from ES modules, CommonJS and
 * strict TypeScript.
 */
import { execFile } from 'node:child_process';
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  realpathSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { homedir, tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { promisify } from 'node:util';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { findLibtorch } from '../../scripts/build/find-libtorch.mjs';
import { distFolder } from '../dist.js';
import { readTarball } from './tar.js';

const run = promisify(execFile);
const root = join(import.meta.dirname, '..', '..');
const libtorch = findLibtorch().libtorch;

/** Why nothing can be packed here; null where it can. */
const reason =
  process.platform !== 'linux'
    ? 'packing reads ELF libraries'
    : libtorch?.cuda != null
      ? 'binaries are published for CPU builds of LibTorch, and this one is for CUDA'
      : null;
if (reason !== null) console.warn(`test/package is skipped: ${reason}`);

/** npm's own program, which runs without a PATH. */
function npmProgram(name: 'npm' | 'npx'): string {
  const folders = [
    dirname(process.env['npm_execpath'] ?? ''),
    join(dirname(realpathSync(process.execPath)), '..', 'lib', 'node_modules', 'npm', 'bin'),
    ...(process.env['PATH'] ?? '').split(':').map((folder) => join(folder, '..', 'lib', 'node_modules', 'npm', 'bin')),
  ];
  const found = folders.map((folder) => join(folder, `${name}-cli.js`)).find((file) => existsSync(file));
  if (found === undefined) throw new Error(`${name}-cli.js is neither beside Node nor beside npm`);
  return found;
}

interface Packed {
  readonly name: string;
  readonly version: string;
  readonly file: string;
  readonly packed: number;
  readonly unpacked: number;
}

describe.skipIf(reason !== null)('the published packages', { timeout: 180_000 }, () => {
  const folder = mkdtempSync(join(tmpdir(), 'torchgraft-package-'));
  afterAll(() => rmSync(folder, { recursive: true, force: true }));
  const consumer = join(folder, 'consumer');
  const bin = join(folder, 'bin');
  /** Node, the shell that npx needs, nothing else: no compiler, CMake or Python, and a home without a LibTorch. */
  const bare = { PATH: bin, HOME: join(folder, 'home'), OMP_NUM_THREADS: '1' };
  let packages: Packed[] = [];
  const packed = (name: string): Packed => packages.find((p) => p.name === name)!;
  const platform = `@torchgraft/${process.platform}-${process.arch}`;
  const libraries = `@torchgraft/libtorch-cpu-${process.platform}-${process.arch}`;

  beforeAll(async () => {
    distFolder(); // an error if there is none
    const script = join(root, 'scripts', 'package', 'package.mjs');
    const out = join(folder, 'out');
    const { stdout } = await run(process.execPath, [script, '--built', '--level', '1', '--out', out, '--json']);
    packages = JSON.parse(stdout) as Packed[];

    mkdirSync(bin);
    symlinkSync(process.execPath, join(bin, 'node'));
    symlinkSync('/bin/sh', join(bin, 'sh'));
    cpSync(join(import.meta.dirname, 'consumer'), consumer, { recursive: true });
    writeFileSync(join(consumer, 'package.json'), '{ "private": true }');
    // npm keeps its settings and its cache in the user's home.
    const npmEnv = { PATH: bin, HOME: homedir(), npm_config_cache: process.env['npm_config_cache'] };
    const install = ['install', '--prefer-offline', '--no-audit', '--no-fund', ...packages.map(({ file }) => file)];
    await run(process.execPath, [npmProgram('npm'), ...install], { cwd: consumer, env: npmEnv });
  }, 300_000);

  const node = async (...args: string[]): Promise<string> =>
    (await run(join(bin, 'node'), args, { cwd: consumer, env: bare })).stdout;

  test('are three, of the sizes that are to be expected', () => {
    expect(packages.map(({ name }) => name)).toEqual(['torchgraft', platform, libraries]);
    expect(packed('torchgraft').packed).toBeLessThan(4e6);
    expect(packed(platform).packed).toBeLessThan(5e6);
    expect(packed(libraries).packed).toBeLessThan(140e6);
    expect(packed(libraries).unpacked).toBeLessThan(400e6);
  });

  test('hold no test data, no sources of LibTorch and no paths of this machine', () => {
    const paths = [root, dirname(libtorch!.dir), folder].map((path) => `${path}/`);
    for (const { name, file } of packages) {
      for (const { path, data } of readTarball(file)) {
        const inside = path.replace(/^package\//, '');
        if (!inside.startsWith('licenses/')) {
          expect(inside).not.toMatch(/(^|\/)(test|golden|fixtures)\/|\.(safetensors|pth?|npy|map)$|ATen|c10\//);
        }
        if (name !== 'torchgraft') expect(inside).not.toMatch(/\.(h|cpp|c|ts|py)$/);
        for (const found of paths) expect(data.includes(found), `${name}: ${path} contains ${found}`).toBe(false);
      }
    }
    const libs = readTarball(packed(libraries).file).map(({ path }) => path);
    expect(libs.filter((path) => path.startsWith('package/lib/')).sort()).toEqual(
      expect.arrayContaining(['package/lib/libc10.so', 'package/lib/libtorch_cpu.so', 'package/lib/runtime.node']),
    );
  });

  test('the main package depends on the binaries exactly and optionally, and they say what they fit', async () => {
    const read = async (name: string): Promise<unknown> =>
      JSON.parse(await node('-p', `JSON.stringify(require(${JSON.stringify(`./node_modules/${name}/package.json`)}))`));
    expect(await read('torchgraft')).toMatchObject({
      optionalDependencies: { [platform]: packed(platform).version, [libraries]: packed(libraries).version },
    });
    const fits = { os: [process.platform], cpu: [process.arch], libc: ['glibc'] };
    expect(await read(platform)).toMatchObject(fits);
    expect(await read(libraries)).toMatchObject(fits);
    expect(await read('torchgraft')).not.toHaveProperty('devDependencies');
  });

  test('with Node alone, a program reads images, trains, saves, loads and predicts', async () => {
    expect(JSON.parse(await node('train.mjs'))).toEqual({ accuracy: 1, guess: 'red' });
    expect(readdirSync(join(consumer, 'colors')).sort()).toEqual(['adapter_config.json', 'adapter_model.safetensors']);
  });

  test('npx torchgraft doctor is content, and the command line trains', async () => {
    const npx = [npmProgram('npx'), '--no-install', 'torchgraft'];
    interface Report {
      ok: boolean;
      addon: { path: string; loads: boolean };
      tools: { ok: boolean }[];
    }
    const report = JSON.parse(await node(...npx, 'doctor', '--json')) as Report;
    expect(report.ok).toBe(true);
    expect(report.addon.path).toContain(join('node_modules', platform, 'prebuilds'));
    expect(report.tools.map(({ ok }) => ok)).toEqual([false, false, false]);
    expect(await node(...npx, 'doctor')).toMatch(/absent {3}CMake[^]*torchgraft runs here/);
    const size = ['--epochs', '1', '--batch-size', '16', '--data', 'shapes:color:32', '--quiet'];
    const args = ['finetune', 'cifar_resnet20', '--no-weights', ...size, '--out', 'run', '--json'];
    expect(JSON.parse(await node(...npx, ...args))).toHaveProperty('accuracy');
  });

  test('an addon that does not load is explained', async () => {
    const lib = join(consumer, 'node_modules', libraries, 'lib', 'runtime.node');
    const moved = `${lib}.away`;
    cpSync(lib, moved);
    rmSync(lib);
    try {
      await expect(node('-e', 'require("torchgraft")')).rejects.toThrow(/could not be loaded[^]*npx torchgraft build/);
    } finally {
      cpSync(moved, lib);
    }
  });

  test.each([
    ['as Node resolves it', []],
    ['on Nodes that cannot require ES modules', ['--no-experimental-require-module']],
  ])('require works %s, in one copy with import', async (_, flags) => {
    const answer = JSON.parse(await node(...flags, 'require.cjs')) as Record<string, unknown>;
    expect(answer).toMatchObject({ missing: [], same: true, sum: 6, shape: [1, 3], method: 'lora' });
    const cjs = join('dist', 'cjs', 'index.js');
    if (flags.length > 0) expect(answer['file']).toContain(cjs);
  });

  test('a project in strict TypeScript compiles, as ES modules and as CommonJS', async () => {
    const types = join(consumer, 'node_modules', '@types');
    if (!existsSync(types)) symlinkSync(join(root, 'node_modules', '@types'), types);
    const tsc = join(root, 'node_modules', 'typescript', 'bin', 'tsc');
    const strict = [
      '--strict',
      '--exactOptionalPropertyTypes',
      '--noUncheckedIndexedAccess',
      '--skipLibCheck',
      'false',
    ];
    const common = ['--noEmit', '--target', 'es2022', '--types', 'node', ...strict];
    const compile = async (...args: string[]): Promise<string> => {
      const child = run(process.execPath, [tsc, ...common, ...args], { cwd: consumer });
      return await child.then(
        ({ stdout }) => stdout,
        (error: unknown) => (error as { stdout: string }).stdout,
      );
    };
    // Our declarations themselves are checked, too.
    expect(await compile('--module', 'nodenext', '--skipLibCheck', 'false', 'module.mts', 'common.cts')).toBe('');
    expect(await compile('--module', 'preserve', '--moduleResolution', 'bundler', '--skipLibCheck', 'module.mts')).toBe(
      '',
    );
  });

  test('publint and "are the types wrong" find nothing', async () => {
    const tarball = packed('torchgraft').file;
    const program = (name: string, file: string): string => join(root, 'node_modules', ...name.split('/'), file);
    const publint = await run(process.execPath, [program('publint', 'src/cli.js'), 'run', tarball, '--strict']);
    expect(publint.stdout).toContain('All good!');
    const attw = await run(process.execPath, [
      program('@arethetypeswrong/cli', 'dist/index.js'),
      tarball,
      '--no-color',
    ]);
    expect(attw.stdout).toContain('No problems found');
  });
});
