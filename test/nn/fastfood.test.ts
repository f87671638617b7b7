import { describe, expect, it, test } from 'vitest';
import { Fastfood, powerOfTwo, walshHadamard } from '../../lib/nn/index.js';
import { aten, grad, manualSeed, randn, scope, tensor, type Tensor, zeros } from '../../lib/tensor/index.js';

/** Sylvester's construction: H_2n = [[H, H], [H, -H]]. */
function sylvester(size: number): Tensor {
  if (size === 1) return tensor([[1]], { dtype: 'float64' });
  const half = sylvester(size / 2);
  const top = aten.cat([half, half], 1);
  return aten.cat([top, aten.cat([half, half.neg()], 1)], 0);
}

const error = (a: Tensor, b: Tensor): number => Number(a.sub(b).norm().item()) / Number(b.norm().item());

describe('walshHadamard', () => {
  // One group of bits; two; groups of unequal width.
  it.each([1, 2, 4, 64, 128, 1024, 8192])('of %d numbers is the product with the matrix', (size) => {
    scope(() => {
      const x = randn([3, size], { dtype: 'float64' });
      const y = walshHadamard(x);
      expect(y.shape).toEqual([3, size]);
      expect(error(y, x.mm(sylvester(size)))).toBeLessThan(1e-13);
      expect(error(walshHadamard(x.select(0, 1)), y.select(0, 1))).toBeLessThan(1e-13);
    });
  });

  it('is its own gradient', () => {
    const x = randn([2, 256], { dtype: 'float64' }).requiresGrad_();
    const weights = randn([2, 256], { dtype: 'float64' });
    const [found] = grad([walshHadamard(x).mul(weights).sum()], [x]);
    expect(error(found as Tensor, walshHadamard(weights))).toBeLessThan(1e-13);
  });

  it('refuses a length that is no power of two', () => {
    expect(() => walshHadamard(randn([2, 12]))).toThrow(/12 is no power of two; pad it to 16/);
    expect(powerOfTwo(1)).toBe(1);
    expect(powerOfTwo(4097)).toBe(8192);
  });
});

describe('Fastfood', () => {
  /** The formula, step by step, with θ padded to the whole length. */
  function reference({ dimension, size, signs, permutation, gaussians }: Fastfood, theta: Tensor): Tensor {
    const length = powerOfTwo(size);
    const matrix = sylvester(length);
    const padded = aten.cat([theta, zeros([length - dimension], { dtype: 'float64' })]);
    const mixed = padded.mul(signs).unsqueeze(0).mm(matrix).squeeze(0).indexSelect(0, permutation).mul(gaussians);
    const whole = mixed.unsqueeze(0).mm(matrix).squeeze(0).narrow(0, 0, size);
    const energy = Number(gaussians.square().sum().item());
    return whole.div(Math.sqrt(length * energy) * Math.sqrt(size / length));
  }

  it.each([
    [1, 1],
    [1, 100],
    [5, 37],
    [100, 700],
    [64, 64],
    [700, 700],
  ])('from %d to %d numbers is the formula', (d, size) => {
    scope(() => {
      manualSeed(d);
      const map = new Fastfood(d, size);
      const theta = randn([d], { dtype: 'float64' });
      const y = map.run(theta);
      expect(y.shape).toEqual([size]);
      expect(error(y, reference(map, theta))).toBeLessThan(1e-6);
    });
  });

  it('keeps lengths, about', () => {
    manualSeed(1);
    const theta = randn([50]);
    const ratio = Number(new Fastfood(50, 5000).run(theta).norm().item()) / Number(theta.norm().item());
    expect(ratio).toBeGreaterThan(0.7);
    expect(ratio).toBeLessThan(1.3);
  });

  test('takes as many numbers as it was made for, and no more than there are', () => {
    expect(() => new Fastfood(11, 10)).toThrow(/dimension of 1 to 10, not 11/);
    expect(() => new Fastfood(0, 10)).toThrow(RangeError);
    expect(() => new Fastfood(3, 10).run(zeros([4]))).toThrow(/expected 3 numbers, got shape \[4\]/);
  });
});
