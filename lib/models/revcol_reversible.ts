/**
 * Running columns without keeping what lies between them: the backward pass recomputes each column's inputs from its
 * outputs, c_i = (c_i' - L_i) / alpha_i, from the last column to the first. Cai et al., ICLR 2023, arXiv 2212.11696,
 * section 2.1 and appendix; the official code keeps every column's outputs, this one only the last column's.
 */
import { replayer, restoreRandom, randomStates, tensorsOf, trainableOf } from '../nn/checkpointing.js';
import type { Context, Parameter } from '../nn/index.js';
import {
  applyFunction,
  aten,
  type CustomFunction,
  type DType,
  isGradEnabled,
  scope,
  type Tensor,
} from '../tensor/index.js';
import { GradientSums, type RandomState, readRandom, stepBack, sum } from './revcol_backward.js';
import type { Column, Levels } from './revcol_blocks.js';

/** What comes out of some columns. */
export interface ColumnsOutput {
  /** The levels of the last column. */
  readonly levels: Levels;
  /** The coarsest level of every column that was asked for, by the column's index. */
  readonly taps: ReadonlyMap<number, Tensor>;
}

/**
 * Levels are carried from column to column in a wider dtype than the model computes in: what rounding of the sums would
 * lose is then still there when they are undone, and each level is recomputed from nearly the same bits.
 */
function widerThan(dtype: DType): DType {
  return dtype === 'float32' || dtype === 'float64' ? 'float64' : 'float32';
}

/**
 * By how much recomputing may amplify rounding before the levels of a column are kept after all, as the official code
 * keeps those of every column. An inversion divides by alpha, so errors grow by 1 / min |alpha| from column to column;
 * an alpha of 0 cannot be inverted at all.
 */
const MOST_AMPLIFICATION = { float64: 1e6, float32: 1e3 };

/** How columns are run. */
export interface ColumnsOptions {
  /** Levels of the column before the first; null (default) when there is none. */
  readonly start?: Levels | null;
  /** Indices of the columns whose coarsest level is wanted. Default: none. */
  readonly wanted?: ReadonlySet<number>;
  /** Whether the backward pass recomputes what lies between the columns. Default false. */
  readonly reversible?: boolean;
}

/**
 * Runs columns one after the other on the stem's map x. The stored factors alpha are first brought to a magnitude of at
 * least 1e-3, as the official code does.
 *
 * Reversibly, memory does not grow with the number of columns; outputs and gradients are the same up to rounding, also
 * where stem or factors are frozen. Columns in front of the first trained tensor record nothing. Where a graft carries
 * tensors from site to site through the context, everything is recorded after all.
 */
export function runColumns(
  columns: readonly Column[],
  x: Tensor,
  ctx: Context,
  { start = null, wanted = new Set(), reversible: isReversible = false }: ColumnsOptions = {},
): ColumnsOutput {
  for (const column of columns) column.clampAlphas();
  const result = isReversible ? runReversibly(columns, x, start, ctx, wanted) : null;
  return result ?? runPlainly(columns, x, start, ctx, wanted);
}

/** Everything recorded. */
function runPlainly(
  columns: readonly Column[],
  x: Tensor,
  start: Levels | null,
  ctx: Context,
  wanted: ReadonlySet<number>,
): ColumnsOutput {
  const taps = new Map<number, Tensor>();
  let levels = start;
  columns.forEach((column, t) => {
    levels = column.compute(x, levels, ctx);
    // The first column's factors meet no level. Their gradient is zero, not absent: weight decay goes on.
    if (t === 0 && start === null) levels = withZeroGradients(column, levels);
    if (wanted.has(t)) taps.set(t, levels[3]);
  });
  if (levels === null) throw new RangeError('RevCol: there is no column to run');
  return { levels, taps };
}

function withZeroGradients(column: Column, [c0, c1, c2, c3]: Levels): Levels {
  const trained = column.alphas.filter((alpha) => alpha.requiresGrad);
  if (!isGradEnabled() || trained.length === 0) return [c0, c1, c2, c3];
  const zeros = trained.map((alpha) => alpha.sum().mul(0));
  return [c0, c1, c2, c3.add(aten.stack(zeros).sum())];
}

/** null where the columns must be recorded: without a graph, or with tensors in the context that belong to one. */
function runReversibly(
  columns: readonly Column[],
  x: Tensor,
  start: Levels | null,
  ctx: Context,
  wanted: ReadonlySet<number>,
): ColumnsOutput | null {
  if (!isGradEnabled() || [...tensorsOf(ctx)].some((tensor) => tensor.requiresGrad)) return null;
  const isInputTrained = [x, ...(start ?? [])].some((tensor) => tensor.requiresGrad);
  const first = isInputTrained ? 0 : columns.findIndex((column) => trainableOf(column).length > 0);
  if (first < 0) return null;
  // What lies in front of everything that is trained is not part of the graph, so it needs no inversion.
  const before = first > 0 ? runPlainly(columns.slice(0, first), x, start, ctx, wanted) : null;
  const entry = before ? before.levels : start;

  const rest = columns.slice(first);
  const parameters = [...new Set(rest.flatMap(trainableOf))];
  const inputs = [x, ...(entry ?? []), ...parameters];
  const taps = rest.map((_, t) => t).filter((t) => t < rest.length - 1 && wanted.has(t + first));
  const pass: FirstPass = { isReplayable: true };
  const random = randomStates(x.device);
  const plan = { columns: rest, hasStart: entry !== null, parameters, taps, pass };
  const outputs = applyFunction(reversible(plan, inputs, ctx), inputs) as Tensor[];
  if (!pass.isReplayable) {
    restoreRandom(x.device, random);
    return null;
  }
  const narrow = outputs.slice(0, 4 + taps.length).map((level) => level.to(x.dtype));
  const [c0, c1, c2, c3, ...tapped] = narrow as [Tensor, Tensor, Tensor, Tensor, ...Tensor[]];
  const found = new Map([
    ...(before?.taps ?? []),
    ...taps.map((t, i): [number, Tensor] => [t + first, tapped[i] as Tensor]),
  ]);
  if (wanted.has(columns.length - 1)) found.set(columns.length - 1, c3);
  return { levels: [c0, c1, c2, c3], taps: found };
}

interface FirstPass {
  /** Whether the columns left nothing in the context that the backward pass would have to know. */
  isReplayable: boolean;
}

interface Plan {
  readonly columns: readonly Column[];
  /** Whether levels enter the first column. */
  readonly hasStart: boolean;
  readonly parameters: readonly Parameter[];
  readonly taps: readonly number[];
  readonly pass: FirstPass;
}

/** Indices of the columns whose inputs must be kept because inverting up to them would amplify rounding too much. */
function keptInputs(columns: readonly Column[], hasStart: boolean): Set<number> {
  const kept = new Set<number>();
  if (columns.length < 2 && !hasStart) return kept;
  const smallest = scope(() => {
    const all = columns.map((column) => aten.cat(column.alphas.map((a) => a.detach().abs().flatten())).amin());
    return aten.stack(all).tolist() as number[];
  });
  const limit =
    widerThan(columns[0]?.alpha0.dtype ?? 'float32') === 'float64'
      ? MOST_AMPLIFICATION.float64
      : MOST_AMPLIFICATION.float32;
  let amplification = 1;
  for (let t = columns.length - 1; t > (hasStart ? -1 : 0); t--) {
    amplification /= smallest[t] ?? 0;
    if (amplification <= limit) continue;
    kept.add(t);
    amplification = 1;
  }
  // The levels that enter are inputs of the function, and so are kept anyway.
  kept.delete(0);
  return kept;
}

/** The function of `inputs` (x, levels that enter, parameters) that is differentiated by running backwards. */
function reversible(plan: Plan, inputs: readonly Tensor[], ctx: Context): CustomFunction {
  const { columns, hasStart, parameters, taps, pass } = plan;
  const entry = ctx.fork();
  const needsGrad = inputs.map((input) => input.requiresGrad);
  const x = inputs[0] as Tensor;
  const replay = replayer(x.device);
  const kept = [...keptInputs(columns, hasStart)].sort((a, b) => a - b);
  const random: RandomState[][] = [];

  const forward: CustomFunction['forward'] = (stem, ...rest) => {
    const start = hasStart ? (rest.slice(0, 4) as unknown as Levels) : null;
    const held = new Set<Tensor>(start ?? []);
    const tapped: Tensor[] = [];
    const keptLevels: Tensor[] = [];
    let levels = start;
    columns.forEach((column, t) => {
      const old = levels;
      if (kept.includes(t) && old) {
        keptLevels.push(...old);
        for (const level of old) held.add(level);
      }
      const states: RandomState[] = [];
      random.push(states);
      levels = scope(() => computeFirst(column, stem, old, entry, states, pass));
      if (taps.includes(t)) {
        tapped.push(levels[3]);
        held.add(levels[3]);
      }
      for (const level of old ?? []) if (!held.has(level)) level.dispose();
    });
    // A tensor that stands at two places is two outputs to autograd.
    const again = keptLevels.map((level) => (tapped.includes(level) ? level.alias() : level));
    return [...(levels as unknown as Levels), ...tapped, ...again];
  };

  const backward: CustomFunction['backward'] = (gradOutputs, saved, outputs) => {
    const stem = saved[0] as Tensor;
    const start = hasStart ? (saved.slice(1, 5) as unknown as Levels) : null;
    const savedInputs = (t: number): Levels | null => {
      const place = kept.indexOf(t);
      if (t === 0) return start;
      return place < 0
        ? null
        : (outputs.slice(4 + taps.length + 4 * place, 8 + taps.length + 4 * place) as unknown as Levels);
    };
    return scope(() => {
      const before = randomStates(stem.device);
      const total = new GradientSums();
      let levels = outputs.slice(0, 4) as unknown as Levels;
      let grads: (Tensor | null)[] = gradOutputs.slice(0, 4);
      try {
        for (let t = columns.length - 1; t >= 0; t--) {
          const column = columns[t] as Column;
          const tap = taps.indexOf(t);
          if (tap >= 0) grads[3] = sum(grads[3] ?? null, gradOutputs[4 + tap] ?? null);
          const isFirst = t === 0 && !hasStart;
          const states = random[t] ?? [];
          const step = { column, stem, levels, grads, inputs: savedInputs(t), isFirst, states, entry, replay };
          const result = scope(() => stepBack(step, total, needsGrad[0] ?? false));
          // What this column was recomputed to, and its gradients, are needed no longer.
          if (t < columns.length - 1) {
            for (const level of levels) if (!outputs.includes(level)) level.dispose();
            for (const gradient of grads) if (gradient && !gradOutputs.includes(gradient)) gradient.dispose();
          }
          ({ grads } = result);
          levels = result.levels ?? levels;
        }
      } finally {
        restoreRandom(stem.device, before);
      }
      const starts = hasStart ? grads.map((g, i) => (needsGrad[1 + i] ? g : null)) : [];
      return [total.get(stem), ...starts, ...parameters.map((parameter) => total.get(parameter))];
    });
  };

  return { name: 'ReversibleColumns', forward, backward };
}

/**
 * `column.compute` for the first time, levels in the wider dtype: notes the random states, and whether the context
 * gained tensors.
 */
function computeFirst(
  column: Column,
  x: Tensor,
  old: Levels | null,
  entry: Context,
  states: RandomState[],
  pass: FirstPass,
): Levels {
  const ctx = entry.fork();
  const narrow = old && (old.map((level) => level.to(x.dtype)) as unknown as Levels);
  const wide = widerThan(x.dtype);
  const out: Tensor[] = [];
  let down = x;
  column.levels.forEach((level, i) => {
    states.push(readRandom(x));
    const own = level.compute(down, column.upsOf(i, narrow), ctx).to(wide);
    const sum = old
      ? (old[i] as Tensor)
          .to(wide)
          .mul(column.alphas[i] as Parameter)
          .add_(own)
      : own;
    out.push(sum);
    down = sum.to(x.dtype);
  });
  const known = tensorsOf(entry);
  if ([...tensorsOf(ctx)].some((tensor) => !known.has(tensor))) pass.isReplayable = false;
  return out as unknown as Levels;
}
