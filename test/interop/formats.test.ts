/** Small models of ours under transformers' names and in Google's archives, read by transformers and timm. */
import { join } from 'node:path';
import { beforeAll, describe, expect, test } from 'vitest';
import { readCheckpoint, stateDictOf, writeNpz, writeSafetensors } from '../../lib/checkpoint/index.js';
import {
  createCustomModel,
  exportState,
  type Backbone,
  importState,
  loadState,
  nameFormats,
} from '../../lib/models/index.js';
import { init } from '../../lib/nn/index.js';
import { manualSeed, noGrad, ones, randn, scope, type Tensor } from '../../lib/tensor/index.js';
import { findEnvironment, runJobs, temporaryFolder } from './python.js';

const python = await findEnvironment();
const folder = temporaryFolder();

interface Subject {
  readonly id: string;
  readonly source: string;
  readonly options: Readonly<Record<string, unknown>>;
  readonly format: 'transformers' | 'official';
  readonly input: string;
  readonly create: () => Backbone;
}

const vit = (name?: string): Backbone =>
  createCustomModel('vit', { imgSize: 32, patchSize: 8, embedDim: 32, depth: 2, numHeads: 4, numClasses: 5 }, name);

const subjects: readonly Subject[] = [
  {
    id: 'vit',
    source: 'transformers:ViTForImageClassification',
    options: {
      ...{
        image_size: 32,
        patch_size: 8,
        hidden_size: 32,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_labels: 5,
      },
      ...{ intermediate_size: 128, layer_norm_eps: 1e-6 },
    },
    format: 'transformers',
    input: 'pixel_values',
    create: vit,
  },
  {
    id: 'swin',
    source: 'transformers:SwinForImageClassification',
    options: {
      ...{ image_size: 64, patch_size: 4, embed_dim: 16, depths: [2, 2], num_heads: [2, 4], window_size: 4 },
      num_labels: 5,
    },
    format: 'transformers',
    input: 'pixel_values',
    create: () =>
      createCustomModel('swin', {
        ...{ imgSize: 64, patchSize: 4, embedDim: 16, depths: [2, 2], numHeads: [2, 4], windowSize: 4, numClasses: 5 },
      }),
  },
  {
    id: 'convnext',
    source: 'transformers:ConvNextForImageClassification',
    options: { hidden_sizes: [8, 16, 24, 32], depths: [1, 2, 1, 1], num_labels: 5, image_size: 64 },
    format: 'transformers',
    input: 'pixel_values',
    create: () =>
      createCustomModel('convnext', { imgSize: 64, dims: [8, 16, 24, 32], depths: [1, 2, 1, 1], numClasses: 5 }),
  },
  {
    id: 'resnet',
    source: 'transformers:ResNetForImageClassification',
    options: {
      ...{ layer_type: 'bottleneck', depths: [1, 2, 1, 1], num_labels: 5, image_size: 64 },
    },
    format: 'transformers',
    input: 'pixel_values',
    create: () =>
      createCustomModel('resnet', { imgSize: 64, block: 'bottleneck', layers: [1, 2, 1, 1], numClasses: 5 }),
  },
  {
    id: "Google's archive",
    source: 'timm:vit_tiny_patch16_224',
    options: {
      ...{ img_size: 32, patch_size: 8, embed_dim: 32, depth: 2, num_heads: 4, num_classes: 5 },
    },
    format: 'official',
    input: 'x',
    create: () => vit('vit_of_mine'),
  },
];

function build(create: () => Backbone): Backbone {
  manualSeed(5);
  const model = create();
  noGrad(() => {
    for (const [name, tensor] of model.namedState()) {
      if (/num_batches/.test(name)) continue;
      if (/running_var/.test(name)) init.uniform_(tensor, 0.5, 1.5);
      else init.normal_(tensor, /norm.*weight|bn\d.weight|gamma/.test(name) ? 1 : 0, 0.2);
    }
  });
  return model.eval();
}

const equal = (a: ReadonlyMap<string, Tensor>, b: ReadonlyMap<string, Tensor>): string[] =>
  [...a].filter(([name, tensor]) => !(b.get(name)?.equal(tensor) ?? false)).map(([name]) => name);

describe('names of other formats', () => {
  test.each(subjects)('$id: there and back again', ({ create, format }) => {
    const model = build(create);
    expect(nameFormats(model)).toContain(format);
    const out = exportState(model, format);
    expect([...out.keys()].some((name) => model.stateDict().has(name))).toBe(false);
    expect(equal(model.stateDict(), importState(model, out))).toEqual([]);
  });

  test('a format that a model does not have, and tensors that it has no place for', () => {
    const model = createCustomModel('cifar_resnet', { depth: 20 });
    expect(() => exportState(model, 'transformers')).toThrow(
      /no names of the format 'transformers'; it has own, official/,
    );
    const registers = createCustomModel('vit', {
      ...{ imgSize: 32, patchSize: 8, embedDim: 32, depth: 1, numHeads: 4, numClasses: 5, regTokens: 2 },
    });
    expect(() => exportState(registers, 'transformers')).toThrow(/has no name for reg_token/);
    expect(() => exportState(registers, 'official')).toThrow(/no place for 'reg_token'/);
  });

  test('an archive without one of the parts of a projection', () => {
    const model = build(() => vit('vit_of_mine'));
    const state = exportState(model, 'official');
    state.delete('Transformer/encoderblock_1/MultiHeadDotProductAttention_1/key/kernel');
    expect(() => importState(model, state)).toThrow(/lacks one of query, key and value of blocks\.1/);
    state.set('Transformer/encoderblock_0/Adapter_0/kernel', ones([1]));
    expect(() => importState(model, state)).toThrow(/'Transformer\/encoderblock_0\/Adapter_0\/kernel' is no name/);
  });
});

describe.skipIf(python.command === null)(`read by transformers and timm${python.reason}`, () => {
  const results: { ok: boolean; differences: Record<string, number> }[] = [];
  beforeAll(async () => {
    const jobs = subjects.map(({ source, options, format, input, create }, index) =>
      scope(() => {
        const model = build(create);
        const weights = join(folder, `${index}.${format === 'official' ? 'npz' : 'safetensors'}`);
        const state = exportState(model, format);
        if (format === 'official') writeNpz(weights, state);
        else writeSafetensors(weights, state, { format: 'pt' });
        const x = randn([2, ...model.config.inputSize]);
        const reference = join(folder, `${index}_reference.safetensors`);
        const logits = noGrad(() => model.run(x));
        writeSafetensors(reference, [
          [`input.${input}`, x],
          ['output.logits', logits],
        ]);
        // What we wrote, read by ourselves.
        const again = create().eval();
        loadState(again, stateDictOf(readCheckpoint(weights)));
        expect(noGrad(() => again.run(x)).equal(logits)).toBe(true);
        return { source, options, weights, reference };
      }),
    );
    results.push(...(await runJobs<(typeof results)[number]>(python, 'check', folder, jobs)));
  }, 300_000);

  test.each(subjects.map(({ id, source }, index) => ({ id, source, index })))('$id: $source', ({ index }) => {
    const { differences } = results[index] as (typeof results)[number];
    console.log(JSON.stringify(differences));
    expect(differences['logits']).toBeLessThan(1e-5);
  });
});
