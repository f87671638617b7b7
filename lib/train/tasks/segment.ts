/** Images to a class for each pixel. */
import { SEGMENTATION_LABELS } from '../../adapters/index.js';
import { EncoderDecoder, slideInference, type SegmentOptions } from '../../heads/index.js';
import { SegmentationMeter, type SegmentationResult } from '../../metrics/index.js';
import { Context, IGNORE_INDEX, pixelCrossEntropy, type Module } from '../../nn/index.js';
import { noGrad, type Tensor } from '../../tensor/index.js';
import type { Score } from '../events.js';
import type { TaskBatch } from '../options.js';
import { DeviceSum } from './device_sum.js';
import { maybeAutocast, withAuxiliary, type Meter, type Scoring, type Task } from './task.js';

/** Images with the classes of their pixels: `LoadedMasks`. */
export interface MaskBatch extends TaskBatch {
  /** [B, 3, H, W], normalized. */
  readonly images: Tensor;
  /** int64 [B, H, W]; 255 does not count. */
  readonly masks: Tensor;
}

/** Mean IoU first among the `metrics` (mIoU, mAcc, aAcc), and everything by class. */
export interface SegmentationEvaluation extends Score {
  readonly segmentation: SegmentationResult;
}

/** Loss and logits [B, K, H, W] of a batch. */
export interface SegmentationStep {
  readonly loss: Tensor;
  readonly logits: Tensor;
}

/** See `segmentTask`. */
export interface SegmentTaskOptions {
  /** Number of classes. */
  readonly classes: number;
  /** Windows for scoring images larger than those of training; default: whole images. */
  readonly windows?: SegmentOptions['windows'];
  /**
   * Loss without the auxiliary losses of the context, and logits. Default: the losses of an `EncoderDecoder`'s heads;
   * for other models the cross entropy of the pixels that count.
   */
  readonly loss?: (model: Module, images: Tensor, masks: Tensor, ctx: Context) => SegmentationStep;
}

/**
 * Semantic segmentation, for an `EncoderDecoder` or any model from images [B, 3, H, W] to logits [B, K, H, W]. The masks are
 * among the inputs of the training pass, for the modules and grafts that have losses of their own (`SEGMENTATION_LABELS`).
 * Training reports the share of pixels that are right, validation the mean IoU.
 */
export function segmentTask(options: SegmentTaskOptions): Task<MaskBatch, SegmentationEvaluation> {
  const { classes, loss: lossOf = defaultLoss } = options;
  return {
    id: 'segment',
    settings: { task: 'segment', classes, ...(options.loss && { loss: 'custom loss' }) },
    step(model, batch, device) {
      const images = batch.images.to(device);
      const masks = batch.masks.to(device);
      const ctx = new Context({ inputs: { [SEGMENTATION_LABELS]: masks } });
      const { loss, logits } = lossOf(model, images, masks, ctx);
      return { loss: withAuxiliary(loss, ctx), correct: rightPixels(logits, masks) };
    },
    meter: (model, how) => new SegmentationScore(model, how, options),
    free({ images, masks }) {
      images.dispose();
      masks.dispose();
    },
  };
}

function defaultLoss(model: Module, images: Tensor, masks: Tensor, ctx: Context): SegmentationStep {
  if (model instanceof EncoderDecoder) return model.losses(images, masks, ctx);
  const logits = model.run(images, ctx);
  return { loss: pixelCrossEntropy(logits, masks, { ignoreIndex: IGNORE_INDEX }), logits };
}

/** Logits of whole images, or window by window. */
export function segmentationLogits(model: Module, images: Tensor, windows?: SegmentOptions['windows']): Tensor {
  if (model instanceof EncoderDecoder) return model.logits(images, windows);
  if (windows === undefined) return model.run(images, new Context());
  return slideInference(images, windows, (window) => model.run(window, new Context()));
}

/** The share of the pixels that count which are right, times the batch. */
function rightPixels(logits: Tensor, masks: Tensor): Tensor {
  return noGrad(() => {
    const right = logits.argmax(1).eq(masks).sum();
    return right.mul(masks.shape[0] ?? 0).div(masks.ne(IGNORE_INDEX).sum().clampMin(1));
  });
}

class SegmentationScore implements Meter<MaskBatch, SegmentationEvaluation> {
  readonly #meter: SegmentationMeter;
  readonly #loss = new DeviceSum();
  #samples = 0;

  constructor(
    private readonly model: Module,
    private readonly how: Scoring,
    private readonly options: SegmentTaskOptions,
  ) {
    this.#meter = new SegmentationMeter(options.classes, { ignoreIndex: IGNORE_INDEX });
  }

  add(batch: MaskBatch): void {
    const { device, autocast } = this.how;
    const images = batch.images.to(device);
    const masks = batch.masks.to(device);
    const logits = maybeAutocast(autocast, device, () =>
      segmentationLogits(this.model, images, this.options.windows),
    ).float();
    this.#meter.update(logits.argmax(1), masks);
    this.#loss.add(pixelCrossEntropy(logits, masks, { ignoreIndex: IGNORE_INDEX }).mul(batch.indices.length));
    this.#samples += batch.indices.length;
  }

  result(): SegmentationEvaluation {
    const segmentation = this.#meter.result();
    const { mIoU, mAcc, aAcc } = segmentation;
    const samples = this.#samples;
    const loss = this.#loss.value() / samples;
    return { loss, accuracy: aAcc, samples, metrics: { mIoU, mAcc, aAcc }, segmentation };
  }

  [Symbol.dispose](): void {
    this.#meter.reset();
    this.#loss[Symbol.dispose]();
  }
}
