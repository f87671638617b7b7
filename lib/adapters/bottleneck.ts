/**
 * The bottleneck that adapters are made of: down, nonlinearity, up. Houlsby et al., ICML 2019, arXiv 1902.00751; in the
 * forms of the unified view (He et al., ICLR 2022, arXiv 2110.04366, table 1) the same module stands after a layer or
 * beside it, scaled or not.
 */
import {
  activationLayer,
  type ActivationName,
  type Context,
  Dropout,
  init,
  LayerNorm,
  Linear,
  Module,
  Parameter,
  type QuantizedBits,
  QuantizedLinear,
  type SiteLayout,
} from '../nn/index.js';
import { full, type Tensor } from '../tensor/index.js';

/**
 * How a bottleneck starts; biases always at 0. `bert`: both matrices N(0, 0.02²); `trunc_normal`: the same, cut at ±2;
 * `lora`: down Kaiming-uniform with slope √5, up 0; `xavier`: down Xavier-uniform, up 0; `normal`: down N(0, 0.02²), up 0.
 * With up at 0 and no norm on the output, the adapted model starts as the backbone.
 */
export type BottleneckStart = 'bert' | 'trunc_normal' | 'lora' | 'xavier' | 'normal';

/** Names of the starts, for options. */
export const BOTTLENECK_STARTS = ['lora', 'bert', 'trunc_normal', 'xavier', 'normal'] as const;

/** Where a bottleneck has its layer norm: on its input, on its scaled output, or nowhere. */
export type BottleneckNorm = 'in' | 'out' | 'none';

/** What a bottleneck can be told. */
export interface BottleneckOptions {
  /** Width of the hidden layer. */
  readonly width: number;
  /** Default `relu`. */
  readonly activation?: ActivationName;
  /** Whether both layers have biases. Default true, unless quantized. */
  readonly bias?: boolean;
  /** Probability, after the nonlinearity. Default 0. */
  readonly dropout?: number;
  /** Default `none`. */
  readonly norm?: BottleneckNorm;
  /** Default 1e-5. */
  readonly normEps?: number;
  /** Factor σ of what comes up: a number, or one learned number that starts at 1. Default 1. */
  readonly scale?: number | 'learned';
  /** Default `lora`. */
  readonly start?: BottleneckStart;
  /** Bits per weight of both layers, which then have no biases and a start of their own. Default 32: not quantized. */
  readonly bits?: QuantizedBits | 32;
  /** How the features lie: `map` [B, C, H, W], else channels last (the default). */
  readonly layout?: SiteLayout;
}

/** Fills both layers of a bottleneck in place. */
export function startBottleneck(down: Linear, up: Linear, start: BottleneckStart): void {
  if (start === 'lora') init.kaimingUniform_(down.weight, { a: Math.sqrt(5) });
  else if (start === 'xavier') init.xavierUniform_(down.weight);
  else if (start === 'trunc_normal') init.truncNormal_(down.weight, { std: 0.02 });
  else init.normal_(down.weight, 0, 0.02);
  if (start === 'bert') init.normal_(up.weight, 0, 0.02);
  else if (start === 'trunc_normal') init.truncNormal_(up.weight, { std: 0.02 });
  else init.zeros_(up.weight);
  for (const { bias } of [down, up]) if (bias) init.zeros_(bias);
}

/**
 * norm(σ u) = sign(σ) w (u - mean u) / sqrt(var u + eps / σ²) + b. After a norm, σ only weighs its eps, so that its gradient
 * is tiny; this form computes it as such, and not as a difference of large numbers, of which float32 leaves little.
 */
function normedScaled(u: Tensor, scale: Tensor, { eps, weight, bias }: LayerNorm): Tensor {
  // Under autocast u is of few bits, and norms are computed in many.
  const wide = u.to(scale.dtype);
  const centered = wide.sub(wide.mean([-1], true));
  const variance = centered.square().mean([-1], true);
  const added = scale.square().clampMin(1e-30).reciprocal().mul(eps);
  const normed = centered.mul(variance.add(added).rsqrt()).mul(scale.sign());
  const weighted = weight ? normed.mul(weight) : normed;
  return bias ? weighted.add(bias) : weighted;
}

/**
 * u = norm(σ up(drop(act(down(norm x))))) with at most one of the norms: [..., in] to [..., out]. No residual: that is
 * the composition's part. Parameters `down.weight` [width, in], `down.bias`, `up.weight` [out, width], `up.bias`,
 * `norm.weight`, `norm.bias`, `scale` [1], as far as the options ask for them.
 */
export class Bottleneck extends Module {
  readonly down: Linear;
  readonly act: Module;
  readonly drop: Dropout;
  readonly up: Linear;
  readonly norm: LayerNorm | null;
  readonly scale: Parameter | null;
  readonly #factor: number;
  readonly #normAt: BottleneckNorm;
  readonly #isMap: boolean;

  constructor(inFeatures: number, outFeatures: number, options: BottleneckOptions) {
    super();
    const { width, bits = 32, norm = 'none', scale = 1 } = options;
    const bias = options.bias ?? bits === 32;
    if (bits !== 32 && bias) throw new RangeError('quantized layers have no biases; give bias: false');
    this.down =
      bits === 32 ? new Linear(inFeatures, width, { bias }) : new QuantizedLinear(inFeatures, width, { bits });
    this.act = activationLayer(options.activation ?? 'relu');
    this.drop = new Dropout(options.dropout ?? 0);
    this.up =
      bits === 32
        ? new Linear(width, outFeatures, { bias })
        : new QuantizedLinear(width, outFeatures, { bits, start: 'small' });
    const normed = norm === 'in' ? inFeatures : outFeatures;
    this.norm = norm === 'none' ? null : new LayerNorm(normed, { eps: options.normEps ?? 1e-5 });
    this.scale = scale === 'learned' ? new Parameter(full([1], 1)) : null;
    this.#factor = scale === 'learned' ? 1 : scale;
    this.#normAt = norm;
    this.#isMap = options.layout === 'map';
    if (bits === 32) startBottleneck(this.down, this.up, options.start ?? 'lora');
  }

  forward(x: Tensor, ctx: Context): Tensor {
    if (!this.#isMap) return this.#compute(x, ctx);
    return this.#compute(x.permute([0, 2, 3, 1]), ctx).permute([0, 3, 1, 2]);
  }

  #compute(x: Tensor, ctx: Context): Tensor {
    const z = this.norm && this.#normAt === 'in' ? this.norm.run(x, ctx) : x;
    let u = this.up.run(this.drop.run(this.act.run(this.down.run(z, ctx), ctx), ctx), ctx);
    if (this.scale && this.norm && this.#normAt === 'out') return normedScaled(u, this.scale, this.norm);
    if (this.scale) u = u.mul(this.scale);
    else if (this.#factor !== 1) u = u.mul(this.#factor);
    return this.norm && this.#normAt === 'out' ? this.norm.run(u, ctx) : u;
  }
}
