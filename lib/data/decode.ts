/** Image files to pixels, with sharp (libvips): decoded in its thread pool, off the JavaScript thread. */
import { closeSync, openSync, readSync, statSync } from 'node:fs';
import type Sharp from 'sharp';
import { requirePackage } from '../native/packages.js';
import type { Image } from './image.js';
import { SampleError } from './samples.js';

const sharp = (): typeof Sharp => requirePackage('sharp') as typeof Sharp;

/** A file that is no image, is broken, or cannot be read. */
export class ImageError extends SampleError {
  /** @param path the file, or the name given for bytes */
  constructor(path: string, reason: string, options?: ErrorOptions) {
    super(path, `cannot decode the image ${path}: ${reason}`, options);
    this.name = 'ImageError';
  }
}

/** File name endings (lower case) that count as images in a folder. */
export const imageSuffixes: readonly string[] = [
  '.jpg',
  '.jpeg',
  '.png',
  '.webp',
  '.gif',
  '.tif',
  '.tiff',
  '.avif',
  '.bmp',
  '.ppm',
  '.pgm',
  '.heic',
  '.jp2',
  '.jxl',
];

/** True if the name ends as image files do, upper or lower case. */
export function hasImageSuffix(name: string): boolean {
  if (typeof name !== 'string') throw new TypeError(`hasImageSuffix: expected a file's name, got ${typeof name}`);
  const dot = name.lastIndexOf('.');
  return dot >= 0 && imageSuffixes.includes(name.slice(dot).toLowerCase());
}

// autoOrient: the EXIF orientation is applied. ignoreIcc: pixel values as stored, which is what the pretrained networks
// saw (Pillow does not apply profiles either). failOn 'error': missing or damaged pixels are refused, mere warnings
// (such as odd metadata) are not.
const options = { autoOrient: true, ignoreIcc: true, failOn: 'error' } as const;

/**
 * Decodes an image file, or the bytes of one, to 8-bit RGB: the pixels that Pillow's
 * `ImageOps.exif_transpose(Image.open(f)).convert('RGB')` gives. Gray is repeated, palettes are looked up, an alpha
 * channel is dropped, CMYK is converted by Pillow's formula, of 16 bits the high 8 are kept, and of an animation the
 * first frame. JPEG, PNG, WebP, GIF, TIFF and AVIF; at most 268 megapixels.
 *
 * @param name stands for the bytes in error messages
 * @throws ImageError naming the file
 */
export async function decodeImage(source: string | Uint8Array, name?: string): Promise<Image> {
  const label = name ?? (typeof source === 'string' ? source : '(bytes)');
  const open = sharp(); // outside of the try: that sharp itself cannot be loaded is no fault of the image
  try {
    const { data, info } = await open(source, options)
      .toColourspace('srgb')
      .removeAlpha()
      .raw({ depth: 'uchar' })
      .toBuffer({ resolveWithObject: true });
    // Looked at afterwards, when the file is surely in the page cache: CMYK is rare, and one job per file for the
    // thread pool keeps it busy while the JavaScript thread is inside a training step.
    if (await isCmyk(source)) return await decodeCmyk(source);
    if (info.channels !== 3) throw new Error(`it has ${String(info.channels)} channels after conversion to RGB`);
    return { data: bytes(data), width: info.width, height: info.height, channels: 3 };
  } catch (error) {
    throw new ImageError(label, explain(error, source), { cause: error });
  }
}

/** CMYK to RGB without profiles, as Pillow does: each of R, G, B is (255 - K) less its ink's share of that. */
async function decodeCmyk(source: string | Uint8Array): Promise<Image> {
  const { data, info } = await sharp()(source, options)
    .pipelineColourspace('cmyk')
    .toColourspace('cmyk')
    .raw({ depth: 'uchar' })
    .toBuffer({ resolveWithObject: true });
  if (info.channels < 4) throw new Error(`expected the four channels of CMYK, got ${String(info.channels)}`);
  const count = info.width * info.height;
  const rgb = new Uint8Array(count * 3);
  for (let i = 0; i < count; i++) {
    const from = i * info.channels;
    const white = 255 - (data[from + 3] ?? 0);
    for (let c = 0; c < 3; c++) {
      const product = (data[from + c] ?? 0) * white + 128;
      rgb[i * 3 + c] = white - ((product + (product >> 8)) >> 8);
    }
  }
  return { data: rgb, width: info.width, height: info.height, channels: 3 };
}

function bytes(data: Buffer): Uint8Array {
  return new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
}

function explain(error: unknown, source: string | Uint8Array): string {
  const message = (error instanceof Error ? error.message : String(error)).replace(/\s+/g, ' ').trim();
  if (message.startsWith('Input file is missing')) return 'no such file';
  if (message.includes('empty')) return 'it is empty (0 bytes)';
  if (message.includes('unsupported image format')) {
    const file = typeof source === 'string' ? statSync(source, { throwIfNoEntry: false }) : undefined;
    if (file?.isDirectory()) return 'it is a folder';
    if (file?.size === 0) return 'it is empty (0 bytes)';
    return 'it is not an image, or of a kind that is not supported (JPEG, PNG, WebP, GIF, TIFF, AVIF are)';
  }
  return message;
}

async function isCmyk(source: string | Uint8Array): Promise<boolean> {
  const read = typeof source === 'string' ? fileReader(source) : undefined;
  const at = (position: number, length: number): Uint8Array =>
    read ? read.at(position, length) : (source as Uint8Array).subarray(position, position + length);
  try {
    const [first, second] = at(0, 4);
    if (first === 0xff && second === 0xd8) return jpegComponents(at) === 4;
    const isTiff = first === second && (first === 0x49 || first === 0x4d);
    return isTiff && (await sharp()(source, options).metadata()).space === 'cmyk';
  } finally {
    read?.close();
  }
}

/** The number of color components in a JPEG's frame header; 0 if there is none. */
function jpegComponents(at: (position: number, length: number) => Uint8Array): number {
  let position = 2;
  for (;;) {
    const segment = at(position, 10);
    const marker = segment[1];
    if (segment.length < 10 || segment[0] !== 0xff || marker === undefined) return 0;
    if (marker === 0xff) {
      position += 1; // padding before a marker
      continue;
    }
    // SOF0 ... SOF15, except DHT (C4), JPG (C8) and DAC (CC), which share the range.
    if (marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker)) return segment[9] ?? 0;
    position += 2 + ((segment[2] ?? 0) << 8) + (segment[3] ?? 0);
  }
}

function fileReader(path: string): { at(position: number, length: number): Uint8Array; close(): void } {
  const file = openSync(path, 'r');
  return {
    at(position, length) {
      const buffer = new Uint8Array(length);
      return buffer.subarray(0, readSync(file, buffer, 0, length, position));
    },
    close() {
      closeSync(file);
    },
  };
}
