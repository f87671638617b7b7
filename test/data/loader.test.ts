import { copyFileSync, existsSync, mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import fc from 'fast-check';
import { afterAll, describe, expect, it } from 'vitest';
import {
  DataLoader, decodeImage, ImageError, ImageFolder, openImageFolder, resizeImage, Shapes, transforms as T,
  type DataLoaderOptions, type Dataset, type Image, type LoadedBatch,
} from '../../lib/data/index.js'; // prettier-ignore
import { memory, scope } from '../../lib/tensor/index.js';
import { fixtures, signDigits } from './npy.js';
import { settledMemory } from '../support/settled_memory.js';

/** Image i is one pixel [i, i, i] of class i % 3, ready after a while that differs from image to image. */
class Slow implements Dataset {
  readonly classNames = ['a', 'b', 'c'];
  readonly labels: number[];
  running = 0;
  most = 0;
  loaded: number[] = [];
  constructor(
    readonly length: number,
    readonly broken: readonly number[] = [],
    readonly bytes = 3,
  ) {
    this.labels = Array.from({ length }, (_, i) => i % 3);
  }
  async load(index: number): Promise<Image> {
    this.most = Math.max(this.most, ++this.running);
    await sleep((index * 7) % 5);
    this.running--;
    this.loaded.push(index);
    if (this.broken.includes(index)) throw new ImageError(this.describe(index), 'broken on purpose');
    const data = new Uint8Array(this.bytes);
    data.fill(index, 0, 3);
    // Sides within what images may have.
    const height = this.bytes > 3 ? 1000 : 1;
    return { data, width: this.bytes / 3 / height, height, channels: 3 };
  }
  describe(index: number): string {
    return `slow ${index}`;
  }
}

async function collect(
  batches: AsyncIterable<LoadedBatch>,
): Promise<{ index: number; indices: number[]; images: number[]; labels: number[] }[]> {
  const result = [];
  for await (const batch of batches) {
    const images = Array.from(batch.images.data() as Float32Array);
    result.push({ index: batch.index, indices: [...batch.indices], images, labels: batch.labels.tolist() as number[] });
    batch.dispose();
  }
  return result;
}

const augment = [
  T.resize([12, 12]),
  T.randomCrop(10, { padding: 2 }),
  T.horizontalFlip(),
  T.colorJitter({ brightness: 0.3 }),
  T.toFloat(),
];

describe('DataLoader', () => {
  it('gives every image once, in order or shuffled, with its label', async () => {
    const loader = new DataLoader({ dataset: new Slow(10), batchSize: 4 });
    expect([loader.length, loader.samples]).toEqual([3, 10]);
    const batches = await collect(loader.epoch(0));
    expect(batches.map((b) => b.indices)).toEqual([[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]); // prettier-ignore
    expect(batches[1]!.labels).toEqual([1, 2, 0, 1]);
    expect(batches[1]!.images).toEqual([4, 4, 4, 5, 5, 5, 6, 6, 6, 7, 7, 7]);

    const shuffled = new DataLoader({ dataset: new Slow(10), batchSize: 4, shuffle: true, seed: 3 });
    const orders = await Promise.all(
      [0, 1].map(async (epoch) => (await collect(shuffled.epoch(epoch))).flatMap((b) => b.indices)),
    );
    expect(orders[0]).not.toEqual(orders[1]);
    for (const order of orders) expect(order.toSorted((a, b) => a - b)).toEqual([0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
    expect(orders[1]).toEqual(Array.from(shuffled.order(1)));
  });

  it('repeats exactly, whatever is read ahead, cached, or where it starts', async () => {
    const dataset = new Shapes({ task: 'shape', count: 50, size: 16 });
    const run = async (o: Partial<DataLoaderOptions>, epoch: number, from = 0): Promise<unknown[]> =>
      collect(
        new DataLoader({ dataset, batchSize: 8, shuffle: true, seed: 5, transform: augment, ...o }).epoch(epoch, from),
      );
    const reference = await run({}, 2);
    expect(reference).toHaveLength(7);
    for (const o of [{}, { prefetch: 0 }, { prefetch: 9 }, { cacheBytes: 0 }, { cacheBytes: 2000 }])
      expect(await run(o, 2)).toEqual(reference);
    expect(await run({}, 2, 3)).toEqual(reference.slice(3));
    expect(await run({}, 2, 7)).toEqual([]);
    expect(await run({}, 3)).not.toEqual(reference);
    expect(await run({ seed: 6 }, 2)).not.toEqual(reference);

    const cached = new DataLoader({ dataset, batchSize: 8, shuffle: true, seed: 5, transform: augment });
    await collect(cached.epoch(0));
    expect(cached.cached).toEqual({ images: 50, bytes: 50 * 12 * 12 * 3 });
    expect(await collect(cached.epoch(2))).toEqual(reference);
  });

  it('any sizes: as many batches as it says', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.integer({ min: 1, max: 30 }),
        fc.integer({ min: 1, max: 12 }),
        fc.boolean(),
        fc.nat(4),
        async (count, batchSize, dropLast, prefetch) => {
          const dataset = new Shapes({ task: 'color', count, size: 16 });
          if (dropLast && count < batchSize) {
            expect(() => new DataLoader({ dataset, batchSize, dropLast })).toThrow(/make no batch/);
            return;
          }
          const loader = new DataLoader({ dataset, batchSize, dropLast, prefetch });
          const batches = await collect(loader.epoch());
          expect(batches.length).toBe(loader.length);
          expect(batches.flatMap((b) => b.indices)).toHaveLength(loader.samples);
        },
      ),
      { numRuns: 30 },
    );
  });

  it('caches up to its limit, and reads the rest again', async () => {
    const dataset = new Slow(10);
    const loader = new DataLoader({ dataset, batchSize: 5, cacheBytes: 4 * 3 });
    await collect(loader.epoch(0));
    expect(loader.cached).toEqual({ images: 4, bytes: 12 });
    await collect(loader.epoch(1));
    expect(dataset.loaded).toHaveLength(16);
  });

  it('its tensors outlive scopes, and only until they are disposed of', async () => {
    const loader = new DataLoader({
      dataset: new Shapes({ task: 'shape', count: 40 }),
      batchSize: 8,
      transform: augment,
    });
    const before = settledMemory();
    const batches = loader.epoch(0);
    const first = await scope(() => [batches.next()])[0]!;
    if (first.done) throw new Error('expected a batch');
    expect(first.value.images.shape).toEqual([8, 3, 10, 10]);
    expect(first.value.labels.dtype).toBe('int64');
    expect(memory().tensors).toBe(before.tensors + 2);
    first.value.dispose();
    await collect(batches);
    expect(memory()).toEqual(before);
  });

  it('a loop left early leaves nothing running', async () => {
    const dataset = new Slow(100);
    const loader = new DataLoader({ dataset, batchSize: 5, prefetch: 4 });
    for await (const batch of loader.epoch(0)) {
      batch.dispose();
      if (batch.index === 1) break;
    }
    expect(dataset.running).toBe(0);
    const { length } = dataset.loaded;
    expect(length).toBeLessThanOrEqual(35);
    await sleep(20);
    expect(dataset.loaded).toHaveLength(length);
  });

  it('bounds the bytes in the making', async () => {
    const most = async (bytes: number): Promise<number[]> => {
      const dataset = new Slow(120, [], bytes);
      const loader = new DataLoader({
        dataset,
        batchSize: 10,
        prefetch: 7,
        cacheBytes: 0,
        transform: [T.centerCrop(1)],
      });
      const result = [];
      for (const epoch of [0, 1]) {
        dataset.most = 0;
        for await (const batch of loader.epoch(epoch)) batch.dispose();
        result.push(dataset.most);
      }
      return result;
    };
    // 384 MiB: 24 at once while nothing is known, then 16 of 24 MB; all eight batches of tiny ones.
    expect(await most(24_000_000)).toEqual([24, 16]);
    expect((await most(3))[1]).toBe(80);
  });

  it('a broken image is an error at its batch, and not before', async () => {
    const seen: number[] = [];
    const loader = new DataLoader({ dataset: new Slow(30, [17]), batchSize: 5, prefetch: 3 });
    await expect(async () => {
      for await (const batch of loader.epoch(0)) {
        seen.push(batch.index);
        batch.dispose();
        await sleep(10);
      }
    }).rejects.toThrow(/slow 17: broken on purpose/);
    expect(seen).toEqual([0, 1, 2]);
  });

  it('or is left out and counted once', async () => {
    const loader = new DataLoader({ dataset: new Slow(12, [1, 4, 5, 6, 7]), batchSize: 4, skipBroken: true });
    for (const epoch of [0, 1]) {
      const batches = await collect(loader.epoch(epoch));
      expect(batches.map((b) => [b.index, b.indices])).toEqual([[0, [0, 2, 3]], [2, [8, 9, 10, 11]]]); // prettier-ignore
    }
    expect(loader.skipped.map((s) => s.index)).toEqual([1, 4, 5, 6, 7]);
    expect(loader.skipped[0]).toMatchObject({
      path: 'slow 1',
      message: expect.stringContaining('broken on purpose') as string,
    });
    const none = new DataLoader({ dataset: new Slow(3, [0, 1, 2]), batchSize: 4, skipBroken: true });
    await expect(collect(none.epoch(0))).rejects.toThrow(/every image of the data set is broken, 3 in all/);
  });

  it('does not skip an error of another kind', async () => {
    const dataset = new Slow(4);
    dataset.load = () => Promise.reject(new TypeError('a bug'));
    await expect(collect(new DataLoader({ dataset, batchSize: 2, skipBroken: true }).epoch())).rejects.toThrow('a bug');
    const differing = new DataLoader({
      dataset: new Shapes({ task: 'size', count: 4 }),
      batchSize: 2,
      transform: [T.randomCrop(64)],
      skipBroken: true,
    });
    await expect(collect(differing.epoch())).rejects.toThrow(/randomCrop: 64x64 is larger/);
  });

  it.each([
    [{ batchSize: 0 }, /batchSize/],
    [{ batchSize: 1.5 }, /batchSize/],
    [{ batchSize: 2, prefetch: -1 }, /prefetch/],
    [{ batchSize: 2, cacheBytes: NaN }, /cacheBytes/],
    [{ batchSize: 2, seed: 0.5 }, /seed/],
    [{ batchSize: 2, transforms: [] } as never, /DataLoader: unknown option 'transforms'; it takes .*transform,/],
    [{ batchSize: 2, transform: [{ kind: 'blur' }] as never }, /unknown kind "blur"/],
  ])('refuses %j', (o, message) => {
    expect(() => new DataLoader({ dataset: new Slow(4), ...o })).toThrow(message);
  });

  it('refuses an epoch that is none', async () => {
    const loader = new DataLoader({ dataset: new Slow(4), batchSize: 2 });
    await expect(collect(loader.epoch(-1))).rejects.toThrow(/epoch/);
    await expect(collect(loader.epoch(0, 0.5))).rejects.toThrow(/from/);
  });
});

describe('DataLoader on files', () => {
  const base = mkdtempSync(path.join(tmpdir(), 'torchgraft-loader-'));
  afterAll(() => rmSync(base, { recursive: true }));

  it('reads real files, and names the broken one', async () => {
    mkdirSync(path.join(base, 'x'));
    copyFileSync(path.join(fixtures, 'kinds', 'rgb_420.jpg'), path.join(base, 'x', '1.jpg'));
    copyFileSync(path.join(fixtures, 'broken', 'truncated.jpg'), path.join(base, 'x', '2.jpg'));
    copyFileSync(path.join(fixtures, 'kinds', 'cmyk.jpg'), path.join(base, 'x', '3.jpg'));
    const dataset = new ImageFolder(base);
    const transform = [T.resize([8, 8])];
    await expect(collect(new DataLoader({ dataset, batchSize: 3, transform }).epoch())).rejects.toThrow(
      path.join(base, 'x', '2.jpg'),
    );
    const loader = new DataLoader({ dataset, batchSize: 3, transform, skipBroken: true });
    const [batch] = await collect(loader.epoch());
    expect(batch!.indices).toEqual([0, 2]);
    expect(loader.skipped.map((s) => s.path)).toEqual([path.join(base, 'x', '2.jpg')]);
    const first = resizeImage(await decodeImage(dataset.describe(0)), 8, 8);
    const planes = [0, 1, 2].flatMap((c) => Array.from({ length: 64 }, (_, i) => first.data[i * 3 + c]!));
    expect(batch!.images.slice(0, 192)).toEqual(planes);
  });

  it.skipIf(!existsSync(signDigits))(
    'reads the sign digits, files of several megapixels included (skipped where they are absent)',
    async () => {
      const { train, val } = openImageFolder(signDigits);
      for (const [dataset, count] of [
        [train, 1202],
        [val, 424],
      ] as const) {
        const loader = new DataLoader({ dataset, batchSize: 64, shuffle: true, transform: [T.resize([32, 32]), T.randomCrop(32, { padding: 4 }), T.toFloat()] }); // prettier-ignore
        let images = 0;
        for await (const batch of loader.epoch(0)) {
          images += batch.images.shape[0]!;
          batch.dispose();
        }
        expect(images).toBe(count);
        expect(loader.cached).toEqual({ images: count, bytes: count * 32 * 32 * 3 });
      }
    },
  );
});
