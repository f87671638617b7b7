import { fromTypedArray, keep, scope, type Device, type MemoryFormat } from '../tensor/index.js';
import type { Dataset } from './dataset.js';
import { ImageError } from './decode.js';
import type { Image } from './image.js';
import { Pipeline } from './pipeline.js';
import { Random, Stream } from './random.js';
import type { LoadedBatch } from './samples.js';
import type { TransformInput } from './transforms.js';

export interface DataLoaderOptions {
  readonly dataset: Dataset;
  readonly batchSize: number;
  /** A new random order in each epoch. Default false. */
  readonly shuffle?: boolean;
  /** Seeds order and augmentation. Default 0. */
  readonly seed?: number;
  /** Steps from image to input, see `transforms`. Default none: batches of bytes. */
  readonly transform?: readonly TransformInput[] | Pipeline;
  /** Leave out a last batch that is not full. Default false. */
  readonly dropLast?: boolean;
  /** Leave out broken images and count them (`skipped`) instead of failing. Default false. */
  readonly skipBroken?: boolean;
  /** Images are kept after the steps before the first random one, until they fill so many bytes. Default 256 MiB; 0: none. */
  readonly cacheBytes?: number;
  /** Batches prepared ahead of the one being used. Default 2. */
  readonly prefetch?: number;
  /** Default 'cpu'. */
  readonly device?: Device;
  /** Default 'contiguous_format'. */
  readonly memoryFormat?: MemoryFormat;
}

/** A broken image that was left out. */
export interface SkippedImage {
  readonly index: number;
  readonly path: string;
  readonly message: string;
}

/** Bytes of decoded images that may be in the making at once; a bound for files of many megapixels. */
const BYTES_IN_FLIGHT = 384 * 2 ** 20;

/**
 * Batches of a data set, decoded in sharp's thread pool ahead of their use.
 *
 * Everything random is a function of (seed, epoch, place in the data set), see `Random`: a run repeats exactly however
 * many images are decoded at once, and goes on from any batch as if it had never stopped. The order of an epoch is
 * `new Random(seed, Stream.order, epoch).permutation(n)`; image i is augmented with
 * `new Random(seed, Stream.augment, epoch, i)`.
 *
 * The thread pool is libuv's: 4 threads unless the environment variable UV_THREADPOOL_SIZE says otherwise.
 *
 * @example
 * const loader = new DataLoader({ dataset, batchSize: 64, shuffle: true, transform });
 * for await (const batch of loader.epoch(0)) {
 *   step(batch.images, batch.labels);
 *   batch.dispose();
 * }
 */
export class DataLoader {
  readonly dataset: Dataset;
  readonly pipeline: Pipeline;
  /** Batches per epoch. */
  readonly length: number;
  /** Images per epoch, broken ones included. */
  readonly samples: number;
  readonly batchSize: number;
  readonly #o: Required<Omit<DataLoaderOptions, 'dataset' | 'transform' | 'batchSize' | 'dropLast'>>;
  readonly #cache = new Map<number, Image>();
  readonly #skipped = new Map<number, SkippedImage>();
  #cachedBytes = 0;
  // A careful start; small images bring it down within a batch.
  #bytesPerImage = 2 ** 24;

  constructor(options: DataLoaderOptions) {
    const { dataset, batchSize, transform = [], dropLast = false, ...rest } = options;
    this.#o = {
      shuffle: false,
      seed: 0,
      skipBroken: false,
      cacheBytes: 256 * 2 ** 20,
      prefetch: 2,
      device: 'cpu',
      memoryFormat: 'contiguous_format',
      ...rest,
    };
    atLeast('batchSize', batchSize, 1);
    atLeast('prefetch', this.#o.prefetch, 0);
    if (!(this.#o.cacheBytes >= 0))
      throw new RangeError(`DataLoader: cacheBytes must not be negative, got ${String(this.#o.cacheBytes)}`);
    if (!Number.isSafeInteger(this.#o.seed))
      throw new RangeError(`DataLoader: seed must be a safe integer, got ${String(this.#o.seed)}`);
    this.dataset = dataset;
    this.batchSize = batchSize;
    this.pipeline = transform instanceof Pipeline ? transform : new Pipeline(transform);
    this.length = dropLast ? Math.floor(dataset.length / batchSize) : Math.ceil(dataset.length / batchSize);
    this.samples = dropLast ? this.length * batchSize : dataset.length;
    if (this.length === 0) {
      throw new RangeError(
        `DataLoader: ${String(dataset.length)} images make no batch of ${String(batchSize)}${dropLast ? ' (dropLast)' : ''}`,
      );
    }
  }

  /** The broken images that have been left out so far, each once. */
  get skipped(): readonly SkippedImage[] {
    return [...this.#skipped.values()];
  }

  /** What the cache holds. */
  get cached(): { images: number; bytes: number } {
    return { images: this.#cache.size, bytes: this.#cachedBytes };
  }

  /** A name for an image of the data set: its path where it has one. */
  describe(index: number): string {
    return this.dataset.describe(index);
  }

  /** The places of the data set in the order in which epoch `epoch` goes through them. */
  order(epoch: number): Uint32Array {
    if (this.#o.shuffle) return new Random(this.#o.seed, Stream.order, epoch).permutation(this.dataset.length);
    return Uint32Array.from({ length: this.dataset.length }, (_, i) => i);
  }

  /**
   * The batches of an epoch (numbered from 0) from batch `from` on. Leaving the loop early stops the reading ahead, and
   * waits for files that are being decoded. A broken image is an error at its batch, unless `skipBroken`: then its batch is
   * smaller, and a batch without any good image is left out.
   */
  async *epoch(epoch = 0, from = 0): AsyncGenerator<LoadedBatch, void, undefined> {
    atLeast('epoch', epoch, 0);
    atLeast('from', from, 0);
    const order = this.order(epoch);
    const gate = new Gate(() => Math.max(1, Math.floor(BYTES_IN_FLIGHT / this.#bytesPerImage)));
    const ahead: Promise<Outcome[]>[] = [];
    let next = from;
    try {
      for (let batch = from; batch < this.length; batch++) {
        for (; next < this.length && next <= batch + this.#o.prefetch; next++) {
          const places = order.subarray(next * this.batchSize, (next + 1) * this.batchSize);
          ahead.push(Promise.all(Array.from(places, (place) => this.#outcome(place, epoch, gate))));
        }
        const outcomes = await (ahead.shift() as Promise<Outcome[]>);
        const loaded = this.#collate(batch, outcomes);
        if (loaded) yield loaded;
      }
    } finally {
      gate.close();
      await Promise.all(ahead);
    }
  }

  /** Never rejects: an error is an outcome, so that it surfaces at its batch and nowhere else. */
  async #outcome(index: number, epoch: number, gate: Gate): Promise<Outcome> {
    try {
      const prepared = this.#cache.get(index) ?? (await gate.pass(() => this.#prepare(index)));
      if (!prepared) return { index, error: new Error('the data loader was stopped') };
      const random = this.pipeline.isRandom ? new Random(this.#o.seed, Stream.augment, epoch, index) : undefined;
      return { index, image: this.pipeline.augment(prepared, random) };
    } catch (error) {
      return { index, error };
    }
  }

  async #prepare(index: number): Promise<Image> {
    const decoded = await this.dataset.load(index);
    // Follows large images at once and forgets them slowly.
    this.#bytesPerImage = Math.max(decoded.data.byteLength, this.#bytesPerImage * 0.9, 1);
    const prepared = this.pipeline.prepare(decoded);
    const bytes = prepared.data.byteLength;
    // No eviction: every image is used once per epoch, so that one is as good as another.
    if (!this.#cache.has(index) && this.#cachedBytes + bytes <= this.#o.cacheBytes) {
      this.#cache.set(index, prepared);
      this.#cachedBytes += bytes;
    }
    return prepared;
  }

  #collate(batch: number, outcomes: readonly Outcome[]): LoadedBatch | undefined {
    const images: Image[] = [];
    const indices: number[] = [];
    for (const { index, image, error } of outcomes) {
      if (image) {
        images.push(image);
        indices.push(index);
      } else if (this.#o.skipBroken && error instanceof ImageError) {
        this.#skipped.set(index, { index, path: error.path, message: error.message });
      } else throw error;
    }
    if (images.length === 0) {
      if (this.#skipped.size < this.dataset.length) return undefined;
      throw new RangeError(
        `every image of the data set is broken, ${String(this.#skipped.size)} in all; the last: ${this.skipped.at(-1)?.message ?? ''}`,
      );
    }
    const labels = BigInt64Array.from(indices, (index) => BigInt(this.dataset.labels[index] ?? 0));
    const tensors = scope(() => ({
      images: keep(this.pipeline.collate(images, { device: this.#o.device, memoryFormat: this.#o.memoryFormat })),
      labels: keep(fromTypedArray(labels, [labels.length]).to(this.#o.device)),
    }));
    const dispose = (): void => {
      tensors.images.dispose();
      tensors.labels.dispose();
    };
    return { index: batch, ...tensors, indices, dispose };
  }
}

interface Outcome {
  readonly index: number;
  readonly image?: Image;
  readonly error?: unknown;
}

/** Lets a limited number of jobs run at once, in the order in which they came; none any more once it is closed. */
class Gate {
  readonly #limit: () => number;
  readonly #waiting: (() => void)[] = [];
  #running = 0;
  #isClosed = false;

  constructor(limit: () => number) {
    this.#limit = limit;
  }

  /** The job's result; undefined if the gate was closed before the job could start. */
  async pass<T>(job: () => Promise<T>): Promise<T | undefined> {
    if (this.#isClosed) return undefined;
    if (this.#running < this.#limit()) this.#running++;
    else await new Promise<void>((resolve) => this.#waiting.push(resolve));
    try {
      return this.#isClosed ? undefined : await job();
    } finally {
      this.#running--;
      this.#admit(this.#limit() - this.#running);
    }
  }

  close(): void {
    this.#isClosed = true;
    this.#admit(this.#waiting.length);
  }

  #admit(count: number): void {
    for (const start of this.#waiting.splice(0, Math.max(0, count))) {
      this.#running++;
      start();
    }
  }
}

function atLeast(name: string, value: number, least: number): void {
  if (!Number.isInteger(value) || value < least) {
    throw new RangeError(`DataLoader: ${name} must be a whole number from ${String(least)} on, got ${String(value)}`);
  }
}
