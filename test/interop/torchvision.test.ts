/** Weights of torchvision's models here and back: its names, its padding, and what it computes. */
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, test } from 'vitest';
import { readSafetensors, writeTorchFile } from '../../lib/checkpoint/index.js';
import {
  type Backbone,
  createCustomModel,
  createModel,
  exportState,
  loadWeights,
  nameFormats,
} from '../../lib/models/index.js';
import { noGrad, scope, type Tensor } from '../../lib/tensor/index.js';
import { difference } from './backbones.js';
import { findEnvironment, runJobs, temporaryFolder } from './python.js';

const TOLERANCE = 1e-5;
const python = await findEnvironment();
const folder = temporaryFolder();

interface Subject {
  readonly source: string;
  readonly options?: Readonly<Record<string, unknown>>;
  readonly create: () => Backbone;
  /** In float64: random weights make so deep a network blow up the rounding of float32. */
  readonly double?: boolean;
}

const subjects: readonly Subject[] = [
  { source: 'torchvision:resnet18', create: () => createModel('resnet18') },
  { source: 'torchvision:convnext_tiny', create: () => createModel('convnext_tiny') },
  {
    source: 'torchvision:SwinTransformer',
    options: {
      ...{ patch_size: [4, 4], embed_dim: 16, depths: [2, 2, 2], num_heads: [2, 2, 4], window_size: [7, 7] },
      num_classes: 5,
    },
    create: () =>
      createCustomModel('swin', { embedDim: 16, depths: [2, 2, 2], numHeads: [2, 2, 4], windowSize: 7, numClasses: 5 }),
  },
  {
    source: 'torchvision:VisionTransformer',
    options: {
      ...{ image_size: 32, patch_size: 8, num_layers: 2, num_heads: 4, hidden_dim: 48, mlp_dim: 192 },
      num_classes: 5,
    },
    create: () =>
      createCustomModel('vit', { imgSize: 32, patchSize: 8, embedDim: 48, depth: 2, numHeads: 4, numClasses: 5 }),
  },
  {
    source: 'torchvision:efficientnet_v2_s',
    create: () => createModel('tf_efficientnetv2_s', { padding: 'symmetric' }),
    double: true,
  },
];

const found = new Map<string, { here: number; there: number }>();

describe.skipIf(python.command === null)(`torchvision${python.reason}`, () => {
  const at = (i: number): string => join(folder, String(i));

  beforeAll(async () => {
    subjects.forEach((_, i) => mkdirSync(at(i)));
    const exports = subjects.map(({ create: _, ...job }, i) => ({ ...job, out: at(i), random: true }));
    await runJobs(python, 'export', folder, exports);
    const here: number[] = [];
    const checks = subjects.map(({ create, ...job }, i) =>
      scope(() => {
        const model = create();
        if (job.double) model.to({ dtype: 'float64' });
        loadWeights(model, join(at(i), 'weights.safetensors'));
        model.eval();
        const { tensors } = readSafetensors(join(at(i), 'reference.safetensors'));
        const logits = noGrad(() => model.run(tensors.get('input.x') as Tensor));
        here.push(difference(logits, tensors.get('output.logits') as Tensor));
        const weights = join(at(i), 'back.pt');
        writeTorchFile(weights, exportState(model, 'torchvision'));
        return { ...job, weights, reference: join(at(i), 'reference.safetensors') };
      }),
    );
    const there = await runJobs<{ differences: { logits: number } }>(python, 'check', folder, checks);
    subjects.forEach(({ source }, i) =>
      found.set(source, { here: here[i] ?? NaN, there: there[i]?.differences.logits ?? NaN }),
    );
  }, 300_000);

  test.each(subjects)('$source', ({ source }) => {
    expect(found.get(source)?.here).toBeLessThan(TOLERANCE);
    // The same weights in the same model: only names have changed there and back.
    expect(found.get(source)?.there).toBeLessThan(1e-6);
  });

  test('its EfficientNet is not taken for the one that pads as TensorFlow does', () => {
    const weights = join(at(4), 'weights.safetensors');
    const model = createModel('tf_efficientnetv2_s');
    expect(() => loadWeights(model, weights)).toThrow(/padding on both sides: create the model with \{ padding: 'sym/);
    expect(nameFormats(model)).not.toContain('torchvision');
  });
});
