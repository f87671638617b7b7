import { aten, noGrad, ones, tensor, zeros, type Tensor } from '../../tensor/index.js';
import type { Context } from '../context.js';
import { Module } from '../module.js';
import { Buffer, Parameter } from '../parameter.js';
import type { SiteDefaults } from '../site.js';
import { positiveInteger, pythonBool, pythonFloat, tuple } from './check.js';

/** Options of batch normalization. */
export interface BatchNormOptions {
  /** Added to the variance. Default 1e-5. */
  eps?: number;
  /** Weight of the new batch in the running statistics; null for their plain average over all batches. Default 0.1. */
  momentum?: number | null;
  /** Learned scale and shift per channel. Default true. */
  affine?: boolean;
  /** Whether the learned part has a shift. Default true. */
  bias?: boolean;
  /** False: no running statistics; the batch's own are used in evaluation too. Default true. */
  trackRunningStats?: boolean;
}

/**
 * y = (x - mean) / sqrt(var + eps) * weight + bias per channel of [B, C, H, W]. In training mode the statistics are the
 * batch's and the running ones move toward them; in evaluation mode they are the running ones. Ioffe & Szegedy 2015.
 */
export class BatchNorm2d extends Module {
  readonly numFeatures: number;
  eps: number;
  readonly momentum: number | null;
  weight: Parameter | Buffer | null;
  bias: Parameter | Buffer | null;
  running_mean: Buffer | null;
  running_var: Buffer | null;
  num_batches_tracked: Buffer | null;
  #isConstant = false;

  constructor(numFeatures: number, options: BatchNormOptions = {}) {
    super();
    const { eps = 1e-5, momentum = 0.1, affine = true, bias = true, trackRunningStats = true } = options;
    this.numFeatures = positiveInteger(numFeatures, 'BatchNorm2d', 'numFeatures');
    this.eps = eps;
    this.momentum = momentum;
    this.weight = affine ? new Parameter(ones([numFeatures])) : null;
    this.bias = affine && bias ? new Parameter(zeros([numFeatures])) : null;
    this.running_mean = trackRunningStats ? new Buffer(zeros([numFeatures])) : null;
    this.running_var = trackRunningStats ? new Buffer(ones([numFeatures])) : null;
    this.num_batches_tracked = trackRunningStats ? new Buffer(tensor(0, { dtype: 'int64' }), { optional: true }) : null;
  }

  forward(x: Tensor, ctx: Context): Tensor {
    if (x.ndim !== 4)
      throw new RangeError(`BatchNorm2d: expected a map [B, C, H, W], got shape [${x.shape.join(', ')}]`);
    const isLearning = this.training && !this.#isConstant;
    const useBatch = isLearning || this.running_mean === null;
    // Its variance does not exist: the running one would be NaN from then on.
    if (useBatch && x.numel() === this.numFeatures) {
      throw new RangeError(
        `BatchNorm2d: the statistics of a batch need more than one value per channel, and the map is [${x.shape.join(', ')}]; train with more samples, or put the norm into evaluation mode`,
      );
    }
    // A recomputed stretch has been counted in its first pass.
    const isUpdating = isLearning && !ctx.recomputing;
    const factor = isUpdating ? this.#count() : 0;
    const reads = !useBatch || isUpdating;
    const mean = reads ? this.running_mean : null;
    const variance = reads ? this.running_var : null;
    return aten.batchNorm(x, this.weight, this.bias, mean, variance, useBatch, factor, this.eps, true);
  }

  /** Counts the batch and returns its weight in the running statistics. */
  #count(): number {
    if (this.num_batches_tracked === null) return 0;
    this.num_batches_tracked.add_(1);
    return this.momentum ?? 1 / Number(this.num_batches_tracked.item());
  }

  /** Whether `makeConstant` was called. */
  get isConstant(): boolean {
    return this.#isConstant;
  }

  /**
   * Makes the norm a fixed scale and shift, in training mode too: torchvision's `FrozenBatchNorm2d`. Scale and shift
   * become buffers, so that nothing trains them, and there is no counter of batches any more.
   *
   * @param options `eps`: default as before; the detectors published as COCO_V1 have 0
   * @throws TypeError for a norm without running statistics
   */
  makeConstant({ eps = this.eps }: { eps?: number } = {}): this {
    if (this.running_mean === null) {
      throw new TypeError('makeConstant: a BatchNorm without running statistics has nothing to be constant with');
    }
    this.eps = eps;
    this.weight = this.weight && new Buffer(this.weight);
    this.bias = this.bias && new Buffer(this.bias);
    this.num_batches_tracked = null;
    this.#isConstant = true;
    return this;
  }

  /** Forgets the running statistics: mean 0, variance 1, no batches. */
  resetRunningStats(): void {
    noGrad(() => {
      this.running_mean?.zero_();
      this.running_var?.fill_(1);
      this.num_batches_tracked?.zero_();
    });
  }

  override siteDefaults(): SiteDefaults {
    return { in: this.numFeatures, out: this.numFeatures, layout: 'map' };
  }

  override extraRepr(): string {
    const momentum = this.momentum === null ? 'None' : pythonFloat(this.momentum);
    const affine = pythonBool(this.weight !== null);
    return `${this.numFeatures}, eps=${pythonFloat(this.eps)}, momentum=${momentum}, affine=${affine}, bias=${pythonBool(this.bias !== null)}, track_running_stats=${pythonBool(this.running_mean !== null)}`;
  }
}

/** `BatchNorm2d` over vectors [B, C]. */
export class BatchNorm1d extends BatchNorm2d {
  override forward(x: Tensor, ctx: Context): Tensor {
    if (x.ndim !== 2) throw new RangeError(`BatchNorm1d: expected vectors [B, C], got shape [${x.shape.join(', ')}]`);
    return super.forward(x.unsqueeze(-1).unsqueeze(-1), ctx).flatten(1);
  }

  override siteDefaults(): SiteDefaults {
    return { ...super.siteDefaults(), layout: 'vector' };
  }
}

/** Options of layer and group normalization. */
export interface NormOptions {
  /** Added to the variance. Default 1e-5. */
  eps?: number;
  /** Learned scale and shift. Default true. */
  affine?: boolean;
  /** Whether the learned part has a shift. Default true. */
  bias?: boolean;
}

/** y = (x - mean) / sqrt(var + eps) * weight + bias over the last dimensions. Ba et al. 2016. */
export class LayerNorm extends Module {
  readonly normalizedShape: readonly number[];
  readonly eps: number;
  weight: Parameter | null;
  bias: Parameter | null;

  /** @param shape the last dimensions of the input; a number for one */
  constructor(shape: number | readonly number[], { eps = 1e-5, affine = true, bias = true }: NormOptions = {}) {
    super();
    this.normalizedShape = (typeof shape === 'number' ? [shape] : [...shape]).map((n) =>
      positiveInteger(n, 'LayerNorm', 'shape'),
    );
    this.eps = eps;
    this.weight = affine ? new Parameter(ones(this.normalizedShape)) : null;
    this.bias = affine && bias ? new Parameter(zeros(this.normalizedShape)) : null;
  }

  forward(x: Tensor): Tensor {
    return aten.layerNorm(x, this.normalizedShape, this.weight, this.bias, this.eps);
  }

  override siteDefaults(): SiteDefaults {
    const channels = this.normalizedShape.at(-1) ?? 1;
    return { in: channels, out: channels, layout: 'tokens' };
  }

  override extraRepr(): string {
    return `${tuple(this.normalizedShape)}, eps=${pythonFloat(this.eps)}, elementwise_affine=${pythonBool(this.weight !== null)}, bias=${pythonBool(this.bias !== null)}`;
  }
}

/** `LayerNorm` over the channels of maps [B, C, H, W], each pixel by itself. */
export class LayerNorm2d extends LayerNorm {
  constructor(channels: number, options: NormOptions = {}) {
    super(channels, options);
  }

  override forward(x: Tensor): Tensor {
    return super.forward(x.permute([0, 2, 3, 1])).permute([0, 3, 1, 2]);
  }

  override siteDefaults(): SiteDefaults {
    return { ...super.siteDefaults(), layout: 'map' };
  }
}

/** Normalization of groups of channels of [B, C, ...], with a scale and a shift per channel. Wu & He 2018. */
export class GroupNorm extends Module {
  readonly numGroups: number;
  readonly numChannels: number;
  readonly eps: number;
  weight: Parameter | null;
  bias: Parameter | null;

  constructor(numGroups: number, numChannels: number, { eps = 1e-5, affine = true, bias = true }: NormOptions = {}) {
    super();
    this.numGroups = positiveInteger(numGroups, 'GroupNorm', 'numGroups');
    this.numChannels = positiveInteger(numChannels, 'GroupNorm', 'numChannels');
    if (numChannels % numGroups !== 0)
      throw new RangeError(`GroupNorm: ${numChannels} channels do not divide into ${numGroups} groups`);
    this.eps = eps;
    this.weight = affine ? new Parameter(ones([numChannels])) : null;
    this.bias = affine && bias ? new Parameter(zeros([numChannels])) : null;
  }

  forward(x: Tensor): Tensor {
    return aten.groupNorm(x, this.numGroups, this.weight, this.bias, this.eps);
  }

  override siteDefaults(): SiteDefaults {
    return { in: this.numChannels, out: this.numChannels, layout: 'map' };
  }

  override extraRepr(): string {
    return `${this.numGroups}, ${this.numChannels}, eps=${pythonFloat(this.eps)}, affine=${pythonBool(this.weight !== null)}, bias=${pythonBool(this.bias !== null)}`;
  }
}

/** y = x / sqrt(mean(x²) + eps) * weight over the last dimension: no mean is taken off, no shift added. Zhang & Sennrich 2019. */
export class RMSNorm extends Module {
  readonly channels: number;
  readonly eps: number;
  weight: Parameter;

  /** @param options `eps`: default 1e-6 */
  constructor(channels: number, { eps = 1e-6 }: { eps?: number } = {}) {
    super();
    this.channels = positiveInteger(channels, 'RMSNorm', 'channels');
    this.eps = eps;
    this.weight = new Parameter(ones([channels]));
  }

  forward(x: Tensor): Tensor {
    return aten.rmsNorm(x, [this.channels], this.weight, this.eps);
  }

  override siteDefaults(): SiteDefaults {
    return { in: this.channels, out: this.channels, layout: 'tokens' };
  }

  override extraRepr(): string {
    return `(${this.channels},), eps=${pythonFloat(this.eps)}, elementwise_affine=True`;
  }
}
