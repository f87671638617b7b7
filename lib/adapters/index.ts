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
export { ConvBypass, convpass, type ConvBypassOptions } from './convpass.js';
export * from './core/index.js';
export { fact, FactFactors, factRule, FactTensorTrain, FactTucker, FactTuckerCore, type FactOptions } from './fact.js';
export { full } from './full.js';
export { linearProbe } from './linear_probe.js';
export { lora, LoraConv, LoraLinear } from './lora.js';
export { proTuning, PromptBlock, type PromptBlockOptions } from './pro_tuning.js';
export { adaptersOf, findMethod, graft, listMethods, loadAdapter, methodInfo, type MethodInfo } from './registry.js';
export { ScaleShift, ssf } from './ssf.js';
export { startPromptsFromClassTokens, vpt } from './vpt.js';
