/** What a builder makes of a case: a model of ours whose tensors answer to the reference's names. */
import { applyKeyMap, invertKeyMap, type KeyMap } from '../../lib/checkpoint/index.js';
import type { Module } from '../../lib/nn/index.js';
import type { Tensor } from '../../lib/tensor/index.js';
import type { CountsRow, GoldenCase } from './case.js';

/** A tensor of ours under a name of the reference. */
export interface Entry {
  readonly tensor: Tensor;
  /** Shows the tensor, or its gradient, in the reference's shape; must be a view of it. Default: as it is. */
  readonly view?: (tensor: Tensor) => Tensor;
}

/** What our own merge of the adapter gave. */
export interface Merged {
  /** Every tensor of merged.safetensors by its name there. */
  readonly state: ReadonlyMap<string, Tensor>;
  /** Names of adapter tensors that could not be folded. */
  readonly leftover: readonly string[];
}

export interface Built {
  /** One entry for every name of weights.safetensors. */
  readonly state: ReadonlyMap<string, Entry>;
  /** Outputs by name. Buffers need not be among them. */
  run(inputs: ReadonlyMap<string, Tensor>): Readonly<Record<string, Tensor>>;
  /** Outputs whose expected values stand elsewhere than in io.safetensors. */
  readonly expected?: ReadonlyMap<string, Tensor>;
  /** Gradients that belong to a cotangent of their own, by the names of `grad_input.*`; undefined for all others. */
  gradientOf?(name: string, cotangents: ReadonlyMap<string, Tensor>): Tensor | undefined;
  /** Put into training or eval mode before the run. */
  readonly module?: Module;
  /** Training mode where it is more than `module.train()`. */
  train?(): void;
  /** Folds the adapter into the backbone; afterwards `run` still gives the same outputs. */
  merge?(): Merged;
}

export interface Builder {
  readonly system: string;
  /** @throws UnknownCase when the case's module is none of this system's */
  build(golden: GoldenCase): Built;
  /** The plain backbone (with an affine for every leftover) that takes the tensors of merged.safetensors. */
  buildMerged?(golden: GoldenCase, names: ReadonlySet<string>): Built;
  /** The figures of a row, built on the meta device. @throws UnknownCase */
  count?(row: CountsRow): Readonly<Record<string, number | Readonly<Record<string, number>>>>;
}

/** Nobody here can build that yet. */
export class UnknownCase extends Error {
  override readonly name = 'UnknownCase';
}

/** The case needs a file that is not here. It is skipped, visibly. */
export class Unavailable extends Error {
  override readonly name = 'Unavailable';
}

/** A config that must be read completely: an option that nobody asked for is an error, not silence. */
export class Config {
  readonly #values: Readonly<Record<string, unknown>>;
  readonly #read: Set<string>;

  constructor(values: Readonly<Record<string, unknown>>, read = new Set<string>()) {
    this.#values = values;
    this.#read = read;
  }

  /** This config for a reader to whom some of its keys would mean something else; what it reads counts here. */
  without(...keys: string[]): Config {
    const left = Object.entries(this.#values).filter(([key]) => !keys.includes(key));
    return new Config(Object.fromEntries(left), this.#read);
  }

  /** The raw value; `fallback` when the key is absent. */
  get<T>(key: string, fallback?: T): T {
    this.#read.add(key);
    const value = this.#values[key];
    if (value === undefined && fallback === undefined) throw new UnknownCase(`the config has no '${key}'`);
    return (value === undefined ? fallback : value) as T;
  }

  has(key: string): boolean {
    return this.#values[key] !== undefined;
  }

  /** Declares keys that describe the case but choose nothing. */
  ignore(...keys: string[]): this {
    for (const key of keys) this.#read.add(key);
    return this;
  }

  /** Checks that a key, where given, has one of the values that we compute. */
  expect(key: string, ...values: unknown[]): this {
    const value = this.#values[key];
    this.#read.add(key);
    if (value !== undefined && !values.some((known) => JSON.stringify(known) === JSON.stringify(value))) {
      throw new UnknownCase(
        `config '${key}' is ${JSON.stringify(value)}; this builder knows ${values.map((v) => JSON.stringify(v)).join(', ')}`,
      );
    }
    return this;
  }

  /** @throws UnknownCase when the config holds a key that was not read */
  done(): void {
    const left = Object.keys(this.#values).filter((key) => !this.#read.has(key));
    if (left.length > 0)
      throw new UnknownCase(`this builder does not know the config's ${left.map((key) => `'${key}'`).join(', ')}`);
  }
}

/** Entries of a module's own state under its own names, optionally renamed; null leaves a name out. */
export function entriesOf(
  module: Module,
  rename: (name: string) => string | null = (name) => name,
): Map<string, Entry> {
  const entries = new Map<string, Entry>();
  for (const [name, tensor] of module.namedState()) {
    const key = rename(name);
    if (key !== null) entries.set(key, { tensor });
  }
  return entries;
}

/** A bare module of one input, under its own names; its output is called `y`. */
export function bare(module: Module): Built {
  return { module, state: entriesOf(module), run: (inputs) => ({ y: module.run(soleInput(inputs)) }) };
}

/**
 * Entries of a module's own state under the names, and in the shapes, of a published format.
 *
 * @param keyMap from the format to ours; must be invertible tensor by tensor
 */
export function entriesThrough(module: Module, keyMap: KeyMap): Map<string, Entry> {
  const back = invertKeyMap(keyMap);
  const entries = new Map<string, Entry>();
  for (const [own, tensor] of module.namedState()) {
    const mapped = (t: Tensor): [string, Tensor][] => [...applyKeyMap(back, [[own, t]]).tensors];
    const [name = own] = mapped(tensor)[0] ?? [];
    entries.set(name, { tensor, view: (t) => mapped(t)[0]?.[1] ?? t });
  }
  return entries;
}

/** The single input of most cases. */
export function soleInput(inputs: ReadonlyMap<string, Tensor>): Tensor {
  const [input, second] = inputs.values();
  if (input === undefined || second !== undefined)
    throw new UnknownCase(`one input is expected, the case has ${inputs.size}`);
  return input;
}
