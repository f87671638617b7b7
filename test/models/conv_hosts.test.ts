/** BiT and EfficientNet-V2: published names, sizes, and what Conv-Adapter does on them and on CLIP. */
import { describe, expect, test } from 'vitest';
import { graft } from '../../lib/adapters/index.js';
import { applyKeyMap, invertKeyMap } from '../../lib/checkpoint/index.js';
import {
  type Backbone,
  bitBodyNames,
  bitUnitPath,
  createCustomModel,
  createModel,
  googleBitNames,
  loadState,
  timmBitNames,
} from '../../lib/models/index.js';
import { parseStage } from '../../lib/models/efficientnet_blocks.js';
import { StdConv2d } from '../../lib/models/std_conv.js';
import { gradcheck } from '../support/gradcheck.js';
import { manualSeed, noGrad, randn, type Tensor } from '../../lib/tensor/index.js';
import { randomize } from './tiny.js';

const layers = [1, 2];
const bit = (): Backbone =>
  createCustomModel('resnetv2', { layers, channels: [16, 32], stemChannels: 8, normGroups: 4, numClasses: 5 }).eval();
const efficient = (options: Record<string, unknown> = {}): Backbone =>
  createCustomModel('efficientnet_v2', {
    stages: ['cn_r1_k3_s1_e1_c8_skip', 'er_r2_k3_s2_e4_c16', 'ir_r2_k3_s2_e4_c24_se0.25'],
    stemChannels: 8,
    headChannels: 32,
    numClasses: 5,
    ...options,
  }).eval();
const clip = (): Backbone =>
  createCustomModel('clip_resnet', { layers: [1, 1], width: 8, heads: 4, outputDim: 12, imgSize: 32, numClasses: 5 });

describe('BiT', () => {
  test('rounds widths to 8 as timm does, unless the inner ones are given', () => {
    const options = { layers: [1], channels: [20], stemChannels: 6, normGroups: 1, numClasses: 0 };
    const shapes = (more: Record<string, unknown>): readonly (readonly number[] | undefined)[] => {
      const state = createCustomModel('resnetv2', { ...options, ...more }).stateDict();
      return ['stem.conv.weight', 'stages.0.blocks.0.conv3.weight'].map((name) => state.get(name)?.shape);
    };
    expect(shapes({})).toEqual([
      [8, 3, 7, 7],
      [24, 8, 1, 1],
    ]);
    expect(shapes({ midChannels: [5] })).toEqual([
      [6, 3, 7, 7],
      [20, 5, 1, 1],
    ]);
  });

  test.each([
    ["Google's npz files", googleBitNames(layers), 'resnet/block2/unit02/c/standardized_conv2d/kernel', [1, 1, 8, 32]],
    ["Google's npz files", googleBitNames(layers), 'resnet/head/conv2d/kernel', [1, 1, 32, 5]],
    ["timm's files", timmBitNames, 'head.fc.weight', [5, 32, 1, 1]],
    ['the PyTorch code of Google', pytorchNames(), 'body.block2.unit01.downsample.weight', [32, 16, 1, 1]],
  ] as const)('loads from %s, which hold %s', (_, map, name, shape) => {
    const a = randomize(bit());
    const file = applyKeyMap(invertKeyMap(map), a.stateDict()).tensors;
    expect(file.get(name)?.shape).toEqual(shape);
    const b = bit();
    loadState(b, file);
    const x = randn([2, 3, 32, 40]);
    expect(b.run(x).equal(a.run(x))).toBe(true);
  });

  test('convolves with weights of mean 0 and variance 1 per filter', () => {
    const conv = new StdConv2d(4, 6, { kernelSize: 3, eps: 1e-8 });
    const rows = noGrad(() => conv.standardized().reshape([6, -1]));
    expect(Number(rows.mean([1]).abs().max().item())).toBeLessThan(1e-6);
    expect(Number(rows.square().mean([1]).sub(1).abs().max().item())).toBeLessThan(1e-4);
    conv.to({ dtype: 'float64' });
    gradcheck(() => conv.standardized(), [conv.weight]);
  });
});

/** The names of google-research/big_transfer's PyTorch code. */
function pytorchNames() {
  return [
    ...bitBodyNames(layers, 'head.gn'),
    { kind: 'rename', from: 'head.conv.{leaf}', to: 'head.fc.{leaf}' } as const,
    ...timmBitNames,
  ];
}

describe('EfficientNet-V2', () => {
  test.each([
    [
      [46, 37],
      [
        [23, 19],
        [12, 10],
        [6, 5],
      ],
    ],
    [
      [33, 64],
      [
        [17, 32],
        [9, 16],
        [5, 8],
      ],
    ],
  ])('an image of %j has maps of %j', ([height = 0, width = 0], sizes) => {
    const maps = efficient().forwardIntermediates(randn([1, 3, height, width]));
    expect(maps.map((map) => map.shape.slice(2))).toEqual(sizes);
  });

  test('levels are the last maps of their resolution', () => {
    const levels = createModel('tf_efficientnetv2_b0').featureLevels;
    expect(levels.map(({ path, channels, stride }) => [path, channels, stride])).toEqual([
      ['blocks.0', 16, 2],
      ['blocks.1', 32, 4],
      ['blocks.2', 48, 8],
      ['blocks.4', 112, 16],
      ['blocks.5', 192, 32],
    ]);
  });

  test('reads stages, and says what it does not understand', () => {
    expect(parseStage('ir_r7_k5_s2_e4_c160_se0.25_noskip')).toEqual({
      type: 'ir',
      repeats: 7,
      kernel: 5,
      stride: 2,
      expansion: 4,
      channels: 160,
      se: 0.25,
      skip: false,
    });
    expect(parseStage('cn_r1_k3_s1_e1_c8').skip).toBe(false);
    expect(() => parseStage('ds_r1_k3_s1_e1_c8')).toThrow(/type 'ds'/);
    expect(() => parseStage('er_r1_k3_s1_e1')).toThrow(/'c' is missing/);
    expect(() => efficient({ stages: ['er_r1_k3_s1_e1_c8_x9'] })).toThrow(/'x9' is unknown/);
  });
});

describe('Conv-Adapter', () => {
  const spread = (tensor: Tensor | undefined): number => Number(tensor?.detach().square().mean().sqrt().item());
  const parameter = (model: Backbone, suffix: string): Tensor => {
    manualSeed(0);
    const adapter = graft(model, 'conv_adapter', { reduction: 1, variant: 'conv_adapt' });
    const found = adapter.namedParameters().find(([name]) => name.endsWith(suffix));
    if (!found)
      throw new Error(
        `no ${suffix} in ${adapter
          .namedParameters()
          .map(([name]) => name)
          .join(', ')}`,
      );
    return found[1];
  };

  test('starts as the convolutions of its host do in the official code', () => {
    // Depth-wise: fan-in is 9, fan-out of the official ResNet's start 8 * 9.
    expect(spread(parameter(bit(), 'blocks.0.spatial.adapter.conv1.weight'))).toBeCloseTo(1 / Math.sqrt(3 * 9), 1);
    expect(spread(parameter(bit(), 'blocks.0.spatial.adapter.conv1.bias'))).toBe(0);
    expect(spread(parameter(clip(), 'layer1.0.spatial.adapter.conv1.weight'))).toBeCloseTo(Math.sqrt(2 / 72), 1);
    expect(spread(parameter(efficient(), 'blocks.0.0.adapter.conv1.weight'))).toBeCloseTo(Math.sqrt(2 / 9), 0);
    expect(spread(parameter(clip(), 'attention.adapter.fc1.bias'))).toBeGreaterThan(0);
  });

  test.each([
    ['BiT', bit],
    ['EfficientNet-V2', efficient],
    ['CLIP', () => clip().eval()],
  ] as const)("on %s a start of zero is the backbone's, up to rounding", (_, make) => {
    const model = randomize(make());
    const x = randn([2, 3, 32, 32]);
    const before = noGrad(() => model.run(x));
    graft(model, 'conv_adapter', { reduction: 2, init: 'zero' });
    expect(
      Number(
        noGrad(() => model.run(x))
          .sub(before)
          .abs()
          .max()
          .item(),
      ),
    ).toBeLessThan(1e-5);
  });

  test('names its tensors as the official code does', () => {
    const adapter = graft(clip(), 'conv_adapter', { reduction: 2 });
    const names = [...adapter.officialState().keys()];
    expect(names).toContain('attnpool.tuning_module.fc1.weight');
    expect(names).toContain('layer2.0.tuning_module.conv2.bias');
    expect(bitUnitPath('stages.1.blocks.9')).toBe('body.block2.unit10');
  });

  test('divides widths as the official code does, down', () => {
    // 8 / 1.6 rounds up to 5 in binary, and 1.6 is larger than it looks.
    const adapter = graft(efficient({ stages: ['cn_r1_k3_s1_e1_c8_skip'] }), 'conv_adapter', { reduction: 1.6 });
    const [, first] = adapter.namedParameters().find(([name]) => name.endsWith('adapter.conv1.weight')) ?? [];
    expect(first?.shape).toEqual([4, 2, 3, 3]);
    expect(() => graft(efficient(), 'conv_adapter', { reduction: 3 })).toThrow(
      /reductions that fit every site here: 1, 2, 4, 6, 7, 8$/,
    );
    for (const reduction of [1, 2, 4, 6, 7, 8])
      expect(() => graft(efficient(), 'conv_adapter', { reduction }).remove()).not.toThrow();
    expect(() => graft(efficient(), 'conv_adapter', { reduction: 9 })).toThrow(/leaves none of 8 channels; at most 8/);
  });

  test('frames images of the size that the model takes', () => {
    const adapter = graft(clip(), 'conv_adapter', { variant: 'prompt', promptSize: 3 });
    expect(adapter.grafts[0]?.form.parameters()[0]?.shape).toEqual([1, 3, 3, 32]);
    expect(() => graft(clip(), 'conv_adapter', { variant: 'prompt', promptSize: 16 })).toThrow(/at most 15/);
    const wide = efficient({ imgSize: [32, 48] });
    expect(() => graft(wide, 'conv_adapter', { variant: 'prompt' })).toThrow(/those of 32 x 48 pixels; give imageSize/);
  });
});

describe('EfficientNet-V2 with stages of several kinds', () => {
  test('is the same network as with a stage for each kind, but for names and levels', () => {
    const kinds = ['er_r1_k3_s2_e4_c16', 'ir_r2_k3_s1_e2_c24_se0.25'];
    const apart = randomize(efficient({ stages: kinds }));
    const together = efficient({ stages: [kinds] });
    const renamed = [...apart.stateDict()].map(([name, t]) => [
      name.replace(/^blocks\.1\.(\d)/, (_, j: string) => `blocks.0.${Number(j) + 1}`),
      t,
    ]);
    loadState(together, new Map(renamed as [string, Tensor][]));
    const x = randn([2, 3, 32, 40]);
    expect(noGrad(() => together.run(x)).equal(noGrad(() => apart.run(x)))).toBe(true);
    expect(together.featureLevels).toEqual([{ path: 'blocks.0', channels: 24, stride: 4 }]);
  });
});
