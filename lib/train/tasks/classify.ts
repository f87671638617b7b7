/** Images to classes. */
import { confusionMatrix } from '../../metrics/index.js';
import { Context, functional as F, type Module } from '../../nn/index.js';
import { noGrad, type Tensor } from '../../tensor/index.js';
import type { Score } from '../events.js';
import type { Batch, LossOptions } from '../options.js';
import { maybeAutocast, withAuxiliary, type Meter, type Scoring, type Task } from './task.js';

/** Score of a classifier, and where it errs. */
export interface Evaluation extends Score {
  readonly correct: number;
  /** `confusion[t][p]`: images of class t that were taken for class p. */
  readonly confusion: number[][];
  /** Per image, in the order of the data source: its index, label, prediction and the prediction's probability. */
  readonly predictions: readonly Prediction[];
}

export interface Prediction {
  readonly index: number;
  readonly label: number;
  readonly predicted: number;
  readonly confidence: number;
}

/**
 * Classification, the task of a `Trainer` that is given none: cross-entropy or a loss of one's own, top-1 accuracy.
 *
 * @param loss Default: cross-entropy without label smoothing.
 */
export function classifyTask(loss: LossOptions = {}): Task<Batch, Evaluation> {
  return {
    id: 'classify',
    settings: { labelSmoothing: typeof loss === 'function' ? 'custom loss' : (loss.labelSmoothing ?? 0) },
    step(model, batch, device) {
      const images = batch.images.to(device);
      const labels = batch.labels.to(device);
      const ctx = new Context();
      const logits = model.run(images, ctx);
      return { loss: withAuxiliary(lossOf(loss, logits, labels), ctx), correct: hits(logits, labels) };
    },
    meter: (model, how) => new ClassificationScore(model, how),
    free({ images, labels }) {
      images.dispose();
      labels.dispose();
    },
  };
}

function lossOf(loss: LossOptions, logits: Tensor, labels: Tensor): Tensor {
  if (typeof loss === 'function') return loss(logits, labels);
  return F.crossEntropy(logits, labels, { labelSmoothing: loss.labelSmoothing ?? 0 });
}

/** How many rows have their label as the largest logit. */
export function hits(logits: Tensor, labels: Tensor): Tensor {
  return noGrad(() => logits.argmax(1).eq(hardLabels(labels)).sum());
}

/** Class numbers from class numbers or from soft targets. */
const hardLabels = (labels: Tensor): Tensor => (labels.ndim === 2 ? labels.argmax(1) : labels);

class ClassificationScore implements Meter<Batch, Evaluation> {
  readonly #predictions: Prediction[] = [];
  #loss = 0;
  #classes = 0;

  constructor(
    private readonly model: Module,
    private readonly how: Scoring,
  ) {}

  add(batch: Batch): void {
    const { device, autocast } = this.how;
    const images = batch.images.to(device);
    const logits = maybeAutocast(autocast, device, () => this.model.run(images, new Context())).float();
    const target = hardLabels(batch.labels).to(device);
    const [top, winner] = logits.softmax(1).max(1, false);
    this.#loss += F.crossEntropy(logits, target, { reduction: 'sum' }).item() as number;
    this.#classes = logits.shape[1]!;
    const labels = target.tolist() as number[];
    const predicted = winner.tolist() as number[];
    const confidence = top.tolist() as number[];
    for (const [i, index] of batch.indices.entries())
      this.#predictions.push({ index, label: labels[i]!, predicted: predicted[i]!, confidence: confidence[i]! });
  }

  result(): Evaluation {
    const predictions = this.#predictions;
    // A label may exceed what the model can say when the data has more classes; it then gets a row of its own.
    const size = predictions.reduce((most, p) => Math.max(most, p.label + 1), this.#classes);
    const confusion = confusionMatrix(
      predictions.map((p) => p.predicted),
      predictions.map((p) => p.label),
      size,
    );
    const correct = confusion.reduce((sum, row, i) => sum + row[i]!, 0);
    const samples = predictions.length;
    const accuracy = correct / samples;
    return { loss: this.#loss / samples, accuracy, samples, correct, confusion, predictions: [...predictions] };
  }

  [Symbol.dispose](): void {
    this.#predictions.length = 0;
  }
}
