/** Resizing, cropping and mirroring images along with their masks and boxes. */
import { IGNORE_INDEX } from '../nn/index.js';
import { cropImage, flipHorizontal, flipVertical, type Box } from './geometry.js';
import { emptyLike, resizeImage, type Image, type Interpolation } from './image.js';
import type { AnnotatedImage, Objects } from './samples.js';

/** Objects of which less than this many pixels remain, in width or height, are left out. */
const LEAST_EXTENT = 1;

function mapped<S extends AnnotatedImage>(
  sample: S,
  image: Image,
  moveMask: (mask: Image) => Image,
  moveObjects: (objects: Objects) => Objects,
): S {
  const { mask, masks, objects } = sample;
  const moved = masks && Object.fromEntries(Object.entries(masks).map(([task, one]) => [task, moveMask(one)]));
  return {
    ...sample,
    image,
    ...(mask && { mask: moveMask(mask) }),
    ...(moved && { masks: moved }),
    ...(objects && { objects: moveObjects(objects) }),
  };
}

/**
 * Resizes the image as `resizeImage` does, the mask by its nearest pixels, the boxes and areas in proportion.
 *
 * @throws RangeError for an image that is none
 */
export function resizeAnnotated<S extends AnnotatedImage>(
  sample: S,
  height: number,
  width: number,
  interpolation: Interpolation = 'bilinear',
): S {
  const { image } = sample;
  if (image.height === height && image.width === width) return sample;
  return mapped(
    sample,
    resizeImage(image, height, width, interpolation),
    (mask) => resizeNearest(mask, height, width),
    (objects) => scaleObjects(objects, width / image.width, height / image.height),
  );
}

/** Resizes by the pixel in which the middle of each new pixel lies, so that classes stay classes. */
export function resizeNearest(image: Image, height: number, width: number): Image {
  const { data, channels } = image;
  const source = (to: number, from: number): number[] =>
    Array.from({ length: to }, (_, i) => Math.min(from - 1, Math.floor(((2 * i + 1) * from) / (2 * to))));
  const columns = source(width, image.width);
  const result = emptyLike(data, height * width * channels);
  let next = 0;
  for (const row of source(height, image.height)) {
    for (const column of columns) {
      const start = (row * image.width + column) * channels;
      for (let c = 0; c < channels; c++) result[next++] = data[start + c] ?? 0;
    }
  }
  return { data: result, width, height, channels };
}

/**
 * Cuts out `box`. What lies outside of the image gets `fill`, and `IGNORE_INDEX` in the mask. Boxes are cut at the edges,
 * areas shrink in the same proportion, and an object of which less than a pixel is left in one direction is left out.
 *
 * @throws RangeError for a box that is none
 */
export function cropAnnotated<S extends AnnotatedImage>(sample: S, box: Box, fill: number | readonly number[] = 0): S {
  const { image } = sample;
  const isWhole = box.top === 0 && box.left === 0 && box.height === image.height && box.width === image.width;
  if (isWhole) return sample;
  return mapped(
    sample,
    cropImage(image, box, fill),
    (mask) => cropImage(mask, box, IGNORE_INDEX),
    (objects) => cropObjects(objects, box),
  );
}

/** Mirrors left and right. */
export function flipAnnotatedHorizontal<S extends AnnotatedImage>(sample: S): S {
  const { width } = sample.image;
  return mapped(sample, flipHorizontal(sample.image), flipHorizontal, (objects) =>
    moveBoxes(objects, ([x1, y1, x2, y2]) => [width - x2, y1, width - x1, y2]),
  );
}

/** Mirrors top and bottom. */
export function flipAnnotatedVertical<S extends AnnotatedImage>(sample: S): S {
  const { height } = sample.image;
  return mapped(sample, flipVertical(sample.image), flipVertical, (objects) =>
    moveBoxes(objects, ([x1, y1, x2, y2]) => [x1, height - y2, x2, height - y1]),
  );
}

type Corners = readonly [x1: number, y1: number, x2: number, y2: number];

/** The box of one object. */
export function boxOf({ boxes }: Pick<Objects, 'boxes'>, i: number): Corners {
  const at = (k: number): number => boxes[4 * i + k] ?? 0;
  return [at(0), at(1), at(2), at(3)];
}

function moveBoxes(objects: Objects, move: (box: Corners) => Corners): Objects {
  const boxes = new Float32Array(objects.boxes.length);
  for (let i = 0; i < objects.labels.length; i++) boxes.set(move(boxOf(objects, i)), 4 * i);
  return { ...objects, boxes };
}

function scaleObjects(objects: Objects, byX: number, byY: number): Objects {
  const moved = moveBoxes(objects, ([x1, y1, x2, y2]) => [x1 * byX, y1 * byY, x2 * byX, y2 * byY]);
  return { ...moved, areas: objects.areas.map((area) => area * byX * byY) };
}

/** The objects at these places. */
export function selectObjects(objects: Objects, places: readonly number[]): Objects {
  return {
    boxes: Float32Array.from(places.flatMap((i) => boxOf(objects, i))),
    labels: Int32Array.from(places, (i) => objects.labels[i] ?? 0),
    areas: Float32Array.from(places, (i) => objects.areas[i] ?? 0),
    crowds: Uint8Array.from(places, (i) => objects.crowds[i] ?? 0),
  };
}

function cropObjects(objects: Objects, { left, top, width, height }: Box): Objects {
  const cut = moveBoxes(objects, ([x1, y1, x2, y2]) => [
    clamp(x1 - left, width),
    clamp(y1 - top, height),
    clamp(x2 - left, width),
    clamp(y2 - top, height),
  ]);
  const areas = objects.areas.map((area, i) => {
    const before = extent(boxOf(objects, i));
    const after = extent(boxOf(cut, i));
    return (area * after[0] * after[1]) / (before[0] * before[1]);
  });
  const places = Array.from(areas.keys()).filter((i) => {
    const before = extent(boxOf(objects, i));
    return extent(boxOf(cut, i)).every((side, axis) => side >= Math.min(LEAST_EXTENT, before[axis as 0 | 1]));
  });
  return selectObjects({ ...cut, areas }, places);
}

function extent([x1, y1, x2, y2]: Corners): readonly [width: number, height: number] {
  return [x2 - x1, y2 - y1];
}

function clamp(value: number, most: number): number {
  return Math.min(Math.max(value, 0), most);
}
