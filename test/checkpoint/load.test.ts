import { copyFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { gzipSync } from 'node:zlib';
import { describe, expect, test } from 'vitest';
import { CheckpointError, readCheckpoint, stateDictOf } from '../../lib/checkpoint/index.js';
import { expectedValues, fixture, temporaryFolder, torchArchive } from './helpers.js';

const folder = temporaryFolder();
const file = (content: string | Uint8Array) => {
  writeFileSync(join(folder, 'file.bin'), content);
  return join(folder, 'file.bin');
};

describe('readCheckpoint tells formats apart by their content', () => {
  test.each([
    ['dtypes.safetensors', 'safetensors', 'float32'],
    ['dtypes.pt', 'torch', 'float32'],
    ['dtypes_legacy.pt', 'torch', 'float32'],
    ['f4.npy', 'npy', 'array'],
    ['stored.npz', 'npz', 'w'],
    ['numpy_protocol4.pkl', 'torch', 'w'],
  ])('%s', (name, format, key) => {
    const path = join(folder, 'renamed.weights');
    copyFileSync(fixture(name), path);
    const checkpoint = readCheckpoint(path);
    expect([checkpoint.format, checkpoint.path]).toEqual([format, path]);
    const value = stateDictOf(checkpoint).get(key)!;
    expect(value.tolist()).toEqual(
      format === 'npz' || name.startsWith('numpy')
        ? [
            [0, 1, 2],
            [3, 4, 5],
          ]
        : expectedValues('float32'),
    );
  });

  test('metadata of safetensors', () => {
    expect(readCheckpoint(fixture('dtypes.safetensors')).metadata).toEqual({ format: 'pt', note: 'ü' });
  });

  test.each([
    [
      'a Git LFS pointer',
      'version https://git-lfs.github.com/spec/v1\noid sha256:abc\n',
      /Git LFS pointer.*git lfs pull/,
    ],
    ['a web page', '<!DOCTYPE html><html></html>', /web page or XML, so the download went wrong/],
    ['JSON', '{"weights": [1, 2, 3]}', /looks like JSON/],
    ['HDF5', Buffer.from('\x89HDF\r\n\x1a\n padding', 'latin1'), /HDF5/],
    ['GGUF', 'GGUF and so on and on', /GGUF/],
    ['gzip', gzipSync('hello'), /compressed with gzip/],
    ['tar', `${'x'.repeat(257)}ustar${'x'.repeat(300)}`, /tar archive/],
    [
      'something else',
      'abcdefghijkl',
      /no known format \(it begins with the bytes 6162636465666768\); safetensors, PyTorch/,
    ],
    ['one byte', 'a', /no known format/],
  ])('%s is named', (label, content, message) => {
    expect(() => readCheckpoint(file(content)), label).toThrow(message);
    expect(() => readCheckpoint(file(content))).toThrow(CheckpointError);
  });

  test('archives of something else, and of nothing', () => {
    const path = torchArchive(join(folder, 'other.zip'), 'N.');
    expect(readCheckpoint(path).value).toBeNull();
    expect(() => readCheckpoint(file(Buffer.from('PK\x05\x06' + '\0'.repeat(18), 'latin1')))).toThrow(
      /it has no entries/,
    );
    expect(() => readCheckpoint(join(folder, 'absent'))).toThrow(/no such file/);
  });
});
