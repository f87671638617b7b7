import { describe, expect, test } from 'vitest';
import {
  aten,
  empty,
  getRngState,
  manualSeed,
  ones,
  rand,
  randint,
  randn,
  randperm,
  setRngState,
  tensor,
} from '../../lib/tensor/index.js';
import type { Tensor } from '../../lib/tensor/index.js';
import goldens from './goldens.json' with { type: 'json' };

const makers: Record<string, () => Tensor> = {
  rand: () => rand([7]),
  'rand long': () => rand([33]),
  'rand float64': () => rand([5], { dtype: 'float64' }),
  'rand bfloat16': () => rand([5], { dtype: 'bfloat16' }),
  'randn short': () => randn([3, 5]),
  'randn long': () => randn([33]),
  'randn float64': () => randn([17], { dtype: 'float64' }),
  randint: () => randint(-5, 1000, [9]),
  randperm: () => randperm(11),
  dropout: () => aten.dropout(ones([40]), 0.3, true),
  bernoulli: () => ones([40]).mul(0.5).bernoulli(),
  normal_: () => empty([20]).normal_(1, 2),
  uniform_: () => empty([6]).uniform_(-3, 3),
  multinomial: () => tensor([1, 2, 3, 4]).multinomial(8, true),
  'rand, large seed': () => rand([3]),
  'rand, negative seed': () => rand([3]),
};

describe('the same seed gives the numbers of PyTorch', () => {
  test.each(goldens.random.map((c) => [c.name, c] as const))('%s', (name, c) => {
    manualSeed(BigInt(c.seed));
    const x = makers[name]?.() as Tensor;
    expect([x.dtype, x.shape]).toEqual([c.dtype, c.shape]);
    expect(x.flatten().tolist()).toEqual(c.values);
  });

  test('every maker has a golden', () => {
    expect(goldens.random.map((c) => c.name).sort()).toEqual(Object.keys(makers).sort());
  });
});

test('the state of the generator can be saved and restored', () => {
  manualSeed(1);
  rand([3]);
  const state = getRngState();
  const first = randn([20]).tolist();
  expect(randn([20]).tolist()).not.toEqual(first);
  setRngState(state);
  expect(randn([20]).tolist()).toEqual(first);
});

test('seeds and states are checked', () => {
  expect(() => manualSeed(1.5)).toThrow(RangeError);
  expect(() => manualSeed(NaN)).toThrow(RangeError);
  expect(() => manualSeed('1' as unknown as number)).toThrow(/manualSeed: seed must be an integer; got '1'/);
  expect(() => manualSeed(2n ** 64n)).toThrow(RangeError);
  expect(() => setRngState([] as unknown as Tensor)).toThrow(/setRngState: state must be a Tensor/);
  expect(() => setRngState(tensor([1, 2]))).toThrow(Error);
  expect(() => getRngState('gpu' as 'cpu')).toThrow(TypeError);
});
