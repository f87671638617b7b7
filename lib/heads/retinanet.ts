/** RetinaNet. Lin et al., ICCV 2017, arXiv 1708.02002; as in torchvision 0.28.0 (BSD-3). */
import type { KeyMap } from '../checkpoint/index.js';
import { boxIou, type Context, Conv2d, init, nms, type Sequential } from '../nn/index.js';
import { aten, type Tensor } from '../tensor/index.js';
import { AnchorGenerator, octave } from './anchors.js';
import { BETWEEN, BoxCoder, clipBoxes, giouLoss, matchBoxes, sigmoidFocalLoss, whereTrue } from './boxes.js';
import { sizeOf } from './conv_module.js';
import { initNormal, ManyOutputs, perAnchor, tower } from './dense_predictions.js';
import { type Detection, type DetectionBatch, type DetectionTarget, scaleBoxes } from './detection_input.js';
import { Detector, type DetectorOptions } from './detector.js';
import { OLD_PYRAMID_NAMES } from './faster_rcnn.js';
import type { ConvNormChoice } from './pyramid.js';

/** What a RetinaNet can be told. */
export interface RetinaNetOptions extends DetectorOptions {
  /** Columns of the scores, which are the labels themselves: there is no background. */
  readonly numClasses: number;
  /** Default: three sizes per level from 32, 64, ..., of ratios 0.5, 1, 2. */
  readonly anchors?: AnchorGenerator;
  /** Of the towers. Default `none`; v2 has GroupNorm of 32 groups. */
  readonly headNorm?: ConvNormChoice;
  /** On offsets (`l1`, the default), or on decoded boxes (v2). */
  readonly boxLoss?: 'l1' | 'giou';
  /** IoU from which an anchor is an object. Default 0.5. */
  readonly foregroundIou?: number;
  /** IoU below which it is background. Default 0.4. */
  readonly backgroundIou?: number;
  /** Default 0.25. */
  readonly focalAlpha?: number;
  /** Default 2. */
  readonly focalGamma?: number;
  /** Detections must exceed it. Default 0.05. */
  readonly scoreThreshold?: number;
  /** Candidates of a level. Default 1000. */
  readonly topCandidates?: number;
  /** Default 0.5. */
  readonly nmsThreshold?: number;
  /** Default 300. */
  readonly detectionsPerImage?: number;
}

/** Convolutions in each of the two towers. */
const TOWER_DEPTH = 4;
/** Probability of an object at the start. */
const PRIOR = 0.01;

class ClassificationHead extends ManyOutputs {
  readonly conv: Sequential;
  cls_logits: Conv2d;

  constructor(channels: number, perCell: number, numClasses: number, norm: ConvNormChoice) {
    super();
    this.conv = tower(channels, TOWER_DEPTH, norm);
    this.cls_logits = classifier(channels, perCell * numClasses);
    initNormal(this.conv);
  }
}

function classifier(channels: number, columns: number): Conv2d {
  const layer = new Conv2d(channels, columns, { kernelSize: 3, padding: 1 });
  init.normal_(layer.weight, 0, 0.01);
  if (layer.bias) init.constant_(layer.bias, -Math.log((1 - PRIOR) / PRIOR));
  return layer;
}

class RegressionHead extends ManyOutputs {
  readonly conv: Sequential;
  readonly bbox_reg: Conv2d;

  constructor(channels: number, perCell: number, norm: ConvNormChoice) {
    super();
    this.conv = tower(channels, TOWER_DEPTH, norm);
    this.bbox_reg = new Conv2d(channels, 4 * perCell, { kernelSize: 3, padding: 1 });
    initNormal(this);
  }
}

/** Two towers, shared by all levels: scores of the classes and box offsets of every anchor. */
class RetinaNetHead extends ManyOutputs {
  readonly classification_head: ClassificationHead;
  readonly regression_head: RegressionHead;

  constructor(
    readonly channels: number,
    readonly perCell: number,
    numClasses: number,
    norm: ConvNormChoice,
  ) {
    super();
    this.classification_head = new ClassificationHead(channels, perCell, numClasses, norm);
    this.regression_head = new RegressionHead(channels, perCell, norm);
  }

  /** A level to logits [B, N, K] and offsets [B, N, 4]. */
  predict(map: Tensor, ctx: Context): { logits: Tensor; offsets: Tensor } {
    const { classification_head: c, regression_head: r } = this;
    return {
      logits: perAnchor(c.cls_logits.run(c.conv.run(map, ctx), ctx), this.perCell),
      offsets: perAnchor(r.bbox_reg.run(r.conv.run(map, ctx), ctx), this.perCell),
    };
  }

  /** A fresh last convolution for other classes. */
  resetClassifier(numClasses: number): Conv2d {
    return (this.classification_head.cls_logits = classifier(this.channels, this.perCell * numClasses));
  }
}

/**
 * See `RetinaNetOptions`. Names are torchvision's; old files load too. Its losses are `classification` and
 * `bbox_regression`; labels are 0 to K - 1.
 */
export class RetinaNet extends Detector {
  readonly name = 'retinanet';
  override readonly keyMap: KeyMap = [
    ...OLD_PYRAMID_NAMES,
    // Towers without norms were numbered with their ReLUs: 0, 2, 4, 6.
    ...Array.from({ length: TOWER_DEPTH }, (_, i) => ({
      kind: 'rename' as const,
      from: new RegExp(`^head\\.(classification|regression)_head\\.conv\\.${2 * i}\\.(weight|bias)$`),
      to: `head.$1_head.conv.${i}.0.$2`,
    })),
  ];
  readonly head: RetinaNetHead;
  readonly #anchors: AnchorGenerator;
  readonly #coder = new BoxCoder();
  readonly #o: Required<Omit<RetinaNetOptions, keyof DetectorOptions | 'anchors' | 'headNorm' | 'numClasses'>>;

  constructor(options: RetinaNetOptions) {
    super({ ...options, pyramid: { extra: 'p6p7_from_output', ...options.pyramid } });
    const { body: _body, pyramid: _pyramid, input: _input, anchors, headNorm = 'none', numClasses, ...rest } = options;
    this.#anchors = anchors ?? new AnchorGenerator(this.backbone.levelNames.map((_, i) => octave(32 * 2 ** i)));
    this.#o = {
      boxLoss: 'l1',
      foregroundIou: 0.5,
      backgroundIou: 0.4,
      focalAlpha: 0.25,
      focalGamma: 2,
      scoreThreshold: 0.05,
      topCandidates: 1000,
      nmsThreshold: 0.5,
      detectionsPerImage: 300,
      ...rest,
    };
    this.head = new RetinaNetHead(this.backbone.outChannels, this.#anchors.perCell, numClasses, headNorm);
  }

  #levels(batch: DetectionBatch, ctx: Context) {
    const maps = this.backbone.maps(batch.images, ctx);
    const anchors = this.#anchors.grid(sizeOf(batch.images), maps.map(sizeOf), batch.images);
    return maps.map((map, i) => ({ ...this.head.predict(map, ctx), anchors: anchors[i] as Tensor }));
  }

  /** Per image over the number of objects, then the mean over the images. */
  batchLosses(batch: DetectionBatch, ctx: Context): Readonly<Record<string, Tensor>> {
    const levels = this.#levels(batch, ctx);
    const anchors = aten.cat(levels.map((level) => level.anchors));
    const [logits, offsets] = (['logits', 'offsets'] as const).map((key) =>
      aten.cat(
        levels.map((level) => level[key]),
        1,
      ),
    ) as [Tensor, Tensor];
    const parts = batch.targets.map((target, i) =>
      this.#imageLosses(target, anchors, logits.select(0, i), offsets.select(0, i)),
    );
    const mean = (key: 'classification' | 'boxes'): Tensor => aten.stack(parts.map((part) => part[key])).mean();
    return { classification: mean('classification'), bbox_regression: mean('boxes') };
  }

  #imageLosses({ boxes, labels }: DetectionTarget, anchors: Tensor, logits: Tensor, offsets: Tensor) {
    const { foregroundIou: high, backgroundIou: low, focalAlpha: alpha, focalGamma: gamma, boxLoss } = this.#o;
    const matched = matchBoxes(boxIou(boxes, anchors), { high, low, lowQuality: true });
    const objects = whereTrue(matched.ge(0));
    const match = matched.indexSelect(0, objects);
    const count = Math.max(1, objects.shape[0] ?? 0);

    const goal = aten.zerosLike(logits);
    const one = goal.newOnes([]);
    aten.indexPut_(goal, [objects, labels.indexSelect(0, match)], one);
    const counts = matched.ne(BETWEEN).to(logits.dtype).unsqueeze(1);
    const classification = sigmoidFocalLoss(logits, goal, { alpha, gamma }).mul(counts).sum().div(count);

    const [goals, from] = [boxes.indexSelect(0, match), anchors.indexSelect(0, objects)];
    const predicted = offsets.indexSelect(0, objects);
    const sum =
      boxLoss === 'l1'
        ? predicted.sub(this.#coder.encode(goals, from)).abs().sum()
        : giouLoss(this.#coder.decode(predicted, from).squeeze(-2), goals).sum();
    return { classification, boxes: sum.div(count) };
  }

  batchDetections(batch: DetectionBatch, ctx: Context): Detection[] {
    const levels = this.#levels(batch, ctx);
    return batch.sizes.map((size, i) => {
      const candidates = levels.map(({ logits, offsets, anchors }) =>
        this.#candidates(logits.select(0, i), offsets.select(0, i), anchors, size),
      );
      const join = (key: keyof Detection): Tensor => aten.cat(candidates.map((level) => level[key]));
      const [boxes, scores, labels] = [join('boxes'), join('scores'), join('labels')];
      const kept = nms(boxes, scores, this.#o.nmsThreshold, labels).slice(0, 0, this.#o.detectionsPerImage);
      return {
        boxes: scaleBoxes(boxes.indexSelect(0, kept), size, batch.originalSizes[i] ?? size),
        labels: labels.indexSelect(0, kept),
        scores: scores.indexSelect(0, kept),
      };
    });
  }

  /** The best pairs of anchor and class of one level of one image. */
  #candidates(logits: Tensor, offsets: Tensor, anchors: Tensor, size: readonly [number, number]): Detection {
    const { scoreThreshold, topCandidates } = this.#o;
    const classes = logits.shape[1] ?? 1;
    const all = logits.sigmoid().flatten();
    const likely = whereTrue(all.gt(scoreThreshold));
    const [scores, order] = all.indexSelect(0, likely).topk(Math.min(topCandidates, likely.shape[0] ?? 0));
    const chosen = likely.indexSelect(0, order);
    const rows = aten.floorDivide(chosen, classes);
    const boxes = this.#coder.decode(offsets.indexSelect(0, rows), anchors.indexSelect(0, rows)).squeeze(-2);
    return { boxes: clipBoxes(boxes, size), labels: chosen.remainder(classes), scores };
  }

  resetClassifier(numClasses: number): void {
    this.like(this.head.resetClassifier(numClasses));
  }
}
