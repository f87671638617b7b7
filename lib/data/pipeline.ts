import { fromTypedArray, scope, tensor, type Device, type MemoryFormat, type Tensor } from '../tensor/index.js';
import { adjustBrightness, adjustContrast, adjustHue, adjustSaturation } from './color.js';
import { centerBox, cropImage, flipHorizontal, flipVertical, roundHalfEven, type Box } from './geometry.js';
import { emptyLike, resizeImage, type Image } from './image.js';
import type { Random } from './random.js';
import {
  isBatchStep,
  isRandom,
  parseTransforms,
  type Transform,
  type TransformInput,
  type TransformOf,
} from './transforms.js';

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
    return this.#fixed.reduce((current, step) => applyStep(current, step, undefined), image);
  }

  /** The steps per image from the first random one on. `random` is needed if there is one. */
  augment(image: Image, random?: Random): Image {
    return this.#random.reduce((current, step) => applyStep(current, step, random), image);
  }

  /** All steps per image. */
  apply(image: Image, random?: Random): Image {
    return this.augment(this.prepare(image), random);
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
        `the images of a batch must have the same size, but there are ${describe(first)} and ${describe(image)} (image ` +
          `${String(i)} of the batch); end the transforms with a resize to [height, width] or a crop`,
      );
    }
    data.set(image.data, i * length);
  });
  return fromTypedArray(data, [images.length, height, width, channels]);
}

function describe(image: Image): string {
  return `${String(image.height)}x${String(image.width)}x${String(image.channels)}`;
}

function heightAndWidth(size: number | readonly [number, number]): readonly [number, number] {
  return typeof size === 'number' ? [size, size] : size;
}

function applyStep(image: Image, step: Transform, random: Random | undefined): Image {
  switch (step.kind) {
    case 'resize':
      return resizeImage(image, ...resizedTo(image, step.size), step.interpolation);
    case 'centerCrop':
      return cropImage(image, centerBox(image, ...heightAndWidth(step.size)));
    case 'randomCrop':
      return cropImage(image, randomCropBox(image, step, needed(random, step)), step.fill);
    case 'randomResizedCrop': {
      const box = randomResizedCropBox(image, step, needed(random, step));
      return resizeImage(cropImage(image, box), ...heightAndWidth(step.size), step.interpolation);
    }
    case 'horizontalFlip':
      return needed(random, step).chance(step.probability) ? flipHorizontal(image) : image;
    case 'verticalFlip':
      return needed(random, step).chance(step.probability) ? flipVertical(image) : image;
    case 'colorJitter':
      return jitterColors(image, step, needed(random, step));
    case 'toFloat':
    case 'normalize':
      throw new TypeError(`${step.kind} is carried out per batch`);
  }
}

function needed(random: Random | undefined, step: Transform): Random {
  if (!random) throw new TypeError(`${step.kind} is random: pass a Random, for example new Random(seed, epoch, index)`);
  return random;
}

/** [height, width] after `resize`; the longer side is rounded down, as in torchvision. */
function resizedTo(image: Image, size: number | readonly [number, number]): readonly [number, number] {
  if (typeof size !== 'number') return size;
  const { height, width } = image;
  return width <= height
    ? [Math.max(1, Math.trunc((size * height) / width)), size]
    : [size, Math.max(1, Math.trunc((size * width) / height))];
}

function randomCropBox(image: Image, step: TransformOf<'randomCrop'>, random: Random): Box {
  const [height, width] = heightAndWidth(step.size);
  const spareHeight = image.height + 2 * step.padding - height;
  const spareWidth = image.width + 2 * step.padding - width;
  if (spareHeight < 0 || spareWidth < 0) {
    throw new RangeError(
      `randomCrop: ${String(height)}x${String(width)} is larger than the image, ${describe(image)}, with a border of ` +
        `${String(step.padding)}; resize first, or pad more`,
    );
  }
  const top = random.integer(spareHeight + 1) - step.padding;
  const left = random.integer(spareWidth + 1) - step.padding;
  return { top, left, height, width };
}

/** The box of a random resized crop; if ten draws do not fit, the largest of an allowed ratio in the middle. */
export function randomResizedCropBox(
  image: Pick<Image, 'height' | 'width'>,
  step: Pick<TransformOf<'randomResizedCrop'>, 'scale' | 'ratio'>,
  random: Random,
): Box {
  const area = image.height * image.width;
  const [leastRatio, mostRatio] = step.ratio;
  for (let attempt = 0; attempt < 10; attempt++) {
    const target = area * random.uniform(...step.scale);
    const ratio = Math.exp(random.uniform(Math.log(leastRatio), Math.log(mostRatio)));
    const width = roundHalfEven(Math.sqrt(target * ratio));
    const height = roundHalfEven(Math.sqrt(target / ratio));
    if (width > 0 && width <= image.width && height > 0 && height <= image.height) {
      const top = random.integer(image.height - height + 1);
      return { top, left: random.integer(image.width - width + 1), height, width };
    }
  }
  // No box fits: the largest of an allowed ratio, in the middle.
  const ratio = image.width / image.height;
  const height = ratio < leastRatio ? Math.max(1, roundHalfEven(image.width / leastRatio)) : image.height;
  const width = ratio > mostRatio ? Math.max(1, roundHalfEven(image.height * mostRatio)) : image.width;
  const top = Math.floor((image.height - height) / 2);
  return { top, left: Math.floor((image.width - width) / 2), height, width };
}

const adjustments = [
  { name: 'brightness', adjust: adjustBrightness, neutral: 1 },
  { name: 'contrast', adjust: adjustContrast, neutral: 1 },
  { name: 'saturation', adjust: adjustSaturation, neutral: 1 },
  { name: 'hue', adjust: adjustHue, neutral: 0 },
] as const;

function jitterColors(image: Image, step: TransformOf<'colorJitter'>, random: Random): Image {
  // All draws are made, and in a fixed order, so that switching one adjustment off leaves the others as they were.
  const order = random.permutation(adjustments.length);
  const factors = adjustments.map(({ name, neutral }) => random.uniform(...factorRange(step[name], neutral)));
  let current = image;
  for (const i of order) {
    const adjustment = adjustments[i];
    const factor = factors[i];
    if (adjustment && factor !== undefined && factor !== adjustment.neutral)
      current = adjustment.adjust(current, factor);
  }
  return current;
}

function factorRange(strength: number | readonly [number, number], neutral: number): readonly [number, number] {
  if (typeof strength !== 'number') return strength;
  return neutral === 0 ? [-strength, strength] : [Math.max(0, neutral - strength), neutral + strength];
}
