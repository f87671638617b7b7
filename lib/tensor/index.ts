export {
  arange,
  empty,
  emptyLike,
  eye,
  fromTypedArray,
  full,
  fullLike,
  linspace,
  ones,
  onesLike,
  rand,
  randint,
  randLike,
  randn,
  randnLike,
  randperm,
  tensor,
  zeros,
  zerosLike,
} from './creation.js';
export type { LikeOptions, Shape, TensorOptions } from './creation.js';
export { defaultDevice, defaultDType, withDefaults } from './defaults.js';
export { dtypeInfo, dtypes, isDType, isFloatingPoint } from './dtype.js';
export type { Device, DType, DTypeInfo, MemoryFormat, Scalar } from './dtype.js';
export { TorchError } from './errors.js';
export { applyFunction, autocast, enableGrad, grad, inferenceMode, isGradEnabled, noGrad } from './gradmode.js';
export { countMacs } from './macs.js';
export type { AutocastOptions, CustomFunction, GradOptions } from './gradmode.js';
export { slice, Slice } from './indexing.js';
export type { Index } from './indexing.js';
export type { Nested, NestedResult } from './nested.js';
export { aten, call, operator } from './ops.js';
export { getRngState, manualSeed, setRngState } from './random.js';
export {
  allowUncheckedOperators,
  buildInfo,
  cudaDeviceCount,
  getNumThreads,
  setNumThreads,
  synchronize,
} from './runtime.js';
export { keep, memory, scope } from './scope.js';
export { Tensor } from './tensor.js';
export type { Element, ToOptions } from './tensor.js';
export type { TypedArray } from '../native/index.js';
