import { describe, expect, it } from 'vitest';
import { bceWithLogits, crossEntropy, functional, klDiv, mseLoss } from '../../lib/nn/index.js';
import { full, grad, randn, type Tensor } from '../../lib/tensor/index.js';
import { relativeError } from '../support/gradcheck.js';
import { expectClose, golden, stored } from './golden.js';

const of = (name: string): Tensor => stored(golden.losses[name]);
const logits = of('logits');
const labels = stored(golden.losses['labels'], 'int64');
const [soft, weight, binary, posWeight] = [of('soft'), of('weight'), of('binary'), of('posWeight')];

const cases: Record<string, () => Tensor> = {
  plain: () => crossEntropy(logits, labels),
  smooth: () => crossEntropy(logits, labels, { labelSmoothing: 0.1 }),
  weighted: () => crossEntropy(logits, labels, { weight, labelSmoothing: 0.2 }),
  none: () => crossEntropy(logits, labels, { reduction: 'none' }),
  sum: () => crossEntropy(logits, labels, { reduction: 'sum' }),
  softTargets: () => crossEntropy(logits, soft, { labelSmoothing: 0.1 }),
  softWeighted: () => crossEntropy(logits, soft, { weight }),
  dense: () => crossEntropy(of('maps'), stored(golden.losses['mapLabels'], 'int64')),
  ignoring: () => crossEntropy(logits, labels, { ignoreIndex: 4 }),
  mse: () => mseLoss(logits, soft),
  bce: () => bceWithLogits(logits, binary, { posWeight }),
  kl: () => klDiv(functional.logSoftmax(logits, 1), soft, { reduction: 'batchmean' }),
  klLog: () => klDiv(functional.logSoftmax(logits, 1), soft.log(), { reduction: 'sum', logTarget: true }),
};

describe('losses', () => {
  for (const [name, compute] of Object.entries(cases)) {
    it(`${name} equals PyTorch's`, () => expectClose(compute(), of(name)));
  }

  it('smoothed and soft targets agree', () => {
    const smoothed = labels
      .oneHot(5)
      .to('float32')
      .mul(0.9)
      .add(0.1 / 5);
    expectClose(crossEntropy(logits, smoothed), crossEntropy(logits, labels, { labelSmoothing: 0.1 }));
  });

  it('refuse wrong options', () => {
    expect(() => crossEntropy(logits, labels, { labelSmoothing: 2 })).toThrow(/labelSmoothing must lie in \[0, 1\]/);
    expect(() => mseLoss(logits, soft, { reduction: 'avg' as never })).toThrow(/mseLoss: reduction must be/);
    expect(() => crossEntropy(logits, soft.narrow(0, 0, 2))).toThrow();
  });
});

describe('functional', () => {
  it('normalize gives unit vectors', () => {
    const x = randn([3, 4]);
    expectClose(functional.normalize(x).square().sum([1]), stored([1, 1, 1]));
  });

  it('attention equals its formula', () => {
    const [q, k, v] = [randn([2, 3, 4]), randn([2, 5, 4]), randn([2, 5, 6])];
    const expected = functional.softmax(q.matmul(k.transpose(1, 2)).mul(0.5)).matmul(v);
    expectClose(functional.scaledDotProductAttention(q, k, v), expected, 1e-5);
  });

  it('attention over few keys is exact, and lets a mask hide all of them', () => {
    const inputs = [randn([2, 3, 5, 4]), randn([2, 3, 7, 4]), randn([2, 3, 7, 4])].map((t) => t.mul(3));
    const attend = (dtype: 'float32' | 'float64', options = {}): Tensor[] => {
      const [q, k, v] = inputs.map((t) => t.to(dtype).detach().requiresGrad_(true)) as [Tensor, Tensor, Tensor];
      const y = functional.scaledDotProductAttention(q, k, v, options);
      return [y, ...(grad([y.square().sum()], [q, k, v]) as Tensor[])];
    };
    const exact = attend('float64');
    attend('float32').forEach((ours, i) => {
      expect(relativeError(ours, exact[i] as Tensor)).toBeLessThan(2e-6);
    });
    const mask = full([5, 7], -3.4028234663852886e38);
    const [y] = attend('float32', { mask, mayHideAll: true });
    const mean = (inputs[2] as Tensor).mean([2], true).expandAs(y as Tensor);
    expect(relativeError(y as Tensor, mean)).toBeLessThan(1e-6);
  });

  it('interpolate keeps a constant and refuses unknown modes', () => {
    const x = randn([1, 1, 1, 1]).expand([1, 1, 3, 4]);
    for (const mode of ['nearest', 'bilinear', 'bicubic'] as const) {
      for (const antialias of mode === 'nearest' ? [false] : [false, true]) {
        const y = functional.interpolate(x, { size: [2, 5], mode, antialias });
        expectClose(y, x.select(2, 0).select(2, 0).reshape([1, 1, 1, 1]).expand([1, 1, 2, 5]), 1e-5);
      }
    }
    expect(() => functional.interpolate(x, { size: 2, mode: 'area' as never })).toThrow(/mode must be/);
  });
});
