/**
 * Learning-rate schedules: pure functions from the step (0 for the first optimizer step) to a factor of the base rate.
 * All begin with an optional linear warm-up over `warmup` steps: step s < warmup has the factor (s + 1) / warmup, so that
 * no step is wasted at rate 0 and step `warmup - 1` is the first at full rate.
 */
import { z } from 'zod';
import { parseOptions } from '../models/options.js';

/** Factor of the base learning rate at a step. */
export type Schedule = (step: number) => number;

const count = z.int().nonnegative();

/** Runs `after` on the steps past the warm-up, counted from 0. */
function warmedUp(warmup: number, after: Schedule): Schedule {
  return (step) => (step < warmup ? (step + 1) / warmup : after(step - warmup));
}

const constantOptions = z.strictObject({ warmup: count.default(0) });

/** Always 1 after the warm-up. @param options.warmup steps, default 0 */
export function constant(options: z.input<typeof constantOptions> = {}): Schedule {
  const { warmup } = parseOptions(constantOptions, options, 'constant');
  return warmedUp(warmup, () => 1);
}

const stepOptions = z.strictObject({
  warmup: count.default(0),
  at: z.array(count).readonly(),
  factor: z.number().positive().default(0.1),
});

/**
 * factor^k, where k is how many of the steps in `at` have been reached: step s has k = #{a in at: a <= s}.
 *
 * @param options.at steps at which the rate is multiplied, counted from the start of the run (warm-up included)
 * @param options.factor default 0.1
 * @param options.warmup steps, default 0
 */
export function step(options: z.input<typeof stepOptions>): Schedule {
  const { warmup, at, factor } = parseOptions(stepOptions, options, 'step');
  return warmedUp(warmup, (s) => factor ** at.filter((a) => a <= s + warmup).length);
}

const cosineOptions = z.strictObject({
  warmup: count.default(0),
  total: z.int().positive(),
  floor: z.number().min(0).max(1).default(0),
});

/**
 * floor + (1 - floor) (1 + cos(π t)) / 2 with t = (s - warmup) / (total - warmup): 1 at the end of the warm-up, `floor` at
 * step `total` (the first that is not taken) and from then on. Loshchilov & Hutter 2017, arXiv 1608.03983, equation 5.
 *
 * @param options.total steps of the whole run, warm-up included
 * @param options.warmup steps, default 0; at most `total`
 * @param options.floor factor at the end, default 0
 */
export function cosine(options: z.input<typeof cosineOptions>): Schedule {
  const { warmup, total, floor } = parseOptions(cosineOptions, options, 'cosine');
  if (warmup > total) throw new RangeError(`cosine: warmup ${warmup} is longer than the whole run of ${total} steps`);
  const length = Math.max(total - warmup, 1);
  return warmedUp(warmup, (s) => floor + ((1 - floor) * (1 + Math.cos(Math.PI * Math.min(s / length, 1)))) / 2);
}
