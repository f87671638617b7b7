/** DenseCLIP's image encoders: CLIP's towers, which give levels for a pyramid and a map in the space of the embeddings. */
import { CLIP_COLORS, type FeatureLevel, parseOptions, resamplePosEmbed } from '../models/index.js';
import { ClipResNet, type ClipResNetOptions, clipResnet } from '../models/clip_resnet.js';
import { ClipVisionTransformer, clipVit } from '../models/clip_vit.js';
import { preprocessing } from '../models/family.js';
import type { ViTOptions } from '../models/vit.js';
import {
  BatchNorm2d,
  Context,
  ConvTranspose2d,
  GELU,
  GroupNorm,
  MaxPool2d,
  type Module,
  Sequential,
} from '../nn/index.js';
import { aten, type Tensor } from '../tensor/index.js';
import { DenseAttentionPool2d, type DenseEmbedding, type PoolPositions } from './dense_clip_pool.js';

/** What an encoder makes of images. */
export interface DenseFeatures {
  /** Feature maps for a pyramid, finest first. */
  readonly levels: Tensor[];
  readonly embedding: DenseEmbedding;
}

/** An image encoder of DenseCLIP. */
export type DenseClipEncoder = DenseClipResNet | DenseClipViT;

/** Sizes of `DenseClipResNet`. */
export interface DenseClipResNetOptions {
  /** Blocks per stage. */
  readonly layers: readonly number[];
  /** Default 64. */
  readonly width?: number;
  /** D: width of the embeddings. */
  readonly outputDim: number;
  /** Side of the images that the positions are made for; a 32nd of it is the side S of their grid. */
  readonly inputResolution: number;
  /** Default `resize`, as for segmentation; detection has `crop`. */
  readonly positions?: PoolPositions;
}

/** Heads of the attention pool, whatever the width. */
const POOL_HEADS = 32;
const HOW = { interpolation: 'bicubic', cropPct: 1, ...CLIP_COLORS } as const;

/** CLIP's residual network with levels of strides 4 to 32 and an attention pool that keeps the map. */
export class DenseClipResNet extends ClipResNet {
  declare readonly attnpool: DenseAttentionPool2d;

  /** @throws TypeError, RangeError for sizes that do not fit together, as a last map that does not divide into 32 heads */
  constructor({ layers, width = 64, outputDim, inputResolution, positions = 'resize' }: DenseClipResNetOptions) {
    const given = { layers: [...layers], width, outputDim, imgSize: inputResolution, dynamicImgSize: true };
    const o: ClipResNetOptions = parseOptions(clipResnet.options, given, 'DenseCLIP, image encoder');
    super('dense_clip_resnet', o, preprocessing(o, HOW), (grid, channels) => {
      return new DenseAttentionPool2d(grid, channels, POOL_HEADS, outputDim, positions);
    });
  }

  /** D: width of the embeddings. */
  get outputDim(): number {
    return this.numFeatures;
  }

  /** Levels of images [B, 3, H, W], and what they show in the space of the embeddings, at the last level's size. */
  encode(images: Tensor, ctx: Context = new Context()): DenseFeatures {
    const levels = this.forwardIntermediates(images, ctx);
    return { levels, embedding: this.attnpool.dense(this.features.run(levels.at(-1) as Tensor, ctx), ctx) };
  }
}

/** Sizes of `DenseClipViT`. */
export interface DenseClipViTOptions {
  /** 16 or 8. Default 16. */
  readonly patchSize?: number;
  /** d. Default 768. */
  readonly width?: number;
  /** Default 12. */
  readonly layers?: number;
  /** Default 12. */
  readonly heads?: number;
  /** D: width of the embeddings. */
  readonly outputDim: number;
  /** Side of the images that the positions are made for. */
  readonly inputResolution: number;
  /** Of the last block, rising linearly from 0. Default 0.1. */
  readonly dropPathRate?: number;
  /** The four blocks that levels are taken after, counted from 0. Default 3, 5, 7, 11. */
  readonly outIndices?: readonly number[];
}

/** Groups of one: a norm over all channels and places of an image. */
const wholeNorm = (width: number): GroupNorm => new GroupNorm(1, width);
const doubling = (width: number): ConvTranspose2d => new ConvTranspose2d(width, width, { kernelSize: 2, stride: 2 });
const shrinking = (factor: number): MaxPool2d => new MaxPool2d({ kernelSize: factor });

/** What brings the four tapped maps, all at the stride of the patches, to strides 4, 8, 16, 32. */
const RESIZERS: Readonly<Record<number, (width: number) => [Module, Module, Module, Module]>> = {
  16: (d) => [
    new Sequential(wholeNorm(d), doubling(d), new BatchNorm2d(d), new GELU(), doubling(d)),
    new Sequential(wholeNorm(d), doubling(d)),
    wholeNorm(d),
    new Sequential(wholeNorm(d), shrinking(2)),
  ],
  8: (d) => [
    new Sequential(wholeNorm(d), doubling(d)),
    wholeNorm(d),
    new Sequential(wholeNorm(d), shrinking(2)),
    new Sequential(wholeNorm(d), shrinking(4)),
  ],
};

/**
 * CLIP's image transformer for images of any size that divides into patches, with four levels of strides 4 to 32. Positions
 * are resampled bilinearly, and the class token is added to its own position, so that it enters twice.
 */
export class DenseClipViT extends ClipVisionTransformer {
  override readonly featureLevels: readonly FeatureLevel[];
  readonly fpn1: Module;
  readonly fpn2: Module;
  readonly fpn3: Module;
  readonly fpn4: Module;
  readonly outIndices: readonly number[];
  /** D: width of the embeddings. */
  readonly outputDim: number;

  /** @throws RangeError for patches other than 16 or 8, or taps that are not four different blocks in rising order */
  constructor(options: DenseClipViTOptions) {
    const { patchSize = 16, width = 768, layers = 12, heads = 12, dropPathRate = 0.1, outputDim } = options;
    const { outIndices = [3, 5, 7, 11] } = options;
    const resizers = RESIZERS[patchSize];
    if (!resizers)
      throw new RangeError(
        `DenseCLIP: its transformer has patches of 16 or 8, not of ${patchSize}; CLIP's ViT-B/16 fits ` +
          '(vit_base_patch16_clip_quickgelu_224)',
      );
    const isRising = outIndices.every((index, i) => Number.isInteger(index) && index > (outIndices[i - 1] ?? -1));
    if (outIndices.length !== 4 || !isRising || (outIndices.at(-1) ?? 0) >= layers) {
      throw new RangeError(
        `DenseCLIP: outIndices must be four of the blocks 0 to ${layers - 1} in rising order, got ${outIndices.join(', ')}`,
      );
    }
    const sizes = { embedDim: width, depth: layers, numHeads: heads, patchSize, projDim: outputDim };
    const given = { ...sizes, imgSize: options.inputResolution, dynamicImgSize: true, dropPathRate };
    const o: ViTOptions = parseOptions(clipVit.options, given, 'DenseCLIP, image encoder');
    super('dense_clip_vit', o, preprocessing(o, HOW));
    [this.fpn1, this.fpn2, this.fpn3, this.fpn4] = resizers(width);
    this.outIndices = outIndices;
    this.outputDim = outputDim;
    this.featureLevels = [1, 2, 3, 4].map((i) => ({ path: `fpn${i}`, channels: width, stride: 2 ** (i + 1) }));
  }

  /** Levels of images [B, 3, H, W], and what they show in the space of the embeddings, at the size of the patches. */
  encode(images: Tensor, ctx: Context = new Context()): DenseFeatures {
    const { tokens, levels } = this.#tapped(images, ctx);
    const normed = this.features.run(this.norm.run(tokens, ctx), ctx);
    const embedded = this.proj ? this.proj.run(normed, ctx) : normed;
    return { levels, embedding: { global: embedded.select(1, 0), map: this.patchMap(embedded, ctx) } };
  }

  override forwardIntermediates(images: Tensor, ctx: Context = new Context()): Tensor[] {
    return this.#tapped(images, ctx).levels;
  }

  /** Tokens after the last block, and the levels. */
  #tapped(images: Tensor, ctx: Context): { tokens: Tensor; levels: Tensor[] } {
    let tokens = this.embed(images, ctx);
    const taps: Tensor[] = [];
    [...this.blocks].forEach((block, i) => {
      tokens = block.run(tokens, ctx);
      if (this.outIndices.includes(i)) taps.push(this.patchMap(tokens, ctx));
    });
    const resizers = [this.fpn1, this.fpn2, this.fpn3, this.fpn4];
    return { tokens, levels: resizers.map((resizer, i) => resizer.run(taps[i] as Tensor, ctx)) };
  }

  protected override positions(grid: readonly [number, number]): Tensor {
    const all = super.positions(grid);
    const [first, rest] = aten.splitWithSizes(all, [1, (all.shape[1] ?? 1) - 1], 1) as [Tensor, Tensor];
    return aten.cat([first.add(this.cls_token as Tensor), rest], 1);
  }

  protected override resample(
    positions: Tensor,
    from: readonly [rows: number, columns: number],
    to: readonly [rows: number, columns: number],
  ): Tensor {
    const options = { oldGrid: from, interpolation: 'bilinear', antialias: false } as const;
    return resamplePosEmbed(positions, to, options);
  }
}
