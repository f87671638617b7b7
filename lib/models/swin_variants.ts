/** Options and published sizes of the Swin transformer (`swin.ts`). */
import { z } from 'zod';
import { backboneOptions, type Family, imageSize, positive, preprocessing, rate, sizePair } from './family.js';
import { SwinTransformer } from './swin.js';

export const swinOptions = z.strictObject({
  ...backboneOptions,
  patchSize: imageSize.default(4),
  /** Width of the first stage; each further stage doubles it. */
  embedDim: positive,
  /** Blocks per stage. */
  depths: z.array(positive).min(1),
  /** Heads per stage. */
  numHeads: z.array(positive).min(1),
  /** Side of the windows of all stages, or a list with a side, or [height, width], for each. */
  windowSize: z.union([positive, z.array(imageSize).min(1)]).default(7),
  /**
   * What becomes of a window that is larger than the map: `timm` (axis by axis), `microsoft` (both axes alike, as in the
   * official code; differs on oblong images only), or `always`: the window stays and the map is padded.
   */
  windowRule: z.enum(['timm', 'microsoft', 'always']).default('timm'),
  mlpRatio: z.number().positive().default(4),
  qkvBias: z.boolean().default(true),
  normEps: z.number().positive().default(1e-5),
  /** Norm on the embedded patches. */
  patchNorm: z.boolean().default(true),
  /** Learned absolute positions on the embedded patches. */
  ape: z.boolean().default(false),
  /** Accept any image size that divides into patches; windows stay as they are for `imgSize`, maps are padded to them. */
  dynamicImgSize: z.boolean().default(false),
  /** Dropout before the classifier, on the embedded tokens, after projections, on attention weights. */
  dropRate: rate.default(0),
  posDropRate: rate.default(0),
  projDropRate: rate.default(0),
  attnDropRate: rate.default(0),
});

type Variant = z.input<typeof swinOptions>;

const tiny = { embedDim: 96, depths: [2, 2, 6, 2], numHeads: [3, 6, 12, 24] };
const small = { ...tiny, depths: [2, 2, 18, 2] };
const base = { embedDim: 128, depths: [2, 2, 18, 2], numHeads: [4, 8, 16, 32] };
const large = { embedDim: 192, depths: [2, 2, 18, 2], numHeads: [6, 12, 24, 48] };

const variants: Readonly<Record<string, Variant>> = {
  swin_tiny_patch4_window7_224: tiny,
  swin_small_patch4_window7_224: small,
  swin_base_patch4_window7_224: base,
  swin_base_patch4_window12_384: { ...base, windowSize: 12, imgSize: 384 },
  swin_large_patch4_window7_224: large,
  swin_large_patch4_window12_384: { ...large, windowSize: 12, imgSize: 384 },
  swin_s3_tiny_224: { ...tiny, windowSize: [7, 7, 14, 7] },
  swin_s3_small_224: { ...small, windowSize: [14, 14, 14, 7] },
  swin_s3_base_224: { ...tiny, depths: [2, 2, 30, 2], windowSize: [7, 7, 14, 7] },
};

export const swin: Family<typeof swinOptions> = {
  id: 'swin',
  checkpoints: { source: 'microsoft/Swin-Transformer, timm', license: 'MIT' },
  paper: 'Liu et al., Swin Transformer, ICCV 2021, arXiv 2103.14030',
  options: swinOptions,
  variants,
  create: (name, o) => {
    const cropPct = Math.min(...sizePair(o.imgSize)) >= 384 ? 1 : 0.9;
    return new SwinTransformer(name, o, preprocessing(o, { interpolation: 'bicubic', cropPct }));
  },
};
