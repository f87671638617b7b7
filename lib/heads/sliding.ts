/** Inference over images larger than a network was trained on: windows side by side, averaged where they overlap. */
import { pair, type Size2 } from '../nn/index.js';
import { aten, tensor, type Tensor } from '../tensor/index.js';
import { resize, sizeOf } from './conv_module.js';

/** Windows over an image. */
export interface SlideOptions {
  /** Height and width of a window. */
  readonly crop: Size2;
  /** Distance of neighboring windows; at most `crop`, or pixels would be skipped. */
  readonly stride: Size2;
  readonly alignCorners?: boolean;
}

/**
 * Where windows start along an axis of `length` pixels, as MMSegmentation places them: at multiples of the stride, the
 * last one shifted back to end with the image.
 */
export function windowStarts(length: number, crop: number, stride: number): number[] {
  const count = Math.floor(Math.max(length - crop + stride - 1, 0) / stride) + 1;
  return Array.from({ length: count }, (_, i) => Math.max(Math.min(i * stride + crop, length) - crop, 0));
}

/** As Segmenter places them: multiples of the stride below `length - crop`, then `length - crop`. */
export function segmenterStarts(length: number, crop: number, stride: number): number[] {
  const starts: number[] = [];
  for (let start = 0; start < length - crop; start += stride) starts.push(start);
  return [...starts, Math.max(length - crop, 0)];
}

/**
 * Logits of every window, resized to it, averaged over the windows that see a pixel: images [B, C, H, W] to [B, K, H, W].
 * A window that is larger than the image is the image.
 *
 * @param logitsOf a window [B, C, h, w] to its logits at any resolution
 * @param starts how windows are placed. Default: `windowStarts`
 * @throws RangeError for sizes below 1 or a stride that would skip pixels
 */
export function slideInference(
  images: Tensor,
  { crop, stride, alignCorners = false }: SlideOptions,
  logitsOf: (window: Tensor) => Tensor,
  starts = windowStarts,
): Tensor {
  const [crops, strides] = [pair(crop), pair(stride)];
  const isWrong = (n: number): boolean => !Number.isInteger(n) || n < 1;
  if ([...crops, ...strides].some(isWrong) || strides[0] > crops[0] || strides[1] > crops[1]) {
    throw new RangeError(
      `slideInference: crop and stride must be positive integers and the stride not larger than the crop, got ${crops.join(' x ')} and ${strides.join(' x ')}`,
    );
  }
  const [height, width] = sizeOf(images);
  const [h, w] = [Math.min(crops[0], height), Math.min(crops[1], width)];
  const rows = starts(height, crops[0], strides[0]);
  const columns = starts(width, crops[1], strides[1]);
  let sum: Tensor | undefined;
  for (const y of rows) {
    for (const x of columns) {
      const logits = resize(logitsOf(images.narrow(2, y, h).narrow(3, x, w)), [h, w], alignCorners);
      sum ??= logits.newZeros([logits.shape[0] ?? 0, logits.shape[1] ?? 0, height, width]);
      sum.narrow(2, y, h).narrow(3, x, w).add_(logits);
    }
  }
  const total = sum as Tensor;
  const kind = { dtype: total.dtype, device: total.device };
  const visits = aten.outer(tensor(coverage(rows, h, height), kind), tensor(coverage(columns, w, width), kind));
  return total.div(visits);
}

/** How many windows see each position of an axis. */
function coverage(starts: readonly number[], window: number, length: number): number[] {
  return Array.from({ length }, (_, i) => starts.filter((start) => start <= i && i < start + window).length);
}

/** What `probabilities` does after the logits. */
export interface ProbabilityOptions {
  /** Height and width of the image before it was resized. Default: that of the logits. */
  readonly originalSize?: readonly [height: number, width: number];
  /** Whether the image was mirrored left to right. Default false. */
  readonly flipped?: boolean;
  readonly alignCorners?: boolean;
}

/** Logits [B, K, h, w] to probabilities of the classes at the original size, mirrored back. Their mean over views is test-time augmentation. */
export function probabilities(logits: Tensor, options: ProbabilityOptions = {}): Tensor {
  const { originalSize = sizeOf(logits), flipped = false, alignCorners = false } = options;
  const result = resize(logits, originalSize, alignCorners).softmax(1);
  return flipped ? result.flip([3]) : result;
}
