/** Options and published sizes of InternImage (`internimage.ts`). */
import { z } from 'zod';
import { ACTIVATIONS } from '../nn/index.js';
import { backboneOptions, type Family, oddKernel, positive, preprocessing, rate } from './family.js';
import { InternImage } from './internimage.js';

export const internImageOptions = z.strictObject({
  ...backboneOptions,
  /** Width of the first level; it doubles from level to level. */
  channels: z.int().min(2),
  /** Layers per level. */
  depths: z.array(positive).min(1),
  /** Groups of the deformable convolutions per level. */
  groups: z.array(positive).min(1),
  mlpRatio: z.number().positive().default(4),
  activation: z.enum(ACTIVATIONS).default('gelu'),
  /** Norms of stem, downsampling and offsets; all others are layer norms. */
  norm: z.enum(['LN', 'BN']).default('LN'),
  /** Initial layer scale; null for none. */
  layerScale: z.number().nullable().default(null),
  /** Multiplies the kernels' grid and the offsets. */
  offsetScale: z.number().default(1),
  /** Norms behind convolution and MLP instead of before. */
  postNorm: z.boolean().default(false),
  /** Norms also behind them; without layer scale. */
  resPostNorm: z.boolean().default(false),
  /** Kernel of the depth-wise convolutions in front of the offsets; null: as the deformable ones, 3. */
  dwKernelSize: oddKernel.nullable().default(null),
  /** Layers of the third level that a norm of their own follows; null for none. */
  level2PostNormIds: z.array(z.int().nonnegative()).nullable().default(null),
  /** Mixes each convolution's result with its input, by a learned share per group. */
  centerFeatureScale: z.boolean().default(false),
  /** Kernels without their middle. */
  removeCenter: z.boolean().default(false),
  /** Width of the vector before the classifier, in channels of the last level; without CLIP's head. */
  clsScale: z.number().positive().default(1.5),
  /** Joins the last two levels and pools them by attention, as the models trained on pairs of images and texts do. */
  clip: z
    .strictObject({
      embedDim: positive.default(1024),
      /** By how much the finer level is larger. */
      stride: positive.default(2),
      heads: positive.default(16),
      outDim: positive.default(768),
    })
    .nullable()
    .default(null),
  /** Dropout behind the stem and in the MLPs. */
  dropRate: rate.default(0),
  /** Stochastic depth of the last layer, rising linearly from 0. */
  dropPathRate: rate.default(0),
});

const CLIP = { embedDim: 1024, stride: 2, heads: 16, outDim: 768 };
const doubling = (groups: number): number[] => [groups, 2 * groups, 4 * groups, 8 * groups];
const postNormed = { layerScale: 1e-5, postNorm: true };
const huge = { dwKernelSize: 5, centerFeatureScale: true, clip: CLIP };

export const internimage: Family<typeof internImageOptions> = {
  id: 'internimage',
  checkpoints: { source: 'OpenGVLab/InternImage', license: 'MIT' },
  paper: 'Wang et al., InternImage: Exploring Large-Scale Vision Foundation Models, CVPR 2023, arXiv 2211.05778',
  options: internImageOptions,
  variants: {
    internimage_t: { channels: 64, depths: [4, 4, 18, 4], groups: doubling(4) },
    internimage_s: { channels: 80, depths: [4, 4, 21, 4], groups: doubling(5), ...postNormed },
    internimage_b: { channels: 112, depths: [4, 4, 21, 4], groups: doubling(7), ...postNormed },
    internimage_l: {
      ...{ channels: 160, depths: [5, 5, 22, 5], groups: doubling(10), imgSize: 384 },
      ...postNormed,
      offsetScale: 2,
    },
    internimage_xl: {
      ...{ channels: 192, depths: [5, 5, 24, 5], groups: doubling(12), imgSize: 384 },
      ...postNormed,
      offsetScale: 2,
    },
    internimage_h: {
      ...{ channels: 320, depths: [6, 6, 32, 6], groups: doubling(10), imgSize: 640 },
      ...huge,
      resPostNorm: true,
      level2PostNormIds: [5, 11, 17, 23, 29],
    },
    internimage_g: {
      ...{ channels: 512, depths: [2, 2, 48, 4], groups: doubling(16), imgSize: 512 },
      ...huge,
      postNorm: true,
      level2PostNormIds: [5, 11, 17, 23, 29, 35, 41, 47],
    },
  },
  create: (name, o) => new InternImage(name, o, preprocessing(o, { interpolation: 'bicubic', cropPct: 1 })),
};
