import { checkImage, emptyLike, type Image } from './image.js';

/** A rectangle of an image, in pixels; may reach over its edges. */
export interface Box {
  readonly top: number;
  readonly left: number;
  readonly height: number;
  readonly width: number;
}

/**
 * Cuts out `box`; what lies outside of the image gets the value `fill`, one number or one per channel. So padding
 * followed by cropping is one copy.
 */
export function cropImage(image: Image, box: Box, fill: number | readonly number[] = 0): Image {
  const { data, width, height, channels } = checkImage(image, 'cropImage');
  checkBox(box);
  if (box.top === 0 && box.left === 0 && box.height === height && box.width === width) return image;
  const result = emptyLike(data, box.height * box.width * channels);
  const x0 = Math.max(box.left, 0);
  const x1 = Math.min(box.left + box.width, width);
  const y0 = Math.max(box.top, 0);
  const y1 = Math.min(box.top + box.height, height);
  const inside = x0 === box.left && y0 === box.top && x1 - x0 === box.width && y1 - y0 === box.height;
  if (!inside) fillWith(result, channels, fill);
  if (x1 > x0) {
    for (let y = y0; y < y1; y++) {
      const from = (y * width + x0) * channels;
      const to = ((y - box.top) * box.width + (x0 - box.left)) * channels;
      result.set(data.subarray(from, from + (x1 - x0) * channels), to);
    }
  }
  return { data: result, width: box.width, height: box.height, channels };
}

/** Far more than any image has, and little enough to be counted. */
const MAX_SIDE = 2 ** 20;

function checkBox(box: Box): void {
  const inRange = (value: number, low: number): boolean => Number.isInteger(value) && value >= low && value <= MAX_SIDE;
  const { top, left, height, width } = box;
  if (inRange(top, -MAX_SIDE) && inRange(left, -MAX_SIDE) && inRange(height, 1) && inRange(width, 1)) return;
  throw new RangeError(
    `cropImage: expected a box { top, left, height, width } of whole numbers, height and width from 1 to ${MAX_SIDE}`,
  );
}

function fillWith(data: Uint8Array | Float32Array, channels: number, fill: number | readonly number[]): void {
  if (typeof fill === 'number') {
    if (fill !== 0) data.fill(fill);
    return;
  }
  if (fill.length !== channels) {
    throw new RangeError(
      `fill: expected one number or ${String(channels)} (one per channel), got ${String(fill.length)}`,
    );
  }
  for (let i = 0; i < data.length; i++) data[i] = fill[i % channels] ?? 0;
}

/** Mirrors left and right. */
export function flipHorizontal(image: Image): Image {
  const { data, width, height, channels } = checkImage(image, 'flipHorizontal');
  const result = emptyLike(data, data.length);
  const rowLength = width * channels;
  for (let start = 0; start < data.length; start += rowLength) {
    for (let x = 0; x < width; x++) {
      const from = start + x * channels;
      const to = start + (width - 1 - x) * channels;
      for (let c = 0; c < channels; c++) result[to + c] = data[from + c] ?? 0;
    }
  }
  return { data: result, width, height, channels };
}

/** Mirrors top and bottom. */
export function flipVertical(image: Image): Image {
  const { data, width, height, channels } = checkImage(image, 'flipVertical');
  const result = emptyLike(data, data.length);
  const rowLength = width * channels;
  for (let y = 0; y < height; y++) {
    result.set(data.subarray(y * rowLength, (y + 1) * rowLength), (height - 1 - y) * rowLength);
  }
  return { data: result, width, height, channels };
}

/** Rounds to the nearest integer, halves to the even one, as Python's `round` does. */
export function roundHalfEven(x: number): number {
  const rounded = Math.round(x);
  return Math.abs(x % 1) === 0.5 && rounded % 2 !== 0 ? rounded - 1 : rounded;
}

/**
 * The box of size `height` x `width` in the middle of an image; reaches over the edges of a smaller one. The halves of
 * odd differences fall as in torchvision's `center_crop`.
 */
export function centerBox(image: Image, height: number, width: number): Box {
  const offset = (have: number, want: number): number =>
    want > have ? -Math.floor((want - have) / 2) : roundHalfEven((have - want) / 2);
  return { top: offset(image.height, height), left: offset(image.width, width), height, width };
}
