import { readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { decodeImage, ImageError } from '../../lib/data/index.js';
import { compare, fixtures, readNpy } from './npy.js';

const kinds = readdirSync(path.join(fixtures, 'kinds')).filter((name) => !name.endsWith('.npy'));
const broken = (name: string): string => path.join(fixtures, 'broken', name);

describe('decodeImage', () => {
  it('has fixtures of all kinds', () => {
    expect(kinds).toHaveLength(32);
  });

  it.each(kinds)('%s: gives the pixels that Pillow gives', async (name) => {
    const file = path.join(fixtures, 'kinds', name);
    const expected = readNpy('kinds', `${name}.npy`);
    expect(compare(await decodeImage(file), expected)).toMatchObject({ most: 0 });
    expect(compare(await decodeImage(readFileSync(file)), expected)).toMatchObject({ most: 0 });
  });

  it.each([
    ['truncated.jpg', /premature end/],
    ['truncated.png', /read error|IDAT|truncated/],
    ['empty.jpg', /it is empty/],
    ['text.jpg', /not an image/],
    ['unsupported.bmp', /not supported \(JPEG, PNG/],
    ['missing.jpg', /no such file/],
  ])('%s: is an ImageError that names the file', async (name, reason) => {
    const error: unknown = await decodeImage(broken(name)).catch((e: unknown) => e);
    expect(error).toBeInstanceOf(ImageError);
    expect(error).toMatchObject({ name: 'ImageError', path: broken(name) });
    expect((error as Error).message).toContain(broken(name));
    expect((error as Error).message).toMatch(reason);
  });

  it('names bytes as it is told', async () => {
    await expect(decodeImage(new Uint8Array(0), 'upload 7')).rejects.toThrow(/upload 7: it is empty/);
    await expect(decodeImage(new Uint8Array([1, 2, 3]), 'upload 8')).rejects.toThrow(ImageError);
  });

  it('a folder instead of a file is an ImageError', async () => {
    await expect(decodeImage(fixtures)).rejects.toThrow(/it is a folder/);
  });

  it('whatever the damage: an image of some size, or an ImageError', async () => {
    const files = ['rgb_420.jpg', 'cmyk.jpg', 'rgb.png', 'lossy.webp', 'palette.gif', 'rgb.tiff', 'cmyk.tiff'];
    const sources = files.map((name) => readFileSync(path.join(fixtures, 'kinds', name)));
    let refused = 0;
    await fc.assert(
      fc.asyncProperty(
        fc.constantFrom(...sources),
        fc.double({ min: 0, max: 1, noNaN: true }),
        fc.array(fc.tuple(fc.double({ min: 0, max: 0.999, noNaN: true }), fc.nat(255)), { maxLength: 3 }),
        async (source, share, changes) => {
          const bytes = Uint8Array.from(source.subarray(0, Math.ceil(share * source.length)));
          for (const [place, value] of changes) if (bytes.length) bytes[Math.floor(place * bytes.length)] = value;
          try {
            const image = await decodeImage(bytes, 'damaged');
            expect(image.data.length).toBe(image.width * image.height * 3);
          } catch (error) {
            expect(error).toBeInstanceOf(ImageError);
            refused++;
          }
        },
      ),
      { numRuns: 300, seed: 1 },
    );
    expect(refused).toBeGreaterThan(50);
  });
});
