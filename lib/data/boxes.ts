/** The places and sizes that transforms cut out and resize to. */
import { IGNORE_INDEX } from '../nn/index.js';
import { cropImage, roundHalfEven, type Box } from './geometry.js';
import { describeSize, type Image } from './image.js';
import type { Random } from './random.js';
import type { AnnotatedImage } from './samples.js';
import type { TransformOf } from './transforms.js';

/** A square's side, or [height, width], as the latter. */
export function heightAndWidth(size: number | readonly [number, number]): readonly [number, number] {
  return typeof size === 'number' ? [size, size] : size;
}

/** [height, width] after `resize`; the longer side is rounded down, as in torchvision. */
export function resizedTo(
  image: Image,
  {
    size,
    maxSize = Infinity,
  }: { readonly size: number | readonly [number, number]; readonly maxSize?: number | undefined },
): readonly [number, number] {
  if (typeof size !== 'number') return size;
  const { height, width } = image;
  if (Math.trunc((size * Math.max(height, width)) / Math.min(height, width)) > maxSize) {
    const shorter = Math.max(1, Math.trunc((maxSize * Math.min(height, width)) / Math.max(height, width)));
    return width <= height ? [maxSize, shorter] : [shorter, maxSize];
  }
  return width <= height
    ? [Math.max(1, Math.trunc((size * height) / width)), size]
    : [size, Math.max(1, Math.trunc((size * width) / height))];
}

/** The box of a random crop. @throws RangeError when the image is too small */
export function randomCropBox(image: Image, step: TransformOf<'randomCrop'>, random: Random): Box {
  const [height, width] = heightAndWidth(step.size);
  const spareHeight = image.height + 2 * step.padding - height;
  const spareWidth = image.width + 2 * step.padding - width;
  if (spareHeight < 0 || spareWidth < 0) {
    throw new RangeError(
      `randomCrop: ${String(height)}x${String(width)} is larger than the image, ${describeSize(image)}, with a border of ` +
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

/** [height, width] at a random scale, as mmcv's `rescale_size` rounds them. */
export function randomlyScaled(
  image: Image,
  { size, ratio }: TransformOf<'randomScale'>,
  random: Random,
): readonly [number, number] {
  const { height, width } = image;
  const drawn = random.uniform(...ratio);
  const [shorter, longer] = [Math.trunc(Math.min(...size) * drawn), Math.trunc(Math.max(...size) * drawn)];
  const scale = Math.min(longer / Math.max(height, width), shorter / Math.min(height, width));
  const scaled = (side: number): number => Math.max(1, Math.trunc(side * scale + 0.5));
  return [scaled(height), scaled(width)];
}

const MASK_CROP_ATTEMPTS = 10;

/** The box of `randomMaskCrop`. */
export function randomMaskCropBox(
  { image, masks = {}, mask = Object.values(masks)[0] }: AnnotatedImage,
  { size, maxClassRatio }: TransformOf<'randomMaskCrop'>,
  random: Random,
): Box {
  const [height, width] = heightAndWidth(size).map((side, axis) => Math.min(side, axis ? image.width : image.height));
  const draw = (): Box => ({
    top: random.integer(image.height - (height ?? 1) + 1),
    left: random.integer(image.width - (width ?? 1) + 1),
    height: height ?? 1,
    width: width ?? 1,
  });
  let box = draw();
  if (!mask || maxClassRatio >= 1) return box;
  for (
    let attempt = 0;
    attempt < MASK_CROP_ATTEMPTS && largestShare(cropImage(mask, box)) >= maxClassRatio;
    attempt++
  ) {
    box = draw();
  }
  return box;
}

/** The share of the most frequent class of the pixels that count; 1 where none does. */
function largestShare(mask: Image): number {
  const counts = new Uint32Array(256);
  for (const value of mask.data) counts[value] = (counts[value] ?? 0) + 1;
  counts[IGNORE_INDEX] = 0;
  const total = counts.reduce((sum, count) => sum + count, 0);
  return total === 0 ? 1 : Math.max(...counts) / total;
}
