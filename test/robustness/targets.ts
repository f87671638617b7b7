/** What there is to be called: every function, class and method that the package exports, and LibTorch's operators. */
import * as lib from '../../lib/index.js';
import { native } from '../../lib/native/index.js';
import { examples, instanceOf } from './examples.js';

/** A public function, class or method. */
export interface Target {
  readonly name: string;
  readonly kind: 'function' | 'construct' | 'method' | 'getter' | 'setter';
  /** The exported path that examples go by. */
  readonly path: string;
  /** Gives the function and its receiver; fresh for each call where calls may spoil it. */
  readonly resolve: () => { readonly fn: (...args: unknown[]) => unknown; readonly self: unknown } | null;
}

type Constructor = new (...args: unknown[]) => object;

const isClass = (value: unknown): value is Constructor =>
  typeof value === 'function' && /^class\b/.test(Function.prototype.toString.call(value));

const isNamespace = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && Object.prototype.toString.call(value) === '[object Module]';

function* membersOf(path: string, Class: Constructor): Generator<Target> {
  for (const name of Object.getOwnPropertyNames(Class)) {
    const value: unknown = Object.getOwnPropertyDescriptor(Class, name)?.value;
    if (typeof value !== 'function') continue;
    yield { name: `${path}.${name}`, kind: 'function', path: `${path}.${name}`, resolve: () => ({ fn: value as () => unknown, self: Class }) }; // prettier-ignore
  }
  const seen = new Set(['constructor']);
  for (
    let p: object | null = Class.prototype as object;
    p && p !== Object.prototype;
    p = Object.getPrototypeOf(p) as object
  ) {
    for (const key of Reflect.ownKeys(p)) {
      const name = String(key);
      if (seen.has(name)) continue;
      seen.add(name);
      const d = Object.getOwnPropertyDescriptor(p, key);
      if (!d) continue;
      const of = (kind: Target['kind'], get: (self: object) => unknown): Target => ({
        name: `${path}#${name}${kind === 'method' ? '' : ` (${kind})`}`,
        kind,
        path: `${path}#${name}`,
        resolve: () => {
          const self = instanceOf(path, Class);
          const fn = self === null ? null : get(self);
          return typeof fn === 'function' ? { fn: fn as () => unknown, self } : null;
        },
      });
      // Operators come as getters that put the function in their place at first use.
      if (path === 'Tensor' && d.get && !d.set && d.get.length === 0 && d.get.name === 'get') {
        yield of('method', (self) => Reflect.get(self, key));
        continue;
      }
      if (typeof d.value === 'function') yield of('method', () => d.value as unknown);
      if (d.get) yield of('getter', () => Reflect.get(d, 'get'));
      if (d.set) yield of('setter', () => Reflect.get(d, 'set'));
    }
  }
}

function* walk(prefix: string, exports: Record<string, unknown>): Generator<Target> {
  for (const [name, value] of Object.entries(exports)) {
    const path = prefix + name;
    if (isNamespace(value)) yield* walk(`${path}.`, value);
    else if (isClass(value)) {
      const fn = (...args: unknown[]): unknown => new value(...args);
      yield { name: `new ${path}`, kind: 'construct', path, resolve: () => ({ fn, self: undefined }) };
      yield { name: `${path} without new`, kind: 'function', path, resolve: () => ({ fn: value as unknown as () => unknown, self: undefined }) }; // prettier-ignore
      yield* membersOf(path, value);
    } else if (typeof value === 'function') {
      yield { name: path, kind: 'function', path, resolve: () => ({ fn: value as () => unknown, self: undefined }) };
    }
  }
}

/** Every public function, constructor, method, getter and setter. */
export const publicTargets = (): Target[] => [...walk('', lib)];

/** Examples of things that are not exported (any more), to keep the table honest. */
export function strayExamples(): string[] {
  const known = new Set(publicTargets().map((t) => t.path));
  return Object.keys(examples).filter((path) => !known.has(path));
}

/** One overload of an operator. */
export interface Operator {
  readonly name: string;
  readonly arguments: readonly { readonly name: string; readonly type: string; readonly kwargOnly: boolean }[];
}

/** Every overload of every operator that the dispatcher knows. */
export function operators(): Operator[] {
  return native
    .schemas()
    .filter((s) => /^(aten|torchgraft)::/.test(s.name))
    .map((s) => ({ name: `${s.name}.${s.overload}`, arguments: s.arguments }));
}
