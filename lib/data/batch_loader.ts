/** The mechanism of every loader: samples in an order, prepared ahead of their use, batches of them. */
import { assertOptions } from '../tensor/check.js';
import { keep, scope, type Device, type Tensor } from '../tensor/index.js';
import { Gate } from './gate.js';
import { Random, Stream } from './random.js';
import { SampleError, type AnyBatch, type SampleSource, type Skipped } from './samples.js';

/** What all loaders can be told. */
export interface BatchLoaderOptions<Source> {
  readonly dataset: Source;
  readonly batchSize: number;
  /** A new random order in each epoch. Default false. */
  readonly shuffle?: boolean;
  /** Seeds order and augmentation. Default 0. */
  readonly seed?: number;
  /** Leave out a last batch that is not full. Default false. */
  readonly dropLast?: boolean;
  /** Leave out broken samples and count them (`skipped`) instead of failing. Default false. */
  readonly skipBroken?: boolean;
  /** Samples are kept after the steps before the first random one, until they fill so many bytes. Default 256 MiB; 0: none. */
  readonly cacheBytes?: number;
  /** Batches prepared ahead of the one being used. Default 2. */
  readonly prefetch?: number;
  /** Default 'cpu'. */
  readonly device?: Device;
}

const OPTIONS = [
  'dataset',
  'batchSize',
  'shuffle',
  'seed',
  'dropLast',
  'skipBroken',
  'cacheBytes',
  'prefetch',
  'device',
];

/** A broken sample that was left out. */
export interface SkippedImage extends Skipped {
  readonly index: number;
}

/** What batches of one kind have besides what all have. */
type FieldsOf<Batch extends AnyBatch> = Omit<Batch, keyof AnyBatch>;

/** What a loader makes of samples: the fields of a batch, and its tensors, which `dispose` frees. */
export interface Collated<Batch extends AnyBatch> {
  readonly fields: FieldsOf<Batch>;
  readonly tensors: readonly Tensor[];
}

/** Bytes of decoded samples that may be in the making at once; a bound for files of many megapixels. */
const BYTES_IN_FLIGHT = 384 * 2 ** 20;

/**
 * Batches of a data set, prepared ahead of their use.
 *
 * Everything random is a function of (seed, epoch, place in the data set), see `Random`: a run repeats exactly however
 * many samples are decoded at once, and goes on from any batch as if it had never stopped. The order of an epoch is
 * `new Random(seed, Stream.order, epoch).permutation(n)`; sample i is augmented with
 * `new Random(seed, Stream.augment, epoch, i)`.
 *
 * Files are decoded in libuv's thread pool: 4 threads unless the environment variable UV_THREADPOOL_SIZE says otherwise.
 */
export abstract class BatchLoader<Sample, Ready, Batch extends AnyBatch, Source extends SampleSource<Sample>> {
  readonly dataset: Source;
  /** Batches per epoch. */
  readonly length: number;
  /** Samples per epoch, broken ones included. */
  readonly samples: number;
  readonly batchSize: number;
  protected readonly device: Device;
  readonly #o: Required<Omit<BatchLoaderOptions<Source>, 'dataset' | 'batchSize' | 'dropLast' | 'device'>>;
  readonly #cache = new Map<number, Sample>();
  readonly #skipped = new Map<number, SkippedImage>();
  #cachedBytes = 0;
  // A careful start; small samples bring it down within a batch.
  #bytesPerSample = 2 ** 24;

  /**
   * @param own the options that a kind of loader has besides those of all
   * @throws TypeError for an option that there is not; RangeError for a number that is out of range, or a data set that makes
   *   no batch
   */
  constructor(options: BatchLoaderOptions<Source>, own: readonly string[]) {
    const loader = new.target.name;
    assertOptions(options, loader, [...OPTIONS, ...own]);
    const { dataset, batchSize, dropLast = false } = options;
    const { shuffle = false, seed = 0, skipBroken = false, cacheBytes = 256 * 2 ** 20, prefetch = 2 } = options;
    this.#o = { shuffle, seed, skipBroken, cacheBytes, prefetch };
    this.device = options.device ?? 'cpu';
    atLeast(loader, 'batchSize', batchSize, 1);
    atLeast(loader, 'prefetch', prefetch, 0);
    if (!(cacheBytes >= 0))
      throw new RangeError(`${loader}: cacheBytes must not be negative, got ${String(cacheBytes)}`);
    if (!Number.isSafeInteger(seed))
      throw new RangeError(`${loader}: seed must be a safe integer, got ${String(seed)}`);
    this.dataset = dataset;
    this.batchSize = batchSize;
    this.length = dropLast ? Math.floor(dataset.length / batchSize) : Math.ceil(dataset.length / batchSize);
    this.samples = dropLast ? this.length * batchSize : dataset.length;
    if (this.length === 0) {
      throw new RangeError(
        `${loader}: ${String(dataset.length)} samples make no batch of ${String(batchSize)}${dropLast ? ' (dropLast)' : ''}`,
      );
    }
  }

  /** Bytes that a sample holds. */
  protected abstract bytesOf(sample: Sample): number;
  /** What is the same in every epoch; its result is cached. */
  protected abstract prepare(sample: Sample): Sample;
  /** What differs from epoch to epoch. `random` belongs to this sample in this epoch. */
  protected abstract finish(sample: Sample, random: Random): Ready | Promise<Ready>;
  /** A batch of what is ready; called within a scope. */
  protected abstract collate(samples: readonly Ready[], indices: readonly number[]): Collated<Batch>;

  /** The broken samples that have been left out so far, each once. */
  get skipped(): readonly SkippedImage[] {
    return [...this.#skipped.values()];
  }

  /** What the cache holds. */
  get cached(): { images: number; bytes: number } {
    return { images: this.#cache.size, bytes: this.#cachedBytes };
  }

  /** A name for a sample of the data set: its path where it has one. */
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
   * waits for files that are being decoded. A broken sample is an error at its batch, unless `skipBroken`: then its batch is
   * smaller, and a batch without any good sample is left out.
   */
  async *epoch(epoch = 0, from = 0): AsyncGenerator<AnyBatch & FieldsOf<Batch>, void, undefined> {
    atLeast(this.constructor.name, 'epoch', epoch, 0);
    atLeast(this.constructor.name, 'from', from, 0);
    const order = this.order(epoch);
    const gate = new Gate(() => Math.max(1, Math.floor(BYTES_IN_FLIGHT / this.#bytesPerSample)));
    const ahead: Promise<Outcome<Ready>[]>[] = [];
    let next = from;
    try {
      for (let batch = from; batch < this.length; batch++) {
        for (; next < this.length && next <= batch + this.#o.prefetch; next++) {
          const places = order.subarray(next * this.batchSize, (next + 1) * this.batchSize);
          ahead.push(Promise.all(Array.from(places, (place) => this.#outcome(place, epoch, gate))));
        }
        const outcomes = await (ahead.shift() as Promise<Outcome<Ready>[]>);
        const loaded = this.#batch(batch, outcomes);
        if (loaded) yield loaded;
      }
    } finally {
      gate.close();
      await Promise.all(ahead);
    }
  }

  /** Says how much a sample takes while it is being made; follows large ones at once and forgets them slowly. */
  protected noteBytes(bytes: number): void {
    this.#bytesPerSample = Math.max(bytes, this.#bytesPerSample * 0.9, 1);
  }

  /** Never rejects: an error is an outcome, so that it surfaces at its batch and nowhere else. */
  async #outcome(index: number, epoch: number, gate: Gate): Promise<Outcome<Ready>> {
    try {
      const made = await gate.pass(async () => {
        const prepared = this.#cache.get(index) ?? (await this.#prepared(index));
        return { ready: await this.finish(prepared, new Random(this.#o.seed, Stream.augment, epoch, index)) };
      });
      return made ? { index, ...made } : { index, error: new Error('the data loader was stopped') };
    } catch (error) {
      return { index, error };
    }
  }

  async #prepared(index: number): Promise<Sample> {
    const sample = await this.dataset.load(index);
    this.noteBytes(this.bytesOf(sample));
    const prepared = this.prepare(sample);
    const bytes = this.bytesOf(prepared);
    // No eviction: every sample is used once per epoch, so that one is as good as another.
    if (!this.#cache.has(index) && this.#cachedBytes + bytes <= this.#o.cacheBytes) {
      this.#cache.set(index, prepared);
      this.#cachedBytes += bytes;
    }
    return prepared;
  }

  #batch(index: number, outcomes: readonly Outcome<Ready>[]): (AnyBatch & FieldsOf<Batch>) | undefined {
    const samples: Ready[] = [];
    const indices: number[] = [];
    for (const outcome of outcomes) {
      if ('ready' in outcome) {
        samples.push(outcome.ready);
        indices.push(outcome.index);
      } else if (this.#o.skipBroken && outcome.error instanceof SampleError) {
        const { path, message } = outcome.error;
        this.#skipped.set(outcome.index, { index: outcome.index, path, message });
      } else throw outcome.error;
    }
    if (samples.length === 0) {
      if (this.#skipped.size < this.dataset.length) return undefined;
      throw new RangeError(
        `every image of the data set is broken, ${String(this.#skipped.size)} in all; the last: ${this.skipped.at(-1)?.message ?? ''}`,
      );
    }
    const { fields, tensors } = scope(() => {
      const collated = this.collate(samples, indices);
      collated.tensors.forEach(keep);
      return collated;
    });
    const dispose = (): void => {
      for (const tensor of tensors) tensor.dispose();
    };
    return { index, indices, dispose, ...fields };
  }
}

type Outcome<Ready> =
  { readonly index: number; readonly ready: Ready } | { readonly index: number; readonly error: unknown };

function atLeast(loader: string, name: string, value: number, least: number): void {
  if (!Number.isInteger(value) || value < least) {
    throw new RangeError(`${loader}: ${name} must be a whole number from ${String(least)} on, got ${String(value)}`);
  }
}
