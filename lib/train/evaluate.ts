/** Scoring a classifier on a data set. */
import { setImmediate as breathe } from 'node:timers/promises';
import { confusionMatrix } from '../metrics/index.js';
import type { Module } from '../nn/index.js';
import { Context, functional as F } from '../nn/index.js';
import { autocast, noGrad, scope, type DType, type Tensor } from '../tensor/index.js';
import type { Score } from './events.js';
import type { BatchSource } from './options.js';

export interface EvaluateOptions {
  /** Mixed precision of the forward pass; default null. */
  readonly autocast?: Extract<DType, 'bfloat16'> | null;
  /** Ends the evaluation early: the promise rejects with the signal's reason. */
  readonly signal?: AbortSignal;
  /** Called after each batch with the number of batches done. */
  readonly onBatch?: (done: number, of: number) => void;
}

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

/** Runs `fn` under autocast to `dtype` where one is given. */
export function maybeAutocast<T>(dtype: Extract<DType, 'bfloat16'> | null, device: string, fn: () => T): T {
  if (dtype === null) return fn();
  return autocast({ device: device.startsWith('cuda') ? 'cuda' : 'cpu', dtype }, fn);
}

/**
 * Accuracy, mean cross-entropy and confusion matrix of `model` on `data` (its epoch 0). Leaves the model in eval mode.
 * The event loop runs between batches.
 */
export async function evaluate(model: Module, data: BatchSource, o: EvaluateOptions = {}): Promise<Evaluation> {
  model.eval();
  const device = model.parameters()[0]?.device ?? 'cpu';
  const predictions: Prediction[] = [];
  let lossSum = 0;
  let classes = 0;
  let done = 0;
  for await (const batch of data.epoch(0)) {
    o.signal?.throwIfAborted();
    const { losses, labels, predicted, confidence, width } = scope(() =>
      noGrad(() => {
        const images = batch.images.to(device);
        const logits = maybeAutocast(o.autocast ?? null, device, () => model.run(images, new Context())).float();
        const target = hardLabels(batch.labels).to(device);
        const [top, winner] = logits.softmax(1).max(1, false);
        return {
          losses: F.crossEntropy(logits, target, { reduction: 'sum' }).item() as number,
          labels: target.tolist() as number[],
          predicted: winner.tolist() as number[],
          confidence: top.tolist() as number[],
          width: logits.shape[1]!,
        };
      }),
    );
    lossSum += losses;
    classes = width;
    for (const [i, index] of batch.indices.entries())
      predictions.push({ index, label: labels[i]!, predicted: predicted[i]!, confidence: confidence[i]! });
    batch.images.dispose();
    batch.labels.dispose();
    o.onBatch?.(++done, data.length);
    await breathe();
  }
  if (predictions.length === 0) throw new RangeError('nothing to evaluate: the data source gave no batch');
  // A label may exceed what the model can say when the data has more classes; it then gets a row of its own.
  const size = predictions.reduce((most, p) => Math.max(most, p.label + 1), classes);
  const confusion = confusionMatrix(
    predictions.map((p) => p.predicted),
    predictions.map((p) => p.label),
    size,
  );
  const correct = confusion.reduce((sum, row, i) => sum + row[i]!, 0);
  const samples = predictions.length;
  return { loss: lossSum / samples, accuracy: correct / samples, samples, correct, confusion, predictions };
}

/** Class numbers from class numbers or from soft targets. */
export const hardLabels = (labels: Tensor): Tensor => (labels.ndim === 2 ? labels.argmax(1) : labels);
