/** Pictures of several shapes, with the class of every pixel and a box around every shape. */
import { checkIndex } from './dataset.js';
import type { Image } from './image.js';
import { Random, Stream } from './random.js';
import type { AnnotatedImage, DetectionSample, Objects, SampleSource, SegmentationSample } from './samples.js';
import { shapesTasks } from './shapes.js';
import { checkPictures } from './shapes_common.js';
import { shapeNames } from './shapes_forms.js';
import { drawLook, paintBackdrop, paintObject, pixelsOf, scatter, withNoise, type Placement } from './shapes_paint.js';

/** What the pictures of `SegmentationShapes` and `DetectionShapes` are like. */
export interface ShapeScenesOptions {
  /** How many pictures. */
  readonly count: number;
  /** Height and width in pixels; default 64. */
  readonly size?: number;
  /** Other seeds give other pictures; take one for training and another for validation. Default 0. */
  readonly seed?: number;
  /** How much there is in the background to be mistaken for an object: 0 none, 1 (default) as intended, more is harder. */
  readonly clutter?: number;
  /** [least, most] shapes in a picture. Default [1, 4]. */
  readonly objects?: readonly [least: number, most: number];
}

/** Half the extent of an object as a share of the picture. */
const RADIUS = [0.12, 0.24] as const;
const LEAST_SIZE = 32;
const MOST_OBJECTS = 12;

/** Background and shapes: the classes of the pixels. */
export const pixelClasses: readonly string[] = ['background', ...shapeNames];

/**
 * The pictures behind `SegmentationShapes` and `DetectionShapes`. Picture i is a function of (seed, i, size, clutter, objects)
 * alone: the same on every machine. Shapes do not overlap; shape, texture, color, place, size and rotation are drawn
 * independently.
 */
export abstract class ShapeScenes<Sample extends AnnotatedImage> implements SampleSource<Sample> {
  abstract readonly classNames: readonly string[];
  readonly length: number;
  readonly size: number;
  readonly seed: number;
  readonly clutter: number;
  readonly #objects: readonly [least: number, most: number];

  /** @throws RangeError for a number that is out of range */
  constructor(o: ShapeScenesOptions) {
    const { count, size = 64, seed = 0, clutter = 1, objects = [1, 4] } = o;
    checkPictures(new.target.name, { count, size, clutter }, LEAST_SIZE);
    const [least, most] = objects;
    if (!Number.isInteger(least) || !Number.isInteger(most) || least < 0 || most < least || most > MOST_OBJECTS) {
      throw new RangeError(
        `${new.target.name}: objects must be [least, most], whole numbers from 0 to ${String(MOST_OBJECTS)}, got [${String(least)}, ${String(most)}]`,
      );
    }
    this.length = count;
    this.size = size;
    this.seed = seed;
    this.clutter = clutter;
    this.#objects = [least, most];
  }

  abstract load(index: number): Sample;

  describe(index: number): string {
    checkIndex(index, this.length);
    return `shapes/seed ${String(this.seed)}/picture ${String(index)}`;
  }

  /** What is on the background, under the shapes; nothing unless a data set says otherwise. */
  protected paintGround(_canvas: Float32Array, _index: number): void {
    // Most pictures have shapes alone.
  }

  /** The picture with everything that is known about it. */
  protected draw(index: number): SegmentationSample & DetectionSample {
    checkIndex(index, this.length);
    const { size, clutter } = this;
    const random = new Random(this.seed, Stream.scenes, index);
    const [least, most] = this.#objects;
    const count = least + random.integer(most - least + 1);
    const placements = scatter(count, (shrink) => random.uniform(...RADIUS) * shrink, random);
    const canvas = paintBackdrop(size, clutter, random);
    this.paintGround(canvas, index);
    const mask = new Uint8Array(size * size);
    const marked = placements.map((placement) => {
      const label = random.integer(shapeNames.length);
      const color = random.integer(shapesTasks.color.length);
      const texture = random.integer(shapesTasks.texture.length);
      paintObject(canvas, size, placement, label, drawLook({ color, texture }, random));
      return mark(mask, size, placement, label);
    });
    const picture = (data: Uint8Array, channels: number): Image => ({ data, width: size, height: size, channels });
    return {
      image: picture(withNoise(canvas, clutter, random), 3),
      mask: picture(mask, 1),
      objects: objectsOf(marked),
    };
  }
}

interface Marked {
  readonly box: readonly [x1: number, y1: number, x2: number, y2: number];
  readonly area: number;
  readonly label: number;
}

/** Writes an object's class into the mask, and says where it is. */
function mark(mask: Uint8Array, size: number, placement: Placement, label: number): Marked {
  let [x1, y1, x2, y2] = [size, size, 0, 0];
  const pixels = pixelsOf(size, placement, label);
  for (const i of pixels) {
    mask[i] = label + 1;
    const [x, y] = [i % size, Math.floor(i / size)];
    [x1, y1, x2, y2] = [Math.min(x1, x), Math.min(y1, y), Math.max(x2, x + 1), Math.max(y2, y + 1)];
  }
  return { box: [x1, y1, x2, y2], area: pixels.length, label };
}

function objectsOf(marked: readonly Marked[]): Objects {
  // So many shapes in a small picture can be so small that one covers the middle of no pixel.
  const seen = marked.filter(({ area }) => area > 0);
  return {
    boxes: Float32Array.from(seen.flatMap(({ box }) => box)),
    labels: Int32Array.from(seen, ({ label }) => label),
    areas: Float32Array.from(seen, ({ area }) => area),
    crowds: new Uint8Array(seen.length),
  };
}

/**
 * The procedural data set for segmentation: several shapes in a picture; class 0 is the background, the others are the
 * kinds of shapes. A pixel belongs to a shape if its middle does.
 *
 * @example const train = new SegmentationShapes({ count: 500, seed: 0 });
 */
export class SegmentationShapes extends ShapeScenes<SegmentationSample> {
  readonly classNames = pixelClasses;

  /** Paints the scene of this number. */
  load(index: number): SegmentationSample {
    const { image, mask } = this.draw(index);
    return { image, mask };
  }
}

/**
 * The procedural data set for detection: several shapes in a picture, the pictures of `SegmentationShapes`; the classes are the
 * kinds of shapes. Boxes are the tightest around a shape's pixels, areas their numbers.
 *
 * @example const train = new DetectionShapes({ count: 500, seed: 0 });
 */
export class DetectionShapes extends ShapeScenes<DetectionSample> {
  readonly classNames: readonly string[] = shapeNames;

  /** Paints the scene of this number. */
  load(index: number): DetectionSample {
    const { image, objects } = this.draw(index);
    return { image, objects };
  }
}
