/** Images with masks of several kinds and boxes: procedural and from folders, transforms, batches, mistakes. */
import { writeFileSync } from 'node:fs';
import path from 'node:path';
import { describe, expect, it } from 'vitest';
import {
  DetectionShapes,
  groupTaskClasses,
  MultiTaskFolder,
  MultiTaskLoader,
  openMultiTask,
  Pipeline,
  Random,
  RoadShapes,
  SampleError,
  SegmentationShapes,
  taskClassNames,
  transforms,
  type Image,
} from '../../lib/data/index.js';
import { IGNORE_INDEX } from '../../lib/nn/index.js';
import { plain, png, scratchFolder, write } from './files.js';

const root = scratchFolder();
let made = 0;

/** Byte for byte. */
const same = (a: Image, b: Image): boolean =>
  a.width === b.width && Buffer.from(a.data as Uint8Array).equals(Buffer.from(b.data as Uint8Array));

describe('RoadShapes', () => {
  const options = { count: 6, size: 40, seed: 3 };
  const roads = new RoadShapes(options);

  it('has the shapes of the other sets on a road of two lanes', () => {
    const shapes = new SegmentationShapes(options);
    const boxes = new DetectionShapes(options);
    let differing = 0;
    for (let i = 0; i < roads.length; i++) {
      const { image, masks, objects } = roads.load(i);
      const alone = shapes.load(i);
      expect(same(masks['sem']!, alone.mask)).toBe(true);
      expect(objects).toEqual(boxes.load(i).objects);
      const { sem, driv } = masks as Record<'sem' | 'driv', NonNullable<(typeof masks)[string]>>;
      // Where a shape stands, nobody drives; elsewhere both lanes and what is beside them are to be seen.
      expect(sem.data.every((label, p) => label === 0 || driv.data[p] === 2)).toBe(true);
      expect(new Set(driv.data)).toEqual(new Set([0, 1, 2]));
      if (!same(image, alone.image)) differing++;
    }
    expect(differing).toBe(roads.length);
    const again = new RoadShapes({ ...options, count: 3 }).load(2);
    const once = roads.load(2);
    expect(same(once.image, again.image) && same(once.masks['driv']!, again.masks['driv']!)).toBe(true);
  });

  it('names its classes by task', () => {
    const groups = groupTaskClasses(roads.classNames);
    expect(Object.keys(groups)).toEqual(['sem', 'driv', 'det']);
    expect(groups['driv']).toEqual(['direct', 'alternative', 'background']);
    expect(taskClassNames(groups)).toEqual(roads.classNames);
    expect(groupTaskClasses(['a/b/c'])).toEqual({ a: ['b/c'] });
    expect(() => groupTaskClasses(['road'])).toThrow(/'road' does not say its task/);
  });
});

it('transforms move all masks and boxes along', () => {
  const sample = new RoadShapes({ count: 1, size: 40, seed: 1 }).load(0);
  const all = [
    transforms.resize([60, 80]),
    transforms.randomMaskCrop([50, 50], { maxClassRatio: 0.9 }),
    transforms.horizontalFlip(1),
    transforms.verticalFlip(1),
    transforms.pad([64, 70]),
  ];
  const { masks, objects, image } = new Pipeline(all).applyAnnotated(sample, new Random(5));
  // The mask of shapes moves as it does alone.
  const { masks: _, ...alone } = sample;
  const expected = new Pipeline(all).applyAnnotated({ ...alone, mask: sample.masks['sem']! }, new Random(5));
  expect(same(masks['sem']!, expected.mask)).toBe(true);
  expect(objects).toEqual(expected.objects);
  expect(masks['driv']).toMatchObject({ width: image.width, height: image.height });
  // What was one place stays one place: shapes are off the road, and padding counts in neither.
  const lanes = masks['driv']!.data;
  const agrees = (label: number, lane: number): boolean =>
    label === IGNORE_INDEX ? lane === IGNORE_INDEX : label > 0 ? lane === 2 : lane < 3;
  expect(masks['sem']!.data.every((label, p) => agrees(label, lanes[p]!))).toBe(true);
});

describe('batches', () => {
  it('hold images of any sizes, their masks and boxes', async () => {
    const dataset = new RoadShapes({ count: 5, size: 40 });
    const crop = [transforms.randomScale([20, 60], { ratio: [0.5, 2] })];
    const loader = new MultiTaskLoader({ dataset, batchSize: 3, transform: crop, firstLabel: 1 });
    const sizes: string[] = [];
    for await (const batch of loader.epoch(0)) {
      batch.images.forEach((image, i) => {
        const [, height, width] = image.shape;
        sizes.push(`${height}x${width}`);
        for (const task of ['sem', 'driv']) {
          const mask = batch.masks[task]![i]!;
          expect(mask.shape).toEqual([height, width]);
          expect(mask.dtype).toBe('int64');
        }
        const { boxes, labels } = batch.targets![i]!;
        expect(boxes.shape).toEqual([labels.shape[0], 4]);
        expect(Number(labels.min().item())).toBeGreaterThan(0);
        expect(Number(image.max().item())).toBeLessThanOrEqual(1);
      });
      batch.dispose();
    }
    expect(sizes).toHaveLength(5);
    expect(new Set(sizes).size).toBeGreaterThan(1);
    expect(() => new MultiTaskLoader({ dataset, batchSize: 1, firstLabel: -1 })).toThrow(/firstLabel/);
  });
});

/** A folder of three images; `change` spoils it. */
async function folderOf(
  change: (at: string, json: Annotations) => Promise<void> | void = () => undefined,
): Promise<string> {
  const at = path.join(root, String(made++));
  const json: Annotations = {
    images: [0, 1, 2].map((i) => ({ id: i, file_name: `${i}.png`, width: 8, height: 6 })),
    annotations: [
      { id: 1, image_id: 0, category_id: 7, bbox: [1, 1, 3, 2] },
      { id: 2, image_id: 2, category_id: 9, bbox: [0, 0, 8, 6] },
    ],
    categories: [
      { id: 7, name: 'car' },
      { id: 9, name: 'bus' },
    ],
  };
  for (let i = 0; i < 3; i++) {
    write(await png(plain(6, 8, 3, 40 * i)), at, 'images', `${i}.png`);
    write(await png(plain(6, 8, 1, (x) => x % 2)), at, 'masks', 'sem', `${i}.png`);
    write(await png(plain(6, 8, 1, (_, y) => y % 3)), at, 'masks', 'driv', `${i}.png`);
  }
  write('ground\nroad\n', at, 'sem.txt');
  write('own\nother\nnone\n', at, 'driv.txt');
  await change(at, json);
  write(JSON.stringify(json), at, 'objects.json');
  return at;
}

interface Annotations {
  images: { id: number; file_name: string; width: number; height: number }[];
  annotations: { id: number; image_id: number; category_id: number; bbox: number[] }[];
  categories: { id: number; name: string }[];
}

describe('folders', () => {
  it('give each image with all that is known of it', async () => {
    const at = await folderOf();
    const { train, val, classNames } = openMultiTask(at, { valFraction: 0.34 });
    expect([train.length, val.length]).toEqual([2, 1]);
    expect(groupTaskClasses(classNames)).toEqual({
      driv: ['own', 'other', 'none'],
      sem: ['ground', 'road'],
      det: ['car', 'bus'],
    });
    const whole = new MultiTaskFolder(at, { classes: groupTaskClasses(classNames) });
    const { masks, objects } = await whole.load(2);
    expect([...masks['sem']!.data.subarray(0, 3)]).toEqual([0, 1, 0]);
    expect(masks['driv']!.data[8]).toBe(1);
    expect(objects).toMatchObject({ labels: Int32Array.of(1), boxes: Float32Array.of(0, 0, 8, 6) });
    expect((await whole.load(1)).objects?.labels).toHaveLength(0);
  });

  it('may be parts, and need not have every task', async () => {
    const at = path.join(root, String(made++));
    for (const part of ['train', 'val']) {
      for (const name of part === 'train' ? ['a', 'b'] : ['c']) {
        write(await png(plain(6, 8, 3, 9)), at, part, 'images', `${name}.png`);
        write(await png(plain(6, 8, 1, 1)), at, part, 'masks', 'sem', `${name}.png`);
      }
    }
    write('ground\nroad', at, 'sem.txt');
    const { train, val, classNames } = openMultiTask(at);
    expect([train.length, val.length, classNames]).toEqual([2, 1, ['sem/ground', 'sem/road']]);
    const sample = await val.load(0);
    expect(sample.objects).toBeUndefined();
    for await (const batch of new MultiTaskLoader({ dataset: val, batchSize: 1 }).epoch(0)) {
      expect(batch.targets).toBeNull();
      batch.dispose();
    }
  });

  const classes = { sem: ['ground', 'road'], driv: ['own', 'other', 'none'], det: ['car', 'bus'] };
  it.each<[string, (at: string, json: Annotations) => Promise<void> | void, RegExp, number]>([
    [
      'an image without one of its masks',
      (at) => rename(at, 'masks/sem/1.png', 'x.png'),
      /1\.png has no mask: .*sem.1\.png is missing/,
      2,
    ],
    [
      'a mask without an image',
      async (at) => void write(await png(plain(6, 8, 1)), at, 'masks', 'driv', '7.png'),
      /mask .*driv.7\.png has no image/,
      3,
    ],
    [
      'an image that the annotations do not know',
      (_, json) => void json.images.splice(1, 1),
      /1\.png is not among the images of .*objects\.json/,
      2,
    ],
    [
      'annotations of an image that is not there',
      (_, json) => void json.images.push({ id: 5, file_name: '5.png', width: 8, height: 6 }),
      /annotations of the image 5\.png, which is not in/,
      3,
    ],
    [
      'an annotation without its image',
      (_, json) => void (json.annotations[0]!.image_id = 40),
      /annotation 1 belongs to the image 40, which is not among the images/,
      3,
    ],
    [
      'a box outside of its image',
      (_, json) => void (json.annotations[0]!.bbox = [5, 1, 9, 2]),
      /annotation 1 in the image 0\.png has the box \[5,1,9,2\].* outside of the image, 8 wide and 6 high/,
      3,
    ],
  ])('%s is named, or skipped and counted', async (_, spoil, message, left) => {
    const at = await folderOf(spoil);
    expect(() => new MultiTaskFolder(at, { classes })).toThrow(message);
    expect(() => new MultiTaskFolder(at, { classes })).toThrow(SampleError);
    const rest = new MultiTaskFolder(at, { classes, skipBroken: true });
    expect(rest.length).toBe(left);
    expect(rest.skipped.some((skipped) => message.test(skipped.message))).toBe(true);
  });

  it.each<[string, (at: string, json: Annotations) => Promise<void> | void, RegExp]>([
    [
      'a mask with a number beyond the classes',
      async (at) => writeFileSync(path.join(at, 'masks/sem/0.png'), await png(plain(6, 8, 1, 4))),
      /mask .*sem.0\.png has the number 4 at x 0, y 0, but the 2 classes/,
    ],
    [
      'a mask of another size',
      async (at) => writeFileSync(path.join(at, 'masks/driv/0.png'), await png(plain(6, 7, 1))),
      /driv.0\.png is 6x7, but its image .* is 6x8/,
    ],
    [
      'an image of another size than its annotations say',
      (_, json) => void (json.images[0]!.width = 9),
      /0\.png is 6x8, but its annotations say 6x9/,
    ],
  ])('%s is an error of its sample', async (_, spoil, message) => {
    const at = await folderOf(spoil);
    const dataset = new MultiTaskFolder(at, { classes });
    await expect(dataset.load(0)).rejects.toThrow(message);
    const loader = new MultiTaskLoader({ dataset, batchSize: 3, skipBroken: true });
    for await (const batch of loader.epoch(0)) {
      expect(batch.indices).toEqual([1, 2]);
      batch.dispose();
    }
    expect(loader.skipped).toHaveLength(1);
  });

  it('of another form say what is missing', async () => {
    const at = await folderOf();
    write('', at, 'masks', 'other', 'x.txt');
    expect(() => openMultiTask(at)).toThrow(/other\.txt is missing: the names of the classes/);
    const bare = path.join(root, String(made++));
    write(await png(plain(6, 8, 3)), bare, 'images', '1.png');
    expect(() => openMultiTask(bare)).toThrow(/neither folders of masks .* nor objects\.json/);
    write('', bare, 'masks', 'det', 'x.txt');
    expect(() => openMultiTask(bare)).toThrow(/"det", which is what boxes are called/);
  });
});

async function rename(at: string, from: string, to: string): Promise<void> {
  const { renameSync } = await import('node:fs');
  renameSync(path.join(at, from), path.join(at, to));
}
