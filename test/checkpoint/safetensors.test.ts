import fc from 'fast-check';
import {
  closeSync,
  openSync,
  readdirSync,
  readFileSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { CheckpointError, readSafetensors, SafetensorsFile, writeSafetensors } from '../../lib/checkpoint/index.js';
import { findDuplicateKey } from '../../lib/checkpoint/header.js';
import { arange, dtypes, empty, memory, tensor, zeros, type Tensor } from '../../lib/tensor/index.js';
import { expectedValues, fixture, safetensorsFile, temporaryFolder } from './helpers.js';

const folder = temporaryFolder();
const at = (name: string) => join(folder, name);

describe('reading', () => {
  test('every dtype as the reference library wrote it', () => {
    const { tensors, metadata } = readSafetensors(fixture('dtypes.safetensors'));
    expect(metadata).toEqual({ format: 'pt', note: 'ü' });
    expect(tensors.size).toBe(13);
    for (const [name, value] of tensors) {
      if (name === 'empty') expect([value.shape, value.dtype]).toEqual([[0, 5], 'float32']);
      else if (name === 'scalar') expect([value.shape, value.item()]).toEqual([[], 7]);
      else expect([value.dtype, value.tolist()]).toEqual([name, expectedValues(name)]);
    }
  });

  test('the golden files', () => {
    const golden = '../shared/golden/unified/lora_linear';
    for (const name of ['io', 'weights']) {
      const file = SafetensorsFile.open(`${golden}/${name}.safetensors`);
      expect(file.names().length).toBeGreaterThan(0);
      for (const key of file.names()) {
        const value = file.get(key);
        expect({ shape: value.shape, dtype: value.dtype }).toEqual(file.info(key));
        expect(Number.isFinite(Number(value.to('float32').sum().item()))).toBe(true);
      }
      file.close();
    }
  });

  test('maps instead of copying, and never writes to the file', () => {
    const path = at('mapped.safetensors');
    writeSafetensors(path, new Map([['x', arange(4)]]));
    const before = readFileSync(path);
    const { tensors } = readSafetensors(path);
    const x = tensors.get('x')!;
    x.add_(100);
    expect(x.tolist()).toEqual([100, 101, 102, 103]);
    expect(readFileSync(path)).toEqual(before);
    expect(readSafetensors(path).tensors.get('x')!.tolist()).toEqual([0, 1, 2, 3]);
  });

  test('takes single tensors, which outlive the file object', () => {
    const file = SafetensorsFile.open(fixture('dtypes.safetensors'));
    expect(file.info('bfloat16')).toEqual({ shape: [2, 3], dtype: 'bfloat16' });
    expect(file.has('nothing')).toBe(false);
    expect(() => file.get('nothing')).toThrow(/has no tensor "nothing"; it has .*"int64"/);
    const value = file.get('int64');
    file.close();
    file.close();
    expect(value.tolist()).toEqual(expectedValues('int64'));
    expect(() => file.get('int64')).toThrow(/already closed/);
    const { tensors } = readSafetensors(fixture('dtypes.safetensors'), { names: ['uint8'] });
    expect([...tensors.keys()]).toEqual(['uint8']);
  });

  test('a thousand open files give their mappings back', () => {
    const before = memory().tensors; // may fall when the collector comes by
    for (let i = 0; i < 1000; i++) {
      for (const value of readSafetensors(fixture('dtypes.safetensors')).tensors.values()) value.dispose();
    }
    expect(memory().tensors).toBeLessThanOrEqual(before);
    expect(
      readFileSync('/proc/self/maps', 'utf8')
        .split('\n')
        .filter((line) => line.includes('dtypes.safetensors')),
    ).toEqual([]);
  });

  test('reads dtypes that are only stored, to be converted', () => {
    const odd = readSafetensors(fixture('float8.safetensors')).tensors.get('odd')!;
    expect([odd.dtype, odd.shape, odd.tolist()]).toEqual(['float8_e4m3fn', [2], [0, 0]]);
    const path = at('float8_back.safetensors');
    writeSafetensors(path, [
      ['f', tensor([0.5, -2, 448]).to('float8_e4m3fn')],
      ['u', tensor([1, 65535]).to('uint16')],
    ]);
    const { tensors } = readSafetensors(path);
    expect([tensors.get('f')!.tolist(), tensors.get('u')!.tolist()]).toEqual([
      [0.5, -2, 448],
      [1, 65535],
    ]);
    expect(tensors.get('f')!.data()).toEqual(new Uint8Array([0x30, 0xc0, 0x7e]));
  });

  test('a file cut short after opening is an error, not a crash', () => {
    const path = at('shrinking.safetensors');
    writeSafetensors(path, new Map([['x', zeros([50_000])]]));
    const file = SafetensorsFile.open(path);
    truncateSync(path, 100);
    expect(() => file.get('x')).toThrow(/shorter since it was opened/);
    file.close();
  });
});

describe('headers that lie', () => {
  const one = (rest: string) => `{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}${rest}}`;
  const entry = (body: string) => `{"a":${body}}`;
  const rows: [string, string, number, RegExp][] = [
    ['not JSON', '{"a":', 0, /not valid JSON/],
    ['no object', '[]', 0, /must start with "\{"/],
    ['a key twice', one(',"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'), 8, /key "a" twice/],
    ['a field twice', entry('{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}'), 8, /key "dtype" twice/],
    ['a key twice, escaped', one(',"\\u0061":1'), 8, /key "a" twice/],
    [
      'an entry that is a number',
      entry('1'),
      0,
      /tensor "a": expected \{ dtype, shape, data_offsets \}, found a number/,
    ],
    ['no dtype', entry('{"shape":[2],"data_offsets":[0,8]}'), 8, /tensor "a": dtype must be a string, found nothing/],
    ['an unknown dtype', entry('{"dtype":"Q4","shape":[2],"data_offsets":[0,8]}'), 8, /dtype "Q4" is not supported/],
    ['a negative size', entry('{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}'), 8, /shape must be .* found \[-2\]/],
    ['a fraction', entry('{"dtype":"F32","shape":[1.5],"data_offsets":[0,8]}'), 8, /shape must be/],
    [
      'a shape beyond 2^53',
      entry('{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]}'),
      8,
      /below 2\^53/,
    ],
    [
      'a size beyond 2^53',
      entry('{"dtype":"F32","shape":[99999999999999999999],"data_offsets":[0,8]}'),
      8,
      /below 2\^53/,
    ],
    ['one offset', entry('{"dtype":"F32","shape":[2],"data_offsets":[0]}'), 8, /two non-negative integers/],
    ['offsets backwards', entry('{"dtype":"F32","shape":[2],"data_offsets":[8,0]}'), 8, /end before they start/],
    [
      'offsets past the end',
      entry('{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'),
      4,
      /reach past the data of 4 bytes/,
    ],
    [
      'the wrong length',
      entry('{"dtype":"F32","shape":[3],"data_offsets":[0,8]}'),
      8,
      /F32 of shape \[3\] needs 12 bytes, but .* hold 8/,
    ],
    ['bytes left over', one(''), 12, /end at byte 8, but 12 bytes follow/],
    [
      'a gap',
      entry('{"dtype":"F32","shape":[1],"data_offsets":[4,8]}'),
      8,
      /4 bytes before tensor "a" belong to no tensor/,
    ],
    [
      'an overlap',
      one(',"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}'),
      12,
      /"b" starts at byte 4 and overlaps "a"/,
    ],
    ['metadata that is no text', one(',"__metadata__":{"k":1}'), 8, /strings only, but "k" is a number/],
    ['metadata that is a list', one(',"__metadata__":[]'), 8, /must be an object of strings/],
  ];
  test.each(rows)('%s', (name, header, size, message) => {
    const path = safetensorsFile(at(`lie.safetensors`), header, new Uint8Array(size));
    expect(() => readSafetensors(path), name).toThrow(message);
    expect(() => readSafetensors(path)).toThrow(CheckpointError);
    expect(() => readSafetensors(path)).toThrow(path);
  });

  test('lengths of the header', () => {
    expect(() => readSafetensors(safetensorsFile(at('long'), '{}', new Uint8Array(0), 1e6))).toThrow(
      /1000000 bytes, but 2 follow/,
    );
    expect(() => readSafetensors(safetensorsFile(at('huge'), '{}', new Uint8Array(0), 2 ** 40))).toThrow(
      /at most 100000000/,
    );
    writeFileSync(at('tiny'), 'abc');
    expect(() => readSafetensors(at('tiny'))).toThrow(/has 3 bytes/);
    writeFileSync(at('none'), '');
    expect(() => readSafetensors(at('none'))).toThrow(/is empty/);
    expect(() => readSafetensors(at('missing'))).toThrow(/there is no such file/);
    expect(() => readSafetensors(folder)).toThrow(/is a folder/);
    expect(() => readSafetensors(3 as unknown as string)).toThrow(TypeError);
  });

  test('text that is not UTF-8', () => {
    const bytes = Buffer.concat([Buffer.from('{"'), Buffer.from([0xff, 0xfe]), Buffer.from('":1}')]);
    const prefix = Buffer.alloc(8);
    prefix.writeBigUInt64LE(BigInt(bytes.length));
    writeFileSync(at('latin'), Buffer.concat([prefix, bytes]));
    expect(() => readSafetensors(at('latin'))).toThrow(/not valid UTF-8/);
  });

  test('names such as __proto__ are only names', () => {
    const path = safetensorsFile(
      at('proto'),
      '{"__proto__":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
      new Uint8Array([7]),
    );
    expect(readSafetensors(path).tensors.get('__proto__')!.tolist()).toEqual([7]);
  });

  test('property: a duplicate key is found wherever it stands, and only then', () => {
    fc.assert(
      fc.property(fc.jsonValue({ maxDepth: 4 }), fc.string(), (value, key) => {
        const text = JSON.stringify({ outer: [value] });
        expect(findDuplicateKey(text)).toBeNull();
        const name = JSON.stringify(key);
        expect(findDuplicateKey(`[${text}, {${name}: ${text}, ${name}: 1}]`)).toBe(key);
      }),
      { numRuns: 200, seed: 1 },
    );
  });
});

describe('writing', () => {
  /** The format has no complex128. */
  const known = dtypes.filter((dtype) => dtype !== 'complex128');

  test('property: any tensors come back equal, aligned, with their metadata', () => {
    const path = at('property.safetensors');
    const shapes = fc.array(fc.integer({ min: 0, max: 4 }), { maxLength: 4 });
    const file = fc.dictionary(
      fc.string({ minLength: 1 }).filter((name) => name !== '__metadata__'),
      fc.tuple(fc.constantFrom(...known), shapes),
      { maxKeys: 6 },
    );
    fc.assert(
      fc.property(file, fc.dictionary(fc.string(), fc.string(), { maxKeys: 3 }), (content, metadata) => {
        const written = new Map<string, Tensor>(
          Object.entries(content).map(([name, [dtype, shape]]) => {
            const count = shape.reduce((product, size) => product * size, 1);
            return [name, arange(count).to(dtype).reshape(shape)];
          }),
        );
        writeSafetensors(path, written, metadata);
        const bytes = readFileSync(path);
        expect(Number(bytes.readBigUInt64LE(0)) % 8).toBe(0);
        const { tensors, metadata: found } = readSafetensors(path);
        expect(Object.entries(found)).toEqual(Object.entries({ ...metadata }));
        expect(new Set(tensors.keys())).toEqual(new Set(written.keys()));
        for (const [name, value] of written) {
          const back = tensors.get(name)!;
          expect([back.dtype, back.shape, back.tolist()]).toEqual([value.dtype, value.shape, value.tolist()]);
        }
      }),
      { numRuns: 60, seed: 2 },
    );
  });

  test('views, and tensors that need a gradient', () => {
    const base = arange(6).reshape([2, 3]);
    const leaf = tensor([1, 2], { requiresGrad: true });
    writeSafetensors(
      at('views'),
      new Map([
        ['t', base.t()],
        ['row', base.narrow(0, 1, 1)],
        ['leaf', leaf],
      ]),
    );
    const { tensors } = readSafetensors(at('views'));
    expect(tensors.get('t')!.tolist()).toEqual([
      [0, 3],
      [1, 4],
      [2, 5],
    ]);
    expect(tensors.get('row')!.tolist()).toEqual([[3, 4, 5]]);
    expect([tensors.get('leaf')!.requiresGrad, tensors.get('leaf')!.tolist()]).toEqual([false, [1, 2]]);
  });

  test('more than one chunk', () => {
    const big = arange(5_000_000, { dtype: 'int32' });
    writeSafetensors(at('big'), new Map([['big', big]]));
    expect(readSafetensors(at('big')).tensors.get('big')!.equal(big)).toBe(true);
  });

  test('replaces the old file whole, or leaves it and no temporary file', () => {
    const path = at('atomic');
    writeSafetensors(path, new Map([['x', tensor([1])]]));
    const old = readSafetensors(path).tensors.get('x')!;
    writeSafetensors(path, new Map([['x', tensor([2])]]));
    expect([old.tolist(), readSafetensors(path).tensors.get('x')!.tolist()]).toEqual([[1], [2]]);
    const freed = zeros([3]);
    freed.dispose();
    expect(() => writeSafetensors(path, new Map([['x', freed]]))).toThrow();
    expect(readSafetensors(path).tensors.get('x')!.tolist()).toEqual([2]);
    expect(readdirSync(folder).filter((name) => name.endsWith('.tmp'))).toEqual([]);
    symlinkSync(path, at('link'));
    writeSafetensors(at('link'), new Map([['x', tensor([3])]]));
    expect(readSafetensors(path).tensors.get('x')!.tolist()).toEqual([3]);
  });

  test('refuses what the format cannot hold', () => {
    const x = tensor([1]);
    expect(() => writeSafetensors(at('no'), new Map([['x', zeros([1], { dtype: 'complex128' })]]))).toThrow(
      /complex128/,
    );
    expect(() => writeSafetensors(at('no'), new Map([['x', empty([1], { device: 'meta' })]]))).toThrow(
      /"x" is on the meta device/,
    );
    expect(() => writeSafetensors(at('no'), new Map([['__metadata__', x]]))).toThrow(TypeError);
    expect(() =>
      writeSafetensors(at('no'), [
        ['x', x],
        ['x', x],
      ]),
    ).toThrow(/two tensors are called "x"/);
    expect(() => writeSafetensors(at('no'), new Map([['x', x]]), { n: 1 as unknown as string })).toThrow(
      /"n" is a number/,
    );
    expect(() => writeSafetensors(join(folder, 'absent', 'no'), new Map([['x', x]]))).toThrow(/ENOENT/);
    expect(readdirSync(folder)).not.toContain('no');
  });
});

describe('big files', () => {
  /** A file of two float32 tensors and their gap-free data, which the file system keeps as a hole. */
  function sparse(name: string, elements: number): string {
    const path = at(name);
    const bytes = elements * 4;
    const header = JSON.stringify({
      a: { dtype: 'F32', shape: [elements], data_offsets: [0, bytes] },
      b: { dtype: 'F32', shape: [2, 3], data_offsets: [bytes, bytes + 24] },
    }).padEnd(256);
    safetensorsFile(path, header, new Uint8Array(0));
    truncateSync(path, 8 + header.length + bytes + 24);
    const file = openSync(path, 'r+');
    writeSync(file, new Float32Array([1, 2, 3, 4, 5, 6]), 0, 24, 8 + header.length + bytes);
    closeSync(file);
    return path;
  }

  test('1 GB opens in under 50 ms and 50 MB, and is read as it is used', () => {
    const path = sparse('one.safetensors', 2 ** 28);
    readSafetensors(fixture('dtypes.safetensors'));
    const before = process.memoryUsage.rss();
    const times = Array.from({ length: 5 }, () => {
      const start = performance.now();
      const { tensors } = readSafetensors(path);
      const elapsed = performance.now() - start;
      expect(tensors.get('a')!.shape).toEqual([2 ** 28]);
      return elapsed;
    });
    const { tensors } = readSafetensors(path);
    const grown = process.memoryUsage.rss() - before;
    console.log(`1 GB opened in ${Math.min(...times).toFixed(2)} ms; ${(grown / 2 ** 20).toFixed(1)} MB more memory`);
    expect(Math.min(...times)).toBeLessThan(50);
    expect(grown).toBeLessThan(50 * 2 ** 20);
    expect(tensors.get('b')!.tolist()).toEqual([
      [1, 2, 3],
      [4, 5, 6],
    ]);
  });

  test('6 GB: offsets beyond 32 bits', () => {
    const { tensors } = readSafetensors(sparse('six.safetensors', 1_600_000_000));
    expect(tensors.get('a')!.shape).toEqual([1_600_000_000]);
    expect(tensors.get('a')!.select(0, -1).item()).toBe(0);
    expect(tensors.get('b')!.sum().item()).toBe(21);
  });
});
