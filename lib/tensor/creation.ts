import { native } from '../native/index.js';
import type { TypedArray } from '../native/index.js';
import { assertInteger, assertOptions, assertShape, assertTensor, numelOf } from './check.js';
import { defaultDevice, defaultDType } from './defaults.js';
import { describe } from './describe.js';
import { assertDevice, assertDType, assertMemoryFormat, dtypeInfo, dtypeOfArray, isTypedArray } from './dtype.js';
import type { Device, DType, MemoryFormat, Scalar } from './dtype.js';
import { flatten, inferDType, toCarrier } from './nested.js';
import type { Nested } from './nested.js';
import { aten } from './ops.js';
import type { Tensor } from './tensor.js';

/** Options that every creation function takes. */
export interface TensorOptions {
  /** Element type; each function documents its default. */
  dtype?: DType | undefined;
  /** Default 'cpu', or what `withDefaults` says. */
  device?: Device | undefined;
  /** Record operations on the new tensor. Default false. */
  requiresGrad?: boolean | undefined;
}

/** Sizes, outermost first; a number is one dimension. */
export type Shape = number | readonly number[];

const OPTION_NAMES = ['dtype', 'device', 'requiresGrad'];

/** Checks the common options and fills in defaults. */
function resolve(options: TensorOptions | undefined, where: string, dtype: DType, extra: readonly string[] = []) {
  assertOptions(options, where, [...OPTION_NAMES, ...extra]);
  return {
    dtype: options?.dtype === undefined ? dtype : assertDType(options.dtype, where),
    device: options?.device === undefined ? defaultDevice() : assertDevice(options.device, where),
  };
}

function finish(result: Tensor, options: TensorOptions | undefined): Tensor {
  if (options?.requiresGrad) native.setRequiresGrad(result, true);
  return result;
}

function assertScalar(value: unknown, where: string, argument: string): Scalar {
  if (typeof value === 'number' || typeof value === 'bigint' || typeof value === 'boolean') return value;
  throw new TypeError(`${where}: ${argument} must be a number, bigint or boolean; got ${describe(value)}`);
}

function assertNumber(value: unknown, where: string, argument: string): number {
  if (typeof value === 'number') return value;
  throw new TypeError(`${where}: ${argument} must be a number; got ${describe(value)}`);
}

/** The dtype that a lone scalar suggests. */
function dtypeOfScalar(value: Scalar): DType {
  return inferDType([value], defaultDType());
}

/**
 * Copies a typed array, taken as the elements of `dtype`, into a new CPU tensor: the inverse of `Tensor.data()`.
 * float16 and bfloat16 come as raw words in a Uint16Array, bool as bytes, complex numbers as pairs (real, imaginary).
 *
 * @param dtype default: the array's own (float32 for Float32Array, uint8 for Uint8Array ...)
 * @throws RangeError if the array's length is not that of the shape, TypeError if it cannot hold `dtype`
 */
export function fromTypedArray(array: TypedArray, shape: Shape, dtype?: DType): Tensor {
  const where = 'fromTypedArray';
  if (!isTypedArray(array)) {
    throw new TypeError(`${where}: array must be a typed array of a dtype of LibTorch; got ${describe(array)}`);
  }
  const sizes = assertShape(shape, where);
  const own = dtypeOfArray(array);
  const wanted = dtype === undefined ? own : assertDType(dtype, where);
  if (wanted === null) {
    throw new TypeError(`${where}: a Uint16Array needs dtype 'float16' or 'bfloat16', whose raw words it then holds`);
  }
  const complex = dtypeInfo(wanted).kind === 'complex';
  const parts = complex ? [...sizes, 2] : sizes;
  if (array.length !== numelOf(parts)) {
    const unit = complex ? 'real numbers (two per element)' : 'elements';
    throw new RangeError(
      `${where}: shape [${sizes.join(', ')}] needs ${numelOf(parts)} ${unit}; the array has ${array.length}`,
    );
  }
  const holds: Partial<Record<DType, DType | null>> = {
    float16: null,
    bfloat16: null,
    bool: 'uint8',
    complex64: 'float32',
    complex128: 'float64',
  };
  const needed = Object.hasOwn(holds, wanted) ? holds[wanted] : wanted;
  if (own !== needed) {
    throw new TypeError(
      `${where}: ${array.constructor.name} does not hold ${wanted}; use tensor(array, { dtype: '${wanted}' }) to convert`,
    );
  }
  if (complex) return aten.viewAsComplex(native.fromTypedArray(array, parts, null) as Tensor);
  return native.fromTypedArray(array, sizes, wanted === own ? null : wanted) as Tensor;
}

/** A typed array's values in a new tensor of `dtype`. */
function fromValues(array: TypedArray, shape: Shape | undefined, options: TensorOptions | undefined): Tensor {
  const where = 'tensor';
  const own = dtypeOfArray(array);
  const { dtype, device } = resolve(options, where, own ?? 'float32', ['shape']);
  const sizes = shape === undefined ? [array.length] : assertShape(shape, where);
  // Words have no value of their own, so they must be float16 or bfloat16; fromTypedArray refuses the rest.
  const raw = fromTypedArray(array, sizes, own ?? options?.dtype);
  return finish(convert(raw, dtype, device), options);
}

function convert(source: Tensor, dtype: DType, device: Device): Tensor {
  if (native.dtype(source) === dtype && device === 'cpu') return source;
  return aten.to(source, { dtype, device });
}

/**
 * A tensor of the given numbers: a scalar (shape []), nested arrays, or a typed array, which is copied.
 *
 * @param options `dtype`: by default that of the typed array, else float32 (the default floating dtype) for numbers,
 * int64 for bigints, bool for booleans; `shape` for a typed array, default one dimension
 * @throws TypeError for ragged arrays or other values, RangeError for a number that an integer dtype cannot hold
 * @example tensor([[1, 2], [3, 4]]);  tensor([3, 1], { dtype: 'int64' });  tensor(new Float32Array(6), { shape: [2, 3] })
 */
export function tensor(data: Nested | TypedArray, options?: TensorOptions & { shape?: Shape | undefined }): Tensor {
  const where = 'tensor';
  if (isTypedArray(data)) return fromValues(data, options?.shape, options);
  if (native.isTensor(data)) {
    throw new TypeError(`${where}: data is a Tensor already; use clone() for a copy or to() for another dtype`);
  }
  const { values, shape: nestedShape } = flatten(data, where);
  const { dtype, device } = resolve(options, where, inferDType(values, defaultDType()), ['shape']);
  const shape = options?.shape === undefined ? nestedShape : assertShape(options.shape, where);
  if (numelOf(shape) !== values.length) {
    throw new RangeError(`${where}: shape [${shape.join(', ')}] needs ${numelOf(shape)} values; got ${values.length}`);
  }
  const { array, carried } = toCarrier(values, dtype, where);
  const raw = native.fromTypedArray(array, shape, carried === 'bool' ? 'bool' : null) as Tensor;
  return finish(convert(raw, dtype, device), options);
}

/** A tensor of zeros. Default dtype float32. */
export function zeros(shape: Shape, options?: TensorOptions): Tensor {
  return finish(aten.zeros(assertShape(shape, 'zeros'), resolve(options, 'zeros', defaultDType())), options);
}

/** A tensor of ones. Default dtype float32. */
export function ones(shape: Shape, options?: TensorOptions): Tensor {
  return finish(aten.ones(assertShape(shape, 'ones'), resolve(options, 'ones', defaultDType())), options);
}

/** A tensor whose elements are whatever the memory held. Default dtype float32. */
export function empty(shape: Shape, options?: TensorOptions & { memoryFormat?: MemoryFormat | undefined }): Tensor {
  const resolved = resolve(options, 'empty', defaultDType(), ['memoryFormat']);
  const memoryFormat =
    options?.memoryFormat === undefined ? undefined : assertMemoryFormat(options.memoryFormat, 'empty');
  return finish(aten.empty(assertShape(shape, 'empty'), { ...resolved, memoryFormat }), options);
}

/** A tensor of one value everywhere. Default dtype: float32 for a number, int64 for a bigint, bool for a boolean. */
export function full(shape: Shape, value: Scalar, options?: TensorOptions): Tensor {
  const scalar = assertScalar(value, 'full', 'value');
  const resolved = resolve(options, 'full', dtypeOfScalar(scalar));
  return finish(aten.full(assertShape(shape, 'full'), scalar, resolved), options);
}

/**
 * `start`, `start + step`, ... up to but without `end`. One number is the end. Default dtype: int64 if all arguments
 * are integers, else float32.
 */
export function arange(end: number, options?: TensorOptions): Tensor;
export function arange(start: number, end: number, step?: number, options?: TensorOptions): Tensor;
export function arange(start: number, end: number, options: TensorOptions): Tensor;
export function arange(...args: (number | TensorOptions | undefined)[]): Tensor {
  const where = 'arange';
  const last = args.at(-1);
  const options = typeof last === 'object' ? (args.pop() as TensorOptions) : undefined;
  const given = args.filter((a) => a !== undefined);
  const numbers = given.map((a, i) => assertNumber(a, where, given.length === 1 ? 'end' : `argument ${i + 1}`));
  if (numbers.length < 1 || numbers.length > 3) {
    throw new TypeError(`${where}: expected (end), (start, end) or (start, end, step)`);
  }
  const [start, end, step] = numbers.length === 1 ? [0, numbers[0] as number, 1] : [...numbers, 1];
  const resolved = resolve(options, where, numbers.every(Number.isInteger) ? 'int64' : defaultDType());
  if (!numbers.every(Number.isFinite))
    throw new RangeError(`${where}: arguments must be finite; got ${describe(numbers)}`);
  if (step === 0) throw new RangeError(`${where}: step must not be 0`);
  return finish(aten.arange(start, end as number, step as number, resolved), options);
}

/** `steps` numbers from `start` to `end`, both included, at equal distances. Default dtype float32. */
export function linspace(start: number, end: number, steps: number, options?: TensorOptions): Tensor {
  const resolved = resolve(options, 'linspace', defaultDType());
  const count = assertInteger(steps, 'linspace', 'steps', 0);
  const [from, to] = [assertNumber(start, 'linspace', 'start'), assertNumber(end, 'linspace', 'end')];
  return finish(aten.linspace(from, to, count, resolved), options);
}

/** The n by m identity matrix; m defaults to n. Default dtype float32. */
export function eye(n: number, m?: number | TensorOptions, options?: TensorOptions): Tensor {
  const settings = typeof m === 'object' ? m : options;
  const rows = assertInteger(n, 'eye', 'n', 0);
  const columns = typeof m === 'number' ? assertInteger(m, 'eye', 'm', 0) : rows;
  return finish(aten.eye(rows, columns, resolve(settings, 'eye', defaultDType())), settings);
}

/** Uniform random numbers in [0, 1). Default dtype float32. */
export function rand(shape: Shape, options?: TensorOptions): Tensor {
  return finish(aten.rand(assertShape(shape, 'rand'), resolve(options, 'rand', defaultDType())), options);
}

/** Random numbers of the standard normal distribution. Default dtype float32. */
export function randn(shape: Shape, options?: TensorOptions): Tensor {
  return finish(aten.randn(assertShape(shape, 'randn'), resolve(options, 'randn', defaultDType())), options);
}

/** Random integers from `low` up to but without `high`. Default dtype int64. */
export function randint(low: number, high: number, shape: Shape, options?: TensorOptions): Tensor {
  const where = 'randint';
  const [from, to] = [assertInteger(low, where, 'low'), assertInteger(high, where, 'high')];
  if (to <= from) throw new RangeError(`${where}: high must be larger than low; got low ${from}, high ${to}`);
  return finish(aten.randint(from, to, assertShape(shape, where), resolve(options, where, 'int64')), options);
}

/** The integers 0 to n - 1 in random order. Default dtype int64. */
export function randperm(n: number, options?: TensorOptions): Tensor {
  const count = assertInteger(n, 'randperm', 'n', 0);
  return finish(aten.randperm(count, resolve(options, 'randperm', 'int64')), options);
}

/** Options of the `...Like` functions; what is not given is taken from the other tensor. */
export type LikeOptions = TensorOptions & { memoryFormat?: MemoryFormat | undefined };

function like(other: Tensor, options: LikeOptions | undefined, where: string) {
  assertTensor(other, where, 'other');
  assertOptions(options, where, [...OPTION_NAMES, 'memoryFormat']);
  return {
    dtype: options?.dtype === undefined ? undefined : assertDType(options.dtype, where),
    device: options?.device === undefined ? undefined : assertDevice(options.device, where),
    memoryFormat: options?.memoryFormat === undefined ? undefined : assertMemoryFormat(options.memoryFormat, where),
  };
}

/** Zeros in the shape, dtype, device and memory format of `other`. */
export function zerosLike(other: Tensor, options?: LikeOptions): Tensor {
  return finish(aten.zerosLike(other, like(other, options, 'zerosLike')), options);
}

/** Ones in the shape, dtype, device and memory format of `other`. */
export function onesLike(other: Tensor, options?: LikeOptions): Tensor {
  return finish(aten.onesLike(other, like(other, options, 'onesLike')), options);
}

/** Uninitialized memory in the shape, dtype, device and memory format of `other`. */
export function emptyLike(other: Tensor, options?: LikeOptions): Tensor {
  return finish(aten.emptyLike(other, like(other, options, 'emptyLike')), options);
}

/** One value everywhere, in the shape, dtype, device and memory format of `other`. */
export function fullLike(other: Tensor, value: Scalar, options?: LikeOptions): Tensor {
  const scalar = assertScalar(value, 'fullLike', 'value');
  return finish(aten.fullLike(other, scalar, like(other, options, 'fullLike')), options);
}

/** Uniform random numbers in [0, 1), in the shape, dtype, device and memory format of `other`. */
export function randLike(other: Tensor, options?: LikeOptions): Tensor {
  return finish(aten.randLike(other, like(other, options, 'randLike')), options);
}

/** Random numbers of the standard normal distribution, in the shape, dtype, device and memory format of `other`. */
export function randnLike(other: Tensor, options?: LikeOptions): Tensor {
  return finish(aten.randnLike(other, like(other, options, 'randnLike')), options);
}
