export { ADE20K_CLASSES, COCO_CLASSES } from './class_names.js';
export { encodeWithContexts } from './context_text.js';
export { DenseClip, SCORE_MAP, TEXT_EMBEDDINGS, type DenseClipOptions, type ScoreLossOptions } from './dense_clip.js';
export { ContextDecoder, type ContextDecoderOptions } from './dense_clip_context.js';
export { boxScoreLoss, DenseClipPyramid, type DenseClipPyramidOptions } from './dense_clip_detection.js';
export {
  DenseClipResNet,
  DenseClipViT,
  type DenseClipEncoder,
  type DenseClipResNetOptions,
  type DenseClipViTOptions,
  type DenseFeatures,
} from './dense_clip_encoders.js';
export { LanguageGuide, type Guidance, type LanguageOptions } from './dense_clip_language.js';
export { clipTextTower, denseClipKeyMap, textTowerSizes } from './dense_clip_names.js';
export { DenseAttentionPool2d, type DenseEmbedding, type PoolPositions } from './dense_clip_pool.js';
export {
  createDenseClip,
  createDenseClipDetector,
  denseClipEncoder,
  denseClipGroups,
  listDenseClips,
  type CreateDenseClipDetectorOptions,
  type CreateDenseClipOptions,
  type DenseClipDetector,
  type DenseClipRates,
  type DenseClipSizes,
  type DenseClipVisual,
} from './dense_clip_variants.js';
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
  LvMultiTask,
  type LvFindings,
  type LvMaskTask,
  type LvMultiTaskOptions,
  type LvTargets,
} from './lv_multi_task.js';
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
