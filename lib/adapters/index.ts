export { adapter } from './adapter.js';
export { adaptformer } from './adaptformer.js';
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
  compactLayout,
  decodeCompact,
  encodeCompact,
  loadCompact,
  readCompactSettings,
  saveCompact,
  type CompactPart,
  type CompactSettings,
  type CompactSizes,
} from './compact.js';
export { compacter, PhmBottleneck, PhmLayer } from './compacter.js';
export { convAdapter } from './conv_adapter.js';
export {
  ChannelBias,
  ConvAdapter,
  ConvAdapterDesign1,
  LinearAdapter,
  PaddingPrompt,
  type ConvAdapterOptions,
} from './conv_adapter_forms.js';
export { ConvBypass, convpass, type ConvBypassOptions } from './convpass.js';
export * from './core/index.js';
export { fact, FactFactors, factRule, FactTensorTrain, FactTucker, FactTuckerCore, type FactOptions } from './fact.js';
export { mam } from './mam.js';
export { prefix } from './prefix.js';
export { PrefixAttention, PrefixConcat, PrefixMlp, type PrefixMlpOptions } from './prefix_forms.js';
export { promptTuning, PromptTokens } from './prompt_tuning.js';
export { full } from './full.js';
export { krona, kronaB, kronaBRes, lokr } from './krona.js';
export { KroneckerBypass, KroneckerLinear, LokrConv, LokrLinear } from './krona_forms.js';
export { intrinsicSubspace, layersOf, sizeOf, Subspace, type SubmoduleQuery } from './intrinsic_subspace.js';
export { AttentionFactors, kadaptation, KroneckerDelta, KroneckerHeads } from './kadaptation.js';
export {
  KroneckerFactors,
  kroneckerLowRank,
  kroneckerMatrix,
  kroneckerProduct,
  KroneckerRule,
  type FactorStart,
  type KroneckerRuleOptions,
  type LowRank,
  type RuleKind,
} from './kronecker.js';
export { linearProbe } from './linear_probe.js';
export { lora, LoraConv, LoraLinear } from './lora.js';
export { LoraHeads, pevitLora } from './pevit_lora.js';
export { noah, NOAH_KINDS, NoahAdapter, NoahLora, NoahPrompts, noahSizes, setNoahSizes } from './noah.js';
export type { NoahKind, NoahSizes } from './noah.js';
export {
  noahParameters,
  sampleNoahSizes,
  searchNoah,
  type NoahCandidate,
  type NoahSearchOptions,
  type NoahSpace,
  type RandomSource,
} from './noah_search.js';
export * from './peft/index.js';
export { proTuning, PromptBlock, type PromptBlockOptions } from './pro_tuning.js';
export { adaptersOf, findMethod, graft, listMethods, loadAdapter, methodInfo, type MethodInfo } from './registry.js';
export { PromptMatcher, SEGMENTATION_LABELS, spm, type PromptMatcherOptions } from './spm.js';
export { ScaleShift, ssf } from './ssf.js';
export { classEmbeddings, startHead, type StartHeadOptions } from './text_head.js';
export { StAdapter, stAdapter } from './st_adapter.js';
export { startPromptsFromClassTokens, vpt } from './vpt.js';
export { compatibility, type MatrixCell } from './matrix.js';
