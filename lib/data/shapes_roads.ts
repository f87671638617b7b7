/** Pictures of shapes on a road: masks of two kinds and boxes of the same picture. */
import { Random, Stream } from './random.js';
import type { Image } from './image.js';
import type { MultiTaskSample } from './samples.js';
import { taskClassNames } from './multi_task.js';
import { pixelClasses, ShapeScenes } from './shapes_scenes.js';
import { shapeNames } from './shapes_forms.js';

/** Classes of the drivable area, as BDD100K has them: the own lane, the other one, and everything else. */
const LANES = ['direct', 'alternative', 'background'] as const;
const OFF_ROAD = 2;

/** A road that becomes narrower toward the horizon; numbers are shares of the picture. */
interface Road {
  readonly horizon: number;
  /** Middle and half width at the horizon, and at the lower edge. */
  readonly far: readonly [middle: number, half: number];
  readonly near: readonly [middle: number, half: number];
  /** Where the own lane ends, from -1 (left edge of the road) to 1. */
  readonly divide: number;
  /** Whether the own lane is the left one. */
  readonly isLeft: boolean;
  /** Gray of the own lane, and of the other one. */
  readonly grays: readonly [direct: number, alternative: number];
}

/**
 * The procedural data set for several tasks at once: the shapes of `SegmentationShapes` and `DetectionShapes` on a road of two
 * lanes. Masks: `sem`, background and shapes, and `driv`, the drivable area (the dark lane is `direct`, the pale one
 * `alternative`, and shapes that stand on them are neither). Boxes are those of `DetectionShapes`.
 *
 * @example const train = new RoadShapes({ count: 200, size: 64, seed: 0 });
 */
export class RoadShapes extends ShapeScenes<MultiTaskSample> {
  readonly classNames = taskClassNames({ sem: pixelClasses, driv: LANES, det: shapeNames });

  /** Paints the scene of this number. */
  load(index: number): MultiTaskSample {
    const { image, mask, objects } = this.draw(index);
    const road = this.#road(index);
    const { size } = this;
    const driv = new Uint8Array(size * size);
    forEachPixel(size, (i, x, y) => (driv[i] = mask.data[i] === 0 ? laneAt(road, x, y) : OFF_ROAD));
    const lanes: Image = { ...mask, data: driv };
    return { image, masks: { sem: mask, driv: lanes }, objects };
  }

  protected override paintGround(canvas: Float32Array, index: number): void {
    const road = this.#road(index);
    forEachPixel(this.size, (i, x, y) => {
      const gray = road.grays[laneAt(road, x, y)];
      if (gray !== undefined) canvas.fill(gray, 3 * i, 3 * i + 3);
    });
  }

  /** From a stream of its own: the shapes are the same as without a road. */
  #road(index: number): Road {
    const random = new Random(this.seed, Stream.roads, index);
    const between = (low: number, high: number): number => random.uniform(low, high);
    return {
      horizon: between(0.1, 0.4),
      far: [between(0.35, 0.65), between(0.06, 0.16)],
      near: [between(0.35, 0.65), between(0.35, 0.6)],
      divide: between(-0.2, 0.2),
      isLeft: random.chance(0.5),
      grays: [between(0.1, 0.25), between(0.5, 0.65)],
    };
  }
}

/** Visits the pixels with their number and their middle as shares of the picture. */
function forEachPixel(size: number, visit: (i: number, x: number, y: number) => void): void {
  for (let i = 0; i < size * size; i++) visit(i, ((i % size) + 0.5) / size, (Math.floor(i / size) + 0.5) / size);
}

/** The class of the drivable area at a point. */
function laneAt({ horizon, far, near, divide, isLeft }: Road, x: number, y: number): number {
  const t = (y - horizon) / (1 - horizon);
  if (t < 0) return OFF_ROAD;
  const [middle, half] = [0, 1].map((k) => far[k as 0 | 1] * (1 - t) + near[k as 0 | 1] * t) as [number, number];
  const across = (x - middle) / half;
  if (across < -1 || across > 1) return OFF_ROAD;
  return across < divide === isLeft ? 0 : 1;
}
