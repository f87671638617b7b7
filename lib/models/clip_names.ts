/**
 * Names of CLIP's tensors: OpenAI's archives (`visual.transformer.resblocks.0.ln_1.weight`) and transformers' CLIPModel
 * (`vision_model.encoder.layers.0.layer_norm1.weight`), to and from those of `Clip`: `visual.` and `text.` before the names
 * of the towers, which are timm's for the vision transformer and OpenAI's for the residual network.
 */
import { applyKeyMap, invertKeyMap, type KeyMap, type KeyRule } from '../checkpoint/index.js';
import type { Tensor } from '../tensor/index.js';

/** The two kinds of image tower. */
export type VisualKind = 'vit' | 'resnet';

/** Published formats that hold both towers. */
export type ClipFormat = 'openai' | 'transformers';

/** `from` + name to `to` + the same name, for each of the pairs. */
function renames(from: string, to: string, pairs: Readonly<Record<string, string>>): KeyRule[] {
  return Object.entries(pairs).map(([a, b]) => ({ kind: 'rename', from: `${from}${a}`, to: `${to}${b}` }));
}

/** [d] to [1, 1, d] and [N, d] to [1, N, d]: how timm holds class token and positions. */
function tokenShapes(prefix: string): KeyRule[] {
  return [`${prefix}cls_token`, `${prefix}cls_token`, `${prefix}pos_embed`].map((match) => ({
    kind: 'unsqueeze',
    match,
    dim: 0,
  }));
}

/** A projection that is stored [in, out], as the weight of a linear layer. */
function projection(from: string, to: string): KeyRule[] {
  return [
    { kind: 'rename', from, to },
    { kind: 'permute', match: to, dims: [1, 0] },
  ];
}

function openaiBlocks(from: string, to: string): KeyRule[] {
  return renames(`${from}transformer.resblocks.{i}.`, `${to}blocks.{i}.`, {
    'attn.in_proj_{leaf}': 'attn.qkv.{leaf}',
    'attn.out_proj.{leaf}': 'attn.proj.{leaf}',
    'ln_1.{leaf}': 'norm1.{leaf}',
    'ln_2.{leaf}': 'norm2.{leaf}',
    'mlp.c_fc.{leaf}': 'mlp.fc1.{leaf}',
    'mlp.c_proj.{leaf}': 'mlp.fc2.{leaf}',
  });
}

/** Names of OpenAI's image transformer below one path to ours below another. */
export function openaiViT(from: string, to: string): KeyRule[] {
  return [
    ...renames(from, to, {
      'conv1.weight': 'patch_embed.proj.weight',
      class_embedding: 'cls_token',
      positional_embedding: 'pos_embed',
      'ln_pre.{leaf}': 'norm_pre.{leaf}',
      'ln_post.{leaf}': 'norm.{leaf}',
    }),
    ...tokenShapes(to),
    ...openaiBlocks(from, to),
    ...projection(`${from}proj`, `${to}proj.weight`),
  ];
}

/** Names of OpenAI's image transformer alone (without `visual.`), as ST-Adapter and DenseCLIP hold it, to ours. */
export const openaiVisionTransformer: KeyMap = openaiViT('', '');

/** Names of OpenAI's text tower (which stand at the root of the archive) to ours. */
export const openaiTextTransformer: KeyMap = openaiText('', '');

/** Names of OpenAI's text tower below one path to ours below another. */
export function openaiText(from: string, to: string): KeyRule[] {
  return [
    ...renames(from, to, {
      'token_embedding.weight': 'token_embedding.weight',
      positional_embedding: 'positional_embedding',
      'ln_final.{leaf}': 'ln_final.{leaf}',
    }),
    ...openaiBlocks(from, to),
    ...projection(`${from}text_projection`, `${to}proj.weight`),
  ];
}

/** A whole archive of OpenAI, in the order that keeps the image tower's names out of the text tower's way. */
function openai(visual: VisualKind): KeyRule[] {
  const images: KeyRule[] = visual === 'vit' ? openaiViT('visual.', 'visual.') : [];
  return [...openaiText('', 'text.'), ...images];
}

function transformersTower(from: string, to: string): KeyRule[] {
  const layer = `${from}encoder.layers.{i}.`;
  const block = `${to}blocks.{i}.`;
  return [
    ...['weight', 'bias'].map((leaf): KeyRule => ({
      kind: 'concat',
      from: ['q', 'k', 'v'].map((part) => `${layer}self_attn.${part}_proj.${leaf}`),
      to: `${block}attn.qkv.${leaf}`,
    })),
    ...renames(layer, block, {
      'self_attn.out_proj.{leaf}': 'attn.proj.{leaf}',
      'layer_norm1.{leaf}': 'norm1.{leaf}',
      'layer_norm2.{leaf}': 'norm2.{leaf}',
      'mlp.{fc}.{leaf}': 'mlp.{fc}.{leaf}',
    }),
  ];
}

const transformers: KeyMap = [
  ...renames('vision_model.', 'visual.', {
    'embeddings.patch_embedding.weight': 'patch_embed.proj.weight',
    'embeddings.class_embedding': 'cls_token',
    'embeddings.position_embedding.weight': 'pos_embed',
    'pre_layrnorm.{leaf}': 'norm_pre.{leaf}',
    'post_layernorm.{leaf}': 'norm.{leaf}',
  }),
  ...tokenShapes('visual.'),
  ...transformersTower('vision_model.', 'visual.'),
  { kind: 'rename', from: 'visual_projection.weight', to: 'visual.proj.weight' },
  ...renames('text_model.', 'text.', {
    'embeddings.token_embedding.weight': 'token_embedding.weight',
    'embeddings.position_embedding.weight': 'positional_embedding',
    'final_layer_norm.{leaf}': 'ln_final.{leaf}',
  }),
  ...transformersTower('text_model.', 'text.'),
  { kind: 'rename', from: 'text_projection.weight', to: 'text.proj.weight' },
];

/** What stands in the files beside the weights: settings of the JIT archives, and indices. */
const BESIDE = /^(input_resolution|context_length|vocab_size|(vision|text)_model\.embeddings\.position_ids)$/;

/** The map of a format to the names of `Clip`. Invertible. */
export function clipKeyMap(format: ClipFormat, visual: VisualKind): KeyMap {
  return format === 'openai' ? openai(visual) : transformers;
}

/** Which of the formats these names are; null for our own, a single tower, or something else. */
export function clipFormat(names: Iterable<string>): ClipFormat | null {
  const all = [...names];
  // The image tower with a residual network has the same names in both, the text tower never has.
  if (all.some((name) => name.startsWith('text.'))) return null;
  for (const name of all) {
    if (/^(vision_model|text_model)\.|^(visual|text)_projection\.weight$/.test(name)) return 'transformers';
    if (/^visual\.(conv1|transformer|class_embedding)|^transformer\.resblocks\.|^text_projection$/.test(name)) {
      return 'openai';
    }
  }
  return null;
}

/** A state dict of either format, or of our own, in the names of `Clip`. */
export function toClipNames(state: ReadonlyMap<string, Tensor>, visual: VisualKind): Map<string, Tensor> {
  const own = new Map([...state].filter(([name]) => !BESIDE.test(name)));
  const format = clipFormat(own.keys());
  return format === null ? own : applyKeyMap(clipKeyMap(format, visual), own).tensors;
}

/** A state dict in the names of `Clip`, in a published format. */
export function fromClipNames(
  state: ReadonlyMap<string, Tensor>,
  visual: VisualKind,
  format: ClipFormat,
): Map<string, Tensor> {
  return applyKeyMap(invertKeyMap(clipKeyMap(format, visual)), state).tensors;
}

/**
 * The image tower's part of a file: of a whole CLIP in any format, or of a tower alone in OpenAI's names or ours.
 */
export function visualTower(state: ReadonlyMap<string, Tensor>, visual: VisualKind): Map<string, Tensor> {
  const isWhole = [...state.keys()].some((name) => /^(visual|vision_model)\./.test(name));
  if (!isWhole) {
    const isOfficial = visual === 'vit' && (state.has('class_embedding') || state.has('conv1.weight'));
    return isOfficial ? applyKeyMap(openaiVisionTransformer, state).tensors : new Map(state);
  }
  const all = toClipNames(state, visual);
  const own = [...all].filter(([name]) => name.startsWith('visual.'));
  return new Map(own.map(([name, tensor]) => [name.slice('visual.'.length), tensor]));
}
