import { types } from 'node:util';
import { native } from '../native/index.js';
import { describe } from './describe.js';
import type { Tensor } from './tensor.js';

/** As many dimensions as LibTorch's own kernels take at most. */
const MAX_DIMENSIONS = 64;

/** `value` as a tensor. @throws TypeError that names function and argument */
export function assertTensor(value: unknown, where: string, argument: string): Tensor {
  if (native.isTensor(value)) return value as Tensor;
  throw new TypeError(`${where}: ${argument} must be a Tensor; got ${describe(value)}`);
}

/** `value` as an array of tensors; one tensor stands for itself. */
export function assertTensors(value: unknown, where: string, argument: string): Tensor[] {
  if (native.isTensor(value)) return [value as Tensor];
  if (!Array.isArray(value)) {
    throw new TypeError(`${where}: ${argument} must be a Tensor or an array of tensors; got ${describe(value)}`);
  }
  // Not `map`, which would skip holes, and take minutes to skip those of an array of length 2^32 - 1.
  const tensors: Tensor[] = [];
  for (let i = 0; i < value.length; i++) tensors.push(assertTensor(value[i], where, `${argument}[${i}]`));
  return tensors;
}

/** `value` as a safe integer of at least `low`. @throws TypeError if it is no number, RangeError if it does not fit */
export function assertInteger(value: unknown, where: string, argument: string, low = Number.MIN_SAFE_INTEGER): number {
  if (typeof value !== 'number') {
    throw new TypeError(`${where}: ${argument} must be an integer; got ${describe(value)}`);
  }
  if (!Number.isSafeInteger(value) || value < low) {
    const bound = low === Number.MIN_SAFE_INTEGER ? '' : ` of at least ${low}`;
    throw new RangeError(`${where}: ${argument} must be an integer${bound}; got ${describe(value)}`);
  }
  return value;
}

/** `value` as a shape: a number stands for one dimension. @throws TypeError or RangeError that names the bad size */
export function assertShape(value: unknown, where: string, argument = 'shape'): number[] {
  if (typeof value === 'number') return [assertInteger(value, where, argument, 0)];
  if (!Array.isArray(value)) {
    throw new TypeError(`${where}: ${argument} must be an array of sizes; got ${describe(value)}`);
  }
  if (value.length > MAX_DIMENSIONS) {
    throw new RangeError(`${where}: ${argument} has ${value.length} dimensions; there may be ${MAX_DIMENSIONS}`);
  }
  const shape = value.map((size, i) => assertInteger(size, where, `${argument}[${i}]`, 0));
  if (!Number.isSafeInteger(numelOf(shape))) {
    throw new RangeError(`${where}: ${argument} ${describe(shape)} has more elements than can be counted`);
  }
  return shape;
}

/** Number of elements of a shape; 1 for a scalar. */
export function numelOf(shape: readonly number[]): number {
  return shape.reduce((product, size) => product * size, 1);
}

/** Refuses options that a function does not know, so that a misspelled one is not silently ignored. */
export function assertOptions(value: unknown, where: string, known: readonly string[]): void {
  if (value === undefined) return;
  if (typeof value !== 'object' || value === null || Array.isArray(value) || native.isTensor(value)) {
    throw new TypeError(`${where}: options must be an object with ${known.join(', ')}; got ${describe(value)}`);
  }
  for (const key of Object.keys(value)) {
    if (!known.includes(key)) {
      throw new TypeError(`${where}: unknown option '${key}'; it takes ${known.join(', ')}`);
    }
  }
}

/**
 * Calls `fn`, which must be synchronous: what it opens (a scope, a mode) is closed when it returns, so nothing after
 * an `await` would run inside.
 */
export function runSync<R>(where: string, fn: () => R): R {
  if (typeof fn !== 'function') throw new TypeError(`${where}: expected a function; got ${describe(fn)}`);
  const refusal = `${where}: the function must be synchronous; await before or after it, not inside`;
  if (types.isAsyncFunction(fn)) throw new TypeError(refusal);
  const result = fn();
  if (types.isPromise(result)) {
    // Its rejection has nobody to go to any more; the caller gets this error instead.
    (result as Promise<unknown>).catch(() => undefined);
    throw new TypeError(refusal);
  }
  return result;
}
