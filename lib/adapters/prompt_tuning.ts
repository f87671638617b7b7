/** Prompt tuning. Lester et al., EMNLP 2021, arXiv 2104.08691; in the unified view's code, commit 3222ce2. */
import { z } from 'zod';
import { type Context, init, Module, Parameter } from '../nn/index.js';
import { aten, empty, type Tensor } from '../tensor/index.js';
import { defineMethod, sequential } from './core/index.js';

/** Learned embeddings `weight` [l, C] behind the prefix tokens of a sequence [B, N, C]: [B, N + l, C]. */
export class PromptTokens extends Module {
  readonly weight: Parameter;

  constructor(length: number, width: number) {
    super();
    this.weight = new Parameter(init.normal_(empty([length, width]), 0, 0.02));
  }

  forward(x: Tensor, ctx: Context): Tensor {
    const [batch = 0, length = 0] = x.shape;
    const [added = 0] = this.weight.shape;
    const before = ctx.prefixTokens;
    const prompts = this.weight.unsqueeze(0).expand([batch, -1, -1]).to(x.dtype);
    ctx.prefixTokens = before + added;
    return aten.cat([x.narrow(1, 0, before), prompts, x.narrow(1, before, length - before)], 1);
  }
}

/**
 * Learned embeddings before those of the text, in the encoder. Without position embeddings; before the embedding's
 * norm, where there is one. The encoder's output keeps their rows. On images: see `vpt`.
 */
export const promptTuning = defineMethod({
  id: 'prompt_tuning',
  summary: 'learned embeddings before those of the input',
  paper:
    'Lester, Al-Rfou & Constant, The Power of Scale for Parameter-Efficient Prompt Tuning, EMNLP 2021, arXiv 2104.08691',
  options: z.strictObject({
    /** Number of embeddings. */
    length: z.int().positive().default(100),
  }),
  rules: ({ length }) => [
    {
      id: 'prompt',
      at: { role: 'tokens' },
      compose: sequential({ residual: false }),
      form: (site) => new PromptTokens(length, site.in),
    },
  ],
  learningRate: 0.03,
  officialName: ({ path, leaf }) => `${path.replace(/\.?tokens$/, '')}.ef_prefix_emb.${leaf}`,
});
