import { beforeEach, expect, test } from 'vitest';
import { functional, kroneckerLinear, loraLinear } from '../../lib/nn/index.js';
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

// Factors of every form: vectors, single numbers, either order of the two products the shorter one, rows of one or of
// several vectors of the processor, with and without a rest.
const factors = [
  { a: [2, 3], b: [5, 4] },
  { a: [6, 2], b: [2, 7] },
  { a: [4, 4], b: [3, 3] },
  { a: [1, 8], b: [9, 1] },
  { a: [1, 1], b: [1, 1] },
  { a: [24, 16], b: [16, 24] },
  { a: [13, 9], b: [17, 50] },
  { a: [3, 40], b: [33, 2] },
] as const;

test.each(factors)('kronecker_linear equals the product with A ⊗ B: $a, $b', ({ a: aShape, b: bShape }) => {
  const [a, b] = [randn([...aShape], { requiresGrad: true }), randn([...bShape], { requiresGrad: true })];
  const [inFeatures, outFeatures] = [aShape[0] * bShape[0], aShape[1] * bShape[1]];
  const weight = randn([outFeatures, inFeatures]);
  for (const shape of [[inFeatures], [1, inFeatures], [3, 70, inFeatures], [0, inFeatures]]) {
    const x = randn(shape, { requiresGrad: true });
    for (const layer of [{}, { weight }, { weight, bias: randn([outFeatures]) }]) {
      const y = kroneckerLinear(x, a, b, { scale: 0.5, ...layer });
      const increment = x.matmul(a.kron(b)).mul(0.5);
      const expected = layer.weight ? functional.linear(x, layer.weight, layer.bias ?? null).add(increment) : increment;
      expect(y.shape).toEqual(expected.shape);
      if (x.numel() === 0) continue;
      expect(relativeError(y, expected)).toBeLessThan(2e-6);
      const gradOutputs = [randn(y.shape)];
      const gradients = grad([y], [x, a, b], { gradOutputs });
      grad([expected], [x, a, b], { gradOutputs }).forEach((wanted, i) => {
        expect(relativeError(gradients[i] as Tensor, wanted as Tensor)).toBeLessThan(5e-6);
      });
      expect(inferenceMode(() => kroneckerLinear(x, a, b, { scale: 0.5, ...layer }).data())).toEqual(y.data());
    }
  }
});

test('kronecker_linear: gradcheck, views, learning weights, second derivatives', () => {
  const options = { dtype: 'float64', requiresGrad: true } as const;
  const weight = randn([6, 6], { dtype: 'float64' });
  const inputs = [randn([5, 6], options), randn([3, 2], options), randn([2, 3], options)];
  const product = (...t: readonly unknown[]): Tensor =>
    kroneckerLinear(t[0] as Tensor, t[1] as Tensor, t[2] as Tensor, { scale: 3, weight });
  gradcheck(product, inputs);
  gradcheck((...t) => kroneckerLinear(t[0] as Tensor, t[1] as Tensor, t[2] as Tensor), inputs);
  gradcheck(
    (...t) => kroneckerLinear(t[0] as Tensor, t[1] as Tensor, t[2] as Tensor, { weight: t[3] as Tensor }),
    [...inputs, randn([6, 6], options)],
  );
  gradcheck((...t) => {
    const [first] = grad(
      [
        product(...t)
          .pow(2)
          .sum(),
      ],
      [t[0] as Tensor],
      { createGraph: true },
    );
    return first as Tensor;
  }, inputs);
  const [x, a, b] = [randn([6, 4]), randn([3, 2]), randn([3, 2])];
  expect(relativeError(kroneckerLinear(x.t(), a, b.t()), x.t().matmul(a.kron(b.t().contiguous())))).toBeLessThan(1e-6);
});

test('kronecker_linear says what is wrong with its arguments', () => {
  expect(() => kroneckerLinear(randn([3, 5]), randn([3, 2]), randn([2, 3]))).toThrow(/x \[\.\.\., a1 b1\]/);
  expect(() => kroneckerLinear(randn([3, 6]), randn([6]), randn([2, 3]))).toThrow(/A \[a1, a2\]/);
  expect(() => kroneckerLinear(randn([3, 6]), randn([3, 2]), randn([2, 3]), { weight: randn([6, 5]) })).toThrow(
    /weight \[a2 b2, a1 b1\]/,
  );
  expect(() => kroneckerLinear(randn([3, 6]), randn([3, 2]), randn([2, 3]), { bias: randn([6]) })).toThrow(
    /a bias without a weight/,
  );
});
