import { copyFileSync, existsSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { ImageFolder, listImages, openImageFolder, splitDataset, Subset, TensorDataset } from '../../lib/data/index.js';
import { arange, memory, tensor, zeros } from '../../lib/tensor/index.js';
import { fixtures, signDigits } from './npy.js';
import { settledMemory } from '../support/settled_memory.js';

let root: string;
let made = 0;
beforeAll(() => (root = mkdtempSync(path.join(tmpdir(), 'torchgraft-data-'))));
afterAll(() => rmSync(root, { recursive: true }));

/** A folder with these files (images unless they end otherwise). */
function folder(...files: string[]): string {
  const base = path.join(root, String(made++));
  mkdirSync(base);
  for (const file of files) {
    mkdirSync(path.dirname(path.join(base, file)), { recursive: true });
    if (file.endsWith('.txt')) writeFileSync(path.join(base, file), 'text');
    else if (file.endsWith('/')) mkdirSync(path.join(base, file), { recursive: true });
    else copyFileSync(path.join(fixtures, 'kinds', 'rgb.png'), path.join(base, file));
  }
  return base;
}

describe('ImageFolder', () => {
  it('numbers classes and files by name, endings in any case, hidden ones left out', async () => {
    const base = folder(
      'dog/2.PNG',
      'dog/10.png',
      'Cat/a.JpEg',
      'dog/.hidden.png',
      '.git/x.png',
      'dog/notes.txt',
      'README.txt',
    );
    symlinkSync(path.join(base, 'dog'), path.join(base, 'elk'));
    const dataset = new ImageFolder(base);
    expect(dataset.classNames).toEqual(['Cat', 'dog', 'elk']);
    expect(dataset.paths.map((p) => path.relative(base, p))).toEqual([
      'Cat/a.JpEg',
      'dog/10.png',
      'dog/2.PNG',
      'elk/10.png',
      'elk/2.PNG',
    ]);
    expect(Array.from(dataset.labels)).toEqual([0, 1, 1, 2, 2]);
    expect(dataset.ignored.map((p) => path.relative(base, p))).toEqual([
      'README.txt',
      'dog/notes.txt',
      'elk/notes.txt',
    ]);
    expect(await dataset.load(4)).toMatchObject({ width: 23, height: 17, channels: 3 });
    expect(dataset.describe(1)).toBe(path.join(base, 'dog', '10.png'));
    expect(() => dataset.describe(5)).toThrow(/index 5 is outside.*5 samples/);
  });

  it.each([
    ['classes inside classes', ['a/1.png', 'a/b/2.png'], /class folder .*a has folders inside \("b"\).*nested/],
    ['a class without images', ['a/1.png', 'b/1.txt'], /class folder .*b has no images/],
    ['no folders', ['1.txt'], /no class folders; expected/],
    ['images without folders', ['1.png'], /images but no class folders/],
    ['a split data set', ['train/a/1.png', 'val/a/1.png'], /openImageFolder/],
  ])('refuses %s', (_, files, message) => {
    expect(() => new ImageFolder(folder(...files))).toThrow(RangeError);
    expect(() => new ImageFolder(folder(...files))).toThrow(message);
  });

  it('refuses what is not there or is no folder', () => {
    expect(() => new ImageFolder(path.join(root, 'nowhere'))).toThrow(/no such file or folder/);
    expect(() => new ImageFolder(path.join(fixtures, 'kinds', 'rgb.png'))).toThrow(/is not a folder/);
  });
});

describe('openImageFolder', () => {
  it('takes the parts that are there, with the classes of train', () => {
    const base = folder('train/a/1.png', 'train/b/1.png', 'train/c/1.png', 'Valid/c/1.png', 'test/a/1.png');
    const { train, val, test, classNames } = openImageFolder(base);
    expect(classNames).toEqual(['a', 'b', 'c']);
    expect([train.length, val.length, test?.length]).toEqual([3, 1, 1]);
    expect(Array.from(val.labels)).toEqual([2]);
  });

  it('refuses classes in val that train does not have, and parts that are there twice', () => {
    expect(() => openImageFolder(folder('train/a/1.png', 'val/b/1.png'))).toThrow(
      /no known classes: "b"; the classes are "a"/,
    );
    expect(() => openImageFolder(folder('train/a/1.png', 'val/a/1.png', 'valid/a/1.png'))).toThrow(/mean the same/);
  });

  it('else holds back the same share of each class, by the seed', () => {
    const files = Array.from({ length: 30 }, (_, i) => (i < 20 ? `a/${i}.png` : `b/${i}.png`));
    const base = folder(...files);
    const parts = (seed: number): string[] => {
      const { train, val } = openImageFolder(base, { valFraction: 0.3, seed });
      expect([train.length, val.length]).toEqual([21, 9]);
      expect(Array.from(val.labels).filter((label) => label === 0)).toHaveLength(6);
      return Array.from({ length: val.length }, (_, i) => val.describe(i));
    };
    expect(parts(1)).toEqual(parts(1));
    expect(parts(1)).not.toEqual(parts(2));
    expect(() => openImageFolder(folder('a/1.png'))).toThrow(/too few images/);
    expect(() => openImageFolder(base, { valFraction: 1 })).toThrow(/between 0 and 1/);
  });

  it.skipIf(!existsSync(signDigits))('opens the real sign digits (skipped where they are absent)', async () => {
    const { train, val, classNames } = openImageFolder(signDigits);
    expect(classNames).toEqual(['0', '1', '2', '3', '4', '5', '6', '7', '8', '9']);
    expect([train.length, val.length]).toEqual([1202, 424]);
    expect(await val.load(0)).toMatchObject({ width: 100, height: 100 });
  });
});

describe('splitDataset', () => {
  it('makes two parts that together are the whole, each with every class that has two images', () => {
    fc.assert(
      fc.property(
        fc.array(fc.nat(4), { minLength: 1, maxLength: 60 }),
        fc.double({ min: 0.01, max: 0.99, noNaN: true }),
        fc.nat(),
        (labels, fraction, seed) => {
          const dataset = new TensorDataset(zeros([labels.length, 1, 1, 1]), labels);
          const [a, b] = splitDataset(dataset, { fraction, seed });
          expect([...a.indices, ...b.indices].sort((x, y) => x - y)).toEqual(labels.map((_, i) => i));
          for (const label of new Set(labels)) {
            const total = labels.filter((l) => l === label).length;
            const back = Array.from(b.labels).filter((l) => l === label).length;
            expect(back).toBe(Math.min(Math.max(1, Math.round(total * fraction)), total - 1));
          }
        },
      ),
      { numRuns: 50 },
    );
  });
});

describe('TensorDataset and Subset', () => {
  it('give back the images', () => {
    const before = settledMemory().tensors;
    const images = arange(24, { dtype: 'float32' }).view([2, 3, 2, 2]);
    const dataset = new TensorDataset(images, tensor([1n, 0n] as never, { dtype: 'int64' }), ['no', 'yes']);
    expect(dataset.labels).toEqual([1, 0]);
    images.fill_(0);
    expect(Array.from(dataset.load(1).data)).toEqual([12, 16, 20, 13, 17, 21, 14, 18, 22, 15, 19, 23]);
    const subset = new Subset(dataset, [1]);
    expect(subset.load(0)).toBe(dataset.load(1));
    expect(Array.from(subset.labels)).toEqual([0]);
    expect(subset.describe(0)).toBe('image 1');
    expect(() => subset.load(1)).toThrow(RangeError);
    expect(() => new Subset(dataset, [2])).toThrow(RangeError);
    expect(memory().tensors).toBeLessThanOrEqual(before + 3);
  });

  it('refuse what does not fit', () => {
    expect(() => new TensorDataset(zeros([2, 3, 4]), [0, 1])).toThrow(/\[N, C, H, W\]/);
    expect(() => new TensorDataset(zeros([2, 3, 4, 4]), [0])).toThrow(/2 images but 1 labels/);
    expect(() => new TensorDataset(zeros([1, 3, 4, 4]), [2], ['a', 'b'])).toThrow(/from 0 to 1, got 2/);
    expect(() => new TensorDataset(zeros([1, 3, 4, 4]), [0.5])).toThrow(RangeError);
    expect(() => new TensorDataset(zeros([1, 3, 4, 4], { dtype: 'float64' }), [0])).toThrow(/uint8 or float32/);
    expect(new TensorDataset(zeros([2, 3, 4, 4]), [2, 0]).classNames).toEqual(['0', '1', '2']);
  });
});

describe('listImages', () => {
  it('lists a folder or takes one file', () => {
    const base = folder('b.png', 'a.jpg', 'x.txt');
    expect(listImages(base)).toEqual([path.join(base, 'a.jpg'), path.join(base, 'b.png')]);
    expect(listImages(path.join(base, 'b.png'))).toEqual([path.join(base, 'b.png')]);
    expect(() => listImages(path.join(base, 'c.png'))).toThrow(/no such file/);
  });
});
