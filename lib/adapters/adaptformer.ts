/**
 * AdaptFormer: a bottleneck beside the MLP of every transformer block. Chen et al., NeurIPS 2022, arXiv 2205.13535,
 * equations 4 and 5; official code ShoufaChen/AdaptFormer, commit 6967d67. The form without biases and its quantized
 * version: Jie, Wang & Deng, ICCV 2023, arXiv 2307.16867; code JieShibo/PETL-ViT, commit 026e4f1.
 */
import { z } from 'zod';
import { type Module, QUANTIZED_BITS, type Site } from '../nn/index.js';
import { Bottleneck, type BottleneckOptions } from './bottleneck.js';
import { defineMethod, parallel, sequential } from './core/index.js';

/**
 * AdaptFormer. It reads the residual stream itself, without a norm, and stands outside of stochastic depth. Starts as the
 * backbone (quantized: close to it). On ViT-B/16 1,189,632 parameters at 64 hidden features, 156,768 at 8. The official
 * head norms over the batch: `head: { classes, norm: 'batch', normEps: 1e-6 }`.
 */
export const adaptformer = defineMethod({
  id: 'adaptformer',
  summary: 'a bottleneck beside the MLP of every block',
  paper:
    'Chen et al., AdaptFormer: Adapting Vision Transformers for Scalable Visual Recognition, NeurIPS 2022, arXiv 2205.13535',
  options: z.strictObject({
    /** Width of the bottleneck. */
    hidden: z.int().positive().default(64),
    /** Factor of the bottleneck's output; `learned`: one number per block that starts at 1. */
    scale: z.union([z.number(), z.literal('learned')]).default(0.1),
    /** After the nonlinearity. */
    dropout: z.number().min(0).max(1).default(0.1),
    /** Beside the MLP, or behind it: then the bottleneck reads what the MLP adds to the stream. */
    placement: z.enum(['parallel', 'sequential']).default('parallel'),
    /** A layer norm on the bottleneck's input, or on its scaled output. */
    norm: z.enum(['in', 'out', 'none']).default('none'),
    /** Default: true, unless quantized. */
    bias: z.boolean().optional(),
    /** Bits per weight: a quantized adapter takes little room on disk (`saveCompact`). 32: not quantized. */
    bits: z.union([z.literal(QUANTIZED_BITS), z.literal(32)]).default(32),
  }),
  rules: ({ hidden, scale, placement, norm, bias, ...rest }) => {
    // A fixed factor is the composition's, which applies it while it adds; one that a norm follows is the form's.
    const outside = typeof scale === 'number' && norm !== 'out' ? scale : 1;
    const options: BottleneckOptions = {
      ...{ width: hidden, norm, scale: outside === scale ? 1 : scale, ...rest },
      ...(bias !== undefined && { bias }),
    };
    const compose = placement === 'parallel' ? parallel(outside) : sequential({ scale: outside });
    const form = (site: Site): Module => new Bottleneck(site.in, site.out, { ...options, layout: site.layout });
    return [{ id: 'adaptmlp', at: { role: 'mlp_branch' }, compose, form }];
  },
  officialName: ({ site, leaf }, { bias, bits }) => {
    const hasBias = bias ?? bits === 32;
    const [layer = '', ...rest] = leaf.split('.');
    const norm = { norm: 'adapter_layer_norm_before' };
    const names: Readonly<Record<string, string>> = hasBias
      ? { down: 'down_proj', up: 'up_proj', ...norm }
      : { down: 'adapter_down', up: 'adapter_up', ...norm };
    return [site?.block ?? '', hasBias ? 'adaptmlp' : 'adapter_mlp', names[layer] ?? layer, ...rest].join('.');
  },
});
