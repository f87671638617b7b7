/**
 * Mixed batches: every sample names its adapter, and one pass over the frozen backbone serves them all. At each site the
 * backbone computes once for the whole batch, and every adapter's grafts see their own samples only.
 */
import { type Context, type GraftSet, type Module, type Parameter } from '../../nn/index.js';
import { aten, isGradEnabled, keep, type Tensor, tensor } from '../../tensor/index.js';
import { addParts } from './compose.js';
import type { Graft } from './grafts.js';
import { groupRows, originalOrder, spread } from './rows.js';

/** The samples of one adapter; null stands for the backbone alone. */
interface Group {
  readonly adapter: string | null;
  readonly rows: readonly number[];
}

const PLAN = Symbol('mixed batch');

class Plan {
  readonly groups: readonly Group[];
  readonly #indices = new Map<string, Tensor>();

  constructor(readonly names: readonly (string | null)[]) {
    this.groups = Array.from(groupRows(names), ([adapter, rows]) => ({ adapter, rows }));
  }

  static of(ctx: Context): Plan {
    const { adapters: names = [] } = ctx;
    let plan = ctx.state.get(PLAN) as Plan | undefined;
    // A fork for other samples inherits the state of its origin.
    if (plan?.names !== names) ctx.state.set(PLAN, (plan = new Plan(names)));
    return plan;
  }

  /** How many rows of `x` belong to one sample: windows and heads may share the first dimension with the batch. */
  rowsPerSample(x: Tensor): number {
    const [rows = 0] = x.shape;
    const each = rows / this.names.length;
    if (this.names.length === 0 || !Number.isInteger(each)) {
      throw new RangeError(
        `a mixed batch of ${this.names.length} names meets features of ${rows} rows; give one adapter name for each sample`,
      );
    }
    return each;
  }

  /** The rows of a group in features with `each` rows per sample, on the device of `like`. */
  #rowsOf(group: Group, each: number, like: Tensor): Tensor {
    return this.#index(`${group.adapter ?? ''}/${group.adapter === null}/${each}/${like.device}`, like, () =>
      spread(group.rows, each),
    );
  }

  #index(key: string, like: Tensor, make: () => number[]): Tensor {
    let index = this.#indices.get(key);
    // The pass may open scopes that end before it does.
    if (!index) this.#indices.set(key, (index = keep(tensor(make(), { dtype: 'int64', device: like.device }))));
    return index;
  }

  take(x: Tensor, group: Group): Tensor {
    return this.groups.length === 1 ? x : x.indexSelect(0, this.#rowsOf(group, this.rowsPerSample(x), x));
  }

  /** Puts the groups' results, in the order of the groups, back into the order of the batch. */
  join(parts: readonly Tensor[], module: Module): Tensor {
    const [first] = parts;
    if (!first || parts.length === 1) return first as Tensor;
    const shapes = parts.map((part) => part.shape.slice(1).join(' x '));
    if (new Set(shapes).size > 1) {
      throw new RangeError(
        `the adapters of a mixed batch must leave features of one shape, and at a ${module.constructor.name} they give ` +
          `${shapes.join(' and ')}; adapters that insert different numbers of tokens, or heads of different sizes, need a pass each`,
      );
    }
    const each = (first.shape[0] ?? 0) / (this.groups[0]?.rows.length ?? 1);
    const inverse = this.#index(`inverse/${each}/${first.device}`, first, () =>
      spread(originalOrder(this.groups.map(({ rows }) => rows)), each),
    );
    return aten.cat(parts, 0).indexSelect(0, inverse);
  }
}

/**
 * Runs the groups' parts one after the other, each from where the context stands, since each may say that it has put
 * tokens into the sequence: the batch has them once.
 */
function apart(ctx: Context, parts: readonly (() => Tensor)[]): Tensor[] {
  const { prefixTokens, grid, frames } = ctx;
  const after = new Set<number>();
  const results = parts.map((compute) => {
    Object.assign(ctx, { prefixTokens, grid, frames });
    const y = compute();
    after.add(ctx.prefixTokens);
    return y;
  });
  if (after.size > 1) {
    throw new RangeError(
      `the adapters of a mixed batch put different numbers of tokens in front of the sequence (${[...after].join(', ')}); give them a pass each`,
    );
  }
  return results;
}

/** Runs `module` for a mixed batch with the grafts that the samples' adapters have beside it. */
export function runMixed(module: Module, all: readonly Graft[], x: Tensor, ctx: Context): Tensor {
  const plan = Plan.of(ctx);
  const per = plan.groups.map((group) => all.filter((graft) => graft.adapter === group.adapter));
  if (per.every((grafts) => grafts.length === 0)) return module.forward(x, ctx);
  const each = (compute: (grafts: readonly Graft[], group: Group) => Tensor): Tensor[] =>
    apart(
      ctx,
      plan.groups.map((group, i) => () => compute(per[i] ?? [], group)),
    );

  const changesInput = per.some((grafts) => grafts.some(({ composition }) => composition.kind === 'before'));
  const input = changesInput
    ? plan.join(
        each((grafts, group) => {
          const befores = grafts.filter(({ composition }) => composition.kind === 'before');
          return befores.reduce((z, { form }) => form.run(z, ctx), plan.take(x, group));
        }),
        module,
      )
    : x;

  const replacing = per.map((grafts) => grafts.findLast(({ composition }) => composition.kind === 'replace'));
  const whole = replacing.every(Boolean) ? null : module.forward(input, ctx);
  return plan.join(
    each((grafts, group) => {
      const own = plan.take(input, group);
      const replacement = replacing[plan.groups.indexOf(group)];
      const y = replacement ? replacement.form.run(own, ctx) : plan.take(whole as Tensor, group);
      return addParts(grafts, own, y, ctx);
    }),
    module,
  );
}

/** What a model's host tells its root about mixed batches. */
export interface MixedHost {
  /** @throws RangeError for names that no adapter has, or for one that is merged */
  check(names: readonly (string | null)[]): void;
  /** A key that two adapters share when the backbone has the same tensors under both. */
  backboneKey(name: string | null): string;
  /** Runs `compute` with the backbone's tensors as they are under that adapter. */
  under<T>(name: string | null, compute: () => T): T;
}

/**
 * Stands at the root of an adapted model: checks the names of a mixed batch, and gives adapters that have their own
 * values of backbone tensors (trained norms, moved statistics) a pass each, since they share no backbone.
 */
export class RootGrafts implements GraftSet {
  constructor(private readonly host: MixedHost) {}

  apply(module: Module, x: Tensor, ctx: Context): Tensor {
    const { adapters: names } = ctx;
    if (!names) return module.forward(x, ctx);
    if (names.length !== x.shape[0]) {
      throw new RangeError(
        `adapters: ${names.length} names for a batch of ${x.shape[0] ?? 0}; give one for each sample`,
      );
    }
    this.host.check(names);
    // Once per adapter: a key costs comparisons of the backbone's tensors.
    const keys = new Map(Array.from(new Set(names), (name) => [name, this.host.backboneKey(name)] as const));
    const passes = [...groupRows(names.map((name) => keys.get(name))).values()];
    if (passes.length > 1 && isGradEnabled()) {
      throw new RangeError(
        'these adapters have their own values of backbone tensors and cannot be trained in one batch; train them one at a time, or run under noGrad',
      );
    }
    const take = (t: Tensor, rows: readonly number[]): Tensor =>
      passes.length === 1 ? t : t.indexSelect(0, tensor([...rows], { dtype: 'int64', device: t.device }));
    const forks: Context[] = [];
    const outputs = passes.map((rows) => {
      const own = rows.map((row) => names[row] ?? null);
      const inputs = Object.entries(ctx.inputs).map(([name, input]) => [name, take(input, rows)] as const);
      const fork = ctx.fork(own, Object.fromEntries(inputs));
      const y = this.host.under(own[0] ?? null, () => module.forward(take(x, rows), fork));
      forks.push(fork);
      ctx.join(fork);
      return y;
    });
    const [only] = outputs;
    if (only && outputs.length === 1) return only;
    const places = originalOrder(passes);
    const restore = (parts: readonly Tensor[]): Tensor =>
      aten.cat([...parts], 0).indexSelect(0, tensor(places, { dtype: 'int64', device: x.device }));
    for (const name of ctx.aux.keys()) {
      const parts = forks.map((fork) => fork.aux.get(name));
      // Auxiliary outputs with a row per sample are put together as the output is.
      const whole = parts.filter((part, i) => part !== undefined && part.shape[0] === passes[i]?.length);
      if (whole.length === parts.length) ctx.aux.set(name, restore(whole as Tensor[]));
    }
    return restore(outputs);
  }

  *parameters(): Iterable<Parameter> {
    // The root itself carries no grafts.
  }

  *modules(): Iterable<Module> {
    // As above.
  }
}
