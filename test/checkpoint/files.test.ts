import { readFileSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { native } from '../../lib/native/addon.js';
import type { MappedFile } from '../../lib/native/types.js';
import type { Tensor } from '../../lib/tensor/index.js';
import { temporaryFolder } from './helpers.js';

const folder = temporaryFolder();
const numbers = Float32Array.from({ length: 16 }, (_, i) => i);

function fresh(name: string, bytes: Uint8Array = new Uint8Array(numbers.buffer)): [MappedFile, string] {
  const path = join(folder, name);
  writeFileSync(path, bytes);
  return [native.mapFile(path), path];
}

const take = (...args: Parameters<typeof native.tensorFromMap>) => native.tensorFromMap(...args) as Tensor;

describe('tensorFromMap', () => {
  test('shares memory where aligned, also strided, and copies where not', () => {
    const [file] = fresh('share');
    const all = take(file, 0, [16], 'float32');
    const columns = take(file, 4, [2, 3], 'float32', [1, 4]);
    expect(columns.tolist()).toEqual([
      [1, 5, 9],
      [2, 6, 10],
    ]);
    all.add_(100);
    expect(columns.tolist()).toEqual([
      [101, 105, 109],
      [102, 106, 110],
    ]);
    expect(native.mapBytes(file, 0, 4)).toEqual(new Uint8Array(new Float32Array([100]).buffer));

    const shifted = Buffer.concat([Buffer.alloc(1), Buffer.from(numbers.buffer)]);
    const [odd] = fresh('odd', shifted);
    const copy = take(odd, 1, [2, 2], 'float32', [1, 2]);
    expect(copy.tolist()).toEqual([
      [0, 2],
      [1, 3],
    ]);
  });

  test('never writes to the file; tensors outlive the handle', () => {
    const [file, path] = fresh('outlive');
    const before = readFileSync(path);
    const x = take(file, 0, [16], 'float32');
    native.unmapFile(file);
    native.unmapFile(file);
    x.mul_(2);
    expect(x.tolist()).toEqual([...numbers].map((value) => value * 2));
    expect(readFileSync(path)).toEqual(before);
    expect(() => native.mapSize(file)).toThrow(/has been unmapped/);
    expect(() => take(file, 0, [1], 'float32')).toThrow(/has been unmapped/);
  });

  test('empty tensors and empty files', () => {
    const [file] = fresh('empty', new Uint8Array(0));
    expect(native.mapSize(file)).toBe(0);
    expect(take(file, 0, [0, 3], 'float32').shape).toEqual([0, 3]);
    expect(() => take(file, 0, [1], 'uint8')).toThrow(RangeError);
    expect(native.mapBytes(file, 0, 0)).toEqual(new Uint8Array(0));
  });

  const wide = 2 ** 53 - 1;
  test.each([
    ['past the end', 0, [17], 'float32', undefined, /68 bytes at offset 0 are outside/],
    ['an offset past the end', 61, [1], 'float32', undefined, /4 bytes at offset 61/],
    ['an offset far past the end', wide, [1], 'float32', undefined, /outside the file/],
    ['a negative offset', -4, [1], 'float32', undefined, /offset -4/],
    ['a product that overflows', 0, [2 ** 32, 2 ** 32], 'float32', undefined, /too many elements/],
    ['bytes that overflow', 0, [2 ** 50, 2 ** 12], 'float64', undefined, /too many elements/],
    ['strides that overflow', 0, [2 ** 40, 2], 'uint8', [2 ** 40, 1], /beyond 2\^64|outside the file/],
    ['strides past the end', 0, [2, 2], 'float32', [15, 1], /68 bytes/],
    ['a negative size', 0, [-1], 'float32', undefined, /negative|size/],
    ['a negative stride', 0, [2], 'float32', [-1], /negative/],
  ] as [string, number, number[], string, number[] | undefined, RegExp][])(
    'refuses %s',
    (label, offset, shape, dtype, strides, message) => {
      const [file] = fresh('range');
      expect(() => take(file, offset, shape, dtype, strides), label).toThrow(message);
      expect(() => take(file, offset, shape, dtype, strides)).toThrow(RangeError);
    },
  );

  test('wrong types', () => {
    const [file] = fresh('types');
    const wrong: unknown[] = [undefined, null, 1.5, 'x', {}, [], () => 1, Symbol('s')];
    for (const value of wrong) {
      expect(() => native.mapSize(value as MappedFile), String(value)).toThrow(TypeError);
      expect(() => native.unmapFile(value as MappedFile)).toThrow(TypeError);
      expect(() => native.mapFile(value === 'x' ? 'a\0b' : (value as string))).toThrow(TypeError);
      expect(() => take(file, value as number, [1], 'float32')).toThrow(TypeError);
      expect(() => take(file, 0, [value as number], 'float32')).toThrow(TypeError);
      expect(() => take(file, 0, [1], value as string)).toThrow(TypeError);
      expect(() => native.mapBytes(file, 0, value as number)).toThrow(TypeError);
    }
    expect(() => take(file, 0, [2], 'float32', [1, 1])).toThrow(/expected 1, given 2/);
    expect(() => native.mapBytes(file, 0, -1)).toThrow(RangeError);
    expect(() => native.mapBytes(file, 0, wide)).toThrow(RangeError);
    expect(() => native.mapBytes(file, 60, 8)).toThrow(RangeError);
  });

  test('files that are missing, no files, or become shorter', () => {
    expect(() => native.mapFile(join(folder, 'absent'))).toThrow(/absent: No such file/);
    expect(() => native.mapFile(folder)).toThrow(/not a regular file/);
    const [file, path] = fresh('shorter', new Uint8Array(100_000));
    truncateSync(path, 10);
    expect(() => take(file, 0, [4], 'uint8')).toThrow(/become shorter/);
    expect(() => native.mapBytes(file, 0, 4)).toThrow(/become shorter/);
  });
});
