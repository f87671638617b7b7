import { beforeEach, expect, test } from 'vitest';
import {
  aten,
  call,
  getNumThreads,
  grad,
  manualSeed,
  randn,
  setNumThreads,
  type Tensor,
} from '../../lib/tensor/index.js';
import { gradcheck, relativeError } from '../support/gradcheck.js';

beforeEach(() => {
  manualSeed(0);
});

interface Case {
  readonly batch: number;
  readonly groups: number;
  readonly perGroup: number;
  readonly size: readonly [number, number];
  readonly kernel: number;
  readonly stride?: number;
  readonly padding?: number;
  readonly dilation?: number;
}

const cases: Case[] = [
  { batch: 2, groups: 4, perGroup: 4, size: [7, 9], kernel: 3, padding: 1 },
  { batch: 3, groups: 5, perGroup: 3, size: [8, 8], kernel: 3, stride: 2, padding: 1 },
  { batch: 1, groups: 3, perGroup: 2, size: [9, 9], kernel: 5, stride: 2, padding: 2 },
  { batch: 2, groups: 8, perGroup: 4, size: [9, 9], kernel: 3, padding: 2, dilation: 2 },
  { batch: 2, groups: 4, perGroup: 4, size: [4, 4], kernel: 2, stride: 2 },
  { batch: 2, groups: 33, perGroup: 7, size: [5, 5], kernel: 1 },
];

function make(
  { batch, groups, perGroup, size, kernel, stride = 1, padding = 0, dilation = 1 }: Case,
  dtype: 'float32' | 'float64',
) {
  const x = randn([batch, groups * perGroup, ...size], { dtype })
    .to({ memoryFormat: 'channels_last' })
    .requiresGrad_();
  const weight = randn([groups, perGroup, kernel, kernel], { dtype, requiresGrad: true });
  const bias = randn([groups], { dtype, requiresGrad: true });
  const geometry = [[stride, stride], [padding, padding], [dilation, dilation], groups] as const;
  const tensors: [Tensor, Tensor, Tensor] = [x, weight, bias];
  return { tensors, geometry };
}

test.each(cases)('group_conv equals conv2d, forward and backward: %j', (shape) => {
  for (const dtype of ['float32', 'float64'] as const) {
    const { tensors, geometry } = make(shape, dtype);
    const y = call('torchgraft::group_conv', ...tensors, ...geometry);
    const expected = aten.conv2d(...tensors, ...geometry);
    const tolerance = dtype === 'float32' ? 2e-6 : 1e-13;
    expect(y.gradFn).toMatch(/GroupConv/);
    expect(relativeError(y, expected)).toBeLessThan(tolerance);
    const gradOutputs = [randn(y.shape, { dtype })];
    const gradients = grad([y], tensors, { gradOutputs });
    grad([expected], tensors, { gradOutputs }).forEach((wanted, i) => {
      expect(relativeError(gradients[i] as Tensor, wanted as Tensor)).toBeLessThan(tolerance);
    });
  }
});

test('gradcheck, also of the gradient of the gradient', () => {
  const { tensors, geometry } = make(
    { batch: 1, groups: 2, perGroup: 2, size: [4, 3], kernel: 3, padding: 1 },
    'float64',
  );
  gradcheck((...t) => call('torchgraft::group_conv', ...t, ...geometry), tensors);
  gradcheck((...t) => {
    const y = call('torchgraft::group_conv', ...t, ...geometry)
      .square()
      .sum();
    return grad([y], [t[1] as Tensor], { createGraph: true })[0] as Tensor;
  }, tensors);
});

test('is the same, bit for bit, for every number of threads', () => {
  const { tensors, geometry } = make(
    { batch: 6, groups: 8, perGroup: 4, size: [16, 16], kernel: 3, padding: 1 },
    'float32',
  );
  const bits = () =>
    grad(
      [
        call('torchgraft::group_conv', ...tensors, ...geometry)
          .square()
          .sum(),
      ],
      tensors,
    ) as Tensor[];
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

test('what it has no way of its own for is conv2d', () => {
  const x = randn([2, 8, 5, 5]);
  const weight = randn([4, 2, 3, 3]);
  const y = call('torchgraft::group_conv', x, weight, null, [1, 1], [1, 1], [1, 1], 4);
  expect(relativeError(y, aten.conv2d(x, weight, null, [1, 1], [1, 1], [1, 1], 4))).toBe(0);
  expect(() => call('torchgraft::group_conv', x, randn([4, 3, 3, 3]), null, [1, 1], [1, 1], [1, 1], 4)).toThrow(/conv/);
});
