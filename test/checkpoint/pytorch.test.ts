import { execFileSync } from 'node:child_process';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import type { PickledRecord } from '../../lib/checkpoint/index.js';
import {
  readTorchFile,
  stateDictOf,
  writeTorchFile,
  type PickleValue,
  type Storable,
} from '../../lib/checkpoint/index.js';
import { memory, scope, tensor, zeros, arange, dtypes, empty, type Tensor } from '../../lib/tensor/index.js';
import { settledMemory } from '../support/settled_memory.js';
import { expectedValues, fixture, temporaryFolder, torchArchive } from './helpers.js';

const folder = temporaryFolder();
const at = (name: string) => join(folder, name);
type Dict = Map<string, PickleValue>;
const read = (name: string) => readTorchFile(fixture(name)) as Dict;

describe('what torch.save wrote', () => {
  test.each(['dtypes.pt', 'dtypes_legacy.pt', 'dtypes_big_endian.pt'])('%s: every dtype', (name) => {
    const tensors = read(name) as Map<string, Tensor>;
    expect(tensors.size).toBe(12);
    for (const [key, value] of tensors)
      expect([key, value.dtype, value.tolist()]).toEqual([key, key, expectedValues(key)]);
  });

  const rows = [
    'structured.pt',
    'structured_legacy.pt',
    'structured_deflated.pt',
    'protocol3.pt',
    'protocol4.pt',
    'protocol5.pt',
  ];
  test.each(rows)('%s: views, and everyday values', (name) => {
    const whole = read(name);
    const state = (whole.get('state_dict') ?? whole.get('model')) as Map<string, Tensor>;
    const get = (key: string) => state.get(`module.${key}`)!;
    const count = Array.from({ length: 24 }, (_, i) => i);
    expect(get('base').tolist()).toEqual(count);
    expect(get('rows').tolist()).toEqual([count.slice(6, 12), count.slice(12, 18)]);
    expect([get('transposed').shape, get('transposed').stride()]).toEqual([
      [6, 4],
      [1, 6],
    ]);
    expect(get('empty').shape).toEqual([0, 5]);
    expect([get('scalar').shape, get('scalar').item()]).toEqual([[], 7]);
    expect(get('expanded').tolist()).toEqual([
      [1, 1, 1],
      [2, 2, 2],
    ]);
    expect([get('parameter').requiresGrad, get('parameter').tolist()]).toEqual([false, [1, -1]]);
    // Views of one storage share memory.
    get('base').add_(100);
    expect(get('rows').tolist()[0 as never]).toEqual(count.slice(6, 12).map((value) => value + 100));
    expect(get('transposed').select(0, 0).tolist()).toEqual([100, 106, 112, 118]);

    expect(Object.fromEntries([...whole].filter(([, value]) => typeof value !== 'object' || value === null))).toEqual({
      epoch: 12,
      best_acc: 93.25,
      seen: 2 ** 40,
      big: 2n ** 70n,
      negative: -(2 ** 35),
      lr: 1e-3,
      arch: 'resnet20-ü',
      device: 'cuda:1',
      dtype: 'torch.bfloat16',
      none: null,
      yes: true,
    });
    const args = whole.get('args') as PickledRecord;
    expect(args.type).toBe('argparse.Namespace');
    expect(Object.fromEntries(args.fields)).toEqual({ lr: 0.1, milestones: [100, 150], dist: null, path: '/data/x' });
    expect((whole.get('mean') as Tensor).tolist()).toEqual([
      [0.5, 0.25],
      [1, 2],
    ]);
    expect((whole.get('fortran') as Tensor).tolist()).toEqual([
      [0, 1, 2],
      [3, 4, 5],
    ]);
    expect(whole.get('shape')).toEqual([2, 3]);
    expect([whole.get('flags'), whole.get('frozen')]).toEqual([new Set(['a', 'b']), new Set([1])]);
    expect(whole.get('raw')).toEqual(new Uint8Array([0, 255]));
    expect([whole.get('counts'), whole.get('groups')]).toEqual([
      new Map([
        ['a', 2],
        ['b', 1],
      ]),
      new Map([['x', [1]]]),
    ]);
    expect(whole.get('nested')).toEqual([
      [1, 2],
      [3, new Map([['k', [4]]])],
    ]);
  });

  test.each([2, 3, 4, 5])('a plain pickle of NumPy arrays, protocol %i', (protocol) => {
    const whole = read(`numpy_protocol${protocol}.pkl`);
    const arrays = whole.get('model') as Map<string, Tensor>;
    expect([...arrays].map(([name, value]) => [name, value.dtype, value.tolist()])).toEqual([
      [
        'w',
        'float32',
        [
          [0, 1, 2],
          [3, 4, 5],
        ],
      ],
      ['b', 'int32', [1, 2]],
      ['h', 'float16', [1.5]],
    ]);
  });

  test('verify compares the checksums of storages', () => {
    const bytes = readFileSync(fixture('structured.pt'));
    const found = bytes.indexOf(Buffer.from(new Float32Array([20, 21, 22, 23]).buffer));
    expect(found).toBeGreaterThan(0);
    bytes[found] = 1;
    writeFileSync(at('flipped.pt'), bytes);
    expect(() => readTorchFile(at('flipped.pt'))).not.toThrow();
    expect(() => readTorchFile(at('flipped.pt'), { verify: true })).toThrow(/"[^"]*data\/\d+" has checksum .* damaged/);
    expect(() => readTorchFile(fixture('structured.pt'), { verify: true })).not.toThrow();
  });

  test('frees what it makes besides the result', () => {
    scope(() => {
      const before = settledMemory().tensors;
      const tensors = readTorchFile(fixture('dtypes.pt')) as Map<string, Tensor>;
      expect(memory().tensors - before).toBe(tensors.size);
    });
  });

  const real = '../shared/weights/cifar10-resnet20-12fca82f.th';
  test.skipIf(!existsSync(real))(
    `the published cifar_resnet20 (old container)${existsSync(real) ? '' : `: skipped, ${real} is not there`}`,
    () => {
      const state = stateDictOf(readTorchFile(real));
      expect(state.unwrapped).toEqual(['state_dict', 'prefix module.']);
      expect(state.scalars.get('best_prec1')).toBeCloseTo(91.78, 4);
      expect(state.get('conv1.weight')!.shape).toEqual([16, 3, 3, 3]);
      expect(state.get('linear.bias')!.shape).toEqual([10]);
      const parameters = [...state].filter(([name]) => !/running|num_batches/.test(name));
      expect(parameters.reduce((sum, [, value]) => sum + value.numel(), 0)).toBe(269_722);
    },
  );
});

describe('archives and containers that lie', () => {
  const rebuild = (storage: string, rest: string) =>
    `\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(${storage}Q${rest}\x89ccollections\nOrderedDict\n)RtR.`;
  const storage = (count: number, type = 'FloatStorage', key = '0') =>
    `(X\x07\0\0\0storagectorch\n${type}\nU${String.fromCharCode(key.length)}${key}U\x03cpuK${String.fromCharCode(count)}t`;
  const four = { '0': new Uint8Array(16) };
  const rows: [string, string, Record<string, Uint8Array>, RegExp][] = [
    [
      'a storage that is not there',
      rebuild(storage(4), 'K\0K\x04\x85K\x01\x85'),
      {},
      /"archive\/data\/0", which the archive does not have/,
    ],
    [
      'a storage that is shorter',
      rebuild(storage(8), 'K\0K\x04\x85K\x01\x85'),
      four,
      /has 16 bytes, but the pickle says 32/,
    ],
    [
      'a storage that is longer',
      rebuild(storage(2), 'K\0K\x02\x85K\x01\x85'),
      four,
      /has 16 bytes, but the pickle says 8/,
    ],
    [
      'a size beyond the storage',
      rebuild(storage(4), 'K\0K\x05\x85K\x01\x85'),
      four,
      /shape \[5\].* reaches outside of its storage "0" of 4/,
    ],
    ['an offset beyond the storage', rebuild(storage(4), 'K\x01K\x04\x85K\x01\x85'), four, /offset 1 reaches outside/],
    [
      'a stride beyond the storage',
      rebuild(storage(4), 'K\0K\x02\x85K\x04\x85'),
      four,
      /stride \[4\].* reaches outside/,
    ],
    ['a negative size', rebuild(storage(4), 'K\0J\xff\xff\xff\xff\x85K\x01\x85'), four, /non-negative integers/],
    [
      'a huge size',
      rebuild(storage(4), 'K\0J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86K\x01K\x01\x86'),
      four,
      /below 2\^53/,
    ],
    ['a huge repeat', rebuild(storage(4), 'K\0J\xff\xff\xff\x7f\x85K\0\x85'), four, /too often/],
    ['fewer strides than sizes', rebuild(storage(4), 'K\0K\x02K\x02\x86K\x01\x85'), four, /list of 2 non-negative/],
    [
      'an unknown storage class',
      rebuild(storage(4, 'QUInt8Storage'), 'K\0K\x04\x85K\x01\x85'),
      four,
      /"torch\.QUInt8Storage", which is not among/,
    ],
    ['a persistent id that is no storage', '\x80\x02K\x05Q.', four, /reference to a storage is damaged/],
    [
      'a tensor without a storage',
      '\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\0)ttR.',
      four,
      /needs a storage|never opened/,
    ],
    [
      'a boolean that is neither',
      rebuild(storage(4, 'BoolStorage'), 'K\0K\x04\x85K\x01\x85'),
      { '0': new Uint8Array([0, 1, 7, 0]) },
      /booleans holds the byte 7/,
    ],
  ];
  test.each(rows)('%s', (label, pickle, storages, message) => {
    const path = torchArchive(at('lie.pt'), pickle, storages);
    expect(() => readTorchFile(path), label).toThrow(message);
  });

  test('the same archive without a lie', () => {
    const path = torchArchive(at('truth.pt'), rebuild(storage(4), 'K\0K\x02K\x02\x86K\x01K\x02\x86'), {
      '0': new Uint8Array(new Float32Array([1, 2, 3, 4]).buffer),
    });
    expect((readTorchFile(path) as Tensor).tolist()).toEqual([
      [1, 3],
      [2, 4],
    ]);
  });

  test('damaged zip directories', () => {
    const bytes = readFileSync(fixture('structured.pt'));
    const end = bytes.lastIndexOf(Buffer.from([0x50, 0x4b, 5, 6]));
    const central = bytes.indexOf(Buffer.from([0x50, 0x4b, 1, 2]));
    const change = (edit: (copy: Buffer) => Buffer | undefined) => {
      const copy = Buffer.from(bytes);
      writeFileSync(at('zip.pt'), edit(copy) ?? copy);
      return () => readTorchFile(at('zip.pt'));
    };
    expect(change((b) => b.subarray(0, end))).toThrow(/no directory at its end: the file is truncated/);
    expect(change((b) => void b.writeUInt32LE(0x7fffffff, end + 16))).toThrow(/reaches past its end record/);
    expect(change((b) => void b.writeUInt16LE(5000, end + 10))).toThrow(/cannot hold the 5000 entries/);
    expect(change((b) => void b.writeUInt16LE(99, central + 10))).toThrow(/compressed by method 99/);
    expect(change((b) => void b.writeUInt16LE(1, central + 8))).toThrow(/encrypted/);
    expect(change((b) => void b.writeUInt32LE(12345, central + 42))).toThrow(/no header at byte|outside|are \d+/);
    expect(change((b) => void b.writeUInt32LE(7, central + 24))).toThrow(/says it has 7 bytes, but \d+ are stored/);
    expect(change((b) => void b.writeUInt32LE(7, central + 16))).toThrow(/has checksum/);
    expect(change((b) => void b.write('x', central + 46, 'latin1'))).toThrow(/is called .* in its own header/);
  });

  test('an old container cut anywhere, or with a lying storage', () => {
    const bytes = readFileSync(fixture('structured_legacy.pt'));
    for (let length = 1; length < bytes.length; length += 13) {
      writeFileSync(at('cut.pt'), bytes.subarray(0, length));
      expect(() => readTorchFile(at('cut.pt')), `cut at ${length}`).toThrow(/truncated|damaged/);
    }
    const storageSize = Buffer.alloc(8);
    storageSize.writeBigInt64LE(24n);
    const place = bytes.indexOf(Buffer.concat([storageSize, Buffer.from(new Float32Array([0, 1, 2]).buffer)]));
    expect(place).toBeGreaterThan(0);
    const lie = (size: bigint) => {
      const copy = Buffer.from(bytes);
      copy.writeBigInt64LE(size, place);
      writeFileSync(at('lie.pt'), copy);
      return () => readTorchFile(at('lie.pt'));
    };
    expect(lie(2n ** 60n)).toThrow(/says it has 1152921504606846976 elements/);
    expect(lie(-1n)).toThrow(/-1 elements/);
  });
});

describe('writing', () => {
  const content = (): Record<string, Storable> => ({
    state_dict: new Map(dtypes.map((dtype) => [dtype, arange(6).to(dtype).reshape([2, 3])])),
    transposed: arange(6).reshape([2, 3]).t(),
    scalar: tensor(3),
    empty: zeros([0, 4]),
    epoch: 3,
    big: 2n ** 70n,
    negative: -(2 ** 40),
    lr: 0.5,
    minus: -0,
    name: 'ü中',
    yes: true,
    no: false,
    none: null,
    list: [1, [2, 'x']],
    nested: { a: { b: 1 } },
  });

  test('comes back equal', () => {
    const value = content();
    writeTorchFile(at('x.pt'), value);
    const back = readTorchFile(at('x.pt'), { verify: true }) as Dict;
    for (const [name, expected] of value['state_dict'] as Map<string, Tensor>) {
      const found = (back.get('state_dict') as Map<string, Tensor>).get(name)!;
      expect([found.dtype, found.tolist()]).toEqual([name, expected.tolist()]);
    }
    expect((back.get('transposed') as Tensor).tolist()).toEqual([
      [0, 3],
      [1, 4],
      [2, 5],
    ]);
    expect([(back.get('scalar') as Tensor).shape, (back.get('empty') as Tensor).shape]).toEqual([[], [0, 4]]);
    for (const key of ['epoch', 'big', 'negative', 'lr', 'minus', 'name', 'yes', 'no', 'none', 'list'])
      expect(back.get(key)).toEqual(value[key]);
    expect(back.get('nested')).toEqual(new Map([['a', new Map([['b', 1]])]]));
  });

  test('one tensor under two names is stored once', () => {
    const x = zeros([1000]);
    writeTorchFile(at('tied.pt'), { a: x, b: x });
    expect(readFileSync(at('tied.pt')).length).toBeLessThan(6000);
    const back = readTorchFile(at('tied.pt')) as Map<string, Tensor>;
    back.get('a')!.add_(1);
    expect(back.get('b')!.sum().item()).toBe(1000);
  });

  test('refuses what PyTorch would not load', () => {
    const loop: Storable[] = [];
    loop.push(loop);
    expect(() => writeTorchFile(at('no.pt'), loop)).toThrow(/contains itself/);
    expect(() => writeTorchFile(at('no.pt'), { f: (() => 1) as unknown as Storable })).toThrow(TypeError);
    expect(() => writeTorchFile(at('no.pt'), { d: new Date() as unknown as Storable })).toThrow(
      /cannot write an object/,
    );
    expect(() => writeTorchFile(at('no.pt'), { x: empty([1], { device: 'meta' }) })).toThrow(/meta/);
    expect(existsSync(at('no.pt'))).toBe(false);
  });

  const python = process.env['TORCHGRAFT_BENCH_PYTHON'] ?? 'python3';
  const hasTorch = (() => {
    try {
      execFileSync(python, ['-c', 'import torch'], { stdio: 'ignore' });
      return true;
    } catch {
      return false;
    }
  })();
  test.skipIf(!hasTorch)(
    `loads in PyTorch with weights_only=True${hasTorch ? '' : ` (skipped: ${python} has no torch; set TORCHGRAFT_BENCH_PYTHON)`}`,
    () => {
      writeTorchFile(at('python.pt'), content());
      const script = `
import json, sys, torch
value = torch.load(sys.argv[1], weights_only=True)
state = value.pop("state_dict")
for name, x in state.items():
    assert x.dtype == getattr(torch, name), name
    assert torch.equal(x, torch.arange(6).to(x.dtype).reshape(2, 3)), name
assert value.pop("transposed").tolist() == [[0, 3], [1, 4], [2, 5]]
assert value.pop("scalar").shape == () and value.pop("empty").shape == (0, 4)
print(json.dumps(value))
`;
      const output = execFileSync(python, ['-c', script, at('python.pt')], { encoding: 'utf8' });
      expect(output).toContain('"big": 1180591620717411303424');
      expect(JSON.parse(output)).toMatchObject({
        epoch: 3,
        negative: -(2 ** 40),
        lr: 0.5,
        name: 'ü中',
        yes: true,
        no: false,
        none: null,
        list: [1, [2, 'x']],
        nested: { a: { b: 1 } },
      });
    },
  );
});
