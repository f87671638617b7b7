/** The second stage of Faster R-CNN: classes and boxes of proposals. arXiv 1506.01497; torchvision 0.28.0 (BSD-3). */
import {
  boxIou,
  type Context,
  Conv2d,
  crossEntropy,
  Flatten,
  init,
  Linear,
  Module,
  nms,
  ReLU,
  Sequential,
} from '../nn/index.js';
import { aten, type Tensor } from '../tensor/index.js';
import { BETWEEN, BoxCoder, clipBoxes, isLarge, matchBoxes, sampleBalanced, smoothL1Sum, whereTrue } from './boxes.js';
import { ManyOutputs, withReLU } from './dense_predictions.js';
import { type Detection, type DetectionBatch, scaleBoxes } from './detection_input.js';
import { convAndNorm, type ConvNormChoice } from './pyramid.js';
import { SMOOTH_L1_BETA } from './rpn.js';
import { RoiPool, type RoiPoolOptions } from './roi_pool.js';

/** How pooled regions become vectors. */
export type BoxHeadOptions =
  /** Two linear layers: `fc6`, `fc7`. `width` default 1024. */
  | { readonly kind: 'mlp'; readonly width?: number }
  /** 3x3 convolutions with their norms, then linear layers: Faster R-CNN v2. */
  | {
      readonly kind: 'conv';
      /** Width of each convolution. Default four of 256. */
      readonly convs?: readonly number[];
      /** Width of each linear layer. Default 1024. */
      readonly linears?: readonly number[];
      /** Default `batch`. */
      readonly norm?: ConvNormChoice;
    };

/** What the second stage of a detector can be told. */
export interface RoiHeadsOptions {
  /** Classes, the background (column 0) included. */
  readonly numClasses: number;
  readonly pool?: RoiPoolOptions;
  /** Default: `mlp` of 1024. */
  readonly boxHead?: BoxHeadOptions;
  /** IoU from which a proposal stands for an object. Default 0.5. */
  readonly foregroundIou?: number;
  /** IoU below which it is background. Default 0.5. */
  readonly backgroundIou?: number;
  /** Proposals per image in the loss. Default 512. */
  readonly batchSize?: number;
  /** Largest share of objects among them. Default 0.25. */
  readonly positiveFraction?: number;
  /** Weights of the box offsets. Default 10, 10, 5, 5. */
  readonly boxWeights?: readonly [number, number, number, number];
  /** Detections must exceed it. Default 0.05. */
  readonly scoreThreshold?: number;
  /** Default 0.5. */
  readonly nmsThreshold?: number;
  /** Default 100. */
  readonly detectionsPerImage?: number;
}

/** Sides below this many pixels are dropped. */
const LEAST_SIDE = 1e-2;

/** Flattened regions through `fc6` and `fc7`, each with a ReLU. */
class TwoLayerHead extends Module {
  readonly fc6: Linear;
  readonly fc7: Linear;

  constructor(inFeatures: number, width: number) {
    super();
    this.fc6 = new Linear(inFeatures, width);
    this.fc7 = new Linear(width, width);
  }

  forward(x: Tensor, ctx: Context): Tensor {
    return this.fc7.run(this.fc6.run(x.flatten(1), ctx).relu(), ctx).relu();
  }
}

/** Numbered: convolutions with norm and ReLU, the flattening, linear layers with a ReLU each. */
function convHead(
  channels: number,
  cells: number,
  { convs = [256, 256, 256, 256], linears = [1024], norm = 'batch' }: Extract<BoxHeadOptions, { kind: 'conv' }>,
): { module: Sequential; width: number } {
  const module = new Sequential();
  let from = channels;
  for (const width of convs) {
    const input = from;
    module.push(withReLU(convAndNorm((bias) => new Conv2d(input, width, { kernelSize: 3, padding: 1, bias }), norm)));
    from = width;
  }
  module.push(new Flatten());
  from *= cells;
  for (const width of linears) {
    module.push(new Linear(from, width)).push(new ReLU());
    from = width;
  }
  module.apply((part) => {
    if (part instanceof Conv2d) init.kaimingNormal_(part.weight, { mode: 'fan_out', nonlinearity: 'relu' });
  });
  return { module, width: from };
}

/** Scores of the classes and box offsets for each of them. */
export class BoxPredictor extends ManyOutputs {
  readonly cls_score: Linear;
  readonly bbox_pred: Linear;

  constructor(inFeatures: number, numClasses: number) {
    super();
    this.cls_score = new Linear(inFeatures, numClasses);
    this.bbox_pred = new Linear(inFeatures, 4 * numClasses);
  }

  /** Vectors [N, C] to logits [N, K] and offsets [N, 4 K]. */
  predict(x: Tensor, ctx: Context): readonly [logits: Tensor, offsets: Tensor] {
    return [this.cls_score.run(x, ctx), this.bbox_pred.run(x, ctx)];
  }
}

/** See `RoiHeadsOptions`: `box_head.`, `box_predictor.`. */
export class RoiHeads extends ManyOutputs {
  readonly box_head: Module;
  box_predictor: BoxPredictor;
  readonly #pool: RoiPool;
  readonly #coder: BoxCoder;
  readonly #o: Required<Omit<RoiHeadsOptions, 'pool' | 'boxHead' | 'boxWeights' | 'numClasses'>>;

  /** @param channels of the pyramid's levels */
  constructor(channels: number, options: RoiHeadsOptions) {
    super();
    const { numClasses, pool = {}, boxHead = { kind: 'mlp' }, boxWeights = [10, 10, 5, 5], ...rest } = options;
    this.#pool = new RoiPool(pool);
    this.#coder = new BoxCoder(boxWeights);
    this.#o = {
      foregroundIou: 0.5,
      backgroundIou: 0.5,
      batchSize: 512,
      positiveFraction: 0.25,
      scoreThreshold: 0.05,
      nmsThreshold: 0.5,
      detectionsPerImage: 100,
      ...rest,
    };
    const { outputSize: size } = this.#pool;
    const cells = typeof size === 'number' ? size * size : size[0] * size[1];
    if (boxHead.kind === 'mlp') {
      const width = boxHead.width ?? 1024;
      this.box_head = new TwoLayerHead(channels * cells, width);
      this.box_predictor = new BoxPredictor(width, numClasses);
    } else {
      const { module, width } = convHead(channels, cells, boxHead);
      this.box_head = module;
      this.box_predictor = new BoxPredictor(width, numClasses);
    }
  }

  #predict(
    batch: DetectionBatch,
    maps: readonly Tensor[],
    boxes: readonly Tensor[],
    ctx: Context,
  ): readonly [Tensor, Tensor] {
    const regions = this.#pool.pool(maps, boxes, batch.sizes);
    return this.box_predictor.predict(this.box_head.run(regions, ctx), ctx);
  }

  /** Mean cross entropy over the drawn proposals of all images, and smooth L1 of the objects among them over the number drawn. */
  losses(
    batch: DetectionBatch,
    maps: readonly Tensor[],
    proposals: readonly Tensor[],
    ctx: Context,
  ): { loss_classifier: Tensor; loss_box_reg: Tensor } {
    const drawn = batch.targets.map((target, i) => this.#draw(proposals[i] as Tensor, target));
    const join = (pick: (one: (typeof drawn)[number]) => Tensor): Tensor => aten.cat(drawn.map(pick));
    const [logits, offsets] = this.#predict(
      batch,
      maps,
      drawn.map(({ boxes }) => boxes),
      ctx,
    );
    const labels = join((one) => one.labels);
    const objects = whereTrue(labels.gt(0));
    const classes = labels.indexSelect(0, objects);
    const [count = 0, columns = 0] = offsets.shape;
    const chosen = offsets.view([count, columns / 4, 4]).index(objects, classes);
    const goals = join((one) => one.goals).indexSelect(0, objects);
    return {
      // Means that are 0, not NaN, when there was nothing to draw.
      loss_classifier: crossEntropy(logits, labels, { reduction: 'sum' }).div(Math.max(count, 1)),
      loss_box_reg: smoothL1Sum(chosen, goals, SMOOTH_L1_BETA).div(Math.max(count, 1)),
    };
  }

  /** Proposals and annotated boxes that take part in the loss, with class and offsets of what they stand for. */
  #draw(proposals: Tensor, { boxes, labels }: DetectionBatch['targets'][number]) {
    const { foregroundIou: high, backgroundIou: low, batchSize, positiveFraction } = this.#o;
    const all = aten.cat([proposals, boxes.to(proposals.dtype)]);
    const matched = matchBoxes(boxIou(boxes, all), { high, low });
    const nothing = matched.newZeros([1]);
    // Background reads any row; a box that is neither gets the label -1 and is never drawn.
    const classes = aten.cat([labels, nothing]).indexSelect(0, matched.clampMin(0));
    const own = classes.mul(matched.ge(0)).sub(matched.eq(BETWEEN).to('int64'));
    const { positive, negative } = sampleBalanced(own, batchSize, positiveFraction);
    const rows = aten.cat([positive, negative]);
    const chosen = all.indexSelect(0, rows);
    const theirs = aten.cat([boxes.to(all.dtype), all.newZeros([1, 4])]);
    const goals = theirs.indexSelect(0, matched.indexSelect(0, rows).clampMin(0));
    return { boxes: chosen, labels: own.indexSelect(0, rows), goals: this.#coder.encode(goals, chosen) };
  }

  /** What is found, in pixels of the original images. */
  detect(batch: DetectionBatch, maps: readonly Tensor[], proposals: readonly Tensor[], ctx: Context): Detection[] {
    const [logits, offsets] = this.#predict(batch, maps, proposals, ctx);
    const counts = proposals.map((boxes) => boxes.shape[0] ?? 0);
    const scores = logits.softmax(-1).splitWithSizes(counts);
    const boxes = this.#coder.decode(offsets, aten.cat([...proposals])).splitWithSizes(counts);
    return batch.sizes.map((size, i) => {
      const found = this.#select(boxes[i] as Tensor, scores[i] as Tensor, size);
      return { ...found, boxes: scaleBoxes(found.boxes, size, batch.originalSizes[i] ?? size) };
    });
  }

  #select(boxes: Tensor, scores: Tensor, size: readonly [number, number]): Detection {
    const { scoreThreshold, nmsThreshold, detectionsPerImage } = this.#o;
    const [count = 0, classes = 0] = scores.shape;
    // Column 0 is the background.
    const each = clipBoxes(boxes.narrow(1, 1, classes - 1), size).reshape([-1, 4]);
    const score = scores.narrow(1, 1, classes - 1).reshape([-1]);
    const likely = whereTrue(score.gt(scoreThreshold));
    const rows = likely.indexSelect(0, whereTrue(isLarge(each.indexSelect(0, likely), LEAST_SIDE)));
    const label = rows.remainder(Math.max(classes - 1, 1)).add(1);
    const [some, theirs] = [each.indexSelect(0, rows), score.indexSelect(0, rows)];
    const kept = nms(some, theirs, nmsThreshold, label).slice(0, 0, Math.min(detectionsPerImage, count * classes));
    return {
      boxes: some.indexSelect(0, kept),
      labels: label.indexSelect(0, kept),
      scores: theirs.indexSelect(0, kept),
    };
  }
}
