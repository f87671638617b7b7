/** Small models that exist here and in Python: with the same random weights, as files for both. */
import { join } from 'node:path';
import { writeSafetensors } from '../../lib/checkpoint/index.js';
import {
  createCustomModel,
  createCustomTextModel,
  exportState,
  type Host,
  type NameFormat,
  TextModel,
} from '../../lib/models/index.js';
import { init } from '../../lib/nn/index.js';
import { manualSeed, noGrad, randint, randn, type Tensor } from '../../lib/tensor/index.js';

interface Backbone {
  /** As the scripts name it. */
  readonly source: string;
  /** As Python builds it. */
  readonly options: Readonly<Record<string, unknown>>;
  readonly create: () => Host;
  readonly names: NameFormat;
  /** Height and width of the images; default 32. */
  readonly side?: number;
  /** Frames of clips; default 0, images. */
  readonly frames?: number;
  /** Compute in float64, where float32 leaves fewer than five digits of the logits. */
  readonly double?: boolean;
}

const vitOptions = { imgSize: 32, patchSize: 8, embedDim: 48, depth: 2, numHeads: 4, numClasses: 5 };
const timmVit = { img_size: 32, patch_size: 8, embed_dim: 48, depth: 2, num_heads: 4, num_classes: 5 };
const textSizes = { vocabulary: 40, dim: 32, hidden: 64, depth: 2, numHeads: 4 };
const dims = [8, 16, 24, 32];
const efficientStages = [
  'cn_r1_k3_s1_e1_c8_skip',
  'er_r1_k3_s2_e4_c8',
  'er_r1_k3_s2_e4_c16',
  'ir_r2_k3_s2_e4_c24_se0.25',
  'ir_r3_k3_s1_e6_c32_se0.25',
  'ir_r4_k3_s2_e6_c48_se0.25',
];

export const backbones = {
  vit: {
    source: 'timm:vit_tiny_patch16_224',
    options: timmVit,
    create: () => createCustomModel('vit', vitOptions),
    names: 'timm',
  },
  /** Four blocks, layer scale, the mean of the patches. */
  vit4: {
    source: 'timm:vit_tiny_patch16_224',
    options: { ...timmVit, depth: 4, global_pool: 'avg', init_values: 0.5 },
    create: () => createCustomModel('vit', { ...vitOptions, depth: 4, globalPool: 'avg', initValues: 0.5 }),
    names: 'timm',
  },
  clips: {
    source: 'timm:vit_tiny_patch16_224',
    options: timmVit,
    create: () => createCustomModel('vit', vitOptions),
    names: 'timm',
    frames: 4,
  },
  swin: {
    source: 'timm:swin_tiny_patch4_window7_224',
    options: { img_size: 32, embed_dim: 16, depths: [2, 2], num_heads: [2, 4], window_size: 4, num_classes: 5 },
    create: () =>
      createCustomModel('swin', {
        ...{ imgSize: 32, embedDim: 16, depths: [2, 2], numHeads: [2, 4], windowSize: 4, numClasses: 5 },
      }),
    names: 'timm',
  },
  resnet: {
    source: 'timm:resnet18',
    options: { num_classes: 5 },
    create: () => createCustomModel('resnet', { imgSize: 32, block: 'basic', layers: [2, 2, 2, 2], numClasses: 5 }),
    names: 'timm',
  },
  bottlenecks: {
    source: 'timm:resnet50',
    options: { layers: [1, 2, 1, 1], channels: dims, num_classes: 5 },
    create: () =>
      createCustomModel('resnet', {
        ...{ imgSize: 64, block: 'bottleneck', layers: [1, 2, 1, 1], channels: dims, numClasses: 5 },
      }),
    names: 'timm',
    side: 64,
  },
  bit: {
    source: 'timm:resnetv2_50x1_bit',
    options: { channels: [128, 128, 128, 256], stem_chs: 32, num_classes: 5 },
    create: () =>
      createCustomModel('resnetv2', {
        ...{ layers: [3, 4, 6, 3], channels: [128, 128, 128, 256], stemChannels: 32, numClasses: 5, imgSize: 32 },
      }),
    names: 'timm',
    double: true,
  },
  convnext: {
    source: 'timm:convnext_tiny',
    options: { dims, depths: [1, 1, 1, 1], num_classes: 5 },
    create: () => createCustomModel('convnext', { imgSize: 32, dims, depths: [1, 1, 1, 1], numClasses: 5 }),
    names: 'timm',
  },
  efficientnet: {
    source: 'timm:tf_efficientnetv2_b0',
    options: { channel_multiplier: 0.25, depth_multiplier: 0.5, num_classes: 5 },
    create: () =>
      createCustomModel('efficientnet_v2', {
        ...{ stages: efficientStages, stemChannels: 8, headChannels: 320, numClasses: 5, imgSize: 64 },
      }),
    names: 'timm',
    side: 64,
  },
  hfVit: {
    source: 'transformers:ViTForImageClassification',
    options: {
      ...{ image_size: 32, patch_size: 8, hidden_size: 48, num_hidden_layers: 2, num_attention_heads: 4 },
      ...{ num_labels: 5, intermediate_size: 192, layer_norm_eps: 1e-6 },
    },
    create: () => createCustomModel('vit', vitOptions),
    names: 'transformers',
  },
  t5: {
    source: 'transformers:T5ForConditionalGeneration',
    options: { vocab_size: 40, d_model: 32, d_kv: 8, d_ff: 64, num_layers: 2, num_heads: 4 },
    create: () => createCustomTextModel('t5', { ...textSizes, headDim: 8 }),
    names: 'transformers',
  },
  bart: {
    source: 'transformers:BartForConditionalGeneration',
    options: {
      ...{ vocab_size: 40, d_model: 32, max_position_embeddings: 20 },
      ...{ encoder_layers: 2, encoder_ffn_dim: 64, encoder_attention_heads: 4 },
      ...{ decoder_layers: 2, decoder_ffn_dim: 64, decoder_attention_heads: 4 },
    },
    create: () => createCustomTextModel('bart', { ...textSizes, positions: 20 }),
    names: 'transformers',
  },
  roberta: {
    source: 'transformers:RobertaForSequenceClassification',
    options: {
      ...{ vocab_size: 40, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 4 },
      ...{ max_position_embeddings: 24, type_vocab_size: 1, num_labels: 5, layer_norm_eps: 1e-5 },
    },
    create: () => createCustomTextModel('roberta', { ...textSizes, positions: 24, numClasses: 5 }),
    names: 'transformers',
  },
} as const satisfies Record<string, Backbone>;

export type BackboneId = keyof typeof backbones;

/** What is written about a backbone, without the details of its type. */
export const facts = (id: BackboneId): Backbone => backbones[id];

/** A model with weights at which layers have their effect, the same at every call. */
export function build(id: BackboneId): Host {
  manualSeed(21);
  const model = backbones[id].create();
  noGrad(() => {
    for (const [name, tensor] of model.namedState()) {
      if (tensor.dtype !== 'float32') continue;
      if (name.endsWith('running_var')) init.uniform_(tensor, 0.5, 1.5);
      else init.normal_(tensor, tensor.ndim === 1 && /weight|gamma/.test(name) ? 1 : 0, 0.1);
    }
  });
  if (facts(id).double) model.to({ dtype: 'float64' });
  return model.eval();
}

/** Inputs of a model, by Python's names for them. */
export function inputsOf(model: Host, id?: BackboneId): Map<string, Tensor> {
  manualSeed(22);
  if (model instanceof TextModel) {
    const ids = randint(2, 39, [2, 7]);
    return id === 'roberta'
      ? new Map([['input_ids', ids]])
      : new Map([
          ['input_ids', ids],
          ['decoder_input_ids', randint(2, 39, [2, 5])],
        ]);
  }
  const { side = 32, frames = 0, double = false } = id ? facts(id) : {};
  const x = randn([2, 3, ...(frames > 0 ? [frames] : []), side, side]);
  return new Map([['x', double ? x.to('float64') : x]]);
}

/** Logits. */
export function run(model: Host, inputs: ReadonlyMap<string, Tensor>): Tensor {
  const [image] = inputs.values();
  const get = (name: string): Tensor => inputs.get(name) as Tensor;
  return noGrad(() => {
    if (!(model instanceof TextModel)) return model.run(image as Tensor);
    const decoder = inputs.get('decoder_input_ids');
    return model.outputs({ inputIds: get('input_ids'), ...(decoder && { decoderInputIds: decoder }) }).logits;
  });
}

/** The largest difference, as a share of the largest value (or of 1). */
export const difference = (a: Tensor, b: Tensor): number =>
  Number(a.sub(b).abs().max().item()) / Math.max(1, Number(b.abs().max().item()));

/** The model's weights and inputs as files for Python. */
export function filesOf(id: BackboneId, folder: string): { weights: string; reference: string } {
  const weights = join(folder, `${id}.safetensors`);
  const reference = join(folder, `${id}_inputs.safetensors`);
  const model = build(id);
  const { source, names } = facts(id);
  writeSafetensors(weights, exportState(model, names), { format: 'pt' });
  const isImage = source.startsWith('transformers') && !(model instanceof TextModel);
  const name = (input: string): string => `input.${isImage ? 'pixel_values' : input}`;
  writeSafetensors(
    reference,
    [...inputsOf(model, id)].map(([input, tensor]) => [name(input), tensor] as const),
  );
  return { weights, reference };
}
