import { aten, empty, operator, type Tensor } from '../../tensor/index.js';
import { Module } from '../module.js';
import { Parameter } from '../parameter.js';
import type { SiteDefaults, Size2 } from '../site.js';
import { positiveInteger, sizePair, tuple } from './check.js';
import { resetWeightAndBias } from './linear.js';

/** `aten::conv2d`, by a faster way when every group has one output channel (csrc/ops/group_conv). */
const groupConv = operator('torchgraft::group_conv');

/** Geometry of a convolution. */
export interface Conv2dOptions {
  kernelSize: Size2;
  /** Default 1. */
  stride?: Size2;
  /** Zeros on each side. Default 0. */
  padding?: Size2;
  /** Default 1. */
  dilation?: Size2;
  /** Default 1; as many as channels makes the convolution depth-wise. */
  groups?: number;
  /** Default true. */
  bias?: boolean;
}

/** Convolution of maps: [B, in, H, W] to [B, out, H', W']. `weight` [out, in / groups, kh, kw], `bias` [out] or null. */
export class Conv2d extends Module {
  readonly inChannels: number;
  readonly outChannels: number;
  readonly kernelSize: readonly [number, number];
  readonly stride: readonly [number, number];
  readonly padding: readonly [number, number];
  readonly dilation: readonly [number, number];
  readonly groups: number;
  weight: Parameter;
  bias: Parameter | null;

  constructor(inChannels: number, outChannels: number, options: Conv2dOptions) {
    super();
    const { kernelSize, stride = 1, padding = 0, dilation = 1, groups = 1, bias = true } = options;
    this.inChannels = positiveInteger(inChannels, 'Conv2d', 'inChannels');
    this.outChannels = positiveInteger(outChannels, 'Conv2d', 'outChannels');
    this.kernelSize = sizePair(kernelSize, 'Conv2d', 'kernelSize', 1);
    this.stride = sizePair(stride, 'Conv2d', 'stride', 1);
    this.padding = sizePair(padding, 'Conv2d', 'padding', 0);
    this.dilation = sizePair(dilation, 'Conv2d', 'dilation', 1);
    this.groups = positiveInteger(groups, 'Conv2d', 'groups');
    if (inChannels % groups !== 0 || outChannels % groups !== 0) {
      throw new RangeError(`Conv2d: channels ${inChannels} to ${outChannels} do not divide into ${groups} groups`);
    }
    this.weight = new Parameter(empty([outChannels, inChannels / groups, ...this.kernelSize]));
    this.bias = bias ? new Parameter(empty([outChannels])) : null;
    resetWeightAndBias(this.weight, this.bias);
  }

  forward(x: Tensor): Tensor {
    return this.forwardWith(x, this.weight, this.bias);
  }

  /** The layer with another weight and bias, by the same operator. */
  forwardWith(x: Tensor, weight: Tensor, bias: Tensor | null): Tensor {
    const isGathering = this.groups > 1 && this.groups === this.outChannels && this.groups < this.inChannels;
    const conv2d = isGathering ? groupConv : aten.conv2d;
    return conv2d(x, weight, bias, this.stride, this.padding, this.dilation, this.groups) as Tensor;
  }

  override siteDefaults(): SiteDefaults {
    const { kernelSize: kernel, stride, padding, groups } = this;
    return { in: this.inChannels, out: this.outChannels, layout: 'map', kernel, stride, padding, groups };
  }

  override extraRepr(): string {
    const parts = [
      `${this.inChannels}, ${this.outChannels}, kernel_size=${tuple(this.kernelSize)}, stride=${tuple(this.stride)}`,
    ];
    if (this.padding.some((n) => n !== 0)) parts.push(`padding=${tuple(this.padding)}`);
    if (this.dilation.some((n) => n !== 1)) parts.push(`dilation=${tuple(this.dilation)}`);
    if (this.groups !== 1) parts.push(`groups=${this.groups}`);
    if (this.bias === null) parts.push('bias=False');
    return parts.join(', ');
  }
}
