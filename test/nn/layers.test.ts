import { describe, expect, it } from 'vitest';
import {
  AdaptiveAvgPool2d,
  AvgPool2d,
  BatchNorm2d,
  Context,
  Conv2d,
  DropPath,
  Dropout,
  Dropout2d,
  Embedding,
  Flatten,
  GELU,
  GroupNorm,
  Identity,
  LayerNorm,
  LayerNorm2d,
  LayerScale,
  Linear,
  MaxPool2d,
  QuickGELU,
  ReLU,
  ReLU6,
  SiLU,
  type Module,
} from '../../lib/nn/index.js';
import { manualSeed, ones, randn, tensor, zeros } from '../../lib/tensor/index.js';
import { expectClose, golden, stored } from './golden.js';

const makers: Record<string, () => Module> = {
  linear: () => new Linear(3, 4),
  linearNoBias: () => new Linear(3, 4, { bias: false }),
  conv: () => new Conv2d(4, 6, { kernelSize: 3, stride: 2, padding: 1, groups: 2 }),
  convPair: () => new Conv2d(4, 2, { kernelSize: [3, 1], padding: [1, 0], dilation: [2, 1], bias: false }),
  embedding: () => new Embedding(5, 3, { paddingIndex: 1 }),
  batchNorm: () => new BatchNorm2d(4),
  batchNormCumulative: () => new BatchNorm2d(4, { momentum: null, affine: false }),
  batchNormUntracked: () => new BatchNorm2d(4, { trackRunningStats: false }),
  layerNorm: () => new LayerNorm(6, { eps: 1e-6 }),
  groupNorm: () => new GroupNorm(2, 4),
  gelu: () => new GELU(),
  geluTanh: () => new GELU({ approximate: 'tanh' }),
  relu6: () => new ReLU6(),
  silu: () => new SiLU(),
  maxPool: () => new MaxPool2d({ kernelSize: 3, stride: 2, padding: 1 }),
  avgPool: () => new AvgPool2d({ kernelSize: 2, stride: 2, ceilMode: true, countIncludePad: false }),
  adaptiveAvgPool: () => new AdaptiveAvgPool2d([2, 3]),
  dropout: () => new Dropout(0.3),
  flatten: () => new Flatten(),
};

describe('layers', () => {
  it('are all compared', () => {
    expect(Object.keys(makers)).toEqual(Object.keys(golden.layers));
  });

  for (const [name, make] of Object.entries(makers)) {
    it(`${name} starts, computes, trains and evaluates as PyTorch's`, () => {
      const wanted = golden.layers[name]!;
      manualSeed(0);
      const layer = make();
      const initial = layer.stateDict();
      expect([...initial.keys()]).toEqual(Object.keys(wanted.initial));
      for (const [key, value] of initial)
        expectClose(value, stored(wanted.initial[key]), name === 'embedding' ? 1e-6 : 0);

      const x = stored(wanted.x, name === 'embedding' ? 'int64' : 'float32');
      // Draws what the input drew in PyTorch, so that dropout meets the same random numbers.
      if (name !== 'embedding') expectClose(randn(x.shape), x, 1e-6);
      expectClose(layer.run(x), stored(wanted.y));
      layer.run(name === 'embedding' ? x : x.mul(2));
      for (const [key, value] of layer.stateDict()) expectClose(value, stored(wanted.after[key]));
      expectClose(layer.eval().run(x), stored(wanted.eval));
    });

    it(`${name} prints as PyTorch's`, () => {
      expect(String(make())).toBe(golden.layers[name]!.repr);
    });
  }
});

describe('BatchNorm2d', () => {
  it('uses the batch but does not count it when a stretch is recomputed', () => {
    manualSeed(3);
    const norm = new BatchNorm2d(2);
    const x = randn([4, 2, 3, 3]);
    const first = norm.run(x);
    const mean = norm.running_mean!.clone();
    const ctx = new Context();
    ctx.recomputing = true;
    expect(norm.run(x, ctx).equal(first)).toBe(true);
    expect(norm.running_mean!.equal(mean)).toBe(true);
    expect(norm.num_batches_tracked!.item()).toBe(1);
  });

  it('forgets its statistics on request and wants maps', () => {
    const norm = new BatchNorm2d(2);
    norm.run(randn([4, 2, 3, 3]));
    norm.resetRunningStats();
    expect(norm.running_mean!.tolist()).toEqual([0, 0]);
    expect(norm.num_batches_tracked!.item()).toBe(0);
    expect(() => norm.run(zeros([4, 2]))).toThrow(/expected a map \[B, C, H, W\], got shape \[4, 2\]/);
  });
});

describe('dropout', () => {
  it('is the identity in evaluation and at probability 0', () => {
    const x = ones([2, 3]);
    expect(new Dropout(0.5).eval().run(x)).toBe(x);
    expect(new Dropout(0).run(x)).toBe(x);
    expect(new DropPath(0.5).eval().run(x)).toBe(x);
    expect(new DropPath(0).run(x)).toBe(x);
  });

  it('of paths keeps or drops whole samples and keeps the mean', () => {
    manualSeed(0);
    const y = new DropPath(0.25).run(ones([4000, 2, 3]));
    const perSample = y.reshape([4000, 6]);
    expect(perSample.std(1).max().item()).toBe(0);
    const values = new Set(perSample.select(1, 0).tolist() as number[]);
    expect([...values].sort()).toEqual([0, Math.fround(1 / 0.75)]);
    expect(Number(y.mean().item())).toBeCloseTo(1, 1);
    expect(
      new DropPath(1)
        .run(ones([3, 2]))
        .sum()
        .item(),
    ).toBe(0);
  });

  it('refuses what is no probability', () => {
    expect(() => new Dropout(1.5)).toThrow(/Dropout: the probability must lie in \[0, 1\], got 1.5/);
    expect(() => new DropPath(NaN)).toThrow(/DropPath/);
  });
});

describe('small layers', () => {
  it('LayerNorm2d is LayerNorm over the channels of every pixel', () => {
    const norm = new LayerNorm2d(3, { eps: 1e-6 });
    norm.weight?.detach().copy_(tensor([1, 2, 3]));
    const x = randn([2, 3, 4, 5]);
    const pixel = x.select(3, 1).select(2, 2);
    const centered = pixel.sub(pixel.mean([1], true));
    const expected = centered.div(centered.square().mean([1], true).add(1e-6).sqrt()).mul(tensor([1, 2, 3]));
    expectClose(norm.run(x).select(3, 1).select(2, 2), expected);
    expect(norm.siteDefaults()).toEqual({ in: 3, out: 3, layout: 'map' });
  });

  it('Dropout2d drops whole channels, and nothing in evaluation', () => {
    manualSeed(1);
    const drop = new Dropout2d(0.5);
    const y = drop.run(ones([4, 16, 3, 3])).flatten(2);
    expect(y.amin([2]).equal(y.amax([2]))).toBe(true);
    expect(new Set(y.flatten().tolist() as number[])).toEqual(new Set([0, 2]));
    const x = randn([1, 2, 3, 3]);
    expect(drop.eval().run(x).equal(x)).toBe(true);
  });

  it('Identity, LayerScale, QuickGELU, ReLU in place', () => {
    const x = tensor([[-1, 2]]);
    expect(new Identity().run(x)).toBe(x);
    expectClose(new LayerScale(2, { init: 0.5 }).run(x), tensor([[-0.5, 1]]));
    expectClose(new QuickGELU().run(x), tensor([[-1 / (1 + Math.exp(1.702)), 2 / (1 + Math.exp(-3.404))]]));
    new ReLU({ inplace: true }).run(x);
    expect(x.tolist()).toEqual([[0, 2]]);
  });

  it('refuse impossible sizes by name', () => {
    expect(() => new Linear(0, 3)).toThrow(/Linear: inFeatures must be a positive integer, got 0/);
    expect(() => new Conv2d(3, 4, { kernelSize: 3, groups: 2 })).toThrow(/channels 3 to 4 do not divide into 2 groups/);
    expect(() => new Conv2d(3, 4, { kernelSize: 0 })).toThrow(/Conv2d: kernelSize/);
    expect(() => new MaxPool2d({ kernelSize: [2] as never })).toThrow(/MaxPool2d: kernelSize/);
    expect(() => new GroupNorm(3, 4)).toThrow(/4 channels do not divide into 3 groups/);
    expect(() => new Embedding(3, 2, { paddingIndex: 3 })).toThrow(/paddingIndex/);
    expect(() => new GELU({ approximate: 'erf' as never })).toThrow(/approximate must be 'none' or 'tanh'/);
  });
});
