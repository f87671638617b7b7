/** Faster R-CNN on a feature pyramid. Ren et al., NeurIPS 2015, arXiv 1506.01497; as in torchvision 0.28.0 (BSD-3). */
import type { KeyMap } from '../checkpoint/index.js';
import type { Context } from '../nn/index.js';
import type { Tensor } from '../tensor/index.js';
import { AnchorGenerator } from './anchors.js';
import type { Detection, DetectionBatch } from './detection_input.js';
import { Detector, type DetectorOptions } from './detector.js';
import { BoxPredictor, RoiHeads, type RoiHeadsOptions } from './roi_heads.js';
import { RegionProposals, type RpnOptions } from './rpn.js';

/** Names of pyramids before torchvision 0.14, which had no member `0` for the norm to follow. */
export const OLD_PYRAMID_NAMES: KeyMap = [
  {
    kind: 'rename',
    from: /^backbone\.fpn\.(inner|layer)_blocks\.(\d+)\.(weight|bias)$/,
    to: 'backbone.fpn.$1_blocks.$2.0.$3',
  },
];

/** What a `FasterRcnn` is built from; `numClasses` counts the background. */
export interface FasterRcnnOptions extends DetectorOptions, RoiHeadsOptions {
  /** Default: one size per level, 32, 64, 128, ..., of ratios 0.5, 1, 2. */
  readonly anchors?: AnchorGenerator;
  readonly rpn?: RpnOptions;
  /** Levels of the pyramid that regions are pooled from. Default: all but those beyond the body's. */
  readonly pooledLevels?: readonly number[];
}

/**
 * See `FasterRcnnOptions`. Names are torchvision's; old files load too. Its losses are `loss_classifier`, `loss_box_reg`,
 * `loss_objectness` and `loss_rpn_box_reg`; labels are 1 to K - 1, for 0 is the background.
 */
export class FasterRcnn extends Detector {
  protected override readonly firstLabel = 1;
  readonly name = 'faster_rcnn';
  override readonly keyMap: KeyMap = [
    ...OLD_PYRAMID_NAMES,
    { kind: 'rename', from: /^rpn\.head\.conv\.(weight|bias)$/, to: 'rpn.head.conv.0.0.$1' },
  ];
  readonly rpn: RegionProposals;
  readonly roi_heads: RoiHeads;
  readonly #pooled: readonly number[];

  constructor(options: FasterRcnnOptions) {
    super(options);
    const { body: _body, pyramid: _pyramid, input: _input, anchors, rpn, pooledLevels, ...heads } = options;
    const { levelNames, outChannels: channels } = this.backbone;
    const generator = anchors ?? new AnchorGenerator(levelNames.map((_, i) => [32 * 2 ** i]));
    this.rpn = new RegionProposals(channels, generator, rpn);
    this.roi_heads = new RoiHeads(channels, heads);
    this.#pooled = pooledLevels ?? levelNames.flatMap((name, i) => (/^\d+$/.test(name) ? [i] : []));
  }

  #pooledOf(maps: readonly Tensor[]): Tensor[] {
    return this.#pooled.map((level) => maps[level] as Tensor);
  }

  batchLosses(batch: DetectionBatch, ctx: Context): Readonly<Record<string, Tensor>> {
    const maps = this.backbone.maps(batch.images, ctx);
    const { boxes, losses } = this.rpn.propose(batch, maps, 'train', ctx);
    return { ...this.roi_heads.losses(batch, this.#pooledOf(maps), boxes, ctx), ...losses };
  }

  batchDetections(batch: DetectionBatch, ctx: Context): Detection[] {
    const maps = this.backbone.maps(batch.images, ctx);
    const { boxes } = this.rpn.propose(batch, maps, 'test', ctx);
    return this.roi_heads.detect(batch, this.#pooledOf(maps), boxes, ctx);
  }

  /** A new box predictor in place of the old one; `numClasses` counts the background, too. */
  resetClassifier(numClasses: number): void {
    const { inFeatures } = this.roi_heads.box_predictor.cls_score;
    this.roi_heads.box_predictor = this.like(new BoxPredictor(inFeatures, numClasses));
  }
}
