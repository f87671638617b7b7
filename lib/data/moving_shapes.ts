/** Videos of a shape that moves: only the order of the frames tells the class. */
import { checkIndex } from './dataset.js';
import { Random, Stream } from './random.js';
import type { LabeledSource, Video } from './samples.js';
import { shapesTasks } from './shapes.js';
import { balancedLabels, checkPictures } from './shapes_common.js';
import { asymmetricShapes } from './shapes_forms.js';
import { direction, drawLook, paintBackdrop, paintObject, withNoise, type Placement } from './shapes_paint.js';

/** What `MovingShapes` can be told. */
export interface MovingShapesOptions {
  /** How many videos. */
  readonly count: number;
  /** Frames of each; default 16. */
  readonly frames?: number;
  /** Height and width in pixels; default 48. */
  readonly size?: number;
  /** Other seeds give other videos; take one for training and another for validation. Default 0. */
  readonly seed?: number;
  /** How much there is in the background to be mistaken for the object: 0 none, 1 (default) as intended, more is harder. */
  readonly clutter?: number;
}

/** The middle of a video. */
interface Middle {
  readonly x: number;
  readonly y: number;
  readonly radius: number;
  /** In turns. */
  readonly rotation: number;
}

/** How far things go in the course of a video, in each unit. */
interface Amounts {
  /** As a share of the picture. */
  readonly distance: number;
  /** In turns. */
  readonly turn: number;
  /** Ratio of the radius at the larger end to that in the middle. */
  readonly growth: number;
}

type Motion = (middle: Middle, amounts: Amounts, time: number) => Middle;

const along =
  (dx: number, dy: number): Motion =>
  (middle, { distance }, time) => ({
    ...middle,
    x: middle.x + dx * distance * time,
    y: middle.y + dy * distance * time,
  });

const growing =
  (sign: 1 | -1): Motion =>
  (middle, { growth }, time) => ({ ...middle, radius: middle.radius * (1 + 2 * sign * time * (growth - 1)) });

const turning =
  (sign: 1 | -1): Motion =>
  (middle, { turn }, time) => ({ ...middle, rotation: middle.rotation + sign * turn * time });

/** Where the object is at a time from -1/2 to 1/2. Turns are counterclockwise. */
const motions = {
  left: along(-1, 0),
  right: along(1, 0),
  up: along(0, -1),
  down: along(0, 1),
  grow: growing(1),
  shrink: growing(-1),
  turn_left: turning(1),
  turn_right: turning(-1),
} satisfies Record<string, Motion>;

const LEAST_SIZE = 32;
const MAX_FRAMES = 1000;

/**
 * The procedural data set of videos: one object in front of a still background; the class is how it moves. Video i is a
 * function of (seed, i, frames, size, clutter) alone: the same on every machine. A single frame says next to nothing about the class, since
 * the middles of the videos of all classes look alike. Every run of consecutive videos, as long as there are classes, has each
 * class once.
 *
 * @example const train = new MovingShapes({ count: 400, frames: 8, seed: 0 });
 */
export class MovingShapes implements LabeledSource<Video> {
  readonly length: number;
  readonly classNames: readonly string[] = Object.keys(motions);
  readonly labels: Uint8Array;
  readonly frames: number;
  readonly size: number;
  readonly seed: number;
  readonly clutter: number;

  /** @throws RangeError for a number that is out of range */
  constructor(o: MovingShapesOptions) {
    const { count, frames = 16, size = 48, seed = 0, clutter = 1 } = o;
    checkPictures('MovingShapes', { count, size, clutter }, LEAST_SIZE);
    if (!Number.isInteger(frames) || frames < 2 || frames > MAX_FRAMES) {
      throw new RangeError(
        `MovingShapes: frames must be a whole number from 2 to ${String(MAX_FRAMES)}, got ${String(frames)}`,
      );
    }
    this.length = count;
    this.labels = balancedLabels(count, this.classNames.length, seed, Stream.motion);
    this.frames = frames;
    this.size = size;
    this.seed = seed;
    this.clutter = clutter;
  }

  load(index: number): Video {
    checkIndex(index, this.length);
    const { size, clutter, seed, frames: frameCount } = this;
    const random = new Random(seed, Stream.motion, index);
    const backdrop = paintBackdrop(size, clutter, random);
    const motion = Object.values(motions)[this.labels[index] ?? 0] as Motion;
    const amounts = {
      distance: random.uniform(0.25, 0.4),
      turn: random.uniform(0.25, 0.45),
      growth: random.uniform(1.3, 1.5),
    };
    const radius = random.uniform(0.16, 0.21);
    // So far from the edges that it stays inside however it moves.
    const margin = radius * amounts.growth + amounts.distance / 2;
    const place = (): number => (margin < 0.5 ? random.uniform(margin, 1 - margin) : 0.5);
    const middle = { x: place(), y: place(), radius, rotation: random.uniform() };
    const shape = asymmetricShapes[random.integer(asymmetricShapes.length)] ?? 0;
    const color = random.integer(shapesTasks.color.length);
    const texture = random.integer(shapesTasks.texture.length);
    const look = drawLook({ color, texture }, random);
    return {
      frameCount,
      read: (frames) => {
        const images = frames.map((frame) => {
          checkIndex(frame, frameCount);
          const canvas = backdrop.slice();
          const placement = placed(motion(middle, amounts, frame / (frameCount - 1) - 0.5));
          paintObject(canvas, size, placement, shape, look);
          const data = withNoise(canvas, clutter, new Random(seed, Stream.motion, index, frame));
          return { data, width: size, height: size, channels: 3 };
        });
        return Promise.resolve(images);
      },
    };
  }

  describe(index: number): string {
    checkIndex(index, this.length);
    return `moving shapes/seed ${String(this.seed)}/video ${String(index)}`;
  }
}

function placed({ x, y, radius, rotation }: Middle): Placement {
  const [cos, sin] = direction(rotation);
  return { x, y, radius, cos, sin };
}
