import { inspect } from 'node:util';
import { describe, expect, test } from 'vitest';
import { arange, fromTypedArray, memory, ones, tensor, Tensor, zeros } from '../../lib/tensor/index.js';
import type { DType } from '../../lib/tensor/index.js';
import goldens from './goldens.json' with { type: 'json' };
import { settledMemory } from '../support/settled_memory.js';

interface PrintCase {
  name: string;
  dtype: DType;
  shape: number[];
  text: string;
  data?: (number | string | boolean)[];
  ramp?: [number, number, number];
  requiresGrad?: boolean;
}

const number = (v: number | string | boolean) => (typeof v === 'string' ? Number(v.replace('inf', 'Infinity')) : v);

function build(c: PrintCase): Tensor {
  if (c.ramp) {
    const [n, scale, offset] = c.ramp;
    return arange(n, { dtype: 'float64' }).mul(scale).add(offset).to(c.dtype).reshape(c.shape);
  }
  const values = (c.data ?? []).map(number);
  if (c.name === 'int64 extremes') {
    return tensor([2n ** 63n - 1n, -(2n ** 63n)]);
  }
  if (c.dtype === 'complex64') return fromTypedArray(Float32Array.from(values as number[]), c.shape, c.dtype);
  if (c.dtype === 'complex128') return fromTypedArray(Float64Array.from(values as number[]), c.shape, c.dtype);
  return tensor(values, { dtype: c.dtype, shape: c.shape, requiresGrad: c.requiresGrad });
}

describe('toString is what PyTorch prints', () => {
  const cases = goldens.prints as unknown as PrintCase[];
  test.each(cases.map((c) => [c.name, c] as const))('%s', (_, c) => {
    expect(build(c).toString()).toBe(c.text);
  });

  test('there are cases', () => expect(cases.length).toBeGreaterThan(40));
});

test('a result of autograd shows its operation', () => {
  const x = tensor([1, 2], { requiresGrad: true });
  expect(String(x.mul(2).add(x))).toBe('tensor([3., 6.], grad_fn=<AddBackward0>)');
});

test('a meta tensor has no elements to show', () => {
  expect(String(zeros([2, 3], { device: 'meta' }))).toBe("tensor(..., device='meta', size=(2, 3))");
  expect(String(zeros([4], { device: 'meta', dtype: 'float16' }))).toBe(
    "tensor(..., device='meta', size=(4,), dtype=torch.float16)",
  );
});

test('views print their own elements', () => {
  expect(String(arange(6).reshape([2, 3]).t())).toBe('tensor([[0, 3],\n        [1, 4],\n        [2, 5]])');
});

test('util.inspect shows the same, and never throws', () => {
  const x = ones([2]);
  expect(inspect(x)).toBe('tensor([1., 1.])');
  expect(inspect({ x })).toContain('tensor([1., 1.])');
  x.dispose();
  expect(inspect(x)).toBe('Tensor (freed)');
  expect(inspect(new Tensor())).toBe('Tensor (empty)');
});

test('printing leaves nothing behind', () => {
  const x = ones([50, 50]);
  const before = settledMemory().tensors;
  String(x);
  expect(memory().tensors).toBe(before);
});
