/** Scoring a model on a data set. */
import { setImmediate as breathe } from 'node:timers/promises';
import type { Module } from '../nn/index.js';
import { noGrad, scope, type DType } from '../tensor/index.js';
import type { Score } from './events.js';
import type { BatchSource, TaskBatch } from './options.js';
import { classifyTask, type Evaluation } from './tasks/classify.js';
import type { Task } from './tasks/task.js';

/** What `evaluate` can be told. */
export interface EvaluateOptions {
  /** Mixed precision of the forward pass; default null. */
  readonly autocast?: Extract<DType, 'bfloat16'> | null;
  /** Ends the evaluation early: the promise rejects with the signal's reason. */
  readonly signal?: AbortSignal;
  /** Called after each batch with the number of batches done. */
  readonly onBatch?: (done: number, of: number) => void;
}

/**
 * The score of `model` on `data` (its epoch 0); without a task that of a classifier: accuracy, mean cross-entropy and
 * confusion matrix. Leaves the model in eval mode. The event loop runs between batches.
 *
 * @throws RangeError when the data has no batch
 */
export async function evaluate<B extends TaskBatch, S extends Score>(
  model: Module,
  data: BatchSource<B>,
  o: EvaluateOptions & { readonly task: Task<B, S> },
): Promise<S>;
export async function evaluate(model: Module, data: BatchSource, o?: EvaluateOptions): Promise<Evaluation>;
export async function evaluate(
  model: Module,
  data: BatchSource,
  { task = classifyTask(), ...o }: EvaluateOptions & { readonly task?: Task } = {},
): Promise<Score> {
  model.eval();
  const device = model.parameters()[0]?.device ?? 'cpu';
  using meter = task.meter(model, { device, autocast: o.autocast ?? null });
  let done = 0;
  for await (const batch of data.epoch(0)) {
    try {
      o.signal?.throwIfAborted();
      scope(() => noGrad(() => meter.add(batch)));
    } finally {
      task.free(batch);
    }
    done++;
    o.onBatch?.(done, data.length);
    await breathe();
  }
  if (done === 0) throw new RangeError('nothing to evaluate: the data source gave no batch');
  return meter.result();
}
