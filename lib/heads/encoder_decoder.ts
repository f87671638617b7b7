/** Semantic segmentation: backbone, neck, head and auxiliary heads, as MMSegmentation's `EncoderDecoder` (0.11.0). */
import { Context, IGNORE_INDEX, ModuleList, pixelCrossEntropy } from '../nn/index.js';
import { noGrad, type Tensor } from '../tensor/index.js';
import { resize, sizeOf } from './conv_module.js';
import { DenseModel, type FeatureSource } from './dense_model.js';
import type { Neck } from './fpn.js';
import type { SegmentationHead } from './segmentation_head.js';
import { probabilities, type ProbabilityOptions, slideInference, type SlideOptions } from './sliding.js';

/** What a segmentation model can be told. */
export interface EncoderDecoderOptions {
  readonly backbone: FeatureSource;
  readonly neck?: Neck;
  readonly decodeHead: SegmentationHead;
  /** Heads that only help to train, each with a `lossWeight` of its own (published recipes: 0.4). One, or a list. */
  readonly auxiliaryHead?: SegmentationHead | readonly SegmentationHead[];
  /** Label of pixels that do not count. Default 255. */
  readonly ignoreIndex?: number;
  /** Whether the mean of the loss is over all pixels (`all`, the default: those ignored add 0) or over the others alone. */
  readonly average?: 'all' | 'valid';
}

/** Losses of a batch. */
export interface SegmentationLosses {
  /** By mmseg's names, weighted: `decode.loss_seg`, `aux.loss_seg` or `aux_0.loss_seg`, ... */
  readonly losses: Readonly<Record<string, Tensor>>;
  /** Their sum, to back-propagate. */
  readonly loss: Tensor;
  /** Of the decode head, at the size of the labels. */
  readonly logits: Tensor;
}

/** How an image is run. */
export interface SegmentOptions extends ProbabilityOptions {
  /** Windows; default: the whole image at once. */
  readonly windows?: Omit<SlideOptions, 'alignCorners'>;
}

/** See `EncoderDecoderOptions`. Names are mmseg's: `backbone.`, `neck.`, `decode_head.`, `auxiliary_head.` or `auxiliary_head.{i}.`. */
export class EncoderDecoder extends DenseModel {
  readonly name: string = 'encoder_decoder';
  protected readonly backbonePath = 'backbone';
  readonly backbone: FeatureSource;
  readonly neck: Neck | null;
  readonly decode_head: SegmentationHead;
  readonly auxiliary_head: SegmentationHead | ModuleList<SegmentationHead> | null;
  readonly ignoreIndex: number;
  readonly average: 'all' | 'valid';

  constructor(options: EncoderDecoderOptions) {
    super();
    const { backbone, neck, decodeHead, auxiliaryHead, ignoreIndex = IGNORE_INDEX, average = 'all' } = options;
    this.backbone = backbone;
    this.neck = neck ?? null;
    this.decode_head = decodeHead;
    this.auxiliary_head = isList(auxiliaryHead) ? new ModuleList(auxiliaryHead) : (auxiliaryHead ?? null);
    this.ignoreIndex = ignoreIndex;
    this.average = average;
  }

  /** The maps that the heads read, finest first. */
  features(images: Tensor, ctx: Context = new Context()): Tensor[] {
    const maps = this.backbone.forwardIntermediates(images, ctx);
    return this.neck ? this.neck.fuse(maps, ctx) : maps;
  }

  /** Logits [B, K, H, W] at the size of the images [B, 3, H, W], run whole. */
  forward(images: Tensor, ctx: Context): Tensor {
    const { decode_head: head } = this;
    return resize(this.#segment(head, this.features(images, ctx), ctx), sizeOf(images), head.alignCorners);
  }

  /** What a head gets: the maps, unless a model has more to give. */
  protected levelsFor(_head: SegmentationHead, levels: readonly Tensor[], _ctx: Context): readonly Tensor[] {
    return levels;
  }

  #segment(head: SegmentationHead, levels: readonly Tensor[], ctx: Context): Tensor {
    return head.segment(this.levelsFor(head, levels, ctx), ctx);
  }

  /**
   * Losses of images [B, 3, H, W] and labels, integers [B, H, W] or [B, 1, H, W].
   * @throws RangeError when the shapes do not fit together
   */
  losses(images: Tensor, labels: Tensor, ctx: Context = new Context()): SegmentationLosses {
    return this.lossesOf(this.features(images, ctx), labels, ctx);
  }

  /** `losses` from feature maps. */
  lossesOf(levels: readonly Tensor[], labels: Tensor, ctx: Context = new Context()): SegmentationLosses {
    const targets = labels.ndim === 4 ? labels.squeeze(1) : labels;
    const { ignoreIndex, average } = this;
    const entries = this.#heads().map(([name, head]) => {
      const logits = resize(this.#segment(head, levels, ctx), sizeOf(targets), head.alignCorners);
      const loss = pixelCrossEntropy(logits, targets, { ignoreIndex, average }).mul(head.lossWeight);
      return { name: `${name}.loss_seg`, loss, logits };
    });
    const loss = entries.map((entry) => entry.loss).reduce((sum, value) => sum.add(value));
    const losses = Object.fromEntries(entries.map((entry) => [entry.name, entry.loss]));
    return { losses, loss, logits: (entries[0] as (typeof entries)[number]).logits };
  }

  #heads(): [string, SegmentationHead][] {
    const auxiliary = this.auxiliary_head;
    const others: [string, SegmentationHead][] =
      auxiliary instanceof ModuleList
        ? [...auxiliary].map((head, i) => [`aux_${i}`, head])
        : auxiliary
          ? [['aux', auxiliary]]
          : [];
    return [['decode', this.decode_head], ...others];
  }

  /** Logits at the size of the images: run whole, or window by window. */
  logits(images: Tensor, windows?: SegmentOptions['windows'], ctx: Context = new Context()): Tensor {
    if (!windows) return this.run(images, ctx);
    const { alignCorners } = this.decode_head;
    return slideInference(images, { ...windows, alignCorners }, (window) => {
      const own = ctx.fork();
      return this.#segment(this.decode_head, this.features(window, own), own);
    });
  }

  /** Probabilities [B, K, h, w] at the original size. */
  probabilities(images: Tensor, options: SegmentOptions = {}, ctx: Context = new Context()): Tensor {
    const { alignCorners } = this.decode_head;
    return probabilities(this.logits(images, options.windows, ctx), { alignCorners, ...options });
  }

  /** The most probable class of each pixel, int64 [B, h, w]; of several views of the same images, by the mean of their probabilities. */
  segment(views: Tensor | readonly { readonly images: Tensor; readonly options?: SegmentOptions }[]): Tensor {
    const list = 'numel' in views ? [{ images: views }] : views;
    if (list.length === 0) throw new RangeError('segment: give at least one view');
    const maps = list.map(({ images, options }: { images: Tensor; options?: SegmentOptions }) =>
      this.probabilities(images, options),
    );
    return maps.reduce((sum, map) => sum.add(map)).argmax(1);
  }

  /** @throws TypeError always: which head there is says more than a number of classes */
  resetClassifier(): void {
    throw new TypeError('EncoderDecoder: make a new head for other classes');
  }
}

function isList(
  heads: SegmentationHead | readonly SegmentationHead[] | undefined,
): heads is readonly SegmentationHead[] {
  return Array.isArray(heads);
}

/** Percentage of all pixels, ignored ones included, whose largest logit (resized to the labels) is the label's; mmseg's `acc_seg`. */
export function pixelAccuracy(logits: Tensor, labels: Tensor, alignCorners = false): Tensor {
  return noGrad(() => {
    const targets = labels.ndim === 4 ? labels.squeeze(1) : labels;
    const hits = resize(logits, sizeOf(targets), alignCorners).argmax(1).eq(targets);
    return hits.sum().mul(100 / targets.numel());
  });
}
