/**
 * Segmenter: a vision transformer whose patch tokens are decoded to masks. Strudel et al., ICCV 2021, arXiv 2105.05633;
 * rstrudel/segmenter, commit 20d1bfad (MIT).
 */
import { type Preprocessing, resamplePosEmbed, VisionTransformer, ViTBlock, vitOptions } from '../models/index.js';
import {
  Context,
  IGNORE_INDEX,
  init,
  LayerNorm,
  Linear,
  Module,
  ModuleList,
  Parameter,
  pixelCrossEntropy,
} from '../nn/index.js';
import { aten, empty, type Tensor } from '../tensor/index.js';
import { resize, sizeOf } from './conv_module.js';
import { DenseModel } from './dense_model.js';
import { segmenterStarts, slideInference } from './sliding.js';

/** Epsilon of every norm. */
const NORM_EPS = 1e-5;

/** Sizes of Segmenter's image transformer. */
export interface SegmenterEncoderOptions {
  /** Side of the training images, or height and width. Default 512. */
  readonly imgSize?: number | readonly [height: number, width: number];
  /** Default 16. */
  readonly patchSize?: number;
  readonly embedDim: number;
  readonly depth: number;
  readonly numHeads: number;
  /** Width of the MLPs per channel. Default 4. */
  readonly mlpRatio?: number;
  /** Whether a distillation token follows the class token. Default false. */
  readonly distilled?: boolean;
  /** Default 0. */
  readonly dropRate?: number;
  /** Default 0. */
  readonly dropPathRate?: number;
  /** Classes of the classifier `head`, which nothing reads; published files have one of 1000. Default 0: none. */
  readonly numClasses?: number;
  /** Default 1e-5. */
  readonly normEps?: number;
}

/** `VisionTransformer` whose positions are resized bilinearly, without a low-pass filter. The distillation token is its one register. */
class SegmenterEncoder extends VisionTransformer {
  protected override positions(grid: readonly [number, number]): Tensor {
    const { positionPrefix: prefixTokens } = this;
    const oldGrid = this.patch_embed.grid;
    return resamplePosEmbed(this.pos_embed, grid, {
      oldGrid,
      prefixTokens,
      interpolation: 'bilinear',
      antialias: false,
    });
  }

  protected override initWeights(): void {
    super.initWeights();
    for (const token of [this.cls_token, this.reg_token]) if (token) init.truncNormal_(token, { std: 0.02 });
  }
}

/** Mean and deviation 0.5, as the published encoders were trained. */
const HALF = [0.5, 0.5, 0.5] as const;

function encoderOf(o: SegmenterEncoderOptions): SegmenterEncoder {
  const { imgSize = 512, patchSize = 16, dropRate = 0, numClasses = 0, distilled = false, normEps = NORM_EPS } = o;
  const options = vitOptions.parse({
    imgSize,
    patchSize,
    embedDim: o.embedDim,
    depth: o.depth,
    numHeads: o.numHeads,
    mlpRatio: o.mlpRatio ?? 4,
    regTokens: distilled ? 1 : 0,
    normEps,
    numClasses,
    dynamicImgSize: true,
    posDropRate: dropRate,
    projDropRate: dropRate,
    attnDropRate: dropRate,
    dropPathRate: o.dropPathRate ?? 0,
  });
  const [height, width] = typeof imgSize === 'number' ? [imgSize, imgSize] : imgSize;
  const config: Preprocessing = {
    inputSize: [3, height, width],
    mean: HALF,
    std: HALF,
    interpolation: 'bilinear',
    cropPct: 1,
  };
  return new SegmenterEncoder('segmenter_encoder', options, config);
}

/** Patch tokens [B, N, D] to scores [B, N, K]. */
export abstract class SegmenterDecoder extends Module {
  abstract override forward(tokens: Tensor, ctx: Context): Tensor;
}

/** One linear layer per token. */
export class LinearDecoder extends SegmenterDecoder {
  readonly head: Linear;

  constructor(inChannels: number, numClasses: number) {
    super();
    this.head = new Linear(inChannels, numClasses);
    initLinear(this.head);
  }

  forward(tokens: Tensor, ctx: Context): Tensor {
    return this.head.run(tokens, ctx);
  }
}

/** What Segmenter's mask transformer can be told. */
export interface MaskDecoderOptions {
  /** Width of the encoder's tokens. */
  readonly inChannels: number;
  readonly numClasses: number;
  /** Width inside. Default: the encoder's. */
  readonly dim?: number;
  /** Default 2. */
  readonly depth?: number;
  /** Default: one per 64 channels. */
  readonly numHeads?: number;
  /** Width of the MLPs. Default: 4 times `dim`. */
  readonly hidden?: number;
  /** Default 0.1. */
  readonly dropRate?: number;
  /** Stochastic depth of the last block, rising linearly from 0. Default 0. */
  readonly dropPathRate?: number;
  /** Default 1e-5. */
  readonly normEps?: number;
}

/**
 * Class embeddings stand after the patch tokens through a few transformer blocks; the scores are the cosines of
 * projected patches and classes, normed over the classes.
 */
export class MaskDecoder extends SegmenterDecoder {
  readonly cls_emb: Parameter;
  readonly proj_dec: Linear;
  readonly proj_patch: Parameter;
  readonly proj_classes: Parameter;
  readonly blocks: ModuleList<ViTBlock>;
  readonly decoder_norm: LayerNorm;
  readonly mask_norm: LayerNorm;
  readonly #numClasses: number;

  constructor(options: MaskDecoderOptions) {
    super();
    const { inChannels, numClasses, dim = inChannels, depth = 2, normEps = NORM_EPS } = options;
    const { numHeads = Math.max(1, Math.floor(dim / 64)), hidden = 4 * dim } = options;
    const { dropRate = 0.1, dropPathRate = 0 } = options;
    this.#numClasses = numClasses;
    this.cls_emb = new Parameter(empty([1, numClasses, dim]));
    this.proj_dec = new Linear(inChannels, dim);
    this.proj_patch = new Parameter(empty([dim, dim]));
    this.proj_classes = new Parameter(empty([dim, dim]));
    const block = (_: unknown, i: number): ViTBlock =>
      new ViTBlock({
        ...{ dim, numHeads, hidden, qkvBias: true, normEps, initValues: null, depth: i },
        ...{ projDrop: dropRate, attnDrop: dropRate, dropPath: depth > 1 ? (dropPathRate * i) / (depth - 1) : 0 },
      });
    this.blocks = new ModuleList(Array.from({ length: depth }, block));
    this.decoder_norm = new LayerNorm(dim, { eps: normEps });
    this.mask_norm = new LayerNorm(numClasses, { eps: normEps });
    this.apply((module) => {
      if (module instanceof Linear) initLinear(module);
    });
    init.truncNormal_(this.cls_emb, { std: 0.02 });
    for (const matrix of [this.proj_patch, this.proj_classes]) init.normal_(matrix, 0, dim ** -0.5);
  }

  forward(tokens: Tensor, ctx: Context): Tensor {
    const [batch = 0, patches = 0] = tokens.shape;
    let z = aten.cat([this.proj_dec.run(tokens, ctx), this.cls_emb.expand([batch, -1, -1])], 1);
    for (const block of this.blocks) z = block.run(z, ctx);
    z = this.decoder_norm.run(z, ctx);
    const unit = (x: Tensor): Tensor => x.div(aten.linalgVectorNorm(x, 2, [-1], true));
    const p = unit(z.narrow(1, 0, patches).matmul(this.proj_patch));
    const c = unit(z.narrow(1, patches, this.#numClasses).matmul(this.proj_classes));
    return this.mask_norm.run(p.matmul(c.transpose(1, 2)), ctx);
  }
}

function initLinear(layer: Linear): void {
  init.truncNormal_(layer.weight, { std: 0.02 });
  if (layer.bias) init.zeros_(layer.bias);
}

/** What a Segmenter head can be told. */
export interface SegmenterOptions {
  /** Sizes of a fresh encoder, or a vision transformer, which gives up its classifier. */
  readonly encoder: SegmenterEncoderOptions | VisionTransformer;
  /** `linear`, or the mask decoder with its options. Default: the mask decoder. */
  readonly decoder?: 'linear' | Omit<MaskDecoderOptions, 'inChannels' | 'numClasses'>;
  readonly numClasses: number;
  /** Label of pixels that do not count. Default 255. */
  readonly ignoreIndex?: number;
}

/** Images [B, 3, H, W] to logits [B, K, H, W]. Names are the official ones: `encoder.`, `decoder.`. */
export class Segmenter extends DenseModel {
  readonly name = 'segmenter';
  protected readonly backbonePath = 'encoder';
  readonly encoder: VisionTransformer;
  readonly decoder: SegmenterDecoder;
  readonly ignoreIndex: number;
  readonly #patch: readonly [number, number];

  constructor({ encoder, decoder = {}, numClasses, ignoreIndex = IGNORE_INDEX }: SegmenterOptions) {
    super();
    this.encoder = encoder instanceof VisionTransformer ? encoder : encoderOf(encoder);
    if (this.encoder === encoder) encoder.resetClassifier(0);
    const inChannels = encoder.embedDim;
    this.decoder =
      decoder === 'linear'
        ? new LinearDecoder(inChannels, numClasses)
        : new MaskDecoder({ ...decoder, inChannels, numClasses });
    this.ignoreIndex = ignoreIndex;
    this.#patch = this.encoder.patch_embed.patchSize;
  }

  /** Images of any size: they are padded with zeros on the right and at the bottom to whole patches. */
  forward(images: Tensor, ctx: Context): Tensor {
    const [height, width] = sizeOf(images);
    const [ph, pw] = this.#patch;
    const [bottom, right] = [(ph - (height % ph)) % ph, (pw - (width % pw)) % pw];
    const padded = bottom + right > 0 ? aten.constantPadNd(images, [0, right, 0, bottom], 0) : images;
    const tokens = this.encoder.forwardFeatures(padded, ctx);
    const [rows, columns] = [(height + bottom) / ph, (width + right) / pw];
    // Class and distillation token, and whatever grafts have set in front.
    const scores = this.decoder.run(tokens.narrow(1, ctx.prefixTokens, rows * columns), ctx);
    const [batch = 0, , classes = 0] = scores.shape;
    const masks = scores.transpose(1, 2).reshape([batch, classes, rows, columns]);
    return resize(masks, [height + bottom, width + right])
      .narrow(2, 0, height)
      .narrow(3, 0, width);
  }

  /** Cross entropy of images and labels [B, H, W], the mean over the pixels that count. */
  loss(images: Tensor, labels: Tensor, ctx: Context = new Context()): Tensor {
    return pixelCrossEntropy(this.run(images, ctx), labels, { ignoreIndex: this.ignoreIndex });
  }

  /**
   * Logits at the size of the images from square windows; smaller images are enlarged first, so that a window fits, and
   * the logits brought back.
   */
  slide(images: Tensor, window: number, stride: number, ctx: Context = new Context()): Tensor {
    const [height, width] = sizeOf(images);
    const short = Math.min(height, width);
    const enlarged = (side: number): number => (side === short ? window : Math.trunc((side / short) * window));
    const input = short < window ? resize(images, [enlarged(height), enlarged(width)]) : images;
    const logitsOf = (part: Tensor): Tensor => this.run(part, ctx.fork());
    return resize(slideInference(input, { crop: window, stride }, logitsOf, segmenterStarts), [height, width]);
  }

  /** Also takes the official names of the distillation token and leaves out the classifiers that nothing reads. */
  override convertStateDict(state: ReadonlyMap<string, Tensor>): Map<string, Tensor> {
    const hasHead = this.encoder.head.namedState().length > 0;
    const entries = [...state].flatMap(([name, value]): [string, Tensor][] => {
      if (name.startsWith('encoder.head_dist.') || (!hasHead && name.startsWith('encoder.head.'))) return [];
      return [[name.replace(/^encoder\.dist_token$/, 'encoder.reg_token'), value]];
    });
    return new Map(entries);
  }

  /** @throws TypeError always: the masks' classes are tokens, which no layer at the end replaces */
  resetClassifier(): void {
    throw new TypeError('Segmenter: make a new model for other classes and load the encoder into it');
  }
}
