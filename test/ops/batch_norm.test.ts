/** Batch normalization by the batch's statistics on channels-last maps, where our kernel stands in for LibTorch's. */
import { beforeEach, expect, test } from 'vitest';
import { aten, type DType, full, grad, manualSeed, ones, randn, type Tensor, zeros } from '../../lib/tensor/index.js';
import { relativeError } from '../support/gradcheck.js';

beforeEach(() => {
  manualSeed(0);
});

interface Run {
  readonly y: Tensor;
  readonly gradients: readonly (Tensor | null)[];
  readonly running: readonly Tensor[];
}

interface Inputs {
  readonly x: Tensor;
  readonly weight: Tensor | null;
  readonly bias: Tensor | null;
  readonly gradient: Tensor;
}

function normalize({ x, weight, bias, gradient }: Inputs, dtype: DType, isChannelsLast: boolean): Run {
  const channels = x.shape[1] as number;
  const learned = (t: Tensor): Tensor => t.to(dtype).clone().detach().requiresGrad_(true);
  const map = learned(isChannelsLast ? x.contiguous({ memoryFormat: 'channels_last' }) : x);
  const [w, b] = [weight && learned(weight), bias && learned(bias)];
  const running = [zeros([channels], { dtype }), ones([channels], { dtype })] as const;
  const y = aten.batchNorm(map, w, b, running[0], running[1], true, 0.3, 1e-5, true);
  const wanted = [map, w, b].filter((t) => t !== null);
  return { y, gradients: grad([y], wanted, { gradOutputs: [gradient.to(dtype)] }), running };
}

test.each([
  { shape: [8, 64, 14, 14], mean: 0, affine: true },
  { shape: [3, 5, 7, 9], mean: 1, affine: false },
  { shape: [2, 17, 1, 3], mean: 10, affine: true },
  { shape: [16, 3, 40, 40], mean: -5, affine: true },
])('outputs, gradients and running statistics are right to the last digits: $shape, mean $mean', (c) => {
  const { shape, mean, affine } = c;
  const vector = (): Tensor | null => (affine ? randn([shape[1] as number]) : null);
  const inputs = {
    x: randn(shape).mul(2).add(mean),
    weight: vector(),
    bias: vector(),
    gradient: randn(shape),
  };
  const exact = normalize(inputs, 'float64', false);
  const ours = normalize(inputs, 'float32', true);
  expect(ours.y.isContiguous('channels_last')).toBe(true);
  // A large mean costs digits in float32 whatever the sums: those of the differences from it.
  const tolerance = 2e-7 * (1 + Math.abs(mean));
  expect(relativeError(ours.y, exact.y)).toBeLessThan(tolerance);
  exact.gradients.forEach((wanted, i) => {
    expect(relativeError(ours.gradients[i] as Tensor, wanted as Tensor)).toBeLessThan(tolerance);
  });
  exact.running.forEach((wanted, i) => {
    expect(relativeError(ours.running[i] as Tensor, wanted)).toBeLessThan(2e-7);
  });
});

test('constant maps, NaN and second derivatives are as on contiguous maps', () => {
  const gradient = randn([2, 3, 4, 4]);
  const both = (x: Tensor): readonly [Run, Run] => {
    const inputs = { x, weight: null, bias: null, gradient };
    return [normalize(inputs, 'float32', true), normalize(inputs, 'float32', false)];
  };
  const [flat] = both(full([2, 3, 4, 4], 1e6));
  expect(flat.y.abs().max().item()).toBe(0);
  const broken = randn([2, 3, 4, 4]);
  broken.select(1, 1).fill_(NaN);
  const [ours, theirs] = both(broken);
  expect(ours.y.isnan().sum().item()).toBe(32);
  expect(ours.running[0]?.isnan().tolist()).toEqual(theirs.running[0]?.isnan().tolist());
  const second = (memoryFormat: 'channels_last' | 'contiguous_format'): Tensor => {
    manualSeed(1);
    const x = randn([2, 3, 4, 4]).contiguous({ memoryFormat }).requiresGrad_(true);
    const y = aten.batchNorm(x, null, null, null, null, true, 0, 1e-5, true);
    const [first] = grad([y.pow(3).sum()], [x], { createGraph: true });
    return grad([(first as Tensor).square().sum()], [x])[0] as Tensor;
  };
  expect(relativeError(second('channels_last'), second('contiguous_format'))).toBeLessThan(1e-4);
});
