/** Region proposals. Ren et al., NeurIPS 2015, arXiv 1506.01497; as in torchvision 0.28.0 (BSD-3). */
import { bceWithLogits, boxIou, type Context, Conv2d, nms, type Sequential } from '../nn/index.js';
import { aten, noGrad, type Tensor } from '../tensor/index.js';
import type { AnchorGenerator } from './anchors.js';
import {
  BETWEEN,
  BoxCoder,
  clipBoxes,
  isLarge,
  matchBoxes,
  type MatchOptions,
  sampleBalanced,
  smoothL1Sum,
  whereTrue,
} from './boxes.js';
import { sizeOf } from './conv_module.js';
import { initNormal, ManyOutputs, perAnchor, tower } from './dense_predictions.js';
import type { DetectionBatch } from './detection_input.js';

/** Steepness of smooth L1 for boxes. */
export const SMOOTH_L1_BETA = 1 / 9;

/** Settings that differ between training and test. */
export interface PerMode {
  readonly train: number;
  readonly test: number;
}

/** What a region proposal network can be told. */
export interface RpnOptions {
  /** 3x3 convolutions before the predictions. Default 1; Faster R-CNN v2 has 2. */
  readonly convDepth?: number;
  /** IoU from which an anchor is an object. Default 0.7. */
  readonly foregroundIou?: number;
  /** IoU below which it is background. Default 0.3. */
  readonly backgroundIou?: number;
  /** Anchors per image in the loss. Default 256. */
  readonly batchSize?: number;
  /** Largest share of objects among them. Default 0.5. */
  readonly positiveFraction?: number;
  /** Proposals of a level that enter the suppression. Default 2000 in training, 1000 in test. */
  readonly preNmsTop?: PerMode;
  /** Proposals of an image that leave it. Default 2000 in training, 1000 in test. */
  readonly postNmsTop?: PerMode;
  /** Default 0.7. */
  readonly nmsThreshold?: number;
  /** Default 0. */
  readonly scoreThreshold?: number;
}

/** Sides below this many pixels are dropped. */
const LEAST_SIDE = 1e-3;

/** One convolution tower for all levels, then objectness [B, A, H, W] and box offsets [B, 4 A, H, W]. */
class RpnHead extends ManyOutputs {
  readonly conv: Sequential;
  readonly cls_logits: Conv2d;
  readonly bbox_pred: Conv2d;

  constructor(channels: number, perCell: number, depth: number) {
    super();
    this.conv = tower(channels, depth);
    this.cls_logits = new Conv2d(channels, perCell, { kernelSize: 1 });
    this.bbox_pred = new Conv2d(channels, 4 * perCell, { kernelSize: 1 });
    initNormal(this);
  }

  predict(map: Tensor, ctx: Context): readonly [objectness: Tensor, offsets: Tensor] {
    const t = this.conv.run(map, ctx);
    return [this.cls_logits.run(t, ctx), this.bbox_pred.run(t, ctx)];
  }
}

/** What the RPN says of a batch. */
export interface Proposals {
  /** [N_i, 4] for each image, in the resized image; without gradient. */
  readonly boxes: readonly Tensor[];
  /** In training. */
  readonly losses?: { readonly loss_objectness: Tensor; readonly loss_rpn_box_reg: Tensor };
}

/** See `RpnOptions`; the predictions are `head.`. */
export class RegionProposals extends ManyOutputs {
  readonly head: RpnHead;
  readonly #anchors: AnchorGenerator;
  readonly #coder = new BoxCoder();
  readonly #o: Required<RpnOptions>;

  constructor(channels: number, anchors: AnchorGenerator, options: RpnOptions = {}) {
    super();
    this.#anchors = anchors;
    this.#o = {
      convDepth: 1,
      foregroundIou: 0.7,
      backgroundIou: 0.3,
      batchSize: 256,
      positiveFraction: 0.5,
      preNmsTop: { train: 2000, test: 1000 },
      postNmsTop: { train: 2000, test: 1000 },
      nmsThreshold: 0.7,
      scoreThreshold: 0,
      ...options,
    };
    this.head = new RpnHead(channels, anchors.perCell, this.#o.convDepth);
  }

  /** The likeliest boxes of each image. In the mode `train` also the losses, from the targets of the batch. */
  propose(batch: DetectionBatch, maps: readonly Tensor[], mode: 'train' | 'test', ctx: Context): Proposals {
    const anchors = this.#anchors.grid(sizeOf(batch.images), maps.map(sizeOf), batch.images);
    const levels = maps.map((map, i) => {
      const [objectness, offsets] = this.head.predict(map, ctx);
      const { perCell } = this.#anchors;
      return {
        anchors: anchors[i] as Tensor,
        objectness: perAnchor(objectness, perCell).squeeze(2),
        offsets: perAnchor(offsets, perCell),
      };
    });
    const boxes = noGrad(() => this.#select(batch, levels, mode));
    return mode === 'test' ? { boxes } : { boxes, losses: this.#losses(batch, levels) };
  }

  #select(batch: DetectionBatch, levels: readonly Level[], mode: 'train' | 'test'): Tensor[] {
    const { preNmsTop, postNmsTop, nmsThreshold, scoreThreshold } = this.#o;
    const best = levels.map(({ anchors, objectness, offsets }, level) => {
      const [logits, index] = objectness.topk(Math.min(preNmsTop[mode], objectness.shape[1] ?? 0), 1);
      const chosen = offsets.gather(1, index.unsqueeze(2).expand([-1, -1, 4]));
      const from = anchors.indexSelect(0, index.flatten()).view([...index.shape, 4]);
      return { logits, boxes: this.#coder.decode(chosen, from).squeeze(-2), level: index.fullLike(level) };
    });
    const join = (pick: (level: (typeof best)[number]) => Tensor): Tensor => aten.cat(best.map(pick), 1);
    const scores = join(({ logits }) => logits).sigmoid();
    const boxes = join((level) => level.boxes);
    const groups = join(({ level }) => level);
    return batch.sizes.map((size, i) => {
      const clipped = clipBoxes(boxes.select(0, i), size);
      const score = scores.select(0, i);
      const rows = whereTrue(isLarge(clipped, LEAST_SIDE).logicalAnd(score.ge(scoreThreshold)));
      const [some, theirs] = [clipped.indexSelect(0, rows), score.indexSelect(0, rows)];
      const kept = nms(some, theirs, nmsThreshold, groups.select(0, i).indexSelect(0, rows));
      return some.indexSelect(0, kept.slice(0, 0, postNmsTop[mode]));
    });
  }

  /** Mean BCE over the drawn anchors of all images, and smooth L1 of the objects among them over the number drawn. */
  #losses(batch: DetectionBatch, levels: readonly Level[]): NonNullable<Proposals['losses']> {
    const { foregroundIou: high, backgroundIou: low, batchSize, positiveFraction } = this.#o;
    const anchors = aten.cat(levels.map((level) => level.anchors));
    const objectness = aten.cat(
      levels.map((level) => level.objectness),
      1,
    );
    const offsets = aten.cat(
      levels.map((level) => level.offsets),
      1,
    );
    const parts = batch.targets.map(({ boxes }, i) => {
      const matched = matchBoxes(boxIou(boxes, anchors), { high, low, lowQuality: true } satisfies MatchOptions);
      const labels = labelsOf(matched);
      const { positive, negative } = sampleBalanced(labels, batchSize, positiveFraction);
      const rows = aten.cat([positive, negative]);
      const goals = boxes.indexSelect(0, matched.indexSelect(0, positive));
      return {
        logits: objectness.select(0, i).indexSelect(0, rows),
        labels: labels.indexSelect(0, rows),
        offsets: offsets.select(0, i).indexSelect(0, positive),
        goals: this.#coder.encode(goals, anchors.indexSelect(0, positive)),
      };
    });
    const join = (pick: (part: (typeof parts)[number]) => Tensor): Tensor => aten.cat(parts.map(pick));
    const logits = join((part) => part.logits);
    const boxLoss = smoothL1Sum(
      join((part) => part.offsets),
      join(({ goals }) => goals),
      SMOOTH_L1_BETA,
    );
    return {
      loss_objectness: bceWithLogits(logits, join(({ labels }) => labels).to(logits.dtype)),
      loss_rpn_box_reg: boxLoss.div(logits.numel()),
    };
  }
}

interface Level {
  /** [N, 4]. */
  readonly anchors: Tensor;
  /** [B, N]. */
  readonly objectness: Tensor;
  /** [B, N, 4]. */
  readonly offsets: Tensor;
}

/** 1 for a match, 0 for background, -1 for neither. */
function labelsOf(matched: Tensor): Tensor {
  return matched.ge(0).to('int64').sub(matched.eq(BETWEEN).to('int64'));
}
