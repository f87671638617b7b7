export { encodeWithContexts } from './context_text.js';
export {
  BDD100K_CLASSES,
  LanguageToVision,
  LV_TASKS,
  LvAdapter,
  MultiScaleAdapter,
  type LvAdapterOptions,
  type LvOutputs,
  type LvTask,
} from './lv_adapter.js';
export {
  AdaptiveSeparation,
  DiscriminativeAttention,
  RepresentationSeparation,
  TwoPathways,
  type Pathways,
  type Regions,
  type RepresentationSeparationOptions,
  type SeparatedMaps,
  type SeparationLosses,
} from './representation_separation.js';
export { averageViews } from './video.js';
