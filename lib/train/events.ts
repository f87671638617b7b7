/** What a training run tells whoever listens (`onEvent`): the progress bar, a test, a notebook. */

/** How good a model is on `samples` images or clips. What a task does not measure is NaN. */
export interface Score {
  /** Mean loss. */
  readonly loss: number;
  /** Share of right answers, 0 to 1: top-1 for classes, of the pixels that count for segmentation. */
  readonly accuracy: number;
  readonly samples: number;
  /** What else the task measures, from 0 to 1, by name; what decides which epoch is best comes first. Default: the accuracy decides. */
  readonly metrics?: Readonly<Record<string, number>>;
}

/** The figure that decides which epoch is best, and its name. */
export function headline({ accuracy, metrics = {} }: Score): { readonly name: string; readonly value: number } {
  const [[name, value] = ['acc', accuracy]] = Object.entries(metrics);
  return { name, value };
}

/** One epoch of a run. */
export interface EpochRecord {
  /** Counted from 1. */
  readonly epoch: number;
  /** Optimizer steps done by its end. */
  readonly step: number;
  /** Learning rate of its last step. */
  readonly lr: number;
  readonly train: Score;
  readonly val: Score | null;
}

/** Once, before the first step. */
export interface StartEvent {
  readonly type: 'start';
  readonly epochs: number;
  readonly stepsPerEpoch: number;
  /** Optimizer steps already done: 0, or more in a resumed run. */
  readonly step: number;
  readonly samples: number;
  readonly trainable: number;
}

/** Every `logEvery` optimizer steps, and after the last step of an epoch: scores over the steps since the last one. */
export interface StepEvent {
  readonly type: 'step';
  /** Counted from 1. */
  readonly epoch: number;
  /** Optimizer steps done since the start of the run, and how many there will be. */
  readonly step: number;
  readonly steps: number;
  readonly loss: number;
  readonly accuracy: number;
  readonly lr: number;
  readonly imagesPerSecond: number;
  /** Estimate for the rest of the run, validation included as far as it has been seen. */
  readonly secondsLeft: number;
}

/** During validation, after each batch. */
export interface ValidateEvent {
  readonly type: 'validate';
  readonly epoch: number;
  readonly batch: number;
  readonly batches: number;
}

/** After each epoch, its validation included. */
export interface EpochEvent extends EpochRecord {
  readonly type: 'epoch';
  /** Best so far: by validation accuracy (or what the task has in its place), or by training loss when there is no validation set. */
  readonly isBest: boolean;
  /** Of this epoch, in this process. */
  readonly seconds: number;
}

/** After the state of the run has reached the disk. */
export interface SaveEvent {
  readonly type: 'save';
  readonly path: string;
  readonly step: number;
}

/** Once, when the run is over or has been interrupted. */
export interface EndEvent {
  readonly type: 'end';
  readonly step: number;
  readonly interrupted: boolean;
}

/** What a trainer tells its listener. */
export type TrainEvent = StartEvent | StepEvent | ValidateEvent | EpochEvent | SaveEvent | EndEvent;
/** What is told of a training; it must not throw. */
export type TrainListener = (event: TrainEvent) => void;
