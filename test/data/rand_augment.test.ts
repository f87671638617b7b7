import { describe, expect, test } from 'vitest';
import { Random, randAugment, randAugmentOperations, trainingClip } from '../../lib/data/index.js';
import { arange, full, randint, tensor, zeros, type Tensor } from '../../lib/tensor/index.js';

const op = (name: string, frames: Tensor, level: number, sign: 1 | -1 = 1): Tensor => {
  const operation = randAugmentOperations[name];
  if (!operation) throw new Error(`no operation ${name}`);
  return operation(frames, level, sign);
};
const values = (frames: Tensor): number[] => [...(frames.flatten().data() as Float32Array)];
/** One frame whose channels are all these values, [1, 3, 1, n]. */
const row = (...list: number[]): Tensor => tensor(list).view([1, 1, 1, -1]).expand([1, 3, 1, -1]).contiguous();
const first = (frames: Tensor): number[] => values(frames.select(1, 0));

describe('operations', () => {
  test('are the fifteen', () => {
    expect(Object.keys(randAugmentOperations).length).toBe(15);
  });

  test('of color', () => {
    expect(first(op('Invert', row(0, 100, 255), 1))).toEqual([255, 155, 0]);
    expect(first(op('Posterize', row(0, 100, 255), 0.5))).toEqual([0, 64, 192]);
    expect(first(op('Posterize', row(0, 100, 255), 1))).toEqual([0, 0, 0]);
    expect(first(op('Solarize', row(10, 127, 128, 250), 0.5))).toEqual([10, 127, 127, 5]);
    expect(first(op('SolarizeAdd', row(10, 127, 128, 250), 0.5))).toEqual([65, 182, 128, 250]);
    expect(first(op('AutoContrast', row(50, 75, 100), 1))).toEqual([0, 127.5, 255]);
    expect(first(op('AutoContrast', row(50, 50, 50), 1))).toEqual([50, 50, 50]);
    expect(first(op('Brightness', row(10, 100, 200), 0.5, -1)).map(Math.round)).toEqual([6, 55, 110]);
    expect(first(op('Contrast', row(0, 100, 200), 1, -1)).map(Math.round)).toEqual([90, 100, 110]);
    expect(first(op('Color', row(0, 100, 200), 1)).map(Math.round)).toEqual([0, 100, 200]);
  });

  test('equalize as Pillow does', () => {
    // 512 pixels, half of them 10, half 200: the step is 256 div 255 = 1, so that 200 gets 256, cut to 255.
    const halves = full([1, 3, 16, 32], 10);
    halves.narrow(2, 8, 8).fill_(200);
    const even = op('Equalize', halves, 1);
    expect(Number(even.narrow(2, 0, 8).max().item())).toBe(0);
    expect(Number(even.narrow(2, 8, 8).min().item())).toBe(255);
    expect(first(op('Equalize', row(1, 2, 3), 1))).toEqual([1, 2, 3]);
  });

  test('sharpness leaves the border alone', () => {
    const frames = randint(0, 256, [2, 3, 5, 6]).to('float32');
    const sharper = op('Sharpness', frames, 1);
    expect(sharper.select(2, 0).equal(frames.select(2, 0))).toBe(true);
    expect(sharper.equal(frames)).toBe(false);
    const flat = full([1, 3, 5, 5], 70);
    expect(Number(op('Sharpness', flat, 1).sub(70).abs().max().item())).toBeLessThan(1e-3);
  });

  test('of geometry move pixels and fill with gray', () => {
    const columns = arange(20, { dtype: 'float32' }).mul(10).view([1, 1, 1, 20]).expand([1, 3, 20, 20]).contiguous();
    // 0.45 * 20 = 9 columns.
    const moved = op('TranslateXRel', columns, 1);
    expect(first(moved.narrow(2, 4, 1)).slice(0, 10).map(Math.round)).toEqual([90, 100, 110, 120, 130, 140, 150, 160, 170, 180]); // prettier-ignore
    expect(
      first(moved.narrow(2, 4, 1))
        .slice(13)
        .map(Math.round),
    ).toEqual(Array(7).fill(128));
    expect(
      op('TranslateYRel', columns, 1)
        .narrow(2, 0, 9)
        .sub(columns.narrow(2, 0, 9))
        .abs()
        .max()
        .item(),
    ).toBeLessThan(1e-3);
    for (const name of ['Rotate', 'ShearX', 'ShearY', 'TranslateXRel', 'TranslateYRel']) {
      expect(Number(op(name, columns, 0).sub(columns).abs().max().item()), name).toBeLessThan(1e-2);
      expect(Number(op(name, columns, 1, -1).sub(columns).abs().max().item()), name).toBeGreaterThan(10);
    }
    // The middle stays where it is.
    const spot = zeros([1, 3, 21, 21]);
    spot.narrow(2, 9, 3).narrow(3, 9, 3).fill_(255);
    expect(Number(op('Rotate', spot, 1).select(3, 10).select(2, 10).min().item())).toBeGreaterThan(250);
  });
});

describe('augmented clips', () => {
  const still = randint(0, 256, [1, 12, 14, 3], { dtype: 'uint8' }).expand([4, -1, -1, -1]).contiguous();

  test('all frames are changed alike, and by the seed', () => {
    const seen = new Set<string>();
    for (let seed = 0; seed < 30; seed++) {
      const out = randAugment(still, {}, new Random(seed));
      expect([out.dtype, ...out.shape]).toEqual(['uint8', 4, 12, 14, 3]);
      expect(out.select(0, 0).equal(out.select(0, 3))).toBe(true);
      expect(out.equal(randAugment(still, {}, new Random(seed)))).toBe(true);
      seen.add(values(out.narrow(0, 0, 1).to('float32')).join());
    }
    expect(seen.size).toBeGreaterThan(20);
  });

  test('nothing happens with probability 0', () => {
    expect(randAugment(still, { probability: 0 }, new Random(1)).equal(still)).toBe(true);
  });

  test('training clips can be augmented', () => {
    const options = { size: 8, crop: 'random_resized_crop', mean: [0, 0, 0], std: [1, 1, 1] } as const;
    const plain = trainingClip(still, options, new Random(1));
    const changed = trainingClip(still, { ...options, augment: { probability: 1 } }, new Random(1));
    expect(changed.shape).toEqual(plain.shape);
    expect(changed.equal(plain)).toBe(false);
  });

  test('only bytes are taken', () => {
    expect(() => randAugment(zeros([2, 4, 4, 3]), {}, new Random(1))).toThrow(
      /expected bytes .*float32 \[2, 4, 4, 3\]/,
    );
  });
});
