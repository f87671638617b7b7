export { native } from './addon.js';
export type { Device, DType, Layout, MemoryFormat, Scalar } from './names.js';
export { generatedFrom, irregularNames, methodNames } from './ops.generated.js';
export type { AtenFunctions, TensorMethods } from './ops.generated.js';
export type { Handle, MappedFile, NativeAddon, NativeFunction, OptimizerGroup, Schema, TypedArray } from './types.js';
