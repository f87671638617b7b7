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

  factorAndSummand(): { factor: Tensor; summand: Tensor } {
    return { factor: this.scale, summand: this.shift };
  }

  /** On features with channels last; the engine spreads the vectors over maps. */
  forward(x: Tensor): Tensor {
    return scaleShift(x, this.scale, this.shift);
  }
}

/** Number of the official pair that follows a module of a vision transformer, in the module that owns it. */
const PAIRS: Readonly<Record<string, 1 | 2>> = {
  'patch_embed.proj': 1,
  norm1: 1,
  norm2: 2,
  'attn.qkv': 1,
  'attn.proj': 2,
  'mlp.fc1': 1,
  'mlp.fc2': 2,
  norm: 1,
};

/** `blocks.0.attn.qkv` + `scale` -> `blocks.0.attn.ssf_scale_1`; null for a module that the official code gives no pair. */
function pairName(path: string, leaf: string): string | null {
  const pair = PAIRS[path.replace(/^blocks\.\d+\./, '')];
  return pair === undefined ? null : [...path.split('.').slice(0, -1), `ssf_${leaf}_${pair}`].join('.');
}

/**
 * Scaling and shifting of features: a learned affine map per channel after every linear layer, convolution and norm of
 * the frozen backbone, except in its downsampling layers on transformers (the official code builds none there). Folds
 * into the layers' weights without a trace. 205,824 parameters on ViT-B/16.
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
  learningRate: 0.03,
  officialName: ({ path, leaf }) => pairName(path, leaf),
});
