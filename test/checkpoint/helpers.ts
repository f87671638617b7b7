import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll } from 'vitest';
import { writeAtomically } from '../../lib/checkpoint/atomic.js';
import { readPickle, type PickleHost } from '../../lib/checkpoint/pickle.js';
import { ByteReader } from '../../lib/checkpoint/reader.js';
import { MemoryRegion } from '../../lib/checkpoint/region.js';
import type { PickleValue } from '../../lib/checkpoint/values.js';
import { ZipWriter } from '../../lib/checkpoint/zipwriter.js';

/** A file of make_fixtures.py. */
export function fixture(name: string): string {
  return fileURLToPath(new URL(`fixtures/${name}`, import.meta.url));
}

/** A folder that is removed after the tests of this file. */
export function temporaryFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), 'torchgraft-checkpoint-'));
  afterAll(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

/** Runs the pickle machine over bytes in memory. */
export function unpickle(bytes: Uint8Array | string, host?: PickleHost): PickleValue {
  const data = typeof bytes === 'string' ? Buffer.from(bytes, 'latin1') : bytes;
  return readPickle(new ByteReader(new MemoryRegion('test.pkl', new Uint8Array(data))), host);
}

/** A PyTorch archive around a pickle given as Latin-1 text. */
export function torchArchive(path: string, pickle: string, storages: Record<string, Uint8Array> = {}): string {
  writeAtomically(path, (sink) => {
    const zip = new ZipWriter(sink);
    zip.addBytes('archive/data.pkl', Buffer.from(pickle, 'latin1'));
    for (const [key, bytes] of Object.entries(storages)) zip.addBytes(`archive/data/${key}`, bytes);
    zip.finish();
  });
  return path;
}

/** A safetensors file with any header and data. */
export function safetensorsFile(
  path: string,
  header: string,
  data: Uint8Array,
  length = Buffer.byteLength(header),
): string {
  const prefix = Buffer.alloc(8);
  prefix.writeBigUInt64LE(BigInt(length));
  writeFileSync(path, Buffer.concat([prefix, Buffer.from(header), data]));
  return path;
}

/** What the fixtures hold: 0, 1.5, 3, ... in the way of `dtype` (see make_fixtures.py). */
export function expectedValues(dtype: string): unknown[][] {
  const value = (i: number): unknown => {
    if (dtype === 'bool') return i % 2 === 1;
    if (dtype.startsWith('complex')) return [i, 0 - 2 * i];
    return dtype.includes('int') ? Math.floor(i * 1.5) : i * 1.5;
  };
  return [0, 3].map((row) => [0, 1, 2].map((column) => value(row + column)));
}
