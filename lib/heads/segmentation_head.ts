/** What every segmentation head over feature maps has in common, as in MMSegmentation 0.11.0 (Apache-2.0). */
import { type Context, Conv2d, Dropout2d, init, Module } from '../nn/index.js';
import type { Tensor } from '../tensor/index.js';
import type { HeadNormOptions } from './conv_module.js';

/** Options of every head. */
export interface SegmentationHeadOptions {
  readonly numClasses: number;
  /** Width inside. */
  readonly channels: number;
  /** Probability with which whole channels are dropped before the classifier. Default 0.1. */
  readonly dropout?: number;
  /** For every bilinear resize of the head and of its logits. Default false. */
  readonly alignCorners?: boolean;
  /** Factor of the head's loss. Default 1. */
  readonly lossWeight?: number;
  readonly norm?: HeadNormOptions;
}

/**
 * Feature levels to logits [B, K, h, w] at a resolution of the head's own: `segment(levels)`. It ends in dropout of
 * whole channels and the 1x1 convolution `conv_seg`.
 */
export abstract class SegmentationHead extends Module {
  readonly numClasses: number;
  readonly alignCorners: boolean;
  readonly lossWeight: number;
  readonly conv_seg: Conv2d;
  readonly dropout: Dropout2d;

  constructor({ numClasses, channels, dropout = 0.1, alignCorners = false, lossWeight = 1 }: SegmentationHeadOptions) {
    super();
    this.numClasses = numClasses;
    this.alignCorners = alignCorners;
    this.lossWeight = lossWeight;
    this.conv_seg = new Conv2d(channels, numClasses, { kernelSize: 1 });
    this.dropout = new Dropout2d(dropout);
    this.initClassifier(this.conv_seg);
  }

  /** How `conv_seg` starts: normal (0.01), bias 0. */
  protected initClassifier({ weight, bias }: Conv2d): void {
    init.normal_(weight, 0, 0.01);
    if (bias) init.zeros_(bias);
  }

  /**
   * @param levels all feature maps of the backbone or neck, finest first; the head picks its own
   * @returns logits [B, K, h, w]
   * @throws RangeError when a level that the head reads is missing
   */
  abstract segment(levels: readonly Tensor[], ctx?: Context): Tensor;

  /** Logits [B, classes, H, W] of the head's last map, after dropout. */
  protected classify(x: Tensor, ctx: Context): Tensor {
    return this.conv_seg.run(this.dropout.run(x, ctx), ctx);
  }

  /** @throws TypeError always: a head reads several maps; call `segment` */
  forward(): Tensor {
    throw new TypeError(`${this.constructor.name} takes a list of maps: call segment(levels, ctx)`);
  }
}

/** The level at an index; negative counts from the coarsest. @throws RangeError that says how many there are */
export function levelAt(levels: readonly Tensor[], index: number, head: string): Tensor {
  const level = levels.at(index);
  if (!level) throw new RangeError(`${head}: it reads level ${index}, and ${levels.length} were given`);
  return level;
}
