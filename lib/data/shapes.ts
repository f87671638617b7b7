/**
 * A data set that needs no download: one kind of object, painted with a texture, on a cluttered background. Every
 * attribute is a task of its own on images of the same look, so that a network trained on one can be adapted to another.
 */
import { checkIndex, type Dataset } from './dataset.js';
import type { Image } from './image.js';
import { Random, Stream } from './random.js';
import { balancedLabels, checkPictures } from './shapes_common.js';
import { asymmetricShapes, shapeNames } from './shapes_forms.js';
import { paint, type Scene } from './shapes_paint.js';

/** The tasks and their classes. */
export const shapesTasks = {
  shape: shapeNames,
  texture: ['solid', 'stripes', 'checker', 'dots', 'rings', 'speckle'],
  color: ['red', 'orange', 'yellow', 'green', 'cyan', 'blue', 'purple', 'pink'],
  size: ['tiny', 'small', 'medium', 'large'],
  rotation: ['up', 'up_left', 'left', 'down_left', 'down', 'down_right', 'right', 'up_right'],
  position: ['top_left', 'top', 'top_right', 'left', 'center', 'right', 'bottom_left', 'bottom', 'bottom_right'],
  count: ['one', 'two', 'three', 'four', 'five'],
} as const;

/** The attribute that is to be recognized. */
export type ShapesTask = keyof typeof shapesTasks;

/** What `Shapes` can be told. */
export interface ShapesOptions {
  readonly task: ShapesTask;
  /** How many images. */
  readonly count: number;
  /** Height and width in pixels; default 32. */
  readonly size?: number;
  /** Other seeds give other images; take one for training and another for validation. Default 0. */
  readonly seed?: number;
  /** How much there is in the background to be mistaken for the object: 0 none, 1 (default) as intended, more is harder. */
  readonly clutter?: number;
}

/** What an image shows, by class names. */
export type ShapesAttributes = { readonly [T in ShapesTask]: string };

/**
 * The procedural data set. Image i is a function of (task, seed, i, size, clutter) alone: the same on every machine, since
 * only its own generator and basic arithmetic are used. Every run of consecutive images, as long as there are classes,
 * has each class once; all other attributes are drawn independently of the label. A rotation can be seen only on a shape
 * without symmetry, a texture only on a large object, and only single objects have a position: so `rotation` restricts the
 * shapes, `shape`, `rotation` and `texture` the sizes, and only the task `count` has more than one object per image.
 *
 * @example const train = new Shapes({ task: 'texture', count: 2000, seed: 0 });
 */
export class Shapes implements Dataset {
  readonly task: ShapesTask;
  readonly length: number;
  readonly classNames: readonly string[];
  readonly labels: Uint8Array;
  readonly size: number;
  readonly seed: number;
  readonly clutter: number;

  constructor(o: ShapesOptions) {
    const { task, count, size = 32, seed = 0, clutter = 1 } = o;
    if (!Object.hasOwn(shapesTasks, task)) {
      throw new RangeError(
        `Shapes: unknown task ${JSON.stringify(task)}; expected one of ${Object.keys(shapesTasks).join(', ')}`,
      );
    }
    checkPictures('Shapes', { count, size, clutter }, 16);
    this.task = task;
    this.length = count;
    this.classNames = shapesTasks[task];
    this.size = size;
    this.seed = seed;
    this.clutter = clutter;
    this.labels = balancedLabels(count, this.classNames.length, seed, taskNumber(task));
  }

  load(index: number): Image {
    const { random, scene } = this.#draw(index);
    return { data: paint(scene, this.size, this.clutter, random), width: this.size, height: this.size, channels: 3 };
  }

  /** Everything that image `index` shows. */
  attributes(index: number): ShapesAttributes {
    const { scene } = this.#draw(index);
    const named = (task: ShapesTask, value: number): string => shapesTasks[task][value] ?? '';
    return {
      shape: named('shape', scene.shape),
      texture: named('texture', scene.texture),
      color: named('color', scene.color),
      size: named('size', scene.size),
      rotation: named('rotation', scene.rotation),
      position: named('position', scene.position),
      count: named('count', scene.count - 1),
    };
  }

  describe(index: number): string {
    checkIndex(index, this.length);
    return `shapes/${this.task}/seed ${String(this.seed)}/image ${String(index)}`;
  }

  /** The scene of an image, and the generator in the state from which its details follow. */
  #draw(index: number): { random: Random; scene: Scene } {
    checkIndex(index, this.length);
    const { task } = this;
    const random = new Random(this.seed, Stream.shapes, taskNumber(task), index);
    const label = this.labels[index] ?? 0;
    const drawn = (attribute: ShapesTask): number => {
      const value = random.integer(shapesTasks[attribute].length);
      return attribute === task ? label : value;
    };
    const scene = {
      shape: drawn('shape'),
      texture: drawn('texture'),
      color: drawn('color'),
      size: drawn('size'),
      rotation: drawn('rotation'),
      position: drawn('position'),
      count: task === 'count' ? label + 1 : 1,
      isScattered: task === 'count',
    };
    const least = leastSize[task];
    if (least && scene.size < least) scene.size = least + random.integer(shapesTasks.size.length - least);
    if (task === 'rotation') scene.shape = asymmetricShapes[random.integer(asymmetricShapes.length)] ?? 0;
    return { random, scene };
  }
}

/** The smallest size class on which a task can be solved at 32 x 32 pixels, where that is not the smallest of all. */
const leastSize: Partial<Record<ShapesTask, number>> = { shape: 1, rotation: 1, texture: 2 };

function taskNumber(task: ShapesTask): number {
  return Object.keys(shapesTasks).indexOf(task);
}
