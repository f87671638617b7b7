import { methodNames, native } from '../native/index.js';
import type { TensorMethods, TypedArray } from '../native/index.js';
import { assertOptions, assertTensor, assertTensors } from './check.js';
import { describe } from './describe.js';
import { assertDevice, assertDType, assertMemoryFormat, dtypeInfo, isDType } from './dtype.js';
import type { Device, DType, MemoryFormat, Scalar } from './dtype.js';
import { TorchError } from './errors.js';
import { backwardPass } from './gradmode.js';
import { getIndex, setIndex } from './indexing.js';
import type { Index } from './indexing.js';
import { nest } from './nested.js';
import type { NestedResult } from './nested.js';
import { aten, camelCase } from './ops.js';
import { format } from './print.js';
import { scope } from './scope.js';

const handleKey = Symbol('torchgraft.handle');

/** What `Tensor.to` can change. */
export interface ToOptions {
  dtype?: DType | undefined;
  device?: Device | undefined;
  memoryFormat?: MemoryFormat | undefined;
  /** Copy even if nothing changes. Default false. */
  copy?: boolean | undefined;
  /** Do not wait for a copy between devices. Default false. */
  nonBlocking?: boolean | undefined;
}

/** More elements than this would fill the heap of JavaScript, which ends the process. */
const MAX_LIST = 2 ** 25;

/** A number as `item` and `tolist` give it: a bigint only where a number would not be exact. */
export type Element = number | bigint | boolean;

/** Every ATen operator whose first argument is the tensor itself is a method. */
// eslint-disable-next-line @typescript-eslint/no-unsafe-declaration-merging, @typescript-eslint/no-empty-object-type -- installed below
export interface Tensor extends TensorMethods<Tensor> {}

/**
 * A LibTorch tensor. It is freed by the scope it was made in, by `using` or `dispose`, or by the collector. Make one
 * with `tensor`, `zeros` and their like; an object made by `new Tensor()` holds nothing, and every use of it throws.
 */
// eslint-disable-next-line @typescript-eslint/no-unsafe-declaration-merging
export class Tensor {
  /** The addon's number for the tensor that this object holds; 0 while it holds none. */
  readonly [handleKey]: number;

  /** @internal Tensors come from `tensor`, `zeros` and their like; only the addon knows a handle. */
  constructor(handle = 0) {
    this[handleKey] = handle;
  }

  /** Sizes, outermost dimension first. */
  get shape(): number[] {
    return native.shape(this);
  }

  /** Element type. */
  get dtype(): DType {
    return native.dtype(this) as DType;
  }

  /** Where the elements are. */
  get device(): Device {
    return native.device(this) as Device;
  }

  /** Number of dimensions. */
  get ndim(): number {
    return native.dim(this);
  }

  /** Whether gradients are computed for this tensor. Settable on leaves. */
  get requiresGrad(): boolean {
    return native.requiresGrad(this);
  }

  set requiresGrad(flag: boolean) {
    native.setRequiresGrad(this, flag);
  }

  /** Gradient that `backward` has accumulated, or null. Settable. */
  get grad(): Tensor | null {
    return native.grad(this) as Tensor | null;
  }

  set grad(value: Tensor | null) {
    native.setGrad(this, value === null ? null : assertTensor(value, 'Tensor.grad', 'value'));
  }

  /** Whether the tensor was made by the user rather than by a recorded operation. */
  get isLeaf(): boolean {
    return native.isLeaf(this);
  }

  /** Name of the recorded operation that made the tensor, such as 'AddBackward0'; null for leaves. */
  get gradFn(): string | null {
    return native.gradFn(this);
  }

  /** How often the elements have been changed in place, through this tensor or a view. */
  get _version(): number {
    return aten._version(this);
  }

  /** Whether the tensor has been freed; every other use of a freed tensor throws. */
  get isFreed(): boolean {
    return native.isFreed(this);
  }

  /** Number of elements. */
  numel(): number {
    return native.numel(this);
  }

  /** Number of dimensions. */
  dim(): number {
    return native.dim(this);
  }

  /** All sizes, or that of one dimension (negative: from the last). */
  size(): number[];
  size(dim: number): number;
  size(dim?: number): number | number[] {
    return pick(native.shape(this), dim, 'size');
  }

  /** All strides in elements, or that of one dimension. */
  stride(): number[];
  stride(dim: number): number;
  stride(dim?: number): number | number[] {
    return pick(native.strides(this), dim, 'stride');
  }

  /** Whether the elements lie in memory in the order of this format. */
  isContiguous(memoryFormat: MemoryFormat = 'contiguous_format'): boolean {
    return native.isContiguous(this, assertMemoryFormat(memoryFormat, 'isContiguous'));
  }

  /** Whether the elements are on a CUDA device. */
  get isCuda(): boolean {
    return native.device(this).startsWith('cuda');
  }

  /**
   * The tensor with another dtype, device or memory format: `to('float16')`, `to('cuda')`, `to(other)`,
   * `to({ dtype, device, memoryFormat, copy })`. Without a change the elements are shared.
   */
  to(target: DType | Device | Tensor | ToOptions, more: ToOptions = {}): Tensor {
    const options = { ...toOptions(target), ...more };
    assertOptions(options, 'to', ['dtype', 'device', 'memoryFormat', 'copy', 'nonBlocking']);
    const { dtype, device, memoryFormat } = options;
    return aten.to(this, {
      dtype: dtype === undefined ? undefined : assertDType(dtype, 'to'),
      device: device === undefined ? undefined : assertDevice(device, 'to'),
      memoryFormat: memoryFormat === undefined ? undefined : assertMemoryFormat(memoryFormat, 'to'),
      copy: options.copy ?? false,
      nonBlocking: options.nonBlocking ?? false,
    });
  }

  /** The tensor in main memory. */
  cpu(): Tensor {
    return this.to('cpu');
  }

  /** The tensor on a CUDA device, by default the current one. */
  cuda(index?: number): Tensor {
    return this.to(index === undefined ? 'cuda' : `cuda:${index}`);
  }

  /** As float32. */
  float(): Tensor {
    return this.to('float32');
  }

  /** As float64. */
  double(): Tensor {
    return this.to('float64');
  }

  /** As float16. */
  half(): Tensor {
    return this.to('float16');
  }

  /** As bfloat16. */
  bfloat16(): Tensor {
    return this.to('bfloat16');
  }

  /** As int32. */
  int(): Tensor {
    return this.to('int32');
  }

  /** As int64. */
  long(): Tensor {
    return this.to('int64');
  }

  /** As bool: whether each element differs from zero. */
  bool(): Tensor {
    return this.to('bool');
  }

  /**
   * The only element: a boolean for bool, else a number; a bigint for an int64 beyond 2^53.
   * @throws TorchError unless the tensor has one element
   */
  item(): Element {
    return native.item(this);
  }

  /**
   * Elements as nested arrays; the element itself for shape []. A complex element is an array [real, imaginary].
   * @throws RangeError beyond 2^25 elements, for which JavaScript has no memory; `data()` has no such limit
   */
  tolist(): NestedResult<Element> {
    const shape = native.shape(this);
    if (native.numel(this) > MAX_LIST) {
      throw new RangeError(`tolist: ${native.numel(this)} elements are too many for nested arrays; use data()`);
    }
    const { kind } = dtypeInfo(this.dtype);
    if (kind === 'complex') return nest(this.data() as Float64Array, [...shape, 2]);
    const wide = this.dtype === 'float16' || this.dtype === 'bfloat16' ? 'float32' : dtypeInfo(this.dtype).computesIn;
    const data = wide ? scope(() => native.toTypedArray(this.detach().to(wide))) : native.toTypedArray(this);
    if (kind === 'bool') return nest(Array.from(data as Uint8Array, Boolean), shape);
    if (data instanceof BigInt64Array) return nest(Array.from(data, exact), shape);
    return nest(data as Float32Array, shape);
  }

  /**
   * A copy of the elements in row-major order, in the typed array of the dtype: BigInt64Array for int64, Uint8Array for
   * bool, raw words in a Uint16Array for float16 and bfloat16, raw bytes for float8, pairs (real, imaginary) for complex dtypes.
   * `fromTypedArray` is the inverse.
   */
  data(): TypedArray {
    if (dtypeInfo(this.dtype).kind !== 'complex') return native.toTypedArray(this);
    return scope(() => native.toTypedArray(aten.viewAsReal(this.detach().resolveConj())));
  }

  /** Makes this tensor hold the elements, shape, dtype and device of `source` from now on. */
  setData(source: Tensor): this {
    native.setData(this, assertTensor(source, 'setData', 'source'));
    return this;
  }

  /** Whether two tensors look at the same memory. */
  sharesStorage(other: Tensor): boolean {
    return native.sameStorage(this, assertTensor(other, 'sharesStorage', 'other'));
  }

  /** Elements of this tensor where `condition` is true, else of `other`. */
  where(condition: Tensor, other: Tensor | Scalar): Tensor {
    assertTensor(condition, 'where', 'condition');
    return native.isTensor(other)
      ? aten.where(condition, this, other as Tensor)
      : aten.where(condition, this, other as Scalar);
  }

  /**
   * `x.index(0, slice(1, 3), null, '...', mask)` is PyTorch's `x[0, 1:3, None, ..., mask]`.
   * @throws RangeError for positions outside of the tensor, TypeError for something that is no index
   */
  index(...indices: Index[]): Tensor {
    return getIndex(this, indices);
  }

  /** `x[indices] = value`, in place: `x.setIndex_([0, slice(1, 3)], 5)`. Returns the tensor itself. */
  setIndex_(indices: readonly Index[], value: Tensor | Scalar): this {
    if (!Array.isArray(indices)) {
      throw new TypeError(`setIndex_: indices must be an array of indices; got ${describe(indices)}`);
    }
    setIndex(this, indices, value, 'setIndex_');
    return this;
  }

  /** Switches the computation of gradients for this leaf on or off. Returns the tensor itself. */
  requiresGrad_(flag = true): this {
    native.setRequiresGrad(this, flag);
    return this;
  }

  /** Keep the gradient of this tensor although it is no leaf. */
  retainGrad(): void {
    native.retainGrad(this);
  }

  /**
   * Adds the derivatives of this tensor to the `grad` of the leaves that it depends on.
   * @param gradient derivative with respect to this tensor; may be left out for one element
   * @param options `retainGraph` to allow another pass (default: createGraph), `createGraph` to record this one,
   * `inputs` to accumulate into these tensors only
   */
  backward(
    gradient?: Tensor | null,
    options: { retainGraph?: boolean; createGraph?: boolean; inputs?: readonly Tensor[] } = {},
  ): void {
    assertOptions(options, 'backward', ['retainGraph', 'createGraph', 'inputs']);
    const createGraph = options.createGraph ?? false;
    const retainGraph = options.retainGraph ?? createGraph;
    const grads = [gradient ? assertTensor(gradient, 'backward', 'gradient') : null];
    const inputs = options.inputs ? assertTensors(options.inputs, 'backward', 'inputs') : [];
    backwardPass(retainGraph, () => {
      native.backward([this], grads, retainGraph, createGraph, inputs);
    });
  }

  /**
   * Calls `hook` with the gradient of this tensor whenever it is computed; a tensor that it returns replaces it.
   * @returns a function that removes the hook
   */
  // eslint-disable-next-line @typescript-eslint/no-invalid-void-type -- a hook that only looks returns nothing
  registerHook(hook: (grad: Tensor) => Tensor | void): () => void {
    if (typeof hook !== 'function') throw new TypeError(`registerHook: expected a function; got ${describe(hook)}`);
    const id = native.registerHook(this, (grad) => hook(grad as Tensor) ?? undefined);
    return () => {
      if (!native.isFreed(this)) native.removeHook(this, id);
    };
  }

  /** Frees the tensor now; later uses throw. Freeing twice is allowed. */
  dispose(): void {
    native.free(this);
  }

  /** `using x = zeros([2])` frees x at the end of the block. */
  [Symbol.dispose](): void {
    native.free(this);
  }

  /** The tensor as PyTorch prints it. */
  toString(): string {
    return format(this);
  }

  /** What `console.log` shows. */
  [Symbol.for('nodejs.util.inspect.custom')](): string {
    // Inspection must not fail, least of all inside an error report.
    if (!native.isTensor(this)) return 'Tensor (empty)';
    if (native.isFreed(this)) return 'Tensor (freed)';
    try {
      return this.toString();
    } catch {
      return `Tensor (${this.dtype} [${this.shape.join(', ')}])`;
    }
  }
}

function pick(values: number[], dim: number | undefined, where: string): number | number[] {
  if (dim === undefined) return values;
  const value = Number.isInteger(dim) ? values.at(dim) : undefined;
  if (value !== undefined && dim >= -values.length) return value;
  throw new RangeError(`${where}: dimension ${describe(dim)} is outside of a tensor of ${values.length} dimensions`);
}

function exact(value: bigint): number | bigint {
  const number = Number(value);
  return Number.isSafeInteger(number) ? number : value;
}

function toOptions(target: DType | Device | Tensor | ToOptions): ToOptions {
  if (isDType(target)) return { dtype: target };
  if (typeof target === 'string') {
    if (!/^(cpu|meta|cuda)/.test(target)) {
      throw new TypeError(`to: expected a dtype, a device, a Tensor or options; got ${describe(target)}`);
    }
    return { device: target };
  }
  if (native.isTensor(target)) return { dtype: (target as Tensor).dtype, device: (target as Tensor).device };
  if (typeof target === 'object' && target !== null) return target as ToOptions;
  throw new TypeError(`to: expected a dtype, a device, a Tensor or options; got ${describe(target)}`);
}

/**
 * Installs the operators on the prototype: each as a getter that puts the native function in its place at first use.
 * So importing costs no lookups, and a call has no JavaScript between caller and addon.
 */
function installMethods(): void {
  for (const name of methodNames.split(' ')) {
    const property = camelCase(name);
    if (Object.hasOwn(Tensor.prototype, property)) continue;
    Object.defineProperty(Tensor.prototype, property, {
      configurable: true,
      get() {
        const value = native.operator(`aten::${name}`, null, true);
        if (!value) throw new TypeError(`Tensor.${property}: this LibTorch has no operator aten::${name}`);
        Object.defineProperty(Tensor.prototype, property, { configurable: true, writable: true, value });
        return value;
      },
    });
  }
}

installMethods();
native.setup({ Tensor, TorchError, key: handleKey });
