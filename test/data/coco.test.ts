import path from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { CocoDataset, DetectionLoader, openCoco, SampleError } from '../../lib/data/index.js';
import { plain, png, scratchFolder, write } from './files.js';

const root = scratchFolder();
let picture: Uint8Array;
beforeAll(async () => {
  picture = await png(plain(30, 40, 3, 60));
});

const images = [
  { id: 9, file_name: 'b.png', width: 40, height: 30 },
  { id: 4, file_name: 'a.png', width: 40, height: 30 },
  { id: 11, file_name: 'c.png', width: 40, height: 30 },
];
const categories = [
  { id: 7, name: 'dog' },
  { id: 3, name: 'cat' },
];
const annotations = [
  { id: 1, image_id: 9, category_id: 7, bbox: [1, 2, 10, 20], area: 150, iscrowd: 0 },
  { id: 2, image_id: 9, category_id: 3, bbox: [0, 0, 40.5, 30], area: 300, iscrowd: 1 },
  { id: 3, image_id: 4, category_id: 3, bbox: [5.5, 6, 1, 1] },
];
let made = 0;

function folder(content: object | string, ...names: string[]): { annotations: string; images: string } {
  const base = path.join(root, String(made++));
  const text = typeof content === 'string' ? content : JSON.stringify({ images, categories, annotations, ...content });
  for (const { file_name } of images) write(picture, base, file_name);
  return { annotations: write(text, base, ...(names.length ? names : ['boxes.json'])), images: base };
}

describe('CocoDataset', () => {
  it('reads images by rising id, classes by rising id of the categories', async () => {
    const files = folder({});
    const dataset = new CocoDataset(files);
    expect(dataset.classNames).toEqual(['cat', 'dog']);
    expect(dataset.ids).toEqual([4, 9, 11]);
    expect(dataset.describe(0)).toBe(path.join(files.images, 'a.png'));
    const { image, objects } = await dataset.load(1);
    expect(image).toMatchObject({ width: 40, height: 30 });
    expect([...objects.boxes]).toEqual([1, 2, 11, 22, 0, 0, 40.5, 30]);
    expect([...objects.labels]).toEqual([1, 0]);
    expect([...objects.areas]).toEqual([150, 300]);
    expect([...objects.crowds]).toEqual([0, 1]);
    expect([...(await dataset.load(0)).objects.areas]).toEqual([1]);
    expect((await dataset.load(2)).objects.labels).toHaveLength(0);
  });

  it('takes classes in the order asked for, or the ids themselves as labels', async () => {
    const ordered = new CocoDataset({ ...folder({}), classNames: ['bird', 'dog', 'cat'] });
    expect([...(await ordered.load(1)).objects.labels]).toEqual([1, 2]);
    const byId = new CocoDataset({ ...folder({}), labels: 'id' });
    expect(byId.classNames).toEqual(['', '', '', 'cat', '', '', '', 'dog']);
    expect([...(await byId.load(1)).objects.labels]).toEqual([7, 3]);
    expect(() => new CocoDataset({ ...folder({}), classNames: ['cat'] })).toThrow(
      /the category "dog", which is none of the classes: cat/,
    );
  });

  const good = { id: 20, image_id: 4, category_id: 3, bbox: [1, 1, 5, 5] };
  it.each([
    [{ ...good, image_id: 5 }, /annotation 20 belongs to the image 5, which is not among the images/],
    [{ ...good, category_id: 8 }, /annotation 20 in the image a\.png has the category 8, which is unknown/],
    [
      { ...good, bbox: [36, 1, 5.5, 5] },
      /a\.png has the box \[36,1,5.5,5\].*outside of the image, 40 wide and 30 high/,
    ],
    [{ ...good, bbox: [-1.5, 1, 5, 5] }, /the box \[-1.5,1,5,5\].*outside/],
    [{ ...good, bbox: [1, 27, 5, 5] }, /the box \[1,27,5,5\].*outside/],
    [{ ...good, bbox: [1, 1, 0, 5] }, /the box \[1,1,0,5\].*width and height must be above 0/],
    [{ ...good, bbox: [1, 1, 5, -2] }, /the box \[1,1,5,-2\].*above 0/],
    [{ ...good, bbox: [1, 1, 5] }, /the box \[1,1,5\]; expected four numbers/],
    [{ ...good, bbox: [1, 1, 5, 'x'] }, /the box \[1,1,5,"x"\]; expected four numbers/],
    [{ ...good, bbox: undefined }, /the box \(none\)/],
    [{ ...good, id: 3 }, /annotation 3 is there twice/],
  ])('%j is an error that names file and value, or left out and counted', async (wrong, message) => {
    const files = folder({ annotations: [...annotations, wrong] });
    const open = (): CocoDataset => new CocoDataset(files);
    expect(open).toThrow(SampleError);
    expect(open).toThrow(message);
    expect(open).toThrow(files.annotations);
    const dataset = new CocoDataset({ ...files, skipBroken: true });
    expect(dataset.skipped).toEqual([{ path: files.annotations, message: expect.stringMatching(message) as string }]);
    expect((await dataset.load(0)).objects.labels).toHaveLength(1);
  });

  it('a box up to a pixel over the edge is taken as it is', async () => {
    const edge = { ...good, bbox: [-1, -1, 42, 32] };
    const dataset = new CocoDataset(folder({ annotations: [edge] }));
    expect([...(await dataset.load(0)).objects.boxes]).toEqual([-1, -1, 41, 31]);
  });

  it.each([
    ['{', /no JSON/],
    ['[]', /expected an object with images/],
    [{ images: undefined }, /no list "images"/],
    [{ images: [] }, /has no images/],
    [{ images: [3] }, /images\[0\] is no object/],
    [{ images: [{ id: 1, file_name: 'a.png', width: 0, height: 3 }] }, /images\[0\] must have .*"width":0/],
    [{ images: [images[0], images[0]] }, /two images with the id 9/],
    [{ categories: [] }, /no categories/],
    [{ categories: [{ id: 1 }] }, /categories\[0\] must have an id and a name/],
    [{ categories: [...categories, { id: 8, name: 'cat' }] }, /two categories with the same id or name/],
  ])('a file that is not of COCO’s form: %j', (content, message) => {
    const files = folder(content);
    expect(() => new CocoDataset(files)).toThrow(RangeError);
    expect(() => new CocoDataset(files)).toThrow(message);
    expect(() => new CocoDataset(files)).toThrow(files.annotations);
  });

  it('an image that is missing, broken or of another size is an error at its batch, or left out and counted', async () => {
    const files = folder({});
    write('no image', files.images, 'a.png');
    write(await png(plain(40, 30, 3)), files.images, 'c.png');
    const dataset = new CocoDataset(files);
    await expect(dataset.load(2)).rejects.toThrow(/c\.png is 40x30, but its annotations say 30x40/);
    const loader = new DetectionLoader({ dataset, batchSize: 3, skipBroken: true });
    for await (const batch of loader.epoch()) {
      expect(batch.indices).toEqual([1]);
      batch.dispose();
    }
    expect(loader.skipped.map(({ index, path: file }) => [index, path.basename(file)])).toEqual([
      [0, 'a.png'],
      [2, 'c.png'],
    ]);
  });
});

describe('openCoco', () => {
  const content = JSON.stringify({ images, categories, annotations });

  it('a file with the images beside it, or in a folder of images beside it', () => {
    const { annotations: file, images: base } = folder({});
    const { train, val } = openCoco(file, { valFraction: 0.4 });
    expect([train.length, val.length]).toEqual([2, 1]);
    write(picture, base, 'images', 'a.png');
    expect(openCoco(file).train.describe(0)).toContain(path.join(base, 'images'));
    expect(openCoco(base).classNames).toEqual(['cat', 'dog']);
  });

  it('COCO’s own folders', async () => {
    const base = path.join(root, String(made++));
    for (const part of ['train2017', 'val2017']) {
      write(content, base, 'annotations', `instances_${part}.json`);
      write(content, base, 'annotations', `captions_${part}.json`);
      for (const { file_name } of images) write(picture, base, part === 'val2017' ? 'images' : '', part, file_name);
    }
    const { train, val, test } = openCoco(base);
    expect(train.describe(0)).toBe(path.join(base, 'train2017', 'a.png'));
    expect(val.describe(0)).toBe(path.join(base, 'images', 'val2017', 'a.png'));
    expect(test).toBeUndefined();
    expect((await val.load(1)).objects.labels).toHaveLength(2);
  });

  it('a folder per part with its own file; classes are those of train', async () => {
    const base = path.join(root, String(made++));
    const less = JSON.stringify({ images, categories: [categories[0]], annotations: [annotations[0]] });
    write(content, base, 'train', '_annotations.coco.json');
    write(less, base, 'valid', '_annotations.coco.json');
    for (const part of ['train', 'valid']) for (const { file_name } of images) write(picture, base, part, file_name);
    const { val } = openCoco(base);
    expect(val.classNames).toEqual(['cat', 'dog']);
    expect([...(await val.load(1)).objects.labels]).toEqual([1]);
    write(content, base, 'train', 'more.json');
    expect(() => openCoco(base)).toThrow(/train has several JSON files \("_annotations.coco.json", "more.json"\)/);
  });

  it('says what it expects where it does not find it', () => {
    const base = path.join(root, String(made++));
    write(picture, base, 'a.png');
    expect(() => openCoco(base)).toThrow(/has no JSON file; expected one file of annotations/);
    expect(() => openCoco(path.join(base, 'none'))).toThrow(/no such file or folder/);
  });
});
