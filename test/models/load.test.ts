import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, describe, expect, test } from 'vitest';
import { writeSafetensors } from '../../lib/checkpoint/index.js';
import { createCustomModel, createModel, loadState, loadWeights, resamplePosEmbed } from '../../lib/models/index.js';
import { manualSeed, randn, type Tensor, tensor } from '../../lib/tensor/index.js';
import { randomize } from './tiny.js';

const folder = mkdtempSync(join(tmpdir(), 'torchgraft-load-'));
afterAll(() => rmSync(folder, { recursive: true }));

const small = { block: 'basic', layers: [1, 1], channels: [4, 8], stemChannels: 4, numClasses: 5 };
const tokens = { imgSize: 16, patchSize: 4, embedDim: 8, depth: 1, numHeads: 2, numClasses: 3 };
const renamed = (state: Map<string, Tensor>, rename: (name: string) => string): Map<string, Tensor> =>
  new Map([...state].map(([name, tensor]) => [rename(name), tensor]));

describe('loadWeights', () => {
  const source = randomize(createCustomModel('resnet', small)).eval();
  const file = join(folder, 'resnet.safetensors');
  writeSafetensors(file, source.stateDict());

  test('restores the model from a file', () => {
    const model = createCustomModel('resnet', small).eval();
    const report = loadWeights(model, file);
    expect(report).toMatchObject({
      loaded: source.stateDict().size,
      missing: [],
      unexpected: [],
      mismatched: [],
      dropped: [],
    });
    const x = randn([2, 3, 32, 32]);
    expect(model.run(x).equal(source.run(x))).toBe(true);
  });

  test('a classifier of another size is refused with advice, or left out on request', () => {
    const model = createCustomModel('resnet', { ...small, numClasses: 7 });
    const before = model.stateDict().get('fc.weight')?.clone();
    expect(() => loadWeights(model, file)).toThrow(/fc\.weight \[7, 8\] given \[5, 8\][\s\S]*classifier: 'drop'/);
    const report = loadWeights(model, file, { classifier: 'drop' });
    expect(report.dropped.sort()).toEqual(['fc.bias', 'fc.weight']);
    expect(
      model
        .stateDict()
        .get('fc.weight')
        ?.equal(before as Tensor),
    ).toBe(true);
    expect(
      model
        .stateDict()
        .get('conv1.weight')
        ?.equal(source.stateDict().get('conv1.weight') as Tensor),
    ).toBe(true);
  });

  test('the file of another model is refused with a short list, and nothing changes', () => {
    const model = createCustomModel('vit', tokens);
    const before = model.stateDict().get('head.weight')?.clone();
    expect(() => loadWeights(model, file)).toThrow(/missing \(\d+\): [\s\S]*unexpected \(\d+\): [\s\S]*another model/);
    expect(
      model
        .stateDict()
        .get('head.weight')
        ?.equal(before as Tensor),
    ).toBe(true);
  });

  test('with strict off, what fits is loaded', () => {
    const model = createCustomModel('resnet', { ...small, layers: [1, 2] });
    const report = loadWeights(model, file, { strict: false });
    expect(report.loaded).toBe(source.stateDict().size);
    expect(report.missing.every((name) => name.startsWith('layer2.1.'))).toBe(true);
  });

  test('MoCo-v3 names are understood', () => {
    const model = createCustomModel('resnet', small);
    const state = renamed(source.stateDict(), (name) => `base_encoder.${name}`).set(
      'momentum_encoder.conv1.weight',
      randn([1]),
    );
    expect(loadState(model, state).loaded).toBe(source.stateDict().size);
  });

  test('counters of batches may be absent, as in old files', () => {
    const state = source.stateDict();
    for (const name of [...state.keys()]) if (name.endsWith('num_batches_tracked')) state.delete(name);
    expect(loadState(createCustomModel('resnet', small), state).missing).toEqual([]);
  });
});

describe('vision transformer files', () => {
  const source = randomize(createCustomModel('vit', tokens)).eval();

  test('position embeddings of another image size are resampled', () => {
    const model = createCustomModel('vit', { ...tokens, imgSize: [24, 32] });
    const report = loadState(model, source.stateDict());
    expect(report.resampled).toEqual(['pos_embed']);
    const expected = resamplePosEmbed(source.stateDict().get('pos_embed') as Tensor, [6, 8]);
    expect(model.stateDict().get('pos_embed')?.equal(expected)).toBe(true);
  });

  test('position embeddings that cannot be resampled are reported', () => {
    const state = source.stateDict().set('pos_embed', randn([1, 12, 8]));
    expect(() => loadState(createCustomModel('vit', tokens), state)).toThrow(
      /pos_embed \[1, 17, 8\] given \[1, 12, 8\]/,
    );
  });

  test('old names: pre_logits is ignored, gamma_1 is the layer scale, a matrix is unfolded into patches', () => {
    const scaled = randomize(createCustomModel('vit', { ...tokens, initValues: 1e-6 })).eval();
    const state = renamed(scaled.stateDict(), (name) => name.replace(/ls([12])\.gamma/, 'gamma_$1'));
    state.set('pre_logits.fc.weight', randn([8, 8]));
    state.set('patch_embed.proj.weight', (state.get('patch_embed.proj.weight') as Tensor).reshape([8, 48]));
    const model = createCustomModel('vit', { ...tokens, initValues: 1e-6 }).eval();
    loadState(model, state);
    const x = randn([2, 3, 16, 16]);
    expect(model.run(x).equal(scaled.run(x))).toBe(true);
  });
});

/**
 * Logits of the first of four images `torch.manual_seed(0); torch.randn(4, 3, 32, 32)`, computed in PyTorch by the
 * published network (akamaster/pytorch_resnet_cifar10, commit d5489e8) with its published weights.
 */
const published = [
  {
    name: 'cifar_resnet20',
    file: 'cifar10-resnet20-12fca82f.th',
    logits: [-5.51206, -1.81033, 9.48069, 0.40522, -3.14766, -8.22964, 15.34299, -3.92887, -4.18314, 1.63263],
  },
  {
    name: 'cifar_resnet32',
    file: 'cifar10-resnet32-d509ac18.th',
    logits: [0.66057, 1.25493, 4.81748, 1.01235, -0.52885, -4.37704, 4.75987, -4.58565, -3.35976, 0.3665],
  },
];

describe('published CIFAR-10 weights', () => {
  const weights = fileURLToPath(new URL('../../../shared/weights/', import.meta.url));
  test.for(published)(
    '$name loads strictly and computes what it did in PyTorch',
    ({ name, file, logits }, { skip }) => {
      if (!existsSync(join(weights, file))) skip(`${file} is not among the shared weights`);
      const model = createModel(name).eval();
      const report = loadWeights(model, join(weights, file));
      expect([report.missing, report.unexpected, report.mismatched]).toEqual([[], [], []]);
      manualSeed(0);
      const output = model.run(randn([4, 3, 32, 32])).select(0, 0);
      expect(output.sub(tensor(logits)).abs().max().item()).toBeLessThan(1e-4);
    },
  );
});
