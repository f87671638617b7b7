/**
 * Color adjustments of 8-bit RGB images: the formulas and the rounding of torchvision's tensor functions
 * (`adjust_brightness`, ...), on bytes. A factor of 1 (hue: 0) changes nothing.
 */
import type { Image } from './image.js';

const { fround } = Math;

function rgbBytes(image: Image, what: string): Uint8Array {
  if (!(image.data instanceof Uint8Array) || image.channels !== 3) {
    throw new TypeError(`${what}: expected an 8-bit RGB image; adjust colors before toFloat`);
  }
  return image.data;
}

/** Float32 product and sum as LibTorch rounds them, clamped, and truncated as its conversion to bytes does. */
function toByte(value: number): number {
  return value <= 0 ? 0 : value >= 255 ? 255 : Math.trunc(value);
}

/** The gray value of a pixel, a whole number: ITU-R 601 weights, truncated. */
function gray(data: Uint8Array, i: number): number {
  const red = fround(fround(0.2989) * (data[i] ?? 0));
  const green = fround(fround(0.587) * (data[i + 1] ?? 0));
  const blue = fround(fround(0.114) * (data[i + 2] ?? 0));
  return Math.trunc(fround(fround(red + green) + blue));
}

/** `ratio * value + (1 - ratio) * other` for every byte value, when `other` is one number for the whole image. */
function blendTable(ratio: number, other: number): Uint8Array {
  const table = new Uint8Array(256);
  const rest = fround(fround(1 - ratio) * other);
  for (let value = 0; value < 256; value++) table[value] = toByte(fround(fround(fround(ratio) * value) + rest));
  return table;
}

function lookUp(image: Image, data: Uint8Array, table: Uint8Array): Image {
  const result = new Uint8Array(data.length);
  for (let i = 0; i < data.length; i++) result[i] = table[data[i] ?? 0] ?? 0;
  return { ...image, data: result };
}

/** Blends with black: `factor` 0 is black, 2 twice as bright. */
export function adjustBrightness(image: Image, factor: number): Image {
  return lookUp(image, rgbBytes(image, 'adjustBrightness'), blendTable(factor, 0));
}

/** Blends with the mean gray of the image: `factor` 0 is one gray, 2 twice the contrast. */
export function adjustContrast(image: Image, factor: number): Image {
  const data = rgbBytes(image, 'adjustContrast');
  let sum = 0;
  for (let i = 0; i < data.length; i += 3) sum += gray(data, i);
  return lookUp(image, data, blendTable(factor, fround(sum / (image.width * image.height))));
}

/** Blends each pixel with its gray: `factor` 0 is a gray image, 2 twice as colorful. */
export function adjustSaturation(image: Image, factor: number): Image {
  const data = rgbBytes(image, 'adjustSaturation');
  const result = new Uint8Array(data.length);
  const ratio = fround(factor);
  const inverse = fround(1 - factor);
  for (let i = 0; i < data.length; i += 3) {
    const rest = fround(inverse * gray(data, i));
    for (let c = i; c < i + 3; c++) result[c] = toByte(fround(fround(ratio * (data[c] ?? 0)) + rest));
  }
  return { ...image, data: result };
}

/** Turns the hue by `factor` of the color circle, from -0.5 to 0.5, through HSV. */
export function adjustHue(image: Image, factor: number): Image {
  if (!(factor >= -0.5 && factor <= 0.5))
    throw new RangeError(`adjustHue: expected -0.5 to 0.5, got ${String(factor)}`);
  const data = rgbBytes(image, 'adjustHue');
  const result = new Uint8Array(data.length);
  for (let i = 0; i < data.length; i += 3) {
    const r = fround((data[i] ?? 0) / 255);
    const g = fround((data[i + 1] ?? 0) / 255);
    const b = fround((data[i + 2] ?? 0) / 255);
    const max = Math.max(r, g, b);
    const range = fround(max - Math.min(r, g, b));
    const saturation = range === 0 ? 0 : fround(range / max);
    const hue = fround(mod1(fround(hueOf(r, g, b, max, range) + fround(factor))));
    const sextant = fround(hue * 6);
    const sector = Math.floor(sextant);
    const f = fround(sextant - sector);
    const p = unit(fround(max * fround(1 - saturation)));
    const q = unit(fround(max * fround(1 - fround(saturation * f))));
    const t = unit(fround(max * fround(1 - fround(saturation * fround(1 - f)))));
    const [red, green, blue] = sectorColor(sector % 6, max, p, q, t);
    // To bytes as torchvision's convert_image_dtype: the unit interval in 256 equal parts.
    result[i] = Math.trunc(fround(red * fround(255.999)));
    result[i + 1] = Math.trunc(fround(green * fround(255.999)));
    result[i + 2] = Math.trunc(fround(blue * fround(255.999)));
  }
  return { ...image, data: result };
}

/** Adds `amount` (of 255) to every value. */
export function addBrightness(image: Image, amount: number): Image {
  const table = Uint8Array.from({ length: 256 }, (_, value) => toByte(value + amount));
  return lookUp(image, rgbBytes(image, 'addBrightness'), table);
}

/** Multiplies the saturation (of hue, saturation and value) by `factor`, up to full saturation. */
export function scaleSaturation(image: Image, factor: number): Image {
  const data = rgbBytes(image, 'scaleSaturation');
  const result = new Uint8Array(data.length);
  for (let i = 0; i < data.length; i += 3) {
    const [r, g, b] = [data[i] ?? 0, data[i + 1] ?? 0, data[i + 2] ?? 0];
    const value = Math.max(r, g, b);
    // Each channel's distance from the largest is in proportion to the saturation, which is at most 1 when one is 0.
    const scale = Math.min(factor, value / Math.max(1, value - Math.min(r, g, b)));
    for (let c = i; c < i + 3; c++) result[c] = toByte(value - (value - (data[c] ?? 0)) * scale + 0.5);
  }
  return { ...image, data: result };
}

/** The place on the color circle, 0 to 1, of a color with the given maximum and range. */
function hueOf(r: number, g: number, b: number, max: number, range: number): number {
  const divisor = range === 0 ? 1 : range;
  const rc = fround(fround(max - r) / divisor);
  const gc = fround(fround(max - g) / divisor);
  const bc = fround(fround(max - b) / divisor);
  const h = max === r ? bc - gc : max === g ? 2 + rc - bc : 4 + gc - rc;
  return fround(fround(fround(h) / 6 + 1) % 1);
}

function mod1(x: number): number {
  return x - Math.floor(x);
}

function unit(x: number): number {
  return x < 0 ? 0 : x > 1 ? 1 : x;
}

function sectorColor(sector: number, v: number, p: number, q: number, t: number): readonly [number, number, number] {
  switch (sector) {
    case 0:
      return [v, t, p];
    case 1:
      return [q, v, p];
    case 2:
      return [p, v, t];
    case 3:
      return [p, q, v];
    case 4:
      return [t, p, v];
    default:
      return [v, p, q];
  }
}
