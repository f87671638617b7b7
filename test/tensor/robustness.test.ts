/** Nothing that a caller passes may end the process: wrong types, freed tensors, absurd sizes, for every method. */
import { expect, test } from 'vitest';
import { methodNames } from '../../lib/native/index.js';
import * as api from '../../lib/tensor/index.js';
import { camelCase } from '../../lib/tensor/ops.js';

const { ones, scope, Tensor, tensor, zeros } = api;

const freed = zeros([2, 3]);
freed.dispose();

/** Argument lists that no method wants, and some that a few do. */
const junk: unknown[][] = [
  [],
  [Symbol('x')],
  [{}],
  ['junk'],
  [NaN],
  [[]],
  [[null]],
  [-1],
  [2 ** 40],
  [0.5],
  [null],
  [undefined],
  [1n << 62n],
  [1n << 70n],
  [() => 1],
  [new Float32Array(2)],
  [new Proxy({}, {})],
  [Object.create(Tensor.prototype)],
  [freed],
  [[freed]],
  [{ out: freed }],
  [{ dtype: 'float31' }],
  [-1, -1],
  [0, 0],
  [[2 ** 40]],
  [2 ** 40, 2 ** 40],
  [true],
];

/** LibTorch's own kernel never ends when its window has 2^40 elements; PyTorch hangs in the same call. */
const endless = (name: string, args: readonly unknown[]) =>
  name === 'max_pool1d' &&
  [args[0]].flat().some((v) => (typeof v === 'number' || typeof v === 'bigint') && v >= 2 ** 40);

const methods = methodNames.split(' ');

/** Calls and expects a result or an Error with a message that shows nothing of the dispatcher's insides. */
function survives(label: string, act: () => unknown): Error | undefined {
  try {
    act();
    return undefined;
  } catch (error) {
    expect(error, label).toBeInstanceOf(Error);
    const { message } = error as Error;
    expect(message.length, label).toBeGreaterThan(5);
    expect(message, label).not.toMatch(
      /Exception raised from|frame #\d|registered at|bad_variant|Node-API call failed/,
    );
    return error as Error;
  }
}

const invoke = (receiver: unknown, name: string, args: readonly unknown[]) =>
  (Reflect.get(Tensor.prototype, name) as (...a: unknown[]) => unknown).apply(receiver, [...args]);

test('every method survives every argument', () => {
  let refused = 0;
  for (const name of methods) {
    const property = camelCase(name);
    if (!Object.hasOwn(Tensor.prototype, property)) continue;
    for (const [i, args] of junk.entries()) {
      if (endless(name, args)) continue;
      for (const make of [() => zeros([2, 3]), () => tensor(5n)]) {
        scope(() => {
          if (survives(`${property}, case ${i}`, () => invoke(make(), property, args))) refused++;
        });
      }
    }
  }
  expect(methods.length).toBeGreaterThan(400);
  expect(refused).toBeGreaterThan(methods.length * 20);
}, 120_000);

test('every method of a freed tensor, or of none, is refused', () => {
  for (const name of methods) {
    const property = camelCase(name);
    for (const receiver of [freed, {}, undefined, Object.create(Tensor.prototype), new Tensor(), 5]) {
      const error = survives(property, () => invoke(receiver, property, []));
      expect(error, property).toBeInstanceOf(TypeError);
    }
  }
});

test('every exported function and hand-written member survives wrong values', () => {
  const generated = new Set(['constructor', ...methods.map(camelCase)]);
  const own = Object.entries(Object.getOwnPropertyDescriptors(Tensor.prototype)).filter(
    ([name]) => !generated.has(name),
  );
  const values = [...junk, ['float32', 'x'], [[1], 'x'], [[-1]], [[1.5]], [[NaN]], [ones([1]), {}], [[ones([1])], 5]];
  let calls = 0;
  const state = api.getRngState();
  for (const args of values) {
    for (const [name, fn] of Object.entries(api)) {
      // These two change the whole process; their own tests cover them.
      if (typeof fn !== 'function' || name === 'setNumThreads' || name === 'manualSeed') continue;
      survives(name, () => (/^[A-Z]/.test(name) ? undefined : (fn as (...a: unknown[]) => unknown)(...args)));
      calls++;
    }
    for (const [name, descriptor] of own) {
      for (const receiver of [zeros([2, 3]), freed, {}]) {
        survives(name, () => {
          if (descriptor.get) descriptor.get.call(receiver);
          if (descriptor.set) descriptor.set.call(receiver, args[0] as never);
          const value = descriptor.value as unknown;
          if (typeof value === 'function') (value as (...a: unknown[]) => unknown).apply(receiver, args);
        });
        calls++;
      }
    }
  }
  expect(calls).toBeGreaterThan(1000);
  api.setRngState(state);
  expect(api.isGradEnabled()).toBe(true);
  expect(scope(() => ones([1])).item()).toBe(1);
});
