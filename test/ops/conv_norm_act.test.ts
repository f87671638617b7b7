import { beforeEach, describe, expect, test } from 'vitest';
import { BatchNorm2d, Context, Conv2d, convNormAct } from '../../lib/nn/index.js';
import {
  type DType,
  grad,
  inferenceMode,
  manualSeed,
  noGrad,
  rand,
  randn,
  type Tensor,
} from '../../lib/tensor/index.js';
import { gradcheck, relativeError } from '../support/gradcheck.js';

beforeEach(() => {
  manualSeed(0);
});

interface Options {
  readonly dtype?: DType;
  readonly stride?: number;
  readonly groups?: number;
  readonly bias?: boolean;
}

/** A frozen convolution and a BatchNorm with statistics that are not 0 and 1, in evaluation mode. */
function layers(
  inChannels: number,
  outChannels: number,
  { dtype = 'float32', stride = 1, groups = 1, bias = false }: Options = {},
) {
  const conv = new Conv2d(inChannels, outChannels, { kernelSize: 3, padding: 1, stride, groups, bias });
  const norm = new BatchNorm2d(outChannels);
  noGrad(() => {
    for (const t of [norm.weight, norm.bias, norm.running_mean]) t?.copy_(randn([outChannels]));
    norm.running_var?.copy_(rand([outChannels]).add(0.5));
  });
  for (const layer of [conv, norm]) layer.to({ dtype }).freeze().eval();
  return { conv, norm };
}

/** The formula, module after module. */
function reference(
  conv: Conv2d,
  norm: BatchNorm2d,
  x: Tensor,
  residual: Tensor | undefined,
  act: 'relu' | 'none',
): Tensor {
  const ctx = new Context();
  const y = norm.forward(conv.forward(x), ctx);
  const sum = residual ? y.add(residual) : y;
  return act === 'relu' ? sum.relu() : sum;
}

const layouts = ['contiguous_format', 'channels_last'] as const;

describe.each(layouts)('conv_norm_act in %s', (memoryFormat) => {
  const shapes = [
    { inChannels: 5, outChannels: 7, size: [9, 7] },
    { inChannels: 16, outChannels: 16, size: [8, 8] },
    { inChannels: 6, outChannels: 24, size: [13, 5], stride: 2, groups: 3, bias: true },
  ];
  test.each(shapes)('equals the modules, forward and backward: %j', ({ inChannels, outChannels, size, ...options }) => {
    for (const dtype of ['float32', 'float64'] as const) {
      for (const act of ['relu', 'none'] as const) {
        for (const withResidual of [false, true]) {
          const { conv, norm } = layers(inChannels, outChannels, { ...options, dtype });
          const x = randn([3, inChannels, ...size], { dtype })
            .to({ memoryFormat })
            .requiresGrad_();
          const out = reference(conv, norm, x, undefined, act).shape;
          const residual = withResidual ? randn(out, { dtype, requiresGrad: true }) : undefined;
          const inputs = residual ? [x, residual] : [x];
          const y = convNormAct(conv, norm, x, new Context(), { act, ...(residual && { residual }) });
          const expected = reference(conv, norm, x, residual, act);
          const tolerance = dtype === 'float32' ? 1e-6 : 1e-13;
          expect(relativeError(y, expected)).toBeLessThan(tolerance);
          const gradOutputs = [randn(out, { dtype })];
          const gradients = grad([y], inputs, { gradOutputs });
          const wanted = grad([expected], inputs, { gradOutputs });
          gradients.forEach((g, i) => {
            expect(relativeError(g as Tensor, wanted[i] as Tensor)).toBeLessThan(tolerance);
          });
        }
      }
    }
  });
});

test('gradcheck, also of the gradient of the gradient', () => {
  const { conv, norm } = layers(3, 4, { dtype: 'float64' });
  const options = { dtype: 'float64', requiresGrad: true } as const;
  const inputs = [randn([2, 3, 4, 5], options), randn([2, 4, 4, 5], options)];
  const run = (x: Tensor, residual: Tensor) => convNormAct(conv, norm, x, new Context(), { residual });
  gradcheck((x, residual) => run(x, residual), inputs);
  gradcheck((x, residual) => {
    const y = run(x, residual).square().sum();
    return (grad([y], [x], { createGraph: true })[0] as Tensor).sin();
  }, inputs);
});

test('learning weights get their gradients', () => {
  const { conv, norm } = layers(3, 4);
  const learning = [conv.weight, norm.weight as Tensor, norm.bias as Tensor];
  for (const t of learning) t.requiresGrad = true;
  const x = randn([2, 3, 6, 6]);
  const gradOutputs = [randn([2, 4, 6, 6])];
  const gradients = grad([convNormAct(conv, norm, x, new Context())], learning, { gradOutputs });
  const wanted = grad([reference(conv, norm, x, undefined, 'relu')], learning, { gradOutputs });
  gradients.forEach((g, i) => {
    expect(relativeError(g as Tensor, wanted[i] as Tensor)).toBeLessThan(1e-6);
  });
});

test('a norm in training mode uses and updates the statistics of the batch', () => {
  const { conv, norm } = layers(3, 4);
  norm.train();
  const before = norm.running_mean?.clone() as Tensor;
  const y = convNormAct(conv, norm, randn([4, 3, 6, 6]), new Context(), { act: 'none' });
  expect(
    y
      .mean([0, 2, 3])
      .sub(norm.bias as Tensor)
      .abs()
      .max()
      .item(),
  ).toBeLessThan(1e-5);
  expect(before.equal(norm.running_mean as Tensor)).toBe(false);
});

test('NaN passes, as it does through ReLU', () => {
  const { conv, norm } = layers(2, 2);
  const x = randn([1, 2, 3, 3]);
  noGrad(() => x.fill_(NaN));
  expect((convNormAct(conv, norm, x, new Context()).data() as Float32Array).every(Number.isNaN)).toBe(true);
});

test('inference equals training, and half types are close', () => {
  const { conv, norm } = layers(8, 8);
  const x = randn([2, 8, 5, 5], { requiresGrad: true });
  const y = convNormAct(conv, norm, x, new Context());
  const quiet = inferenceMode(() => convNormAct(conv, norm, x, new Context()).data());
  expect(quiet).toEqual(y.data());
  for (const layer of [conv, norm]) layer.to({ dtype: 'bfloat16' });
  const half = convNormAct(conv, norm, x.detach().to('bfloat16'), new Context());
  expect(half.dtype).toBe('bfloat16');
  expect(relativeError(half, y)).toBeLessThan(2e-2);
});

test('an empty batch', () => {
  const { conv, norm } = layers(3, 4);
  expect(convNormAct(conv, norm, randn([0, 3, 6, 6]), new Context()).shape).toEqual([0, 4, 6, 6]);
});

test('says what is wrong with its arguments', () => {
  const { conv, norm } = layers(3, 4);
  const ctx = new Context();
  expect(() => convNormAct(conv, norm, randn([3, 6, 6]), ctx)).toThrow(/expected maps/);
  expect(() => convNormAct(conv, norm, randn([2, 5, 6, 6]), ctx)).toThrow(/conv/);
  expect(() => convNormAct(conv, norm, randn([2, 3, 6, 6]), ctx, { residual: randn([2, 4, 5, 5]) })).toThrow(
    /residual/,
  );
  expect(() => convNormAct(conv, norm, randn([2, 3, 6, 6]), ctx, { act: 'gelu' as never })).toThrow(/act must be/);
  expect(() => convNormAct(conv, norm, 3 as never, ctx)).toThrow(TypeError);
});
