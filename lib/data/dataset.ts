import { imageFromTensor, type Image } from './image.js';
import { Random, Stream } from './random.js';
import type { LabeledSource, SampleSource } from './samples.js';
import { scope, type Tensor } from '../tensor/index.js';

/** Labeled images. Loading the same index twice gives the same image. */
export type Dataset = LabeledSource<Image>;

/** @throws RangeError unless `index` is a place in a data set of `length` images */
export function checkIndex(index: number, length: number): void {
  if (!Number.isInteger(index) || index < 0 || index >= length) {
    throw new RangeError(`index ${String(index)} is outside of the data set, which has ${String(length)} samples`);
  }
}

/** Class names for data that brings none: '0', '1', ... */
function numberedClasses(labels: ArrayLike<number>): string[] {
  const count = Array.from(labels).reduce((most, label) => Math.max(most, label + 1), 0);
  return Array.from({ length: count }, (_, i) => String(i));
}

/** Images and labels that are in memory already, as tensors. */
export class TensorDataset implements Dataset {
  readonly length: number;
  readonly classNames: readonly string[];
  readonly labels: ArrayLike<number>;
  readonly #images: readonly Image[];

  /**
   * Copies what it is given; the tensors may be freed afterwards.
   *
   * @param images [N, C, H, W], uint8 or float32
   * @param labels N class numbers, an integer tensor or numbers
   * @param classNames default '0', '1', ... up to the largest label
   */
  constructor(images: Tensor, labels: Tensor | readonly number[], classNames?: readonly string[]) {
    if (images.ndim !== 4) {
      throw new TypeError(`TensorDataset: expected images [N, C, H, W], got shape [${images.shape.join(', ')}]`);
    }
    const numbers = Array.from(
      Array.isArray(labels) ? (labels as readonly number[]) : ((labels as Tensor).data() as ArrayLike<number | bigint>),
      Number,
    );
    const count = images.shape[0] ?? 0;
    if (numbers.length !== count) {
      throw new RangeError(`TensorDataset: ${String(count)} images but ${String(numbers.length)} labels`);
    }
    this.length = count;
    this.classNames = classNames ?? numberedClasses(numbers);
    const wrong = numbers.find((label) => !Number.isInteger(label) || label < 0 || label >= this.classNames.length);
    if (wrong !== undefined) {
      throw new RangeError(
        `TensorDataset: expected labels from 0 to ${String(this.classNames.length - 1)}, got ${String(wrong)}`,
      );
    }
    this.labels = numbers;
    this.#images = Array.from({ length: count }, (_, i) => scope(() => imageFromTensor(images.select(0, i))));
  }

  load(index: number): Image {
    checkIndex(index, this.length);
    return this.#images[index] as Image;
  }

  describe(index: number): string {
    return `image ${String(index)}`;
  }
}

/** Some of another data set's samples, in the given order. */
export class Selection<Sample> implements SampleSource<Sample> {
  readonly length: number;
  readonly classNames: readonly string[];
  /** Places in `source`. */
  readonly indices: readonly number[];
  readonly source: SampleSource<Sample>;

  /** @throws RangeError for a place that is none */
  constructor(source: SampleSource<Sample>, indices: ArrayLike<number>) {
    this.source = source;
    this.indices = Array.from(indices);
    for (const index of this.indices) checkIndex(index, source.length);
    this.length = this.indices.length;
    this.classNames = source.classNames;
  }

  load(index: number): Sample | Promise<Sample> {
    return this.source.load(this.#place(index));
  }

  describe(index: number): string {
    return this.source.describe(this.#place(index));
  }

  #place(index: number): number {
    checkIndex(index, this.length);
    return this.indices[index] as number;
  }
}

/** Some of another data set's labeled samples, in the given order. */
export class Subset<Sample = Image> extends Selection<Sample> implements LabeledSource<Sample> {
  readonly labels: ArrayLike<number>;

  constructor(source: LabeledSource<Sample>, indices: ArrayLike<number>) {
    super(source, indices);
    this.labels = this.indices.map((index) => source.labels[index] ?? 0);
  }
}

function checkFraction(where: string, fraction: number): void {
  if (!(fraction > 0 && fraction < 1)) {
    throw new RangeError(`${where}: expected a fraction between 0 and 1, got ${String(fraction)}`);
  }
}

/** The places that are and that are not in `second`, each in rising order. */
function parted(length: number, second: ReadonlySet<number>): [first: number[], second: number[]] {
  const all = Array.from({ length }, (_, i) => i);
  return [all.filter((i) => !second.has(i)), all.filter((i) => second.has(i))];
}

/**
 * Splits a data set without labels at random into two parts: the second has `fraction` of the samples, rounded, but at
 * least one, and so has the first. The same seed gives the same split; each part keeps the order of the data set.
 *
 * @throws RangeError for a fraction outside of 0 to 1, or fewer than two samples
 */
export function splitSamples<Sample>(
  source: SampleSource<Sample>,
  o: { fraction: number; seed?: number },
): [Selection<Sample>, Selection<Sample>] {
  checkFraction('splitSamples', o.fraction);
  if (source.length < 2) throw new RangeError(`splitSamples: ${String(source.length)} samples make no two parts`);
  const count = Math.min(Math.max(1, Math.round(source.length * o.fraction)), source.length - 1);
  const order = new Random(o.seed ?? 0, Stream.split).permutation(source.length);
  const [first, second] = parted(source.length, new Set(order.subarray(0, count)));
  return [new Selection(source, first), new Selection(source, second)];
}

/**
 * Splits a data set at random, each class in the same proportion, into two parts: the first without and the second with
 * `fraction` of each class, rounded, but at least one image of each class in both (a class of one image goes into the
 * first part). The same seed gives the same split; each part keeps the order of the data set.
 */
export function splitDataset<Sample = Image>(
  dataset: LabeledSource<Sample>,
  o: { fraction: number; seed?: number },
): [Subset<Sample>, Subset<Sample>] {
  checkFraction('splitDataset', o.fraction);
  const byClass = new Map<number, number[]>();
  for (let i = 0; i < dataset.length; i++) {
    const label = dataset.labels[i] ?? 0;
    const members = byClass.get(label);
    if (members) members.push(i);
    else byClass.set(label, [i]);
  }
  const held = new Set<number>();
  for (const [label, members] of byClass) {
    const count = Math.min(Math.max(1, Math.round(members.length * o.fraction)), members.length - 1);
    // A stream per class: a class more or less leaves the others' split as it was.
    const order = new Random(o.seed ?? 0, Stream.split, label).shuffle(members);
    for (const index of order.slice(0, count)) held.add(index);
  }
  const [first, second] = parted(dataset.length, held);
  return [new Subset(dataset, first), new Subset(dataset, second)];
}
