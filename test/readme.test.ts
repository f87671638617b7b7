/** The README and the guides: their programs run as printed, and what they point to is there. */
import {
  existsSync,
  mkdtempSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { runNode } from './child.js';
import { distFolder } from './dist.js';

const root = join(import.meta.dirname, '..');
const readme = readFileSync(join(root, 'README.md'), 'utf8');
const folder = mkdtempSync(join(tmpdir(), 'torchgraft-readme-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** Runs a printed program where `torchgraft` is this package, as compiled. */
async function run(program: string): Promise<string> {
  const modules = join(folder, 'node_modules');
  if (!existsSync(modules)) {
    distFolder(); // an error if it is not fresh
    mkdirSync(modules);
    symlinkSync(root, join(modules, 'torchgraft'));
    symlinkSync(join(root, 'node_modules', 'zod'), join(modules, 'zod'));
  }
  const file = join(folder, 'program.mjs');
  writeFileSync(file, program);
  const ended = await runNode([file], 240, folder);
  expect(ended, ended.stderr).toMatchObject({ code: 0, signal: null });
  return ended.stdout;
}

/** The JavaScript blocks of a text. */
const blocks = (text: string): string[] => Array.from(text.matchAll(/^```js\n(.*?)^```/gms), ([, code]) => code ?? '');

test('the training program trains as printed', { timeout: 300_000 }, async () => {
  const program = blocks(readme)[0] ?? '';
  const lines = program.split('\n').filter((line) => line.trim() !== '');
  expect(lines.length).toBeLessThanOrEqual(22);
  const output = await run(program);
  expect(output).toMatch(/training \d\.\d % of the parameters/);
  expect(Number(/validation accuracy ([\d.]+) %/.exec(output)?.[1])).toBeGreaterThan(80);
  expect(readdirSync(join(folder, 'stripes')).sort()).toEqual(['adapter_config.json', 'adapter_model.safetensors']);
});

test('the method in docs/adapters.md runs as printed', { timeout: 300_000 }, async () => {
  const program = blocks(readFileSync(join(root, 'docs', 'adapters.md'), 'utf8')).find((b) =>
    b.includes('defineMethod'),
  );
  const output = await run(program ?? '');
  expect(output).toContain('[64,1,1]');
  expect(output).toContain('[ 2, 4 ]');
});

test('what the README and the guides point to is there', () => {
  for (const file of ['README.md', ...readdirSync(join(root, 'docs')).map((name) => `docs/${name}`)]) {
    const text = readFileSync(join(root, file), 'utf8');
    for (const [, target = ''] of text.matchAll(/\]\(([^)#:]+)\)/g)) {
      expect(existsSync(join(root, dirname(file), target)), `${file}: ${target}`).toBe(true);
    }
    const scripts = (JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as { scripts: object }).scripts;
    for (const [, script = ''] of text.matchAll(/npm run ([\w:]+)/g)) expect(Object.keys(scripts)).toContain(script);
  }
});
