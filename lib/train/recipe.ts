/** From the options of a run to its optimizer and its learning rate at every step. */
import { assertOptions } from '../tensor/check.js';
import type { Tensor } from '../tensor/index.js';
import { Adam, AdamW, SGD, weightDecayGroups } from './optim.js';
import type { OptimizerOptions, RunLength, ScheduleOptions } from './options.js';
import { constant, cosine, step as stepDecay, type Schedule } from './schedule.js';

const DEFAULT_DECAY = 1e-4;
const DEFAULT_OPTIMIZER: OptimizerOptions = { kind: 'adamw', lr: 1e-3 };
const OPTIMIZER_OPTIONS = ['kind', 'lr', 'weightDecay', 'betas', 'eps', 'momentum', 'nesterov', 'rateFactor'];
const DEFAULT_SCHEDULE: ScheduleOptions = { kind: 'cosine' };

type Named = readonly (readonly [string, Tensor])[];

/** An optimizer whose groups share a rate but for their factors. */
export interface ScaledOptimizer {
  readonly optimizer: AdamW | Adam | SGD;
  /** Sets the rate that a group of factor 1 has. */
  readonly setRate: (lr: number) => void;
}

/** Builds the optimizer that the options name, with weight decay on tensors of more than one dimension. */
export function makeOptimizer(named: Named, options: OptimizerOptions = DEFAULT_OPTIMIZER): ScaledOptimizer {
  assertOptions(options, 'Trainer: optimizer', OPTIMIZER_OPTIONS);
  const { rateFactor, ...plain } = options;
  const { weightDecay = DEFAULT_DECAY } = plain;
  const parts = Array.from(byFactor(named, rateFactor), ([factor, members]) =>
    weightDecayGroups(members, weightDecay).map((group) => ({ factor, group })),
  ).flat();
  const optimizer = build(
    plain,
    parts.map(({ group }) => group),
  );
  const setRate = (lr: number): void => {
    for (const [i, { factor }] of parts.entries()) optimizer.groups[i]!.lr = lr * factor;
  };
  return { optimizer, setRate };
}

function build(options: OptimizerOptions, groups: ReturnType<typeof weightDecayGroups>): AdamW | Adam | SGD {
  const { kind, weightDecay: _inGroups, ...rest } = options;
  if (kind === 'sgd') return new SGD(groups, { momentum: 0.9, ...rest });
  if (kind === 'adam') return new Adam(groups, rest);
  if (kind === 'adamw') return new AdamW(groups, rest);
  throw new TypeError(`Trainer: unknown optimizer '${String(kind)}'; there are adamw, adam and sgd`);
}

/** The parameters by the factor of their rate, in the order in which the factors come up. */
function byFactor(named: Named, rateFactor: OptimizerOptions['rateFactor']): Map<number, Named> {
  if (rateFactor === undefined) return new Map([[1, named]]);
  const groups = new Map<number, (readonly [string, Tensor])[]>();
  for (const entry of named) {
    const factor = rateFactor(entry[0]);
    if (!(factor >= 0 && Number.isFinite(factor)))
      throw new RangeError(`Trainer: rateFactor must give a number from 0 on, gave ${String(factor)} for ${entry[0]}`);
    groups.set(factor, [...(groups.get(factor) ?? []), entry]);
  }
  return groups;
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
    optimizer: { weightDecay: DEFAULT_DECAY, ...optimizer, ...(optimizer.rateFactor && { rateFactor: 'a function' }) },
    schedule: typeof schedule === 'function' ? 'a function' : schedule,
  };
}
