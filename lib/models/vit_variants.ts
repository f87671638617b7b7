/** Options and published sizes of the vision transformer (`vit.ts`). */
import { z } from 'zod';
import { ACTIVATIONS } from '../nn/index.js';
import { HALF, IMAGENET_MEAN, IMAGENET_STD } from './backbone.js';
import { backboneOptions, type Family, imageSize, positive, preprocessing, rate, sizePair } from './family.js';
import { VisionTransformer } from './vit.js';

/** Options of the family `vit` for `createCustomModel`. */
export const vitOptions = z.strictObject({
  ...backboneOptions,
  patchSize: imageSize.default(16),
  embedDim: positive,
  depth: positive,
  numHeads: positive,
  mlpRatio: z.number().positive().default(4),
  qkvBias: z.boolean().default(true),
  classToken: z.boolean().default(true),
  /** What becomes of the tokens: the class token, or the mean, the maximum, or half of each over the patch tokens. */
  globalPool: z.enum(['token', 'avg', 'max', 'avgmax']).default('token'),
  /** Norm after the pool instead of before. Default (null): unless the class token is read. */
  fcNorm: z.boolean().nullable().default(null),
  normEps: z.number().positive().default(1e-6),
  /** A norm on the patches, before class token and positions. */
  patchNorm: z.boolean().default(false),
  /** A norm on the tokens before the first block; the patch convolution then has no bias. */
  preNorm: z.boolean().default(false),
  /** Nonlinearity of the MLPs. */
  activation: z.enum(ACTIVATIONS).default('gelu'),
  /** Initial value of the layer scale; null for none. */
  initValues: z.number().nullable().default(null),
  /** Width of a projection without a bias between pool and classifier, as CLIP has; null for none. */
  projDim: positive.nullable().default(null),
  regTokens: z.int().nonnegative().default(0),
  /** Position embeddings for patches only, added before the prefix tokens are joined. */
  noEmbedClass: z.boolean().default(false),
  /** Accept any image size that divides into patches, resampling the position embeddings in every forward pass. */
  dynamicImgSize: z.boolean().default(false),
  /** Refuse images of another size, even with as many patches; without it these get the positions in raster order. */
  strictImgSize: z.boolean().default(true),
  /** Dropout before the classifier, on the embedded tokens, after projections, on attention weights. */
  dropRate: rate.default(0),
  posDropRate: rate.default(0),
  projDropRate: rate.default(0),
  attnDropRate: rate.default(0),
});

type Variant = z.input<typeof vitOptions>;
type Size = Pick<Variant, 'embedDim' | 'depth' | 'numHeads'>;

const sizes = {
  tiny: { embedDim: 192, depth: 12, numHeads: 3 },
  small: { embedDim: 384, depth: 12, numHeads: 6 },
  medium: { embedDim: 512, depth: 12, numHeads: 8 },
  base: { embedDim: 768, depth: 12, numHeads: 12 },
  large: { embedDim: 1024, depth: 24, numHeads: 16 },
  huge: { embedDim: 1280, depth: 32, numHeads: 16 },
} satisfies Record<string, Size>;

type SizeName = keyof typeof sizes;

function named(
  prefix: string,
  list: readonly (readonly [size: SizeName, patch: number, images: readonly number[]])[],
  extra: Partial<Variant> = {},
): Record<string, Variant> {
  return Object.fromEntries(
    list.flatMap(([size, patchSize, images]) =>
      images.map((imgSize) => [
        `${prefix}_${size}_patch${patchSize}_${imgSize}`,
        { ...sizes[size], patchSize, imgSize, ...extra },
      ]),
    ),
  );
}

const variants: Readonly<Record<string, Variant>> = {
  ...named('vit', [
    ['tiny', 16, [224, 384]],
    ['small', 8, [224]],
    ['small', 16, [224, 384]],
    ['small', 32, [224, 384]],
    ['base', 8, [224]],
    ['base', 16, [224, 384]],
    ['base', 32, [224, 384]],
    ['large', 14, [224]],
    ['large', 16, [224, 384]],
    ['large', 32, [224, 384]],
    ['huge', 14, [224]],
  ]),
  ...named('deit', [
    ['tiny', 16, [224]],
    ['small', 16, [224]],
    ['base', 16, [224, 384]],
  ]),
  ...named(
    'deit3',
    [
      ['small', 16, [224, 384]],
      ['medium', 16, [224]],
      ['base', 16, [224, 384]],
      ['large', 16, [224, 384]],
      ['huge', 14, [224]],
    ],
    { noEmbedClass: true, initValues: 1e-6 },
  ),
};

export const vit: Family<typeof vitOptions> = {
  id: 'vit',
  checkpoints: { source: 'timm (huggingface/pytorch-image-models)', license: 'Apache-2.0; weights carry their own' },
  paper: 'Dosovitskiy et al., An Image is Worth 16x16 Words, ICLR 2021, arXiv 2010.11929',
  options: vitOptions,
  variants,
  create: (name, o) => {
    // DeiT weights were trained on ImageNet statistics, the others on mean = std = 0.5.
    const colors = name.startsWith('deit') ? { mean: IMAGENET_MEAN, std: IMAGENET_STD } : { mean: HALF, std: HALF };
    const cropPct = Math.min(...sizePair(o.imgSize)) >= 384 ? 1 : 0.9;
    return new VisionTransformer(name, o, preprocessing(o, { interpolation: 'bicubic', cropPct, ...colors }));
  },
};
