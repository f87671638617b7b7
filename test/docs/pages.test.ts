/** The README and the guides: their programs run as printed, and what they point to is there. */
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import sharp from 'sharp';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { createModel, manualSeed, writeSafetensors } from '../../lib/index.js';
import { runNode } from '../child.js';
import { distFolder } from '../dist.js';
import { uniform } from '../train/tiny.js';
import { readPage } from './page.js';

const root = join(import.meta.dirname, '..', '..');
const read = (file: string): string => readFileSync(join(root, file), 'utf8');
const pages = ['README.md', ...readdirSync(join(root, 'docs')).map((name) => `docs/${name}`)];

const folder = mkdtempSync(join(tmpdir(), 'torchgraft-docs-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** Photographs of noise, bright in one color per class. */
async function makePhotos(target: string): Promise<void> {
  const random = uniform(1);
  for (const [part, count] of [
    ['train', 10],
    ['val', 4],
  ] as const) {
    for (const [c, name] of ['cat', 'dog'].entries()) {
      mkdirSync(join(target, part, name), { recursive: true });
      for (let i = 0; i < count; i++) {
        const data = new Uint8Array(48 * 40 * 3).map((_, p) => 120 * random() + (p % 3 === c ? 130 : 0));
        const image = sharp(data, { raw: { width: 48, height: 40, channels: 3 } });
        await image.jpeg().toFile(join(target, part, name, `${i}.jpg`));
      }
    }
  }
}

beforeAll(async () => {
  await makePhotos(join(folder, 'photos'));
  manualSeed(0);
  for (const name of ['cifar_resnet20', 'vit_tiny_patch16_224']) {
    writeSafetensors(join(folder, `${name}.safetensors`), createModel(name).stateDict());
  }
});

/** What a program starts with: the command line as a function. */
const prelude = (): string => `
import { execFileSync } from 'node:child_process';
const sh = (args) => execFileSync(process.execPath, [${JSON.stringify(join(distFolder(), 'cli/main.js'))}, ...args], { stdio: 'inherit' });
`;

/** Runs the programs of a page, one after the other, in a folder with photographs and weights; returns what they print. */
async function runPage(file: string): Promise<string> {
  const place = join(folder, file.replace(/\W/g, '_'));
  const modules = join(place, 'node_modules');
  mkdirSync(modules, { recursive: true });
  symlinkSync(root, join(modules, 'torchgraft'));
  for (const name of ['zod', 'sharp']) symlinkSync(join(root, 'node_modules', name), join(modules, name));
  for (const name of readdirSync(folder).filter((entry) => entry === 'photos' || entry.endsWith('.safetensors'))) {
    symlinkSync(join(folder, name), join(place, name));
  }
  let printed = '';
  for (const { line, code } of readPage(read(file)).programs) {
    const program = join(place, `line_${line}.mjs`);
    writeFileSync(program, prelude() + code);
    const ended = await runNode([program], 240, place);
    expect(ended, `${file}, program of line ${line}:\n${ended.stderr}`).toMatchObject({ code: 0, signal: null });
    printed += ended.stdout;
  }
  return printed;
}

describe('programs run as printed', () => {
  const withCode = pages.filter((file) => readPage(read(file)).programs.length > 0);
  test.each(withCode)('%s', { timeout: 300_000 }, async (file) => {
    const printed = await runPage(file);
    expect(printed).not.toContain('undefined');
    if (file !== 'README.md') return;
    expect(printed).toMatch(/training \d\.\d % of the parameters/);
    expect(Number(/validation accuracy ([\d.]+) %/.exec(printed)?.[1])).toBeGreaterThan(80);
  });

  test('there are programs in the README and in every guide', () => {
    const made = ['docs/models.md', 'docs/methods.md'];
    expect(pages.filter((file) => !withCode.includes(file)).sort()).toEqual(made.sort());
  });
});

test('what is not run says why', () => {
  for (const file of pages) for (const reason of readPage(read(file)).notRun) expect(reason.length).toBeGreaterThan(10);
});

test('blocks that nobody runs are errors', () => {
  expect(() => readPage('```py\nprint(1)\n```\n')).toThrow(/'py' that nobody runs/);
  expect(() => readPage('```sh\nrm -rf photos\n```\n')).toThrow(/no torchgraft command/);
  expect(readPage('<!-- not run: made elsewhere -->\n\n```sh\nls\n```\n')).toEqual({
    programs: [],
    notRun: ['made elsewhere'],
  });
});

test('what the README and the guides point to is there', () => {
  const scripts = Object.keys((JSON.parse(read('package.json')) as { scripts: object }).scripts);
  for (const file of pages) {
    const text = read(file);
    for (const [, target = ''] of text.matchAll(/\]\(([^)#:]+)\)/g)) {
      expect(existsSync(join(root, dirname(file), target)), `${file}: ${target}`).toBe(true);
    }
    for (const [, script = ''] of text.matchAll(/npm run ([\w:]+)/g)) expect(scripts, file).toContain(script);
  }
});
