import { irregularNames, native } from '../native/index.js';
import type { AtenFunctions, NativeFunction } from '../native/index.js';
import { describe } from './describe.js';
import type { Tensor } from './tensor.js';

const irregular = new Map(irregularNames.split(' ').map((name) => [camelCase(name), name]));

/** `log_softmax` to `logSoftmax`; leading and trailing underscores stay. */
export function camelCase(name: string): string {
  return name.replace(/(?<=[^_])_+([^_])/g, (_, letter: string) => letter.toUpperCase());
}

function snakeCase(name: string): string {
  return irregular.get(name) ?? name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
}

/** Operators looked up by full name, so that a second call costs one map read. */
const byName = new Map<string, NativeFunction>();

/** Unknown names get here: the operator is looked up and becomes an own property of the object that was asked. */
function lazyNamespace(namespace: string): object {
  const lookup = new Proxy(Object.freeze({}), {
    get(_target, key, receiver: object) {
      if (typeof key !== 'string') return undefined;
      const operator = native.operator(`${namespace}::${snakeCase(key)}`, null, false);
      if (operator) Object.defineProperty(receiver, key, { value: operator, enumerable: true });
      return operator;
    },
    has: (_target, key) =>
      typeof key === 'string' && native.operator(`${namespace}::${snakeCase(key)}`, null, false) !== undefined,
  });
  return Object.create(lookup) as object;
}

/**
 * Every ATen operator as a function, by its camelCase name; the overload is chosen from the arguments.
 * Keyword-only arguments of the schema go into a trailing object: `aten.sum(x, [1], true, { dtype: 'float64' })`.
 */
export const aten = lazyNamespace('aten') as AtenFunctions<Tensor>;

/**
 * The operator of that full name, such as `aten::add.Tensor` (one overload) or `torchgraft::scale_shift` (all).
 * @throws TypeError when LibTorch has no such operator
 */
export function operator(name: string): NativeFunction {
  const known = byName.get(name);
  if (known) return known;
  const match = typeof name === 'string' ? /^(\w+::\w+)(?:\.(\w*))?$/.exec(name) : null;
  if (!match) {
    throw new TypeError(`operator: name must look like 'aten::add' or 'aten::add.Tensor'; got ${describe(name)}`);
  }
  const found = native.operator(match[1] as string, match[2] ?? null, false);
  if (!found) throw new TypeError(`operator: LibTorch has no operator '${name}'`);
  byName.set(name, found);
  return found;
}

/**
 * Calls an operator by its full name: `call('aten::add.Tensor', a, b, { alpha: 2 })`. A name without overload lets the
 * arguments choose; `'aten::add.'` means the overload without a name.
 * @throws TypeError for an unknown operator or arguments that fit no overload, TorchError when LibTorch refuses
 */
// eslint-disable-next-line @typescript-eslint/no-unnecessary-type-parameters -- the caller knows the operator
export function call<R = Tensor>(name: string, ...args: unknown[]): R {
  return operator(name)(...args) as R;
}
