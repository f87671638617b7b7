/** How good a segmentation is: intersection over union, accuracy and Dice per class and over all, as MMSegmentation 0.11.0. */
import { IGNORE_INDEX } from '../nn/index.js';
import { aten, keep, scope, tensor, zeros, type Tensor } from '../tensor/index.js';

/** Pixels of each class, over all images. */
export interface SegmentationAreas {
  /** Labeled and predicted so. */
  readonly intersect: readonly number[];
  readonly union: readonly number[];
  readonly predicted: readonly number[];
  readonly labeled: readonly number[];
}

/** Shares, from 0 to 1. A class of which there is nothing to divide by is NaN, and left out of the means. */
export interface SegmentationResult {
  /** Pixels that are right, of all that count. */
  readonly aAcc: number;
  readonly mIoU: number;
  readonly mAcc: number;
  readonly mDice: number;
  /** Intersection / union. A class that is predicted and never labeled has 0. */
  readonly iou: readonly number[];
  /** Intersection / labeled. */
  readonly acc: readonly number[];
  /** 2 intersection / (predicted + labeled). */
  readonly dice: readonly number[];
  readonly areas: SegmentationAreas;
}

/** What `SegmentationMeter` can be told. */
export interface SegmentationMeterOptions {
  /** Pixels with this label do not count. Default 255. */
  readonly ignoreIndex?: number;
  /** Labels 1, 2, ... are the classes 0, 1, ..., and label 0 does not count, as in ADE20K; `ignoreIndex` is then 255. Default false. */
  readonly reduceZeroLabel?: boolean;
  /** Labels that stand for others, applied first. */
  readonly remap?: Readonly<Record<number, number>>;
}

/**
 * Counts pixels over a data set. Counts stay on the device until `result` is asked for.
 *
 * @example
 * const meter = new SegmentationMeter(150, { reduceZeroLabel: true });
 * for await (const batch of loader.epoch()) meter.update(model.segment(batch.images), batch.masks);
 * console.log(meter.result().mIoU);
 */
export class SegmentationMeter {
  readonly classes: number;
  readonly #ignoreIndex: number;
  readonly #reduceZeroLabel: boolean;
  readonly #remap: readonly (readonly [number, number])[];
  /** int64 [3, classes + 1]: right, predicted, labeled; the last column holds what is no class. */
  #counts: Tensor | undefined;

  /** @throws RangeError without a class */
  constructor(
    classes: number,
    { ignoreIndex = IGNORE_INDEX, reduceZeroLabel = false, remap = {} }: SegmentationMeterOptions = {},
  ) {
    if (!Number.isInteger(classes) || classes < 1)
      throw new RangeError(`SegmentationMeter: expected at least one class, got ${String(classes)}`);
    this.classes = classes;
    this.#ignoreIndex = ignoreIndex;
    this.#reduceZeroLabel = reduceZeroLabel;
    this.#remap = Object.entries(remap).map(([from, to]) => [Number(from), to]);
  }

  /**
   * @param predicted class of each pixel, integers of any shape
   * @param labels integers of the same shape
   * @throws RangeError when the shapes differ
   */
  update(predicted: Tensor, labels: Tensor): void {
    if (predicted.shape.join() !== labels.shape.join()) {
      throw new RangeError(
        `SegmentationMeter: predictions [${predicted.shape.join(', ')}] and labels [${labels.shape.join(', ')}] must have one shape`,
      );
    }
    const { classes } = this;
    scope(() => {
      const guess = predicted.detach().to('int64').flatten();
      const label = this.#classesOf(labels.to(guess.device).to('int64').flatten());
      const isValid = label.ne(this.#ignoreIndex);
      const none = tensor(classes, { dtype: 'int64', device: guess.device });
      const count = (values: Tensor, where: Tensor): Tensor => {
        const inRange = values.ge(0).logicalAnd(values.lt(classes)).logicalAnd(where);
        return aten.where(inRange, values, none).bincount(null, classes + 1);
      };
      const labeled = count(label, isValid);
      // What is labeled, counts and is no class: for the error message.
      const odd = isValid.logicalAnd(label.lt(0).logicalOr(label.ge(classes))).sum();
      labeled.select(0, classes).copy_(odd);
      const counts = aten.stack([count(guess, isValid.logicalAnd(guess.eq(label))), count(guess, isValid), labeled]);
      this.#counts ??= keep(zeros([3, classes + 1], { dtype: 'int64', device: guess.device }));
      this.#counts.add_(counts);
    });
  }

  #classesOf(labels: Tensor): Tensor {
    let mapped = labels;
    for (const [from, to] of this.#remap) {
      mapped = aten.where(labels.eq(from), tensor(to, { dtype: 'int64', device: labels.device }), mapped);
    }
    if (!this.#reduceZeroLabel) return mapped;
    const unlabeled = mapped.newFull([], IGNORE_INDEX);
    return aten.where(mapped.eq(0).logicalOr(mapped.eq(IGNORE_INDEX)), unlabeled, mapped.sub(1));
  }

  /** @throws RangeError before the first `update`, or when labels lie outside of the classes */
  result(): SegmentationResult {
    if (!this.#counts) throw new RangeError('SegmentationMeter: nothing has been counted yet; call update first');
    const { classes } = this;
    const [right = [], guessed = [], labels = []] = this.#counts.tolist() as number[][];
    const odd = labels[classes] ?? 0;
    if (odd > 0) {
      throw new RangeError(
        `SegmentationMeter: ${odd} pixels have labels that are none of the ${classes} classes and not the ignored ${this.#ignoreIndex}`,
      );
    }
    const [intersect, predicted, labeled] = [right, guessed, labels].map((row) => row.slice(0, classes)) as [
      number[],
      number[],
      number[],
    ];
    const union = intersect.map((value, i) => (predicted[i] ?? 0) + (labeled[i] ?? 0) - value);
    const iou = intersect.map((value, i) => value / (union[i] ?? 0));
    const acc = intersect.map((value, i) => value / (labeled[i] ?? 0));
    const dice = intersect.map((value, i) => (2 * value) / ((predicted[i] ?? 0) + (labeled[i] ?? 0)));
    return {
      aAcc: sum(intersect) / sum(labeled),
      mIoU: mean(iou),
      mAcc: mean(acc),
      mDice: mean(dice),
      iou,
      acc,
      dice,
      areas: { intersect, union, predicted, labeled },
    };
  }

  /** Starts again from nothing. */
  reset(): void {
    this.#counts?.dispose();
    this.#counts = undefined;
  }
}

function sum(values: readonly number[]): number {
  return values.reduce((total, value) => total + value, 0);
}

/** Mean of the values that are numbers. */
function mean(values: readonly number[]): number {
  const known = values.filter((value) => !Number.isNaN(value));
  return sum(known) / known.length;
}
