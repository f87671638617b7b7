/** PyTorch files that mislead: archives with tricks in their directory, tensors that no layer should get. */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { crc32, deflateRawSync } from 'node:zlib';
import { describe, expect, test } from 'vitest';
import { readCheckpoint, readTorchFile } from '../../lib/checkpoint/index.js';
import type { Tensor } from '../../lib/tensor/index.js';
import { temporaryFolder, torchArchive } from './helpers.js';

const folder = temporaryFolder();
const at = (name: string): string => join(folder, name);

// ---- archives -----------------------------------------------------------------------------------------------------------

interface Entry {
  readonly name: string;
  readonly data: Uint8Array | string;
  readonly deflated?: boolean;
  /** What the directory says instead of the truth. */
  readonly crc?: number;
  readonly size?: number;
}

/** A zip archive in which everything may be wrong; `before` and `comment` stand around it. */
function archive(entries: readonly Entry[], { before = '', comment = '' } = {}): string {
  const pieces: Buffer[] = [Buffer.from(before, 'latin1')];
  const directory: Buffer[] = [];
  let position = before.length;
  for (const entry of entries) {
    const data = typeof entry.data === 'string' ? Buffer.from(entry.data, 'latin1') : Buffer.from(entry.data);
    const stored = entry.deflated ? deflateRawSync(data) : data;
    const name = Buffer.from(entry.name);
    const fields = Buffer.alloc(26);
    fields.writeUInt16LE(20, 0);
    fields.writeUInt16LE(entry.deflated ? 8 : 0, 4);
    fields.writeUInt32LE(entry.crc ?? crc32(data), 10);
    fields.writeUInt32LE(stored.length, 14);
    fields.writeUInt32LE(entry.size ?? data.length, 18);
    fields.writeUInt16LE(name.length, 22);
    pieces.push(Buffer.from('PK\x03\x04', 'latin1'), fields, name, stored);
    const rest = Buffer.alloc(14);
    rest.writeUInt32LE(position, 10);
    directory.push(Buffer.from('PK\x01\x02\x14\0', 'latin1'), fields, rest, name);
    position += 30 + name.length + stored.length;
  }
  const list = Buffer.concat(directory);
  const end = Buffer.alloc(22);
  end.write('PK\x05\x06', 'latin1');
  end.writeUInt16LE(entries.length, 8);
  end.writeUInt16LE(entries.length, 10);
  end.writeUInt32LE(list.length, 12);
  end.writeUInt32LE(position, 16);
  end.writeUInt16LE(comment.length, 20);
  const path = at('archive.pt');
  writeFileSync(path, Buffer.concat([...pieces, list, end, Buffer.from(comment, 'latin1')]));
  return path;
}

const storage = (count: number, { type = 'FloatStorage', key = '0', location = 'cpu' } = {}): string =>
  `(S'storage'\nctorch\n${type}\nS'${key}'\nS'${location}'\nI${count}\ntQ`;
const hooks = 'I00\nccollections\nOrderedDict\n(tR';
const view = (from: string, offset: number, sizes: readonly number[], strides: readonly number[]): string => {
  const tuple = (values: readonly number[]): string => `(${values.map((value) => `I${value}\n`).join('')}t`;
  return `ctorch._utils\n_rebuild_tensor_v2\n(${from}I${offset}\n${tuple(sizes)}${tuple(strides)}${hooks}tR`;
};
const four = view(storage(4), 0, [4], [1]);
const numbers = new Uint8Array(new Float32Array([1, 2, 3, 4]).buffer);
const good: readonly Entry[] = [
  { name: 'archive/data.pkl', data: `${four}.` },
  { name: 'archive/data/0', data: numbers },
];
const [pickleEntry, dataEntry] = good as readonly [Entry, Entry];
const bomb = Buffer.alloc(1 << 20);

describe('archives', () => {
  test.each([
    ['as it should be', good, {}],
    ['deflated', good.map((entry) => ({ ...entry, deflated: true })), {}],
    ['with a comment', good, { comment: 'saved by hand' }],
    ['with an archive in it', [...good, { name: 'archive/inner.pt', data: 'PK\x05\x06' + '\0'.repeat(18) }], {}],
    ['with bytes before it', good, { before: 'PK\x03\x04junk' }],
    ['with names that climb', [...good, { name: '../../etc/passwd', data: 'x' }], {}],
  ] as [string, Entry[], object][])('%s', (_, entries, around) => {
    expect((readTorchFile(archive(entries, around)) as Tensor).tolist()).toEqual([1, 2, 3, 4]);
  });

  test.each([
    ['one name twice', [...good, { ...dataEntry, data: new Uint8Array(16) }], {}, /two entries called/],
    ['a wrong checksum of the pickle', [{ ...pickleEntry, crc: 1 }, dataEntry], {}, /data\.pkl" has checksum/],
    [
      'a wrong checksum of a deflated storage',
      [pickleEntry, { ...dataEntry, deflated: true, crc: 1 }],
      {},
      /data\/0" has checksum/,
    ],
    [
      'a deflated storage that is longer than it says',
      [pickleEntry, { ...dataEntry, data: bomb, deflated: true, size: 16 }],
      {},
      /does not inflate to its 16 bytes/,
    ],
    [
      'a deflated storage that is shorter than it says',
      [pickleEntry, { ...dataEntry, deflated: true, size: 17 }],
      {},
      /inflates to 16 bytes; its directory says 17/,
    ],
    [
      'a deflated storage that says it is huge',
      [pickleEntry, { ...dataEntry, deflated: true, size: 0x7fffffff }],
      {},
      /says it has 2147483647 bytes, but \d+ are stored/,
    ],
    ['another byte order', [...good, { name: 'archive/byteorder', data: 'middle' }], {}, /byte order is "middle"/],
  ] as [string, Entry[], object, RegExp][])('%s is refused', (_, entries, around, message) => {
    expect(() => readTorchFile(archive(entries, around))).toThrow(message);
  });
});

// ---- tensors ------------------------------------------------------------------------------------------------------------

describe('tensors', () => {
  const read = (pickle: string, data = numbers): unknown =>
    readTorchFile(torchArchive(at('tensor.pt'), `${pickle}.`, { '0': data }));

  test('of a GPU, of any name, come to the CPU', () => {
    for (const location of ['cuda:3', 'mps', 'xla:0', 'meta', "it's"]) {
      const from = storage(4, { location: location.replace("'", "\\'") });
      const tensor = read(view(from, 0, [4], [1])) as Tensor;
      expect([tensor.device, tensor.tolist()]).toEqual(['cpu', [1, 2, 3, 4]]);
    }
  });

  test('overlapping and repeated views have the values that they name', () => {
    expect((read(view(storage(4), 0, [3, 2], [1, 1])) as Tensor).tolist()).toEqual([
      [1, 2],
      [2, 3],
      [3, 4],
    ]);
    expect((read(view(storage(4), 3, [2, 2], [0, 0])) as Tensor).tolist()).toEqual([
      [4, 4],
      [4, 4],
    ]);
  });

  test('that share a storage share it still, in a parameter too', () => {
    const parameter = `ctorch._utils\n_rebuild_parameter\n(${four}I01\nccollections\nOrderedDict\n(tRtR`;
    const pair = read(`(S'a'\n${four}S'b'\n${parameter}d`) as Map<string, Tensor>;
    pair.get('a')?.fill_(7);
    expect(pair.get('b')?.tolist()).toEqual([7, 7, 7, 7]);
  });

  const rebuild = (name: string, args: string): string => `ctorch._utils\n${name}\n(${args}tR`;
  test.each([
    ['a negative stride', view(storage(4), 3, [4], [-1]), /stride must be a list of 1 non-negative/],
    ['a negative offset', view(storage(4), -1, [4], [1]), /offset must be a non-negative integer/],
    ['strides that wrap around', view(storage(4), 0, [2], [2 ** 53]), /stride must be a list of 1 non-negative/],
    ['sizes that wrap around', view(storage(4), 0, [2 ** 31, 2 ** 31, 4], [0, 0, 0]), /below 2\^53/],
    ['too many dimensions', view(storage(4), 0, Array<number>(65).fill(1), Array<number>(65).fill(1)), /product below/],
    ['a storage in two sizes', `(${four}${view(storage(8), 0, [8], [1])}l`, /has 16 bytes, but the pickle says 32/],
    ['a sparse tensor', rebuild('_rebuild_sparse_tensor', 'I0\n'), /_rebuild_sparse_tensor", which is not among/],
    ['a quantized tensor', rebuild('_rebuild_qtensor', 'I0\n'), /_rebuild_qtensor", which is not among/],
    ['a nested tensor', rebuild('_rebuild_nested_tensor', 'I0\n'), /_rebuild_nested_tensor", which is not among/],
    ['a wrapper of a subclass', rebuild('_rebuild_wrapper_subclass', 'I0\n'), /_rebuild_wrapper_subclass", which/],
    ['a parameter of no tensor', rebuild('_rebuild_parameter', "S'x'\nI01\nN"), /from a tensor, not from a str/],
    ['a parameter with state', rebuild('_rebuild_parameter_with_state', 'I0\n'), /from a tensor, not from a number/],
    ['a storage of quantized numbers', view(storage(4, { type: 'QInt8Storage' }), 0, [4], [1]), /QInt8Storage", which/],
    [
      'a key that climbs',
      view(storage(4, { key: '../data.pkl' }), 0, [4], [1]),
      /"archive\/data\/\.\.\/data\.pkl", which/,
    ],
  ])('%s is refused', (_, pickle, message) => {
    expect(() => read(pickle)).toThrow(message);
  });

  test('an old container whose pickles are text is recognized', () => {
    const keys = "(lS'0'\na.";
    const count = Buffer.alloc(8);
    count.writeBigInt64LE(4n);
    const head = `L119547037146038801333356L\n.I1001\n.(dS'little_endian'\nI01\ns.(dS'x'\n${four}s.${keys}`;
    writeFileSync(at('old.pth'), Buffer.concat([Buffer.from(head), count, numbers]));
    const { format, value } = readCheckpoint(at('old.pth'));
    expect(format).toBe('torch');
    expect((value as Map<string, Tensor>).get('x')?.tolist()).toEqual([1, 2, 3, 4]);
  });
});
