import { aten, empty, type Tensor } from '../../tensor/index.js';
import { Module } from '../module.js';
import { Parameter } from '../parameter.js';
import type { SiteDefaults, Size2 } from '../site.js';
import { positiveInteger, sizePair, tuple } from './check.js';
import { resetWeightAndBias } from './linear.js';

/** Geometry of a transposed convolution. */
export interface ConvTranspose2dOptions {
  kernelSize: Size2;
  /** Default 1. */
  stride?: Size2;
  /** Default true. */
  bias?: boolean;
}

/**
 * Transposed convolution without padding: [B, in, H, W] to [B, out, (H - 1) s + k, (W - 1) s + k]. `weight`
 * [in, out, kh, kw], `bias` [out] or null.
 */
export class ConvTranspose2d extends Module {
  readonly inChannels: number;
  readonly outChannels: number;
  readonly kernelSize: readonly [number, number];
  readonly stride: readonly [number, number];
  weight: Parameter;
  bias: Parameter | null;

  constructor(inChannels: number, outChannels: number, options: ConvTranspose2dOptions) {
    super();
    const { kernelSize, stride = 1, bias = true } = options;
    this.inChannels = positiveInteger(inChannels, 'ConvTranspose2d', 'inChannels');
    this.outChannels = positiveInteger(outChannels, 'ConvTranspose2d', 'outChannels');
    this.kernelSize = sizePair(kernelSize, 'ConvTranspose2d', 'kernelSize', 1);
    this.stride = sizePair(stride, 'ConvTranspose2d', 'stride', 1);
    this.weight = new Parameter(empty([inChannels, outChannels, ...this.kernelSize]));
    this.bias = bias ? new Parameter(empty([outChannels])) : null;
    resetWeightAndBias(this.weight, this.bias);
  }

  forward(x: Tensor): Tensor {
    return aten.convTranspose2d(x, this.weight, this.bias, this.stride);
  }

  override siteDefaults(): SiteDefaults {
    return { in: this.inChannels, out: this.outChannels, layout: 'map' };
  }

  override extraRepr(): string {
    const sizes = `${this.inChannels}, ${this.outChannels}, kernel_size=${tuple(this.kernelSize)}`;
    return `${sizes}, stride=${tuple(this.stride)}${this.bias === null ? ', bias=False' : ''}`;
  }
}
