/**
 * Names of transformers' image models to ours: those of its files (`vit.encoder.layer.0.attention.attention.query.weight`),
 * which every release reads and writes, and those of the modules in memory since release 5
 * (`vit.layers.0.attention.q_proj.weight`), by which peft names what it adapts. All invertible.
 */
import type { KeyMap, KeyRule } from '../checkpoint/index.js';

/** `from` + name to `to` + the other name, for each of the pairs. */
function renames(from: string, to: string, pairs: Readonly<Record<string, string>>): KeyRule[] {
  return Object.entries(pairs).map(([a, b]) => ({ kind: 'rename', from: `${from}${a}`, to: `${to}${b}` }));
}

/** Three layers that are one here. */
function joined(layers: readonly string[], to: string): KeyRule[] {
  return ['weight', 'bias'].map((leaf) => ({
    kind: 'concat',
    from: layers.map((layer) => `${layer}.${leaf}`),
    to: `${to}.${leaf}`,
  }));
}

/** The layers of a BERT-like block as files name them; `self` is what holds query, key and value. */
const fileBlock = (from: string, self: string, to: string): KeyRule[] => [
  ...joined(
    ['query', 'key', 'value'].map((part) => `${from}attention.${self}.${part}`),
    `${to}attn.qkv`,
  ),
  ...renames(from, to, {
    'attention.output.dense.{leaf}': 'attn.proj.{leaf}',
    'intermediate.dense.{leaf}': 'mlp.fc1.{leaf}',
    'output.dense.{leaf}': 'mlp.fc2.{leaf}',
    'layernorm_before.{leaf}': 'norm1.{leaf}',
    'layernorm_after.{leaf}': 'norm2.{leaf}',
  }),
];

/** The same as modules are called since release 5. */
const moduleBlock = (from: string, to: string): KeyRule[] => [
  ...joined(
    ['q', 'k', 'v'].map((part) => `${from}attention.${part}_proj`),
    `${to}attn.qkv`,
  ),
  ...renames(from, to, {
    'attention.o_proj.{leaf}': 'attn.proj.{leaf}',
    'mlp.{fc}.{leaf}': 'mlp.{fc}.{leaf}',
    'layernorm_before.{leaf}': 'norm1.{leaf}',
    'layernorm_after.{leaf}': 'norm2.{leaf}',
  }),
];

const vitEnds = renames('', '', {
  'vit.embeddings.cls_token': 'cls_token',
  'vit.embeddings.position_embeddings': 'pos_embed',
  'vit.embeddings.patch_embeddings.projection.{leaf}': 'patch_embed.proj.{leaf}',
  'vit.layernorm.{leaf}': 'norm.{leaf}',
  'classifier.{leaf}': 'head.{leaf}',
});

/** ViTForImageClassification. */
export const transformersVit = {
  files: [...fileBlock('vit.encoder.layer.{i}.', 'attention', 'blocks.{i}.'), ...vitEnds] as KeyMap,
  modules: [...moduleBlock('vit.layers.{i}.', 'blocks.{i}.'), ...vitEnds] as KeyMap,
};

/** SwinForImageClassification, which merges patches at the end of a stage and timm at the start of the next. */
export function transformersSwin(stages: number): { readonly files: KeyMap; readonly modules: KeyMap } {
  const [from, to] = ['swin.encoder.layers.{s}.blocks.{j}.', 'layers.{s}.blocks.{j}.'];
  const table = 'relative_position_bias_table';
  const ends: KeyRule[] = [
    ...renames('', '', {
      'swin.embeddings.patch_embeddings.projection.{leaf}': 'patch_embed.proj.{leaf}',
      'swin.embeddings.norm.{leaf}': 'patch_embed.norm.{leaf}',
      'swin.embeddings.position_embeddings': 'absolute_pos_embed',
      'swin.layernorm.{leaf}': 'norm.{leaf}',
      'classifier.{leaf}': 'head.fc.{leaf}',
    }),
    ...Array.from({ length: stages - 1 }, (_, s): KeyRule => ({
      kind: 'rename',
      from: `swin.encoder.layers.${s}.downsample.{rest...}`,
      to: `layers.${s + 1}.downsample.{rest...}`,
    })),
  ];
  return {
    files: [
      ...renames(from, to, { [`attention.self.${table}`]: `attn.${table}` }),
      ...fileBlock(from, 'self', to),
      ...ends,
    ],
    modules: [
      ...renames(from, to, { [`attention.relative_position_bias.${table}`]: `attn.${table}` }),
      ...moduleBlock(from, to),
      ...ends,
    ],
  };
}

/** ConvNextForImageClassification. */
export const transformersConvnext: KeyMap = [
  ...renames('convnext.', '', {
    'embeddings.patch_embeddings.{leaf}': 'stem.0.{leaf}',
    'embeddings.layernorm.{leaf}': 'stem.1.{leaf}',
    'encoder.stages.{s}.downsampling_layer.{i}.{leaf}': 'stages.{s}.downsample.{i}.{leaf}',
    'encoder.stages.{s}.layers.{j}.dwconv.{leaf}': 'stages.{s}.blocks.{j}.conv_dw.{leaf}',
    'encoder.stages.{s}.layers.{j}.layernorm.{leaf}': 'stages.{s}.blocks.{j}.norm.{leaf}',
    'encoder.stages.{s}.layers.{j}.pwconv1.{leaf}': 'stages.{s}.blocks.{j}.mlp.fc1.{leaf}',
    'encoder.stages.{s}.layers.{j}.pwconv2.{leaf}': 'stages.{s}.blocks.{j}.mlp.fc2.{leaf}',
    'encoder.stages.{s}.layers.{j}.layer_scale_parameter': 'stages.{s}.blocks.{j}.gamma',
    'layernorm.{leaf}': 'head.norm.{leaf}',
  }),
  { kind: 'rename', from: 'classifier.{leaf}', to: 'head.fc.{leaf}' },
];

/** ResNetForImageClassification: stages from 0, convolutions from 0. */
export const transformersResnet: KeyMap = [
  ...renames('resnet.embedder.embedder.', '', {
    'convolution.{leaf}': 'conv1.{leaf}',
    'normalization.{leaf}': 'bn1.{leaf}',
  }),
  ...[0, 1, 2, 3].flatMap((s) => {
    const [from, to] = [`resnet.encoder.stages.${s}.layers.{j}.`, `layer${s + 1}.{j}.`];
    return [
      ...renames(from, to, {
        'shortcut.convolution.{leaf}': 'downsample.0.{leaf}',
        'shortcut.normalization.{leaf}': 'downsample.1.{leaf}',
      }),
      ...[0, 1, 2].flatMap((k) =>
        renames(`${from}layer.${k}.`, to, {
          'convolution.{leaf}': `conv${k + 1}.{leaf}`,
          'normalization.{leaf}': `bn${k + 1}.{leaf}`,
        }),
      ),
    ];
  }),
  { kind: 'rename', from: 'classifier.1.{leaf}', to: 'fc.{leaf}' },
];
