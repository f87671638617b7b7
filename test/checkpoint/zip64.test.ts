/** Archives beyond 4 GB, written and read for real, whose long stretches of zeros the file system keeps as holes. */
import { closeSync, openSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { parseNpz } from '../../lib/checkpoint/npy.js';
import { readTorchFile } from '../../lib/checkpoint/index.js';
import type { Tensor } from '../../lib/tensor/index.js';
import { FileMap } from '../../lib/checkpoint/region.js';
import { ZipArchive } from '../../lib/checkpoint/zip.js';
import { temporaryFolder } from './helpers.js';
import { bigTorchArchive, SparseSink } from './sparse.js';
import { ZipWriter } from '../../lib/checkpoint/zipwriter.js';

const folder = temporaryFolder();

describe('archives beyond 4 GB', () => {
  test('an entry of more than 4 GB, and one behind it', () => {
    const path = join(folder, 'big.pt');
    const before = process.memoryUsage.rss();
    const size = bigTorchArchive(path);
    expect(size).toBeGreaterThan(2 ** 32);
    const state = readTorchFile(path) as Map<string, Tensor>;
    const big = state.get('big')!;
    expect(big.numel() * 4).toBe(size);
    expect([big.select(0, 0).item(), big.select(0, -1).item()]).toEqual([0, 0]);
    expect(state.get('behind')!.tolist()).toEqual([1, 2, 3]);
    expect(process.memoryUsage.rss() - before).toBeLessThan(200 * 2 ** 20);
  });

  test('a directory behind 4 GB of entries that are small', () => {
    const path = join(folder, 'far.npz');
    const file = openSync(path, 'w');
    const sink = new SparseSink(file);
    const archive = new ZipWriter(sink);
    const array = (value: number): Buffer => {
      const text = "{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }".padEnd(117) + '\n';
      const head = Buffer.from('\x93NUMPY\x01\x00\x00\x00', 'latin1');
      head.writeUInt16LE(text.length, 8);
      return Buffer.concat([head, Buffer.from(text), Buffer.from(new Float32Array([value]).buffer)]);
    };
    archive.addBytes('near.npy', array(1));
    sink.skip(2 ** 32);
    archive.addBytes('far.npy', array(2));
    archive.finish();
    closeSync(file);
    const map = FileMap.open(path);
    const entries = ZipArchive.open(map);
    expect(entries.entries.get('far.npy')!.headerOffset).toBeGreaterThan(2 ** 32);
    expect([...parseNpz(entries, path)].map(([name, tensor]) => [name, tensor.tolist()])).toEqual([
      ['near', [1]],
      ['far', [2]],
    ]);
    map.close();
  });

  test('sizes beyond the file are refused whatever the ZIP64 fields say', () => {
    const path = join(folder, 'lie.pt');
    bigTorchArchive(path);
    const map = FileMap.open(path);
    const { size } = map;
    const tail = Buffer.from(map.bytes(size - 2048, 2048));
    map.close();
    // The central record's field: id 1, 16 bytes or more, then the two sizes.
    const field = tail.indexOf(Buffer.from([1, 0, 16, 0]));
    expect(field).toBeGreaterThan(0);
    const file = openSync(path, 'r+');
    const lie = Buffer.alloc(8);
    lie.writeBigUInt64LE(2n ** 62n);
    writeSync(file, lie, 0, 8, size - 2048 + field + 4);
    closeSync(file);
    expect(() => readTorchFile(path)).toThrow(/speaks of 4611686018427387904 bytes/);
  });
});
