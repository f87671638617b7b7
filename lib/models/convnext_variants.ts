/** Options and published sizes of ConvNeXt (`convnext.ts`). */
import { z } from 'zod';
import { CLIP_COLORS } from './clip_vit.js';
import { ConvNeXt } from './convnext.js';
import { backboneOptions, type Family, positive, preprocessing, rate, sizePair } from './family.js';

export const convnextOptions = z.strictObject({
  /** Only how images are prepared depends on it: any size of at least one pixel on the last map works. */
  ...backboneOptions,
  /** Blocks per stage. */
  depths: z.array(positive).min(1),
  /** Widths of the stages. One stage alone makes an isotropic model. */
  dims: z.array(positive).min(1),
  /** Side and stride of the stem's convolution. */
  patchSize: positive.default(4),
  /** Norm behind it; isotropic models have none. */
  stemNorm: z.boolean().default(true),
  kernelSize: positive.default(7),
  mlpRatio: z.number().positive().default(4),
  normEps: z.number().positive().default(1e-6),
  /** Initial layer scale; 0 or null for none. */
  layerScale: z.number().nullable().default(1e-6),
  /**
   * The last norm before the pool (`norm_pre`) instead of after it (`head.norm`); `twice`: two times in a row, as the
   * official code of SSF runs such models.
   */
  headNormFirst: z.union([z.boolean(), z.literal('twice')]).default(false),
  /** Norms `norm0`, `norm1`, ... on the outputs of the stages instead of the last norm, for feature pyramids. */
  featureNorms: z.boolean().default(false),
  /** The norms before downsampling divide by C - 1, as the official code happens to do on tensors that are not contiguous. */
  unbiasedDownsampleNorm: z.boolean().default(false),
  /** Factor of the classifier's initial weights. */
  headInitScale: z.number().default(1),
  /** Dropout before the classifier. */
  dropRate: rate.default(0),
});

type Variant = z.input<typeof convnextOptions>;

const doubling = (width: number): number[] => [width, 2 * width, 4 * width, 8 * width];
const isotropic = (depth: number, dim: number, layerScale: number | null): Variant => ({
  depths: [depth],
  dims: [dim],
  patchSize: 16,
  stemNorm: false,
  layerScale,
});

const variants: Readonly<Record<string, Variant>> = {
  convnext_atto: { depths: [2, 2, 6, 2], dims: doubling(40) },
  convnext_femto: { depths: [2, 2, 6, 2], dims: doubling(48) },
  convnext_pico: { depths: [2, 2, 6, 2], dims: doubling(64) },
  convnext_nano: { depths: [2, 2, 8, 2], dims: doubling(80) },
  convnext_tiny: { depths: [3, 3, 9, 3], dims: doubling(96) },
  convnext_tiny_hnf: { depths: [3, 3, 9, 3], dims: doubling(96), headNormFirst: true },
  convnext_small: { depths: [3, 3, 27, 3], dims: doubling(96) },
  convnext_base: { depths: [3, 3, 27, 3], dims: doubling(128) },
  convnext_large: { depths: [3, 3, 27, 3], dims: doubling(192) },
  convnext_xlarge: { depths: [3, 3, 27, 3], dims: doubling(256) },
  // Trained as the image tower of a CLIP.
  convnext_xxlarge: { depths: [3, 4, 30, 3], dims: doubling(384), normEps: 1e-5, imgSize: 256 },
  // The published small and base ones have no layer scale.
  convnext_isotropic_small: isotropic(18, 384, null),
  convnext_isotropic_base: isotropic(18, 768, null),
  convnext_isotropic_large: isotropic(36, 1024, 1e-6),
};

export const convnext: Family<typeof convnextOptions> = {
  id: 'convnext',
  checkpoints: { source: 'facebookresearch/ConvNeXt, timm', license: 'MIT' },
  paper: 'Liu et al., A ConvNet for the 2020s, CVPR 2022, arXiv 2201.03545',
  options: convnextOptions,
  variants,
  create: (name, o) => {
    const isTower = name === 'convnext_xxlarge';
    const cropPct = isTower || Math.min(...sizePair(o.imgSize)) >= 384 ? 1 : 0.875;
    const colors = isTower ? CLIP_COLORS : {};
    return new ConvNeXt(name, o, preprocessing(o, { interpolation: 'bicubic', cropPct, ...colors }));
  },
};
