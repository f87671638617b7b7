/** Images to boxes with classes. */
import { Detector } from '../../heads/index.js';
import { DetectionMeter, type AnnotatedBoxes, type CocoResult } from '../../metrics/index.js';
import { Context, type Module } from '../../nn/index.js';
import type { Device, Tensor } from '../../tensor/index.js';
import type { Score } from '../events.js';
import type { TaskBatch } from '../options.js';
import { maybeAutocast, withAuxiliary, type Meter, type Scoring, type Task } from './task.js';

/** Images with objects: `LoadedBoxes`. */
export interface BoxBatch extends TaskBatch {
  /** [3, H, W] each, of any sizes, pixels in 0..1: detectors normalize, resize and pad by themselves. */
  readonly images: readonly Tensor[];
  /** One for each image; labels from the detector's first one on. */
  readonly targets: readonly AnnotatedBoxes[];
}

/**
 * Average precision first among the `metrics` (AP, AP50, AP75), and everything that COCO defines. Loss and accuracy are
 * not measured.
 */
export interface DetectionEvaluation extends Score {
  readonly coco: CocoResult;
}

/**
 * Detection, for a `Detector`: the sum of its losses; crowds are left out of training. Boxes stay on their device until the
 * average precision is asked for.
 */
export function detectTask(): Task<BoxBatch, DetectionEvaluation> {
  return {
    id: 'detect',
    settings: { task: 'detect' },
    step(model, batch, device) {
      const ctx = new Context();
      const images = batch.images.map((image) => image.to(device));
      const losses = Object.values(detectorOf(model).losses(images, singleObjects(batch.targets, device), ctx));
      const sum = losses.reduce((total, loss) => total.add(loss));
      return { loss: withAuxiliary(sum, ctx), correct: null };
    },
    meter: (model, how) => new DetectionScore(detectorOf(model), how),
    free({ images, targets }) {
      for (const image of images) image.dispose();
      for (const target of targets) {
        for (const tensor of Object.values(target) as (Tensor | undefined)[]) tensor?.dispose();
      }
    },
  };
}

/** @throws TypeError for anything but a detector */
function detectorOf(model: Module): Detector {
  if (model instanceof Detector) return model;
  throw new TypeError(
    'detectTask: the model must be a Detector: FasterRcnn, RetinaNet, or a class that extends Detector',
  );
}

/** What a detector learns from: boxes and labels of single objects. */
export function singleObjects(targets: readonly AnnotatedBoxes[], device: Device): { boxes: Tensor; labels: Tensor }[] {
  return targets.map(({ boxes, labels, crowds }) => {
    const [box, label] = [boxes.to(device), labels.to(device)];
    if (!crowds) return { boxes: box, labels: label };
    const single = crowds.to(device).logicalNot().nonzero().squeeze(1);
    return { boxes: box.indexSelect(0, single), labels: label.indexSelect(0, single) };
  });
}

class DetectionScore implements Meter<BoxBatch, DetectionEvaluation> {
  readonly #meter = new DetectionMeter();
  #samples = 0;

  constructor(
    private readonly model: Detector,
    private readonly how: Scoring,
  ) {}

  add(batch: BoxBatch): void {
    const { device, autocast } = this.how;
    const images = batch.images.map((image) => image.to(device));
    const found = maybeAutocast(autocast, device, () => this.model.detect(images, new Context()));
    this.#meter.update(found, batch.targets);
    this.#samples += batch.indices.length;
  }

  result(): DetectionEvaluation {
    const coco = this.#meter.result();
    // COCO's -1 stands for "nothing is annotated".
    const share = (value: number): number => (value < 0 ? NaN : value);
    const metrics = { AP: share(coco.AP), AP50: share(coco.AP50), AP75: share(coco.AP75) };
    return { loss: NaN, accuracy: NaN, samples: this.#samples, metrics, coco };
  }

  [Symbol.dispose](): void {
    this.#meter.reset();
  }
}
