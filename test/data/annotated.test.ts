import { createHash } from 'node:crypto';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  Pipeline, Random, transforms as T,
  type AnnotatedImage, type DetectionSample, type Image, type SegmentationSample, type TransformInput,
} from '../../lib/data/index.js'; // prettier-ignore
import { IGNORE_INDEX } from '../../lib/nn/index.js';
import { plain } from './files.js';

type Both = SegmentationSample & DetectionSample;
interface Rectangle {
  readonly left: number;
  readonly top: number;
  readonly width: number;
  readonly height: number;
}

/** Rectangles in rows of their own, so that none hides another: rectangle k has the class k + 1 in the mask, 100 + k in the image's red. */
function scene(height: number, width: number, rectangles: readonly Rectangle[]): Both {
  const mask = plain(height, width, 1);
  const image = plain(height, width, 3, 20);
  rectangles.forEach(({ left, top, width: w, height: h }, k) => {
    for (let y = top; y < top + h; y++) {
      for (let x = left; x < left + w; x++) {
        mask.data[y * width + x] = k + 1;
        image.data[(y * width + x) * 3] = 100 + k;
      }
    }
  });
  return {
    image,
    mask,
    objects: {
      boxes: Float32Array.from(rectangles.flatMap((r) => [r.left, r.top, r.left + r.width, r.top + r.height])),
      labels: Int32Array.from(rectangles.keys()),
      areas: Float32Array.from(rectangles, (r) => r.width * r.height),
      crowds: Uint8Array.from(rectangles, (_, k) => k % 2),
    },
  };
}

interface Recipe {
  readonly height: number;
  readonly width: number;
  readonly count: number;
  readonly seed: number;
}

/** Small values that say what the scene is like; `made` makes it. */
const scenes = fc.record<Recipe>({
  height: fc.integer({ min: 24, max: 50 }),
  width: fc.integer({ min: 24, max: 50 }),
  count: fc.integer({ min: 1, max: 3 }),
  seed: fc.nat(1e6),
});

function made({ height, width, count, seed }: Recipe): Both {
  const random = new Random(seed);
  const band = Math.floor(height / count);
  const rectangles = Array.from({ length: count }, (_, k) => {
    const [h, w] = [2 + random.integer(band - 2), 2 + random.integer(width - 2)];
    return { left: random.integer(width - w + 1), top: k * band + random.integer(band - h + 1), width: w, height: h };
  });
  return scene(height, width, rectangles);
}

/** One number for all that a sample holds: equal samples have equal ones, and long lists are not compared by the test runner. */
function digest({ image, mask, objects }: AnnotatedImage): string {
  const hash = createHash('sha256');
  for (const { data, height, width } of mask ? [image, mask] : [image]) hash.update(data).update(`${height}x${width}`);
  return hash.update(JSON.stringify(objects ?? null)).digest('hex');
}

const steps: Record<string, TransformInput> = {
  resize: T.resize([37, 29]),
  'resize shorter': T.resize(30, { maxSize: 40 }),
  randomShortSide: T.randomShortSide([20, 31, 47], { maxSize: 60 }),
  randomScale: T.randomScale([40, 60]),
  pad: T.pad([45, 50]),
  centerCrop: T.centerCrop(27),
  randomCrop: T.randomCrop(22, { padding: 5 }),
  randomMaskCrop: T.randomMaskCrop([22, 30]),
  randomResizedCrop: T.randomResizedCrop([33, 28], { scale: [0.3, 1] }),
  horizontalFlip: T.horizontalFlip(1),
  verticalFlip: T.verticalFlip(1),
  colorJitter: T.colorJitter({ brightness: 0.5, hue: 0.1 }),
  photometricDistortion: T.photometricDistortion(),
};

const box = ({ objects }: Both, i: number): number[] => [...objects.boxes.slice(4 * i, 4 * i + 4)];

/** The tightest box around the pixels of a class, or nothing. */
function boxInMask(mask: Image, label: number): number[] | undefined {
  let found: [number, number, number, number] | undefined;
  mask.data.forEach((value, i) => {
    if (value !== label) return;
    const [x, y] = [i % mask.width, Math.floor(i / mask.width)];
    const [x1, y1, x2, y2] = found ?? [x, y, x, y];
    found = [Math.min(x1, x), Math.min(y1, y), Math.max(x2, x + 1), Math.max(y2, y + 1)];
  });
  return found;
}

describe('masks and boxes move along with their image', () => {
  it.each(Object.keys(steps))('%s: the box of the moved pixels is the moved box', (name) => {
    fc.assert(
      fc.property(scenes, fc.nat(1e6), (recipe, seed) => {
        const sample = made(recipe);
        const moved = new Pipeline([steps[name] as TransformInput]).applyAnnotated(sample, new Random(seed));
        const { width, height } = moved.image;
        expect(moved.mask).toMatchObject({ width, height, channels: 1 });
        expect(moved.mask.data).toHaveLength(width * height);
        // Nearest pixels and edges between pixels differ by less than a pixel of either image.
        const slack = 0.51 + Math.max(1, width / sample.image.width, height / sample.image.height) / 2;
        const labels = [...moved.objects.labels];
        labels.forEach((label, i) => {
          const [x1 = 0, y1 = 0, x2 = 0, y2 = 0] = box(moved, i);
          expect(x1 >= 0 && y1 >= 0 && x2 <= width + 1e-3 && y2 <= height + 1e-3 && x2 > x1 && y2 > y1).toBe(true);
          const seen = boxInMask(moved.mask, label + 1);
          if (!seen) expect(Math.min(x2 - x1, y2 - y1)).toBeLessThan(2 * slack);
          else
            [x1, y1, x2, y2].forEach((edge, k) => expect(Math.abs(edge - (seen[k] ?? 0))).toBeLessThanOrEqual(slack));
          expect(moved.objects.areas[i]).toBeCloseTo((x2 - x1) * (y2 - y1), 1);
          expect(moved.objects.crowds[i]).toBe(label % 2);
        });
        // What is left out is gone from the mask too, but for a sliver.
        sample.objects.labels.forEach((label) => {
          if (labels.includes(label)) return;
          const [x1 = 0, y1 = 0, x2 = 0, y2 = 0] = boxInMask(moved.mask, label + 1) ?? [];
          expect(Math.min(x2 - x1, y2 - y1)).toBeLessThanOrEqual(2 * slack);
        });
      }),
      { numRuns: 40 },
    );
  });

  it.each(['pad', 'centerCrop', 'randomCrop', 'randomMaskCrop', 'horizontalFlip', 'verticalFlip'])(
    '%s: every pixel keeps its class, and what is added does not count',
    (name) => {
      fc.assert(
        fc.property(scenes, fc.nat(1e6), (recipe, seed) => {
          const pipeline = new Pipeline([steps[name] as TransformInput]);
          const { image, mask } = pipeline.applyAnnotated(made(recipe), new Random(seed));
          const wrong = mask.data.findIndex((label, i) => {
            const red = image.data[3 * i] ?? -1;
            // 0 is what crops and padding fill with.
            return label !== (red === 0 ? IGNORE_INDEX : red === 20 ? 0 : red - 99);
          });
          expect(wrong).toBe(-1);
        }),
        { numRuns: 40 },
      );
    },
  );

  it.each([T.horizontalFlip(1), T.verticalFlip(1)])('$kind twice changes nothing', (flip) => {
    fc.assert(
      fc.property(scenes, (recipe) => {
        const sample = made(recipe);
        sample.image.data[0] = 77; // so that no picture is its own mirror image
        const once = new Pipeline([flip]).applyAnnotated(sample, new Random(1));
        expect(digest(once)).not.toBe(digest(sample));
        const twice = new Pipeline([flip, flip]).applyAnnotated(sample, new Random(1));
        expect(digest(twice)).toBe(digest(sample));
      }),
      { numRuns: 30 },
    );
  });

  it.each(['colorJitter', 'photometricDistortion'])('%s touches the image alone', (name) => {
    const sample = scene(30, 30, [{ left: 3, top: 4, width: 9, height: 8 }]);
    let changed = 0;
    for (let seed = 0; seed < 20; seed++) {
      const moved = new Pipeline([steps[name] as TransformInput]).applyAnnotated(sample, new Random(seed));
      expect(moved.mask).toBe(sample.mask);
      expect(moved.objects).toBe(sample.objects);
      if (moved.image.data.some((value, i) => value !== sample.image.data[i])) changed++;
    }
    expect(changed).toBeGreaterThan(12);
  });

  it('an image moves as it would alone, and the same for the same seed', () => {
    const names = Object.keys(steps).filter((name) => name !== 'randomMaskCrop');
    fc.assert(
      fc.property(scenes, fc.nat(1e6), fc.constantFrom(...names), (recipe, seed, name) => {
        const sample = made(recipe);
        const pipeline = new Pipeline([steps[name] as TransformInput]);
        const moved = pipeline.applyAnnotated(sample, new Random(seed));
        const alone = pipeline.apply(sample.image, new Random(seed));
        expect(digest({ image: alone })).toBe(digest({ image: moved.image }));
        expect(digest(pipeline.applyAnnotated(sample, new Random(seed)))).toBe(digest(moved));
      }),
    );
  });

  it('what is the same in every epoch is separate, and together they are all', () => {
    const pipeline = new Pipeline([T.resize([40, 40]), T.randomCrop(30), T.horizontalFlip()]);
    const sample = scene(50, 30, [{ left: 3, top: 4, width: 9, height: 8 }]);
    const prepared = pipeline.prepareAnnotated(sample);
    expect(prepared.mask).toMatchObject({ width: 40, height: 40 });
    const all = pipeline.applyAnnotated(sample, new Random(3));
    expect(pipeline.augmentAnnotated(prepared, new Random(3))).toEqual(all);
  });
});

describe('objects at the edge', () => {
  const crop = (sample: Both): Both => new Pipeline([T.centerCrop([10, 20])]).applyAnnotated(sample);

  it('are cut, their areas in proportion, and left out when less than a pixel is left', () => {
    // The crop takes rows 10 to 20 of 30.
    const cut = crop(scene(30, 20, [{ left: 2, top: 6, width: 5, height: 8 }]));
    expect(box(cut, 0)).toEqual([2, 0, 7, 4]);
    expect(cut.objects.areas[0]).toBe(20);
    const gone = crop(scene(30, 20, [{ left: 2, top: 1, width: 5, height: 9 }]));
    expect(gone.objects).toMatchObject({ boxes: new Float32Array(), labels: new Int32Array() });
    const sample = scene(30, 20, [{ left: 2, top: 9, width: 5, height: 4 }]);
    const sliver = { ...sample, objects: { ...sample.objects, boxes: Float32Array.of(2, 9, 7, 10.9) } };
    expect(crop(sliver).objects.labels).toHaveLength(0);
  });

  it('less than a pixel high stay as long as they are whole', () => {
    const sample = scene(30, 20, [{ left: 2, top: 12, width: 5, height: 2 }]);
    const thin = { ...sample, objects: { ...sample.objects, boxes: Float32Array.of(2, 12, 7, 12.5) } };
    expect(box(crop(thin), 0)).toEqual([2, 2, 7, 2.5]);
  });
});

describe('the sizes of random scales', () => {
  const sizes = (step: TransformInput, height: number, width: number): string[] => {
    const pipeline = new Pipeline([step]);
    return Array.from({ length: 60 }, (_, seed) => pipeline.apply(plain(height, width, 3), new Random(seed))).map(
      (image) => `${image.height}x${image.width}`,
    );
  };

  it('resize with maxSize: shorter side as asked for, unless the longer one would be too long', () => {
    const resized = (height: number, width: number): Image =>
      new Pipeline([T.resize(20, { maxSize: 33 })]).apply(plain(height, width, 3));
    expect(resized(40, 60)).toMatchObject({ height: 20, width: 30 });
    expect(resized(60, 40)).toMatchObject({ height: 30, width: 20 });
    expect(resized(30, 60)).toMatchObject({ height: 16, width: 33 });
    expect(resized(600, 3)).toMatchObject({ height: 33, width: 1 });
    expect(() => T.resize([3, 4], { maxSize: 5 })).toThrow(/maxSize goes with one size/);
  });

  it('randomShortSide draws among its sizes, randomScale between its ratios', () => {
    expect(new Set(sizes(T.randomShortSide([10, 12]), 20, 30))).toEqual(new Set(['10x15', '12x18']));
    const heights = sizes(T.randomScale([20, 80], { ratio: [0.5, 2] }), 20, 40).map((size) => parseInt(size, 10));
    expect(Math.min(...heights)).toBeGreaterThanOrEqual(10);
    expect(Math.min(...heights)).toBeLessThan(13);
    expect(Math.max(...heights)).toBeLessThanOrEqual(40);
    expect(Math.max(...heights)).toBeGreaterThan(36);
    // Twice as wide as high: 20 for the shorter side is more than 30 for the longer one allows.
    expect(new Set(sizes(T.randomScale([20, 30], { ratio: [1, 1] }), 20, 40))).toEqual(new Set(['15x30']));
  });
});

describe('randomMaskCrop', () => {
  /** A narrow strip of class 1 in the middle of class 0. */
  const strip: AnnotatedImage = {
    image: plain(20, 60, 3),
    mask: plain(20, 60, 1, (x) => (x >= 25 && x < 35 ? 1 : 0)),
  };
  const share = (options: Parameters<typeof T.randomMaskCrop>[1]): number => {
    const pipeline = new Pipeline([T.randomMaskCrop(20, options)]);
    const crops = Array.from({ length: 100 }, (_, seed) => pipeline.applyAnnotated(strip, new Random(seed)));
    return crops.filter(({ mask }) => mask?.data.includes(1)).length / crops.length;
  };

  it('looks for places with several classes', () => {
    const [anywhere, mixed] = [share({ maxClassRatio: 1 }), share({ maxClassRatio: 0.9 })];
    expect(anywhere).toBeGreaterThan(0.5);
    expect(anywhere).toBeLessThan(0.9);
    expect(mixed).toBeGreaterThan(0.97);
  });

  it('pixels that do not count do not count', () => {
    const mask = plain(20, 60, 1, (x) => (x < 30 ? IGNORE_INDEX : x % 2));
    const pipeline = new Pipeline([T.randomMaskCrop(20, { maxClassRatio: 0.6 })]);
    for (let seed = 0; seed < 30; seed++) {
      const crop = pipeline.applyAnnotated({ ...strip, mask }, new Random(seed));
      expect(crop.mask.data.some((label) => label !== IGNORE_INDEX)).toBe(true);
    }
  });

  it('takes all there is of a small image; pad makes it full', () => {
    const sample = { image: plain(8, 30, 3, 9), mask: plain(8, 30, 1, 2) };
    const pipeline = new Pipeline([T.randomMaskCrop(16), T.pad(16, { fill: 7 })]);
    const { image, mask } = pipeline.applyAnnotated(sample, new Random(0));
    expect(image).toMatchObject({ height: 16, width: 16 });
    expect([...mask.data.slice(7 * 16, 9 * 16)]).toEqual(
      Array.from({ length: 32 }, (_, i) => (i < 16 ? 2 : IGNORE_INDEX)),
    );
    expect(image.data[8 * 16 * 3]).toBe(7);
  });
});
