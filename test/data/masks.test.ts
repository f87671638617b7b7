import { readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  MaskFolder,
  openMaskFolder,
  openMasks,
  readMask,
  SampleError,
  SegmentationLoader,
} from '../../lib/data/index.js';
import { decodeNumbers } from '../../lib/data/png.js';
import { plain, png, scratchFolder, write } from './files.js';
import { fixtures, readNpy } from './npy.js';

const root = scratchFolder();
let made = 0;
const fresh = (): string => path.join(root, String(made++));
const gray = (height: number, width: number, value: number | ((x: number, y: number) => number)) =>
  png(plain(height, width, 1, value));
const rgb = (height: number, width: number) => png(plain(height, width, 3, 90));

describe('PNG files of numbers', () => {
  const names = readdirSync(path.join(fixtures, 'masks')).filter((name) => name.endsWith('.npy'));

  it.each(names)('%s: what Pillow reads, indices and not colors', async (name) => {
    const file = readFileSync(path.join(fixtures, 'masks', name.replace(/\.npy$/, '')));
    const expected = readNpy('masks', name);
    const found = await decodeNumbers(file);
    expect(found).toMatchObject({ width: 23, height: 19, channels: 1 });
    expect([...found.data]).toEqual([...expected.data]);
  });

  it('any gray image, interlaced or not, of any size', async () => {
    const image = fc
      .tuple(fc.integer({ min: 1, max: 20 }), fc.integer({ min: 1, max: 20 }), fc.integer({ min: 0, max: 255 }))
      .map(([height, width, step]) => plain(height, width, 1, (x, y) => (x * step + y * 31 + x * y) % 256));
    await fc.assert(
      fc.asyncProperty(image, fc.boolean(), async (original, progressive) => {
        const found = await decodeNumbers(await png(original, { progressive, adaptiveFiltering: true }));
        expect(found).toMatchObject({ width: original.width, height: original.height });
        expect([...found.data]).toEqual([...original.data]);
      }),
      { numRuns: 60 },
    );
  });

  it('a damaged file is an error, whatever is damaged', async () => {
    const good = await gray(9, 9, (x, y) => x + y);
    await fc.assert(
      fc.asyncProperty(fc.nat(good.length - 1), fc.integer({ min: 1, max: 255 }), async (at, change) => {
        const bad = Uint8Array.from(good);
        bad[at] = (bad[at] ?? 0) ^ change;
        await expect(decodeNumbers(bad)).rejects.toThrow(/PNG|damaged|cut off/);
      }),
    );
    await fc.assert(
      fc.asyncProperty(fc.nat(good.length - 1), async (length) => {
        await expect(decodeNumbers(good.subarray(0, length))).rejects.toThrow(/PNG|empty|cut off/);
      }),
    );
  });

  it('colors, and numbers beyond a byte, are refused', async () => {
    await expect(decodeNumbers(await rgb(4, 4))).rejects.toThrow(/it has colors; expected class numbers/);
    const large = readFileSync(path.join(fixtures, 'masks', 'large_16bit.png'));
    await expect(decodeNumbers(large)).rejects.toThrow(/it has the value 300; class numbers up to 255/);
  });
});

describe('readMask', () => {
  it('maps the numbers of the file to classes', async () => {
    const file = write(await gray(1, 5, (x) => [0, 1, 2, 3, 255][x] ?? 0), fresh(), 'mask.png');
    expect([...(await readMask(file, 4)).data]).toEqual([0, 1, 2, 3, 255]);
    expect([...(await readMask(file, 3, { reduceZeroLabel: true })).data]).toEqual([255, 0, 1, 2, 255]);
    const other = write(await gray(1, 3, (x) => x), fresh(), 'mask.png');
    expect([...(await readMask(other, 2, { ignoreIndex: 2 })).data]).toEqual([0, 1, 255]);
  });

  it('names the file, the number and the place that is beyond the classes', async () => {
    const file = write(await gray(3, 4, (x, y) => (x === 2 && y === 1 ? 7 : 0)), fresh(), 'mask.png');
    const error: unknown = await readMask(file, 5).catch((e: unknown) => e);
    expect(error).toBeInstanceOf(SampleError);
    expect((error as SampleError).path).toBe(file);
    expect((error as SampleError).message).toContain(
      `the mask ${file} has the number 7 at x 2, y 1, but the 5 classes have the numbers 0 to 4, and 255 does not count`,
    );
    await expect(readMask(file, 6, { reduceZeroLabel: true })).rejects.toThrow(/number 7 .*numbers 1 to 6/);
    await expect(readMask(path.join(root, 'none.png'), 5)).rejects.toThrow(/none\.png: no such file/);
  });
});

describe('MaskFolder', () => {
  it('pairs images and masks by name, in folders inside too', async () => {
    const base = fresh();
    write(await rgb(4, 6), base, 'images', 'town', 'b.png');
    write(await gray(4, 6, 1), base, 'masks', 'town', 'b_label.png');
    write(await rgb(3, 5), base, 'images', 'a.png');
    write(await gray(3, 5, 0), base, 'masks', 'a_label.png');
    const dataset = openMaskFolder(base, { classNames: ['x', 'y'], maskSuffix: '_label.png' });
    expect(dataset.paths.map((file) => path.relative(base, file))).toEqual([
      path.join('images', 'a.png'),
      path.join('images', 'town', 'b.png'),
    ]);
    const { image, mask } = await dataset.load(1);
    expect(image).toMatchObject({ height: 4, width: 6, channels: 3 });
    expect(mask).toMatchObject({ height: 4, width: 6, channels: 1 });
    expect(new Set(mask.data)).toEqual(new Set([1]));
  });

  it('what has no counterpart is an error that names it, or left out and counted', async () => {
    const base = fresh();
    for (const name of ['a', 'b']) write(await rgb(4, 4), base, 'images', `${name}.png`);
    for (const name of ['a', 'c']) write(await gray(4, 4, 0), base, 'masks', `${name}.png`);
    const folders = { images: path.join(base, 'images'), masks: path.join(base, 'masks'), classNames: ['x'] };
    expect(() => new MaskFolder(folders)).toThrow(/images.b\.png has no mask: .*masks.b\.png is missing/);
    const dataset = new MaskFolder({ ...folders, skipBroken: true });
    expect(dataset.length).toBe(1);
    expect(dataset.skipped.map(({ message }) => message)).toEqual([
      expect.stringMatching(/b\.png has no mask/),
      expect.stringMatching(/the mask .*c\.png has no image in .*images/),
    ]);
  });

  it('a mask of another size, and masks that do not fit the options, are refused', async () => {
    const base = fresh();
    write(await rgb(4, 4), base, 'images', '1.png');
    write(await gray(4, 5, 0), base, 'masks', '1.png');
    const folders = { images: path.join(base, 'images'), masks: path.join(base, 'masks') };
    await expect(new MaskFolder({ ...folders, classNames: ['x'] }).load(0)).rejects.toThrow(
      /masks.1\.png is 4x5, but its image .*images.1\.png is 4x4/,
    );
    expect(() => new MaskFolder({ ...folders, classNames: [] })).toThrow(/1 to 255 classes, got 0/);
    expect(() => new MaskFolder({ ...folders, classNames: ['x'], ignoreIndex: 256 })).toThrow(/ignoreIndex .* got 256/);
    expect(() => new MaskFolder({ ...folders, classNames: ['x'], maskSuffix: '.tif', skipBroken: true })).toThrow(
      /no images with masks/,
    );
  });

  it('broken samples are errors at their batch, or left out and counted', async () => {
    const base = fresh();
    for (const name of ['1', '2', '3', '4']) write(await rgb(4, 4), base, 'images', `${name}.png`);
    write('no image', base, 'images', '2.png');
    for (const name of ['1', '2', '4']) write(await gray(4, 4, 0), base, 'masks', `${name}.png`);
    write(await gray(4, 4, 9), base, 'masks', '3.png');
    const dataset = openMaskFolder(base, { classNames: ['x', 'y'] });
    const strict = new SegmentationLoader({ dataset, batchSize: 4 });
    await expect(strict.epoch().next()).rejects.toThrow(SampleError);
    const loader = new SegmentationLoader({ dataset, batchSize: 4, skipBroken: true });
    for await (const batch of loader.epoch()) {
      expect(batch.indices).toEqual([0, 3]);
      expect(batch.masks.shape).toEqual([2, 4, 4]);
      batch.dispose();
    }
    expect(loader.skipped.map(({ index }) => index)).toEqual([1, 2]);
    expect(loader.skipped[1]?.message).toMatch(/3\.png has the number 9 at x 0, y 0/);
  });
});

describe('openMasks', () => {
  it('takes parts inside of images and masks, and classes.txt', async () => {
    const base = fresh();
    for (const part of ['train', 'val']) {
      write(await rgb(4, 4), base, 'images', part, '1.png');
      write(await gray(4, 4, 1), base, 'masks', part, '1.png');
    }
    write('road\nsky \r\n', base, 'classes.txt');
    const parts = await openMasks(base);
    expect(parts.classNames).toEqual(['road', 'sky']);
    expect(parts.val.describe(0)).toBe(path.join(base, 'images', 'val', '1.png'));
    expect(parts.test).toBeUndefined();
    write('road\n\nsky', base, 'classes.txt');
    await expect(openMasks(base)).rejects.toThrow(/classes\.txt: line 2 is empty/);
    write('road\nroad', base, 'classes.txt');
    await expect(openMasks(base)).rejects.toThrow(/classes\.txt: line 2 repeats "road"/);
  });

  it('takes images and masks inside of parts, and counts classes that nobody names', async () => {
    const base = fresh();
    for (const part of ['train', 'test']) {
      write(await rgb(2, 4), base, part, 'images', '1.png');
      write(await rgb(2, 4), base, part, 'images', '2.png');
      write(await gray(2, 4, (x) => (x === 0 ? 255 : x)), base, part, 'masks', '1.png');
      write(await gray(2, 4, 0), base, part, 'masks', '2.png');
    }
    const parts = await openMasks(base, { valFraction: 0.5 });
    expect(parts.classNames).toEqual(['0', '1', '2', '3']);
    expect([parts.train.length, parts.val.length, parts.test?.length]).toEqual([1, 1, 2]);
    expect((await openMasks(base, { reduceZeroLabel: true })).classNames).toEqual(['0', '1', '2']);
  });

  it('holds some back, the same ones for the same seed', async () => {
    const base = fresh();
    for (let i = 0; i < 10; i++) {
      write(await rgb(2, 2), base, 'images', `${i}.png`);
      write(await gray(2, 2, 0), base, 'masks', `${i}.png`);
    }
    const names = async (seed: number): Promise<string[]> => {
      const { train, val } = await openMasks(base, { classNames: ['x'], valFraction: 0.3, seed });
      expect([train.length, val.length]).toEqual([7, 3]);
      return [0, 1, 2].map((i) => val.describe(i));
    };
    expect(await names(1)).toEqual(await names(1));
    expect(await names(1)).not.toEqual(await names(2));
  });

  it('says what it expects where it does not find it', async () => {
    const base = fresh();
    write(await rgb(2, 2), base, 'images', 'train', '1.png');
    await expect(openMasks(base)).rejects.toThrow(/has no folder of masks; expected the folders images and masks/);
    write(await gray(2, 2, 0), base, 'masks', '1.png');
    await expect(openMasks(base)).rejects.toThrow(/only one of .* has the parts train and val/);
  });
});
