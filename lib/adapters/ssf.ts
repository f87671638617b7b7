import { z } from 'zod';
import { init, Module, Parameter, scaleShift, type Site } from '../nn/index.js';
import { empty, type Tensor } from '../tensor/index.js';
import { affine, defineMethod, type AffineForm } from './core/index.js';

/** One factor and one summand per channel: y = scale * x + shift. Folds into the layer before it. */
export class ScaleShift extends Module implements AffineForm {
  readonly scale: Parameter;
  readonly shift: Parameter;

  /** @param start `normal`: scale N(1, 0.02²), shift N(0, 0.02²), as published; `identity`: 1 and 0 */
  constructor(channels: number, start: 'normal' | 'identity') {
    super();
    const std = start === 'normal' ? 0.02 : 0;
    this.scale = new Parameter(init.normal_(empty([channels]), 1, std));
    this.shift = new Parameter(init.normal_(empty([channels]), 0, std));
  }

  /** As an affine map: y = scale x + shift. */
  factorAndSummand(): { factor: Tensor; summand: Tensor } {
    return { factor: this.scale, summand: this.shift };
  }

  /** On features with channels last; the engine spreads the vectors over maps. */
  forward(x: Tensor): Tensor {
    return scaleShift(x, this.scale, this.shift);
  }
}

/** Number of the official pair that follows a module, in the module that owns it; paths inside a block. */
const BLOCK_PAIRS: Readonly<Record<string, number>> = {
  norm1: 1,
  norm2: 2,
  'attn.qkv': 1,
  'attn.proj': 2,
  'mlp.fc1': 1,
  'mlp.fc2': 2,
  // ConvNeXt.
  conv_dw: 1,
  norm: 2,
  // AS-MLP.
  'axial_shift.conv1': 1,
  'axial_shift.conv2_1': 2,
  'axial_shift.conv2_2': 3,
  'axial_shift.conv3': 4,
};

/** The same outside of blocks. */
const MODEL_PAIRS: Readonly<Record<string, number>> = {
  'patch_embed.proj': 1,
  'patch_embed.norm': 2,
  norm: 1,
  // ConvNeXt: timm's numbers, and the places before its pool.
  'stem.0': 1,
  'stem.1': 2,
  norm_pre: 1,
  norm_post: 1,
};

/** `blocks.0.attn.qkv` + `scale` -> `blocks.0.attn.ssf_scale_1`; null for a module that the official code gives no pair. */
function pairName(path: string, leaf: string): string | null {
  const [block] = /^(?:(?:layers|stages)\.\d+\.)?blocks\.\d+\./.exec(path) ?? [];
  const pair = block ? BLOCK_PAIRS[path.slice(block.length)] : MODEL_PAIRS[path];
  return pair === undefined ? null : [...path.split('.').slice(0, -1), `ssf_${leaf}_${pair}`].join('.');
}

/**
 * Scaling and shifting of features: a learned affine map per channel after every linear layer, convolution and norm of
 * the frozen backbone. On Swin, ConvNeXt and AS-MLP the downsampling layers have none, as in the official code, nor have
 * AS-MLP's patch embedding and the norms inside its shifts. A pair that follows no layer (before the pool of ConvNeXt,
 * and of a ViT that reads the mean) stays; all others fold into the layers' weights without a trace. 205,824 parameters
 * on ViT-B/16, 267,264 on Swin-B, 255,232 on ConvNeXt-B, 266,752 on AS-MLP-B.
 *
 * What the backbone names `head.` is trained too: on ConvNeXt also the norm behind the pool.
 *
 * With the published start the adapted model is close to the backbone but not equal to it.
 */
export const ssf = defineMethod({
  id: 'ssf',
  summary: 'a learned scale and shift per channel after every layer; merges',
  paper: 'Lian, Zhou, Feng, Wang, Scaling & Shifting Your Features, NeurIPS 2022, arXiv 2210.08823',
  options: z.strictObject({
    /** `normal`: as published; `identity`: the adapted model starts as the backbone. */
    init: z.enum(['normal', 'identity']).default('normal'),
  }),
  rules: ({ init: start }) => [
    {
      id: 'ssf',
      at: { role: ['linear', 'conv', 'norm'] },
      compose: affine(),
      form: (site: Site) => new ScaleShift(site.out, start),
    },
  ],
  trains:
    () =>
    ({ name }) =>
      name.startsWith('head.'),
  headInit: 'trunc_normal',
  learningRate: 0.03,
  officialName: ({ path, leaf }) => pairName(path, leaf),
});
