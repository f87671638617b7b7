import { beforeEach, describe, expect, test } from 'vitest';
import { scaleShift } from '../../lib/nn/index.js';
import {
  autocast,
  type DType,
  empty,
  getNumThreads,
  grad,
  manualSeed,
  noGrad,
  randn,
  setNumThreads,
  type Tensor,
} from '../../lib/tensor/index.js';
import { gradcheck, relativeError } from '../support/gradcheck.js';

beforeEach(() => {
  manualSeed(0);
});

/** The formula, of ATen operators. */
function reference(x: Tensor, scale: Tensor, shift: Tensor, dim: number): Tensor {
  const shape = x.shape.map(() => 1);
  shape[dim < 0 ? dim + x.ndim : dim] = -1;
  return x.mul(scale.view(shape)).add(shift.view(shape));
}

function make(shape: readonly number[], dim: number, dtype: DType = 'float32') {
  const channels = shape.at(dim) as number;
  const options = { dtype, requiresGrad: true } as const;
  return [randn(shape, options), randn([channels], options), randn([channels], options)] as const;
}

const cases: readonly [shape: number[], dim: number][] = [
  [[5], 0],
  [[2, 3, 5], -1],
  [[3, 4, 5], 1],
  [[4, 7, 3, 3], 1],
  [[2, 64, 9, 5], 1],
  [[33, 384], -1],
  [[2, 3, 4, 5, 6], 2],
  [[3, 4099], 1],
];

describe.each(['float32', 'float64'] as const)('scale_shift in %s', (dtype) => {
  test.each(cases)('equals the formula, forward and backward: %j along %i', (shape, dim) => {
    const inputs = make(shape, dim, dtype);
    const y = scaleShift(...inputs, dim);
    const expected = reference(...inputs, dim);
    const cotangent = randn(shape, { dtype });
    const tolerance = dtype === 'float32' ? 1e-6 : 1e-13;
    expect(relativeError(y, expected)).toBeLessThan(tolerance);
    const gradients = grad([y], [...inputs], { gradOutputs: [cotangent] });
    const wanted = grad([expected], [...inputs], { gradOutputs: [cotangent] });
    gradients.forEach((g, i) => {
      expect(relativeError(g as Tensor, wanted[i] as Tensor)).toBeLessThan(tolerance);
    });
  });
});

test('half types compute in float32 and stay what they are', () => {
  for (const dtype of ['bfloat16', 'float16'] as const) {
    const [x, scale, shift] = make([6, 40], -1);
    const y = scaleShift(x.to(dtype), scale, shift);
    expect(y.dtype).toBe(dtype);
    expect(relativeError(y, reference(x.to(dtype).float(), scale, shift, -1))).toBeLessThan(5e-3);
  }
});

test('channels-last maps stay channels-last, gradients too', () => {
  const [x, scale, shift] = make([2, 24, 6, 7], 1);
  const last = x.detach().to({ memoryFormat: 'channels_last' }).requiresGrad_();
  const y = scaleShift(last, scale, shift, 1);
  expect(y.stride()).toEqual(last.stride());
  expect(relativeError(y, reference(x, scale, shift, 1))).toBeLessThan(1e-6);
  const cotangent = randn(y.shape);
  const gradients = grad([y], [last, scale, shift], { gradOutputs: [cotangent] });
  const wanted = grad([reference(x, scale, shift, 1)], [x, scale, shift], { gradOutputs: [cotangent] });
  gradients.forEach((g, i) => {
    expect(relativeError(g as Tensor, wanted[i] as Tensor)).toBeLessThan(1e-6);
  });
});

test('inputs and gradients that are not contiguous', () => {
  const [x, scale, shift] = make([6, 5, 8], 2);
  const turned = x.transpose(0, 1);
  const y = scaleShift(turned, scale, shift);
  expect(relativeError(y, reference(turned, scale, shift, -1))).toBeLessThan(1e-6);
  const [g] = grad([y], [x], { gradOutputs: [randn([8, 6, 5]).permute([2, 1, 0])] });
  expect((g as Tensor).shape).toEqual([6, 5, 8]);
});

test('gradcheck', () => {
  for (const [shape, dim] of [
    [[2, 3, 4], 1],
    [[3, 2, 2, 2], 1],
    [[4, 3], -1],
  ] as const) {
    gradcheck((x, scale, shift) => scaleShift(x, scale, shift, dim), make(shape, dim, 'float64'));
  }
});

test('a gradient of the gradient', () => {
  const inputs = make([3, 4], -1, 'float64');
  gradcheck((...given) => {
    const y = scaleShift(given[0] as Tensor, given[1] as Tensor, given[2] as Tensor)
      .square()
      .sum();
    return (grad([y], [given[0] as Tensor], { createGraph: true })[0] as Tensor).square();
  }, inputs);
});

test('saves the input only if the scale learns', () => {
  const [x, scale, shift] = make([4, 5], -1);
  scale.requiresGrad = false;
  const y = scaleShift(x.mul(1), scale, shift);
  const [gx, gshift] = grad([y.sum()], [x, shift]);
  expect(relativeError(gx as Tensor, scale.expand([4, 5]))).toBeLessThan(1e-6);
  expect((gshift as Tensor).tolist()).toEqual([4, 4, 4, 4, 4]);
});

test('empty tensors', () => {
  const inputs = make([0, 4], -1);
  const y = scaleShift(...inputs);
  expect(y.shape).toEqual([0, 4]);
  const gradients = grad([y.sum()], [...inputs]);
  expect((gradients[1] as Tensor).tolist()).toEqual([0, 0, 0, 0]);
});

test('is the same, bit for bit, every time and for every number of threads', () => {
  const inputs = make([64, 100, 48], -1);
  const cotangent = randn([64, 100, 48]);
  const bits = () => grad([scaleShift(...inputs)], [...inputs], { gradOutputs: [cotangent] }).map((g) => g as Tensor);
  const threads = getNumThreads();
  try {
    setNumThreads(1);
    const once = bits();
    setNumThreads(2);
    bits().forEach((g, i) => {
      expect(g.equal(once[i] as Tensor)).toBe(true);
    });
  } finally {
    setNumThreads(threads);
  }
});

test('under autocast and on the meta device', () => {
  const [x, scale, shift] = make([4, 8], -1);
  const y = autocast({ device: 'cpu', dtype: 'bfloat16' }, () => scaleShift(x.to('bfloat16'), scale, shift));
  expect(y.dtype).toBe('bfloat16');
  const meta = (t: Tensor) => noGrad(() => t.to('meta'));
  expect(scaleShift(meta(x), meta(scale), meta(shift)).shape).toEqual([4, 8]);
});

test('says what is wrong with its arguments', () => {
  const [x, scale, shift] = make([2, 3], -1);
  expect(() => scaleShift(x, scale, shift, 0)).toThrow(/scale must have shape \[2\]/);
  expect(() => scaleShift(x, scale, empty([4]))).toThrow(/shift must have shape \[3\]/);
  expect(() => scaleShift(x, scale, shift, 5)).toThrow(/dim 5 is out of range/);
  expect(() => scaleShift(x, scale.to('float64'), shift)).toThrow(/scale must be Float/);
  expect(() => scaleShift(x.to('int64'), scale, shift)).toThrow(/floating point/);
  expect(() => scaleShift(x, 'scale' as never, shift)).toThrow(TypeError);
});
