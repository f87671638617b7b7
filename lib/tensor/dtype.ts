import type { Device, DType, MemoryFormat, TypedArray } from '../native/index.js';
import { describe } from './describe.js';

export type { Device, DType, MemoryFormat, Scalar } from '../native/index.js';

/** Facts about one dtype. */
export interface DTypeInfo {
  readonly bytes: number;
  readonly kind: 'float' | 'int' | 'bool' | 'complex';
  /** Smallest and largest integer; absent for other kinds. */
  readonly range?: readonly [bigint, bigint];
  /** For dtypes that are only stored: what to convert them to. */
  readonly computesIn?: DType;
}

const int = (bytes: number, low: bigint, high: bigint): DTypeInfo => ({ bytes, kind: 'int', range: [low, high] });

const INFO: Readonly<Record<DType, DTypeInfo>> = {
  float32: { bytes: 4, kind: 'float' },
  float64: { bytes: 8, kind: 'float' },
  float16: { bytes: 2, kind: 'float' },
  bfloat16: { bytes: 2, kind: 'float' },
  int8: int(1, -128n, 127n),
  int16: int(2, -32768n, 32767n),
  int32: int(4, -2147483648n, 2147483647n),
  int64: int(8, -(2n ** 63n), 2n ** 63n - 1n),
  uint8: int(1, 0n, 255n),
  bool: { bytes: 1, kind: 'bool' },
  complex64: { bytes: 8, kind: 'complex' },
  complex128: { bytes: 16, kind: 'complex' },
  uint16: { ...int(2, 0n, 2n ** 16n - 1n), computesIn: 'int32' },
  uint32: { ...int(4, 0n, 2n ** 32n - 1n), computesIn: 'int64' },
  uint64: { ...int(8, 0n, 2n ** 64n - 1n), computesIn: 'int64' },
  float8_e4m3fn: { bytes: 1, kind: 'float', computesIn: 'float32' },
  float8_e5m2: { bytes: 1, kind: 'float', computesIn: 'float32' },
  float8_e4m3fnuz: { bytes: 1, kind: 'float', computesIn: 'float32' },
  float8_e5m2fnuz: { bytes: 1, kind: 'float', computesIn: 'float32' },
  float8_e8m0fnu: { bytes: 1, kind: 'float', computesIn: 'float32' },
};

/** The dtypes that LibTorch computes in, in a stable order; others (uint16, float8) are for storing and converting. */
export const dtypes = (Object.keys(INFO) as readonly DType[]).filter((dtype) => INFO[dtype].computesIn === undefined);

const MEMORY_FORMATS: readonly MemoryFormat[] = [
  'contiguous_format',
  'channels_last',
  'channels_last_3d',
  'preserve_format',
];

/** Whether `value` is the name of a dtype. */
export function isDType(value: unknown): value is DType {
  return typeof value === 'string' && Object.hasOwn(INFO, value);
}

/** Size in bytes, kind and range of a dtype. */
export function dtypeInfo(dtype: DType): DTypeInfo {
  return INFO[assertDType(dtype, 'dtypeInfo', 'dtype')];
}

/** Whether the dtype is float16, bfloat16, float32, float64 or a float of 8 bits. */
export function isFloatingPoint(dtype: DType): boolean {
  return dtypeInfo(dtype).kind === 'float';
}

/** `value` as a dtype. @throws TypeError that names function, argument, what was expected and what came. */
export function assertDType(value: unknown, where: string, argument = 'dtype'): DType {
  if (isDType(value)) return value;
  throw new TypeError(`${where}: ${argument} must be one of ${dtypes.join(', ')}; got ${describe(value)}`);
}

/** `value` as a device name: 'cpu', 'meta', 'cuda' or 'cuda:N'. @throws TypeError otherwise */
export function assertDevice(value: unknown, where: string, argument = 'device'): Device {
  if (typeof value === 'string' && /^(cpu|meta|cuda(:\d{1,3})?)$/.test(value)) return value as Device;
  throw new TypeError(`${where}: ${argument} must be 'cpu', 'meta', 'cuda' or 'cuda:N'; got ${describe(value)}`);
}

/** `value` as a memory format. @throws TypeError otherwise */
export function assertMemoryFormat(value: unknown, where: string): MemoryFormat {
  const found = MEMORY_FORMATS.find((format) => format === value);
  if (found) return found;
  throw new TypeError(`${where}: memoryFormat must be one of ${MEMORY_FORMATS.join(', ')}; got ${describe(value)}`);
}

/** The dtype whose elements a typed array holds; null for Uint16Array, which holds none (LibTorch has raw words only). */
export function dtypeOfArray(array: TypedArray): DType | null {
  if (array instanceof Float32Array) return 'float32';
  if (array instanceof Float64Array) return 'float64';
  if (array instanceof Int8Array) return 'int8';
  if (array instanceof Int16Array) return 'int16';
  if (array instanceof Int32Array) return 'int32';
  if (array instanceof BigInt64Array) return 'int64';
  if (array instanceof Uint8Array) return 'uint8';
  return null;
}

/** Whether a tensor can be read from and into this kind of typed array. */
export function isTypedArray(value: unknown): value is TypedArray {
  return (
    ArrayBuffer.isView(value) &&
    (dtypeOfArray(value as TypedArray) !== null || (value as unknown) instanceof Uint16Array)
  );
}
