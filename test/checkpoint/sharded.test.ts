import { existsSync, mkdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import {
  readCheckpoint,
  readSharded,
  stateDictOf,
  writeSafetensors,
  writeSharded,
  writeTorchFile,
} from '../../lib/checkpoint/index.js';
import { arange, full, type Tensor } from '../../lib/tensor/index.js';
import { temporaryFolder } from './helpers.js';

const folder = temporaryFolder();
const tensors = (): Map<string, Tensor> =>
  new Map([
    ['a', arange(100)],
    ['b', full([50], 2)],
    ['c', full([60], 3, { dtype: 'bfloat16' })],
    ['d', full([], 4)],
  ]);

/** An index beside two shards, as text that may lie. */
function index(name: string, content: string): string {
  const at = join(folder, name);
  mkdirSync(at, { recursive: true });
  writeSafetensors(join(at, 'one.safetensors'), [['a', arange(3)]]);
  writeTorchFile(join(at, 'two.bin'), { b: arange(2) });
  const path = join(at, 'model.safetensors.index.json');
  writeFileSync(path, content);
  return path;
}

describe('sharded weights', () => {
  test('several files and an index, as transformers names them', () => {
    const path = join(folder, 'x.safetensors');
    const written = writeSharded(path, tensors(), { maxShardBytes: 500, metadata: { format: 'pt' } });
    expect(written).toBe(`${path}.index.json`);
    expect(existsSync(path)).toBe(false);
    const { weight_map: map, metadata } = JSON.parse(readFileSync(written, 'utf8')) as {
      weight_map: Record<string, string>;
      metadata: object;
    };
    expect(map).toEqual({
      a: 'x-00001-of-00002.safetensors',
      b: 'x-00002-of-00002.safetensors',
      c: 'x-00002-of-00002.safetensors',
      d: 'x-00002-of-00002.safetensors',
    });
    expect(metadata).toEqual({ format: 'pt', total_size: 800 + 200 + 120 + 4 });
    const back = stateDictOf(readCheckpoint(written));
    for (const [name, tensor] of tensors()) expect(back.get(name)?.equal(tensor), name).toBe(true);
    expect(readSharded(written).metadata).toEqual({ format: 'pt' });
  });

  test('one file where it is enough, and a tensor above the bound alone', () => {
    const path = join(folder, 'small.safetensors');
    writeFileSync(`${path}.index.json`, 'of an earlier save');
    expect(writeSharded(path, tensors())).toBe(path);
    expect(existsSync(`${path}.index.json`)).toBe(false);
    expect(statSync(path).size).toBeGreaterThan(700);
    const written = writeSharded(join(folder, 'tiny.safetensors'), tensors(), { maxShardBytes: 1 });
    expect(readSharded(written).tensors.size).toBe(4);
    expect(existsSync(join(folder, 'tiny-00004-of-00004.safetensors'))).toBe(true);
  });

  test("PyTorch's shards beside safetensors", () => {
    const path = index('mixed', JSON.stringify({ weight_map: { a: 'one.safetensors', b: 'two.bin' } }));
    const found = readSharded(path).tensors;
    expect([...found].map(([name, tensor]) => [name, tensor.tolist()])).toEqual([
      ['a', [0, 1, 2]],
      ['b', [0, 1]],
    ]);
  });

  test.each([
    ['no JSON', '{', /not JSON/],
    ['no map', '{}', /has no weight_map/],
    ['a list', '{"weight_map":[]}', /has no weight_map/],
    [
      'a path upward',
      '{"weight_map":{"a":"../one.safetensors"}}',
      /"a" into "\.\.\/one\.safetensors"; expected the name/,
    ],
    ['an absolute path', '{"weight_map":{"a":"/etc/passwd"}}', /expected the name of a file beside it/],
    ['a number', '{"weight_map":{"a":3}}', /expected the name of a file/],
    ['a tensor twice', '{"weight_map":{"a":"one.safetensors","a":"two.bin"}}', /key "a" twice/],
    ['a tensor that is elsewhere', '{"weight_map":{"b":"one.safetensors"}}', /has no tensor "b"/],
    ['a tensor that is nowhere', '{"weight_map":{"a":"two.bin"}}', /has no tensor "a", which the index says it has/],
    ['a shard that is not there', '{"weight_map":{"a":"three.safetensors"}}', /there is no such file/],
  ] as const)('an index with %s', (name, content, message) => {
    expect(() => readCheckpoint(index(name.replaceAll(' ', '_'), content))).toThrow(message);
  });

  test('wrong calls', () => {
    expect(() => writeSharded(join(folder, 'x.pt'), tensors())).toThrow(/must end so/);
    expect(() => writeSharded(join(folder, 'x.safetensors'), tensors(), { maxShardBytes: 0 })).toThrow(
      /must be positive/,
    );
    expect(() => readSharded(join(folder, 'nothing.index.json'))).toThrow(/cannot be read/);
  });
});
