import { aten, type Tensor } from '../../tensor/index.js';
import { Module } from '../module.js';
import type { Size2 } from '../site.js';
import { compact, pythonBool, sizePair, tuple } from './check.js';

/** Geometry of a pooling window. */
export interface PoolOptions {
  kernelSize: Size2;
  /** Default: the kernel size. */
  stride?: Size2;
  /** Default 0. */
  padding?: Size2;
  /** Lets the last window reach over the edge. Default false. */
  ceilMode?: boolean;
}

abstract class Pool2d extends Module {
  readonly kernelSize: readonly [number, number];
  readonly stride: readonly [number, number];
  readonly padding: readonly [number, number];
  readonly ceilMode: boolean;

  constructor({ kernelSize, stride = kernelSize, padding = 0, ceilMode = false }: PoolOptions) {
    super();
    const name = new.target.name;
    this.kernelSize = sizePair(kernelSize, name, 'kernelSize', 1);
    this.stride = sizePair(stride, name, 'stride', 1);
    this.padding = sizePair(padding, name, 'padding', 0);
    this.ceilMode = ceilMode;
  }

  /** What stands in its line when a model is printed. */
  override extraRepr(): string {
    return `kernel_size=${compact(this.kernelSize)}, stride=${compact(this.stride)}, padding=${compact(this.padding)}`;
  }
}

/** Maximum over windows of [B, C, H, W]. */
export class MaxPool2d extends Pool2d {
  forward(x: Tensor): Tensor {
    return aten.maxPool2d(x, this.kernelSize, this.stride, this.padding, 1, this.ceilMode);
  }

  /** What stands in its line when a model is printed. */
  override extraRepr(): string {
    return `${super.extraRepr()}, dilation=1, ceil_mode=${pythonBool(this.ceilMode)}`;
  }
}

/** Average over windows of [B, C, H, W]. */
export class AvgPool2d extends Pool2d {
  readonly countIncludePad: boolean;

  /** @param options `countIncludePad`: whether padding counts in the average. Default true. */
  constructor({ countIncludePad = true, ...options }: PoolOptions & { countIncludePad?: boolean }) {
    super(options);
    this.countIncludePad = countIncludePad;
  }

  forward(x: Tensor): Tensor {
    return aten.avgPool2d(x, this.kernelSize, this.stride, this.padding, this.ceilMode, this.countIncludePad);
  }
}

/** Average over as many equal cells as the output has: [B, C, H, W] to [B, C, ...outputSize]. */
export class AdaptiveAvgPool2d extends Module {
  readonly outputSize: readonly [number, number];

  constructor(outputSize: Size2) {
    super();
    this.outputSize = sizePair(outputSize, 'AdaptiveAvgPool2d', 'outputSize', 1);
  }

  forward(x: Tensor): Tensor {
    return aten.adaptiveAvgPool2d(x, this.outputSize);
  }

  /** What stands in its line when a model is printed. */
  override extraRepr(): string {
    return `output_size=${tuple(this.outputSize)}`;
  }
}
