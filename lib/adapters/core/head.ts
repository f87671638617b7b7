/** The classifier that an adapter brings along: a graft that replaces the backbone's own. */
import { z } from 'zod';
import {
  BatchNorm1d,
  type Context,
  Dropout,
  functional,
  init,
  Linear,
  Module,
  QUANTIZED_BITS,
  type QuantizedBits,
  QuantizedLinear,
  ReLU,
  Sequential,
} from '../../nn/index.js';
import { call, isGradEnabled, noGrad, type Tensor } from '../../tensor/index.js';
import { warn } from './warn.js';

/** A new classifier for an adapter. */
export interface HeadOptions {
  /** Number of classes. */
  readonly classes: number;
  /**
   * `batch`: the features are first normalized by the batch's statistics per channel (in evaluation: the running ones,
   * momentum 0.1), without learned scale and shift. Default `none`.
   */
  readonly norm?: 'none' | 'batch';
  /** Added to the variance by that norm. Default 1e-5. */
  readonly normEps?: number;
  /** Brings every feature vector to the length 1, after the norm. Default false. */
  readonly normalize?: boolean;
  /** Hidden layers in front, each a linear layer at the width of the features, ReLU, BatchNorm and dropout 0.1. Default 0. */
  readonly hidden?: number;
  /** Dropout before the linear layer. Default 0. */
  readonly dropout?: number;
  /**
   * `default`: PyTorch's start of a linear layer; `uniform`: that of its weight, bias 0; `trunc_normal`: standard deviation
   * 0.02, bias 0; `zero`; `prior`: standard deviation sqrt(2 / classes), and a bias at which every class has the probability
   * 0.01. Default: the method's.
   */
  readonly init?: 'default' | 'uniform' | 'trunc_normal' | 'zero' | 'prior';
  /** Bits per weight: the head is then quantized and has no bias. Default 32: not quantized. */
  readonly bits?: QuantizedBits | 32;
}

/** `HeadOptions` as they stand in the config of an adapter folder. */
export const headOptions = z.strictObject({
  classes: z.int().positive(),
  norm: z.enum(['none', 'batch']).optional(),
  normEps: z.number().positive().optional(),
  normalize: z.boolean().optional(),
  hidden: z.int().nonnegative().optional(),
  dropout: z.number().min(0).max(1).optional(),
  init: z.enum(['default', 'uniform', 'trunc_normal', 'zero', 'prior']).optional(),
  bits: z.union([z.literal(QUANTIZED_BITS), z.literal(32)]).optional(),
});

/** How many times a tensor has been changed in place. */
function version(tensor: Tensor): number {
  return Number(call('aten::_version', tensor));
}

/** One hidden layer at the width of the features. */
function hiddenLayer(width: number, start: HeadOptions['init']): Module[] {
  const linear = new Linear(width, width);
  // As the published heads that start with a prior: Kaiming over fan-out.
  if (start === 'prior') init.normal_(linear.weight, 0, Math.sqrt(2 / width));
  return [linear, new ReLU(), new BatchNorm1d(width), new Dropout(0.1)];
}

/**
 * y = W drop(z) + b, with z the features [B, C], normed over the batch, brought to the length 1 and through hidden layers
 * as the options say: [B, C] to [B, classes]. State: `norm.running_mean`, ... where there is a norm, `projection.0.weight`,
 * ... where there are hidden layers (four modules each), `linear.weight`, `linear.bias`.
 */
export class Head extends Module {
  readonly norm: BatchNorm1d | null;
  /** The hidden layers. */
  readonly projection: Sequential | null;
  readonly drop: Dropout;
  readonly linear: Linear;
  #startVersion: number;
  #warned = false;

  readonly #normalize: boolean;

  constructor(inFeatures: number, options: HeadOptions) {
    super();
    const { classes, dropout = 0, init: start = 'default', bits = 32 } = options;
    const { norm = 'none', normEps = 1e-5, normalize = false, hidden = 0 } = options;
    this.projection =
      hidden > 0
        ? new Sequential(...Array.from({ length: hidden }, () => hiddenLayer(inFeatures, start)).flat())
        : null;
    this.norm = norm === 'batch' ? new BatchNorm1d(inFeatures, { affine: false, eps: normEps }) : null;
    this.#normalize = normalize;
    this.drop = new Dropout(dropout);
    this.linear = bits === 32 ? new Linear(inFeatures, classes) : new QuantizedLinear(inFeatures, classes, { bits });
    if (start === 'trunc_normal') init.truncNormal_(this.linear.weight, { std: 0.02 });
    if (start === 'zero') init.zeros_(this.linear.weight);
    if (start === 'prior') init.normal_(this.linear.weight, 0, Math.sqrt(2 / classes));
    if (start !== 'default' && this.linear.bias)
      init.constant_(this.linear.bias, start === 'prior' ? -Math.log(99) : 0);
    this.#startVersion = version(this.linear.weight);
  }

  /** Says that the weights are no longer the random ones, whatever their version counter says. */
  markTrained(): void {
    this.#startVersion = -1;
  }

  forward(x: Tensor, ctx: Context): Tensor {
    this.#warnIfUntrained();
    let z = x;
    if ((this.norm ?? this.projection) && this.training && x.shape[0] === 1) {
      throw new RangeError(
        'the head norms over the batch, which in training needs more than one image; leave out a last batch of one (dropLast)',
      );
    }
    if (this.norm) z = this.norm.run(z, ctx);
    if (this.#normalize) z = functional.normalize(z);
    if (this.projection) z = this.projection.run(z, ctx);
    return this.linear.run(this.drop.run(z, ctx), ctx);
  }

  /** Why the head is no single linear layer in evaluation, or null when it is one. */
  get obstacle(): string | null {
    if (this.projection) return 'the head has hidden layers';
    return this.#normalize ? 'the head brings features to one length, which no linear layer does' : null;
  }

  /** Weight [classes, C] and bias [classes] of the linear layer that the head is in evaluation, computed in float64. */
  asLinear(): { weight: Tensor; bias: Tensor } {
    return noGrad(() => {
      const weight = this.linear.effectiveWeight().to('float64');
      const bias = this.linear.bias?.to('float64') ?? weight.newZeros([this.linear.outFeatures]);
      const { running_mean: mean, running_var: variance, eps = 0 } = this.norm ?? {};
      if (!mean || !variance) return { weight, bias };
      const normed = weight.mul(variance.to('float64').add(eps).rsqrt());
      return { weight: normed, bias: bias.sub(normed.mv(mean.to('float64'))) };
    });
  }

  #warnIfUntrained(): void {
    // A pass that records gradients in training mode is training; LibTorch's fused optimizers leave versions alone.
    if (this.training && isGradEnabled()) this.markTrained();
    if (this.#warned || this.training || isGradEnabled()) return;
    if (version(this.linear.weight) !== this.#startVersion) return;
    this.#warned = true;
    warn('UNTRAINED_HEAD', 'the head was never trained: its predictions are random. Train the adapter, or load one.');
  }
}
