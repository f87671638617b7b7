/** From the options of a run to its optimizer and its learning rate at every step. */
import { assertOptions } from '../tensor/check.js';
import type { Tensor } from '../tensor/index.js';
import { Adam, AdamW, SGD, weightDecayGroups } from './optim.js';
import type { OptimizerOptions, RunLength, ScheduleOptions } from './options.js';
import { constant, cosine, step as stepDecay, type Schedule } from './schedule.js';

const DEFAULT_DECAY = 1e-4;
const DEFAULT_OPTIMIZER: OptimizerOptions = { kind: 'adamw', lr: 1e-3 };
const OPTIMIZER_OPTIONS = ['kind', 'lr', 'weightDecay', 'betas', 'eps', 'momentum', 'nesterov'];
const DEFAULT_SCHEDULE: ScheduleOptions = { kind: 'cosine' };

/** Builds the optimizer that the options name, with weight decay on tensors of more than one dimension. */
export function makeOptimizer(
  named: readonly (readonly [string, Tensor])[],
  options: OptimizerOptions = DEFAULT_OPTIMIZER,
): AdamW | Adam | SGD {
  assertOptions(options, 'Trainer: optimizer', OPTIMIZER_OPTIONS);
  const { kind, weightDecay = DEFAULT_DECAY, ...rest } = options;
  const groups = weightDecayGroups(named, weightDecay);
  if (kind === 'sgd') return new SGD(groups, { momentum: 0.9, ...rest });
  if (kind === 'adam') return new Adam(groups, rest);
  if (kind === 'adamw') return new AdamW(groups, rest);
  throw new TypeError(`Trainer: unknown optimizer '${String(kind)}'; there are adamw, adam and sgd`);
}

/** The base learning rate of the options. */
export const baseRate = (options: OptimizerOptions = DEFAULT_OPTIMIZER): number => options.lr;

/** Step (from 0) to learning rate. */
export function learningRates(
  run: RunLength,
  optimizer: OptimizerOptions | undefined,
  schedule: ScheduleOptions | undefined,
): (step: number) => number {
  const factor = makeSchedule(run, schedule ?? DEFAULT_SCHEDULE);
  const base = baseRate(optimizer);
  return (step) => base * factor(step);
}

function makeSchedule(run: RunLength, options: ScheduleOptions): Schedule {
  if (typeof options === 'function') return options(run);
  assertOptions(options, 'Trainer: schedule', ['kind', 'warmupEpochs', 'floor', 'at', 'factor']);
  const inSteps = (epochs: number): number => Math.round(epochs * run.stepsPerEpoch);
  const warmup = Math.min(inSteps(options.warmupEpochs ?? 0), run.steps);
  switch (options.kind) {
    case 'cosine':
      return cosine({ warmup, total: run.steps, floor: options.floor ?? 0 });
    case 'constant':
      return constant({ warmup });
    case 'step':
      return stepDecay({ warmup, at: options.at.map(inSteps), factor: options.factor ?? 0.1 });
  }
}

/** The options that decide about the steps, as plain data, for the check that a resumed run is the same run. */
export function describeRecipe(
  optimizer: OptimizerOptions = DEFAULT_OPTIMIZER,
  schedule: ScheduleOptions = DEFAULT_SCHEDULE,
): Record<string, unknown> {
  return {
    optimizer: { weightDecay: DEFAULT_DECAY, ...optimizer },
    schedule: typeof schedule === 'function' ? 'a function' : schedule,
  };
}
