import { describe, expect, test } from 'vitest';
import {
  arange,
  dtypeInfo,
  dtypes,
  empty,
  emptyLike,
  eye,
  fromTypedArray,
  full,
  fullLike,
  isDType,
  isFloatingPoint,
  linspace,
  ones,
  onesLike,
  rand,
  randint,
  randLike,
  randnLike,
  randperm,
  tensor,
  TorchError,
  withDefaults,
  zeros,
  zerosLike,
} from '../../lib/tensor/index.js';
import type { DType } from '../../lib/tensor/index.js';

// Calls that TypeScript would refuse.
const loose = (fn: unknown) => fn as (...args: unknown[]) => unknown;

describe('tensor', () => {
  test.each([
    ['float32', [1.5, -2, 0], Float32Array.of(1.5, -2, 0)],
    ['float64', [0.1, 1e300, -0], Float64Array.of(0.1, 1e300, -0)],
    ['float16', [1, -2, 0.5], Uint16Array.of(0x3c00, 0xc000, 0x3800)],
    ['bfloat16', [1, -2, 0.5], Uint16Array.of(0x3f80, 0xc000, 0x3f00)],
    ['int8', [1, -128, 127], Int8Array.of(1, -128, 127)],
    ['int16', [1, -32768, 32767], Int16Array.of(1, -32768, 32767)],
    ['int32', [1, -(2 ** 31), 2 ** 31 - 1], Int32Array.of(1, -(2 ** 31), 2 ** 31 - 1)],
    ['int64', [1, -5, 2 ** 53], BigInt64Array.of(1n, -5n, 2n ** 53n)],
    ['uint8', [0, 255, 7], Uint8Array.of(0, 255, 7)],
    ['bool', [true, false, true], Uint8Array.of(1, 0, 1)],
    ['complex64', [1, 2, 3], Float32Array.of(1, 0, 2, 0, 3, 0)],
    ['complex128', [1, 2, 3], Float64Array.of(1, 0, 2, 0, 3, 0)],
  ] as const)('%s is stored and read back', (dtype, values, stored) => {
    const x = tensor(values, { dtype });
    expect([x.dtype, x.shape, x.device]).toEqual([dtype, [3], 'cpu']);
    expect(x.data()).toEqual(stored);
    const again = fromTypedArray(x.data(), [3], dtype);
    expect(again.dtype).toBe(dtype);
    expect(again.equal(x)).toBe(true);
    if (!dtype.startsWith('complex') && dtype !== 'int64') expect(x.tolist()).toEqual(values);
  });

  test('every dtype is covered by the table above', () => expect(dtypes.length).toBe(12));

  test('the dtype follows from the values', () => {
    expect(tensor(1).dtype).toBe('float32');
    expect(tensor([1n, 2n]).dtype).toBe('int64');
    expect(tensor([true]).dtype).toBe('bool');
    expect(tensor([true, 2n]).dtype).toBe('int64');
    expect(tensor([]).dtype).toBe('float32');
    expect(tensor(new Int16Array(2)).dtype).toBe('int16');
    expect(tensor(Buffer.from([1, 2])).tolist()).toEqual([1, 2]);
  });

  test('shapes follow from the nesting', () => {
    expect(tensor(5).shape).toEqual([]);
    expect(tensor([[[1], [2]]]).shape).toEqual([1, 2, 1]);
    expect(tensor([[], []]).shape).toEqual([2, 0]);
    expect(tensor(new Float32Array(6), { shape: [2, 3] }).shape).toEqual([2, 3]);
  });

  test('a typed array is copied and may be converted', () => {
    const data = Float32Array.of(1.75, 2);
    const x = tensor(data, { dtype: 'int32' });
    data[0] = 9;
    expect(x.tolist()).toEqual([1, 2]);
    expect(tensor(Uint16Array.of(0x3c00), { dtype: 'float16' }).item()).toBe(1);
  });

  test('a view of a larger buffer contributes only its part', () => {
    const buffer = new Float32Array([1, 2, 3, 4]);
    expect(tensor(buffer.subarray(1, 3)).tolist()).toEqual([2, 3]);
  });

  test('tolist gives bigints only where numbers are not exact', () => {
    expect(tensor([5n, 2n ** 60n]).tolist()).toEqual([5, 2n ** 60n]);
    expect(tensor([1, 2], { dtype: 'complex64' }).tolist()).toEqual([
      [1, 0],
      [2, 0],
    ]);
  });

  test('requiresGrad', () => {
    expect(tensor([1], { requiresGrad: true }).requiresGrad).toBe(true);
    expect(tensor([1]).requiresGrad).toBe(false);
    expect(() => tensor([1n], { requiresGrad: true })).toThrow(/floating point|require gradients/i);
  });

  test.each([
    [
      'ragged rows',
      () => tensor([[1, 2], [3]]),
      TypeError,
      /tensor: data is ragged: data\[1\].*array of 2.*array of 1/,
    ],
    ['ragged depth', () => tensor([[1], 2]), TypeError, /ragged: data\[1\].*got 2/],
    ['deeper later', () => loose(tensor)([1, [2]]), TypeError, /data\[1\].*ragged/],
    ['a string', () => loose(tensor)(['a']), TypeError, /data\[0\].*number, bigint or boolean; got 'a'/],
    ['nothing', () => loose(tensor)(undefined), TypeError, /got undefined/],
    ['an object', () => loose(tensor)({}), TypeError, /got an object/],
    ['a tensor', () => loose(tensor)(zeros([1])), TypeError, /clone\(\)/],
    [
      'unknown dtype',
      () => loose(tensor)([1], { dtype: 'float31' }),
      TypeError,
      /dtype must be one of float32,.*'float31'/,
    ],
    ['unknown device', () => loose(tensor)([1], { device: 'gpu' }), TypeError, /device must be 'cpu'.*'gpu'/],
    ['misspelled option', () => loose(tensor)([1], { dType: 'int8' }), TypeError, /unknown option 'dType'/],
    ['options that are a string', () => loose(tensor)([1], 'int8'), TypeError, /options must be an object/],
    ['too large', () => tensor([300], { dtype: 'uint8' }), RangeError, /300 is outside of uint8/],
    ['NaN as integer', () => tensor([NaN], { dtype: 'int32' }), RangeError, /NaN cannot be stored as int32/],
    ['bigint too large', () => tensor([2n ** 63n]), RangeError, /outside of int64/],
    ['wrong shape', () => tensor([1, 2], { shape: [3] }), RangeError, /shape \[3\] needs 3 values; got 2/],
    [
      'words without dtype',
      () => tensor(new Uint16Array(2)),
      TypeError,
      /Uint16Array needs dtype 'float16' or 'bfloat16'/,
    ],
    ['an unknown typed array', () => loose(tensor)(new Uint32Array(2)), TypeError, /number, bigint or boolean/],
  ])('%s is refused', (_, make, type, message) => {
    expect(make).toThrow(type);
    expect(make).toThrow(message);
  });
});

describe('fromTypedArray', () => {
  test.each([
    [
      'wrong length',
      () => fromTypedArray(new Float32Array(3), [2]),
      RangeError,
      /shape \[2\] needs 2 elements; the array has 3/,
    ],
    [
      'wrong dtype',
      () => fromTypedArray(new Float32Array(2), [2], 'int32'),
      TypeError,
      /Float32Array does not hold int32/,
    ],
    ['no dtype', () => fromTypedArray(new Uint16Array(2), [2]), TypeError, /Uint16Array/],
    ['complex length', () => fromTypedArray(new Float32Array(2), [2], 'complex64'), RangeError, /4 real numbers/],
    ['no array', () => loose(fromTypedArray)([1, 2], [2]), TypeError, /typed array/],
    ['DataView', () => loose(fromTypedArray)(new DataView(new ArrayBuffer(8)), [2]), TypeError, /typed array/],
  ])('%s is refused', (_, make, type, message) => {
    expect(make).toThrow(type);
    expect(make).toThrow(message);
  });

  test('bytes become booleans', () => {
    expect(fromTypedArray(Uint8Array.of(1, 0), [2], 'bool').tolist()).toEqual([true, false]);
  });
});

describe('constant tensors', () => {
  test('zeros, ones, full, empty', () => {
    expect(zeros([2, 2]).tolist()).toEqual([[0, 0], [0, 0]]); // prettier-ignore
    expect(ones(3, { dtype: 'int64' }).tolist()).toEqual([1, 1, 1]);
    expect(full([2], 1).dtype).toBe('float32');
    expect(full([2], 1.5, { dtype: 'float64' }).tolist()).toEqual([1.5, 1.5]);
    expect(full([1], 7n).dtype).toBe('int64');
    expect(full([1], true).tolist()).toEqual([true]);
    expect(empty([4, 3, 2, 5], { memoryFormat: 'channels_last' }).stride()).toEqual([30, 1, 15, 3]);
    expect(zeros([]).shape).toEqual([]);
    expect(zeros([0]).numel()).toBe(0);
  });

  test('arange follows its arguments', () => {
    expect(arange(4).tolist()).toEqual([0, 1, 2, 3]);
    expect(arange(4).dtype).toBe('int64');
    expect(arange(2, 5).tolist()).toEqual([2, 3, 4]);
    expect(arange(5, 0, -2).tolist()).toEqual([5, 3, 1]);
    expect(arange(0, 1, 0.25).tolist()).toEqual([0, 0.25, 0.5, 0.75]);
    expect(arange(3, { dtype: 'float32' }).dtype).toBe('float32');
    expect(arange(1, 3, { dtype: 'int32' }).tolist()).toEqual([1, 2]);
  });

  test('linspace and eye', () => {
    expect(linspace(0, 1, 5).tolist()).toEqual([0, 0.25, 0.5, 0.75, 1]);
    expect(eye(2).tolist()).toEqual([[1, 0], [0, 1]]); // prettier-ignore
    expect(eye(1, 3, { dtype: 'bool' }).tolist()).toEqual([[true, false, false]]);
    expect(eye(2, { dtype: 'int8' }).dtype).toBe('int8');
  });

  test('the like functions take what is not given from the other tensor', () => {
    const x = ones([2, 3], { dtype: 'float64' });
    for (const y of [zerosLike(x), onesLike(x), emptyLike(x), fullLike(x, 2), randLike(x), randnLike(x)]) {
      expect([y.shape, y.dtype]).toEqual([[2, 3], 'float64']);
    }
    expect(fullLike(x, 2).sum().item()).toBe(12);
    expect(zerosLike(x, { dtype: 'int8' }).dtype).toBe('int8');
    expect(() => loose(zerosLike)([1])).toThrow(/zerosLike: other must be a Tensor; got \[1\]/);
  });

  test.each([
    ['negative size', () => zeros([2, -1]), RangeError, /zeros: shape\[1\] must be an integer of at least 0; got -1/],
    ['fraction', () => zeros([1.5]), RangeError, /shape\[0\].*1\.5/],
    ['NaN', () => ones([NaN]), RangeError, /ones: shape\[0\].*NaN/],
    ['infinite', () => empty([Infinity]), RangeError, /Infinity/],
    ['string size', () => loose(zeros)(['2']), TypeError, /shape\[0\].*'2'/],
    ['no shape', () => loose(zeros)(), TypeError, /shape must be an array of sizes; got undefined/],
    ['uncountable', () => zeros([2 ** 40, 2 ** 40]), RangeError, /more elements than can be counted/],
    ['not enough memory', () => zeros([2 ** 40, 2 ** 12]), TorchError, /alloc|memory|overflow/i],
    ['a string as value', () => loose(full)([2], 'x'), TypeError, /full: value must be a number/],
    ['zero step', () => arange(0, 1, 0), RangeError, /step must not be 0/],
    ['infinite range', () => arange(Infinity), RangeError, /finite/],
    ['nothing to arrange', () => loose(arange)(), TypeError, /arange: expected/],
    ['empty range', () => randint(3, 3, [2]), RangeError, /high must be larger than low/],
    ['randperm of a fraction', () => randperm(1.5), RangeError, /randperm: n/],
    ['randn of integers', () => rand([2], { dtype: 'int32' }), TorchError, /aten::rand/],
  ])('%s is refused', (_, make, type, message) => {
    expect(make).toThrow(type);
    expect(make).toThrow(message);
  });
});

describe('withDefaults', () => {
  test('changes device and dtype of new tensors, and restores them', () => {
    const x = withDefaults({ device: 'meta', dtype: 'float64' }, () => zeros([1000, 1000]));
    expect([x.device, x.dtype]).toEqual(['meta', 'float64']);
    expect(zeros([1]).device).toBe('cpu');
    expect(() =>
      withDefaults({ dtype: 'float64' }, () => {
        expect(tensor([1]).dtype).toBe('float64');
        expect(withDefaults({ dtype: 'float16' }, () => tensor([1]).dtype)).toBe('float16');
        throw new Error('out');
      }),
    ).toThrow('out');
    expect(tensor([1]).dtype).toBe('float32');
  });

  test('refuses integer dtypes and asynchronous functions', () => {
    expect(() => withDefaults({ dtype: 'int32' }, () => 1)).toThrow(/floating/);
    expect(() => withDefaults({}, async () => Promise.resolve(1))).toThrow(
      /withDefaults: the function must be synchronous/,
    );
  });
});

test('dtype facts', () => {
  const sizes = Object.fromEntries(dtypes.map((d) => [d, dtypeInfo(d).bytes]));
  for (const d of dtypes) expect(zeros([5], { dtype: d }).data().byteLength).toBe(5 * (sizes[d] as number));
  expect(dtypes.filter(isFloatingPoint)).toEqual(['float32', 'float64', 'float16', 'bfloat16']);
  expect(isDType('toString')).toBe(false);
  expect(() => isFloatingPoint('x' as DType)).toThrow(TypeError);
});
