/** Images of any size to one padded batch, and boxes along with them, as torchvision's `GeneralizedRCNNTransform`. */
import { IMAGENET_MEAN, IMAGENET_STD } from '../models/index.js';
import { aten, randint, tensor, type Tensor } from '../tensor/index.js';
import { resize, sizeOf } from './conv_module.js';

/**
 * What is known about an image. Values are not checked, since that would read them back in every step: data sets refuse
 * boxes without area and unknown classes when they are read.
 */
export interface DetectionTarget {
  /** [G, 4] (x1, y1, x2, y2) in pixels of the image, x1 < x2 and y1 < y2. */
  readonly boxes: Tensor;
  /** int64 [G]; Faster R-CNN's begin with 1, RetinaNet's with 0. */
  readonly labels: Tensor;
}

/** What was found in an image, by falling score. */
export interface Detection {
  /** [D, 4] (x1, y1, x2, y2) in pixels of the image. */
  readonly boxes: Tensor;
  /** int64 [D]. */
  readonly labels: Tensor;
  /** [D]. */
  readonly scores: Tensor;
}

/** How a detector sees images. */
export interface DetectionInputOptions {
  /**
   * The shorter side after resizing; of several, one is drawn for each image in training, and the last is taken
   * otherwise. Default 800.
   */
  readonly minSize?: number | readonly number[];
  /** The longer side is at most this. Default 1333. */
  readonly maxSize?: number;
  /** Per channel, of pixels in 0..1. Default: ImageNet's. */
  readonly mean?: readonly number[];
  readonly std?: readonly number[];
  /** Sides of the batch are multiples of this. Default 32. */
  readonly sizeDivisible?: number;
}

/** The longer side where only the shorter one is given: their proportion is that of torchvision's 800 and 1333. */
export function defaultMaxSize(minSize: number): number {
  return Math.round((minSize * 5) / 3);
}

type Size = readonly [height: number, width: number];

/** A batch as the backbone reads it. */
export interface DetectionBatch {
  /** [B, 3, H, W], zero where an image ends. */
  readonly images: Tensor;
  /** Size of each resized image. */
  readonly sizes: readonly Size[];
  /** Size of each image as it was given. */
  readonly originalSizes: readonly Size[];
  /** Boxes in the resized images. */
  readonly targets: readonly DetectionTarget[];
}

/** Boxes [N, 4] of an image of one size in that image at another size. */
export function scaleBoxes(boxes: Tensor, from: Size, to: Size): Tensor {
  const kind = { dtype: boxes.dtype, device: boxes.device };
  const [y, x] = [to[0], to[1]].map((side, i) => tensor(side, kind).div(tensor(from[i as 0 | 1], kind)));
  return boxes.mul(aten.stack([x as Tensor, y as Tensor, x as Tensor, y as Tensor]));
}

/** See `DetectionInputOptions`. */
export class DetectionInput {
  readonly #minSizes: readonly number[];
  readonly #maxSize: number;
  readonly #mean: readonly number[];
  readonly #std: readonly number[];
  readonly #divisible: number;

  constructor(options: DetectionInputOptions = {}) {
    const { minSize = 800, maxSize = 1333, mean = IMAGENET_MEAN, std = IMAGENET_STD, sizeDivisible = 32 } = options;
    this.#minSizes = typeof minSize === 'number' ? [minSize] : minSize;
    this.#maxSize = maxSize;
    this.#mean = mean;
    this.#std = std;
    this.#divisible = sizeDivisible;
    if (this.#minSizes.length === 0 || [...this.#minSizes, maxSize, sizeDivisible].some((n) => !(n > 0))) {
      throw new RangeError('DetectionInput: sizes must be positive, and there must be a least size');
    }
  }

  /**
   * @param images [3, H, W] each, pixels in 0..1
   * @param targets none, or one for each image
   * @param isTraining whether a least size is drawn for each image
   * @throws RangeError when shapes do not fit together
   */
  prepare(
    images: readonly Tensor[],
    targets: readonly DetectionTarget[] = [],
    isTraining = targets.length > 0,
  ): DetectionBatch {
    check(images, targets, this.#mean.length);
    const originalSizes = images.map(sizeOf);
    const resized = images.map((image) => this.#resized(this.#normalized(image), isTraining));
    const sizes = resized.map(sizeOf);
    const round = (side: number): number => Math.ceil(side / this.#divisible) * this.#divisible;
    const [height, width] = [0, 1].map((axis) => round(Math.max(...sizes.map((size) => size[axis as 0 | 1]))));
    const padded = resized.map((image, i) => {
      const [h, w] = sizes[i] as Size;
      return aten.constantPadNd(image, [0, (width ?? 0) - w, 0, (height ?? 0) - h], 0);
    });
    const moved = targets.map(({ boxes, labels }, i) => {
      const float = boxes.to({ dtype: padded[0]?.dtype, device: padded[0]?.device });
      return {
        boxes: scaleBoxes(float, originalSizes[i] as Size, sizes[i] as Size),
        labels: labels.to({ dtype: 'int64', device: float.device }),
      };
    });
    return { images: aten.stack(padded), sizes, originalSizes, targets: moved };
  }

  #normalized(image: Tensor): Tensor {
    const kind = { dtype: image.dtype, device: image.device };
    const [mean, std] = [this.#mean, this.#std].map((values) => tensor([...values], kind).view([-1, 1, 1]));
    return image.sub(mean as Tensor).div(std as Tensor);
  }

  #resized(image: Tensor, isTraining: boolean): Tensor {
    const [height, width] = sizeOf(image);
    const count = this.#minSizes.length;
    const drawn = isTraining && count > 1 ? Number(randint(0, count, [1], { device: 'cpu' }).item()) : count - 1;
    const least = this.#minSizes[drawn] ?? 0;
    const scale = Math.min(least / Math.min(height, width), this.#maxSize / Math.max(height, width));
    const size: Size = [Math.floor(height * scale), Math.floor(width * scale)];
    return resize(image.unsqueeze(0), size).squeeze(0);
  }
}

function check(images: readonly Tensor[], targets: readonly DetectionTarget[], channels: number): void {
  if (images.length === 0) throw new RangeError('detection: give at least one image');
  const odd = images.find((image) => image.ndim !== 3 || image.shape[0] !== channels || image.numel() === 0);
  if (odd) {
    throw new RangeError(
      `detection: every image must be [${channels}, H, W] and not empty, got [${odd.shape.join(', ')}]`,
    );
  }
  if (targets.length > 0 && targets.length !== images.length) {
    throw new RangeError(`detection: ${images.length} images and ${targets.length} targets; give one for each image`);
  }
  for (const [i, { boxes, labels }] of targets.entries()) {
    if (boxes.ndim !== 2 || boxes.shape[1] !== 4 || labels.ndim !== 1 || labels.shape[0] !== boxes.shape[0]) {
      throw new RangeError(
        `detection: target ${i} must have boxes [G, 4] and labels [G], got [${boxes.shape.join(', ')}] and [${labels.shape.join(', ')}]`,
      );
    }
  }
}
