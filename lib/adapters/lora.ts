/**
 * Low-rank increments of frozen weights: W -> W + s B A. Hu et al., ICLR 2022, arXiv 2106.09685, equation 3; on
 * convolutions A is a convolution of the layer's own geometry into r channels and B a 1x1 convolution.
 */
import { z } from 'zod';
import {
  type Context,
  Conv2d,
  Dropout,
  init,
  Linear,
  loraLinear,
  Module,
  QUANTIZED_BITS,
  type QuantizedBits,
  QuantizedLinear,
  type Site,
} from '../nn/index.js';
import { aten, type Tensor } from '../tensor/index.js';
import { defineMethod, delta, type DeltaForm, type SiteQuery } from './core/index.js';

/** Where dropout acts: on the layer's input, or between the two factors. */
type DropoutAt = 'input' | 'rank';

interface LoraFormOptions {
  readonly rank: number;
  readonly dropout: number;
  readonly dropoutAt: DropoutAt;
  /** Bits per weight of both factors; default 32: not quantized. */
  readonly bits?: QuantizedBits | 32;
}

/** D = B A for a linear layer: `down` [r, in], `up` [out, r]. */
export class LoraLinear extends Module implements DeltaForm {
  readonly down: Linear;
  readonly up: Linear;
  readonly drop: Dropout;
  readonly #dropoutAt: DropoutAt;

  constructor(inFeatures: number, outFeatures: number, { rank, dropout, dropoutAt, bits = 32 }: LoraFormOptions) {
    super();
    if (rank > Math.min(inFeatures, outFeatures)) {
      const largest = Math.min(inFeatures, outFeatures);
      throw new RangeError(
        `rank ${rank} exceeds what a ${inFeatures} to ${outFeatures} layer can hold; at most ${largest}`,
      );
    }
    this.down =
      bits === 32 ? new Linear(inFeatures, rank, { bias: false }) : new QuantizedLinear(inFeatures, rank, { bits });
    this.up =
      bits === 32
        ? new Linear(rank, outFeatures, { bias: false })
        : new QuantizedLinear(rank, outFeatures, { bits, start: 'small' });
    this.drop = new Dropout(dropout);
    this.#dropoutAt = dropoutAt;
    if (bits === 32) init.zeros_(this.up.weight);
  }

  #reduce(x: Tensor, ctx: Context): Tensor {
    return this.#dropoutAt === 'input'
      ? this.down.run(this.drop.run(x, ctx), ctx)
      : this.drop.run(this.down.run(x, ctx), ctx);
  }

  forward(x: Tensor, ctx: Context): Tensor {
    return this.up.run(this.#reduce(x, ctx), ctx);
  }

  delta(): Tensor {
    return this.up.effectiveWeight().mm(this.down.effectiveWeight());
  }

  applyWith(layer: Module, x: Tensor, scale: number): Tensor | null {
    const drops = this.drop.p > 0 && this.drop.training;
    if (drops || !(layer instanceof Linear)) return null;
    const [down, up] = [this.down.effectiveWeight(), this.up.effectiveWeight()];
    return loraLinear(x, layer.weight, down, up, { scale, bias: layer.bias });
  }

  /** One pass over the layer's output: the product with B accumulates into it. */
  addTo(base: Tensor, x: Tensor, scale: number, ctx: Context): Tensor {
    const reduced = this.#reduce(x, ctx);
    if (reduced.dtype !== base.dtype) return base.add(this.up.run(reduced, ctx), { alpha: scale });
    const up = this.up.effectiveWeight().t();
    const sum = aten.addmm(base.flatten(0, -2), reduced.flatten(0, -2), up, { alpha: scale });
    return sum.view(base.shape);
  }
}

/**
 * D = B A for a convolution: `down` has the layer's kernel, stride, padding and groups, `up` is 1x1. In each of several
 * groups the rank is at most what a group can hold.
 */
export class LoraConv extends Module implements DeltaForm {
  readonly down: Conv2d;
  readonly up: Conv2d;
  readonly drop: Dropout;
  readonly #dropoutAt: DropoutAt;

  /** @param outChannels of the slice that it is for. Default: all */
  constructor(layer: Conv2d, { rank, dropout, dropoutAt }: LoraFormOptions, outChannels = layer.outChannels) {
    super();
    const { inChannels, kernelSize, stride, padding, dilation, groups } = layer;
    const most = Math.min((inChannels / groups) * kernelSize[0] * kernelSize[1], outChannels / groups);
    if (rank > most && groups === 1) {
      throw new RangeError(
        `rank ${rank} exceeds what a ${inChannels} to ${outChannels} convolution can hold; at most ${most}`,
      );
    }
    // Depth-wise convolutions hold rank 1 only; who asks for all convolutions should not be refused for them.
    const held = Math.min(rank, most);
    // With groups, each has its own pair of rank r.
    this.down = new Conv2d(inChannels, held * groups, { kernelSize, stride, padding, dilation, groups, bias: false });
    this.up = new Conv2d(held * groups, outChannels, { kernelSize: 1, groups, bias: false });
    this.drop = new Dropout(dropout);
    this.#dropoutAt = dropoutAt;
    init.zeros_(this.up.weight);
  }

  forward(x: Tensor, ctx: Context): Tensor {
    const reduced =
      this.#dropoutAt === 'input'
        ? this.down.run(this.drop.run(x, ctx), ctx)
        : this.drop.run(this.down.run(x, ctx), ctx);
    return this.up.run(reduced, ctx);
  }

  delta(): Tensor {
    const { groups } = this.down;
    const [, inPerGroup = 1, kh = 1, kw = 1] = this.down.weight.shape;
    const [out = 1, rank = 1] = this.up.weight.shape;
    const down = this.down.weight.reshape([groups, rank, inPerGroup * kh * kw]);
    const up = this.up.weight.reshape([groups, out / groups, rank]);
    return up.bmm(down).reshape([out, inPerGroup, kh, kw]);
  }
}

function loraForm({ module, slice }: Site, options: LoraFormOptions): LoraLinear | LoraConv {
  if (module instanceof Linear) return new LoraLinear(module.inFeatures, slice?.length ?? module.outFeatures, options);
  if (options.bits !== undefined && options.bits !== 32) {
    throw new RangeError(
      `only linear layers take quantized factors, and this is a ${module.constructor.name}; leave it out with the option at`,
    );
  }
  if (module instanceof Conv2d && (!slice || module.groups === 1)) return new LoraConv(module, options, slice?.length);
  throw new RangeError(
    `needs a linear layer or a convolution (a slice: one without groups), and this is a ${module.constructor.name}`,
  );
}

/** The form with the start of that name; `lora` is how it comes. */
function started<F extends LoraLinear | LoraConv>(form: F, start: 'lora' | 'bert'): F {
  if (start === 'bert') for (const { weight } of [form.down, form.up]) init.normal_(weight, 0, 0.02);
  return form;
}

/** q and v of every attention, and every spatial convolution of the blocks: whichever the backbone has. */
const DEFAULT_SITES: readonly SiteQuery[] = [{ role: ['q', 'v'] }, { role: 'conv', inBlock: true, minKernel: 2 }];

const words = z.union([z.string(), z.array(z.string()).readonly()]);
const numbers = z.union([z.number(), z.array(z.number()).readonly()]);

/** Sites as an option: the JSON form of a query. */
export const siteQuery = z.strictObject({
  role: words.optional(),
  name: words.optional(),
  path: words.optional(),
  inBlock: z.boolean().optional(),
  stage: numbers.optional(),
  depth: numbers.optional(),
  minKernel: z.int().positive().optional(),
  except: words.optional(),
});

/** Layers with a rank and a scale of their own. */
export const alsoAt = z.strictObject({
  at: z.union([siteQuery, z.array(siteQuery).min(1)]),
  rank: z.int().positive(),
  alpha: z.number(),
});

/** Low-rank adaptation. Starts as the backbone, merges exactly, costs nothing once merged. */
export const lora = defineMethod({
  id: 'lora',
  summary: 'low-rank increments of linear layers and convolutions; merges',
  paper: 'Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022, arXiv 2106.09685',
  options: z.strictObject({
    rank: z.int().positive().default(8),
    /** The increment is scaled by alpha / rank. Default: the rank, so that the scale is 1. */
    alpha: z.number().optional(),
    dropout: z.number().min(0).max(1).default(0),
    dropoutAt: z.enum(['input', 'rank']).default('input'),
    /** `lora`: A Kaiming-uniform, B zero, so that the model starts as the backbone; `bert`: both N(0, 0.02²). */
    init: z.enum(['lora', 'bert']).default('lora'),
    /** Bits per weight of both factors: a quantized adapter takes little room on disk (`saveCompact`). 32: not quantized. */
    bits: z.union([z.literal(QUANTIZED_BITS), z.literal(32)]).default(32),
    /** Which layers. Default: q and v of attention, and convolutions of the blocks with a kernel above 1x1. */
    at: z.union([siteQuery, z.array(siteQuery).min(1)]).optional(),
    /** Further layers, which those of `at` must not meet, with ranks and scales of their own. */
    also: z.array(alsoAt).readonly().optional(),
  }),
  rules: ({ rank, alpha = rank, dropout, dropoutAt, init: start, bits, at, also = [] }) =>
    [{ at: at ?? DEFAULT_SITES, rank, alpha }, ...also].map((layers) => ({
      id: 'lora',
      at: layers.at as SiteQuery | SiteQuery[],
      compose: delta(layers.alpha / layers.rank),
      form: (site) => started(loraForm(site, { rank: layers.rank, dropout, dropoutAt, bits }), start),
    })),
  learningRate: 0.01,
  // PETL-ViT's files: `blocks.0.attn.lora_q.adapter_down.weight`.
  officialName: ({ path, site, leaf }) =>
    site?.slice ? `${path.replace(/\.qkv$/, '')}.lora_${site.slice.name}.adapter_${leaf}` : `${path}.lora.${leaf}`,
});
