/** Batches of images with masks, and of images with boxes. */
import { IGNORE_INDEX } from '../nn/index.js';
import { aten, fromTypedArray, type Device, type MemoryFormat, type Tensor } from '../tensor/index.js';
import { selectObjects } from './annotated.js';
import { BatchLoader, type BatchLoaderOptions, type Collated } from './batch_loader.js';
import type { Image } from './image.js';
import { Pipeline, pipelineOf } from './pipeline.js';
import type { Random } from './random.js';
import {
  type AnnotatedImage,
  type AnyBatch,
  type DetectionSample,
  type LoadedBoxes,
  type LoadedMasks,
  type LoadedObjects,
  type Objects,
  type SampleSource,
  type SegmentationSample,
} from './samples.js';
import { toFloat, type TransformInput } from './transforms.js';

/** What the loaders of masks and of boxes can be told. */
export interface AnnotatedLoaderOptions<Sample extends AnnotatedImage> extends BatchLoaderOptions<
  SampleSource<Sample>
> {
  /** Steps from image to input, see `transforms`; masks and boxes are moved along. Default none. */
  readonly transform?: readonly TransformInput[] | Pipeline;
}

/** What the loaders of masks and of boxes have in common: the transforms. */
export abstract class AnnotatedLoader<Sample extends AnnotatedImage, Batch extends AnyBatch> extends BatchLoader<
  Sample,
  Sample,
  Batch,
  SampleSource<Sample>
> {
  readonly pipeline: Pipeline;

  constructor(options: AnnotatedLoaderOptions<Sample>, pipeline: Pipeline, own: readonly string[]) {
    super(options, ['transform', ...own]);
    this.pipeline = pipeline;
  }

  protected bytesOf({ image, mask, masks = {}, objects }: Sample): number {
    const labels = [mask, ...Object.values(masks)].reduce((sum, one) => sum + (one?.data.byteLength ?? 0), 0);
    return image.data.byteLength + labels + (objects?.boxes.byteLength ?? 0) * 2;
  }

  protected prepare(sample: Sample): Sample {
    return this.pipeline.prepareAnnotated(sample);
  }

  protected finish(sample: Sample, random: Random): Sample {
    return this.pipeline.augmentAnnotated(sample, random);
  }
}

/** See `SegmentationLoader`. */
export interface SegmentationLoaderOptions extends AnnotatedLoaderOptions<SegmentationSample> {
  /** Default 'contiguous_format'. */
  readonly memoryFormat?: MemoryFormat;
}

/**
 * Batches of images with masks: `LoadedMasks`. Images of different sizes are padded to the largest of their batch, with 0
 * after all transforms and `IGNORE_INDEX` in the masks. See `BatchLoader` for order, seeds and cache.
 *
 * @example
 * const transform = [randomScale([512, 2048]), randomMaskCrop(512), horizontalFlip(), photometricDistortion(), toFloat(), normalize(mean, std)];
 * const loader = new SegmentationLoader({ dataset: await openMasks('ade'), batchSize: 8, shuffle: true, transform });
 */
export class SegmentationLoader extends AnnotatedLoader<SegmentationSample, LoadedMasks> {
  readonly #memoryFormat: MemoryFormat;

  constructor(options: SegmentationLoaderOptions) {
    super(options, pipelineOf(options.transform), ['memoryFormat']);
    this.#memoryFormat = options.memoryFormat ?? 'contiguous_format';
  }

  protected collate(samples: readonly SegmentationSample[]): Collated<LoadedMasks> {
    const sizes = samples.map(({ image }) => [image.height, image.width] as const);
    const height = Math.max(...sizes.map(([side]) => side));
    const width = Math.max(...sizes.map(([, side]) => side));
    const images = samples.map(({ image }) => image);
    const isEven = sizes.every(([h, w]) => h === height && w === width);
    const masks = stackMasks(
      samples.map(({ mask }) => mask),
      height,
      width,
    ).to(this.device);
    const batch = {
      images: isEven ? this.#collated(images) : this.#padded(images, height, width),
      masks: masks.to('int64'),
    };
    return { fields: { ...batch, sizes }, tensors: Object.values(batch) };
  }

  #collated(images: readonly Image[]): Tensor {
    return this.pipeline.collate(images, { device: this.device, memoryFormat: this.#memoryFormat });
  }

  #padded(images: readonly Image[], height: number, width: number): Tensor {
    const padded = images.map((image) =>
      aten.constantPadNd(this.#collated([image]), [0, width - image.width, 0, height - image.height], 0),
    );
    return aten.cat(padded).contiguous({ memoryFormat: this.#memoryFormat });
  }
}

/** Masks as bytes [B, height, width], padded with `IGNORE_INDEX`. */
export function stackMasks(masks: readonly Image[], height: number, width: number): Tensor {
  const data = new Uint8Array(masks.length * height * width).fill(IGNORE_INDEX);
  masks.forEach((mask, i) => {
    for (let y = 0; y < mask.height; y++) {
      data.set(mask.data.subarray(y * mask.width, (y + 1) * mask.width), (i * height + y) * width);
    }
  });
  return fromTypedArray(data, [masks.length, height, width]);
}

/** See `DetectionLoader`. */
export interface DetectionLoaderOptions extends AnnotatedLoaderOptions<DetectionSample> {
  /** The label of class 0 in the batches: 1 for detectors whose label 0 is the background (Faster R-CNN). Default 0. */
  readonly firstLabel?: number;
  /**
   * Whether crowds are among the targets. Default `keep`: `detectTask` leaves them out of training, and `DetectionMeter` knows
   * how they count; `drop` for a training loop that calls a detector's `losses` itself, which would take one for a single object.
   */
  readonly crowds?: 'keep' | 'drop';
}

/**
 * Batches of images with boxes: `LoadedBoxes`. Images stay of different sizes, float32 from 0 to 1 if not normalized:
 * detectors normalize, resize and pad by themselves. See `BatchLoader` for order, seeds and cache.
 *
 * @example
 * const loader = new DetectionLoader({ dataset, batchSize: 2, shuffle: true, transform: [horizontalFlip()], crowds: 'drop' });
 * for await (const batch of loader.epoch(0)) detector.losses(batch.images, batch.targets);
 */
export class DetectionLoader extends AnnotatedLoader<DetectionSample, LoadedBoxes> {
  readonly firstLabel: number;
  readonly #dropsCrowds: boolean;

  /** @throws RangeError for a first label that is no whole number from 0 on */
  constructor(options: DetectionLoaderOptions) {
    const { firstLabel = 0, crowds = 'keep' } = options;
    super(options, floatPipeline(options.transform), ['firstLabel', 'crowds']);
    this.firstLabel = checkedFirstLabel('DetectionLoader', firstLabel);
    this.#dropsCrowds = crowds === 'drop';
  }

  protected collate(samples: readonly DetectionSample[]): Collated<LoadedBoxes> {
    const images = samples.map(({ image }) => this.pipeline.collate([image], { device: this.device }).squeeze(0));
    const { firstLabel, device } = this;
    const targets = samples.map(({ objects }) =>
      loadedObjects(this.#dropsCrowds ? withoutCrowds(objects) : objects, firstLabel, device),
    );
    return { fields: { images, targets }, tensors: [...images, ...targets.flatMap(tensorsOf)] };
  }
}

/** The steps, with `toFloat` at their end if it is not among them. */
export function floatPipeline(transform?: readonly TransformInput[] | Pipeline): Pipeline {
  const pipeline = pipelineOf(transform);
  const isFloat = pipeline.transforms.some(({ kind }) => kind === 'toFloat');
  return isFloat ? pipeline : new Pipeline([...pipeline.transforms, toFloat()]);
}

/** @throws RangeError for a first label that is no whole number from 0 on */
export function checkedFirstLabel(loader: string, firstLabel: number): number {
  if (Number.isInteger(firstLabel) && firstLabel >= 0) return firstLabel;
  throw new RangeError(`${loader}: firstLabel must be a whole number from 0 on, got ${String(firstLabel)}`);
}

/** Objects as tensors. */
export function loadedObjects(
  { boxes, labels, areas, crowds }: Objects,
  firstLabel: number,
  device: Device,
): LoadedObjects {
  const count = labels.length;
  const numbers = BigInt64Array.from(labels, (label) => BigInt(label + firstLabel));
  return {
    boxes: fromTypedArray(boxes, [count, 4]).to(device),
    labels: fromTypedArray(numbers, [count]).to(device),
    areas: fromTypedArray(areas, [count]).to(device),
    crowds: fromTypedArray(crowds, [count]).to({ dtype: 'bool', device }),
  };
}

/** The tensors of the objects of an image. */
export const tensorsOf = ({ boxes, labels, areas, crowds }: LoadedObjects): Tensor[] => [boxes, labels, areas, crowds];

function withoutCrowds(objects: Objects): Objects {
  if (!objects.crowds.includes(1)) return objects;
  return selectObjects(
    objects,
    Array.from(objects.labels.keys()).filter((i) => !objects.crowds[i]),
  );
}
