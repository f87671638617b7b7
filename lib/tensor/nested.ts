import type { TypedArray } from '../native/index.js';
import { describe } from './describe.js';
import { dtypeInfo } from './dtype.js';
import type { DType, Scalar } from './dtype.js';

/** A scalar, or arrays of arrays of scalars of equal lengths. */
export type Nested = Scalar | readonly Nested[];

const MAX_DEPTH = 64;

/** Elements of nested arrays in row-major order, and their shape. @throws TypeError if they are ragged */
export function flatten(data: Nested, where: string): { values: Scalar[]; shape: number[] } {
  const shape: number[] = [];
  for (let level: Nested = data; Array.isArray(level); level = level[0] as Nested) {
    shape.push(level.length);
    if (shape.length > MAX_DEPTH) throw new TypeError(`${where}: data is nested deeper than ${MAX_DEPTH} levels`);
    if (level.length === 0) break;
  }
  const values: Scalar[] = [];
  const walk = (node: unknown, depth: number, path: string): void => {
    if (depth === shape.length) {
      if (typeof node !== 'number' && typeof node !== 'boolean' && typeof node !== 'bigint') {
        const found = Array.isArray(node) ? `an array (${node.length} elements): data is ragged` : describe(node);
        throw new TypeError(`${where}: data${path} must be a number, bigint or boolean; got ${found}`);
      }
      values.push(node);
      return;
    }
    const length = shape[depth] as number;
    if (!Array.isArray(node) || node.length !== length) {
      const found = Array.isArray(node) ? `an array of ${node.length}` : describe(node);
      throw new TypeError(`${where}: data is ragged: data${path} must be an array of ${length}; got ${found}`);
    }
    for (let i = 0; i < length; i++) walk(node[i], depth + 1, `${path}[${i}]`);
  };
  walk(data, 0, '');
  return { values, shape };
}

/** The dtype that holds values of these JavaScript types: booleans, else bigints, else the default floating one. */
export function inferDType(values: readonly Scalar[], floating: DType): DType {
  if (values.length === 0 || values.some((v) => typeof v === 'number')) return floating;
  return values.some((v) => typeof v === 'bigint') ? 'int64' : 'bool';
}

function integer(value: Scalar, dtype: DType, where: string): bigint {
  const [low, high] = dtypeInfo(dtype).range as readonly [bigint, bigint];
  if (typeof value === 'number' && !Number.isFinite(value)) {
    throw new RangeError(`${where}: ${value} cannot be stored as ${dtype}`);
  }
  const whole = typeof value === 'number' ? BigInt(Math.trunc(value)) : BigInt(value);
  if (whole < low || whole > high) {
    throw new RangeError(`${where}: ${value} is outside of ${dtype}, which holds ${low} to ${high}`);
  }
  return whole;
}

/**
 * Values as the typed array that carries them into a tensor, and that array's dtype: `dtype` itself where JavaScript
 * has such arrays, else the widest floating one, to be converted by LibTorch.
 */
export function toCarrier(
  values: readonly Scalar[],
  dtype: DType,
  where: string,
): { array: TypedArray; carried: DType } {
  const { kind, range } = dtypeInfo(dtype);
  if (kind === 'bool') return { array: Uint8Array.from(values, (v) => (v ? 1 : 0)), carried: 'bool' };
  if (dtype === 'int64') {
    return {
      array: BigInt64Array.from(values as (number | bigint)[], (v) => integer(v, dtype, where)),
      carried: dtype,
    };
  }
  if (range) {
    const numbers = values.map((v) => Number(integer(v, dtype, where)));
    if (dtype === 'int32') return { array: Int32Array.from(numbers), carried: dtype };
    if (dtype === 'int16') return { array: Int16Array.from(numbers), carried: dtype };
    if (dtype === 'int8') return { array: Int8Array.from(numbers), carried: dtype };
    return { array: Uint8Array.from(numbers), carried: 'uint8' };
  }
  if (dtype === 'float32') return { array: Float32Array.from(values, Number), carried: dtype };
  return { array: Float64Array.from(values, Number), carried: 'float64' };
}

/** Row-major elements as nested arrays of `shape`; the only element itself for shape []. */
export function nest<E>(elements: ArrayLike<E>, shape: readonly number[]): E | NestedResult<E>[] {
  let next = 0;
  const build = (depth: number): NestedResult<E> =>
    depth === shape.length
      ? (elements[next++] as E)
      : Array.from({ length: shape[depth] as number }, () => build(depth + 1));
  return build(0);
}

/** What `tolist` gives: an element, or arrays of arrays of elements. */
export type NestedResult<E> = E | NestedResult<E>[];
