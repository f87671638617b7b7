import { beforeEach, expect, test } from 'vitest';
import { bypassConv, functional } from '../../lib/nn/index.js';
import { aten, grad, inferenceMode, manualSeed, ones, randn, type Tensor } from '../../lib/tensor/index.js';
import { gradcheck, relativeError } from '../support/gradcheck.js';

beforeEach(() => {
  manualSeed(0);
});

interface Place {
  readonly grid: readonly [number, number];
  readonly before?: number;
}

const quickGelu = (t: Tensor): Tensor => t.mul(t.mul(1.702).sigmoid());

/** The formula, one image of one pixel for each token that is no patch. */
function reference(z: Tensor, weight: Tensor, bias: Tensor | null, { grid: [height, width], before = 0 }: Place) {
  const [batch = 0, length = 0, channels = 0] = z.shape;
  const padding = ((weight.shape[2] ?? 1) - 1) / 2;
  const u = quickGelu(z);
  const convolve = (from: number, [h, w]: readonly [number, number]): Tensor => {
    const map = u
      .narrow(1, from, h * w)
      .reshape([batch, h, w, channels])
      .permute([0, 3, 1, 2]);
    return functional
      .conv2d(map, weight, bias, { padding })
      .permute([0, 2, 3, 1])
      .reshape([batch, h * w, channels]);
  };
  const parts: Tensor[] = [];
  for (let i = 0; i < before; i++) parts.push(convolve(i, [1, 1]));
  parts.push(convolve(before, [height, width]));
  for (let i = before + height * width; i < length; i++) parts.push(convolve(i, [1, 1]));
  return quickGelu(aten.cat(parts, 1));
}

// Bottlenecks narrower, as wide and wider than a vector of the processor, and wider than the kernel takes; maps smaller
// than the window; tokens before and after; kernels of every odd size; one sample and more than there are stretches.
const cases = [
  { tokens: [2, 197, 8], side: 3, grid: [14, 14], before: 1 },
  { tokens: [3, 30, 5], side: 3, grid: [4, 6], before: 2 },
  { tokens: [1, 12, 16], side: 5, grid: [3, 4], before: 0 },
  { tokens: [2, 7, 3], side: 7, grid: [2, 2], before: 1 },
  { tokens: [40, 9, 8], side: 1, grid: [3, 3], before: 0 },
  { tokens: [2, 3, 11], side: 3, grid: [1, 1], before: 1 },
  { tokens: [2, 26, 33], side: 3, grid: [5, 5], before: 1 },
] as const;

test.each(cases)('bypass_conv equals its formula: $tokens, $side, $grid', ({ tokens, side, grid, before }) => {
  const h = tokens[2];
  const z = randn([...tokens], { requiresGrad: true });
  const weight = randn([h, h, side, side], { requiresGrad: true });
  for (const bias of [null, randn([h], { requiresGrad: true })]) {
    const y = bypassConv(z, weight, bias, { grid, before });
    const expected = reference(z, weight, bias, { grid, before });
    expect(relativeError(y, expected)).toBeLessThan(2e-6);
    const gradOutputs = [randn(y.shape)];
    const inputs = bias ? [z, weight, bias] : [z, weight];
    const gradients = grad([y], inputs, { gradOutputs });
    grad([expected], inputs, { gradOutputs }).forEach((wanted, i) => {
      expect(relativeError(gradients[i] as Tensor, wanted as Tensor)).toBeLessThan(5e-6);
    });
    expect(inferenceMode(() => bypassConv(z, weight, bias, { grid, before }).data())).toEqual(y.data());
  }
});

test('bypass_conv: gradcheck, views, parts that do not learn, second derivatives', () => {
  const options = { dtype: 'float64', requiresGrad: true } as const;
  const place = { grid: [2, 3], before: 1 } as const;
  const inputs = [randn([2, 8, 3], options), randn([3, 3, 3, 3], options), randn([3], options)];
  const middle = (...t: readonly unknown[]): Tensor =>
    bypassConv(t[0] as Tensor, t[1] as Tensor, t[2] as Tensor, place);
  gradcheck(middle, inputs);
  gradcheck((...t) => bypassConv(t[0] as Tensor, inputs[1]!.detach(), null, place), [inputs[0]!]);
  gradcheck((...t) => bypassConv(inputs[0]!.detach(), t[0] as Tensor, null, place), [inputs[1]!]);
  gradcheck(
    (...t) => {
      const total = middle(...t)
        .pow(2)
        .sum();
      return grad([total], [t[1] as Tensor], { createGraph: true })[0] as Tensor;
    },
    inputs.map((t) => t.detach().requiresGrad_(true)),
  );
  const [z, weight] = [randn([3, 8, 2]), randn([3, 3, 3, 3])];
  const turned = z.permute([2, 1, 0]);
  expect(relativeError(bypassConv(turned, weight, null, place), reference(turned, weight, null, place))).toBeLessThan(
    2e-6,
  );
});

test('bypass_conv: numbers that leave the exponential', () => {
  const z = ones([1, 4, 2]).mul(1e30);
  for (const sign of [1, -1]) {
    const y = bypassConv(z.mul(sign), randn([2, 2, 1, 1]).abs(), null, { grid: [2, 2] });
    expect([...y.data()].every(Number.isFinite)).toBe(true);
  }
  expect(bypassConv(randn([0, 4, 2]), randn([2, 2, 3, 3]), null, { grid: [2, 2] }).shape).toEqual([0, 4, 2]);
});

test('bypass_conv says what is wrong with its arguments', () => {
  const [z, weight] = [randn([2, 5, 3]), randn([3, 3, 3, 3])];
  expect(() => bypassConv(randn([5, 3]), weight, null, { grid: [2, 2] })).toThrow(/tokens \[B, N, h\]/);
  expect(() => bypassConv(z, randn([3, 3, 2, 2]), null, { grid: [2, 2] })).toThrow(/odd side k/);
  expect(() => bypassConv(z, randn([4, 3, 3, 3]), null, { grid: [2, 2] })).toThrow(/kernel \[h, h, k, k\]/);
  expect(() => bypassConv(z, weight, randn([2]), { grid: [2, 2] })).toThrow(/a bias \[h\]/);
  expect(() => bypassConv(z, weight, null, { grid: [2, 3] })).toThrow(/2 x 3 after 0 tokens does not fit in 5 tokens/);
  expect(() => bypassConv(z, weight, null, { grid: [2, 2], before: -1 })).toThrow(/does not fit/);
  expect(() => bypassConv(z, weight, null, { grid: [2 ** 40, 2 ** 40] })).toThrow(/does not fit/);
});
