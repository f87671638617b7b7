/** What a `Trainer` is given. */
import type { DType, Tensor } from '../tensor/index.js';
import type { Module, Parameter } from '../nn/index.js';
import type { TrainListener } from './events.js';
import type { Task } from './tasks/task.js';

/** What the batches of all tasks have. */
export interface TaskBatch {
  /** Places of the samples in the data set. */
  readonly indices: readonly number[];
  /** Its number within the epoch, where the source may leave batches out. Default: they are counted. */
  readonly index?: number;
}

/** One batch of images with their classes. Whoever receives it frees its tensors. */
export interface Batch extends TaskBatch {
  /** [B, 3, H, W], normalized. */
  readonly images: Tensor;
  /** Class numbers, int64 [B]; or soft targets, float [B, classes]. */
  readonly labels: Tensor;
}

/** Where batches come from: a `DataLoader`, or anything with its shape. */
export interface BatchSource<B extends TaskBatch = Batch> {
  /** Batches per epoch. */
  readonly length: number;
  /** Images, or other samples, per epoch. */
  readonly samples: number;
  /**
   * The batches of epoch `epoch` (from 0) from batch `from` on. The same epoch must always give the same batches: exact
   * resume rests on it.
   */
  epoch(epoch: number, from?: number): AsyncIterable<B>;
  /** A name for image `index`, for messages. */
  describe?(index: number): string;
}

/** The part of an `Adapter` that training needs. */
export interface Trainable {
  /** The trained parameters by name. */
  namedParameters(): [string, Parameter][];
  /** The adapter's own buffers, where it has some. */
  namedBuffers?(): [string, Tensor][];
}

/** Optimizer by name. Weight decay falls on tensors of more than one dimension only, as is usual. */
export type OptimizerOptions = NamedOptimizer & {
  /**
   * Factor of the learning rate of a parameter, by its name: 0.1 for a backbone that learns slower than its head. Default 1 for
   * all.
   */
  readonly rateFactor?: (name: string) => number;
};

type NamedOptimizer =
  | {
      readonly kind: 'adamw' | 'adam';
      readonly lr: number;
      /** Default 1e-4. */
      readonly weightDecay?: number;
      /** Default [0.9, 0.999]. */
      readonly betas?: readonly [number, number];
      /** Default 1e-8. */
      readonly eps?: number;
    }
  | {
      readonly kind: 'sgd';
      readonly lr: number;
      /** Default 1e-4. */
      readonly weightDecay?: number;
      /** Default 0.9. */
      readonly momentum?: number;
      /** Default false. */
      readonly nesterov?: boolean;
    };

/** The length of a run, for schedules. */
export interface RunLength {
  readonly epochs: number;
  readonly stepsPerEpoch: number;
  readonly steps: number;
}

/**
 * Learning rate over the run, as a factor per optimizer step: linear warm-up over `warmupEpochs` (default 0), then
 * cosine to `floor` (a factor, default 0), constant, or multiplied by `factor` (default 0.1) at the start of each epoch in `at`. A
 * function receives the length of the run and returns step (from 0) to factor.
 */
export type ScheduleOptions =
  | { readonly kind: 'cosine'; readonly warmupEpochs?: number; readonly floor?: number }
  | { readonly kind: 'constant'; readonly warmupEpochs?: number }
  | { readonly kind: 'step'; readonly warmupEpochs?: number; readonly at: readonly number[]; readonly factor?: number }
  | ((run: RunLength) => (step: number) => number);

/** Loss: cross-entropy, or a function of logits [B, classes] and labels that returns a scalar, the mean over the batch. */
export type LossOptions =
  { /** Default 0. */ readonly labelSmoothing?: number } | ((logits: Tensor, labels: Tensor) => Tensor);

/** Names of what a trainer can be told. */
export const TRAINER_OPTIONS = [
  ...['model', 'adapter', 'train', 'val', 'task', 'epochs', 'optimizer', 'schedule', 'loss', 'accumulate', 'clip'],
  ...['autocast', 'bnStats', 'backboneMode', 'seed', 'outDir', 'resume', 'saveEvery', 'logEvery', 'signal', 'onEvent'],
] as const satisfies readonly (keyof TrainerOptions)[];

/** What a trainer can be told; all but the first four have defaults. */
export interface TrainerOptions<B extends TaskBatch = Batch> {
  readonly model: Module;
  /** Trains the adapter's parameters; without it, every parameter of the model that requires a gradient. */
  readonly adapter?: Trainable;
  readonly train: BatchSource<B>;
  readonly val?: BatchSource<B>;
  /** What is trained and scored. Default: classification with `loss`. */
  readonly task?: Task<B>;
  readonly epochs: number;
  /** Default AdamW, lr 1e-3. */
  readonly optimizer?: OptimizerOptions;
  /** Default cosine without warm-up. */
  readonly schedule?: ScheduleOptions;
  /** Of classification; other tasks bring their own. */
  readonly loss?: LossOptions;
  /** Batches per optimizer step, weighted by their sizes: as one large batch, but for BatchNorm's statistics. Default 1. */
  readonly accumulate?: number;
  /** Largest joint L2 norm of the gradients; null (default) for no clipping. */
  readonly clip?: number | null;
  /** Mixed precision for forward and loss. Default null: everything in the model's dtype. */
  readonly autocast?: Extract<DType, 'bfloat16'> | null;
  /** `frozen` (default) keeps every BatchNorm of the model in eval mode; `update` lets batches move the statistics. */
  readonly bnStats?: 'frozen' | 'update';
  /** `eval` keeps dropout and stochastic depth of the backbone off; grafts and head train as ever. Default `train`. */
  readonly backboneMode?: 'train' | 'eval';
  /** Seeds everything random in the steps (dropout); the order of the data is the data source's. Default 0. */
  readonly seed?: number;
  /** Receives `last.safetensors` (the state of the run), `best.safetensors` and `log.jsonl`. Without it nothing is written. */
  readonly outDir?: string;
  /** Goes on with the run in `outDir`, if there is one to go on with. Default false: begins anew. */
  readonly resume?: boolean;
  /** Saves the state every so many optimizer steps, besides after each epoch. Default null. */
  readonly saveEvery?: number | null;
  /** Reads and reports the loss every so many optimizer steps. Default 10. */
  readonly logEvery?: number;
  /** Raised (Ctrl-C, see `onInterrupt`): the run saves its state and ends with `interrupted`. */
  readonly signal?: AbortSignal;
  readonly onEvent?: TrainListener;
}
