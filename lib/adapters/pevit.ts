/**
 * What the methods of eric-ai-lab/PEViT (commit be6fb43, MIT) have in common: its names, and how it adds increments to
 * the heads of an attention.
 */
import type { Site, SiteLayout } from '../nn/index.js';
import type { Tensor } from '../tensor/index.js';
import type { Surroundings } from './core/index.js';

/** `blocks.0.attn`, of CLIP's image transformer or of the whole CLIP, as PEViT's files call it. */
export function pevitPath(path: string): string {
  return path.replace(/^(?:visual\.)?blocks\.(\d+)/, `${PEVIT}resblocks.$1`);
}

/** Where the files hold the image transformer and what its blocks share. */
export const PEVIT = 'backbone.visual.transformer.';

/** What PEViT's files call a tensor of the head: the norm is `channel_bn`, the linear layer the only one of `layers`. */
export function pevitHead(leaf: string): string {
  return leaf.replace(/^norm\./, 'channel_bn.').replace(/^linear\./, 'layers.0.');
}

/** PEViT's files repeat what all blocks share in each of them, and the norm before a bottleneck in its first layer. */
export function pevitCopies(name: string): RegExp | null {
  const exactly = (text: string): string => text.replace(/[.]/g, '\\.');
  const rule = name.startsWith(`${PEVIT}phm_rule`) ? name.slice(PEVIT.length) : null;
  if (rule === 'phm_rule') {
    return new RegExp(`^${exactly(PEVIT)}resblocks\\.\\d+\\.compacter\\.adapter_(down\\.1|up)\\.phm_rule$`);
  }
  if (rule !== null) return new RegExp(`^${exactly(PEVIT)}resblocks\\.\\d+\\.attn\\.${exactly(rule)}$`);
  if (!name.includes('.adapter_norm_before.')) return null;
  return new RegExp(`^${exactly(name.replace('.adapter_norm_before.', '.adapter_down.0.'))}$`);
}

/** Path of the module that a site lies in: `blocks.0.attn` for `blocks.0.attn.qkv[q]`. */
export function parentPath({ path }: Site): string {
  return path.slice(0, path.lastIndexOf('.'));
}

/** How an increment reaches the heads. */
export interface HeadAddition {
  readonly heads: number;
  /** Factor in front of the scaling of the scores of what is added behind it: one over the scaling, √d as a rule. */
  readonly unscaled: number;
  readonly layout: SiteLayout;
}

/** @throws RangeError for a projection that is more than a product of matrices at every token or pixel */
export function checkPointwise({ module, kernel = [1, 1], stride = [1, 1], groups = 1 }: Site): void {
  if (Math.max(...kernel, ...stride, groups) === 1) return;
  throw new RangeError(
    `needs a linear layer or a convolution of one pixel, and this is a ${module.constructor.name} of kernel ` +
      `${kernel.join(' x ')}, stride ${stride.join(' x ')}, ${groups} groups`,
  );
}

/**
 * The heads of the attention that a projection to queries (`part` q) or values belongs to.
 *
 * @throws RangeError when the model does not say how many there are
 */
export function headsAround(site: Site, { all }: Surroundings, part: 'q' | 'v'): HeadAddition {
  const inside = `${parentPath(site)}.`;
  const found = all.find(({ path, roles }) => roles.includes('heads') && path.startsWith(inside));
  if (found?.heads === undefined) {
    throw new RangeError(
      `adds to the heads of an attention, and the model does not say how many there are here; ` +
        'a transformer with sites of the role heads would do',
    );
  }
  const scaling = found.scoreScale ?? Math.sqrt(found.heads / found.out);
  return { heads: found.heads, unscaled: part === 'q' ? 1 / scaling : 1, layout: site.layout };
}

/** A function of features whose channels come last, [..., C], on features that may be maps [B, C, H, W] (layout `map`). */
export function overChannels(x: Tensor, layout: SiteLayout, compute: (rows: Tensor) => Tensor): Tensor {
  return layout === 'map' ? compute(x.permute([0, 2, 3, 1])).permute([0, 3, 1, 2]) : compute(x);
}

/**
 * PEViT's reading of an increment D [B, ..., C] as heads [B H, N, d], laid out as the projection that it is added to
 * ([B, ..., C]): the elements are taken in their order in memory there (token, sample, channel) and dealt out in the order
 * (sample, head, token, channel of the head). That is no split into heads: tokens, heads and samples are mixed.
 */
export function rawReshape(d: Tensor, heads: number): Tensor {
  const [batch = 0] = d.shape;
  const channels = d.shape.at(-1) ?? 1;
  const length = d.numel() / Math.max(1, batch * channels);
  const inMemory = d.reshape([batch, length, channels]).transpose(0, 1);
  const dealt = inMemory.reshape([batch, heads, length, channels / heads]);
  return dealt.transpose(1, 2).reshape(d.shape);
}
