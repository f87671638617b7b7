import { spawnSync } from 'node:child_process';
import { copyFileSync, cpSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { EnvironmentReport } from '../../lib/cli/doctor.js';
import { checkEnvironment } from '../../lib/cli/doctor.js';
import { loadAddon } from '../../lib/native/load.js';

const root = fileURLToPath(new URL('../../', import.meta.url));

describe('doctor', () => {
  it('finds this machine fit', async () => {
    const report = await checkEnvironment();
    expect(report.ok, report.advice.join('\n')).toBe(true);
    expect(report.addon).toMatchObject({ loads: true, error: null, devices: expect.arrayContaining(['cpu']) as string[] });
    expect(report.addon.torch).toBe(report.addon.compiledAgainst);
    expect(report.tools.map((tool) => tool.name)).toEqual(['C++20 compiler', 'CMake', 'Python 3 with pip']);
  });
});

describe('on a copy where nothing is built', () => {
  let copy: string;
  beforeAll(() => {
    copy = mkdtempSync(join(tmpdir(), 'torchgraft-doctor-'));
    cpSync(join(root, 'scripts', 'build'), join(copy, 'scripts', 'build'), { recursive: true });
    copyFileSync(join(root, 'package.json'), join(copy, 'package.json'));
    symlinkSync(join(root, 'node_modules'), join(copy, 'node_modules'));
  });
  afterAll(() => rmSync(copy, { recursive: true, force: true }));

  const doctor = (env: NodeJS.ProcessEnv): { status: number | null; report: EnvironmentReport; text: string } => {
    const run = (args: string[]) =>
      spawnSync(process.execPath, [join(copy, 'scripts/build/doctor.mjs'), ...args], { env, encoding: 'utf8' });
    const { status, stdout } = run(['--json']);
    return { status, report: JSON.parse(stdout) as EnvironmentReport, text: run([]).stdout };
  };

  it('says what to install, in order, and to build', () => {
    const { status, report, text } = doctor({ PATH: join(copy, 'empty'), TORCHGRAFT_CACHE: join(copy, 'cache') });
    expect(status).toBe(1);
    expect(report).toMatchObject({ ok: false, libtorch: null, addon: { loads: false, path: null } });
    const advice = report.advice.join('\n');
    expect(advice).toMatch(/C\+\+ compiler[^]*cmake[^]*python3[^]*fetched by the build[^]*npm run build:native/);
    expect(text).toMatch(/missing {2}CMake/);
    expect(text).toContain('torchgraft cannot run here yet.');
  });

  it('reports a LIBTORCH that is none', () => {
    const { report } = doctor({ PATH: process.env['PATH'], LIBTORCH: copy });
    expect(report.advice[0]).toContain(`LIBTORCH is ${copy}, which is no LibTorch`);
  });

  it('reports an addon that does not load, without dying of it', () => {
    mkdirSync(join(copy, 'build', 'Release'), { recursive: true });
    const addon = join(copy, 'build', 'Release', 'torchgraft.node');
    writeFileSync(addon, 'not a library');
    try {
      const { report } = doctor({ PATH: process.env['PATH'], TORCHGRAFT_CACHE: join(copy, 'cache') });
      expect(report.addon).toMatchObject({ path: addon, loads: false, error: expect.stringContaining(addon) as string });
      expect(report.advice.at(-1)).toContain('build it again');
      expect(() => loadAddon(copy)).toThrow(/could not be loaded. Tried:[^]*torchgraft\.node: [^]*npm run build:native[^]*torchgraft doctor/);
    } finally {
      rmSync(addon);
    }
    expect(() => loadAddon(copy)).toThrow(/no such file[^]*prebuilds[^]*It has not been built: run `npm run build:native`/);
  });
});
