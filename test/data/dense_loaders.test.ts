import { createHash } from 'node:crypto';
import { describe, expect, it } from 'vitest';
import {
  DetectionLoader, DetectionShapes, SegmentationLoader, SegmentationShapes, transforms as T,
  type DetectionSample, type Image, type LoadedBoxes, type LoadedMasks, type SampleSource, type SegmentationSample,
} from '../../lib/data/index.js'; // prettier-ignore
import { memory, scope, type Tensor } from '../../lib/tensor/index.js';
import { plain } from './files.js';
import { settledMemory } from '../support/settled_memory.js';

const numbers = (tensor: Tensor): number[] => Array.from(tensor.data() as ArrayLike<number | bigint>, Number);

/** Samples that are in memory. */
function source<Sample>(samples: readonly Sample[]): SampleSource<Sample> {
  return {
    length: samples.length,
    classNames: ['a', 'b', 'c'],
    load: (i) => samples[i] as Sample,
    describe: (i) => `sample ${i}`,
  };
}

const masked = (height: number, width: number, label: number): SegmentationSample => ({
  image: plain(height, width, 3, 51),
  mask: plain(height, width, 1, label),
});

/** Long lists are not for the test runner to compare. */
const digest = (tensor: Tensor): string =>
  createHash('sha256')
    .update(tensor.data() as Float32Array | BigInt64Array)
    .digest('hex') + tensor.shape.join();

/** What a batch holds, as plain values. */
const shown = (batch: LoadedMasks | LoadedBoxes): unknown =>
  'masks' in batch
    ? [batch.index, batch.indices, batch.sizes, digest(batch.images), digest(batch.masks)]
    : [
        batch.index,
        batch.indices,
        batch.images.map(digest),
        batch.targets.map((t) => [t.boxes, t.labels, t.areas, t.crowds].map((x) => numbers(x.to('float32')))),
      ];

async function collect(batches: AsyncIterable<LoadedMasks | LoadedBoxes>): Promise<unknown[]> {
  const result = [];
  for await (const batch of batches) {
    result.push(shown(batch));
    batch.dispose();
  }
  return result;
}

const varied = [
  T.randomScale([48, 96]),
  T.randomMaskCrop(40),
  T.horizontalFlip(),
  T.photometricDistortion(),
  T.pad(40),
];

describe('SegmentationLoader', () => {
  it('gives normalized images and masks of int64', async () => {
    const dataset = source([masked(4, 6, 1), masked(4, 6, 255)]);
    const transform = [T.toFloat(), T.normalize([0.1, 0.2, 0.3], [0.5, 0.5, 0.5])];
    const loader = new SegmentationLoader({ dataset, batchSize: 2, transform });
    for await (const batch of loader.epoch()) {
      expect([batch.images.shape, batch.images.dtype]).toEqual([[2, 3, 4, 6], 'float32']);
      expect([batch.masks.shape, batch.masks.dtype]).toEqual([[2, 4, 6], 'int64']);
      const pixel = numbers(batch.images.select(0, 1).select(1, 0).select(1, 0));
      [0.2, 0, -0.2].forEach((value, c) => expect(pixel[c]).toBeCloseTo(value, 6));
      expect(new Set(numbers(batch.masks.select(0, 0)))).toEqual(new Set([1]));
      expect(new Set(numbers(batch.masks.select(0, 1)))).toEqual(new Set([255]));
      batch.dispose();
    }
  });

  it('pads smaller images with what is 0 after normalization, and what does not count', async () => {
    const dataset = source([masked(4, 6, 1), masked(5, 3, 2)]);
    const transform = [T.toFloat(), T.normalize([0.5], [0.5])];
    const loader = new SegmentationLoader({ dataset, batchSize: 2, transform, memoryFormat: 'channels_last' });
    for await (const batch of loader.epoch()) {
      expect(batch.images.shape).toEqual([2, 3, 5, 6]);
      expect(batch.images.isContiguous('channels_last')).toBe(true);
      expect(batch.sizes).toEqual([[4, 6], [5, 3]]); // prettier-ignore
      const rows = batch.masks.select(0, 1).tolist() as number[][];
      for (const row of rows) expect(row).toEqual([2, 2, 2, 255, 255, 255]);
      expect((batch.masks.select(0, 0).tolist() as number[][])[4]).toEqual(Array(6).fill(255));
      const image = batch.images.select(0, 1).select(0, 0);
      expect(numbers(image.select(0, 4)).map((x) => Math.round(x * 10))).toEqual([-6, -6, -6, 0, 0, 0]);
      batch.dispose();
    }
  });

  it('repeats exactly, whatever is read ahead, cached, or where it starts', async () => {
    const dataset = new SegmentationShapes({ count: 12, size: 48 });
    const loader = (prefetch: number, cacheBytes: number): SegmentationLoader =>
      new SegmentationLoader({
        dataset,
        batchSize: 5,
        shuffle: true,
        seed: 3,
        transform: varied,
        prefetch,
        cacheBytes,
      });
    const first = await collect(loader(0, 0).epoch(1));
    expect(first).toHaveLength(3);
    const other = loader(3, 1e9);
    await collect(other.epoch(0));
    expect(other.cached.images).toBe(12);
    expect(await collect(other.epoch(1))).toEqual(first);
    expect(await collect(loader(1, 9000).epoch(1, 1))).toEqual(first.slice(1));
    expect(await collect(loader(1, 0).epoch(2))).not.toEqual(first);
  });
});

describe('DetectionLoader', () => {
  const boxed = (height: number, width: number, crowds: number[]): DetectionSample => ({
    image: plain(height, width, 3, 255),
    objects: {
      boxes: Float32Array.from(crowds.flatMap((_, i) => [i, i, i + 2, i + 3])),
      labels: Int32Array.from(crowds.keys()),
      areas: Float32Array.from(crowds, (_, i) => 6 - i),
      crowds: Uint8Array.from(crowds),
    },
  });
  const dataset = source([boxed(6, 9, [0, 1, 0]), boxed(7, 5, [])]);

  it('gives images of their own sizes from 0 to 1, and targets', async () => {
    const loader = new DetectionLoader({ dataset, batchSize: 2, firstLabel: 1 });
    for await (const { images, targets, dispose } of loader.epoch()) {
      expect(images.map(({ shape, dtype }) => [shape, dtype])).toEqual([
        [[3, 6, 9], 'float32'],
        [[3, 7, 5], 'float32'],
      ]);
      expect(Number(images[0]?.max().item())).toBe(1);
      const [some, none] = targets;
      expect([some?.boxes.dtype, some?.labels.dtype, some?.crowds.dtype]).toEqual(['float32', 'int64', 'bool']);
      expect(some?.boxes.tolist()).toEqual([[0, 0, 2, 3], [1, 1, 3, 4], [2, 2, 4, 5]]); // prettier-ignore
      expect(some?.labels.tolist()).toEqual([1, 2, 3]);
      expect(some?.areas.tolist()).toEqual([6, 5, 4]);
      expect(some?.crowds.tolist()).toEqual([false, true, false]);
      expect([none?.boxes.shape, none?.labels.shape, none?.areas.shape]).toEqual([[0, 4], [0], [0]]);
      dispose();
    }
  });

  it('leaves crowds out where it is told to', async () => {
    const loader = new DetectionLoader({ dataset, batchSize: 2, crowds: 'drop' });
    for await (const { targets, dispose } of loader.epoch()) {
      expect(targets[0]?.labels.tolist()).toEqual([0, 2]);
      expect(targets[0]?.boxes.tolist()).toEqual([[0, 0, 2, 3], [2, 2, 4, 5]]); // prettier-ignore
      dispose();
    }
    expect(() => new DetectionLoader({ dataset, batchSize: 2, firstLabel: -1 })).toThrow(/firstLabel .* got -1/);
  });

  it('repeats exactly, and moves boxes along', async () => {
    const shapes = new DetectionShapes({ count: 9, size: 48 });
    const transform = [T.randomShortSide([40, 64]), T.horizontalFlip()];
    const loader = (prefetch: number): DetectionLoader =>
      new DetectionLoader({ dataset: shapes, batchSize: 4, shuffle: true, transform, prefetch });
    const first = await collect(loader(0).epoch(2));
    expect(await collect(loader(3).epoch(2))).toEqual(first);
    expect(await collect(loader(2).epoch(2, 2))).toEqual(first.slice(2));
  });

  it('leaves nothing behind when its batches are disposed of, within a scope too', async () => {
    const before = settledMemory().tensors;
    const loader = new DetectionLoader({ dataset, batchSize: 1 });
    const kept: LoadedBoxes[] = [];
    for await (const batch of loader.epoch()) kept.push(batch);
    expect(memory().tensors - before).toBe(10);
    scope(() => {
      for (const batch of kept) batch.images[0]?.add(1);
    });
    for (const batch of kept) batch.dispose();
    expect(memory().tensors).toBe(before);
  });
});

describe('pictures of shapes', () => {
  it('mask and boxes say the same', () => {
    const options = { count: 60, seed: 4, size: 80, objects: [0, 6] } as const;
    const [masks, boxes] = [new SegmentationShapes(options), new DetectionShapes(options)];
    expect(masks.classNames.slice(1)).toEqual(boxes.classNames);
    const counts = new Set<number>();
    const seen = new Set<number>();
    for (let i = 0; i < options.count; i++) {
      const { image, mask } = masks.load(i);
      const { objects, image: same } = boxes.load(i);
      expect(Buffer.compare(same.data as Uint8Array, image.data as Uint8Array)).toBe(0);
      counts.add(objects.labels.length);
      const rest = Uint8Array.from(mask.data);
      objects.labels.forEach((label, k) => {
        seen.add(label);
        const [x1 = 0, y1 = 0, x2 = 0, y2 = 0] = objects.boxes.slice(4 * k, 4 * k + 4);
        // Boxes of neighbors may overlap, so that other classes may be in one: the rows and columns at its edges have this one's.
        const inside = (x: number, y: number): boolean => mask.data[y * 80 + x] === label + 1;
        const columns = Array.from({ length: x2 - x1 }, (_, x) => x1 + x);
        const rows = Array.from({ length: y2 - y1 }, (_, y) => y1 + y);
        for (const y of [y1, y2 - 1]) expect(columns.some((x) => inside(x, y))).toBe(true);
        for (const x of [x1, x2 - 1]) expect(rows.some((y) => inside(x, y))).toBe(true);
        for (const y of rows) for (const x of columns) if (inside(x, y)) rest[y * 80 + x] = 0;
      });
      expect(rest.every((label) => label === 0)).toBe(true);
      expect(objects.areas.reduce((sum, area) => sum + area, 0)).toBe(mask.data.filter((label) => label > 0).length);
    }
    expect(counts).toEqual(new Set([0, 1, 2, 3, 4, 5, 6]));
    expect(seen.size).toBe(boxes.classNames.length);
  });

  it('depend on number and seed alone', () => {
    const [short, long] = [new DetectionShapes({ count: 3 }), new DetectionShapes({ count: 9 })];
    expect(short.load(2)).toEqual(long.load(2));
    const bytes = (image: Image): string => Buffer.from(image.data).toString('base64');
    const other = new DetectionShapes({ count: 3, seed: 1 });
    expect(bytes(other.load(2).image)).not.toBe(bytes(short.load(2).image));
    expect(bytes(short.load(1).image)).not.toBe(bytes(short.load(2).image));
    expect(() => short.load(3)).toThrow(/index 3 is outside/);
  });

  it.each([
    [{ count: 0 }, /SegmentationShapes: count/],
    [{ count: 1, size: 20 }, /size must be .* 32 to 1024, got 20/],
    [{ count: 1, clutter: -1 }, /clutter/],
    [{ count: 1, objects: [2, 1] as const }, /objects must be \[least, most\].*got \[2, 1\]/],
    [{ count: 1, objects: [0, 13] as const }, /objects/],
  ])('refuse %j', (options, message) => {
    expect(() => new SegmentationShapes(options)).toThrow(message);
  });
});
