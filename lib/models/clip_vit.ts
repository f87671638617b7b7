/**
 * CLIP's image transformer: Radford et al., ICML 2021, arXiv 2103.00020; openai/CLIP, commit d05afc4. It is timm's
 * `VisionTransformer` with a norm before the blocks, x sigmoid(1.702 x) in the MLPs, and a projection after the class
 * token's norm; names are timm's, but for the projection, which is `proj` here and the classifier there.
 */
import { init } from '../nn/index.js';
import type { Tensor } from '../tensor/index.js';
import type { Preprocessing } from './backbone.js';
import { visualTower } from './clip_names.js';
import { type Family, preprocessing } from './family.js';
import { VisionTransformer } from './vit.js';
import { ViTBlock } from './vit_blocks.js';
import { vitOptions } from './vit_variants.js';

/** Mean and deviation of the pixels that CLIP was trained on. */
export const CLIP_COLORS = {
  mean: [0.48145466, 0.4578275, 0.40821073],
  std: [0.26862954, 0.26130258, 0.27577711],
} as const satisfies Pick<Preprocessing, 'mean' | 'std'>;

/** Citation of CLIP. */
export const CLIP_PAPER =
  'Radford et al., Learning Transferable Visual Models From Natural Language Supervision, ICML 2021, arXiv 2103.00020';

/** CLIP's image transformer. Images of another shape with as many patches get the positions in raster order. */
export class ClipVisionTransformer extends VisionTransformer {
  /** From OpenAI's archive (whole, or the tower alone), transformers' CLIPModel, timm's or our own names. */
  override convertStateDict(state: ReadonlyMap<string, Tensor>): Map<string, Tensor> {
    const out = visualTower(state, 'vit');
    // timm holds the projection as a classifier without classes; its bias is zero.
    const head = out.get('head.weight');
    if (this.proj && head && !out.has('proj.weight') && head.shape.join() === this.proj.weight.shape.join()) {
      out.delete('head.weight');
      // Another bias would be a trained classifier's; the loader then reports it.
      if (out.get('head.bias')?.any().item() === false) out.delete('head.bias');
      out.set('proj.weight', head);
    }
    // A tower that was built without a projection has no use for the file's.
    if (!this.proj) out.delete('proj.weight');
    return super.convertStateDict(out);
  }

  /**
   * Class token, positions and projection N(0, 1 / d); attention's fused projection Xavier-uniform and its biases 0, as
   * PyTorch's multi-head attention starts; all else PyTorch's default.
   */
  protected override initWeights(): void {
    const std = this.embedDim ** -0.5;
    for (const tensor of [this.cls_token, this.pos_embed, this.proj?.weight]) if (tensor) init.normal_(tensor, 0, std);
    for (const block of this.blocks) {
      if (!(block instanceof ViTBlock)) continue;
      const { qkv, proj } = block.attn;
      init.xavierUniform_(qkv.weight);
      for (const { bias } of [qkv, proj]) if (bias) init.zeros_(bias);
    }
  }
}

const options = vitOptions.extend({
  numClasses: vitOptions.shape.numClasses.unwrap().default(0),
  preNorm: vitOptions.shape.preNorm.unwrap().default(true),
  activation: vitOptions.shape.activation.unwrap().default('quick_gelu'),
  normEps: vitOptions.shape.normEps.unwrap().default(1e-5),
  strictImgSize: vitOptions.shape.strictImgSize.unwrap().default(false),
});

const base = { embedDim: 768, depth: 12, numHeads: 12, projDim: 512 };
const large = { embedDim: 1024, depth: 24, numHeads: 16, projDim: 768 };

const published = {
  base_patch32: { ...base, patchSize: 32, sizes: [224] },
  base_patch16: { ...base, patchSize: 16, sizes: [224] },
  large_patch14: { ...large, patchSize: 14, sizes: [224, 336] },
};

/** timm's names: `quickgelu` are OpenAI's own weights; those without it were trained again, with the exact GELU. */
const variants = Object.fromEntries(
  Object.entries(published).flatMap(([size, { sizes, ...rest }]) =>
    sizes.flatMap((imgSize) => [
      [`vit_${size}_clip_quickgelu_${imgSize}`, { ...rest, imgSize }],
      [`vit_${size}_clip_${imgSize}`, { ...rest, imgSize, activation: 'gelu' as const }],
    ]),
  ),
);

export const clipVit: Family<typeof options> = {
  id: 'clip_vit',
  checkpoints: { source: 'openai/CLIP', license: 'MIT' },
  paper: CLIP_PAPER,
  options,
  variants,
  create: (name, o) =>
    new ClipVisionTransformer(name, o, preprocessing(o, { interpolation: 'bicubic', cropPct: 1, ...CLIP_COLORS })),
};
