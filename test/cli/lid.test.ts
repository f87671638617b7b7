/** `torchgraft lid`: a measurement in miniature, where the numbers mean little and the path is the same. */
import { describe, expect, it } from 'vitest';
import { json, succeed, torchgraft } from './process.js';

interface Measured {
  readonly submodule: string;
  readonly layers: string[];
  readonly size: number;
  readonly full: number;
  readonly target: number;
  readonly dimension: number | null;
  readonly runs: { readonly dimension: number; readonly accuracy: number }[];
}

interface Result {
  readonly classes: number;
  readonly probe: number;
  readonly submodules: Measured[];
  readonly proposal: { readonly submodule: string; readonly method: string } | null;
}

const tiny = [
  'vit_tiny_patch16_224',
  '--no-weights',
  '--image-size',
  '32',
  '--data',
  'shapes:color:48',
  '--depth',
  '0',
];
const short = ['--epochs', '1', '--probe-epochs', '1', '--threads', '1', '--quiet'];

describe('lid', () => {
  it('ranks submodules by the dimension that they need, and proposes the first', async () => {
    const result = await json<Result>('lid', ...tiny, ...short, '--dims', '64,4,16', '--share', '0.5');
    expect(result.classes).toBe(8);
    const sizes = Object.fromEntries(result.submodules.map((s) => [s.submodule, s.size]));
    expect(sizes).toEqual({ attention: 192 * 576 + 576 + 192 * 192 + 192, mlp: 2 * 192 * 768 + 768 + 192 });
    for (const { layers, full, target, dimension, runs } of result.submodules) {
      expect(layers.every((path) => path.startsWith('blocks.0.'))).toBe(true);
      expect(target).toBeCloseTo(0.5 * full, 12);
      // Ascending, and no further than needed.
      expect(runs.map((run) => run.dimension)).toEqual([4, 16, 64].slice(0, runs.length));
      const reached = runs.find(({ accuracy }) => accuracy >= target);
      expect(dimension).toBe(reached?.dimension ?? null);
      if (reached) expect(runs.at(-1)).toEqual(reached);
      else expect(runs).toHaveLength(3);
    }
    const ranks = result.submodules.map((s) => s.dimension ?? Infinity);
    expect(ranks).toEqual([...ranks].sort((a, b) => a - b));
    expect(result.proposal?.submodule ?? null).toBe(ranks[0] === Infinity ? null : result.submodules[0]?.submodule);
  }, 180_000);

  it('prints a table and what to run next for people', async () => {
    const text = await succeed('lid', ...tiny, ...short, '--dims', '4', '--share', '0.01', '--submodule', 'mlp');
    expect(text).toMatch(/submodule +numbers +all trained +to reach +d1\n/);
    expect(text).toMatch(/mlp +295,872 /);
    expect(text).toMatch(/--method lora --set 'at=\{"path":\["blocks\.\*\.mlp\.fc1","blocks\.\*\.mlp\.fc2"\]\}'/);
  }, 120_000);

  it.each([
    [
      ['lid', ...tiny, ...short, '--submodule', 'atention'],
      /no module of the role 'atention' with layers in it at depth 0/,
    ],
    [['lid', 'vit_tiny_patch16_224', '--no-weights'], /--data is missing/],
    [['lid', 'vit_tiny_patch16_224', '--data', '.'], /--weights is missing/],
    [['lid', ...tiny, '--dims', '4,x'], /expected a whole number of at least 1/],
  ])('%j ends with 2 and says what is wrong', async (args, message) => {
    const { code, stdout, stderr } = await torchgraft(args);
    expect({ code, stdout, stderr }).toMatchObject({ code: 2, stdout: '' });
    expect(stderr).toMatch(message);
  });
});
