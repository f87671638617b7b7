import { z } from 'zod';
import { ACTIVATIONS } from '../nn/index.js';
import { bottleneckRule } from './adapter.js';
import { BOTTLENECK_STARTS } from './bottleneck.js';
import { defineMethod } from './core/index.js';
import { prefixRules, prefixShape } from './prefix.js';
import { unifiedName } from './unified_names.js';

/**
 * The mix-and-match adapter: a short prefix in every attention and a scaled parallel adapter beside every MLP. He et al.,
 * ICLR 2022, arXiv 2110.04366, section 4.6. Published: BART and mBART length 30, width 512, scale 4; RoBERTa 16, 16 and 2;
 * `reparametrize` 800 in training. Not equal to the backbone at the start, because prefixes never are.
 */
export const mam = defineMethod({
  id: 'mam',
  summary: 'a short prefix in every attention and a scaled parallel adapter beside every MLP',
  paper: 'He et al., Towards a Unified View of Parameter-Efficient Transfer Learning, ICLR 2022, arXiv 2110.04366',
  options: z.strictObject({
    ...prefixShape,
    /** Width of the adapters. */
    width: z.int().positive().default(512),
    /** Factor of the adapters; `learned`: one number each. */
    scale: z.union([z.number(), z.literal('learned')]).default(4),
    norm: z.enum(['in', 'out', 'none']).default('none'),
    start: z.enum(BOTTLENECK_STARTS).default('lora'),
    activation: z.enum(ACTIVATIONS).default('relu'),
    /** Inside the adapters. */
    adapterDropout: z.number().min(0).max(1).default(0),
  }),
  rules: ({ length, reparametrize, dropout, adapterDropout, ...place }, sites) => [
    ...prefixRules({
      ...{ length, reparametrize, dropout },
      ...{ composition: 'concat', nonlinearity: 'softmax', query: 'plain', scaled: true },
    }),
    bottleneckRule('mlp', { ...place, dropout: adapterDropout, insertion: 'parallel' }, sites),
  ],
  learningRate: 0.005,
  officialName: unifiedName,
});
