/** What the procedural data sets have in common. */
import { Random, Stream } from './random.js';

/** How many pictures, and how they look. */
export interface PictureOptions {
  readonly count: number;
  readonly size: number;
  readonly clutter: number;
}

/** @throws RangeError for a number of pictures, a size or an amount of clutter that is out of range */
export function checkPictures(where: string, { count, size, clutter }: PictureOptions, leastSize: number): void {
  if (!Number.isInteger(count) || count < 1)
    throw new RangeError(`${where}: count must be a whole number from 1 on, got ${String(count)}`);
  if (!Number.isInteger(size) || size < leastSize || size > 1024)
    throw new RangeError(
      `${where}: size must be a whole number from ${String(leastSize)} to 1024, got ${String(size)}`,
    );
  if (!(clutter >= 0 && clutter <= 4))
    throw new RangeError(`${where}: clutter must be from 0 to 4, got ${String(clutter)}`);
}

/** Class numbers of `count` samples: every run of consecutive ones, as long as there are classes, has each class once. */
export function balancedLabels(count: number, classes: number, seed: number, task: number): Uint8Array {
  const labels = new Uint8Array(count);
  for (let start = 0; start < count; start += classes) {
    const order = new Random(seed, Stream.balance, task, start / classes).permutation(classes);
    labels.set(order.subarray(0, count - start), start);
  }
  return labels;
}
