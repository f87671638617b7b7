/**
 * Checks golden cases as shared/golden/README.md defines it: float32, names strict both ways, relative L2 errors of
 * outputs and gradients against the case's tolerances. Used by the tests and by `npm run verify`.
 */
import { existsSync } from 'node:fs';
import { basename, join } from 'node:path';
import { readSafetensors } from '../../lib/checkpoint/index.js';
import { Parameter } from '../../lib/nn/index.js';
import { isFloatingPoint, noGrad, scope, type Tensor, withDefaults } from '../../lib/tensor/index.js';
import { builders } from './builders/index.js';
import { type Built, type Builder, type Entry, Unavailable, UnknownCase } from './builder.js';
import { configText, type CountsRow, type GoldenCase, readCase } from './case.js';

/** What became of one case or one row. */
export interface Verdict {
  readonly name: string;
  /** Largest relative L2 error over the outputs; NaN when nothing was compared. */
  readonly forward: number;
  /** Largest relative L2 error over the gradients; NaN when nothing was compared. */
  readonly grad: number;
  readonly tolerance: GoldenCase['tolerance'] | null;
  /** What is wrong, in words; empty when the case passes. */
  readonly problems: readonly string[];
  /** Why nothing was checked; null when something was. */
  readonly skipped: string | null;
}

const ZERO_GRADIENT = 1e-4;

const MERGED = 'merged.safetensors';

/** Elements as numbers, whatever the dtype; a float16 or bfloat16 tensor is read through float32. */
function numbers(tensor: Tensor): ArrayLike<number | bigint> {
  const readable = tensor.dtype === 'float16' || tensor.dtype === 'bfloat16' ? tensor.to('float32') : tensor;
  return readable.detach().data();
}

function norm(tensor: Tensor): number {
  let sum = 0;
  const values = numbers(tensor);
  for (let i = 0; i < values.length; i++) sum += Number(values[i]) ** 2;
  return Math.sqrt(sum);
}

/** norm(ours - golden) / norm(golden) in float64; Infinity when shapes or the places of NaN differ. Golden zeros: the absolute norm. */
export function relativeError(ours: Tensor, golden: Tensor): number {
  if (ours.shape.join() !== golden.shape.join()) return Infinity;
  const [a, b] = [numbers(ours), numbers(golden)];
  let difference = 0;
  let size = 0;
  for (let i = 0; i < b.length; i++) {
    const x = Number(a[i]);
    const y = Number(b[i]);
    if (Number.isNaN(x) !== Number.isNaN(y)) return Infinity;
    if (Number.isNaN(y) || x === y) {
      size += Number.isNaN(y) || !Number.isFinite(y) ? 0 : y * y;
      continue;
    }
    if (!Number.isFinite(x) || !Number.isFinite(y)) return Infinity;
    difference += (x - y) ** 2;
    size += y * y;
  }
  return Math.sqrt(difference) / (size > 0 ? Math.sqrt(size) : 1);
}

/** Tensors whose names start with `prefix.`, without it. */
function withPrefix(tensors: ReadonlyMap<string, Tensor>, prefix: string): Map<string, Tensor> {
  const found = [...tensors].filter(([name]) => name.startsWith(`${prefix}.`));
  return new Map(found.map(([name, tensor]) => [name.slice(prefix.length + 1), tensor]));
}

function readTensors(file: string): ReadonlyMap<string, Tensor> {
  return existsSync(file) ? readSafetensors(file).tensors : new Map<string, Tensor>();
}

function shown({ tensor, view }: Entry, of: Tensor = tensor): Tensor {
  return view ? view(of) : of;
}

/** Gathers the largest errors and everything that is wrong. */
class Report {
  forward = NaN;
  grad = NaN;
  readonly problems: string[] = [];
  skipped: string | null = null;

  compare(kind: 'forward' | 'grad', name: string, ours: Tensor, golden: Tensor, tolerance: number): void {
    const isExact = !isFloatingPoint(golden.dtype);
    const error = relativeError(ours, golden);
    this[kind] = Number.isNaN(this[kind]) ? error : Math.max(this[kind], error);
    if (error <= (isExact ? 0 : tolerance)) return;
    const shapes =
      ours.shape.join() === golden.shape.join()
        ? ''
        : ` (shape [${ours.shape.join(', ')}], golden [${golden.shape.join(', ')}])`;
    this.problems.push(`${name}: relative error ${error.toExponential(2)}${shapes}`);
  }

  names(what: string, ours: Iterable<string>, golden: Iterable<string>): void {
    const [a, b] = [new Set(ours), new Set(golden)];
    const missing = [...b].filter((name) => !a.has(name));
    const extra = [...a].filter((name) => !b.has(name));
    if (missing.length > 0) this.problems.push(`${what}: we lack ${missing.join(', ')}`);
    if (extra.length > 0) this.problems.push(`${what}: the reference lacks ${extra.join(', ')}`);
  }
}

/** Copies the golden weights into the model. False when names or shapes do not agree. */
function load(built: Built, weights: ReadonlyMap<string, Tensor>, report: Report, file: string): boolean {
  report.names(`names of ${file}`, built.state.keys(), weights.keys());
  for (const [name, golden] of weights) {
    const entry = built.state.get(name);
    if (entry === undefined) continue;
    const ours = shown(entry);
    if (ours.shape.join() !== golden.shape.join()) {
      report.problems.push(`${name} of ${file} is [${golden.shape.join(', ')}], ours [${ours.shape.join(', ')}]`);
    } else if (report.problems.length === 0) {
      noGrad(() => ours.copy_(golden));
    }
  }
  return report.problems.length === 0;
}

function compareOutputs(
  built: Built,
  ours: Readonly<Record<string, Tensor>>,
  golden: ReadonlyMap<string, Tensor>,
  report: Report,
  tolerance: number,
): void {
  for (const [name, expected] of golden) {
    // An output that the model does not compute is a buffer after the forward pass.
    const buffer = built.state.get(name.replace(/^buffer_after\./, ''));
    const value = Object.hasOwn(ours, name) ? ours[name] : buffer && shown(buffer);
    if (value === undefined)
      report.problems.push(`output ${name}: the builder computes only ${Object.keys(ours).join(', ')}`);
    else report.compare('forward', name, value, expected, tolerance);
  }
}

/** Back-propagates the sum of output * cotangent. */
function propagate(ours: Readonly<Record<string, Tensor>>, cotangents: ReadonlyMap<string, Tensor>): void {
  const terms = Object.entries(ours).flatMap(([name, output]) => {
    const cotangent = cotangents.get(name);
    return cotangent && output.requiresGrad ? [output.mul(cotangent.to(output.dtype)).sum()] : [];
  });
  if (terms.length > 0) terms.reduce((sum, term) => sum.add(term)).backward();
}

function compareGradients(
  golden: GoldenCase,
  built: Built,
  inputs: ReadonlyMap<string, Tensor>,
  io: ReadonlyMap<string, Tensor>,
  report: Report,
): void {
  const tolerance = golden.tolerance.grad ?? golden.tolerance.forward;
  const grads = withPrefix(io, 'grad');
  const inputGrads = withPrefix(io, 'grad_input');
  const without = new Set(golden.without_gradient ?? []);
  const trainable = golden.trainable ?? [...grads.keys()];
  const all = [...grads.values(), ...inputGrads.values()];
  const limit = ZERO_GRADIENT * Math.max(0, ...all.map(norm));

  for (const name of new Set([...trainable, ...grads.keys()])) {
    const entry = built.state.get(name);
    if (entry === undefined) {
      report.problems.push(`gradient of ${name}: we have no such parameter`);
      continue;
    }
    const grad = entry.tensor.grad && shown(entry, entry.tensor.grad);
    const expected = grads.get(name);
    const isZero = expected === undefined || (golden.zero_gradient ?? []).includes(name) || norm(expected) === 0;
    if (without.has(name) || isZero) {
      const size = grad ? norm(grad) : 0;
      if (size > limit)
        report.problems.push(`gradient of ${name} should be zero, its norm is ${size.toExponential(2)}`);
    } else if (grad) {
      report.compare('grad', `gradient of ${name}`, grad, expected, tolerance);
    } else {
      report.problems.push(`gradient of ${name}: ours has none`);
    }
  }
  for (const [name, expected] of inputGrads) {
    const grad = built.gradientOf?.(name, withPrefix(io, 'cotangent')) ?? inputs.get(name)?.grad;
    // An input that no output reads has zeros there and nothing here.
    if (!grad && norm(expected) === 0) continue;
    if (!grad) report.problems.push(`gradient of input ${name}: ours has none`);
    else report.compare('grad', `gradient of input ${name}`, grad, expected, tolerance);
  }
}

/** merged.safetensors: it must run in the plain backbone, and our own merge must give the same tensors. */
function checkMerged(
  golden: GoldenCase,
  builder: Builder,
  built: Built,
  inputs: ReadonlyMap<string, Tensor>,
  expected: ReadonlyMap<string, Tensor>,
  report: Report,
): void {
  // A case without the entry `merged` holds the changed tensors only; nothing is left over then.
  const { file, leftover } = golden.merged ?? { file: MERGED, leftover: [] };
  const tolerance = golden.tolerance.forward;
  const tensors = readTensors(join(golden.folder, file));
  if (!builder.buildMerged || !built.merge) {
    report.problems.push(`${file}: the builder of ${golden.system} cannot merge`);
    return;
  }
  const plain = builder.buildMerged(golden, new Set(tensors.keys()));
  setMode(plain, golden);
  const unchanged = golden.merged ? [] : [...readTensors(join(golden.folder, 'weights.safetensors'))];
  const whole = new Map([...unchanged.filter(([name]) => plain.state.has(name)), ...tensors]);
  if (!load(plain, whole, report, file)) return;
  compareOutputs(
    plain,
    noGrad(() => plain.run(inputs)),
    expected,
    report,
    tolerance,
  );

  const merged = built.merge();
  report.names(`leftover of the merge`, merged.leftover, leftover);
  if (golden.merged) report.names(`names of our merge`, merged.state.keys(), tensors.keys());
  for (const [name, tensor] of tensors) {
    const ours = merged.state.get(name);
    if (ours) report.compare('forward', `merged ${name}`, ours, tensor, tolerance);
    else report.problems.push(`merged ${name}: our merge has no such tensor`);
  }
  compareOutputs(
    built,
    noGrad(() => built.run(inputs)),
    expected,
    report,
    tolerance,
  );
}

function setMode(built: Built, { mode }: GoldenCase): void {
  if (mode === 'train' && built.train) built.train();
  else built.module?.train(mode === 'train');
}

function run(golden: GoldenCase, builder: Builder, report: Report): void {
  const io = readTensors(join(golden.folder, 'io.safetensors'));
  const built = builder.build(golden);
  if (golden.mode !== 'function' || built.state.size > 0) {
    if (!load(built, readTensors(join(golden.folder, 'weights.safetensors')), report, 'weights.safetensors')) return;
  }
  const inputGrads = withPrefix(io, 'grad_input');
  const inputs = new Map(
    [...withPrefix(io, 'input')].map(([name, value]) => [
      name,
      inputGrads.has(name) ? value.clone().requiresGrad_() : value,
    ]),
  );
  if (golden.trainable) {
    const ours = [...built.state].filter(([, { tensor }]) => tensor instanceof Parameter && tensor.requiresGrad);
    report.names(
      'trainable parameters',
      ours.map(([name]) => name),
      golden.trainable,
    );
  }
  setMode(built, golden);
  const outputs = built.run(inputs);
  const buffers = Array.from(withPrefix(io, 'buffer_after'), ([name, t]): [string, Tensor] => [
    `buffer_after.${name}`,
    t,
  ]);
  const expected = new Map([...withPrefix(io, 'output'), ...buffers, ...(built.expected ?? [])]);
  if (expected.size === 0) report.problems.push('io.safetensors holds no output');
  compareOutputs(built, outputs, expected, report, golden.tolerance.forward);
  propagate(outputs, withPrefix(io, 'cotangent'));
  compareGradients(golden, built, inputs, io, report);
  if (golden.merged || existsSync(join(golden.folder, MERGED)))
    checkMerged(golden, builder, built, inputs, expected, report);
  for (const { tensor } of built.state.values()) tensor.dispose();
}

function builderOf(system: string): Builder {
  const builder = builders.get(system);
  if (!builder)
    throw new UnknownCase(`no builder knows the system '${system}'; there are ${[...builders.keys()].join(', ')}`);
  return builder;
}

/** Runs `body`; what it throws becomes a problem of the report. */
function guarded(report: Report, body: () => void): void {
  try {
    scope(body);
  } catch (error) {
    if (error instanceof Unavailable) {
      report.skipped = error.message;
      return;
    }
    report.problems.push(
      error instanceof Error
        ? error instanceof UnknownCase
          ? error.message
          : `${error.name}: ${error.message}`
        : String(error),
    );
  }
}

/** Checks one case folder. Never throws for what is wrong with the case; `problems` says it. */
export function checkCase(folder: string): Verdict {
  const report = new Report();
  let golden: GoldenCase | null = null;
  guarded(report, () => {
    golden = readCase(folder);
    run(golden, builderOf(golden.system), report);
  });
  const known = golden as GoldenCase | null;
  const name = known ? `${known.system}/${known.case}` : basename(folder);
  return {
    name,
    forward: report.forward,
    grad: report.grad,
    tolerance: known?.tolerance ?? null,
    problems: report.problems,
    skipped: report.skipped,
  };
}

const FIGURES = [
  'total_parameters',
  'trainable_parameters',
  'trainable_without_head',
  'tuning_module_parameters',
  'backbone_parameters',
  'plain_backbone_parameters',
  'visual_parameters',
  'text_parameters',
];

/** Multiply-accumulates by the names that rows give them, with what one of theirs stands for. */
const MACS: Readonly<Record<string, number>> = {
  macs_224: 1,
  macs_224_conv_linear_matmul: 1,
  gmacs: 1e9,
  gmacs_224: 1e9,
  gmacs_visual: 1e9,
  visual_gmacs_224_batch1: 1e9,
  gmacs_8x224_one_view: 1e9,
};

/** Decimals that a figure is written with: at least three, since zeros at the end are not. */
function decimalsOf(figure: number): number {
  return Math.max(3, Math.min(4, String(figure).split('.')[1]?.length ?? 0));
}

/**
 * Compares a count of multiply-accumulates, billions to the decimals (four at most) that rows give. A builder whose `macs_limit` is
 * 1 says that we compute the same in fewer than the measured code, never in more.
 */
function compareMacs(row: CountsRow, { macs, macs_limit }: Readonly<Record<string, unknown>>, report: Report): void {
  if (typeof macs !== 'number') return;
  for (const [figure, unit] of Object.entries(MACS)) {
    const expected = row[figure];
    if (typeof expected !== 'number') continue;
    const ours = macs / unit;
    if (macs_limit === 1 && ours < expected) continue;
    if (Math.abs(ours - expected) > (unit === 1 ? 0 : 0.6 * 10 ** -decimalsOf(expected)))
      report.problems.push(`${figure}: ours ${ours}, golden ${expected}`);
  }
}

/** Checks one row of a counts.json; the model is built on the meta device. */
export function checkCounts(row: CountsRow): Verdict {
  const report = new Report();
  guarded(report, () => {
    const builder = builderOf(row.system);
    if (!builder.count) throw new UnknownCase(`the builder of ${row.system} cannot count`);
    const ours = withDefaults({ device: 'meta' }, () => builder.count?.(row) ?? {});
    for (const figure of FIGURES) {
      const expected = row[figure];
      if (typeof expected !== 'number' || (row.num_classes === null && figure === 'trainable_parameters')) continue;
      if (ours[figure] !== expected)
        report.problems.push(`${figure}: ours ${JSON.stringify(ours[figure])}, golden ${expected}`);
    }
    comparePerTask(row, ours['per_task_trainable'], report);
    compareMacs(row, ours, report);
  });
  return {
    name: `${row.system}/counts ${row.model} ${configText(row)}`.slice(0, 120),
    forward: NaN,
    grad: NaN,
    tolerance: null,
    problems: report.problems,
    skipped: report.skipped,
  };
}

/** A row over many tasks lists one count per task and their mean. */
function comparePerTask(row: CountsRow, ours: unknown, report: Report): void {
  const expected =
    typeof row.config === 'string'
      ? undefined
      : (row.config['per_task_trainable'] as Record<string, number> | undefined);
  if (expected === undefined) return;
  const counts = (ours ?? {}) as Record<string, number>;
  for (const [task, value] of Object.entries(expected)) {
    if (counts[task] !== value) report.problems.push(`${task}: ours ${String(counts[task])}, golden ${value}`);
  }
  const mean = Object.values(counts).reduce((sum, value) => sum + value, 0) / Object.keys(counts).length;
  const stated = row['trainable_parameters'];
  if (typeof stated === 'number' && !(Math.abs(mean - stated) < 0.006))
    report.problems.push(`mean: ours ${mean}, golden ${stated}`);
}
