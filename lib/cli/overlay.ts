/** Pictures of what a model finds: classes as colors over the pixels with a legend, boxes with labels. */
import type { Image } from '../data/index.js';
import { drawText, LETTER_HEIGHT, textWidth } from './pixel_font.js';

type Color = readonly [red: number, green: number, blue: number];

const BLACK: Color = [0, 0, 0];
const WHITE: Color = [255, 255, 255];
/** Hues far from all before them. */
const GOLDEN = 0.618033988749895;

/** The color of a class, the same in every picture. */
export function classColor(label: number): Color {
  const hue = (6 * ((label * GOLDEN + 0.02) % 1)) % 6;
  const channel = (shift: number): number => {
    const k = (shift + hue) % 6;
    return Math.round(255 * (0.95 - 0.8 * Math.max(0, Math.min(k, 4 - k, 1))));
  };
  return [channel(5), channel(3), channel(1)];
}

/** Black or white, whichever can be read on a color. */
const inkOn = ([r, g, b]: Color): Color => (0.3 * r + 0.59 * g + 0.11 * b > 128 ? BLACK : WHITE);

/** The longer side of a picture is made at least so long, by whole factors. */
const LEAST_SIDE = 256;

/** Bytes to draw on. */
class Canvas {
  readonly data: Uint8Array;

  constructor(
    readonly width: number,
    readonly height: number,
    /** Pixels per pixel of a letter. */
    readonly scale: number,
  ) {
    this.data = new Uint8Array(3 * width * height);
  }

  set(x: number, y: number, color: Color, share = 1): void {
    if (x < 0 || y < 0 || x >= this.width || y >= this.height) return;
    const at = 3 * (y * this.width + x);
    for (let c = 0; c < 3; c++) this.data[at + c] = Math.round((1 - share) * this.data[at + c]! + share * color[c]!);
  }

  fill(left: number, top: number, width: number, height: number, color: Color): void {
    for (let y = top; y < top + height; y++) for (let x = left; x < left + width; x++) this.set(x, y, color);
  }

  /** A text with its upper left corner here. */
  text(text: string, left: number, top: number, color: Color): void {
    const { scale } = this;
    drawText(text, (x, y) => this.fill(left + x * scale, top + y * scale, scale, scale, color));
  }

  async save(path: string): Promise<void> {
    const { default: sharp } = await import('sharp');
    const { width, height } = this;
    await sharp(this.data, { raw: { width, height, channels: 3 } })
      .png()
      .toFile(path);
  }
}

/** The image, enlarged if it is small, with `below` more rows. */
function canvasOf({ data, width, height, channels }: Image, below: (scale: number) => number): [Canvas, number] {
  const factor = Math.max(1, Math.ceil(LEAST_SIDE / Math.max(width, height)));
  const scale = Math.max(1, Math.round((factor * Math.max(width, height)) / 256));
  const canvas = new Canvas(width * factor, height * factor + below(scale), scale);
  const byte = data instanceof Uint8Array ? 1 : 255;
  for (let y = 0; y < height * factor; y++) {
    const row = Math.floor(y / factor) * width;
    for (let x = 0; x < width * factor; x++) {
      const from = (row + Math.floor(x / factor)) * channels;
      const color = [0, 1, 2].map((c) => byte * data[from + Math.min(c, channels - 1)]!) as [number, number, number];
      canvas.set(x, y, color);
    }
  }
  return [canvas, factor];
}

/** How much of a pixel is its class's color. */
const OPACITY = 0.55;
/** Rows of pixels around the letters of a legend. */
const GAP = 2;

/**
 * Writes a PNG of an image under the colors of its pixels' classes, with a legend of the classes below.
 *
 * @param labels class of each pixel, row by row
 * @param legend the classes to list: number and text
 */
export async function writeMaskOverlay(
  path: string,
  image: Image,
  labels: ArrayLike<number>,
  legend: readonly { readonly label: number; readonly text: string }[],
): Promise<void> {
  const row = (scale: number): number => (LETTER_HEIGHT + 2 * GAP) * scale;
  const [canvas, factor] = canvasOf(image, (scale) => legend.length * row(scale));
  const height = image.height * factor;
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < canvas.width; x++) {
      const label = labels[Math.floor(y / factor) * image.width + Math.floor(x / factor)]!;
      canvas.set(x, y, classColor(label), OPACITY);
    }
  }
  const { scale } = canvas;
  const swatch = LETTER_HEIGHT * scale;
  canvas.fill(0, height, canvas.width, canvas.height - height, WHITE);
  legend.forEach(({ label, text }, i) => {
    const top = height + i * row(scale) + GAP * scale;
    canvas.fill(GAP * scale, top, swatch, swatch, classColor(label));
    canvas.text(text, 2 * GAP * scale + swatch, top, BLACK);
  });
  await canvas.save(path);
}

/** A box in pixels of the image, and what is written above it. */
export interface LabeledBox {
  readonly box: readonly [x1: number, y1: number, x2: number, y2: number];
  readonly label: number;
  readonly text: string;
}

/** Writes a PNG of an image with boxes and their labels; the first box is drawn last. */
export async function writeBoxOverlay(path: string, image: Image, boxes: readonly LabeledBox[]): Promise<void> {
  const [canvas, factor] = canvasOf(image, () => 0);
  const { scale } = canvas;
  const thick = 2 * scale;
  for (const { box, label, text } of [...boxes].reverse()) {
    const color = classColor(label);
    const [left, top, right, bottom] = box.map((side) => Math.round(side * factor)) as [number, number, number, number];
    canvas.fill(left, top, right - left, thick, color);
    canvas.fill(left, bottom - thick, right - left, thick, color);
    canvas.fill(left, top, thick, bottom - top, color);
    canvas.fill(right - thick, top, thick, bottom - top, color);
    const height = (LETTER_HEIGHT + 2) * scale;
    const above = top >= height ? top - height : top;
    canvas.fill(left, above, (textWidth(text) + 2) * scale, height, color);
    canvas.text(text, left + scale, above + scale, inkOn(color));
  }
  await canvas.save(path);
}

/** Names for overlays of files: `a/1.jpg` to `1.png`, and `1_2.png` where that is taken. */
export function overlayNames(paths: readonly string[]): string[] {
  const taken = new Set<string>();
  return paths.map((path) => {
    const stem = path.replace(/^.*[\\/]/, '').replace(/\.[^.]*$/, '');
    let name = stem;
    for (let i = 2; taken.has(name); i++) name = `${stem}_${i}`;
    taken.add(name);
    return `${name}.png`;
  });
}
