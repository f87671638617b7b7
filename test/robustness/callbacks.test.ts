/** What callbacks throw arrives as it is; asynchronous callbacks are refused; both leave everything in order. */
import { afterEach, describe, expect, test } from 'vitest';
import {
  applyFunction,
  aten,
  autocast,
  checkpoint,
  Context,
  defaultDType,
  enableGrad,
  grad,
  inferenceMode,
  isGradEnabled,
  Module,
  noGrad,
  ones,
  randn,
  scope,
  withDefaults,
  type Tensor,
} from '../../lib/index.js';

const symbol = Symbol('odd');
const odd: readonly (readonly [string, unknown])[] = [
  ['an Error', new Error('mine')],
  ['null', null],
  ['undefined', undefined],
  ['a string', 'text'],
  ['a number', 7],
  ['a bigint', 7n],
  ['a symbol', symbol],
  ['a boolean', false],
  ['a frozen object', Object.freeze({ a: 1 })],
  ['a Proxy', new Proxy({}, { get: () => { throw new Error('trap'); } })], // prettier-ignore
  ['a function', () => 1],
];

/** What `fn` throws; fails if it throws nothing. */
function thrownBy(fn: () => unknown): unknown {
  try {
    fn();
  } catch (error) {
    return error;
  }
  throw new Error('nothing was thrown');
}

const thrower = (value: unknown) => (): never => {
  throw value;
};

const runners: Readonly<Record<string, (fn: () => unknown) => unknown>> = {
  scope,
  noGrad,
  enableGrad,
  inferenceMode,
  autocast: (fn) => autocast({ dtype: 'bfloat16' }, fn),
  withDefaults: (fn) => withDefaults({ dtype: 'float64' }, fn),
};

afterEach(() => {
  expect(isGradEnabled()).toBe(true);
  expect(defaultDType()).toBe('float32');
  expect(ones([1]).mul(2).dtype).toBe('float32');
});

describe.each(odd)('%s thrown', (_, value) => {
  test.each(Object.keys(runners))('inside %s', (name) => {
    expect(
      Object.is(
        thrownBy(() => runners[name]!(thrower(value))),
        value,
      ),
    ).toBe(true);
  });

  test('by a hook', () => {
    const w = ones([2]).requiresGrad_();
    const y = w.mul(2);
    const remove = y.registerHook(thrower(value));
    expect(
      Object.is(
        thrownBy(() => y.sum().backward(undefined, { retainGraph: true })),
        value,
      ),
    ).toBe(true);
    remove();
    y.sum().backward();
    expect(w.grad?.tolist()).toEqual([2, 2]);
  });

  test('by the forward and the backward of a custom function', () => {
    const w = ones([2]).requiresGrad_();
    const backward = ([g]: (Tensor | null)[]): Tensor => g!;
    expect(
      Object.is(
        thrownBy(() => applyFunction({ forward: thrower(value), backward }, [w])),
        value,
      ),
    ).toBe(true);
    const y = applyFunction({ forward: (x) => x.mul(1), backward: thrower(value) }, [w]) as Tensor;
    expect(
      Object.is(
        thrownBy(() => grad(y.sum(), w)),
        value,
      ),
    ).toBe(true);
    expect(grad(w.mul(3).sum(), w)[0]?.tolist()).toEqual([3, 3]);
  });

  test('by a hook inside of a backward pass inside of a hook', () => {
    const w = ones([2]).requiresGrad_();
    const y = w.mul(2);
    y.registerHook(() => {
      const z = enableGrad(() => w.mul(5).sum());
      z.registerHook(thrower(value));
      z.backward();
    });
    expect(
      Object.is(
        thrownBy(() => y.sum().backward()),
        value,
      ),
    ).toBe(true);
  });

  test('by a module that is recomputed', () => {
    class Once extends Module {
      #calls = 0;
      forward(x: Tensor): Tensor {
        if (this.#calls++ > 0) thrower(value)();
        return x.mul(2);
      }
    }
    const x = randn([2]).requiresGrad_();
    const y = scope(() => checkpoint(new Once(), x, new Context()).sum());
    expect(
      Object.is(
        thrownBy(() => y.backward()),
        value,
      ),
    ).toBe(true);
  });
});

describe('an asynchronous callback is refused', () => {
  test.each(Object.keys(runners))('by %s', async (name) => {
    const refusal = /must be synchronous/;
    expect(() => runners[name]!(async () => Promise.resolve(1))).toThrow(refusal);
    expect(() => runners[name]!(() => Promise.resolve(1))).toThrow(refusal);
    // The rejection that nobody can receive any more does not end the process.
    expect(() => runners[name]!(() => Promise.reject(new Error('late')))).toThrow(refusal);
    await new Promise((resolve) => setImmediate(resolve));
  });
});

test('a hook or a backward that returns nonsense is an error', () => {
  const w = ones([2]).requiresGrad_();
  for (const nonsense of [1, 'x', {}, [], symbol, ones([3])]) {
    const y = w.mul(2);
    y.registerHook(() => nonsense as unknown as Tensor);
    expect(() => y.sum().backward(), typeof nonsense).toThrow(Error);
    const z = applyFunction({ forward: (x) => x.mul(1), backward: () => nonsense as unknown as Tensor }, [w]) as Tensor;
    expect(() => z.sum().backward(), typeof nonsense).toThrow(Error);
  }
});

test('callbacks that free what they were given', () => {
  const w = ones([2]).requiresGrad_();
  const y = w.mul(2);
  y.registerHook((g) => {
    g.dispose();
    y.dispose();
  });
  y.sum().backward();
  expect(w.grad?.tolist()).toEqual([2, 2]);
  const z = applyFunction({ forward: (x) => x.mul(1), backward: ([g], xs) => { xs[0]!.dispose(); return g!; } }, [w]); // prettier-ignore
  (z as Tensor).sum().backward();
  expect(w.grad?.tolist()).toEqual([3, 3]);
});

test('arguments that free tensors while they are read', () => {
  const a = ones([2]);
  const b = ones([2]);
  const list = Object.defineProperty([a, b], '1', { get: () => { a.dispose(); return b; }, enumerable: true }); // prettier-ignore
  expect(aten.cat(list, 0).tolist()).toEqual([1, 1, 1, 1]);
  expect(a.isFreed).toBe(true);
  const c = ones([2]);
  const options = Object.defineProperty({}, 'alpha', { get: () => { c.dispose(); return 2; }, enumerable: true }); // prettier-ignore
  expect(() => aten.add(b, c, options)).toThrow(/freed/);
});
