import { fromTypedArray, type DType, type Tensor } from '../tensor/index.js';
import { DTYPES, elementCount, shapeText, spellingOf } from './dtypes.js';
import { CheckpointError, quote } from './errors.js';
import { swapBytes, tensorFromBytes } from './region.js';

/** A NumPy dtype as its tensors are read. */
export interface NumpyType {
  /** NumPy's spelling, such as `<f4`. */
  readonly descr: string;
  /** The dtype of the tensor. Unsigned integers that LibTorch hardly computes in are widened. */
  readonly dtype: DType;
  /** Bytes of one element in the file. */
  readonly bytes: number;
  /** Bytes whose order is reversed if the file's byte order is not this machine's. */
  readonly unit: number;
  readonly isSwapped: boolean;
  /** Set for uint16, uint32 and uint64, which become int32, int64 and int64. */
  readonly widened: 'u2' | 'u4' | 'u8' | null;
}

const byCode = new Map(DTYPES.flatMap((entry) => (entry.numpy ? [[entry.numpy, entry] as const] : [])));
const WIDENED = new Map<string, { dtype: DType; bytes: number }>([
  ['u2', { dtype: 'int32', bytes: 2 }],
  ['u4', { dtype: 'int64', bytes: 4 }],
  ['u8', { dtype: 'int64', bytes: 8 }],
]);

/** Reads a spelling such as `<f4`, `|b1`, `>i8`; strings, dates, records and objects are refused by name. */
export function numpyDType(path: string, descr: string): NumpyType {
  const match = /^([<>|=]?)([a-zA-Z]\d+)$/.exec(descr);
  const code = match?.[2] ?? '';
  const isSwapped = match?.[1] === '>';
  const plain = byCode.get(code);
  if (plain) return { descr, dtype: plain.dtype, bytes: plain.bytes, unit: plain.unit, isSwapped, widened: null };
  const wide = WIDENED.get(code);
  if (wide) return { descr, ...wide, unit: wide.bytes, isSwapped, widened: code as 'u2' | 'u4' | 'u8' };
  const isObject = descr.includes('O');
  throw new CheckpointError(
    path,
    isObject
      ? 'holds Python objects, which can only be read by running Python; convert the array to numbers first'
      : `NumPy dtype ${quote(descr)} is not supported; numbers and booleans are: ${[...byCode.keys(), ...WIDENED.keys()].join(', ')}`,
  );
}

/** A tensor from the bytes of a NumPy array. The bytes may be changed. */
export function numpyTensor(
  path: string,
  type: NumpyType,
  shape: readonly number[],
  isFortran: boolean,
  bytes: Uint8Array,
): Tensor {
  const count = elementCount(shape);
  if (count === null || count * type.bytes !== bytes.length) {
    const wanted = count === null ? 'a valid shape' : `${count * type.bytes} bytes`;
    throw new CheckpointError(
      path,
      `an array of ${type.descr} of shape ${shapeText(shape)} needs ${wanted}, found ${bytes.length} bytes`,
    );
  }
  if (type.isSwapped) swapBytes(bytes, type.unit);
  const flat = type.widened ? widen(path, type.widened, bytes) : tensorFromBytes(bytes, [count], type.dtype);
  const shaped = isFortran ? flat.asStrided([...shape], fortranStrides(shape), 0) : flat.reshape([...shape]);
  flat.dispose();
  return shaped;
}

/** Strides of an array whose first index runs fastest. */
export function fortranStrides(shape: readonly number[]): number[] {
  let step = 1;
  return shape.map((size) => {
    const stride = step;
    step *= Math.max(size, 1);
    return stride;
  });
}

function widen(path: string, code: 'u2' | 'u4' | 'u8', bytes: Uint8Array): Tensor {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (code === 'u2') {
    const values = new Int32Array(bytes.length / 2);
    for (let i = 0; i < values.length; i++) values[i] = view.getUint16(i * 2, true);
    return fromTypedArray(values, [values.length]);
  }
  const size = code === 'u4' ? 4 : 8;
  const values = new BigInt64Array(bytes.length / size);
  for (let i = 0; i < values.length; i++) {
    const value = size === 4 ? BigInt(view.getUint32(i * 4, true)) : view.getBigUint64(i * 8, true);
    if (value > 0x7fffffffffffffffn)
      throw new CheckpointError(
        path,
        `the uint64 value ${value} does not fit into int64, the widest integer of LibTorch`,
      );
    values[i] = value;
  }
  return fromTypedArray(values, [values.length]);
}

/** The number in a NumPy scalar. */
export function numpyScalar(path: string, type: NumpyType, bytes: Uint8Array): number | bigint | boolean {
  if (type.dtype.startsWith('complex'))
    throw new CheckpointError(path, `a complex NumPy scalar (${type.descr}) has no counterpart; save it as an array`);
  const tensor = numpyTensor(path, type, [], false, bytes.slice());
  const value = tensor.item();
  tensor.dispose();
  return value;
}

/** NumPy's spelling of a dtype, with this machine's (little-endian) byte order. */
export function numpyName(dtype: DType): string {
  const { numpy, unit } = spellingOf(dtype);
  if (numpy === null)
    throw new TypeError(`NumPy has no dtype for ${dtype}; convert the tensor first, for example to float32`);
  return (unit === 1 ? '|' : '<') + numpy;
}
