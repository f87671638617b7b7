/** Boxes against anchors: coding, matching, sampling, losses; as in torchvision 0.28.0 (BSD-3). Boxes are (x1, y1, x2, y2). */
import { aten, noGrad, randperm, tensor, type Tensor } from '../tensor/index.js';
import { bceWithLogits, boxArea, intersectionArea } from '../nn/index.js';

/** Largest logarithm of a box's side over its anchor's that is decoded. */
const MAX_LOG = Math.log(1000 / 16);

/** Centers and sides of boxes [..., 4]: each [..., 2]. */
function centered(boxes: Tensor): { center: Tensor; side: Tensor } {
  const low = boxes.narrow(-1, 0, 2);
  const side = boxes.narrow(-1, 2, 2).sub(low);
  return { center: low.add(side.mul(0.5)), side };
}

/**
 * Boxes as offsets from anchors: (wx (gx - ax) / aw, wy (gy - ay) / ah, ww ln(gw / aw), wh ln(gh / ah)). Girshick et
 * al., CVPR 2014, arXiv 1311.2524, appendix C.
 */
export class BoxCoder {
  readonly weights: readonly [x: number, y: number, width: number, height: number];

  /** @param weights default 1 each */
  constructor(weights: readonly [number, number, number, number] = [1, 1, 1, 1]) {
    this.weights = weights;
  }

  #weights(like: Tensor): Tensor {
    return tensor([...this.weights], { dtype: like.dtype, device: like.device });
  }

  /** Boxes [N, 4] relative to as many anchors: [N, 4]. */
  encode(boxes: Tensor, anchors: Tensor): Tensor {
    const [box, anchor] = [centered(boxes), centered(anchors)];
    const moved = box.center.sub(anchor.center).div(anchor.side);
    return aten.cat([moved, box.side.div(anchor.side).log()], -1).mul(this.#weights(anchors));
  }

  /** The inverse, for C boxes per anchor: codes [..., 4 C] and anchors [..., 4] to boxes [..., C, 4]. Sides are at most 62.5 times the anchor's. */
  decode(codes: Tensor, anchors: Tensor): Tensor {
    const [...outer] = anchors.shape.slice(0, -1);
    const each = codes.reshape([...outer, (codes.shape.at(-1) ?? 0) / 4, 4]).div(this.#weights(codes));
    const anchor = centered(anchors.to(codes.dtype).unsqueeze(-2));
    const center = each.narrow(-1, 0, 2).mul(anchor.side).add(anchor.center);
    const half = each.narrow(-1, 2, 2).clampMax(MAX_LOG).exp().mul(anchor.side).mul(0.5);
    return aten.cat([center.sub(half), center.add(half)], -1);
  }
}

/** Boxes [..., 4] cut off at the borders of an image. */
export function clipBoxes(boxes: Tensor, [height, width]: readonly [number, number]): Tensor {
  const [x1, y1, x2, y2] = boxes.unbind(-1) as [Tensor, Tensor, Tensor, Tensor];
  const [x, y] = [(t: Tensor) => t.clamp(0, width), (t: Tensor) => t.clamp(0, height)];
  return aten.stack([x(x1), y(y1), x(x2), y(y2)], -1);
}

/** Which boxes [N, 4] have both sides of at least `size`: bool [N]. */
export function isLarge(boxes: Tensor, size: number): Tensor {
  const { side } = centered(boxes);
  return side.ge(size).all(1);
}

/** Indices of the true elements of a bool [N]. */
export function whereTrue(mask: Tensor): Tensor {
  return mask.nonzero().squeeze(1);
}

/** What `matchBoxes` writes for a box that no annotated box matches. */
const BACKGROUND = -1;
/** What it writes for a box that matches neither well nor badly. */
export const BETWEEN = -2;

/** Overlaps that decide what a box stands for. */
export interface MatchOptions {
  /** From this IoU on it stands for its best annotated box. */
  readonly high: number;
  /** Below this IoU it is background. */
  readonly low: number;
  /** Whether the boxes that overlap an annotated box most stand for their best one, however small the overlap. Default false. */
  readonly lowQuality?: boolean;
}

/**
 * The annotated box that each box stands for, the first of equals.
 *
 * @param iou [G, N]: annotated boxes against boxes
 * @returns int64 [N]: an index, `BACKGROUND` or `BETWEEN`
 */
export function matchBoxes(iou: Tensor, { high, low, lowQuality = false }: MatchOptions): Tensor {
  const [annotated = 0, count = 0] = iou.shape;
  if (annotated === 0) return iou.newFull([count], BACKGROUND, { dtype: 'int64' });
  return noGrad(() => {
    const [best, index] = iou.max(0);
    const matched = aten.where(best.lt(low), index.newFull([], BACKGROUND), index);
    const sorted = aten.where(best.ge(low).logicalAnd(best.lt(high)), index.newFull([], BETWEEN), matched);
    if (!lowQuality) return sorted;
    const isBestOfOne = iou.eq(iou.amax(1, true)).any(0);
    return aten.where(isBestOfOne, index, sorted);
  });
}

/** Rows that take part in a loss. */
export interface Sample {
  /** int64 [P]. */
  readonly positive: Tensor;
  /** int64 [M]. */
  readonly negative: Tensor;
}

/**
 * At most `size` rows at random: at most the given share of positive ones, filled up with negative ones.
 * @param labels [N]: above 0 positive, 0 negative, below 0 never drawn
 */
export function sampleBalanced(labels: Tensor, size: number, positiveFraction: number): Sample {
  return noGrad(() => {
    const draw = (rows: Tensor, most: number): Tensor => {
      const [count = 0] = rows.shape;
      if (most >= count) return rows;
      return rows.indexSelect(0, randperm(count, { device: rows.device }).narrow(0, 0, most));
    };
    const positive = draw(whereTrue(labels.ge(1)), Math.trunc(size * positiveFraction));
    return { positive, negative: draw(whereTrue(labels.eq(0)), size - (positive.shape[0] ?? 0)) };
  });
}

/** Σ of smooth L1: x² / (2β) for |x| < β, else |x| - β / 2. */
export function smoothL1Sum(input: Tensor, target: Tensor, beta: number): Tensor {
  return aten.smoothL1Loss(input, target, 2, beta);
}

/**
 * 1 - I / U + (E - U) / E per row, with E the area of the smallest box around both; [N, 4] twice to [N]. Rezatofighi et
 * al., CVPR 2019, arXiv 1902.09630.
 */
export function giouLoss(boxes: Tensor, targets: Tensor, eps = 1e-7): Tensor {
  const overlap = intersectionArea(boxes, targets);
  const union = boxArea(boxes).add(boxArea(targets)).sub(overlap);
  const low = aten.minimum(boxes.narrow(-1, 0, 2), targets.narrow(-1, 0, 2));
  const high = aten.maximum(boxes.narrow(-1, 2, 2), targets.narrow(-1, 2, 2));
  const enclosing = boxArea(aten.cat([low, high], -1));
  const giou = overlap.div(union.add(eps)).sub(enclosing.sub(union).div(enclosing.add(eps)));
  return giou.neg().add(1);
}

/** How much a focal loss favors what. */
export interface FocalOptions {
  /** Weight of positives; negatives weigh 1 - alpha. Default 0.25. */
  readonly alpha?: number;
  /** Default 2. */
  readonly gamma?: number;
}

/**
 * α_t (1 - p_t)^γ BCE per element, with p_t the probability of the true answer; shapes of `logits` and `targets` (0 or
 * 1) are equal. Lin et al., ICCV 2017, arXiv 1708.02002, equation 5.
 */
export function sigmoidFocalLoss(logits: Tensor, targets: Tensor, options: FocalOptions = {}): Tensor {
  const { alpha = 0.25, gamma = 2 } = options;
  const p = logits.sigmoid();
  const negatives = targets.neg().add(1);
  const wrong = p.mul(negatives).add(p.neg().add(1).mul(targets));
  const weight = targets.mul(alpha).add(negatives.mul(1 - alpha));
  return bceWithLogits(logits, targets, { reduction: 'none' }).mul(wrong.pow(gamma)).mul(weight);
}
