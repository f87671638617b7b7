/**
 * The same weights in torchgraft and in timm or transformers, in both directions: random weights under which every layer
 * has its effect, at the published sizes. Differences are shares of an output's largest value (or of 1).
 */
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, test } from 'vitest';
import { readSafetensors, writeSafetensors, writeTorchFile } from '../../lib/checkpoint/index.js';
import {
  Clip,
  createClip,
  createModel,
  createTextModel,
  type Host,
  loadWeights,
  TextModel,
} from '../../lib/models/index.js';
import { functional } from '../../lib/nn/index.js';
import { manualSeed, noGrad, randn, scope, type Tensor } from '../../lib/tensor/index.js';
import { findEnvironment, runJobs, temporaryFolder } from './python.js';

const TOLERANCE = 1e-5;
const python = await findEnvironment();
const folder = temporaryFolder();

interface Subject {
  readonly id: string;
  /** As the scripts name it. */
  readonly source: string;
  readonly create: () => Host;
  /** The file that we write for Python. */
  readonly format: 'safetensors' | 'torch';
}

const subjects: readonly Subject[] = [
  { id: 'ResNet-50', source: 'timm:resnet50', create: () => createModel('resnet50'), format: 'torch' },
  {
    id: 'ViT-S',
    source: 'timm:vit_small_patch16_224',
    create: () => createModel('vit_small_patch16_224'),
    format: 'safetensors',
  },
  { id: 'ConvNeXt-T', source: 'timm:convnext_tiny', create: () => createModel('convnext_tiny'), format: 'torch' },
  {
    id: 'Swin-T',
    source: 'timm:swin_tiny_patch4_window7_224',
    create: () => createModel('swin_tiny_patch4_window7_224'),
    format: 'safetensors',
  },
  { id: 'GhostNet', source: 'timm:ghostnet_100', create: () => createModel('ghostnet_100'), format: 'torch' },
  {
    id: 'CLIP ViT-B/32',
    source: 'transformers:CLIPModel',
    create: () => createClip('ViT-B/32'),
    format: 'safetensors',
  },
  {
    id: 'T5-small',
    source: 'transformers:T5ForConditionalGeneration',
    create: () => createTextModel('t5_small'),
    format: 'torch',
  },
];

/** Outputs of one of our models under the names that Python has for them. */
function outputsOf(model: Host, input: (name: string) => Tensor): Record<string, Tensor> {
  if (model instanceof Clip) {
    const image = functional.normalize(model.encodeImage(input('pixel_values')), { dim: -1 });
    const text = functional.normalize(model.encodeText(input('input_ids')), { dim: -1 });
    const { perImage, perText } = model.similarity(image, text);
    return {
      image_embeds: image,
      text_embeds: text,
      logits_per_image: perImage,
      logits_per_text: perText.contiguous(),
    };
  }
  if (model instanceof TextModel) {
    const { logits, encoder } = model.outputs({
      inputIds: input('input_ids'),
      decoderInputIds: input('decoder_input_ids'),
    });
    return { logits, encoder_last_hidden_state: encoder };
  }
  return { logits: model.run(input('x')) };
}

/** Random weights at which layers have their effect, as `randomize` of scripts/interop/models.py makes them. */
function randomize(model: Host): void {
  noGrad(() => {
    for (const [name, tensor] of model.namedState()) {
      if (tensor.dtype !== 'float32') continue;
      const noise = randn(tensor.shape);
      if (name.endsWith('running_var')) tensor.copy_(noise.mul(0.2).abs().add(0.5));
      else if (tensor.ndim > 1) {
        // T5 does not divide products of queries and keys by the root of their width, 64.
        const scale = model instanceof TextModel && name.endsWith('.q.weight') ? 1 / 8 : 1;
        tensor.copy_(noise.mul(scale * (tensor.numel() / (tensor.shape[0] ?? 1)) ** -0.5));
      } else if (/(weight|gamma|logit_scale)$/.test(name)) tensor.copy_(noise.mul(0.1).add(1));
      else tensor.copy_(noise.mul(0.1));
    }
  });
}

const differences = new Map<string, { theirs: Record<string, number>; ours: Record<string, number> }>();

/** Their weights here. */
function importModel(
  { id, create }: Subject,
  at: string,
): { input: Map<string, Tensor>; rows: Record<string, number> } {
  const model = create();
  loadWeights(model, join(at, 'weights.safetensors'));
  model.eval();
  const { tensors } = readSafetensors(join(at, 'reference.safetensors'));
  const get = (name: string): Tensor => {
    const tensor = tensors.get(name);
    if (!tensor) throw new Error(`${id}: the reference has no ${name}`);
    return tensor;
  };
  const found = noGrad(() => outputsOf(model, (name) => get(`input.${name}`)));
  const rows = Object.fromEntries(
    Object.entries(found).map(([name, tensor]): [string, number] => {
      const expected = get(`output.${name}`);
      const scale = Math.max(1, Number(expected.abs().max().item()));
      expect(tensor.shape).toEqual(expected.shape);
      return [name, Number(tensor.sub(expected).abs().max().item()) / scale];
    }),
  );
  return { input: new Map([...tensors].filter(([name]) => name.startsWith('input.'))), rows };
}

/** Our weights and outputs, for Python. */
function exportModel({ create, format }: Subject, at: string, input: ReadonlyMap<string, Tensor>): string {
  const model = create();
  randomize(model);
  model.eval();
  const outputs = noGrad(() => outputsOf(model, (name) => input.get(`input.${name}`) as Tensor));
  const state = model instanceof Clip ? model.officialState('transformers') : model.stateDict();
  const weights = join(at, format === 'torch' ? 'ours.pt' : 'ours.safetensors');
  if (format === 'torch') writeTorchFile(weights, { state_dict: state });
  else writeSafetensors(weights, state, { format: 'pt' });
  const named = Object.entries(outputs).map(([name, tensor]): [string, Tensor] => [`output.${name}`, tensor]);
  writeSafetensors(join(at, 'ours_reference.safetensors'), [...input, ...named]);
  return weights;
}

describe.skipIf(python.command === null)(`the same weights in Python and here${python.reason}`, () => {
  beforeAll(async () => {
    const at = (index: number): string => join(folder, String(index));
    subjects.forEach((_, index) => mkdirSync(at(index)));
    const exports = subjects.map(({ source }, index) => ({ source, out: at(index), random: true }));
    await runJobs(python, 'export', folder, exports);
    manualSeed(3);
    const checks = subjects.map((subject, index) =>
      scope(() => {
        const { input, rows } = importModel(subject, at(index));
        differences.set(subject.id, { theirs: rows, ours: {} });
        const weights = exportModel(subject, at(index), input);
        return { source: subject.source, weights, reference: join(at(index), 'ours_reference.safetensors') };
      }),
    );
    const results = await runJobs<{ differences: Record<string, number> }>(python, 'check', folder, checks);
    results.forEach(({ differences: rows }, index) => {
      const { id } = subjects[index] as Subject;
      differences.set(id, { theirs: differences.get(id)?.theirs ?? {}, ours: rows });
    });
  }, 600_000);

  test.each(subjects)('$id: from $source to torchgraft', ({ id }) => {
    const rows = Object.entries(differences.get(id)?.theirs ?? {});
    console.log(`${id} from Python: ${rows.map(([name, value]) => `${name} ${value.toExponential(1)}`).join(', ')}`);
    expect(rows.length).toBeGreaterThan(0);
    for (const [name, value] of rows) expect(value, name).toBeLessThan(TOLERANCE);
  });

  test.each(subjects)('$id: from torchgraft to $source', ({ id }) => {
    const rows = Object.entries(differences.get(id)?.ours ?? {});
    console.log(`${id} to Python: ${rows.map(([name, value]) => `${name} ${value.toExponential(1)}`).join(', ')}`);
    expect(rows.length).toBeGreaterThan(0);
    for (const [name, value] of rows) expect(value, name).toBeLessThan(TOLERANCE);
  });
});
