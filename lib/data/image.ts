import { aten, fromTypedArray, scope, type Tensor } from '../tensor/index.js';

/**
 * A decoded image in plain memory: row after row, the channels of a pixel side by side, `data[(y * width + x) * channels + c]`.
 * Images are plain values and not tensors because they live across `await`s and in caches, where no scope could free them.
 */
export interface Image {
  /** Bytes 0-255, or floats in whatever range they came. */
  readonly data: Uint8Array | Float32Array;
  readonly width: number;
  readonly height: number;
  /** 3 (red, green, blue) for everything that is decoded here. */
  readonly channels: number;
}

/** How an image is resampled: `bilinear` and `bicubic` are Pillow's filters, antialiased when shrinking. */
export type Interpolation = 'bilinear' | 'bicubic';

/** Checks that an image is what its fields say. @throws TypeError or RangeError that names the field */
export function checkImage(image: Image, where: string): Image {
  const data: unknown = image?.data;
  if (!(data instanceof Uint8Array || data instanceof Float32Array)) {
    throw new TypeError(`${where}: expected an image { data, width, height, channels } with bytes or floats`);
  }
  for (const key of ['width', 'height', 'channels'] as const) {
    if (!Number.isInteger(image[key]) || image[key] < 1) {
      throw new RangeError(`${where}: the image's ${key} must be a whole number from 1 on, got ${String(image[key])}`);
    }
  }
  const expected = image.width * image.height * image.channels;
  if (data.length !== expected) {
    throw new RangeError(`${where}: an image of these sizes has ${expected} values, this one ${data.length}`);
  }
  return image;
}

/** Height, width and channels, for messages. */
export function describeSize({ height, width, channels }: Image): string {
  return `${String(height)}x${String(width)}x${String(channels)}`;
}

/** An array of `length` elements of the kind that `data` is. */
export function emptyLike(data: Uint8Array | Float32Array, length: number): Uint8Array | Float32Array {
  return data instanceof Uint8Array ? new Uint8Array(length) : new Float32Array(length);
}

/** The image as a tensor [C, H, W] of its own type (uint8 or float32), in memory of its own. */
export function imageToTensor(image: Image): Tensor {
  return scope(() => {
    const rows = fromTypedArray(image.data, [image.height, image.width, image.channels]);
    return rows.permute([2, 0, 1]).contiguous();
  });
}

/** The image that a tensor [C, H, W] of uint8 or float32 shows; copies. */
export function imageFromTensor(tensor: Tensor): Image {
  const [channels, height, width] = tensor.shape;
  if (tensor.ndim !== 3 || channels === undefined || height === undefined || width === undefined) {
    throw new TypeError(`imageFromTensor: expected a tensor [C, H, W], got shape [${tensor.shape.join(', ')}]`);
  }
  return { data: bytesOrFloats(scope(() => tensor.permute([1, 2, 0]).data())), width, height, channels };
}

/**
 * Resizes to exactly `height` x `width`, as Pillow's `Image.resize` does with its BILINEAR or BICUBIC filter: triangle
 * or cubic (a = -0.5) kernel, widened by the scale when shrinking. At least 99 % of the values are within 1/255 of
 * Pillow's. The image itself is returned when it has that size already.
 */
export function resizeImage(
  image: Image,
  height: number,
  width: number,
  interpolation: Interpolation = 'bilinear',
): Image {
  const { channels } = checkImage(image, 'resizeImage');
  if (image.height === height && image.width === width) return image;
  const data = scope(() => {
    // Channels stay last in memory: LibTorch resamples bytes fastest, and with Pillow's fixed-point sums, in that layout.
    const source = fromTypedArray(image.data, [1, image.height, image.width, channels]).permute([0, 3, 1, 2]);
    const resample = interpolation === 'bilinear' ? aten._upsampleBilinear2dAa : aten._upsampleBicubic2dAa;
    return resample(source, [height, width], false).permute([0, 2, 3, 1]).data();
  });
  return { data: bytesOrFloats(data), width, height, channels };
}

function bytesOrFloats(data: unknown): Uint8Array | Float32Array {
  if (data instanceof Uint8Array || data instanceof Float32Array) return data;
  throw new TypeError('an image must hold uint8 or float32 values; convert the tensor with .to(...) first');
}
