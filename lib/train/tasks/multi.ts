/** Images to several masks and to boxes at once. */
import {
  DetectionMeter,
  SegmentationMeter,
  type AnnotatedBoxes,
  type CocoResult,
  type SegmentationResult,
} from '../../metrics/index.js';
import { Context, pixelCrossEntropy, type Module } from '../../nn/index.js';
import { LvMultiTask, type LvMaskTask } from '../../systems/index.js';
import type { Tensor } from '../../tensor/index.js';
import type { Score } from '../events.js';
import type { TaskBatch } from '../options.js';
import { singleObjects } from './detect.js';
import { DeviceSum } from './device_sum.js';
import { maybeAutocast, withAuxiliary, type Meter, type Scoring, type Task } from './task.js';

/** Images with masks of several kinds and objects: `LoadedScenes`. */
export interface SceneBatch extends TaskBatch {
  /** [3, H, W] each, of any sizes, pixels in 0..1: the model normalizes, resizes and pads by itself. */
  readonly images: readonly Tensor[];
  /** By task: int64 [H, W] for each image; 255 does not count. */
  readonly masks: Readonly<Record<string, readonly Tensor[]>>;
  /** One for each image; null where no objects are annotated. */
  readonly targets: readonly AnnotatedBoxes[] | null;
}

/**
 * First among the `metrics` is `mean`, over the tasks, of what counts for each: the mean IoU of those that label pixels (`mIoU
 * sem`, `mIoU driv`), the average precision (`AP`). The loss is that of the pixels.
 */
export interface MultiTaskEvaluation extends Score {
  readonly segmentation: Readonly<Record<string, SegmentationResult>>;
  /** Null without boxes. */
  readonly coco: CocoResult | null;
}

/**
 * Several tasks at once, for an `LvMultiTask`: the sum of the losses of all that is annotated. Boxes and masks stay on their
 * device until figures are asked for.
 */
export function multiTask(): Task<SceneBatch, MultiTaskEvaluation> {
  return {
    id: 'multi',
    settings: { task: 'multi' },
    step(model, batch, device) {
      const ctx = new Context();
      const images = batch.images.map((image) => image.to(device));
      const masks = Object.fromEntries(
        Object.entries(batch.masks).map(([task, list]) => [task, list.map((mask) => mask.to(device))]),
      );
      const targets = batch.targets && singleObjects(batch.targets, device);
      const losses = Object.values(modelOf(model).taskLosses(images, { masks, targets }, ctx));
      const sum = losses.reduce((total, loss) => total.add(loss));
      return { loss: withAuxiliary(sum, ctx), correct: null };
    },
    meter: (model, how) => new MultiTaskScore(modelOf(model), how),
    free({ images, masks, targets }) {
      const boxes = (targets ?? []).flatMap((target) => Object.values(target) as (Tensor | undefined)[]);
      for (const tensor of [...images, ...Object.values(masks).flat(), ...boxes]) tensor?.dispose();
    },
  };
}

/** @throws TypeError for any other model */
function modelOf(model: Module): LvMultiTask {
  if (model instanceof LvMultiTask) return model;
  throw new TypeError('multiTask: the model must be an LvMultiTask');
}

class MultiTaskScore implements Meter<SceneBatch, MultiTaskEvaluation> {
  readonly #masks: ReadonlyMap<LvMaskTask, SegmentationMeter>;
  readonly #boxes: DetectionMeter | null;
  readonly #loss = new DeviceSum();
  #samples = 0;

  constructor(
    private readonly model: LvMultiTask,
    private readonly how: Scoring,
  ) {
    const { tasks } = model.settings;
    const kinds = (['sem', 'driv'] as const).filter((task) => tasks[task] !== undefined);
    this.#masks = new Map(kinds.map((task) => [task, new SegmentationMeter(tasks[task] ?? 1)]));
    this.#boxes = tasks.det === undefined ? null : new DetectionMeter();
  }

  add(batch: SceneBatch): void {
    const { device, autocast } = this.how;
    const images = batch.images.map((image) => image.to(device));
    const { logits, detections } = maybeAutocast(autocast, device, () => this.model.findings(images, new Context()));
    for (const [task, meter] of this.#masks) {
      const maps = logits[task] ?? [];
      (batch.masks[task] ?? []).forEach((mask, i) => {
        const labels = mask.to(device).unsqueeze(0);
        const map = (maps[i] as Tensor).float();
        meter.update(map.argmax(1), labels);
        this.#loss.add(pixelCrossEntropy(map, labels));
      });
    }
    if (detections && batch.targets) this.#boxes?.update(detections, batch.targets);
    this.#samples += batch.indices.length;
  }

  result(): MultiTaskEvaluation {
    const results = Array.from(this.#masks, ([task, meter]) => [task, meter.result()] as const);
    const coco = this.#boxes?.result() ?? null;
    // COCO's -1 stands for "nothing is annotated".
    const share = (value: number): number => (value < 0 ? NaN : value);
    const figures = {
      ...Object.fromEntries(results.map(([task, { mIoU }]) => [`mIoU ${task}`, mIoU])),
      ...(coco && { AP: share(coco.AP) }),
    };
    const known = Object.values(figures).filter((value) => !Number.isNaN(value));
    const mean = known.reduce((sum, value) => sum + value, 0) / Math.max(1, known.length);
    const metrics = { mean, ...figures, ...(coco && { AP50: share(coco.AP50) }) };
    const samples = this.#samples;
    const loss = results.length > 0 ? this.#loss.value() / samples : NaN;
    return { loss, accuracy: NaN, samples, metrics, segmentation: Object.fromEntries(results), coco };
  }

  [Symbol.dispose](): void {
    for (const meter of this.#masks.values()) meter.reset();
    this.#boxes?.reset();
    this.#loss[Symbol.dispose]();
  }
}
