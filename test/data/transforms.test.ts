import fc from 'fast-check';
import { readdirSync } from 'node:fs';
import path from 'node:path';
import { describe, expect, expectTypeOf, it } from 'vitest';
import {
  adjustBrightness, adjustContrast, adjustHue, adjustSaturation, cropImage, flipHorizontal, flipVertical, parseTransforms,
  Pipeline, Random, transforms as T, type Image, type Transform,
} from '../../lib/data/index.js'; // prettier-ignore
import { addBrightness, scaleSaturation } from '../../lib/data/color.js';
import { memory, scope, tensor } from '../../lib/tensor/index.js';
import { compare, fixtures, readNpy } from './npy.js';
import { settledMemory } from '../support/settled_memory.js';

/** Pixel (x, y) holds [x, y, 100 + x + y], so that every pixel tells where it came from. */
function map(height: number, width: number): Image {
  const data = new Uint8Array(height * width * 3);
  for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) data.set([x, y, 100 + x + y], (y * width + x) * 3);
  return { data, width, height, channels: 3 };
}
const pixel = (image: Image, x: number, y: number): number[] =>
  Array.from(image.data.subarray((y * image.width + x) * 3, (y * image.width + x) * 3 + 3));

describe('transforms as data', () => {
  const all: Transform[] = T.compose(
    T.resize(40, { interpolation: 'bicubic' }),
    T.resize([36, 38]),
    T.centerCrop(34),
    T.randomCrop(32, { padding: 4, fill: [1, 2, 3] }),
    [T.randomResizedCrop(32, { scale: [0.5, 1] }), T.horizontalFlip()],
    T.verticalFlip(0.25),
    T.colorJitter({ brightness: 0.4, contrast: [0.5, 1.5], hue: 0.1 }),
    T.toFloat(),
    T.normalize([0.5], [0.25]),
  );

  it('survives JSON exactly, with all defaults filled in', () => {
    expect(parseTransforms(JSON.parse(JSON.stringify(all)))).toEqual(all);
    expect(JSON.parse(JSON.stringify(new Pipeline(all)))).toEqual(all);
    expect(T.resize(32)).toEqual({ kind: 'resize', size: 32, interpolation: 'bilinear' });
    expect(T.randomResizedCrop(8)).toEqual({
      kind: 'randomResizedCrop', size: 8, scale: [0.08, 1], ratio: [3 / 4, 4 / 3], interpolation: 'bilinear',
    }); // prettier-ignore
    expectTypeOf(T.resize(32).interpolation).toEqualTypeOf<'bilinear' | 'bicubic'>();
  });

  it('a rebuilt pipeline does the same', () => {
    const again = new Pipeline(parseTransforms(JSON.parse(JSON.stringify(all))));
    const image = map(50, 60);
    const pipeline = new Pipeline(all);
    expect(again.apply(image, new Random(1, 2, 3))).toEqual(pipeline.apply(image, new Random(1, 2, 3)));
  });

  it('does not change the list it is given', () => {
    const mine = [{ kind: 'resize', size: 3 }] as const;
    parseTransforms(mine);
    expect(mine).toEqual([{ kind: 'resize', size: 3 }]);
  });

  it.each([
    [[{ kind: 'resise', size: 3 }], /transforms\[0\]: unknown kind "resise".*resize/],
    [[{ kind: 'resize', size: 3, antialias: true }], /transforms\[0\] \(resize\).*antialias.*interpolation/],
    [[{ kind: 'resize', size: 0 }], /size/],
    [[{ kind: 'resize', size: [1, 2, 3] }], /size/],
    [[{ kind: 'resize' }], /size/],
    [[{ kind: 'resize', size: 3, interpolation: 'nearest' }], /interpolation/],
    [[{ kind: 'toFloat', scale: 2 }], /no options/],
    [[{ kind: 'colorJitter', hue: 0.6 }], /hue/],
    [[{ kind: 'randomResizedCrop', size: 3, scale: [1, 0.5] }], /scale.*least/],
    [[{ kind: 'horizontalFlip', probability: 1.5 }], /probability/],
    [[{ kind: 'toFloat' }, { kind: 'normalize', mean: [0], std: [0] }], /positive/],
    [[{ kind: 'toFloat' }, { kind: 'normalize', mean: [0, 0, 0], std: [1] }], /same length/],
    [[{ kind: 'toFloat' }, { kind: 'resize', size: 3 }], /must come last/],
    [[{ kind: 'normalize', mean: [0], std: [1] }], /must come last/],
    [[3], /unknown kind/],
    ['resize', /expected a list/],
    [null, /expected a list/],
  ])('refuses %j', (value, message) => {
    expect(() => parseTransforms(value)).toThrow(TypeError);
    expect(() => parseTransforms(value)).toThrow(message);
  });

  it('whatever it is given: a list of steps, or a TypeError', () => {
    fc.assert(
      fc.property(
        fc.anything(),
        fc.record({ kind: fc.constantFrom('resize', 'randomCrop', 'normalize'), size: fc.anything() }),
        (a, b) => {
          for (const value of [a, [a], [b]]) {
            try {
              expect(parseTransforms(value)).toBeInstanceOf(Array);
            } catch (error) {
              expect(error).toBeInstanceOf(TypeError);
            }
          }
        },
      ),
    );
  });
});

describe('geometry', () => {
  const image = map(7, 10);
  const apply = (steps: Transform[], from = image, seed = 0): Image =>
    new Pipeline(steps).apply(from, new Random(seed));

  it('resizes the shorter side, the longer one rounded down', () => {
    expect(apply([T.resize(5)])).toMatchObject({ height: 5, width: 7 });
    expect(apply([T.resize(5)], map(10, 7))).toMatchObject({ height: 7, width: 5 });
    expect(apply([T.resize([3, 4])])).toMatchObject({ height: 3, width: 4 });
    expect(apply([T.resize(1)], map(300, 2))).toMatchObject({ height: 150, width: 1 });
  });

  it('crops the middle as torchvision does', () => {
    // Halves are rounded to even: (7 - 4) / 2 = 1.5 to 2, (10 - 5) / 2 = 2.5 to 2.
    const crop = apply([T.centerCrop([4, 5])]);
    expect(pixel(crop, 0, 0)).toEqual([2, 2, 104]);
    const padded = apply([T.centerCrop(10)]);
    expect(padded).toMatchObject({ height: 10, width: 10 });
    expect(pixel(padded, 0, 0)).toEqual([0, 0, 0]);
    expect(pixel(padded, 9, 1)).toEqual([9, 0, 109]);
    expect(pixel(padded, 0, 8)).toEqual([0, 0, 0]);
  });

  it('random crops reach every place of the bordered image, and no other', () => {
    const seen = new Set<string>();
    for (let seed = 0; seed < 2000; seed++) {
      const crop = apply([T.randomCrop([7, 10], { padding: 1, fill: [7, 8, 9] })], image, seed);
      const [x, y] = pixel(crop, 5, 3);
      seen.add(`${x! - 5},${y! - 3}`);
      if (x === 4 && y === 2) expect(pixel(crop, 0, 0)).toEqual([7, 8, 9]);
      if (x === 6 && y === 4) expect(pixel(crop, 9, 6)).toEqual([7, 8, 9]);
    }
    expect([...seen].sort()).toEqual(['-1,-1', '-1,0', '-1,1', '0,-1', '0,0', '0,1', '1,-1', '1,0', '1,1']);
    expect(() => apply([T.randomCrop(8)])).toThrow(/randomCrop: 8x8 is larger than the image, 7x10x3.*pad more/);
    expect(() => apply([T.randomCrop(9, { padding: 2, fill: [1, 2] })])).toThrow(/one per channel/);
  });

  it('random resized crops have the areas and ratios asked for', () => {
    const big = map(200, 240);
    let sum = 0;
    for (let seed = 0; seed < 300; seed++) {
      // Resizing to the same aspect keeps the gradient: its steepness tells the size of the crop.
      const out = apply([T.randomResizedCrop(32, { scale: [0.25, 0.5], ratio: [0.8, 1.25] })], big, seed);
      expect(out).toMatchObject({ height: 32, width: 32 });
      const width = ((pixel(out, 28, 16)[0]! - pixel(out, 3, 16)[0]!) / 25) * 32;
      const height = ((pixel(out, 16, 28)[1]! - pixel(out, 16, 3)[1]!) / 25) * 32;
      const share = (width * height) / (200 * 240);
      expect(share).toBeGreaterThan(0.23);
      expect(share).toBeLessThan(0.54);
      expect(width / height).toBeGreaterThan(0.76);
      expect(width / height).toBeLessThan(1.32);
      sum += share;
    }
    expect(sum / 300).toBeCloseTo(0.375, 1);
    // No box of these ratios fits: the largest one in the middle.
    expect(apply([T.randomResizedCrop(4, { scale: [1, 1] })], map(8, 100))).toMatchObject({ height: 4, width: 4 });
  });

  it('flips with the probability asked for', () => {
    expect(apply([T.horizontalFlip(0)])).toBe(image);
    const flipped = apply([T.horizontalFlip(1)]);
    expect(pixel(flipped, 0, 2)).toEqual(pixel(image, 9, 2));
    expect(pixel(apply([T.verticalFlip(1)]), 3, 0)).toEqual(pixel(image, 3, 6));
    let count = 0;
    for (let seed = 0; seed < 1000; seed++) if (apply([T.horizontalFlip(0.3)], image, seed) !== image) count++;
    expect(count).toBeGreaterThan(250);
    expect(count).toBeLessThan(350);
  });

  it('flips twice and crops of crops are what they should be, on images of any size', () => {
    const sides = fc.integer({ min: 1, max: 12 });
    fc.assert(
      fc.property(
        sides,
        sides,
        fc.integer({ min: -3, max: 12 }),
        fc.integer({ min: -3, max: 12 }),
        sides,
        sides,
        (h, w, top, left, ch, cw) => {
          const source = map(h, w);
          expect(flipHorizontal(flipHorizontal(source))).toEqual(source);
          expect(flipVertical(flipVertical(source))).toEqual(source);
          const crop = cropImage(source, { top, left, height: ch, width: cw }, 255);
          for (let y = 0; y < ch; y++) {
            for (let x = 0; x < cw; x++) {
              const inside = y + top >= 0 && y + top < h && x + left >= 0 && x + left < w;
              expect(pixel(crop, x, y)).toEqual(inside ? pixel(source, x + left, y + top) : [255, 255, 255]);
            }
          }
        },
      ),
    );
  });
});

describe('color', () => {
  const source = readNpy('color', 'source.npy');
  const functions = {
    brightness: adjustBrightness,
    contrast: adjustContrast,
    saturation: adjustSaturation,
    hue: adjustHue,
  };
  const files = readdirSync(path.join(fixtures, 'color')).filter((name) => name !== 'source.npy');

  it('has fixtures of every adjustment', () => {
    expect(files).toHaveLength(16);
  });

  it.each(files)('%s: the bytes that torchvision gives', (file) => {
    const [, name, factor] = /^(\w+)_(-?[\d.]+)\.npy$/.exec(file) ?? [];
    const { most, exact } = compare(
      functions[name as keyof typeof functions](source, Number(factor)),
      readNpy('color', file),
    );
    expect(most).toBeLessThanOrEqual(1);
    expect(exact).toBeGreaterThan(0.999);
  });

  it('brightness is added and clamped, saturation multiplied and at most full', () => {
    const image: Image = { data: Uint8Array.of(250, 3, 90, 100, 100, 100), width: 2, height: 1, channels: 3 };
    expect([...addBrightness(image, 10).data]).toEqual([255, 13, 100, 110, 110, 110]);
    expect([...addBrightness(image, -10).data]).toEqual([240, 0, 80, 90, 90, 90]);
    expect([...scaleSaturation(image, 0).data]).toEqual([250, 250, 250, 100, 100, 100]);
    expect([...scaleSaturation(image, 0.5).data]).toEqual([250, 127, 170, 100, 100, 100]);
    // 1 - 3/250 is nearly full: no factor takes the least channel below 0, and the hue stays.
    expect([...scaleSaturation(image, 9).data]).toEqual([250, 0, 88, 100, 100, 100]);
  });

  it('jitter varies what it is asked to, and stays in range', () => {
    const jitter = (options: Parameters<typeof T.colorJitter>[0], seed: number): Image =>
      new Pipeline([T.colorJitter(options)]).apply(source, new Random(seed));
    expect(jitter({}, 1)).toBe(source);
    expect(jitter({ brightness: 0.5 }, 1)).not.toEqual(jitter({ brightness: 0.5 }, 2));
    expect(jitter({ saturation: [0, 0] }, 5)).toEqual(adjustSaturation(source, 0));
    expect(jitter({ hue: [0.25, 0.25] }, 5)).toEqual(adjustHue(source, 0.25));
    expect(jitter({ contrast: [2, 2], hue: [0.1, 0.1] }, 5)).not.toEqual(source);
    const floats = { ...source, data: new Float32Array(source.data.length) };
    expect(() => adjustHue(floats, 0.1)).toThrow(/8-bit RGB/);
    expect(() => adjustHue(source, 0.7)).toThrow(RangeError);
  });
});

describe('Pipeline', () => {
  it('normalizes a batch to the numbers of PyTorch, in either layout', () => {
    const mean = [0.485, 0.456, 0.406];
    const std = [0.229, 0.224, 0.225];
    const pipeline = new Pipeline([T.toFloat(), T.normalize(mean, std)]);
    const images = [map(4, 5), flipVertical(map(4, 5))];
    const { fround } = Math;
    for (const memoryFormat of ['contiguous_format', 'channels_last'] as const) {
      const batch = pipeline.collate(images, { memoryFormat });
      expect(batch.shape).toEqual([2, 3, 4, 5]);
      expect(batch.dtype).toBe('float32');
      expect(batch.stride()).toEqual(memoryFormat === 'channels_last' ? [60, 1, 15, 3] : [60, 20, 5, 1]);
      const values = batch.tolist() as number[][][][];
      for (const [b, image] of images.entries())
        for (let y = 0; y < 4; y++)
          for (let x = 0; x < 5; x++)
            for (let c = 0; c < 3; c++) {
              const unit = fround(pixel(image, x, y)[c]! / 255);
              expect(values[b]![c]![y]![x]).toBe(fround(fround(unit - fround(mean[c]!)) / fround(std[c]!)));
            }
    }
  });

  it('leaves nothing behind but the batch, inside a scope or outside', () => {
    const pipeline = new Pipeline([T.resize([8, 8]), T.toFloat(), T.normalize([0.5], [0.5])]);
    const before = settledMemory();
    const batch = pipeline.collate([pipeline.apply(map(9, 9))]);
    expect(memory().tensors).toBe(before.tensors + 1);
    batch.dispose();
    scope(() => {
      pipeline.collate([pipeline.apply(map(9, 9))]);
    });
    expect(memory()).toEqual(before);
  });

  it('does not scale floats again, and does not touch its input', () => {
    const image = { data: Float32Array.of(0.5, -2, 3), width: 1, height: 1, channels: 3 };
    const batch = new Pipeline([T.toFloat(), T.normalize([1], [2])]).collate([image]);
    expect(batch.flatten().tolist()).toEqual([-0.25, -1.5, 1]);
    expect(Array.from(image.data)).toEqual([0.5, -2, 3]);
    expect(tensor([1]).dtype).toBe('float32');
  });

  it('separates what is the same in every epoch from what is not', () => {
    const pipeline = new Pipeline([T.resize([9, 9]), T.randomCrop(8), T.centerCrop(7), T.toFloat()]);
    expect(pipeline.isRandom).toBe(true);
    expect(pipeline.prepare(map(20, 20))).toMatchObject({ height: 9, width: 9 });
    expect(pipeline.apply(map(20, 20), new Random(1))).toMatchObject({ height: 7, width: 7 });
    expect(() => pipeline.apply(map(20, 20))).toThrow(/randomCrop is random: pass a Random/);
    expect(new Pipeline([T.resize(9)]).isRandom).toBe(false);
  });

  it('says which images of a batch differ in size', () => {
    const pipeline = new Pipeline([]);
    expect(() => pipeline.collate([map(4, 5), map(4, 6)])).toThrow(
      /4x5x3 and 4x6x3 \(image 1.*resize to \[height, width\]/,
    );
    expect(() => pipeline.collate([])).toThrow(/at least one/);
    expect(() => new Pipeline([T.toFloat(), T.normalize([1, 2], [1, 2])]).collate([map(2, 2)])).toThrow(/3 channels/);
  });
});

describe('Random', () => {
  it('is a function of its keys, all of their bits', () => {
    const first = (...keys: number[]): number => new Random(...keys).uint32();
    expect(first(1, 2, 3)).toBe(first(1, 2, 3));
    const keys = [[1, 2, 3], [1, 3, 2], [1, 2], [1, 2, 3, 0], [-1, 2, 3], [1 + 2 ** 32, 2, 3], [2 ** 53 - 1, 2, 3], [0], [], [-(2 ** 40)]]; // prettier-ignore
    expect(new Set(keys.map((k) => first(...k))).size).toBe(keys.length);
    expect(() => new Random(0.5)).toThrow(TypeError);
    // Pinned: a change of the generator would change every run that was recorded.
    expect([new Random(0), new Random(1, 2, 3)].map((r) => [r.uint32(), r.uint32(), r.integer(10)]))
      .toMatchInlineSnapshot(`
      [
        [
          3008590864,
          1978847684,
          4,
        ],
        [
          2351404564,
          1649816099,
          2,
        ],
      ]
    `);
  });

  it('draws evenly', () => {
    const random = new Random(7);
    const counts = new Array<number>(6).fill(0);
    for (let i = 0; i < 60000; i++) counts[random.integer(6)]!++;
    for (const count of counts) expect(Math.abs(count - 10000)).toBeLessThan(400);
    const firsts = Array.from({ length: 4000 }, (_, i) => new Random(3, i).uniform());
    expect(firsts.reduce((a, b) => a + b) / 4000).toBeCloseTo(0.5, 1);
    expect(Array.from(random.permutation(50)).sort((a, b) => a - b)).toEqual(Array.from({ length: 50 }, (_, i) => i));
    expect(() => random.integer(0)).toThrow(RangeError);
  });
});
