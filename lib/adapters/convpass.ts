/**
 * Convolutional bypasses: a bottleneck with a 3x3 convolution beside attention and MLP of every transformer block. Jie &
 * Deng, technical report 2022, arXiv 2207.07039, figure 2; official code JieShibo/PETL-ViT, commit 026e4f1.
 */
import { z } from 'zod';
import {
  bypassConv,
  type Context,
  Conv2d,
  Dropout,
  DropPath,
  functional,
  init,
  Linear,
  Module,
  type Role,
  type Site,
} from '../nn/index.js';
import type { Tensor } from '../tensor/index.js';
import { defineMethod, parallel, type Surroundings } from './core/index.js';
import { overTokens, requirePatches } from './patch_map.js';

/** What a convolutional bypass can be told. */
export interface ConvBypassOptions {
  /** Width of the bottleneck. */
  readonly hidden: number;
  /** Odd side of the convolution's kernel. Default 3. */
  readonly kernel?: number;
  /** Start of the convolution: Xavier-uniform, or passing its input on. Default `xavier`. */
  readonly start?: 'xavier' | 'identity';
  /** Between the second nonlinearity and the way up. Default 0.1. */
  readonly dropout?: number;
  /** Stochastic depth of the bypass. Default 0. */
  readonly dropPath?: number;
  /** How features lie at the site: `map`, or tokens (the default). */
  readonly layout?: string;
}

/**
 * CP(x) = drop(φ(K * φ(x Dᵀ + b_D))) Uᵀ + b_U with φ(t) = t sigmoid(1.702 t), over tokens [B, N, C] or maps [B, C, H, W].
 * A token that is no patch meets the convolution as an image of one pixel: only the kernel's center acts on it. U and
 * the biases start at 0, so that CP starts as nothing.
 */
export class ConvBypass extends Module {
  readonly conv: Conv2d;
  readonly down: Linear;
  readonly up: Linear;
  readonly drop: Dropout;
  readonly drop_path: DropPath;
  readonly #layout: string;

  constructor(channels: number, options: ConvBypassOptions) {
    super();
    const { hidden, kernel = 3, start = 'xavier', dropout = 0.1, dropPath = 0, layout = 'tokens' } = options;
    if (hidden > channels) {
      throw new RangeError(
        `a bottleneck of ${hidden} is wider than the ${channels} channels here; at most ${channels}`,
      );
    }
    if (kernel % 2 === 0) throw new RangeError(`a kernel of ${kernel} has no center; take an odd one such as 3`);
    this.conv = new Conv2d(hidden, hidden, { kernelSize: kernel, padding: (kernel - 1) / 2 });
    this.down = new Linear(channels, hidden);
    this.up = new Linear(hidden, channels);
    this.drop = new Dropout(dropout);
    this.drop_path = new DropPath(dropPath);
    this.#layout = layout;
    if (start === 'identity') init.dirac_(this.conv.weight);
    else init.xavierUniform_(this.conv.weight);
    init.xavierUniform_(this.down.weight);
    init.zeros_(this.up.weight);
    for (const { bias } of [this.conv, this.down, this.up]) if (bias) init.zeros_(bias);
  }

  forward(x: Tensor, ctx: Context): Tensor {
    const { weight, bias } = this.conv;
    const z = this.#pointwise(this.down, x, ctx);
    const t = overTokens(z, ctx, this.#layout, (tokens, place) => bypassConv(tokens, weight, bias, place));
    return this.drop_path.run(this.#pointwise(this.up, this.drop.run(t, ctx), ctx), ctx);
  }

  /** A linear layer over the channels, wherever they stand. */
  #pointwise(layer: Linear, x: Tensor, ctx: Context): Tensor {
    if (this.#layout !== 'map') return layer.run(x, ctx);
    return functional.conv2d(x, layer.weight.view([layer.outFeatures, layer.inFeatures, 1, 1]), layer.bias);
  }
}

/** Stochastic-depth rate of the block around a site: what the backbone was built with. */
function rateOfBlock({ block }: Site, { all }: Surroundings): number {
  const parts = all.find(({ path }) => path === block)?.module.namedModules() ?? [];
  return Math.max(0, ...parts.map(([, module]) => (module instanceof DropPath ? module.p : 0)));
}

/** Rate at a site when it rises linearly from 0 at the first site to `last` at the last. */
function risingRate(site: Site, { sites }: Surroundings, last: number): number {
  const place = sites.findIndex(({ path }) => path === site.path);
  return sites.length > 1 ? (last * place) / (sites.length - 1) : 0;
}

const PATHS = { attn: 'attention_path', mlp: 'mlp_path' } as const satisfies Record<string, Role>;
const WHERE = { both: ['attn', 'mlp'], attention: ['attn'], mlp: ['mlp'] } as const;

/**
 * Convolutional bypasses. They read the frozen norm's output, beside attention and MLP; on Swin the convolution sees the
 * whole map, unshifted and without windows. 327,552 parameters on ViT-B/16; starts as the backbone.
 */
export const convpass = defineMethod({
  id: 'convpass',
  summary: 'a small convolutional bypass beside attention and MLP',
  paper: 'Jie & Deng, Convolutional Bypasses Are Better Vision Transformer Adapters, 2022, arXiv 2207.07039',
  options: z.strictObject({
    /** Width of the bottleneck. */
    hidden: z.int().positive().default(8),
    /** Constant factor of the bypass; the paper chooses it per task from 0.01, 0.1, 1, 10, 100. */
    scale: z.number().default(1),
    where: z.enum(['both', 'attention', 'mlp']).default('both'),
    /** Start of the convolution. */
    start: z.enum(['xavier', 'identity']).default('xavier'),
    kernel: z.int().positive().default(3),
    dropout: z.number().min(0).max(1).default(0.1),
    /** Stochastic depth of the bypasses: that of their blocks, or a rate that rises linearly to this in the last block. */
    dropPath: z.union([z.literal('block'), z.number().min(0).max(1)]).default('block'),
  }),
  rules: ({ scale, where, dropPath, ...form }, sites) => {
    requirePatches('convpass', sites);
    return WHERE[where].map((id) => ({
      id,
      at: { role: PATHS[id] },
      compose: parallel(scale),
      form: (site, around) => {
        const rate = dropPath === 'block' ? rateOfBlock(site, around) : risingRate(site, around, dropPath);
        return new ConvBypass(site.in, { ...form, dropPath: rate, layout: site.layout });
      },
    }));
  },
  officialName: ({ site, rule, leaf }) => `${site?.block ?? ''}.adapter_${rule}.adapter_${leaf}`,
});
