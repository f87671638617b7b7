/** How good a classifier is: accuracy, top-k accuracy, confusion matrix, accuracy per class. */
import { aten, keep, scope, zeros, type Tensor } from '../tensor/index.js';

/** Class numbers, as integers or as an integer tensor [N]. */
export type ClassNumbers = Tensor | ArrayLike<number>;

function numbers(values: ClassNumbers, what: string): number[] {
  const array = 'numel' in values ? (values.data() as ArrayLike<number | bigint>) : values;
  const result = Array.from(array, Number);
  const wrong = result.find((value) => !Number.isInteger(value) || value < 0);
  if (wrong !== undefined) throw new TypeError(`${what}: expected class numbers from 0 on, got ${String(wrong)}`);
  return result;
}

/** The share of places where `predicted` and `labels` agree, from 0 to 1. */
export function accuracy(predicted: ClassNumbers, labels: ClassNumbers): number {
  const [p, l] = pair(predicted, labels, 'accuracy');
  return p.filter((value, i) => value === l[i]).length / p.length;
}

function pair(predicted: ClassNumbers, labels: ClassNumbers, what: string): readonly [number[], number[]] {
  const [p, l] = [numbers(predicted, `${what}: predicted`), numbers(labels, `${what}: labels`)];
  if (p.length !== l.length || p.length === 0) {
    throw new RangeError(
      `${what}: expected as many predictions as labels, at least one; got ${String(p.length)} and ${String(l.length)}`,
    );
  }
  return [p, l];
}

/**
 * The share of rows whose label is among the `k` largest logits. Where k exceeds the number of classes, it is 1.
 *
 * @param logits [N, classes]
 * @param labels int64 [N]
 */
export function topKAccuracy(logits: Tensor, labels: Tensor, k: number): number {
  return scope(() => Number(topKCorrect(logits, labels, [k]).item()) / (logits.shape[0] ?? 1));
}

/** How many rows have their label among the k largest logits, for each k of `ks`: int64 [ks], on the logits' device. */
function topKCorrect(logits: Tensor, labels: Tensor, ks: readonly number[]): Tensor {
  checkLogits(logits, labels);
  const wrong = ks.find((k) => !Number.isInteger(k) || k < 1);
  if (wrong !== undefined) throw new RangeError(`top-k: k must be a whole number from 1 on, got ${String(wrong)}`);
  const most = Math.min(Math.max(...ks), logits.shape[1] ?? 1);
  const best = logits.topk(most, 1)[1];
  const hits = best.eq(labels.unsqueeze(1));
  return aten.stack(ks.map((k) => hits.narrow(1, 0, Math.min(k, most)).sum()));
}

function checkLogits(logits: Tensor, labels: Tensor): void {
  const [rows, classes] = logits.shape;
  if (logits.ndim !== 2 || labels.ndim !== 1 || labels.shape[0] !== rows || !rows || !classes) {
    throw new RangeError(
      `expected logits [N, classes] and labels [N], got [${logits.shape.join(', ')}] and [${labels.shape.join(', ')}]`,
    );
  }
}

/** `matrix[t][p]`: how often class t was taken for class p. */
export function confusionMatrix(predicted: ClassNumbers, labels: ClassNumbers, classes: number): number[][] {
  const [p, l] = pair(predicted, labels, 'confusionMatrix');
  const matrix = Array.from({ length: classes }, () => new Array<number>(classes).fill(0));
  for (const [i, label] of l.entries()) {
    const guess = p[i] ?? 0;
    const row = matrix[label];
    if (!row || guess >= classes) {
      throw new RangeError(
        `confusionMatrix: class ${String(Math.max(label, guess))} is outside of ${String(classes)} classes`,
      );
    }
    row[guess] = (row[guess] ?? 0) + 1;
  }
  return matrix;
}

/** The share of each class that was recognized (its recall), from a confusion matrix; null for a class without images. */
export function perClassAccuracy(matrix: readonly (readonly number[])[]): (number | null)[] {
  return matrix.map((row, i) => {
    const total = row.reduce((sum, n) => sum + n, 0);
    return total === 0 ? null : (row[i] ?? 0) / total;
  });
}

/** What a `ClassificationMeter` has seen. */
export interface ClassificationResult {
  readonly samples: number;
  /** From 0 to 1. */
  readonly accuracy: number;
  /** Accuracy if the k best classes count, by k. */
  readonly topK: Readonly<Record<number, number>>;
  readonly perClass: readonly (number | null)[];
  /** Mean of `perClass` over the classes that had images. */
  readonly balancedAccuracy: number;
  /** `confusion[t][p]`: how often class t was taken for class p. */
  readonly confusion: readonly (readonly number[])[];
}

/**
 * Counts over batches. The counts stay with the logits, on their device, until `result` is asked for: nothing is read back
 * in between.
 *
 * @example
 * const meter = new ClassificationMeter(10, { topK: [5] });
 * for await (const batch of loader.epoch()) meter.update(model.run(batch.images), batch.labels);
 * console.log(meter.result().accuracy);
 */
export class ClassificationMeter {
  readonly classes: number;
  readonly #ks: readonly number[];
  #samples = 0;
  /** int64 [classes * classes] and [ks]. */
  #counts: { confusion: Tensor; hits: Tensor } | undefined;

  /** @param o.topK further k's besides 1 */
  constructor(classes: number, o: { topK?: readonly number[] } = {}) {
    if (!Number.isInteger(classes) || classes < 1)
      throw new RangeError(`ClassificationMeter: expected at least one class, got ${String(classes)}`);
    this.classes = classes;
    this.#ks = [1, ...(o.topK ?? []).filter((k) => k !== 1)];
  }

  /**
   * Counts a batch.
   *
   * @param logits [N, classes]
   * @param labels int64 [N], from 0 to classes - 1
   */
  update(logits: Tensor, labels: Tensor): void {
    checkLogits(logits, labels);
    if (logits.shape[1] !== this.classes) {
      throw new RangeError(
        `ClassificationMeter: expected logits for ${String(this.classes)} classes, got ${String(logits.shape[1])}`,
      );
    }
    scope(() => {
      const rows = logits.detach();
      const target = labels.to(rows.device);
      const cells = target.mul(this.classes).add(rows.argmax(1));
      const confusion = cells.bincount(null, this.classes * this.classes);
      const hits = topKCorrect(rows, target, this.#ks);
      this.#counts ??= {
        confusion: keep(zeros([this.classes * this.classes], { dtype: 'int64', device: rows.device })),
        hits: keep(zeros([this.#ks.length], { dtype: 'int64', device: rows.device })),
      };
      this.#counts.confusion.add_(confusion);
      this.#counts.hits.add_(hits);
    });
    this.#samples += logits.shape[0] ?? 0;
  }

  /** @throws RangeError before the first `update` */
  result(): ClassificationResult {
    if (!this.#counts) throw new RangeError('ClassificationMeter: nothing has been counted yet; call update first');
    const confusion = scope(() => this.#counts?.confusion.view([this.classes, this.classes]).tolist()) as number[][];
    const hits = this.#counts.hits.tolist() as number[];
    const perClass = perClassAccuracy(confusion);
    const seen = perClass.filter((value) => value !== null);
    return {
      samples: this.#samples,
      accuracy: (hits[0] ?? 0) / this.#samples,
      topK: Object.fromEntries(this.#ks.map((k, i) => [k, (hits[i] ?? 0) / this.#samples])),
      perClass,
      balancedAccuracy: seen.reduce((sum, value) => sum + value, 0) / seen.length,
      confusion,
    };
  }

  /** Starts again from nothing. */
  reset(): void {
    this.#counts?.confusion.dispose();
    this.#counts?.hits.dispose();
    this.#counts = undefined;
    this.#samples = 0;
  }
}
