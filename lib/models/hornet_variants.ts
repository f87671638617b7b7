/** Options and published sizes of HorNet (`hornet.ts`). */
import { z } from 'zod';
import type { imageSize } from './family.js';
import { backboneOptions, type Family, oddKernel, positive, preprocessing, sizePair } from './family.js';
import { HorNet, HorNetIsotropic } from './hornet.js';

/** A depth-wise convolution of that kernel, or the [h, w] of a global filter. */
const filter = z.union([oddKernel, z.tuple([positive, positive])]);

const common = {
  ...backboneOptions,
  mlpRatio: z.number().positive().default(4),
  normEps: z.number().positive().default(1e-6),
  /** Initial layer scale; null, 0 or less for none. */
  layerScale: z.number().nullable().default(1e-6),
  /** Xavier-uniform weights instead of truncated normal ones. */
  uniformInit: z.boolean().default(false),
  /** Factor of the classifier's initial weights. */
  headInitScale: z.number().default(1),
};

export const hornetOptions = z.strictObject({
  ...common,
  /** Blocks per stage. */
  depths: z.array(positive).min(1).default([2, 3, 18, 2]),
  /** Width of the first stage; it doubles from stage to stage. */
  baseDim: positive,
  /** Order of the gated convolutions per stage. */
  orders: z.array(positive).min(1).default([2, 3, 4, 5]),
  /** Factor of the filters' outputs per stage. */
  scales: z
    .array(z.number())
    .min(1)
    .default([1 / 3, 1 / 3, 1 / 3, 1 / 3]),
  /** Spatial filter per stage: the kernel of a depth-wise convolution, or the [h, w] of a global filter. */
  filters: z.array(filter).min(1).default([7, 7, 7, 7]),
  /** Norms `norm0`, `norm1`, ... on the outputs of the stages instead of the last norm, for feature pyramids. */
  featureNorms: z.boolean().default(false),
});

export const hornetIsotropicOptions = z.strictObject({
  ...common,
  dim: positive,
  depth: positive,
  patchSize: positive.default(16),
  order: positive.default(5),
  scale: z.number().default(1 / 3),
  filter: filter.default(7),
});

type Filters = z.input<typeof hornetOptions>['filters'];

const global: Filters = [7, 7, [14, 8], [7, 4]];
const global384: Filters = [7, 7, [24, 13], [12, 7]];
const BASE_DIMS = { tiny: 64, small: 96, base: 128, large: 192 };

const paper = 'Rao et al., HorNet: Efficient High-Order Spatial Interactions, NeurIPS 2022, arXiv 2207.14284';
const cropPct = (size: z.output<typeof imageSize>): number => (Math.min(...sizePair(size)) >= 384 ? 1 : 0.875);

export const hornet: Family<typeof hornetOptions> = {
  id: 'hornet',
  checkpoints: { source: 'raoyongming/HorNet', license: 'MIT' },
  paper,
  options: hornetOptions,
  variants: Object.fromEntries([
    ...Object.entries(BASE_DIMS).flatMap(([size, baseDim]) => [
      [`hornet_${size}_7x7`, { baseDim }],
      [`hornet_${size}_gf`, { baseDim, filters: global }],
    ]),
    ['hornet_large_gf_384', { baseDim: BASE_DIMS.large, filters: global384, imgSize: 384 }],
  ]) as Family<typeof hornetOptions>['variants'],
  create: (name, o) => new HorNet(name, o, preprocessing(o, { interpolation: 'bicubic', cropPct: cropPct(o.imgSize) })),
};

export const hornetIsotropic: Family<typeof hornetIsotropicOptions> = {
  id: 'hornet_isotropic',
  checkpoints: { source: 'raoyongming/HorNet', license: 'MIT' },
  paper,
  options: hornetIsotropicOptions,
  // The paper gives 22 M parameters and no depth; 12 blocks have 21.8 M.
  variants: {
    hornet_isotropic_small_7x7: { dim: 384, depth: 12 },
    hornet_isotropic_small_gf: { dim: 384, depth: 12, filter: [14, 8] },
  },
  create: (name, o) =>
    new HorNetIsotropic(name, o, preprocessing(o, { interpolation: 'bicubic', cropPct: cropPct(o.imgSize) })),
};
