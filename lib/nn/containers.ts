import type { Tensor } from '../tensor/index.js';
import type { Context } from './context.js';
import { indent, Module } from './module.js';

/** Numbered members: what ModuleList and Sequential have in common. */
abstract class Numbered extends Module implements Iterable<Module> {
  protected readonly members: [string, Module][] = [];

  get length(): number {
    return this.members.length;
  }

  /** The member at an index; negative counts from the end. @throws RangeError */
  at(index: number): Module {
    const member = this.members.at(index);
    if (member === undefined)
      throw new RangeError(`${this.constructor.name}: index ${index} is outside the ${this.length} members`);
    return member[1];
  }

  /** Adds a member at the end, under the next number. */
  push(module: Module): this {
    this.members.push([String(this.members.length), module]);
    return this;
  }

  /** The modules, in their order. */
  *[Symbol.iterator](): Generator<Module> {
    for (const [, module] of this.members) yield module;
  }

  override namedChildren(): [string, Module][] {
    return [...super.namedChildren(), ...this.members];
  }
}

/** Modules kept in a list under the names `0`, `1`, ... It computes nothing itself. */
export class ModuleList<M extends Module = Module> extends Numbered {
  constructor(modules: Iterable<M> = []) {
    super();
    for (const module of modules) this.push(module);
  }

  override at(index: number): M {
    return super.at(index) as M;
  }

  override push(module: M): this {
    return super.push(module);
  }

  /** The modules, in their order. */
  override *[Symbol.iterator](): Generator<M> {
    for (const [, module] of this.members) yield module as M;
  }

  /** @throws TypeError always: the owner of a list runs its members */
  forward(): Tensor {
    throw new TypeError('ModuleList has no forward; run its members');
  }

  /** Runs of equal members are folded into one line, as PyTorch does. */
  override toString(): string {
    const groups: { first: number; last: number; text: string }[] = [];
    this.members.forEach(([, module], i) => {
      const text = module.toString();
      const previous = groups.at(-1);
      if (previous?.text === text) previous.last = i;
      else groups.push({ first: i, last: i, text });
    });
    if (groups.length === 0) return `${this.constructor.name}()`;
    const lines = groups.map(({ first, last, text }) =>
      first === last ? `(${first}): ${indent(text)}` : `(${first}-${last}): ${last - first + 1} x ${indent(text)}`,
    );
    return `${this.constructor.name}(\n${lines.map((line) => `  ${line}`).join('\n')}\n)`;
  }
}

/**
 * Runs its members one after the other. Members are numbered, or named when given as an object.
 *
 * ```ts
 * new Sequential(new Linear(8, 16), new ReLU(), new Linear(16, 2));
 * new Sequential({ norm: new LayerNorm(8), fc: new Linear(8, 2) });
 * ```
 */
export class Sequential extends Numbered {
  constructor(...members: Module[] | [Readonly<Record<string, Module>>]) {
    super();
    const [first] = members;
    if (members.length === 1 && first !== undefined && !(first instanceof Module)) {
      this.members.push(...Object.entries(first));
    } else {
      for (const module of members as Module[]) this.push(module);
    }
  }

  forward(x: Tensor, ctx: Context): Tensor {
    let y = x;
    for (const [, module] of this.members) y = module.run(y, ctx);
    return y;
  }
}

/** Modules kept under names of their own. It computes nothing itself. */
export class ModuleDict<M extends Module = Module> extends Module {
  readonly #members = new Map<string, M>();

  constructor(members: Readonly<Record<string, M>> | ReadonlyMap<string, M> = {}) {
    super();
    const entries: Iterable<[string, M]> =
      members instanceof Map ? (members as ReadonlyMap<string, M>) : Object.entries(members);
    for (const [name, module] of entries) this.set(name, module);
  }

  /** The member of that name, or undefined. */
  get(name: string): M | undefined {
    return this.#members.get(name);
  }

  /** Adds or replaces a member. @throws RangeError for a name that is empty or contains a dot, which would break paths */
  set(name: string, module: M): this {
    if (name === '' || name.includes('.'))
      throw new RangeError(`ModuleDict: '${name}' cannot be a name: it must be non-empty and without dots`);
    this.#members.set(name, module);
    return this;
  }

  /** The names, in their order. */
  keys(): IterableIterator<string> {
    return this.#members.keys();
  }

  /** Names and modules, in their order. */
  [Symbol.iterator](): IterableIterator<[string, M]> {
    return this.#members.entries();
  }

  override namedChildren(): [string, Module][] {
    return [...super.namedChildren(), ...this.#members];
  }

  /** @throws TypeError always: the owner of a dict runs its members */
  forward(): Tensor {
    throw new TypeError('ModuleDict has no forward; run its members');
  }
}
