import { describe, expect, test } from 'vitest';
import { createCustomClip, createCustomModel, createModel, HorFpn } from '../../lib/models/index.js';
import { manualSeed, type Tensor } from '../../lib/tensor/index.js';

const spread = (tensor: Tensor | undefined): number => Number(tensor?.detach().square().mean().sqrt().item());
const isAll = (tensor: Tensor | undefined, value: number): boolean => tensor?.eq(value).all().item() === true;

describe('fresh weights', () => {
  test('ResNet: Kaiming-normal over fan-out, last norms zero, other norms one', () => {
    manualSeed(0);
    const state = createCustomModel('resnet', { block: 'bottleneck', layers: [2], channels: [64] }).stateDict();
    expect(spread(state.get('conv1.weight'))).toBeCloseTo(Math.sqrt(2 / (64 * 49)), 3);
    expect(spread(state.get('layer1.0.conv2.weight'))).toBeCloseTo(Math.sqrt(2 / (64 * 9)), 3);
    expect(spread(state.get('layer1.1.conv3.weight'))).toBeCloseTo(Math.sqrt(2 / 256), 2);
    expect(isAll(state.get('layer1.0.bn3.weight'), 0)).toBe(true);
    expect(isAll(state.get('layer1.0.bn2.weight'), 1)).toBe(true);
    expect(isAll(state.get('layer1.0.downsample.1.weight'), 1)).toBe(true);
  });

  test('ResNet: zeroInitLast off leaves the last norms one, convBias starts at zero', () => {
    const options = { block: 'basic', layers: [1], zeroInitLast: false, convBias: true };
    const state = createCustomModel('resnet', options).stateDict();
    expect(isAll(state.get('layer1.0.bn2.weight'), 1)).toBe(true);
    expect(isAll(state.get('layer1.0.conv1.bias'), 0)).toBe(true);
    expect(state.has('conv1.bias')).toBe(false);
  });

  test('CIFAR ResNet: Kaiming-normal over fan-in', () => {
    manualSeed(0);
    const state = createModel('cifar_resnet20').stateDict();
    expect(spread(state.get('layer3.0.conv1.weight'))).toBeCloseTo(Math.sqrt(2 / (32 * 9)), 2);
    expect(spread(state.get('linear.weight'))).toBeCloseTo(Math.sqrt(2 / 64), 1);
  });

  test('ViT: linear weights and positions truncated normal 0.02, biases zero, class token near zero', () => {
    manualSeed(0);
    const state = createCustomModel('vit', { embedDim: 64, depth: 1, numHeads: 4, initValues: 1e-6 }).stateDict();
    for (const name of ['blocks.0.attn.qkv.weight', 'blocks.0.mlp.fc1.weight', 'head.weight', 'pos_embed']) {
      expect([name, Math.abs(spread(state.get(name)) - 0.02) < 0.001]).toEqual([name, true]);
    }
    expect(isAll(state.get('blocks.0.attn.qkv.bias'), 0)).toBe(true);
    expect(isAll(state.get('blocks.0.ls1.gamma'), Math.fround(1e-6))).toBe(true);
    expect(spread(state.get('cls_token'))).toBeLessThan(1e-5);
    // PyTorch's default of a convolution: uniform of +-1/sqrt(fan-in).
    expect(spread(state.get('patch_embed.proj.weight'))).toBeCloseTo(1 / Math.sqrt(3 * 3 * 256), 3);
  });

  test('Swin: linear weights and tables truncated normal 0.02, biases zero', () => {
    manualSeed(0);
    const options = { imgSize: 56, embedDim: 48, depths: [2], numHeads: [4], ape: true };
    const state = createCustomModel('swin', options).stateDict();
    const names = ['attn.qkv.weight', 'mlp.fc2.weight', 'attn.relative_position_bias_table'];
    for (const name of [...names.map((leaf) => `layers.0.blocks.1.${leaf}`), 'absolute_pos_embed', 'head.fc.weight']) {
      expect([name, Math.abs(spread(state.get(name)) - 0.02) < 0.002]).toEqual([name, true]);
    }
    expect(isAll(state.get('layers.0.blocks.0.attn.qkv.bias'), 0)).toBe(true);
  });

  test('ConvNeXt: convolutions and linear weights truncated normal 0.02, the classifier scaled', () => {
    manualSeed(0);
    const options = { depths: [1], dims: [64], headInitScale: 0.001 };
    const state = createCustomModel('convnext', options).stateDict();
    for (const name of ['stem.0.weight', 'stages.0.blocks.0.conv_dw.weight', 'stages.0.blocks.0.mlp.fc1.weight']) {
      expect([name, Math.abs(spread(state.get(name)) - 0.02) < 0.002]).toEqual([name, true]);
    }
    expect(spread(state.get('head.fc.weight'))).toBeCloseTo(2e-5, 6);
    expect(isAll(state.get('stages.0.blocks.0.gamma'), Math.fround(1e-6))).toBe(true);
    expect(isAll(state.get('stem.0.bias'), 0)).toBe(true);
  });

  test('CLIP: embeddings and projections N(0, 1 / d), text blocks by depth, last norms zero', () => {
    manualSeed(0);
    const tower = createCustomModel('clip_vit', { embedDim: 64, depth: 1, numHeads: 4, projDim: 32 }).stateDict();
    for (const name of ['cls_token', 'pos_embed', 'proj.weight']) {
      expect([name, Math.abs(spread(tower.get(name)) - 1 / 8) < 0.03]).toEqual([name, true]);
    }
    expect(spread(tower.get('blocks.0.attn.qkv.weight'))).toBeCloseTo(Math.sqrt(2 / (64 + 192)), 2);
    expect(isAll(tower.get('blocks.0.attn.proj.bias'), 0)).toBe(true);
    const clip = createCustomClip({
      visualKind: 'resnet',
      visual: { layers: [1], width: 32, heads: 2, outputDim: 32, imgSize: 32 },
      text: { width: 64, heads: 2, layers: 3, vocabSize: 99, embedDim: 32 },
    }).stateDict();
    expect(isAll(clip.get('visual.layer1.0.bn3.weight'), 0)).toBe(true);
    expect(spread(clip.get('visual.attnpool.k_proj.weight'))).toBeCloseTo(128 ** -0.5, 2);
    expect(spread(clip.get('text.blocks.0.mlp.fc2.weight'))).toBeCloseTo(64 ** -0.5 * 6 ** -0.5, 2);
    expect(spread(clip.get('text.blocks.2.mlp.fc1.weight'))).toBeCloseTo(128 ** -0.5, 2);
    expect(spread(clip.get('text.token_embedding.weight'))).toBeCloseTo(0.02, 3);
    expect(spread(clip.get('text.positional_embedding'))).toBeCloseTo(0.01, 3);
    expect(Number(clip.get('logit_scale')?.item())).toBeCloseTo(Math.log(1 / 0.07), 5);
  });

  test('BiT: Kaiming-normal over fan-out, classifier 0.01, also a new one', () => {
    manualSeed(0);
    const model = createCustomModel('resnetv2', { layers: [1], channels: [128], stemChannels: 32, imgSize: 32 });
    expect(spread(model.stateDict().get('stem.conv.weight'))).toBeCloseTo(Math.sqrt(2 / (32 * 49)), 3);
    expect(spread(model.stateDict().get('head.fc.weight'))).toBeCloseTo(0.01, 3);
    model.resetClassifier(500);
    expect(spread(model.stateDict().get('head.fc.weight'))).toBeCloseTo(0.01, 3);
    expect(isAll(model.stateDict().get('head.fc.bias'), 0)).toBe(true);
  });

  test('HorNet and HorFPN: global filters truncated normal 0.02', () => {
    manualSeed(0);
    const net = createCustomModel('hornet', { depths: [1], baseDim: 16, orders: [2], scales: [1], filters: [[8, 5]] });
    const neck = new HorFpn({ inChannels: [4], outChannels: 16, gated: { filter: [8, 5] } });
    for (const [module, path] of [
      [net, 'stages.0.0.gnconv.dwconv.complex_weight'],
      [neck, 'fpn_convs.0.dwconv.complex_weight'],
    ] as const)
      expect(Math.abs(spread(module.stateDict().get(path)) - 0.02)).toBeLessThan(0.002);
  });

  test('EfficientNet-V2: fan-out per group, classifier uniform by the number of classes', () => {
    manualSeed(0);
    const stages = ['cn_r1_k3_s1_e1_c32', 'ir_r1_k3_s2_e4_c64_se0.25'];
    const state = createCustomModel('efficientnet_v2', { stages, headChannels: 64 }).stateDict();
    expect(spread(state.get('blocks.0.0.conv.weight'))).toBeCloseTo(Math.sqrt(2 / (32 * 9)), 2);
    expect(spread(state.get('blocks.1.0.conv_dw.weight'))).toBeCloseTo(Math.sqrt(2 / 9), 1);
    expect(spread(state.get('classifier.weight'))).toBeCloseTo(1 / Math.sqrt(3000), 3);
    expect(isAll(state.get('blocks.1.0.se.conv_reduce.bias'), 0)).toBe(true);
  });
});
