/** Names of torchvision's image models, which call most layers by their places, to ours. All invertible. */
import type { KeyMap, KeyRule } from '../checkpoint/index.js';

/** `from` + name to `to` + the other name, for each of the pairs. */
function renames(from: string, to: string, pairs: readonly (readonly [string, string])[]): KeyRule[] {
  return pairs.map(([a, b]) => ({ kind: 'rename', from: `${from}${a}.{leaf}`, to: `${to}${b}.{leaf}` }));
}

/** ConvNeXt: `features` holds stem, stage, downsampling, stage, ...; the layer scale is a map of one pixel. */
export function torchvisionConvnext(stages: number): KeyMap {
  const each = Array.from({ length: stages }, (_, s) => s);
  return [
    ...renames('', '', [
      ['features.0.0', 'stem.0'],
      ['features.0.1', 'stem.1'],
      ['classifier.0', 'head.norm'],
      ['classifier.2', 'head.fc'],
    ]),
    ...each.slice(1).flatMap((s) => renames(`features.${2 * s}.`, `stages.${s}.downsample.`, [['{i}', '{i}']])),
    ...each.flatMap((s): KeyRule[] => {
      const [from, to] = [`features.${2 * s + 1}.{j}.`, `stages.${s}.blocks.{j}.`];
      const gamma = `stages.${s}.blocks.{j}.gamma`;
      return [
        ...renames(`${from}block.`, to, [
          ['0', 'conv_dw'],
          ['2', 'norm'],
          ['3', 'mlp.fc1'],
          ['5', 'mlp.fc2'],
        ]),
        { kind: 'rename', from: `${from}layer_scale`, to: gamma },
        { kind: 'squeeze', match: gamma, dim: 2 },
        { kind: 'squeeze', match: gamma, dim: 1 },
      ];
    }),
  ];
}

/** Swin: `features` as in ConvNeXt. The table of relative positions that its files hold is a buffer, and none of ours. */
export function torchvisionSwin(stages: number): KeyMap {
  const table = 'attn.relative_position_bias_table';
  return [
    ...renames('', '', [
      ['features.0.0', 'patch_embed.proj'],
      ['features.0.2', 'patch_embed.norm'],
      ['head', 'head.fc'],
    ]),
    ...Array.from({ length: stages }, (_, s) => s).flatMap((s): KeyRule[] => {
      const [from, to] = [`features.${2 * s + 1}.{j}.`, `layers.${s}.blocks.{j}.`];
      return [
        ...(s > 0 ? renames(`features.${2 * s}.`, `layers.${s}.downsample.`, [['{part}', '{part}']]) : []),
        ...renames(from, to, [
          ['norm1', 'norm1'],
          ['norm2', 'norm2'],
          ['attn.qkv', 'attn.qkv'],
          ['attn.proj', 'attn.proj'],
          ['mlp.0', 'mlp.fc1'],
          ['mlp.3', 'mlp.fc2'],
        ]),
        { kind: 'rename', from: from + table, to: to + table },
      ];
    }),
  ];
}

/** Vision transformers: `encoder_layer_0` is one component, of which a pattern takes no part. */
export const torchvisionVit: KeyMap = [
  {
    kind: 'rename',
    from: /^encoder\.layers\.encoder_layer_(\d+)\./,
    to: 'encoder.layers.$1.',
    back: { from: /^encoder\.layers\.(\d+)\./, to: 'encoder.layers.encoder_layer_$1.' },
  },
  { kind: 'rename', from: 'class_token', to: 'cls_token' },
  { kind: 'rename', from: 'encoder.pos_embedding', to: 'pos_embed' },
  ...renames('', '', [
    ['conv_proj', 'patch_embed.proj'],
    ['encoder.ln', 'norm'],
    ['heads.head', 'head'],
  ]),
  { kind: 'rename', from: 'encoder.layers.{i}.self_attention.in_proj_weight', to: 'blocks.{i}.attn.qkv.weight' },
  { kind: 'rename', from: 'encoder.layers.{i}.self_attention.in_proj_bias', to: 'blocks.{i}.attn.qkv.bias' },
  ...renames('encoder.layers.{i}.', 'blocks.{i}.', [
    ['ln_1', 'norm1'],
    ['self_attention.out_proj', 'attn.proj'],
    ['ln_2', 'norm2'],
    ['mlp.0', 'mlp.fc1'],
    ['mlp.3', 'mlp.fc2'],
  ]),
];

/** A convolution and its norm, in torchvision's order. */
type Unit = readonly [conv: string, norm: string];

/** The units of each kind of block, and what lies between them. */
const UNITS: Readonly<Record<'cn' | 'er' | 'ir', readonly (Unit | 'se')[]>> = {
  cn: [['conv', 'bn1']],
  er: [
    ['conv_exp', 'bn1'],
    ['conv_pwl', 'bn2'],
  ],
  ir: [['conv_pw', 'bn1'], ['conv_dw', 'bn2'], 'se', ['conv_pwl', 'bn3']],
};

/** EfficientNet-V2, by the kind of the blocks of each stage. */
export function torchvisionEfficientNet(stages: readonly ('cn' | 'er' | 'ir')[]): KeyMap {
  const unit = (from: string, to: string, [conv, norm]: Unit): KeyRule[] =>
    renames(from, to, [
      ['0', conv],
      ['1', norm],
    ]);
  return [
    ...unit('features.0.', '', ['conv_stem', 'bn1']),
    ...unit(`features.${stages.length + 1}.`, '', ['conv_head', 'bn2']),
    ...renames('', '', [['classifier.1', 'classifier']]),
    ...stages.flatMap((kind, s) =>
      UNITS[kind].flatMap((part, i) => {
        const [from, to] = [`features.${s + 1}.{j}.block.${i}.`, `blocks.${s}.{j}.`];
        const squeeze: readonly (readonly [string, string])[] = [
          ['fc1', 'se.conv_reduce'],
          ['fc2', 'se.conv_expand'],
        ];
        return part === 'se' ? renames(from, to, squeeze) : unit(from, to, part);
      }),
    ),
  ];
}
