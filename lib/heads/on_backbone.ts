/** Dense models by the name of their head, on any backbone of the registry: sizes follow from its levels. */
import { HorFpn, suggestion, VisionTransformer, type Backbone, type FeatureLevel } from '../models/index.js';
import { leastCommonMultiple } from '../models/blocks.js';
import { AnchorGenerator, octave } from './anchors.js';
import { defaultMaxSize, type DetectionInputOptions } from './detection_input.js';
import type { Detector } from './detector.js';
import { EncoderDecoder } from './encoder_decoder.js';
import { FasterRcnn } from './faster_rcnn.js';
import { FcnHead } from './fcn_head.js';
import { FpnHead } from './fpn_head.js';
import { PyramidBackbone, type PyramidSource } from './pyramid.js';
import { RetinaNet } from './retinanet.js';
import type { SegmentationHead } from './segmentation_head.js';
import { Segmenter } from './segmenter.js';
import { SetrUpHead } from './setr_up_head.js';
import { UPerHead } from './uper_head.js';

/** Names that `createSegmentationModel` knows. */
export const segmentationHeads = ['upernet', 'fpn', 'fcn', 'setr_pup', 'segmenter', 'segmenter_linear'] as const;
/** A name in `segmentationHeads`. */
export type SegmentationHeadName = (typeof segmentationHeads)[number];

/** Names that `createDetectionModel` knows. */
export const detectionHeads = ['faster_rcnn', 'retinanet'] as const;
/** A name in `detectionHeads`. */
export type DetectionHeadName = (typeof detectionHeads)[number];

/** Pyramids that a detector may stand on: torchvision's, or HorNet's with recursive gated convolutions. */
export const detectionNecks = ['fpn', 'horfpn'] as const;
/** A name in `detectionNecks`. */
export type DetectionNeckName = (typeof detectionNecks)[number];

/** Ways to fuse the levels of UPerNet: a convolution, or HorNet's recursive gated one. */
export const fusions = ['conv', 'gated'] as const;
/** A name in `fusions`. */
export type FusionName = (typeof fusions)[number];

/** What a pyramid is made of: four levels, or as many as there are. */
const LEVELS = 4;
/** Weight of an auxiliary head's loss in published recipes. */
const AUXILIARY = 0.4;

/**
 * Indices of the levels that a head reads: the four coarsest; of a transformer of one width and stride, the ends of
 * four equal groups of blocks.
 */
export function pickLevels(levels: readonly FeatureLevel[]): number[] {
  const count = levels.length;
  const isPlain = count > LEVELS && new Set(levels.map((level) => level.stride)).size === 1;
  if (isPlain) return Array.from({ length: LEVELS }, (_, i) => Math.round(((i + 1) * count) / LEVELS) - 1);
  return Array.from({ length: count }, (_, i) => i).slice(-LEVELS);
}

/** Sizes of `createSegmentationModel`. */
export interface SegmentationModelOptions {
  readonly classes: number;
  /**
   * Width of the head. Default: the head's published one (UPerNet 512, semantic FPN 128, FCN and SETR 256, Segmenter
   * the encoder's; its linear head has none).
   */
  readonly channels?: number;
  /** How `upernet` fuses its levels; other heads have no choice. Default `conv`. */
  readonly fusion?: FusionName;
}

/**
 * A segmentation model with a fresh head on a backbone, which gives up what only classification needs.
 *
 * - `upernet` and `fpn` read four levels, `upernet` with an FCN head beside it in training (weight 0.4);
 * - `fcn` and `setr_pup` read the last level;
 * - `segmenter` is the mask decoder behind a plain vision transformer, `segmenter_linear` one linear layer per token there,
 *   which has no width.
 *
 * @throws RangeError for an unknown head, or one that the backbone does not fit
 *
 * ```ts
 * const model = createSegmentationModel('fpn', createModel('resnet18'), { classes: 21 });
 * const adapter = graft(model, 'spm', { classes: 21 }, { head: 'train' });
 * ```
 */
export function createSegmentationModel(
  head: SegmentationHeadName,
  backbone: Backbone,
  { classes: numClasses, channels, fusion }: SegmentationModelOptions,
): EncoderDecoder | Segmenter {
  must(segmentationHeads, head, 'segmentation head');
  if (!Number.isInteger(numClasses) || numClasses < 1)
    throw new RangeError(`createSegmentationModel: classes must be a positive whole number, got ${numClasses}`);
  if (fusion !== undefined) {
    must(fusions, fusion, 'fusion');
    if (head !== 'upernet') throw new RangeError(`the fusion of levels can be chosen for upernet, not for ${head}`);
  }
  if (head === 'segmenter' || head === 'segmenter_linear') {
    if (!(backbone instanceof VisionTransformer))
      throw new RangeError(
        `the head ${head} reads a plain vision transformer's tokens; ${backbone.name} is none: take vit_small_patch16_224 ` +
          'or the like, or another head, such as upernet',
      );
    if (head === 'segmenter') {
      const decoder = channels === undefined ? {} : { dim: channels };
      return new Segmenter({ encoder: backbone, numClasses, decoder });
    }
    if (channels !== undefined)
      throw new RangeError('the head segmenter_linear is one layer on the tokens and has no width; leave channels out');
    return new Segmenter({ encoder: backbone, numClasses, decoder: 'linear' });
  }
  const { featureLevels: levels } = backbone;
  const width = channels === undefined ? {} : { channels };
  const picked = pickLevels(levels);
  const inChannels = picked.map((i) => levels[i]?.channels ?? 0);
  const [last = 0] = inChannels.slice(-1);
  const fcn = (index: number, options: { lossWeight?: number }): FcnHead =>
    new FcnHead({ inChannels: levels[index]?.channels ?? 0, inIndex: index, numClasses, ...width, ...options });
  const makers: Record<Exclude<SegmentationHeadName, 'segmenter' | 'segmenter_linear'>, () => SegmentationHead> = {
    upernet: () =>
      new UPerHead({ inChannels, inIndex: picked, numClasses, ...width, gated: fusion === 'gated' ? {} : null }),
    fpn: () => {
      const featureStrides = picked.map((i) => levels[i]?.stride ?? 0);
      return new FpnHead({ inChannels, inIndex: picked, featureStrides, numClasses, ...width });
    },
    fcn: () => fcn(levels.length - 1, {}),
    setr_pup: () => new SetrUpHead({ inChannels: last, inIndex: levels.length - 1, numClasses, ...width }),
  };
  const decodeHead = makers[head]();
  const beside = picked.at(-2);
  const auxiliary = head === 'upernet' && beside !== undefined;
  return new EncoderDecoder({
    backbone: backbone.toTrunk(),
    decodeHead,
    average: 'valid',
    ...(auxiliary && { auxiliaryHead: fcn(beside, { lossWeight: AUXILIARY }) }),
  });
}

/** Sizes of `createDetectionModel`. */
export interface DetectionModelOptions {
  /** Classes of objects; the background is not counted. */
  readonly classes: number;
  /** The shorter side that images are resized to. Default 800. */
  readonly size?: number;
  /** The longer side is at most this. Default 5/3 of `size`. */
  readonly maxSize?: number;
  /** Per channel, of pixels in 0..1. Default: the backbone's. */
  readonly mean?: readonly number[];
  readonly std?: readonly number[];
  /** Width of the pyramid. Default 256. */
  readonly channels?: number;
  /** The pyramid; levels beyond the backbone's are every second pixel of the one before in `horfpn`. Default `fpn`. */
  readonly neck?: DetectionNeckName;
  /**
   * Side of the smallest anchors, which double from level to level. Default: 8 times the finest stride, but at most 1/16 of
   * `size`, so that small images have anchors for their objects.
   */
  readonly anchor?: number;
  /** Width of Faster R-CNN's box head. Default: 4 times that of the pyramid, 1024. */
  readonly boxWidth?: number;
}

const LARGEST_SHARE = 16;
const LEAST_ANCHOR = 4;

/**
 * A detector with a fresh pyramid and head on a backbone, which gives up what only classification needs. The labels of its
 * targets and detections start at 1 for `faster_rcnn`, whose class 0 is the background, and at 0 for `retinanet`: see
 * `firstLabel`.
 *
 * @throws RangeError for an unknown head or sizes that are not positive
 *
 * ```ts
 * const model = createDetectionModel('faster_rcnn', createModel('resnet18'), { classes: 3, size: 320 });
 * const adapter = graft(model, 'conv_adapter', {}, { head: 'train' });
 * ```
 */
export function createDetectionModel(
  head: DetectionHeadName,
  backbone: Backbone,
  options: DetectionModelOptions,
): Detector {
  must(detectionHeads, head, 'detection head');
  const { classes, size = 800, maxSize = defaultMaxSize(size), channels: outChannels = 256, neck = 'fpn' } = options;
  must(detectionNecks, neck, 'pyramid');
  if (!Number.isInteger(classes) || classes < 1)
    throw new RangeError(`createDetectionModel: classes must be a positive whole number, got ${classes}`);
  const { mean = backbone.config.mean, std = backbone.config.std, boxWidth = 4 * outChannels } = options;
  const input = { minSize: size, maxSize, mean, std, sizeDivisible: paddingOf(backbone) };
  const all = pickLevels(backbone.featureLevels);
  const stride = backbone.featureLevels[all[0] ?? 0]?.stride ?? 4;
  const anchor = options.anchor ?? defaultAnchor(stride, size);
  // RetinaNet leaves the finest level out and adds two coarser ones, Faster R-CNN adds one.
  const [levels, extra, more] =
    head === 'retinanet'
      ? ([all.length > 1 ? all.slice(1) : all, 'p6p7_from_output', 2] as const)
      : ([all, 'pool', 1] as const);
  const gated = (inChannels: readonly number[]): HorFpn =>
    new HorFpn({ inChannels, outChannels, numOuts: inChannels.length + more });
  const pyramid = new PyramidBackbone(backbone.toTrunk(), {
    levels,
    ...(neck === 'horfpn' ? { neck: gated } : { extra, outChannels }),
  });
  return detectorOver(head, pyramid, { input, classes, anchor, boxWidth });
}

/** Sides of padded images are multiples of this: 32, and what the backbone asks for. @throws TypeError for no backbone */
export function paddingOf({ sizeMultiple }: Backbone): number {
  if (!Number.isInteger(sizeMultiple)) throw new TypeError('paddingOf: expected a backbone, which has a sizeMultiple');
  return leastCommonMultiple(32, sizeMultiple);
}

/** Side of the smallest anchors where nothing else is said. */
export function defaultAnchor(finestStride: number, size: number): number {
  return Math.max(LEAST_ANCHOR, Math.min(8 * finestStride, size / LARGEST_SHARE));
}

/**
 * A detector of this name over a pyramid, its anchors doubling from level to level.
 *
 * @param o.anchor side of the anchors of the finest level, in pixels
 * @param o.boxWidth width of the box head of `faster_rcnn`; `retinanet` has none
 */
export function detectorOver(
  head: DetectionHeadName,
  body: PyramidSource,
  o: { input: DetectionInputOptions; classes: number; anchor: number; boxWidth: number },
): Detector {
  const sides = body.levelNames.map((_, i) => o.anchor * 2 ** i);
  const { input, classes, boxWidth } = o;
  if (head === 'faster_rcnn') {
    const anchors = new AnchorGenerator(sides.map((side) => [side]));
    return new FasterRcnn({
      ...{ body, input, anchors, numClasses: classes + 1, boxHead: { kind: 'mlp', width: boxWidth } },
    });
  }
  return new RetinaNet({ body, input, anchors: new AnchorGenerator(sides.map(octave)), numClasses: classes });
}

/** The number of the first class in a detector's targets and detections. */
export function firstLabel(head: DetectionHeadName): 0 | 1 {
  return head === 'faster_rcnn' ? 1 : 0;
}

function must(names: readonly string[], name: string, what: string): void {
  if (!names.includes(name))
    throw new RangeError(`no ${what} '${name}'${suggestion(name, names)}; there are ${names.join(', ')}`);
}
