/**
 * LoRA as eric-ai-lab/PEViT has it (commit be6fb43), a baseline of Kronecker adaptation: its increments are dealt out to
 * the heads in their order in memory. For LoRA as its paper has it, take the method `lora`.
 */
import { z } from 'zod';
import { type Context, init, Linear, Module } from '../nn/index.js';
import type { Tensor } from '../tensor/index.js';
import { defineMethod, parallel } from './core/index.js';
import {
  checkPointwise,
  type HeadAddition,
  headsAround,
  overChannels,
  parentPath,
  pevitHead,
  pevitPath,
  rawReshape,
} from './pevit.js';

/** s (x Aᵀ) Bᵀ, dealt out to the heads: `adapter1.weight` A [r, in], `adapter2.weight` B [out, r]. */
export class LoraHeads extends Module {
  readonly adapter1: Linear;
  readonly adapter2: Linear;
  readonly #scale: number;
  readonly #to: HeadAddition;

  constructor(
    inFeatures: number,
    outFeatures: number,
    { rank, scale, to }: { readonly rank: number; readonly scale: number; readonly to: HeadAddition },
  ) {
    super();
    const most = Math.min(inFeatures, outFeatures);
    if (rank > most)
      throw new RangeError(
        `rank ${rank} exceeds what a ${inFeatures} to ${outFeatures} layer can hold; at most ${most}`,
      );
    this.adapter1 = new Linear(inFeatures, rank, { bias: false });
    this.adapter2 = new Linear(rank, outFeatures, { bias: false });
    this.#scale = scale;
    this.#to = to;
    init.normal_(this.adapter1.weight, 0, 0.02);
    init.zeros_(this.adapter2.weight);
  }

  forward(x: Tensor, ctx: Context): Tensor {
    const { heads, unscaled, layout } = this.#to;
    return overChannels(x, layout, (rows) => {
      const reduced = this.adapter1.run(rows, ctx).mul(this.#scale * unscaled);
      return rawReshape(this.adapter2.run(reduced, ctx), heads);
    });
  }
}

/**
 * PEViT's LoRA on queries and values: 147,456 parameters on ViT-B at rank 4. Starts as the backbone. Its increments mix
 * tokens, heads and the samples of a batch and cannot be merged.
 */
export const pevitLora = defineMethod({
  id: 'pevit_lora',
  summary: "LoRA as released with KAdaptation, for that paper's figures; does not merge",
  paper: 'He et al., Parameter-efficient Model Adaptation for Vision Transformers, AAAI 2023, arXiv 2203.16329',
  options: z.strictObject({
    rank: z.int().positive().default(4),
    /** The increment is scaled by alpha / rank. */
    alpha: z.number().default(128),
  }),
  rules: ({ rank, alpha }) =>
    (['q', 'v'] as const).map((part) => ({
      id: part,
      at: { role: part },
      compose: parallel(),
      form: (site, around) => {
        checkPointwise(site);
        return new LoraHeads(site.in, site.out, { rank, scale: alpha / rank, to: headsAround(site, around, part) });
      },
    })),
  backboneMode: 'eval',
  officialHead: pevitHead,
  officialName: ({ site, path, rule, leaf }) => `${pevitPath(site ? parentPath(site) : path)}.${rule}_proj_${leaf}`,
});
