/** Average precision over a data set of detections that stay on their device until it is asked for. */
import { keep, scope, type Tensor } from '../tensor/index.js';
import {
  type CocoAnnotation,
  type CocoBox,
  type CocoDetection,
  type CocoOptions,
  type CocoResult,
  evaluateCoco,
} from './coco.js';

/** What was found in an image. */
export interface FoundBoxes {
  /** [D, 4] (x1, y1, x2, y2). */
  readonly boxes: Tensor;
  /** int64 [D]. */
  readonly labels: Tensor;
  /** [D]. */
  readonly scores: Tensor;
}

/** What is annotated in an image. */
export interface AnnotatedBoxes {
  /** [G, 4] (x1, y1, x2, y2). */
  readonly boxes: Tensor;
  /** int64 [G]. */
  readonly labels: Tensor;
  /** [G]. Default: those of the boxes. */
  readonly areas?: Tensor;
  /** bool [G]. Default: none. */
  readonly crowds?: Tensor;
}

type Image = readonly [found: Readonly<Record<string, Tensor>>, annotated: Readonly<Record<string, Tensor>>];

/**
 * @example
 * const meter = new DetectionMeter();
 * for await (const batch of loader.epoch()) meter.update(detector.detect(batch.images), batch.targets);
 * console.log(meter.result().AP);
 */
export class DetectionMeter {
  readonly #images: Image[] = [];
  readonly #options: CocoOptions;

  constructor(options: CocoOptions = {}) {
    this.#options = options;
  }

  /**
   * One entry of each list per image.
   * @throws RangeError when the lists differ in length
   */
  update(found: readonly FoundBoxes[], annotated: readonly AnnotatedBoxes[]): void {
    if (found.length !== annotated.length) {
      throw new RangeError(`DetectionMeter: detections of ${found.length} images, annotations of ${annotated.length}`);
    }
    const held = (record: FoundBoxes | AnnotatedBoxes): Record<string, Tensor> =>
      Object.fromEntries(
        Object.entries(record).flatMap(([key, value]: [string, Tensor | undefined]) =>
          value ? [[key, keep(value.detach().clone())]] : [],
        ),
      );
    found.forEach((one, i) => this.#images.push([held(one), held(annotated[i] as AnnotatedBoxes)]));
  }

  /** @throws RangeError before the first `update` */
  result(): CocoResult {
    if (this.#images.length === 0)
      throw new RangeError('DetectionMeter: nothing has been counted yet; call update first');
    const annotations: CocoAnnotation[] = [];
    const detections: CocoDetection[] = [];
    this.#images.forEach(([found, annotated], image_id) => {
      const truth = rows(annotated);
      const areas = numbers(annotated['areas']);
      const crowds = numbers(annotated['crowds']);
      truth.forEach(({ bbox, category_id }, i) => {
        const area = areas?.[i] ?? bbox[2] * bbox[3];
        annotations.push({ id: annotations.length + 1, image_id, category_id, bbox, area, iscrowd: crowds?.[i] ?? 0 });
      });
      const scores = numbers(found['scores']);
      rows(found).forEach((row, i) => detections.push({ image_id, ...row, score: scores?.[i] ?? 0 }));
    });
    const categories = [...new Set(annotations.map(({ category_id }) => category_id))].map((id) => ({ id }));
    const images = this.#images.map((_, id) => ({ id }));
    return evaluateCoco({ images, categories, annotations }, detections, this.#options);
  }

  /** Starts again from nothing. */
  reset(): void {
    for (const [found, annotated] of this.#images.splice(0)) {
      for (const tensor of [...Object.values(found), ...Object.values(annotated)]) tensor.dispose();
    }
  }
}

function numbers(tensor: Tensor | undefined): number[] | undefined {
  return tensor && scope(() => Array.from(tensor.to('float64').data() as Float64Array));
}

function rows({ boxes, labels }: Readonly<Record<string, Tensor>>): { bbox: CocoBox; category_id: number }[] {
  const corners = numbers(boxes) ?? [];
  return (numbers(labels) ?? []).map((category_id, i) => {
    const [x = 0, y = 0, x2 = 0, y2 = 0] = corners.slice(4 * i, 4 * i + 4);
    return { bbox: [x, y, x2 - x, y2 - y], category_id };
  });
}
