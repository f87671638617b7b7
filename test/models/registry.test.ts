import { describe, expect, test } from 'vitest';
import { zeros } from '../../lib/tensor/index.js';
import { createCustomModel, createModel, listModels, modelInfo, nearest } from '../../lib/models/index.js';

/** Figures of specs/timm_backbones.md and data/README.md: exact, or in millions where the page rounds. */
const figures: Readonly<Record<string, number | string>> = {
  cifar_resnet20: 269_722,
  resnet18: 11_689_512,
  resnet34: '21.8',
  resnet50: 25_557_032,
  resnet101: 44_549_160,
  resnet152: '60.2',
  resnet50d: 25_576_264,
  wide_resnet50_2: '68.9',
  resnext50_32x4d: '25.0',
  resnetv2_50x1_bit: 25_549_352,
  resnetv2_50x3_bit: 217_319_080,
  resnetv2_101x3_bit: 387_934_888,
  resnetv2_152x4_bit: 936_533_224,
  tf_efficientnetv2_b0: 7_139_704,
  tf_efficientnetv2_b1: 8_141_052,
  tf_efficientnetv2_b2: 10_096_086,
  tf_efficientnetv2_b3: 14_358_406,
  tf_efficientnetv2_s: 21_458_488,
  tf_efficientnetv2_m: 54_139_356,
  tf_efficientnetv2_l: 118_515_272,
  tf_efficientnetv2_xl: 208_119_808,
  resnet50_clip: 38_316_896,
  resnet101_clip: 56_259_936,
  resnet50x64_clip: 420_380_352,
  vit_base_patch32_clip_quickgelu_224: 87_849_216,
  vit_large_patch14_clip_quickgelu_336: 304_293_888,
  vit_tiny_patch16_224: 5_717_416,
  vit_small_patch16_224: 22_050_664,
  vit_base_patch32_224: '88.2',
  vit_base_patch16_224: 86_567_656,
  vit_base_patch8_224: '86.6',
  vit_large_patch16_224: '304.3',
  vit_huge_patch14_224: 632_045_800,
  deit_small_patch16_224: 22_050_664,
  swin_tiny_patch4_window7_224: 28_288_354,
  swin_small_patch4_window7_224: '49.6',
  swin_base_patch4_window7_224: 87_768_224,
  swin_base_patch4_window12_384: 87_903_584,
  swin_large_patch4_window7_224: '196.5',
  swin_large_patch4_window12_384: '196.7',
  convnext_atto: 3_695_520,
  convnext_tiny: 28_589_128,
  convnext_small: '50.2',
  convnext_base: 88_591_464,
  convnext_large: '197.8',
  convnext_xlarge: '350.2',
  convnext_isotropic_small: 22_308_712,
  convnext_isotropic_base: '87.1',
  convnext_isotropic_large: 305_942_504,
};

describe('published models', () => {
  test.each(Object.entries(figures))('%s has %s parameters', (name, figure) => {
    const { parameters } = modelInfo(name);
    if (typeof figure === 'number') expect(parameters).toBe(figure);
    else expect((parameters / 1e6).toFixed(1)).toBe(figure);
  });

  test.each(listModels())('%s can be described without weights', (name) => {
    const info = modelInfo(name, { numClasses: 3 });
    expect(info.parameters).toBeGreaterThan(0);
    expect(info.options['numClasses']).toBe(3);
    expect(info.config.inputSize).toHaveLength(3);
  });

  test('models say how images are prepared', () => {
    expect(modelInfo('resnet50').config).toMatchObject({
      inputSize: [3, 224, 224],
      interpolation: 'bilinear',
      mean: [0.485, 0.456, 0.406],
    });
    expect(modelInfo('vit_base_patch16_384').config).toMatchObject({
      inputSize: [3, 384, 384],
      interpolation: 'bicubic',
      cropPct: 1,
      std: [0.5, 0.5, 0.5],
    });
    expect(modelInfo('deit_tiny_patch16_224', { imgSize: [32, 64] }).config).toMatchObject({
      inputSize: [3, 32, 64],
      std: [0.229, 0.224, 0.225],
    });
  });
});

describe('wrong names and options', () => {
  test('an unknown model is answered with the nearest', () => {
    expect(() => createModel('resent50')).toThrow(
      new RangeError("there is no model 'resent50'; did you mean resnet50 or resnet50d?; listModels() names all"),
    );
    expect(() => createModel('vit_small')).toThrow(/vit_small_patch/);
    expect(() => createModel('toString')).toThrow(RangeError);
    expect(() => listModels('resnets')).toThrow(/there are resnet, cifar_resnet, vit/);
  });

  test('an unknown option is answered with the nearest', () => {
    expect(() => createModel('resnet18', { numClases: 3 })).toThrow(
      new TypeError("resnet18: unknown option 'numClases'; did you mean numClasses?"),
    );
  });

  test('a wrong value names the option', () => {
    expect(() => createModel('resnet18', { numClasses: -1 })).toThrow(/^resnet18: option 'numClasses'/);
    expect(() => createModel('vit_tiny_patch16_224', { imgSize: 'big' as unknown as number })).toThrow(/'imgSize'/);
    expect(() => createModel('cifar_resnet20', { depth: 21 })).toThrow(/6n \+ 2/);
  });

  test('sizes that do not fit together are refused', () => {
    expect(() => createCustomModel('resnet', { block: 'basic', layers: [1, 1], channels: [8] })).toThrow(
      /layers has 2, channels has 1/,
    );
    expect(() => createCustomModel('vit', { embedDim: 10, depth: 1, numHeads: 3 })).toThrow(/heads/);
    expect(() => createModel('vit_tiny_patch16_224', { classToken: false })).toThrow(/class token/);
    expect(() => createModel('vit_tiny_patch16_224', { depth: 1 }).run(createInput())).toThrow(
      /built for images of 224 x 224/,
    );
  });

  test('nearness counts edits, swaps and containment', () => {
    expect(nearest('ersnet50', ['resnet50', 'vit'])).toEqual(['resnet50']);
    expect(nearest('zzz', ['resnet50', 'vit'])).toEqual([]);
  });
});

function createInput() {
  return zeros([1, 3, 32, 32]);
}

test.each([
  ['convnext', { depths: [1], dims: [8], kernelSize: 4 }, /kernel of 4 has no center/],
  ['hornet', { depths: [1], baseDim: 8, orders: [2], scales: [1], filters: [4] }, /'filters\.0': .*odd side/],
  ['hatnet', { kernelSizes: [3, 2, 3, 3] }, /'kernelSizes\.1': .*odd side/],
  ['revcol', { channels: [4, 4, 4, 4], layers: [1, 1, 1, 1], columns: 1, kernelSize: 2 }, /'kernelSize': .*odd side/],
  ['internimage', { channels: 8, depths: [1], groups: [2], dwKernelSize: 4 }, /'dwKernelSize': .*odd side/],
] as const)("%s refuses kernels that would change the map's size: %o", (family, options, message) => {
  expect(() => createCustomModel(family, options)).toThrow(message);
});
