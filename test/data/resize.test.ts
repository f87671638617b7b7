import { readdirSync } from 'node:fs';
import path from 'node:path';
import { describe, expect, it } from 'vitest';
import { decodeImage, imageFromTensor, imageToTensor, resizeImage, type Interpolation } from '../../lib/data/index.js';
import { memory } from '../../lib/tensor/index.js';
import { compare, fixtures } from './npy.js';
import { settledMemory } from '../support/settled_memory.js';

const cases = readdirSync(path.join(fixtures, 'resize')).flatMap((file) => {
  const [, kind, height, width] = /^(bilinear|bicubic)_(\d+)x(\d+)\.png$/.exec(file) ?? [];
  return kind ? [{ file, kind: kind as Interpolation, height: Number(height), width: Number(width) }] : [];
});

describe('resizeImage', () => {
  it('has cases of both kinds, up and down', () => {
    expect(cases).toHaveLength(14);
  });

  // Measured over 138 of the sign-digits photographs (100 x 100, one of 3000 x 3000), at 32, 64, 97x131, 224 and 300x200:
  // bilinear within 1/255 on at least 99.9999 % of the values (largest difference 2), bicubic on at least 99.97 % (12).
  it.each(cases)('$kind to $height x $width is Pillow within 1/255 on 99 % of the values', async (c) => {
    const source = await decodeImage(path.join(fixtures, 'resize', 'source.png'));
    const expected = await decodeImage(path.join(fixtures, 'resize', c.file));
    const { withinOne, most } = compare(resizeImage(source, c.height, c.width, c.kind), expected);
    expect(withinOne).toBeGreaterThanOrEqual(0.999);
    expect(most).toBeLessThanOrEqual(3);
  });

  it('is no work where the size is right, and frees its tensors', async () => {
    const source = await decodeImage(path.join(fixtures, 'resize', 'source.png'));
    expect(resizeImage(source, source.height, source.width)).toBe(source);
    const { tensors } = settledMemory();
    resizeImage(source, 10, 10);
    expect(memory().tensors).toBe(tensors);
  });

  it('resizes floats too', () => {
    const image = { data: new Float32Array(4 * 4 * 2).fill(-1.5), width: 4, height: 4, channels: 2 };
    const { data } = resizeImage(image, 3, 7, 'bicubic');
    expect(data).toHaveLength(3 * 7 * 2);
    for (const value of data) expect(value).toBeCloseTo(-1.5, 5);
  });

  it('goes to a tensor [C, H, W] and back', () => {
    const image = { data: Uint8Array.from({ length: 2 * 3 * 3 }, (_, i) => i), width: 3, height: 2, channels: 3 };
    const tensor = imageToTensor(image);
    expect(tensor.shape).toEqual([3, 2, 3]);
    expect(tensor.dtype).toBe('uint8');
    expect(tensor.tolist()).toEqual([0, 1, 2].map((c) => [[c, c + 3, c + 6], [c + 9, c + 12, c + 15]])); // prettier-ignore
    expect(imageFromTensor(tensor)).toEqual(image);
    expect(() => imageFromTensor(tensor.to('int32'))).toThrow(/uint8 or float32/);
    expect(() => imageFromTensor(tensor.unsqueeze(0))).toThrow(/\[C, H, W\]/);
  });
});
