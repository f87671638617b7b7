/** The checker itself: what it must refuse. */
import { cpSync, mkdirSync, readdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, describe, expect, test } from 'vitest';
import { readSafetensors, writeSafetensors } from '../../lib/checkpoint/index.js';
import { memory, type Tensor, tensor } from '../../lib/tensor/index.js';
import { readCounts } from './case.js';
import { checkCase, checkCounts, relativeError } from './check.js';
import { verify } from './verify.js';

const cases = fileURLToPath(new URL('cases', import.meta.url));
const root = mkdtempSync(join(tmpdir(), 'torchgraft-golden-'));
afterAll(() => rmSync(root, { recursive: true }));
let copies = 0;

/** A copy of a case to spoil. */
function copyOf(name: string): string {
  const folder = join(root, String(copies++), name);
  mkdirSync(dirname(folder), { recursive: true });
  cpSync(join(cases, name), folder, { recursive: true });
  return folder;
}

function spoilTensors(folder: string, file: string, change: (tensors: Map<string, Tensor>) => void): string {
  const path = join(folder, `${file}.safetensors`);
  const tensors = new Map([...readSafetensors(path).tensors].map(([name, value]) => [name, value.clone()]));
  change(tensors);
  writeSafetensors(path, tensors);
  return folder;
}

function spoilJson(folder: string, change: (json: Record<string, unknown>) => void): string {
  const path = join(folder, 'case.json');
  const json = JSON.parse(readFileSync(path, 'utf8')) as Record<string, unknown>;
  change(json);
  writeFileSync(path, JSON.stringify(json));
  return folder;
}

const scaleOne = (name: string) => (tensors: Map<string, Tensor>) =>
  void tensors.set(name, (tensors.get(name) as Tensor).mul(1.001));

describe('a spoiled case fails and says why', () => {
  const vit = 'timm_backbones/vit';
  const ssf = 'ssf/vit';
  test.each<[string, () => string, RegExp]>([
    ['an output', () => spoilTensors(copyOf(vit), 'io', scaleOne('output.y')), /^y: relative error 9\.99e-4$/],
    [
      'a gradient',
      () => spoilTensors(copyOf(vit), 'io', scaleOne('grad.norm.weight')),
      /^gradient of norm\.weight: relative/,
    ],
    [
      'an input gradient',
      () => spoilTensors(copyOf(vit), 'io', scaleOne('grad_input.x')),
      /^gradient of input x: relative/,
    ],
    ['a weight', () => spoilTensors(copyOf(vit), 'weights', scaleOne('head.weight')), /^y: relative error/],
    [
      'a name too few',
      () => spoilTensors(copyOf(vit), 'weights', (t) => t.delete('head.bias')),
      /the reference lacks head\.bias/,
    ],
    ['a name too many', () => spoilTensors(copyOf(vit), 'weights', (t) => t.set('x', tensor([1]))), /we lack x/],
    [
      'a shape',
      () => spoilTensors(copyOf(vit), 'weights', (t) => t.set('head.bias', tensor([1]))),
      /head\.bias .* is \[1\], ours \[5\]/,
    ],
    [
      'a buffer',
      () => spoilTensors(copyOf('timm_backbones/resnet_bottleneck_train'), 'io', scaleOne('output.bn1.running_mean')),
      /^bn1\.running_mean/,
    ],
    ['a merged tensor', () => spoilTensors(copyOf(ssf), 'merged', scaleOne('norm.weight')), /^merged norm\.weight/],
    [
      'the leftovers',
      () => spoilJson(copyOf(ssf), (c) => Object.assign(c['merged'] as object, { leftover: ['a'] })),
      /leftover of the merge: we lack a/,
    ],
    [
      'the trainable names',
      () => spoilJson(copyOf(ssf), (c) => (c['trainable'] as string[]).pop()),
      /^trainable parameters: the reference lacks/,
    ],
    [
      'an unknown option',
      () => spoilJson(copyOf(vit), (c) => Object.assign(c['config'] as object, { twist: 1 })),
      /does not know the config's 'twist'/,
    ],
    [
      'an option of another value',
      () => spoilJson(copyOf(vit), (c) => Object.assign(c['config'] as object, { qk_norm: true })),
      /'qk_norm' is true/,
    ],
    [
      'an unknown system',
      () => spoilJson(copyOf(vit), (c) => (c['system'] = 'other')),
      /no builder knows the system 'other'/,
    ],
    [
      'an unknown module',
      () => spoilJson(copyOf(vit), (c) => Object.assign(c['config'] as object, { module: 'Mixer' })),
      /no builder knows the module 'Mixer'/,
    ],
    [
      'a gradient that should be zero',
      () => spoilJson(copyOf(vit), (c) => (c['zero_gradient'] = ['head.weight'])),
      /head\.weight should be zero/,
    ],
  ])('%s', (_, spoil, message) => {
    const { problems } = checkCase(spoil());
    expect(
      problems.some((problem) => message.test(problem)),
      problems.join('\n'),
    ).toBe(true);
  });

  test('a broken case file is a failure, not a crash', () => {
    const folder = copyOf(vit);
    writeFileSync(join(folder, 'case.json'), '{');
    expect(checkCase(folder).problems).toHaveLength(1);
  });

  test('a wrong or unknown count', () => {
    const [row] = readCounts(join(cases, 'timm_backbones', 'counts.json'));
    if (!row) throw new Error('no rows');
    expect(checkCounts({ ...row, total_parameters: 1 }).problems).toEqual([
      expect.stringMatching(/total_parameters: ours 11689512, golden 1/),
    ]);
    expect(checkCounts({ ...row, model: 'resnet51' }).problems).toEqual(["no model is called 'resnet51'"]);
  });
});

describe('the measure', () => {
  test('is relative in L2, and strict about shapes, NaN and infinity', () => {
    expect(relativeError(tensor([3, 4.5]), tensor([3, 4]))).toBeCloseTo(0.1);
    expect(relativeError(tensor([1]), tensor([[1]]))).toBe(Infinity);
    expect(relativeError(tensor([NaN, 1]), tensor([NaN, 1]))).toBe(0);
    expect(relativeError(tensor([0, 1]), tensor([NaN, 1]))).toBe(Infinity);
    expect(relativeError(tensor([NaN, 1]), tensor([0, 1]))).toBe(Infinity);
    expect(relativeError(tensor([Infinity]), tensor([Infinity]))).toBe(0);
    expect(relativeError(tensor([1e30]), tensor([Infinity]))).toBe(Infinity);
    expect(relativeError(tensor([2], { dtype: 'int64' }), tensor([2], { dtype: 'int64' }))).toBe(0);
    expect(relativeError(tensor([1e-3]), tensor([0]))).toBeCloseTo(1e-3);
  });
});

describe('verify', () => {
  const lines = (...paths: string[]): [number, string] => {
    const printed: string[] = [];
    return [verify(paths, (line) => printed.push(line)), printed.join('\n')];
  };

  test('takes a case, a system, and a counts.json, and ends with a count', () => {
    const [status, text] = lines(
      join(cases, 'convpass'),
      join(cases, 'timm_backbones', 'vit'),
      join(cases, 'timm_backbones', 'counts.json'),
    );
    expect(status).toBe(0);
    expect(text).toMatch(/^passed {2}timm_backbones\/vit {2}forward \d\.\de-\d+ \(<= 0\.00001\) {2}grad/m);
    const rows = ['convpass', 'timm_backbones'].flatMap((system) => readCounts(join(cases, system, 'counts.json')));
    const folders = readdirSync(join(cases, 'convpass'), { withFileTypes: true }).filter((entry) =>
      entry.isDirectory(),
    );
    expect(text).toMatch(new RegExp(`\\n${folders.length + 1 + rows.length} passed, 0 failed$`));
  });

  test('says what failed, and fails', () => {
    const folder = spoilTensors(copyOf('timm_backbones/vit'), 'io', scaleOne('output.y'));
    const [status, text] = lines(folder);
    expect(status).toBe(1);
    expect(text).toMatch(/^FAILED {2}timm_backbones\/vit[\s\S]*y: relative error[\s\S]*0 passed, 1 failed$/);
  });

  test('finding nothing is a failure', () => {
    const empty = join(root, 'empty');
    mkdirSync(empty);
    expect(lines(empty)).toEqual([1, 'no golden cases found']);
    expect(() => lines(join(root, 'nowhere'))).toThrow(/nothing at/);
  });

  test('memory is freed between cases', () => {
    const run = (): number => {
      checkCase(join(cases, 'ssf', 'vit'));
      return memory().bytes;
    };
    run();
    const before = run();
    for (let i = 0; i < 10; i++) run();
    expect(memory().bytes - before).toBeLessThan(5e6);
  });
});
