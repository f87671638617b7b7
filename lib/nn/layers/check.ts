/** Argument checks and spellings that the layers share. */
import { pair, type Size2 } from '../site.js';

/** `value` if it is an integer of at least 1. @throws RangeError */
export function positiveInteger(value: number, layer: string, name: string): number {
  if (!Number.isInteger(value) || value < 1)
    throw new RangeError(`${layer}: ${name} must be a positive integer, got ${String(value)}`);
  return value;
}

/** `value` if it is a probability. @throws RangeError */
export function probability(value: number, layer: string): number {
  if (!(value >= 0 && value <= 1))
    throw new RangeError(`${layer}: the probability must lie in [0, 1], got ${String(value)}`);
  return value;
}

/** A size as a pair of integers of at least `least`. @throws RangeError */
export function sizePair(size: Size2, layer: string, name: string, least: number): readonly [number, number] {
  const both = pair(size);
  if (!Array.isArray(both) || both.length !== 2 || !both.every((n) => Number.isInteger(n) && n >= least)) {
    throw new RangeError(
      `${layer}: ${name} must be an integer of at least ${least} or a pair of them, got ${String(size)}`,
    );
  }
  return both;
}

/** True and False, for printing as PyTorch does. */
export function pythonBool(value: boolean): string {
  return value ? 'True' : 'False';
}

/** A pair as Python prints a tuple. */
export function tuple(values: readonly number[]): string {
  return values.length === 1 ? `(${values[0]},)` : `(${values.join(', ')})`;
}

/** A pair as one number where both are equal, as PyTorch prints sizes given so. */
export function compact(values: readonly [number, number]): string {
  return values[0] === values[1] ? String(values[0]) : tuple(values);
}

/** A number as Python prints a float: `1e-05`, `0.1`, `1.0`. */
export function pythonFloat(value: number): string {
  if (Number.isInteger(value) && Math.abs(value) < 1e16) return value.toFixed(1);
  if (value !== 0 && Math.abs(value) < 1e-4) {
    const [mantissa = '', exponent = ''] = value.toExponential().split('e-');
    return `${mantissa}e-${exponent.padStart(2, '0')}`;
  }
  return String(value);
}
