/** What the door refuses because LibTorch's kernels would not: csrc/binding/guards.cpp and argument_guards.cpp. */
import { describe, expect, test } from 'vitest';
import { allowUncheckedOperators, aten, call, ones, tensor, zeros, type Tensor } from '../../lib/index.js';

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
});

describe('kernels that end the process, never return or read beyond a tensor refuse', () => {
  const refused = (message: RegExp, name: string, ...args: unknown[]): void => {
    expect(() => call(`aten::${name}`, ...args)).toThrow(message);
  };

  test('steps that are not called from outside', () => {
    expect(() => aten.fbgemmPackGemmMatrixFp16(zeros([3, 0]))).toThrow(/inner step/);
    refused(/inner step/, 'convolution_overrideable', ones([1, 1, 4]), ones([1, 1, 1]), null, [1], [0], [1], false, [0], 1); // prettier-ignore
  });

  test('layouts', () => {
    const sparse = call('aten::to_sparse_csr', ones([2, 2]));
    refused(/of the same layout/, 'copy', sparse, ones([2, 2]));
    refused(/layout/, 'zeros', [4, 4], { layout: 'mkldnn', dtype: 'int8' });
    expect(call('aten::copy', ones([2, 2]), zeros([2, 2])).tolist()).toEqual([[0, 0], [0, 0]]); // prettier-ignore
  });

  test('outputs without memory for what is written', () => {
    const narrow = zeros([2], { dtype: 'float32' });
    refused(/out must have the dtype/, 'log_sigmoid', ones([2], { dtype: 'float64' }), { out: narrow });
    refused(/out must be contiguous/, 'tril', ones([2, 3, 4, 4]), { out: ones([4, 4, 3, 2]).permute([3, 2, 1, 0]) });
    const out = zeros([2, 2]);
    call('aten::tril', ones([2, 2]), { out });
    expect(out.tolist()).toEqual([[1, 0], [1, 1]]); // prettier-ignore
  });

  test('numbers that are none', () => {
    refused(/count must not be NaN/, 'binomial', tensor([NaN]), tensor([0.5]));
    refused(/NaN or infinite/, 'linalg_eigvals', tensor([[NaN, 1], [1, 1]])); // prettier-ignore
    expect(call('aten::binomial', tensor([4]), tensor([1])).tolist()).toEqual([4]);
  });

  test('numbers that are too large', () => {
    refused(/n must be greater than -2\^63/, 'matrix_power', ones([2, 2]), -(2n ** 63n));
    refused(/at most 2\^31 positions/, 'adaptive_max_pool3d', ones([1, 2, 2, 2]), [2 ** 36, 1, 0]);
    refused(/fewer than 2\^31/, 'max_pool1d', ones([1, 4]), [2 ** 36], [1], [3], [2]);
    refused(/beyond any memory/, 'as_strided', ones([4]), [3, 2, 3, 1], [2, 2n ** 63n - 1n, 2, 2n ** 63n - 1n], 1);
    expect(aten.matrixPower(ones([2, 2]), 2).tolist()).toEqual([[2, 2], [2, 2]]); // prettier-ignore
    expect(aten.adaptiveAvgPool2d(ones([1, 4, 4]), [2, 1]).tolist()).toEqual([[[1], [1]]]);
  });

  test('what is not there', () => {
    const query = ones([1, 2, 3, 4]);
    refused(/key has no heads/, 'scaled_dot_product_attention', query, zeros([1, 0, 3, 4]), query, {
      enable_gqa: true,
    });
    const none = zeros([1, 0, 3, 4]);
    expect(call('aten::scaled_dot_product_attention', none, none, none).shape).toEqual([1, 0, 3, 4]);
    const state = [zeros([1, 1, 3]), zeros([1, 1, 3])];
    const weights = [ones([12, 3]), ones([12, 3])];
    const steps = tensor([], { dtype: 'int64' });
    refused(/batch_sizes must be/, 'lstm', ones([2, 3]), steps, state, weights, false, 1, 0, false, false);
  });

  test('the median along a dimension of one element shown several times', () => {
    const x = tensor([[1, 2]]).expand([7, 2]);
    expect(() => aten.median(x, 0)).toThrow(/expanded along dim 0.*contiguous\(\) first/);
    expect(aten.median(x.contiguous(), 0)[0].tolist()).toEqual([1, 2]);
    expect(aten.median(x, 1)[0].tolist()).toEqual([1, 1, 1, 1, 1, 1, 1]);
  });
});
