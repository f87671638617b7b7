import type { DType } from '../tensor/index.js';

/** How the file formats spell one of our dtypes. */
export interface DTypeSpelling {
  readonly dtype: DType;
  /** Bytes per element. */
  readonly bytes: number;
  /** Bytes per number: half of `bytes` for complex dtypes. The unit in which a foreign byte order is reversed. */
  readonly unit: number;
  /** Name in a safetensors header, or null where the format has none. */
  readonly safetensors: string | null;
  /** The class of `torch` that names a storage of it, or null for newer dtypes, whose storages are untyped. */
  readonly storage: string | null;
  /** NumPy's kind and size, without the byte order, or null where NumPy has none. */
  readonly numpy: string | null;
}

function spelling(
  dtype: DType,
  bytes: number,
  unit: number,
  safetensors: string | null,
  storage: string | null,
  numpy: string | null,
): DTypeSpelling {
  return { dtype, bytes, unit, safetensors, storage, numpy };
}

/** Every dtype that files are read and written in. */
export const DTYPES: readonly DTypeSpelling[] = [
  spelling('float32', 4, 4, 'F32', 'FloatStorage', 'f4'),
  spelling('float64', 8, 8, 'F64', 'DoubleStorage', 'f8'),
  spelling('float16', 2, 2, 'F16', 'HalfStorage', 'f2'),
  spelling('bfloat16', 2, 2, 'BF16', 'BFloat16Storage', null),
  spelling('int8', 1, 1, 'I8', 'CharStorage', 'i1'),
  spelling('int16', 2, 2, 'I16', 'ShortStorage', 'i2'),
  spelling('int32', 4, 4, 'I32', 'IntStorage', 'i4'),
  spelling('int64', 8, 8, 'I64', 'LongStorage', 'i8'),
  spelling('uint8', 1, 1, 'U8', 'ByteStorage', 'u1'),
  spelling('bool', 1, 1, 'BOOL', 'BoolStorage', 'b1'),
  spelling('complex64', 8, 4, 'C64', 'ComplexFloatStorage', 'c8'),
  spelling('complex128', 16, 8, null, 'ComplexDoubleStorage', 'c16'),
  spelling('uint16', 2, 2, 'U16', null, null),
  spelling('uint32', 4, 4, 'U32', null, null),
  spelling('uint64', 8, 8, 'U64', null, null),
  spelling('float8_e4m3fn', 1, 1, 'F8_E4M3', null, null),
  spelling('float8_e5m2', 1, 1, 'F8_E5M2', null, null),
  spelling('float8_e4m3fnuz', 1, 1, 'F8_E4M3FNUZ', null, null),
  spelling('float8_e5m2fnuz', 1, 1, 'F8_E5M2FNUZ', null, null),
  spelling('float8_e8m0fnu', 1, 1, 'F8_E8M0', null, null),
];

const byDType = new Map(DTYPES.map((entry) => [entry.dtype, entry]));

/** The spellings of `dtype`; a dtype outside the table is a TypeError. */
export function spellingOf(dtype: DType): DTypeSpelling {
  const found = byDType.get(dtype);
  if (!found) {
    throw new TypeError(`files cannot hold tensors of dtype ${dtype}; known: ${[...byDType.keys()].join(', ')}`);
  }
  return found;
}

/** Highest number of dimensions that a file may ask for (NumPy's own limit). */
export const MAX_DIMENSIONS = 64;

/**
 * Number of elements of a shape read from a file, or null when it is no shape: a dimension that is no non-negative
 * safe integer, too many dimensions, or a product (zeros left out) beyond 2^53.
 */
export function elementCount(shape: unknown): number | null {
  if (!Array.isArray(shape) || shape.length > MAX_DIMENSIONS) return null;
  let product = 1;
  let isEmpty = false;
  for (const size of shape as unknown[]) {
    if (typeof size !== 'number' || !Number.isSafeInteger(size) || size < 0) return null;
    if (size === 0) isEmpty = true;
    else product *= size;
    if (product > Number.MAX_SAFE_INTEGER) return null;
  }
  return isEmpty ? 0 : product;
}

/** A shape as people write it; cut when a hostile file makes it long. */
export function shapeText(shape: unknown): string {
  const text = JSON.stringify(shape, (_, value: unknown) => (typeof value === 'bigint' ? String(value) : value));
  if (text === undefined) return String(shape);
  return text.length > 200 ? `${text.slice(0, 197)}...` : text.replaceAll(',', ', ');
}
