import { describe, expect, test } from 'vitest';
import { graft } from '../../lib/adapters/index.js';
import { applyKeyMap, invertKeyMap } from '../../lib/checkpoint/index.js';
import {
  createCustomModel,
  loadState,
  OFFICIAL_CONVNEXT_NAMES,
  OFFICIAL_ISOTROPIC_NAMES,
  SSF_CONVNEXT_NAMES,
  type Backbone,
} from '../../lib/models/index.js';
import { UnbiasedLayerNorm2d } from '../../lib/models/convnext_blocks.js';
import { LayerNorm2d } from '../../lib/nn/index.js';
import { randn, type Tensor } from '../../lib/tensor/index.js';
import { randomize } from './tiny.js';

const options = { depths: [1, 2], dims: [6, 8], numClasses: 5 };
const isotropic = { depths: [2], dims: [8], patchSize: 16, stemNorm: false, layerScale: 0, numClasses: 5 };
const convnext = (more = {}): Backbone => randomize(createCustomModel('convnext', { ...options, ...more })).eval();
const x = randn([2, 3, 37, 48]);

describe('files', () => {
  test.each([
    [
      'the official code',
      options,
      OFFICIAL_CONVNEXT_NAMES,
      ['downsample_layers.1.0.weight', 'stages.1.1.pwconv2.bias'],
    ],
    ['its isotropic models', isotropic, OFFICIAL_ISOTROPIC_NAMES, ['stem.bias', 'blocks.1.dwconv.weight', 'norm.bias']],
    ['SSF', options, SSF_CONVNEXT_NAMES, ['stem.proj.weight', 'stages.1.downsample.proj.bias', 'head.fc.bias']],
  ] as const)('in the names of %s load, and the way back is the same', (_, sizes, names, some) => {
    const source = convnext(sizes);
    const theirs = applyKeyMap(invertKeyMap(names), source.stateDict()).tensors;
    for (const name of some) expect([...theirs.keys()]).toContain(name);
    const model = convnext(sizes);
    loadState(model, theirs);
    expect(model.run(x).equal(source.run(x))).toBe(true);
    expect([...applyKeyMap(names, theirs).tensors.keys()]).toEqual([...source.stateDict().keys()]);
  });

  test('of small timm models hold their MLPs as 1x1 convolutions', () => {
    const source = convnext();
    const state = source.stateDict();
    for (const [name, tensor] of state)
      if (/fc[12]\.weight$/.test(name) && tensor.ndim === 2) state.set(name, asConv(name, tensor));
    const model = convnext();
    loadState(model, state);
    expect(model.run(x).equal(source.run(x))).toBe(true);
  });
});

const asConv = (name: string, tensor: Tensor): Tensor =>
  name.includes('.mlp.') ? tensor.unsqueeze(-1).unsqueeze(-1) : tensor;

describe('norms', () => {
  test('the last one acts after the pool, before it, or twice before it', () => {
    const first = convnext({ headNormFirst: true });
    const twice = convnext({ headNormFirst: 'twice' });
    twice.loadStateDict(first.stateDict());
    expect(first.stateDict().has('norm_pre.weight')).toBe(true);
    expect(first.stateDict().has('head.norm.weight')).toBe(false);
    const norm = twice.getModule('norm_pre');
    const expected = twice.forwardHead(norm.run(first.forwardFeatures(x)));
    expect(twice.run(x).sub(expected).abs().max().item()).toBeLessThan(1e-5);
    expect(twice.run(x).equal(first.run(x))).toBe(false);
  });

  test('pyramids have one for each level and none at the head', () => {
    const model = convnext({ featureNorms: true, numClasses: 0 });
    const names = [...model.stateDict().keys()].filter((name) => /^(norm|head)/.test(name));
    expect(names).toEqual(['norm0.weight', 'norm0.bias', 'norm1.weight', 'norm1.bias']);
    const plain = convnext({ numClasses: 0 });
    plain.loadStateDict(model.stateDict(), { strict: false });
    const maps = model.forwardIntermediates(x);
    plain.forwardIntermediates(x).forEach((map, i) => {
      expect(
        model
          .getModule(`norm${i}`)
          .run(map)
          .equal(maps[i] as Tensor),
      ).toBe(true);
    });
    expect(model.forwardFeatures(x).equal(maps[1] as Tensor)).toBe(true);
  });

  test('with the variance over C - 1 are those of the official code at run time', () => {
    const channels = 6;
    const unbiased = new UnbiasedLayerNorm2d(channels, { eps: 0 });
    const map = randn([2, channels, 3, 4]);
    const ratio = Math.sqrt((channels - 1) / channels);
    const expected = new LayerNorm2d(channels, { eps: 0 }).run(map).mul(ratio);
    expect(unbiased.run(map).sub(expected).abs().max().item()).toBeLessThan(1e-5);
    const model = convnext({ unbiasedDownsampleNorm: true });
    expect(model.getModule('stages.1.downsample.0')).toBeInstanceOf(UnbiasedLayerNorm2d);
    expect(model.getModule('stem.1')).not.toBeInstanceOf(UnbiasedLayerNorm2d);
  });
});

test.each([{}, { head: { classes: 4 } }])(
  'a pair behind a norm that acts twice folds forward into the classifier: %o',
  (settings) => {
    const model = convnext({ headNormFirst: 'twice' });
    const plain = model.run(x);
    const adapter = graft(model, 'ssf', {}, { seed: 1, ...settings });
    const adapted = model.run(x);
    const report = adapter.merge();
    expect(report.leftover).toEqual([]);
    expect(model.run(x).sub(adapted).abs().max().item()).toBeLessThan(1e-5);
    adapter.unmerge();
    expect(model.run(x).equal(adapted)).toBe(true);
    adapter.remove();
    expect(model.run(x).equal(plain)).toBe(true);
    const headless = convnext({ headNormFirst: 'twice', numClasses: 0 });
    expect(() => graft(headless, 'ssf').merge()).toThrow(/norm_post there is no classifier/);
  },
);

test('maps stay channels-last from the stem on, and strides round down', () => {
  for (const model of [convnext(), convnext({ ...isotropic, patchSize: 8 })]) {
    for (const map of model.forwardIntermediates(x)) expect(map.isContiguous('channels_last')).toBe(true);
  }
  expect(
    convnext()
      .forwardIntermediates(x)
      .map(({ shape }) => shape),
  ).toEqual([
    [2, 6, 9, 12],
    [2, 8, 4, 6],
  ]);
});

test('layer scale 0 means that there is none', () => {
  const gammas = (layerScale: number | null): string[] =>
    [...convnext({ layerScale }).stateDict().keys()].filter((name) => name.endsWith('gamma'));
  expect(gammas(0)).toEqual([]);
  expect(gammas(null)).toEqual([]);
  expect(gammas(1e-6)).toHaveLength(3);
});

test('sizes that do not fit are refused', () => {
  expect(() => convnext({ kernelSize: 4 })).toThrow(/no center/);
  expect(() => convnext({ dims: [6] })).toThrow(/depths has 2, dims has 1/);
});
