import { native } from '../native/index.js';
import { assertInteger } from './check.js';
import { describe } from './describe.js';
import { tensor } from './creation.js';
import type { Scalar } from './dtype.js';
import { flatten } from './nested.js';
import type { Nested } from './nested.js';
import { aten } from './ops.js';
import type { Tensor } from './tensor.js';

/** A range of positions along one dimension; made by `slice`. */
export class Slice {
  constructor(
    readonly start: number | null,
    readonly end: number | null,
    readonly step: number,
  ) {
    Object.freeze(this);
  }
}

/**
 * `slice(a, b, step)` is PyTorch's `a:b:step`: from a (default the beginning) up to but without b (default the end).
 * Negative positions count from the end. Positions outside of the tensor are cut off.
 * @throws RangeError for a step below 1: reversing needs a copy, which `flip` makes
 */
export function slice(start: number | null = null, end: number | null = null, step = 1): Slice {
  const from = start === null ? null : assertInteger(start, 'slice', 'start');
  const to = end === null ? null : assertInteger(end, 'slice', 'end');
  if (typeof step === 'number' && step < 1) {
    throw new RangeError(`slice: step must be at least 1; got ${step}. Use flip(dims) to reverse a dimension`);
  }
  return new Slice(from, to, assertInteger(step, 'slice', 'step', 1));
}

/**
 * One index: a position (removes the dimension), a `slice`, null (inserts a dimension), '...' (all dimensions that are
 * not mentioned), a boolean or byte mask, a tensor or nested arrays of positions.
 */
export type Index = number | Slice | null | '...' | boolean | Tensor | readonly Nested[];

interface Selection {
  /** The view that positions, slices and new dimensions give. */
  readonly view: Tensor;
  /** Index tensors per dimension of the view; empty if there are none. */
  readonly tensors: (Tensor | null)[];
}

/** An array of positions or booleans as an index tensor. */
function indexTensor(index: readonly Nested[], where: string): Tensor {
  const { values } = flatten(index, where);
  const mask = values.length > 0 && values.every((v) => typeof v === 'boolean');
  if (!mask) values.forEach((v) => typeof v === 'bigint' || assertInteger(v, where, 'position'));
  return tensor(index, { dtype: mask ? 'bool' : 'int64', device: 'cpu' });
}

const isMask = (index: Tensor) => index.dtype === 'bool' || index.dtype === 'uint8';

/** How many dimensions of the tensor an index uses up. */
function consumed(index: Index): number {
  if (index === null || index === '...' || typeof index === 'boolean') return 0;
  return native.isTensor(index) && isMask(index as Tensor) ? (index as Tensor).ndim : 1;
}

function select(view: Tensor, dim: number, position: number, where: string): Tensor {
  const length = view.shape[dim] as number;
  const at = assertInteger(position, where, 'position');
  if (at < -length || at >= length) {
    throw new RangeError(`${where}: position ${at} is outside of dimension ${dim}, which has ${length} elements`);
  }
  return view.select(dim, at);
}

/** No tensor has so many dimensions. */
const MAX_INDICES = 256;

/** Applies indices from left to right, as PyTorch does. */
function apply(self: Tensor, given: readonly Index[], where: string): Selection {
  if (given.length > MAX_INDICES) {
    throw new RangeError(`${where}: ${given.length} indices; there may be ${MAX_INDICES}`);
  }
  const indices = given.map((index) => (Array.isArray(index) ? indexTensor(index, where) : index));
  const used = indices.reduce<number>((sum, index) => sum + consumed(index), 0);
  const ndim = self.ndim;
  if (used > ndim) {
    throw new RangeError(`${where}: ${used} indices for a tensor of ${ndim} dimensions`);
  }
  if (indices.filter((index) => index === '...').length > 1) {
    throw new TypeError(`${where}: '...' may occur only once`);
  }
  let view = self;
  let dim = 0;
  const tensors: (Tensor | null)[] = [];
  const place = (index: Tensor) => {
    while (tensors.length < dim) tensors.push(null);
    tensors.push(index);
  };
  for (const index of indices) {
    if (typeof index === 'number') {
      view = select(view, dim, index, where);
    } else if (index === null) {
      view = view.unsqueeze(dim++);
    } else if (index === '...') {
      dim += ndim - used;
    } else if (typeof index === 'boolean') {
      // A lone boolean is a mask of no dimensions: it keeps everything, or nothing.
      view = view.unsqueeze(dim);
      place(tensor([index], { device: 'cpu' }));
      dim++;
    } else if (index instanceof Slice) {
      const { start, end, step } = index;
      if (start !== null || end !== null || step !== 1) view = view.slice(dim, start, end, step);
      dim++;
    } else if (native.isTensor(index)) {
      const positions = index as Tensor;
      if (positions.ndim === 0 && !isMask(positions)) {
        view = select(view, dim, Number(positions.item()), where);
      } else {
        const lone = positions.ndim === 0;
        if (lone) view = view.unsqueeze(dim);
        const index = lone ? positions.unsqueeze(0) : positions;
        place(index);
        dim += isMask(index) ? index.ndim : 1;
      }
    } else {
      throw new TypeError(
        `${where}: an index must be an integer, slice(...), null, '...', a boolean, a Tensor or an array; got ${describe(index)}`,
      );
    }
  }
  return { view, tensors: compact(tensors) };
}

/** A mask of k dimensions is followed by k - 1 places that `apply` counted but LibTorch must not see. */
function compact(tensors: (Tensor | null)[]): (Tensor | null)[] {
  const result: (Tensor | null)[] = [];
  for (let i = 0; i < tensors.length; i++) {
    const index = tensors[i] as Tensor | null;
    result.push(index);
    if (index && isMask(index)) i += index.ndim - 1;
  }
  return result;
}

/** `self[indices]`: a view for positions and slices, a copy as soon as an index is a tensor or array. */
export function getIndex(self: Tensor, indices: readonly Index[]): Tensor {
  const { view, tensors } = apply(self, indices, 'index');
  if (tensors.length > 0) return aten.index(view, tensors);
  return view === self ? self.alias() : view;
}

/** `self[indices] = value` in place; a tensor is broadcast to the selected elements. */
export function setIndex(self: Tensor, indices: readonly Index[], value: Tensor | Scalar, where: string): void {
  const { view, tensors } = apply(self, indices, where);
  if (!native.isTensor(value) && !['number', 'bigint', 'boolean'].includes(typeof value)) {
    throw new TypeError(`${where}: value must be a Tensor, number, bigint or boolean; got ${describe(value)}`);
  }
  if (tensors.length > 0) {
    const filler = native.isTensor(value)
      ? (value as Tensor).to({ dtype: self.dtype })
      : aten.full([], value as Scalar, { dtype: self.dtype, device: self.device });
    aten.indexPut_(view, tensors, filler);
  } else if (native.isTensor(value)) {
    view.copy_(dropLeadingOnes(value as Tensor, view.ndim));
  } else {
    view.fill_(value as Scalar);
  }
}

/** PyTorch lets an assigned tensor have more dimensions than the target if the first ones are 1. */
function dropLeadingOnes(value: Tensor, ndim: number): Tensor {
  const shape = value.shape;
  const extra = shape.length - ndim;
  if (extra <= 0 || shape.slice(0, extra).some((size) => size !== 1)) return value;
  return value.reshape(shape.slice(extra));
}
