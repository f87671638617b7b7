export { bitfit } from './bitfit.js';
export {
  Bottleneck,
  BOTTLENECK_STARTS,
  startBottleneck,
  type BottleneckNorm,
  type BottleneckOptions,
  type BottleneckStart,
} from './bottleneck.js';
export {
  ChannelBias,
  ConvAdapter,
  convAdapter,
  ConvAdapterDesign1,
  LinearAdapter,
  PaddingPrompt,
  type ConvAdapterOptions,
} from './conv_adapter.js';
export * from './core/index.js';
export { full } from './full.js';
export { linearProbe } from './linear_probe.js';
export { lora, LoraConv, LoraLinear } from './lora.js';
export { adaptersOf, findMethod, graft, listMethods, loadAdapter, methodInfo, type MethodInfo } from './registry.js';
export { ScaleShift, ssf } from './ssf.js';
