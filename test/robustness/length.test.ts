/** Sizes that cannot be: refused at once, without walking through them and without asking for the memory. */
import { describe, expect, test } from 'vitest';
import {
  allowUncheckedOperators,
  aten,
  call,
  fromTypedArray,
  grad,
  hasImageSuffix,
  isInvertible,
  ones,
  randperm,
  selectSites,
  step,
  tensor,
  TorchError,
  transforms,
  writeNpz,
  zeros,
} from '../../lib/index.js';
import type { Rule, Tensor } from '../../lib/index.js';

const endless = (): never[] => new Array<never>(2 ** 32 - 1);

describe('an array of 2^32 - 1 holes', () => {
  const calls: Readonly<Record<string, () => unknown>> = {
    zeros: () => zeros(endless()),
    tensor: () => tensor(endless()),
    fromTypedArray: () => fromTypedArray(new Float32Array(1), endless()),
    cat: () => aten.cat(endless(), 0),
    view: () => ones([2]).view(endless()),
    indices: () => ones([2]).setIndex_(endless(), 1),
    'lists of optional tensors': () => aten.index(ones([2]), endless()),
    'one overload': () => call('aten::cat', endless(), 0),
    grad: () => grad(endless(), endless()),
    isInvertible: () => isInvertible(endless()),
    hasImageSuffix: () => hasImageSuffix(endless() as unknown as string),
    selectSites: () => selectSites({ at: endless() } as unknown as Rule, []),
    normalize: () => transforms.normalize(endless(), [1]),
    'steps of a schedule': () => step({ at: endless() }),
    writeNpz: () => {
      writeNpz('never-written.npz', endless());
    },
  };
  test.each(Object.keys(calls))('%s', (name) => {
    const start = performance.now();
    expect(calls[name]!).toThrow(Error);
    expect(performance.now() - start).toBeLessThan(5000);
  });
});

describe('memory that is not there', () => {
  const big = 2 ** 42;
  const calls: Readonly<Record<string, () => unknown>> = {
    zeros: () => zeros([big]),
    randperm: () => randperm(2 ** 40),
    operator: () => aten.full([big], 1),
    'a copy of an expanded tensor': () => ones([1]).expand([big]).contiguous(),
    data: () => ones([1]).expand([big]).data(),
    product: () => ones([2 ** 21, 1]).mm(ones([1, 2 ** 21])),
  };
  test.each(Object.keys(calls))('%s: an error, and the next call works', (name) => {
    expect(calls[name]!).toThrow(TorchError);
    expect(zeros([3]).tolist()).toEqual([0, 0, 0]);
  });

  test('nested arrays of too many elements', () => {
    expect(() => ones([1]).expand([2 ** 30]).tolist()).toThrow(RangeError); // prettier-ignore
    expect(String(ones([1]).expand([2 ** 40]))).toMatch(/^tensor\(\[1\., 1\., 1\., +\.\.\., 1\., 1\., 1\.\]\)$/);
  });
});

test('operators that would end the process name what to do instead', () => {
  expect(() => call('aten::_stack', [], 0)).toThrow(/inner step of LibTorch.*public operator/);
  expect(() => aten.tanhBackward(ones([2]), ones([2]))).toThrow(/inner step.*allowUncheckedOperators\(\)/);
  allowUncheckedOperators();
  expect(aten.tanhBackward(ones([2]), zeros([2])).tolist()).toEqual([1, 1]);
  allowUncheckedOperators(false);
  expect(() => aten.tanhBackward(ones([2]), ones([2]))).toThrow(TypeError);
  const noise: Tensor = zeros([1]);
  expect(() => call('aten::rrelu_with_noise', ones([100]), noise, 0.1, 0.3, true)).toThrow(
    /noise must have the shape of/,
  );
  expect(() => aten.replicationPad3d(ones([1, 2, 2, 2]), [])).toThrow(/padding must have 6 numbers/);
  expect(() => aten.range(0, 1, 5e-324)).toThrow(RangeError);
  expect(() => aten.specialLegendrePolynomialP(ones([2]), 2 ** 40)).toThrow(/n must be at most/);
  expect(() => aten.fbgemmPackGemmMatrixFp16(zeros([3, 0]))).toThrow(/inner step/);
  const sparse = call('aten::to_sparse_csr', ones([2, 2]));
  expect(() => call('aten::copy', sparse, ones([2, 2]))).toThrow(/of the same layout/);
  expect(call('aten::copy', ones([2, 2]), zeros([2, 2]))).toMatchObject({ shape: [2, 2] });
  const narrow = zeros([2], { dtype: 'float32' });
  expect(() => call('aten::log_sigmoid', ones([2], { dtype: 'float64' }), { out: narrow })).toThrow(
    /out must have the dtype/,
  );
  expect(() => call('aten::binomial', tensor([NaN]), tensor([0.5]))).toThrow(/count must not be NaN/);
  expect(call('aten::binomial', tensor([4]), tensor([1])).tolist()).toEqual([4]);
  expect(() => call('aten::matrix_power', ones([2, 2]), -(2n ** 63n))).toThrow(/n must be greater than -2\^63/);
  expect(aten.matrixPower(ones([2, 2]), 2).tolist()).toEqual([[2, 2], [2, 2]]); // prettier-ignore
});
