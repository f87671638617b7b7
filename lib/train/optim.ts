import { z } from 'zod';
import { parseOptions } from '../models/options.js';
import { native, type OptimizerGroup } from '../native/index.js';
import { Module } from '../nn/index.js';
import { Tensor, zeros, zerosLike } from '../tensor/index.js';

const rate = z.number().nonnegative();
const decayRate = z.number().min(0).lt(1);

const adamOptions = z.strictObject({
  /** Learning rate. */
  lr: rate.default(1e-3),
  /** Decay rates of the first and second moments. */
  betas: z.tuple([decayRate, decayRate]).readonly().default([0.9, 0.999]),
  eps: rate.default(1e-8),
  weightDecay: rate.default(0),
  /** Climbs instead of descending. */
  maximize: z.boolean().default(false),
});

const adamwOptions = adamOptions.extend({ weightDecay: rate.default(1e-2) });

const sgdOptions = z.strictObject({
  lr: rate.default(1e-3),
  momentum: rate.default(0),
  /** Share of the new gradient that is kept out of the momentum. */
  dampening: z.number().default(0),
  weightDecay: rate.default(0),
  nesterov: z.boolean().default(false),
  maximize: z.boolean().default(false),
});

/** What `Adam` and `AdamW` can be told, for all parameters or for a group. */
export type AdamOptions = z.input<typeof adamOptions>;
/** What `SGD` can be told, for all parameters or for a group. */
export type SGDOptions = z.input<typeof sgdOptions>;

/** Parameters that share options. Options may be changed between steps; the list of parameters may not. */
export type ParamGroup<O> = O & { readonly params: readonly Tensor[] };

/** Parameters, or groups of them with options of their own (the rest come from the optimizer's). */
export type OptimizerParams<I> = Iterable<Tensor> | Iterable<I & { params: Iterable<Tensor> }>;

/** Everything that a resumed run needs to take the same steps, bit for bit. */
export interface OptimizerState {
  readonly kind: string;
  /** Options of the groups, as JSON, with the number of parameters in each. */
  readonly groups: readonly Readonly<Record<string, unknown>>[];
  /** Moments by `INDEX.NAME`, the index counting parameters over all groups. Not copies: clone to keep beyond the next step. */
  readonly tensors: Map<string, Tensor>;
}

/** State of one parameter. Which tensors there are depends on the optimizer. */
interface Slot {
  readonly parameter: Tensor;
  readonly first: Tensor | null;
  readonly second: Tensor | null;
  readonly step: Tensor | null;
  /** Whether a momentum buffer holds gradients already (SGD). */
  isStarted: boolean;
}

/** Slots that one kernel call can update together: same dtype and device, and for SGD the same stage. */
interface Bucket {
  readonly slots: Slot[];
  readonly parameters: Tensor[];
  readonly first: Tensor[];
  readonly second: Tensor[];
  readonly steps: Tensor[];
}

type Rates = Omit<OptimizerGroup, 'kind' | 'parameters' | 'first' | 'second' | 'steps' | 'isFirstStep'>;

const NO_RATES = { beta1: 0, beta2: 0, eps: 0, momentum: 0, dampening: 0, nesterov: false };

/** What the optimizers share: groups, state, and one native call per step over all of them. */
abstract class Optimizer<O extends { lr: number; weightDecay: number }, S extends z.ZodObject> {
  /** The parameter groups; `groups[i].lr` and the other options may be assigned between steps. */
  readonly groups: ParamGroup<O>[] = [];
  protected abstract readonly kind: OptimizerGroup['kind'];
  readonly #schema: S;
  /** By group, in the order of its parameters; null until a parameter is first seen to need a gradient. */
  readonly #slots: (Slot | null)[][] = [];
  /** By group; null when slots have changed since. */
  readonly #buckets: (Bucket[] | null)[] = [];

  protected constructor(schema: S, params: OptimizerParams<z.input<S>>, options: z.input<S>) {
    this.#schema = schema;
    const defaults = parseOptions(schema, options, new.target.name);
    const given = [...(params as Iterable<unknown>)];
    const list = given.every((item) => item instanceof Tensor) ? [{ params: given }] : given;
    if (given.length === 0) throw new RangeError(`${new.target.name}: there are no parameters to optimize`);
    for (const group of list) this.#addGroup(group, defaults);
  }

  #addGroup(given: unknown, defaults: Record<string, unknown>): void {
    const name = this.constructor.name;
    if (typeof given !== 'object' || given === null || !('params' in given)) {
      throw new TypeError(`${name}: expected parameters, or groups { params, ...options }; do not mix them`);
    }
    const { params: members, ...own } = given as { params: Iterable<unknown> };
    const params = [...members];
    const options = parseOptions(this.#schema, { ...defaults, ...own }, `${name}: group ${this.groups.length}`);
    const taken = new Set(this.groups.flatMap((group) => group.params));
    params.forEach((parameter, i) => {
      const place = `${name}: parameter ${i} of group ${this.groups.length}`;
      if (!(parameter instanceof Tensor)) throw new TypeError(`${place} is not a tensor`);
      if (!parameter.isLeaf)
        throw new RangeError(`${place} is the result of an operation; only leaves can be optimized`);
      if (taken.has(parameter))
        throw new RangeError(`${place} appears twice; each parameter belongs to one group, once`);
      taken.add(parameter);
    });
    this.groups.push({ ...options, params } as unknown as ParamGroup<O>);
    this.#slots.push(params.map(() => null));
    this.#buckets.push(null);
  }

  /** The tensors that a parameter needs as its state, all zero. */
  protected abstract newState(
    parameter: Tensor,
    group: ParamGroup<O>,
  ): { first: Tensor | null; second: Tensor | null; step: Tensor | null };

  /** The numbers of a group for the native step. */
  protected abstract rates(group: ParamGroup<O>): Rates;

  /** Names of `first`, `second` and `step` in the state dict. PyTorch's. */
  protected abstract readonly names: { readonly first: string; readonly second: string; readonly step: string };

  /** Whether the first step of a momentum buffer differs from the later ones. */
  protected copiesFirst(_group: ParamGroup<O>): boolean {
    return false;
  }

  /** Updates every parameter that has a gradient: one native call for all groups. */
  step(): void {
    const calls: OptimizerGroup[] = [];
    this.groups.forEach((group, g) => {
      const rates = this.rates(group);
      for (const bucket of this.#bucketsOf(group, g)) {
        const { parameters, first, second, steps } = bucket;
        const isFirstStep = bucket.slots[0]?.isStarted === false;
        calls.push({ kind: this.kind, parameters, first, second, steps, isFirstStep, ...rates });
      }
    });
    native.optimizerStep(calls);
    this.#markStarted();
  }

  /** The buckets of a group, with state for parameters that have been unfrozen meanwhile. */
  #bucketsOf(group: ParamGroup<O>, g: number): Bucket[] {
    const slots = this.#slots[g] ?? [];
    group.params.forEach((parameter, i) => {
      if (slots[i] || !parameter.requiresGrad) return;
      slots[i] = this.#newSlot(parameter, group, false);
      this.#buckets[g] = null;
    });
    const ready = this.#buckets[g];
    if (ready) return ready;
    const buckets = new Map<string, Bucket>();
    for (const slot of slots) {
      if (slot === null) continue;
      const key = `${slot.parameter.dtype} ${slot.parameter.device} ${slot.isStarted}`;
      let bucket = buckets.get(key);
      if (bucket === undefined)
        buckets.set(key, (bucket = { slots: [], parameters: [], first: [], second: [], steps: [] }));
      bucket.slots.push(slot);
      bucket.parameters.push(slot.parameter);
      if (slot.first) bucket.first.push(slot.first);
      if (slot.second) bucket.second.push(slot.second);
      if (slot.step) bucket.steps.push(slot.step);
    }
    return (this.#buckets[g] = [...buckets.values()]);
  }

  #newSlot(parameter: Tensor, group: ParamGroup<O>, isStarted: boolean): Slot {
    const state = this.newState(parameter, group);
    for (const tensor of Object.values(state)) if (tensor) native.keep(tensor);
    return { parameter, ...state, isStarted: isStarted || !this.copiesFirst(group) };
  }

  /** Notes which momentum buffers have taken their first gradient. Looks only at those that had not. */
  #markStarted(): void {
    this.#slots.forEach((slots, g) => {
      const buckets = this.#buckets[g];
      if (!buckets?.some((bucket) => bucket.slots[0]?.isStarted === false)) return;
      for (const slot of slots) {
        if (slot === null || slot.isStarted || slot.parameter.grad === null) continue;
        slot.isStarted = true;
        this.#buckets[g] = null;
      }
    });
  }

  /** Drops the gradients of all parameters. @param options `setToNone: false` zeroes them in place instead. Default true. */
  zeroGrad({ setToNone = true }: { setToNone?: boolean } = {}): void {
    native.zeroGrad(
      this.groups.flatMap((group) => group.params),
      setToNone,
    );
  }

  /** Options and moments, for `loadStateDict`. */
  stateDict(): OptimizerState {
    const tensors = new Map<string, Tensor>();
    let index = 0;
    for (const slots of this.#slots) {
      for (const slot of slots) {
        for (const part of ['first', 'second', 'step'] as const) {
          const tensor = slot?.isStarted ? slot[part] : null;
          if (tensor) tensors.set(`${index}.${this.names[part]}`, tensor);
        }
        index++;
      }
    }
    const groups = this.groups.map(({ params, ...options }) => ({ ...options, params: params.length }));
    return { kind: this.kind, groups, tensors };
  }

  /**
   * Restores what `stateDict` gave, into an optimizer over the same parameters in the same groups. The tensors are
   * copied. Everything is checked first: when this throws, nothing has changed.
   *
   * @throws RangeError when kind, groups or shapes do not fit
   */
  loadStateDict(state: OptimizerState): void {
    const name = this.constructor.name;
    if (state.kind !== this.kind)
      throw new RangeError(`${name}: the state is of kind '${state.kind}', expected '${this.kind}'`);
    const sizes = this.groups.map((group) => group.params.length).join(', ');
    const given = state.groups.map((group) => String(group.params)).join(', ');
    if (sizes !== given)
      throw new RangeError(`${name}: the state has groups of [${given}] parameters, expected [${sizes}]`);
    const options = state.groups.map(({ params: _, ...own }, g) =>
      parseOptions(this.#schema, own, `${name}: state of group ${g}`),
    );
    const unused = new Set(state.tensors.keys());
    let index = 0;
    const slots = this.groups.map((group, g) =>
      group.params.map((parameter) => {
        const prefix = `${index++}.`;
        if (![...Object.values(this.names)].some((part) => unused.has(prefix + part))) return null;
        const slot = this.#newSlot(parameter, { ...group, ...options[g] }, true);
        slot.isStarted = true;
        for (const part of ['first', 'second', 'step'] as const) {
          const target = slot[part];
          if (target === null) continue;
          const source = state.tensors.get(prefix + this.names[part]);
          if (source?.shape.join() !== target.shape.join()) {
            const found = source === undefined ? 'is missing' : `has shape [${source.shape.join(', ')}]`;
            throw new RangeError(
              `${name}: '${prefix}${this.names[part]}' ${found}, expected shape [${target.shape.join(', ')}]`,
            );
          }
          target.copy_(source);
          unused.delete(prefix + this.names[part]);
        }
        return slot;
      }),
    );
    if (unused.size > 0) {
      throw new RangeError(
        `${name}: the state has tensors that do not belong here: ${[...unused].slice(0, 5).join(', ')}`,
      );
    }
    this.groups.forEach((group, g) => {
      Object.assign(group, options[g]);
      this.#slots[g] = slots[g] ?? [];
      this.#buckets[g] = null;
    });
  }
}

type AdamGroup = z.output<typeof adamOptions>;

/** Adam and AdamW differ only in what the native kernel does with the weight decay. */
abstract class AdamLike<S extends z.ZodObject> extends Optimizer<AdamGroup, S> {
  protected readonly names = { first: 'exp_avg', second: 'exp_avg_sq', step: 'step' };

  protected newState(parameter: Tensor): { first: Tensor; second: Tensor; step: Tensor } {
    const first = zerosLike(parameter);
    return { first, second: zerosLike(parameter), step: zeros([], { dtype: 'float32', device: parameter.device }) };
  }

  protected rates({ lr, weightDecay, betas: [beta1, beta2], eps, maximize }: ParamGroup<AdamGroup>): Rates {
    return { ...NO_RATES, lr, weightDecay, beta1, beta2, eps, maximize };
  }
}

/**
 * m = β1 m + (1 - β1) g, v = β2 v + (1 - β2) g², θ -= lr m̂ / (sqrt(v̂) + eps), with g including weightDecay · θ.
 * Kingma & Ba 2015. Defaults: lr 1e-3, betas [0.9, 0.999], eps 1e-8, weightDecay 0.
 */
export class Adam extends AdamLike<typeof adamOptions> {
  protected readonly kind = 'adam';

  constructor(params: OptimizerParams<AdamOptions>, options: AdamOptions = {}) {
    super(adamOptions, params, options);
  }
}

/**
 * Adam with θ -= lr · weightDecay · θ apart from the gradient. Loshchilov & Hutter 2019, arXiv 1711.05101.
 * Defaults: lr 1e-3, betas [0.9, 0.999], eps 1e-8, weightDecay 1e-2.
 */
export class AdamW extends AdamLike<typeof adamwOptions> {
  protected readonly kind = 'adamw';

  constructor(params: OptimizerParams<AdamOptions>, options: AdamOptions = {}) {
    super(adamwOptions, params, options);
  }
}

type SGDGroup = z.output<typeof sgdOptions>;

/**
 * b = momentum · b + (1 - dampening) g, θ -= lr · b (nesterov: g + momentum · b), with g including weightDecay · θ; the
 * first b is g itself, as in PyTorch. Defaults: lr 1e-3, all else 0.
 *
 * @throws RangeError for nesterov without momentum or with dampening
 */
export class SGD extends Optimizer<SGDGroup, typeof sgdOptions> {
  protected readonly kind = 'sgd';
  protected readonly names = { first: 'momentum_buffer', second: '', step: '' };

  constructor(params: OptimizerParams<SGDOptions>, options: SGDOptions = {}) {
    super(sgdOptions, params, options);
    for (const { nesterov, momentum, dampening } of this.groups) {
      if (nesterov && (momentum === 0 || dampening !== 0)) {
        throw new RangeError(
          `SGD: nesterov needs momentum and no dampening, got momentum ${momentum}, dampening ${dampening}`,
        );
      }
    }
  }

  protected newState(
    parameter: Tensor,
    { momentum }: ParamGroup<SGDGroup>,
  ): { first: Tensor | null; second: null; step: null } {
    return { first: momentum === 0 ? null : zerosLike(parameter), second: null, step: null };
  }

  protected rates({ lr, weightDecay, momentum, dampening, nesterov, maximize }: ParamGroup<SGDGroup>): Rates {
    return { ...NO_RATES, lr, weightDecay, momentum, dampening, nesterov, maximize };
  }

  /** Without dampening a buffer of zeros takes its first gradient like any other. */
  protected override copiesFirst({ momentum, dampening }: ParamGroup<SGDGroup>): boolean {
    return momentum !== 0 && dampening !== 0;
  }
}

/**
 * Scales the gradients of `params` together so that their joint L2 norm is at most `maxNorm`.
 *
 * @returns the norm before, a scalar tensor (not read back, so that no device is waited for)
 */
export function clipGradNorm(params: Iterable<Tensor>, maxNorm: number): Tensor {
  return native.clipGradNorm([...params], maxNorm) as Tensor;
}

/** Options of `weightDecayGroups`. */
export interface WeightDecayRule {
  /** Names further parameters that get no decay. */
  noDecay?: (name: string, parameter: Tensor) => boolean;
}

/**
 * Two groups for an optimizer: parameters with `weightDecay`, and without. Without are those of at most one dimension
 * (biases, norms, scales) and those that `noDecay` names. Frozen parameters are left out, empty groups too.
 *
 * @param source a module, or parameters by name
 */
export function weightDecayGroups(
  source: Module | Iterable<readonly [string, Tensor]>,
  weightDecay: number,
  { noDecay = () => false }: WeightDecayRule = {},
): { params: Tensor[]; weightDecay: number }[] {
  const decayed: Tensor[] = [];
  const plain: Tensor[] = [];
  for (const [name, parameter] of source instanceof Module ? source.namedParameters() : source) {
    if (parameter.requiresGrad) (parameter.ndim <= 1 || noDecay(name, parameter) ? plain : decayed).push(parameter);
  }
  return [
    { params: decayed, weightDecay },
    { params: plain, weightDecay: 0 },
  ].filter((group) => group.params.length > 0);
}
