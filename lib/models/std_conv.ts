/** Convolutions whose weights are standardized whenever they are used. */
import { Conv2d, type Conv2dOptions, Module, type Parameter, type SiteDefaults } from '../nn/index.js';
import { aten, type Tensor } from '../tensor/index.js';

/** Geometry, and what is added to the variance of the weights. There is no bias. */
export interface StdConv2dOptions extends Omit<Conv2dOptions, 'bias'> {
  readonly eps: number;
}

/**
 * Convolution with (W - mean) / sqrt(var + eps) per output channel, over its inputs and kernel; the variance is the biased
 * one. Gradients flow through it. Qiao et al. 2019, arXiv 1903.10520. [B, in, H, W] to [B, out, H', W'].
 *
 * Not a `Conv2d`: an increment of W would be standardized with it, so nothing can be merged into it as into one.
 */
export class StdConv2d extends Module {
  readonly weight: Parameter;
  readonly eps: number;
  // Private, so that its weight has one name only.
  readonly #conv: Conv2d;

  constructor(inChannels: number, outChannels: number, { eps, ...options }: StdConv2dOptions) {
    super();
    this.#conv = new Conv2d(inChannels, outChannels, { ...options, bias: false });
    this.weight = this.#conv.weight;
    this.eps = eps;
  }

  forward(x: Tensor): Tensor {
    const { stride, padding, dilation, groups } = this.#conv;
    return aten.conv2d(x, this.standardized(), null, stride, padding, dilation, groups);
  }

  /** The weight that is convolved with. */
  standardized(): Tensor {
    // Batch norm over one sample whose channels are the filters: one pass, also backward.
    const rows = this.weight.reshape([1, this.weight.shape[0] ?? 0, -1]);
    return aten.batchNorm(rows, null, null, null, null, true, 0, this.eps, false).reshape(this.weight.shape);
  }

  override siteDefaults(): SiteDefaults {
    return this.#conv.siteDefaults();
  }

  override extraRepr(): string {
    return `${this.#conv.extraRepr()}, eps=${this.eps}`;
  }
}
