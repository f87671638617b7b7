/** LV-Adapter with a detector: all three tasks from images to losses and findings. */
import { resize, sizeOf } from '../heads/conv_module.js';
import {
  defaultAnchor,
  defaultMaxSize,
  type Detection,
  type DetectionHeadName,
  DetectionInput,
  type DetectionTarget,
  type Detector,
  detectorOver,
  paddingOf,
  PyramidSource,
} from '../heads/index.js';
import { ExtraLevels } from '../heads/pyramid.js';
import type { Backbone, ClipTextTransformer } from '../models/index.js';
import { Context, everySecond, IGNORE_INDEX } from '../nn/index.js';
import { arange, aten, type Tensor } from '../tensor/index.js';
import { LvAdapter, type LvAdapterOptions, type LvOutputs, type LvTask } from './lv_adapter.js';

/** The tasks that label pixels. */
export type LvMaskTask = Exclude<LvTask, 'det'>;

/** What `LvMultiTask` is told beyond the sizes of `LvAdapter`. */
export interface LvMultiTaskOptions extends LvAdapterOptions {
  /** The shorter side that images are resized to. Default 512. */
  readonly size?: number;
  /** The longer side is at most this. Default 5/3 of `size`. */
  readonly maxSize?: number;
  /** What detects: labels from 0 for `retinanet` (the default), from 1 for `faster_rcnn`. */
  readonly detector?: DetectionHeadName;
  /** Side of the smallest anchors. Default: as of `createDetectionModel`. */
  readonly anchor?: number;
  /** Width of a `faster_rcnn`'s box head. Default: 4 times `channels`. */
  readonly boxWidth?: number;
}

/** What is annotated in the images of a batch; a task without an entry is not trained. */
export interface LvTargets {
  /** By task: integers [H, W] for each image, of its size; 255 does not count. */
  readonly masks: Readonly<Partial<Record<LvMaskTask, readonly Tensor[]>>>;
  /** One for each image; labels from the detector's first one on. */
  readonly targets: readonly DetectionTarget[] | null;
}

/** What all tasks find in images. */
export interface LvFindings {
  /** By task: logits [1, K, H, W] for each image, at its size. */
  readonly logits: Readonly<Partial<Record<LvMaskTask, readonly Tensor[]>>>;
  /** Null without the task `det`. */
  readonly detections: readonly Detection[] | null;
}

/** The language-aware levels of the task `det` as the pyramid of a detector; they are left in the context of the pass. */
class LvLevels extends PyramidSource {
  readonly bodyPath = '';
  readonly levelNames: readonly string[];
  /** RetinaNet's coarser levels. */
  readonly extra: ExtraLevels | null;
  readonly #body: Backbone;

  constructor(
    body: Backbone,
    readonly outChannels: number,
    head: DetectionHeadName,
  ) {
    super();
    this.#body = body;
    this.extra = head === 'retinanet' ? new ExtraLevels(outChannels, outChannels) : null;
    this.levelNames = this.extra ? ['1', '2', '3', 'p6', 'p7'] : ['0', '1', '2', '3', 'pool'];
  }

  get body(): Backbone {
    return this.#body;
  }

  /** @throws Error unless the levels were left in the context */
  maps(_images: Tensor, ctx: Context = new Context()): Tensor[] {
    const levels = ctx.state.get(this) as readonly Tensor[] | undefined;
    if (!levels) throw new Error('the detector of an LvMultiTask is run by its taskLosses and findings');
    const last = levels.at(-1) as Tensor;
    return this.extra ? [...levels.slice(1), ...this.extra.levels(last, ctx)] : [...levels, everySecond(last)];
  }
}

/**
 * An `LvAdapter` that takes images of any size and, with the task `det`, has a stock detector on its levels (`detector.`).
 * The loss is L_sem + L_driv + L_det, all of weight 1; `multiTask` trains and scores it.
 *
 * ```ts
 * const model = new LvMultiTask(createModel('resnet18'), null, { tasks: { sem: 9, driv: 3, det: 8 }, size: 256 });
 * const adapter = graft(model, 'linear_probe'); // the stage adapt: everything but the trunk
 * ```
 */
export class LvMultiTask extends LvAdapter {
  readonly detector: Detector | null;
  readonly #input: DetectionInput;

  /** @throws what `LvAdapter` throws */
  constructor(backbone: Backbone, text: ClipTextTransformer | null, options: LvMultiTaskOptions) {
    const { size = 512, maxSize = defaultMaxSize(size), detector: head = 'retinanet', ...rest } = options;
    const { anchor = defaultAnchor(4, size), boxWidth, ...sizes } = rest;
    super(backbone, text, sizes);
    const { mean, std } = backbone.config;
    const input = { minSize: size, maxSize, mean, std, sizeDivisible: paddingOf(backbone) };
    const { channels, tasks } = this.settings;
    this.#input = new DetectionInput(input);
    this.detector = tasks.det
      ? detectorOver(head, new LvLevels(this.backbone, channels, head), {
          ...{ input, classes: tasks.det, anchor, boxWidth: boxWidth ?? 4 * channels },
        })
      : null;
  }

  /**
   * The loss of each task that is annotated: `sem`, `driv`, and the detector's by its names; their sum is to be minimized.
   *
   * @param images [3, H, W] each, of any sizes, pixels in 0..1
   * @throws RangeError when nothing is annotated, or the lists differ in length
   */
  taskLosses(
    images: readonly Tensor[],
    { masks, targets }: LvTargets,
    ctx: Context = new Context(),
  ): Readonly<Record<string, Tensor>> {
    const batch = this.#input.prepare(images, targets ?? [], true);
    const outputs = this.outputs(batch.images, ctx);
    const labels = Object.fromEntries(
      Object.entries(masks).map(([task, list]) => {
        if (list.length !== images.length) {
          throw new RangeError(`${this.name}: ${images.length} images and ${list.length} masks of task '${task}'`);
        }
        return [task, stackedMasks(list, batch.sizes, sizeOf(batch.images))];
      }),
    );
    const pixels = Object.keys(labels).length > 0 ? this.losses(outputs, labels).perTask : {};
    if (!this.detector || !targets) {
      if (Object.keys(pixels).length > 0) return pixels;
      throw new RangeError(`${this.name}: labels for at least one of its tasks are needed`);
    }
    this.#leave(outputs, ctx);
    return { ...pixels, ...this.detector.batchLosses(batch, ctx) };
  }

  /**
   * What is found in images [3, H, W] of any sizes, pixels in 0..1, in their own pixels; call it in evaluation mode and
   * without a graph.
   */
  findings(images: readonly Tensor[], ctx: Context = new Context()): LvFindings {
    const batch = this.#input.prepare(images);
    const outputs = this.outputs(batch.images, ctx);
    const logits = Object.fromEntries(
      Object.entries(outputs.logits).map(([task, maps]) => [
        task,
        batch.sizes.map(([height, width], i) => {
          const own = maps.narrow(0, i, 1).narrow(2, 0, height).narrow(3, 0, width);
          return resize(own, batch.originalSizes[i] ?? [height, width]);
        }),
      ]),
    );
    if (!this.detector) return { logits, detections: null };
    this.#leave(outputs, ctx);
    return { logits, detections: this.detector.batchDetections(batch, ctx) };
  }

  #leave({ detection }: LvOutputs, ctx: Context): void {
    ctx.state.set(this.detector?.backbone, detection);
  }
}

/** Masks [H, W] at the sizes of the resized images, in one batch int64 [B, ...padded]; what is padded does not count. */
function stackedMasks(
  masks: readonly Tensor[],
  sizes: readonly (readonly [number, number])[],
  [height, width]: readonly [number, number],
): Tensor {
  const moved = masks.map((mask, i) => {
    const [h, w] = sizes[i] ?? [height, width];
    const own = nearest(nearest(mask, 0, h), 1, w);
    return aten.constantPadNd(own.to('int64'), [0, width - w, 0, height - h], IGNORE_INDEX);
  });
  return aten.stack(moved);
}

/**
 * Another length of one axis, nearest neighbor: each new place is that in which its middle lies. LibTorch's
 * own does not take int64.
 */
function nearest(mask: Tensor, axis: 0 | 1, length: number): Tensor {
  const before = mask.shape[axis] ?? 0;
  if (before === length) return mask;
  const middles = arange(length, { dtype: 'float64', device: mask.device }).add(0.5);
  return mask.indexSelect(
    axis,
    middles
      .mul(before / length)
      .floor()
      .to('int64')
      .clamp(0, before - 1),
  );
}
