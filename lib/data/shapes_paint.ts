/**
 * The painter of the `shapes` data set. Only + - * / and square roots are used (no sine, no exponential), whose results
 * are the same on every machine.
 */
import type { Random } from './random.js';
import { insideShape } from './shapes_forms.js';

/** Class numbers of everything in a picture, and how many objects there are. */
export interface Scene {
  readonly shape: number;
  readonly texture: number;
  readonly color: number;
  readonly size: number;
  readonly rotation: number;
  readonly position: number;
  readonly count: number;
  /** Placed anywhere and at a size that leaves room for five, instead of according to `position` and `size`. */
  readonly isScattered: boolean;
}

/** Red, green, blue from 0 to 1. */
type Color = readonly [number, number, number];

/** Hue of each color class in sixths of the circle, and how far it may stray. */
const hues: readonly (readonly [center: number, spread: number])[] = [
  [0, 0.12],
  [0.52, 0.1],
  [0.98, 0.1],
  [2, 0.35],
  [3, 0.2],
  [4, 0.25],
  [4.65, 0.15],
  [5.4, 0.17],
];

/** Half the extent of the object as a share of the picture, [least, most] per size class. */
const radii: readonly (readonly [number, number])[] = [
  [0.11, 0.125],
  [0.15, 0.17],
  [0.2, 0.225],
  [0.265, 0.3],
];

/** Subpixels per pixel and direction. */
const SUBPIXELS = 3;

/** Where an object is: its middle and half its extent as shares of the picture, and how it is turned. */
export interface Placement {
  readonly x: number;
  readonly y: number;
  readonly radius: number;
  /** Cosine and sine of the rotation. */
  readonly cos: number;
  readonly sin: number;
}

/** How an object is painted. */
export interface Look {
  readonly fill: Color;
  readonly second: Color;
  readonly texture: Texture;
}

/** The picture of a scene, RGB bytes of `size` x `size`; details such as exact places come from `random`. */
export function paint(scene: Scene, size: number, clutter: number, random: Random): Uint8Array {
  const canvas = paintBackdrop(size, clutter, random);
  const objects = place(scene, random);
  const look = drawLook(scene, random);
  for (const object of objects) paintObject(canvas, size, object, scene.shape, look);
  return withNoise(canvas, clutter, random);
}

/** What is behind the objects: a background and the clutter on it. RGB from 0 to 1. */
export function paintBackdrop(size: number, clutter: number, random: Random): Float32Array {
  const canvas = background(size, random);
  const distractors = Math.round(clutter * random.uniform(5, 11));
  for (let i = 0; i < distractors; i++) paintDistractor(canvas, size, random);
  return canvas;
}

/** Colors and texture of an object of these classes. */
export function drawLook({ color, texture }: Pick<Scene, 'color' | 'texture'>, random: Random): Look {
  const fill = objectColor(color, random);
  const second = contrasting(fill, random);
  const textureSeed = random.uint32();
  return { fill, second, texture: makeTexture(texture, textureSeed, random) };
}

/** A smooth mixture of random colors on a 4 x 4 grid, with a faint texture of its own. */
function background(size: number, random: Random): Float32Array {
  const cells = 4;
  const base = anyColor(random);
  const grid = Array.from({ length: cells * cells }, () => mixColors(base, anyColor(random), random.uniform(0.1, 0.6)));
  const canvas = new Float32Array(size * size * 3);
  const step = (cells - 1) / size;
  for (let y = 0; y < size; y++) {
    const v = (y + 0.5) * step;
    const row = Math.floor(v);
    for (let x = 0; x < size; x++) {
      const u = (x + 0.5) * step;
      const column = Math.floor(u);
      const fx = smooth(u - column);
      const fy = smooth(v - row);
      const i = row * cells + column;
      const [a, b, c, d] = [grid[i], grid[i + 1], grid[i + cells], grid[i + cells + 1]];
      for (let k = 0; k < 3; k++) {
        const top = (a?.[k] ?? 0) * (1 - fx) + (b?.[k] ?? 0) * fx;
        const bottom = (c?.[k] ?? 0) * (1 - fx) + (d?.[k] ?? 0) * fx;
        canvas[(y * size + x) * 3 + k] = top * (1 - fy) + bottom * fy;
      }
    }
  }
  return canvas;
}

function smooth(t: number): number {
  return t * t * (3 - 2 * t);
}

/** A stroke, from a short blot to a line across half of the picture, in any color. */
function paintDistractor(canvas: Float32Array, size: number, random: Random): void {
  const color = anyColor(random);
  const opacity = random.uniform(0.35, 0.9);
  const width = random.uniform(0.012, 0.035);
  const isBlot = random.chance(0.4);
  const length = isBlot ? random.uniform(0, 0.05) : random.uniform(0.15, 0.5);
  const [dx, dy] = direction(random.uniform());
  const [ax, ay] = [random.uniform(), random.uniform()];
  const [bx, by] = [ax + dx * length, ay + dy * length];
  const lengthSquared = length * length || 1;
  const cover = (x: number, y: number): boolean => {
    const along = Math.min(1, Math.max(0, ((x - ax) * (bx - ax) + (y - ay) * (by - ay)) / lengthSquared));
    const ex = x - ax - along * (bx - ax);
    const ey = y - ay - along * (by - ay);
    return ex * ex + ey * ey <= width * width;
  };
  const box = {
    left: Math.min(ax, bx) - width,
    right: Math.max(ax, bx) + width,
    top: Math.min(ay, by) - width,
    bottom: Math.max(ay, by) + width,
  };
  rasterize(canvas, size, box, 2, (x, y) => (cover(x, y) ? color : undefined), opacity);
}

/** Where the objects are: one in its cell of a 3 x 3 grid, or several that do not overlap. */
function place(scene: Scene, random: Random): Placement[] {
  const [least, most] = radii[scene.size] ?? [0.2, 0.2];
  // Eight directions, counterclockwise from up, and up to 14 degrees astray.
  const turn = (): number => scene.rotation / 8 + random.uniform(-0.04, 0.04);
  const radius = random.uniform(least, most);
  if (!scene.isScattered) {
    const column = scene.position % 3;
    const row = Math.floor(scene.position / 3);
    const middle = (cell: number): number =>
      clamp((cell + 0.5) / 3 + random.uniform(-0.07, 0.07), radius * 0.9, 1 - radius * 0.9);
    const [cos, sin] = direction(turn());
    return [{ x: middle(column), y: middle(row), radius, cos, sin }];
  }
  return scatter(scene.count, (shrink) => clamp(radius, 0.1, 0.17) * shrink * random.uniform(0.9, 1.1), random);
}

/** Objects anywhere, turned anyhow, that do not overlap; `radius` of a factor that falls until there is room for all. */
export function scatter(count: number, radius: (shrink: number) => number, random: Random): Placement[] {
  const objects: Placement[] = [];
  let shrink = 1;
  while (objects.length < count) {
    const r = radius(shrink);
    const x = random.uniform(r, 1 - r);
    const y = random.uniform(r, 1 - r);
    const isFree = objects.every(
      (other) => square(other.x - x) + square(other.y - y) > square((other.radius + r) * 1.02),
    );
    if (isFree) {
      const [cos, sin] = direction(random.uniform());
      objects.push({ x, y, radius: r, cos, sin });
    } else shrink *= 0.99;
  }
  return objects;
}

function square(x: number): number {
  return x * x;
}

function clamp(x: number, low: number, high: number): number {
  return Math.min(Math.max(x, low), high);
}

/** True where the texture shows the second color, at a point of the object's own frame. */
type Texture = (x: number, y: number) => boolean;

/** Textures lie at their own angle, so that stripes do not tell the rotation. */
function makeTexture(kind: number, seed: number, random: Random): Texture {
  const [cos, sin] = direction(random.uniform());
  const shift = random.uniform();
  const period = random.uniform(0.5, 0.62);
  const along = (x: number, y: number): number => (x * cos + y * sin) / period + shift;
  const across = (x: number, y: number): number => (y * cos - x * sin) / period + shift;
  switch (kind) {
    case 1: // stripes
      return (x, y) => fraction(along(x, y)) < 0.5;
    case 2: // checker
      return (x, y) => fraction(along(x, y) * 0.8) < 0.5 !== fraction(across(x, y) * 0.8) < 0.5;
    case 3: // dots
      return (x, y) => square(fraction(along(x, y)) - 0.5) + square(fraction(across(x, y)) - 0.5) < 0.085;
    case 4: // rings
      return (x, y) => fraction(Math.sqrt(x * x + y * y) / period + shift) < 0.5;
    case 5: // speckle: each small cell by chance
      return (x, y) => {
        const cell = Math.imul(Math.floor(x * 4 + 64), 0x9e3779b1) ^ Math.imul(Math.floor(y * 4 + 64), 0x85ebca77);
        const hash = Math.imul(cell ^ seed ^ (cell >>> 15), 0x2c1b3c6d);
        return ((hash ^ (hash >>> 13)) & 255) < 96;
      };
    default: // solid
      return () => false;
  }
}

function fraction(x: number): number {
  return x - Math.floor(x);
}

/** @throws RangeError for a shape that is none */
function outline(shape: number): (x: number, y: number) => boolean {
  const inside = insideShape[shape];
  if (!inside) throw new RangeError(`there is no shape ${String(shape)}`);
  return inside;
}

function boundsOf({ x, y, radius }: Placement): Bounds {
  return { left: x - radius, right: x + radius, top: y - radius, bottom: y + radius };
}

/** A point of the picture in the object's own frame. */
function ownFrame(o: Placement, px: number, py: number): readonly [x: number, y: number] {
  const dx = (px - o.x) / o.radius;
  const dy = (o.y - py) / o.radius;
  return [dx * o.cos + dy * o.sin, dy * o.cos - dx * o.sin];
}

/** Paints an object of a shape onto a canvas of `size` x `size` pixels. */
export function paintObject(canvas: Float32Array, size: number, o: Placement, shape: number, look: Look): void {
  const inside = outline(shape);
  rasterize(
    canvas,
    size,
    boundsOf(o),
    SUBPIXELS,
    (px, py) => {
      const [x, y] = ownFrame(o, px, py);
      if (!inside(x, y)) return undefined;
      return look.texture(x, y) ? look.second : look.fill;
    },
    1,
  );
}

/** The numbers of the pixels whose middles an object covers, in a picture of `size` x `size`. */
export function pixelsOf(size: number, o: Placement, shape: number): number[] {
  const inside = outline(shape);
  const covered: number[] = [];
  forPixels(size, boundsOf(o), (px, py) => {
    if (inside(...ownFrame(o, (px + 0.5) / size, (py + 0.5) / size))) covered.push(py * size + px);
  });
  return covered;
}

interface Bounds {
  readonly left: number;
  readonly right: number;
  readonly top: number;
  readonly bottom: number;
}

/** Paints what `color` gives inside `box` (shares of the picture), `n` x `n` samples per pixel. */
function rasterize(
  canvas: Float32Array,
  size: number,
  box: Bounds,
  n: number,
  color: (x: number, y: number) => Color | undefined,
  opacity: number,
): void {
  const weight = opacity / (n * n);
  forPixels(size, box, (px, py) => {
    let [red, green, blue, cover] = [0, 0, 0, 0];
    for (let sy = 0; sy < n; sy++) {
      for (let sx = 0; sx < n; sx++) {
        const sample = color((px + (sx + 0.5) / n) / size, (py + (sy + 0.5) / n) / size);
        if (!sample) continue;
        red += sample[0] * weight;
        green += sample[1] * weight;
        blue += sample[2] * weight;
        cover += weight;
      }
    }
    if (cover === 0) return;
    const i = (py * size + px) * 3;
    canvas[i] = (canvas[i] ?? 0) * (1 - cover) + red;
    canvas[i + 1] = (canvas[i + 1] ?? 0) * (1 - cover) + green;
    canvas[i + 2] = (canvas[i + 2] ?? 0) * (1 - cover) + blue;
  });
}

/** Visits the pixels that a box (shares of the picture) touches, row after row. */
function forPixels(size: number, box: Bounds, visit: (px: number, py: number) => void): void {
  const first = (edge: number): number => Math.max(0, Math.floor(edge * size));
  const last = (edge: number): number => Math.min(size - 1, Math.floor(edge * size));
  for (let py = first(box.top); py <= last(box.bottom); py++) {
    for (let px = first(box.left); px <= last(box.right); px++) visit(px, py);
  }
}

/** Adds noise (triangular), the more the more clutter there is, and converts to bytes. */
export function withNoise(canvas: Float32Array, clutter: number, random: Random): Uint8Array {
  const amount = 0.02 + 0.02 * Math.min(clutter, 2);
  const bytes = new Uint8Array(canvas.length);
  for (let i = 0; i < canvas.length; i++) {
    const bits = random.uint32();
    const noise = ((bits & 0xffff) - (bits >>> 16)) / 0xffff;
    bytes[i] = clamp(Math.floor(((canvas[i] ?? 0) + amount * noise) * 255 + 0.5), 0, 255);
  }
  return bytes;
}

function anyColor(random: Random): Color {
  return hsv(random.uniform(0, 6), random.uniform(0, 0.8), random.uniform(0.15, 0.95));
}

function objectColor(color: number, random: Random): Color {
  const [center, spread] = hues[color] ?? [0, 0];
  return hsv(center + random.uniform(-spread, spread), random.uniform(0.75, 1), random.uniform(0.7, 1));
}

/** The second color of a texture: the same hue, but dark or pale, so that it does not tell another color. */
function contrasting(color: Color, random: Random): Color {
  const target: Color = random.chance(0.5) ? [0.05, 0.05, 0.05] : [0.97, 0.97, 0.97];
  return mixColors(color, target, random.uniform(0.65, 0.8));
}

function mixColors(a: Color, b: Color, t: number): Color {
  return [a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t, a[2] + (b[2] - a[2]) * t];
}

/** RGB of a hue in sixths of the circle (any number), saturation and value from 0 to 1. */
function hsv(hue: number, saturation: number, value: number): Color {
  const channel = (n: number): number => {
    const k = fraction((n + hue) / 6) * 6;
    return value - value * saturation * clamp(Math.min(k, 4 - k), 0, 1);
  };
  return [channel(5), channel(3), channel(1)];
}

/** [cosine, sine] of a part of a full turn (any number), by a polynomial: the same bits on every machine. */
export function direction(turn: number): readonly [number, number] {
  return [sine(turn + 0.25), sine(turn)];
}

function sine(turn: number): number {
  // To a quarter turn around 0, where the series of five terms is good to 4e-6.
  let t = fraction(turn);
  if (t > 0.75) t -= 1;
  else if (t > 0.25) t = 0.5 - t;
  const x = t * 6.283185307179586;
  const s = x * x;
  return x * (1 - (s / 6) * (1 - (s / 20) * (1 - (s / 42) * (1 - s / 72))));
}
