/** Names of the unified view's tensors in the released checkpoints (jxhe/unify-parameter-efficient-tuning, commit 3222ce2). */
import type { Site } from '../nn/index.js';
import type { OfficialPart } from './core/index.js';

/** Which attention a site belongs to: the part before the underscore of its second role, as in `cross_keys`. */
export function placeOf({ roles }: Site, role: string): string {
  const found = roles.find((name) => name.endsWith(`_${role}`));
  return found === undefined ? 'self' : found.slice(0, -role.length - 1);
}

/** Path of the attention that owns one of the sites inside it. */
export function attentionPath(path: string): string {
  return path.replace(/\.(keys|values|core|joined)$/, '');
}

const BOTTLENECK: Readonly<Record<string, string>> = {
  down: 'down_proj',
  up: 'up_proj',
  norm: 'adapter_layer_norm_before',
};

function bottleneckLeaf(leaf: string): string {
  const [layer = '', ...rest] = leaf.split('.');
  return [BOTTLENECK[layer] ?? layer, ...rest].join('.');
}

/** Sets of the reparametrized prefix: the encoder's, the cross-attention's; every other is the decoder's own. */
const SUFFIX: Readonly<Record<string, string>> = { encoder: '_enc', cross: '2' };

function sharedPrefix(part: string, leaf: string): string {
  const suffix = SUFFIX[part.replace(/^prefix_/, '')] ?? '';
  if (leaf === 'embedding.weight') return `wte${suffix}.weight`;
  return `control_trans${suffix}.${leaf.replace(/^hidden\./, '0.').replace(/^out\./, '2.')}`;
}

const DIRECT: Readonly<Record<string, string>> = {
  self: 'decoder_self_attn',
  decoder: 'decoder_self_attn',
  encoder: 'encoder_attn',
  cross: 'decoder_cross_attn',
};

/** A prefix without reparametrization. The released code keeps all in lists; on T5 and images they stand in the attention. */
function directPrefix(path: string, place: string, what: string): string {
  const found = /\.layers\.(\d+)\./.exec(path) ?? /\.encoder\.layer\.(\d+)\.attention/.exec(path);
  const index = found?.[1];
  if (index === undefined) return `${attentionPath(path)}.prefix_${what}`;
  return `${DIRECT[place] ?? place}_${what}.${index}.weight`;
}

/** The official name of a tensor of `adapter`, `prefix` or `mam`. */
export function unifiedName({ path, site, rule, leaf }: OfficialPart): string | null {
  if (!site) return sharedPrefix(rule, leaf);
  if (rule === 'attn') {
    const owner = attentionPath(path).replace(/\.attention\.inner$/, '.attention.output');
    return `${owner}.ef_attn_adapter.${bottleneckLeaf(leaf)}`;
  }
  if (rule === 'ffn') {
    const owner = path
      .replace(/\.layer\.(\d+)\.mlp$/, '.layer.$1.output')
      .replace(/\.(mlp_branch|mlp|DenseReluDense|LayerNorm|final_layer_norm)$/, '');
    return `${owner}.ef_ffn_adapter.${bottleneckLeaf(leaf)}`;
  }
  if (rule === 'prefix_key') return directPrefix(path, placeOf(site, 'keys'), 'key');
  if (rule === 'prefix_value') return directPrefix(path, placeOf(site, 'values'), 'value');
  if (leaf.startsWith('norm.')) return `${attentionPath(path)}.ef_transform_layer_norm.${leaf.slice(5)}`;
  return directPrefix(path, placeOf(site, 'heads'), leaf);
}
