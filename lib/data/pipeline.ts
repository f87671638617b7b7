import { fromTypedArray, scope, tensor, type Device, type MemoryFormat, type Tensor } from '../tensor/index.js';
import { cropAnnotated, flipAnnotatedHorizontal, flipAnnotatedVertical, resizeAnnotated } from './annotated.js';
import {
  heightAndWidth,
  randomCropBox,
  randomlyScaled,
  randomMaskCropBox,
  randomResizedCropBox,
  resizedTo,
} from './boxes.js';
import { centerBox } from './geometry.js';
import { describeSize, emptyLike, type Image } from './image.js';
import type { Random } from './random.js';
import { distortColors, jitterColors } from './random_color.js';
import type { AnnotatedImage } from './samples.js';
import { isBatchStep, isRandom, parseTransforms, type Transform, type TransformInput } from './transforms.js';

/** Where a batch goes and how it lies in memory. */
export interface CollateOptions {
  /** Default 'cpu'. Bytes are what is sent to the device; floats are made there. */
  readonly device?: Device;
  /** Default 'contiguous_format'; 'channels_last' costs nothing, since that is how images are decoded. */
  readonly memoryFormat?: MemoryFormat;
}

/**
 * Carries out a list of transforms, in three parts: the steps before the first random one (`prepare`: the same in every
 * epoch, so their result can be cached), the rest of the steps per image (`augment`), and `toFloat` and `normalize` on
 * the batch (`collate`).
 *
 * @example
 * const pipeline = new Pipeline([resize([32, 32]), toFloat(), normalize(mean, std)]);
 * const input = pipeline.collate([pipeline.apply(await decodeImage('cat.jpg'))]);   // [1, 3, 32, 32]
 */
export class Pipeline {
  /** All steps, defaults filled in; JSON of this list rebuilds the pipeline. */
  readonly transforms: readonly Transform[];
  /** Whether any step draws random numbers. */
  readonly isRandom: boolean;
  readonly #fixed: readonly Transform[];
  readonly #random: readonly Transform[];
  readonly #batch: readonly Transform[];

  /** @throws TypeError if a step is unknown or misspelled, see `parseTransforms` */
  constructor(transforms: readonly TransformInput[]) {
    this.transforms = parseTransforms(transforms);
    const perImage = this.transforms.filter((step) => !isBatchStep(step));
    const firstRandom = perImage.findIndex(isRandom);
    const split = firstRandom < 0 ? perImage.length : firstRandom;
    this.#fixed = perImage.slice(0, split);
    this.#random = perImage.slice(split);
    this.#batch = this.transforms.filter(isBatchStep);
    this.isRandom = firstRandom >= 0;
  }

  /** The steps before the first random one. */
  prepare(image: Image): Image {
    return this.prepareAnnotated({ image }).image;
  }

  /** The steps per image from the first random one on. `random` is needed if there is one. */
  augment(image: Image, random?: Random): Image {
    return this.augmentAnnotated({ image }, random).image;
  }

  /** All steps per image. */
  apply(image: Image, random?: Random): Image {
    return this.applyAnnotated({ image }, random).image;
  }

  /** As `prepare`, for an image with its mask and boxes. */
  prepareAnnotated<S extends AnnotatedImage>(sample: S): S {
    return this.#fixed.reduce((current, step) => applyStep(current, step, undefined), sample);
  }

  /** As `augment`, for an image with its mask and boxes. */
  augmentAnnotated<S extends AnnotatedImage>(sample: S, random?: Random): S {
    return this.#random.reduce((current, step) => applyStep(current, step, random), sample);
  }

  /** As `apply`, for an image with its mask and boxes. */
  applyAnnotated<S extends AnnotatedImage>(sample: S, random?: Random): S {
    return this.augmentAnnotated(this.prepareAnnotated(sample), random);
  }

  /**
   * Stacks images of equal size to a batch [B, C, H, W] and carries out the steps per batch: float32 after `toFloat`, else
   * the images' own type.
   *
   * @throws RangeError if the images differ in size: then the transforms lack a resize or crop
   */
  collate(images: readonly Image[], options: CollateOptions = {}): Tensor {
    const memoryFormat = options.memoryFormat ?? 'contiguous_format';
    const device = options.device ?? 'cpu';
    return scope(() => {
      // [B, H, W, C] seen as [B, C, H, W]: a batch in channels-last layout, at no cost.
      const stacked = stack(images).to(device).permute([0, 3, 1, 2]);
      const isByte = stacked.dtype === 'uint8';
      let batch: Tensor | undefined;
      for (const step of this.#batch) {
        if (step.kind === 'toFloat') {
          batch = stacked.to({ dtype: 'float32', memoryFormat, copy: true });
          if (isByte) batch.div_(255);
        } else if (step.kind === 'normalize' && batch) {
          // In this order the results are torchvision's, bit for bit.
          batch.sub_(channelValues(step.mean, batch)).div_(channelValues(step.std, batch));
        }
      }
      return batch ?? stacked.contiguous({ memoryFormat });
    });
  }

  /** The list of steps, for JSON. */
  toJSON(): readonly Transform[] {
    return this.transforms;
  }
}

function channelValues(values: readonly number[], batch: Tensor): Tensor {
  const channels = batch.shape[1];
  if (values.length !== 1 && values.length !== channels) {
    throw new RangeError(`normalize: ${String(values.length)} values for images of ${String(channels)} channels`);
  }
  return tensor(values, { dtype: 'float32', device: batch.device }).view([1, values.length, 1, 1]);
}

function stack(images: readonly Image[]): Tensor {
  const first = images[0];
  if (!first) throw new RangeError('collate: expected at least one image');
  const { height, width, channels } = first;
  const length = height * width * channels;
  const data = emptyLike(first.data, images.length * length);
  images.forEach((image, i) => {
    if (image.height !== height || image.width !== width || image.channels !== channels) {
      throw new RangeError(
        `the images of a batch must have the same size, but there are ${describeSize(first)} and ${describeSize(image)} (image ` +
          `${String(i)} of the batch); end the transforms with a resize to [height, width] or a crop`,
      );
    }
    data.set(image.data, i * length);
  });
  return fromTypedArray(data, [images.length, height, width, channels]);
}

function applyStep<S extends AnnotatedImage>(sample: S, step: Transform, random: Random | undefined): S {
  const { image } = sample;
  switch (step.kind) {
    case 'resize':
      return resizeAnnotated(sample, ...resizedTo(image, step), step.interpolation);
    case 'randomShortSide': {
      const size = step.sizes[needed(random, step).integer(step.sizes.length)] ?? 1;
      return resizeAnnotated(sample, ...resizedTo(image, { ...step, size }), step.interpolation);
    }
    case 'randomScale':
      return resizeAnnotated(sample, ...randomlyScaled(image, step, needed(random, step)), step.interpolation);
    case 'pad': {
      const [height, width] = heightAndWidth(step.size);
      const box = { top: 0, left: 0, height: Math.max(height, image.height), width: Math.max(width, image.width) };
      return cropAnnotated(sample, box, step.fill);
    }
    case 'centerCrop':
      return cropAnnotated(sample, centerBox(image, ...heightAndWidth(step.size)));
    case 'randomCrop':
      return cropAnnotated(sample, randomCropBox(image, step, needed(random, step)), step.fill);
    case 'randomMaskCrop':
      return cropAnnotated(sample, randomMaskCropBox(sample, step, needed(random, step)));
    case 'randomResizedCrop': {
      const box = randomResizedCropBox(image, step, needed(random, step));
      return resizeAnnotated(cropAnnotated(sample, box), ...heightAndWidth(step.size), step.interpolation);
    }
    case 'horizontalFlip':
      return needed(random, step).chance(step.probability) ? flipAnnotatedHorizontal(sample) : sample;
    case 'verticalFlip':
      return needed(random, step).chance(step.probability) ? flipAnnotatedVertical(sample) : sample;
    case 'colorJitter':
      return { ...sample, image: jitterColors(image, step, needed(random, step)) };
    case 'photometricDistortion':
      return { ...sample, image: distortColors(image, step, needed(random, step)) };
    case 'toFloat':
    case 'normalize':
      throw new TypeError(`${step.kind} is carried out per batch`);
  }
}

function needed(random: Random | undefined, step: Transform): Random {
  if (!random) throw new TypeError(`${step.kind} is random: pass a Random, for example new Random(seed, epoch, index)`);
  return random;
}

/** A pipeline as it is, or one of these steps. Default: of none. */
export function pipelineOf(transform: readonly TransformInput[] | Pipeline = []): Pipeline {
  return transform instanceof Pipeline ? transform : new Pipeline(transform);
}
