/** Optimizers, schedules, the training loop, and what it shows and writes. */
export { lineChart, scatterChart, type ChartOptions, type Series } from './charts.js';
export { evaluate, type EvaluateOptions } from './evaluate.js';
export { headline } from './events.js';
export type {
  EndEvent,
  EpochEvent,
  EpochRecord,
  SaveEvent,
  Score,
  StartEvent,
  StepEvent,
  TrainEvent,
  TrainListener,
  ValidateEvent,
} from './events.js';
export {
  measureLocalDimension,
  type DimensionRun,
  type LocalDimension,
  type LocalDimensionOptions,
} from './intrinsic_dimension.js';
export { INTERRUPTED, onInterrupt, type Interrupt } from './interrupt.js';
export { readJsonl } from './log.js';
export {
  Adam,
  AdamW,
  clipGradNorm,
  SGD,
  weightDecayGroups,
  type AdamOptions,
  type OptimizerParams,
  type OptimizerState,
  type ParamGroup,
  type SGDOptions,
  type WeightDecayRule,
} from './optim.js';
export type {
  Batch,
  BatchSource,
  LossOptions,
  OptimizerOptions,
  RunLength,
  ScheduleOptions,
  TaskBatch,
  Trainable,
  TrainerOptions,
} from './options.js';
export { progress, type ProgressOptions } from './progress.js';
export { htmlReport, imageDataUri, type Pixels, type Report, type ReportRun, type ReportSample } from './report.js';
export { constant, cosine, step, type Schedule } from './schedule.js';
export * from './tasks/index.js';
export { Trainer, type FitResult } from './trainer.js';
export { NonFiniteLossError } from './watch.js';
