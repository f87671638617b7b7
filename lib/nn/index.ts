export { checkpoint, runBlock, runBlocks, runChain } from './checkpointing.js';
export { ModuleDict, ModuleList, Sequential } from './containers.js';
export { type AttentionState, Context, type ContextOptions } from './context.js';
export { boxArea, boxIou, intersectionArea, nms, roiAlign, type RoiAlignOptions } from './detection.js';
export { Fastfood, powerOfTwo, walshHadamard } from './fastfood.js';
export { composedDcnv3, dcnv3, type Dcnv3Options } from './deform_conv.js';
/** Layers' formulas as functions, for code that has no module. */
export * as functional from './functional.js';
export { bypassConv, convNormAct, kroneckerLinear, loraLinear, scaleShift } from './fused.js';
export type { GraftSet } from './graft.js';
/** Initializers with PyTorch's formulas: each fills a tensor in place and returns it. */
export * as init from './init.js';
export * from './layers/index.js';
export {
  bceWithLogits,
  crossEntropy,
  IGNORE_INDEX,
  klDiv,
  mseLoss,
  pixelCrossEntropy,
  type CrossEntropyOptions,
  type PixelLossOptions,
  type Reduction,
} from './losses.js';
export { Module, type ModuleToOptions } from './module.js';
export { Buffer, Parameter, type BufferOptions } from './parameter.js';
export { everySecond, requireLevels, topDown } from './pyramid.js';
export {
  modulePath,
  pair,
  site,
  sitesOf,
  type SiteLayout,
  type Role,
  type Site,
  type SiteDefaults,
  type SiteTag,
  type Size2,
  type SliceTag,
} from './site.js';
export { Span } from './span.js';
export { compareState, describeReport, type LoadOptions, type LoadReport, type StateSource } from './state.js';
export { trainingMode, type TrainingModeOptions } from './training_mode.js';
