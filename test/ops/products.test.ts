import { beforeEach, expect, test } from 'vitest';
import { functional, loraLinear } from '../../lib/nn/index.js';
import { aten, call, grad, inferenceMode, manualSeed, randn, type Tensor } from '../../lib/tensor/index.js';
import { gradcheck, relativeError } from '../support/gradcheck.js';

beforeEach(() => {
  manualSeed(0);
});

const frozenLinear = (x: Tensor, weight: Tensor, bias: Tensor | null) =>
  call('torchgraft::frozen_linear', x, weight, bias);

test.each([[[3, 20]], [[2, 5, 20]], [[700, 20]], [[3, 300, 20]], [[0, 20]]])(
  'frozen_linear equals linear: %j',
  (shape) => {
    const x = randn(shape, { requiresGrad: true });
    const weight = randn([12, 20]);
    for (const bias of [null, randn([12])]) {
      const y = frozenLinear(x, weight, bias);
      const expected = functional.linear(x, weight, bias);
      expect(y.shape).toEqual(expected.shape);
      expect(relativeError(y, expected)).toBeLessThan(1e-6);
      const gradOutputs = [randn(y.shape)];
      const [g] = grad([y], [x], { gradOutputs });
      const [wanted] = grad([expected], [x], { gradOutputs });
      expect(relativeError(g as Tensor, wanted as Tensor)).toBeLessThan(1e-6);
    }
  },
);

test('frozen_linear: learning weights, vectors, views, float64', () => {
  const weight = randn([4, 6], { requiresGrad: true });
  const x = randn([6, 5]).t();
  const [g] = grad([frozenLinear(x, weight, null).sum()], [weight]);
  expect(relativeError(g as Tensor, x.sum([0]).expand([4, 6]))).toBeLessThan(1e-6);
  expect(frozenLinear(randn([6]), weight, null).shape).toEqual([4]);
  const options = { dtype: 'float64', requiresGrad: true } as const;
  gradcheck(
    (...t) => frozenLinear(t[0] as Tensor, t[1] as Tensor, t[2] as Tensor),
    [randn([3, 4], options), randn([5, 4], options), randn([5], options)],
  );
});

test('frozen_linear can be differentiated twice', () => {
  const x = randn([600, 8], { requiresGrad: true });
  const weight = randn([8, 8]);
  const second = (f: typeof frozenLinear) => {
    const [g] = grad([f(x, weight, null).pow(3).sum()], [x], { createGraph: true });
    return grad([(g as Tensor).square().sum()], [x])[0] as Tensor;
  };
  expect(
    relativeError(
      second(frozenLinear),
      second((a, b) => functional.linear(a, b)),
    ),
  ).toBeLessThan(1e-5);
});

test.each([[[4, 16]], [[600, 16]], [[3, 200, 16]]])('lora_linear equals the factored product: %j', (shape) => {
  const x = randn(shape, { requiresGrad: true });
  const down = randn([3, 16], { requiresGrad: true });
  const up = randn([10, 3], { requiresGrad: true });
  const weight = randn([10, 16]);
  const bias = randn([10]);
  const y = loraLinear(x, weight, down, up, { scale: 0.5, bias });
  const expected = functional
    .linear(x, weight, bias)
    .add(functional.linear(functional.linear(x, down), up), { alpha: 0.5 });
  expect(relativeError(y, expected)).toBeLessThan(1e-6);
  const gradOutputs = [randn(y.shape)];
  const gradients = grad([y], [x, down, up], { gradOutputs });
  grad([expected], [x, down, up], { gradOutputs }).forEach((wanted, i) => {
    expect(relativeError(gradients[i] as Tensor, wanted as Tensor)).toBeLessThan(2e-6);
  });
  const quiet = inferenceMode(() => loraLinear(x, weight, down, up, { scale: 0.5, bias }).data());
  expect(relativeError(y, aten.viewAs(y, y))).toBe(0);
  expect(quiet).toEqual(y.data());
});

test('lora_linear: gradcheck, and what is wrong with its arguments', () => {
  const options = { dtype: 'float64', requiresGrad: true } as const;
  const weight = randn([5, 4], { dtype: 'float64' });
  gradcheck(
    (...t) => loraLinear(t[0] as Tensor, weight, t[1] as Tensor, t[2] as Tensor, { scale: 2 }),
    [randn([3, 4], options), randn([2, 4], options), randn([5, 2], options)],
  );
  expect(() => loraLinear(randn([3, 4]), randn([5, 4]), randn([2, 4]), randn([5, 3]))).toThrow(/down \[r, in\]/);
});
