import { imageFromTensor, type Image } from './image.js';
import { Random, Stream } from './random.js';
import type { SampleSource } from './samples.js';
import { scope, type Tensor } from '../tensor/index.js';

/** A numbered collection of labeled images. Loading the same index twice gives the same image. */
export interface Dataset extends SampleSource<Image> {
  /** The class number of each image. */
  readonly labels: ArrayLike<number>;
}

/** @throws RangeError unless `index` is a place in a data set of `length` images */
export function checkIndex(index: number, length: number): void {
  if (!Number.isInteger(index) || index < 0 || index >= length) {
    throw new RangeError(`index ${String(index)} is outside of the data set, which has ${String(length)} images`);
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

/** Some of another data set's images, in the given order. */
export class Subset implements Dataset {
  readonly length: number;
  readonly classNames: readonly string[];
  readonly labels: ArrayLike<number>;
  /** Places in `source`. */
  readonly indices: readonly number[];
  readonly source: Dataset;

  constructor(source: Dataset, indices: ArrayLike<number>) {
    this.source = source;
    this.indices = Array.from(indices);
    for (const index of this.indices) checkIndex(index, source.length);
    this.length = this.indices.length;
    this.classNames = source.classNames;
    this.labels = this.indices.map((index) => source.labels[index] ?? 0);
  }

  load(index: number): Image | Promise<Image> {
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

/**
 * Splits a data set at random, each class in the same proportion, into two parts: the first without and the second with
 * `fraction` of each class, rounded, but at least one image of each class in both (a class of one image goes into the
 * first part). The same seed gives the same split; each part keeps the order of the data set.
 */
export function splitDataset(dataset: Dataset, o: { fraction: number; seed?: number }): [Subset, Subset] {
  if (!(o.fraction > 0 && o.fraction < 1)) {
    throw new RangeError(`splitDataset: expected a fraction between 0 and 1, got ${String(o.fraction)}`);
  }
  const byClass = new Map<number, number[]>();
  for (let i = 0; i < dataset.length; i++) {
    const label = dataset.labels[i] ?? 0;
    const members = byClass.get(label);
    if (members) members.push(i);
    else byClass.set(label, [i]);
  }
  const second = new Set<number>();
  for (const [label, members] of byClass) {
    const count = Math.min(Math.max(1, Math.round(members.length * o.fraction)), members.length - 1);
    // A stream per class: a class more or less leaves the others' split as it was.
    const order = new Random(o.seed ?? 0, Stream.split, label).shuffle(members);
    for (const index of order.slice(0, count)) second.add(index);
  }
  const all = Array.from({ length: dataset.length }, (_, i) => i);
  return [
    new Subset(
      dataset,
      all.filter((i) => !second.has(i)),
    ),
    new Subset(
      dataset,
      all.filter((i) => second.has(i)),
    ),
  ];
}
