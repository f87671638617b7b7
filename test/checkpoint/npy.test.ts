import fc from 'fast-check';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { deflateRawSync } from 'node:zlib';
import { describe, expect, test } from 'vitest';
import { CheckpointError, readNpy, readNpz, writeNpy, writeNpz } from '../../lib/checkpoint/index.js';
import { parseNpyHeader } from '../../lib/checkpoint/npy.js';
import { arange, dtypes, tensor, zeros, type DType } from '../../lib/tensor/index.js';
import { fixture, temporaryFolder } from './helpers.js';

const folder = temporaryFolder();
const at = (name: string) => join(folder, name);

describe('reading what NumPy wrote', () => {
  const floats = [
    [0, 1.5, 3],
    [4.5, 6, 7.5],
  ];
  const whole = [
    [0, 1, 3],
    [4, 6, 7],
  ];
  const counted = [
    [0, 1, 2],
    [3, 4, 5],
  ];
  const bits = [
    [false, true, true],
    [true, true, true],
  ];
  const rows: [string, DType, unknown][] = [
    ['f2', 'float16', floats],
    ['f4', 'float32', floats],
    ['f8', 'float64', floats],
    ['i1', 'int8', whole],
    ['i2', 'int16', whole],
    ['i4', 'int32', whole],
    ['i8', 'int64', whole],
    ['u1', 'uint8', whole],
    ['u2', 'int32', whole],
    ['u4', 'int64', whole],
    ['u8', 'int64', whole],
    ['b1', 'bool', bits],
    ['c8', 'complex64', floats.map((row) => row.map((value) => [value, 0]))],
    ['c16', 'complex128', floats.map((row) => row.map((value) => [value, 0]))],
    ['big_endian', 'float32', counted],
    ['fortran', 'float32', counted],
    ['fortran_big', 'float64', counted],
    ['version2', 'float32', counted],
    ['version3', 'float32', counted],
    ['scalar', 'float64', 2.5],
    ['vector', 'int64', [0, 1, 2]],
    ['empty', 'float32', []],
  ];
  test.each(rows)('%s.npy', (name, dtype, expected) => {
    const value = readNpy(fixture(`${name}.npy`));
    expect([value.dtype, value.tolist()]).toEqual([dtype, expected]);
  });

  test.each([
    ['object', /holds Python objects/],
    ['strings', /NumPy dtype "<U2" is not supported/],
    ['record', /holds records/],
  ])('%s.npy is refused', (name, message) => {
    expect(() => readNpy(fixture(`${name}.npy`))).toThrow(message);
  });

  test.each(['stored', 'compressed'])('%s.npz', (name) => {
    const arrays = readNpz(fixture(`${name}.npz`));
    expect([...arrays].map(([key, value]) => [key, value.dtype, value.tolist()])).toEqual([
      [
        'w',
        'float32',
        [
          [0, 1, 2],
          [3, 4, 5],
        ],
      ],
      ['b', 'int64', [0, 1, 2]],
    ]);
  });
});

describe('round trips', () => {
  /** NumPy has no bfloat16. */
  const known = dtypes.filter((dtype) => dtype !== 'bfloat16');
  const shapes = fc.array(fc.integer({ min: 0, max: 4 }), { maxLength: 5 });

  test('property: .npy', () => {
    fc.assert(
      fc.property(fc.constantFrom(...known), shapes, (dtype, shape) => {
        const count = shape.reduce((product, size) => product * size, 1);
        const value = arange(count).to(dtype).reshape(shape);
        writeNpy(at('x.npy'), value);
        const back = readNpy(at('x.npy'));
        expect([back.dtype, back.shape, back.tolist()]).toEqual([dtype, shape, value.tolist()]);
      }),
      { numRuns: 100, seed: 3 },
    );
  });

  test('property: numbers of any size and sign', () => {
    fc.assert(
      fc.property(fc.array(fc.double(), { minLength: 1 }), (values) => {
        writeNpy(at('d.npy'), tensor(new Float64Array(values)));
        expect(readNpy(at('d.npy')).data()).toEqual(new Float64Array(values));
      }),
      { numRuns: 50, seed: 4 },
    );
  });

  test('.npz, with views', () => {
    const base = arange(6).reshape([2, 3]);
    writeNpz(
      at('x.npz'),
      new Map([
        ['a', base],
        ['b/c', base.t()],
      ]),
    );
    expect([...readNpz(at('x.npz'))].map(([key, value]) => [key, value.tolist()])).toEqual([
      [
        'a',
        [
          [0, 1, 2],
          [3, 4, 5],
        ],
      ],
      [
        'b/c',
        [
          [0, 3],
          [1, 4],
          [2, 5],
        ],
      ],
    ]);
  });

  test('bfloat16 has no NumPy dtype', () => {
    expect(() => writeNpy(at('no.npy'), zeros([1], { dtype: 'bfloat16' }))).toThrow(/no dtype for bfloat16; convert/);
  });
});

describe('damaged files', () => {
  const file = (header: string, data = 24, version = 1, length = header.length) => {
    const start = Buffer.from('\x93NUMPY\x01\x00\x00\x00', 'latin1');
    start[6] = version;
    start.writeUInt16LE(length, 8);
    writeFileSync(at('bad.npy'), Buffer.concat([start, Buffer.from(header), new Uint8Array(data)]));
    return at('bad.npy');
  };
  const header = (shape: string, descr = "'<f4'", order = 'False') =>
    `{'descr': ${descr}, 'fortran_order': ${order}, 'shape': ${shape}, }`;
  test.each([
    ['too short', header('(2, 3)'), 20, /24 bytes, but 20 bytes follow/],
    ['too long', header('(2, 3)'), 25, /24 bytes, but 25 bytes follow/],
    ['huge', header('(99999999999, 99999999999)'), 24, /no possible array/],
    ['negative', header('(-1,)'), 24, /cannot read the .npy header/],
    ['missing field', "{'descr': '<f4', 'shape': (6,)}", 24, /cannot read/],
    ['a program', "{'descr': __import__('os').system('x'), 'fortran_order': False, 'shape': (6,)}", 24, /cannot read/],
    ['order that is no boolean', header('(6,)', "'<f4'", '1'), 24, /cannot read/],
    ['no dict', 'hello', 24, /cannot read/],
    ['a date', header('(3,)', "'<M8[ns]'"), 24, /not supported/],
    ['a field twice', "{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (6,)}", 24, /cannot read/],
  ] as [string, string, number, RegExp][])('%s', (label, text, data, message) => {
    expect(() => readNpy(file(text, data)), label).toThrow(message);
    expect(() => readNpy(file(text, data))).toThrow(CheckpointError);
  });

  test('version, length, magic', () => {
    expect(() => readNpy(file(header('(6,)'), 24, 9))).toThrow(/version 9/);
    expect(() => readNpy(file(header('(6,)'), 24, 1, 60000))).toThrow(/says its .npy header has 60000 bytes/);
    writeFileSync(at('bad.npy'), 'hello');
    expect(() => readNpy(at('bad.npy'))).toThrow(/magic string/);
  });

  test('a uint64 that does not fit', () => {
    const text = header('(1,)', "'<u8'");
    const path = file(text, 0);
    writeFileSync(path, Buffer.concat([readFileSync(path), Buffer.alloc(8, 0xff)]));
    expect(() => readNpy(path)).toThrow(/18446744073709551615 does not fit into int64/);
  });

  test('property: the header parser either reads or refuses', () => {
    fc.assert(
      fc.property(
        fc.string({ unit: fc.constantFrom(...`{}'():,<f48 True False descr shape fortran_order`.split('')) }),
        (text) => {
          try {
            parseNpyHeader('x', text);
          } catch (error) {
            expect(error).toBeInstanceOf(CheckpointError);
          }
        },
      ),
      { numRuns: 500, seed: 5 },
    );
  });

  test('a compressed entry that lies about its size', () => {
    const bytes = readFileSync(fixture('compressed.npz'));
    const central = bytes.indexOf(Buffer.from([0x50, 0x4b, 1, 2]));
    const lie = (size: number) => {
      const changed = Buffer.from(bytes);
      changed.writeUInt32LE(size, central + 24);
      writeFileSync(at('lie.npz'), changed);
      return at('lie.npz');
    };
    expect(() => readNpz(lie(4_000_000_000))).toThrow(/says it has 4000000000 bytes/);
    expect(() => readNpz(lie(100))).toThrow(/does not inflate to its 100 bytes/);
    expect(() => readNpz(lie(1000))).toThrow(/inflates to \d+ bytes; its directory says 1000/);
    expect(deflateRawSync(Buffer.alloc(1 << 20)).length).toBeGreaterThan((1 << 20) / 1032);
  });
});
