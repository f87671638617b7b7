import { readFileSync } from 'node:fs';
import { expect } from 'vitest';
import { aten, tensor, type DType, type Nested, type Tensor } from '../../lib/tensor/index.js';

/** What make_nn.py has written. */
export interface Golden {
  init: Record<string, Nested>;
  layers: Record<string, LayerCase>;
  losses: Record<string, Nested>;
  tree: { state: string[]; parameters: string[]; buffers: string[]; modules: string[]; repr: string };
}

export interface LayerCase {
  repr: string;
  initial: Record<string, Nested>;
  x: Nested;
  y: Nested;
  after: Record<string, Nested>;
  eval: Nested;
}

export const golden = JSON.parse(readFileSync(new URL('./nn.json', import.meta.url), 'utf8')) as Golden;

/** A value of the golden file as a tensor; floats unless another dtype is asked for. */
export function stored(value: Nested | undefined, dtype: DType = 'float32'): Tensor {
  if (value === undefined) throw new Error('the golden file has no such entry; run make_nn.py');
  return tensor(value, { dtype });
}

/** Expects equal shapes and values within `tolerance` (absolute and relative; 0: the same bits). */
export function expectClose(actual: Tensor, expected: Tensor, tolerance = 1e-6): void {
  expect(actual.shape).toEqual(expected.shape);
  const [a, b] = [actual.detach().to('float64'), expected.detach().to('float64')];
  const excess = a.sub(b).abs().sub(b.abs().mul(tolerance));
  expect(excess.numel() === 0 ? 0 : Number(aten.max(excess).item())).toBeLessThanOrEqual(tolerance);
}
