/** What a task is: the loss of a batch, the score of a data set. The training loop and `evaluate` know no more of it. */
import type { Context, Module } from '../../nn/index.js';
import { autocast, type Device, type DType, type Tensor } from '../../tensor/index.js';
import type { Score } from '../events.js';
import type { TaskBatch, Batch } from '../options.js';

/** What training makes of a batch. */
export interface TrainStep {
  /** Scalar, mean over the samples of the batch; to back-propagate. */
  readonly loss: Tensor;
  /** Scalar without gradient: how many samples are right, in part where a sample has many answers; null: not measured. */
  readonly correct: Tensor | null;
}

/** How a model is run for a score. */
export interface Scoring {
  readonly device: Device;
  /** Mixed precision of the forward pass. */
  readonly autocast: Extract<DType, 'bfloat16'> | null;
}

/** Adds up the score of a data set. What it keeps of the batches stays on their device as far as possible. */
export interface Meter<B, S extends Score> extends Disposable {
  /** Runs the model, which is in evaluation mode, on a batch; called without gradients and inside a scope. */
  add(batch: B): void;
  /** @throws RangeError before the first `add` */
  result(): S;
}

/**
 * What is trained and scored. There are `classifyTask`, `segmentTask`, `detectTask`, `multiTask` and `videoTask`; one's own is an object
 * of this shape.
 */
export interface Task<B extends TaskBatch = Batch, S extends Score = Score> {
  readonly id: string;
  /** What decides about the steps, as JSON: a resumed run must have the same. */
  readonly settings: Readonly<Record<string, unknown>>;
  /** Loss of a batch, the auxiliary losses of the pass included; reads nothing back from the device. */
  step(model: Module, batch: B, device: Device): TrainStep;
  /** A meter for one pass over the data. */
  meter(model: Module, how: Scoring): Meter<B, S>;
  /** Frees the tensors of a batch. */
  free(batch: B): void;
}

/** Runs `fn` under autocast to `dtype` where one is given. */
export function maybeAutocast<T>(dtype: Extract<DType, 'bfloat16'> | null, device: string, fn: () => T): T {
  if (dtype === null) return fn();
  return autocast({ device: device.startsWith('cuda') ? 'cuda' : 'cpu', dtype }, fn);
}

/** A loss with those that modules and grafts have left in the context of the pass. */
export function withAuxiliary(loss: Tensor, ctx: Context): Tensor {
  return ctx.losses.reduce((sum, extra) => sum.add(extra), loss);
}
