export { AsMlp } from './as_mlp.js';
export type { AsMlpOptions } from './as_mlp.js';
export { Backbone, IMAGENET_MEAN, IMAGENET_STD } from './backbone.js';
export type { FeatureLevel, Preprocessing } from './backbone.js';
export { Bart } from './bart.js';
export type { BartOptions } from './bart.js';
export { CifarResNet } from './cifar_resnet.js';
export type { CifarResNetOptions } from './cifar_resnet.js';
export { Clip, createClip, createCustomClip, listClips } from './clip.js';
export type { ClipLogits, ClipOptions } from './clip.js';
export { AttentionPool2d } from './clip_attention_pool.js';
export { clipKeyMap, openaiTextTransformer, openaiVisionTransformer } from './clip_names.js';
export type { ClipFormat } from './clip_names.js';
export { ClipBottleneck, ClipResNet } from './clip_resnet.js';
export type { ClipBottleneckOptions, ClipResNetOptions } from './clip_resnet.js';
export { clipBlock, clipTextOptions, ClipTextTransformer, endOfText } from './clip_text.js';
export type { ClipTextOptions } from './clip_text.js';
export { ClipTokenizer } from './clip_tokenizer.js';
export type { TokenizeOptions } from './clip_tokenizer.js';
export { CLIP_COLORS, ClipVisionTransformer } from './clip_vit.js';
export {
  ConvNeXt,
  OFFICIAL_CONVNEXT_NAMES,
  OFFICIAL_ISOTROPIC_NAMES,
  SSF_CONVNEXT_NAMES,
  type ConvNeXtOptions,
} from './convnext.js';
export type { Family } from './family.js';
export { Host } from './host.js';
export { GGhostRegNet } from './g_ghost_regnet.js';
export type { GGhostRegNetOptions } from './g_ghost_regnet.js';
export { GhostResNet } from './ghost_resnet.js';
export type { GhostResNetOptions } from './ghost_resnet.js';
export { GhostNet } from './ghostnet.js';
export type { GhostNetOptions } from './ghostnet.js';
export { HatNet } from './hatnet.js';
export type { HatNetOptions } from './hatnet.js';
export { GnConvModule, HorFpn } from './horfpn.js';
export type { GnConvModuleOptions, HorFpnOptions } from './horfpn.js';
export { HorNet, HorNetIsotropic } from './hornet.js';
export type { HorNetIsotropicOptions, HorNetOptions } from './hornet.js';
export { loadState, loadWeights } from './load.js';
export type { WeightsOptions, WeightsReport } from './load.js';
export { editDistance, nearest, parseOptions, suggestion } from './options.js';
export { resamplePosEmbed } from './pos_embed.js';
export type { ResampleOptions } from './pos_embed.js';
export { createCustomModel, createModel, listFamilies, listModels, modelInfo } from './registry.js';
export type { ModelInfo, ModelOptions } from './registry.js';
export { ResNet } from './resnet.js';
export type { ResNetOptions } from './resnet.js';
export { microsoftSwinNames, SwinTransformer } from './swin.js';
export type { SwinOptions } from './swin.js';
export { PREFIX_ACROSS_BATCH, type WindowRule } from './swin_windows.js';
export { VisionTransformer } from './vit.js';
export { ViTBlock } from './vit_blocks.js';
export type { ViTOptions } from './vit.js';
export { Roberta } from './roberta.js';
export type { RobertaOptions } from './roberta.js';
export { T5 } from './t5.js';
export type { T5Options } from './t5.js';
export { relativeBias, relativeBuckets } from './t5_blocks.js';
export type { BucketOptions } from './t5_blocks.js';
export { shiftRight, TextModel } from './text_model.js';
export type { TextInputs, TextOutputs } from './text_model.js';
export { createCustomTextModel, createTextModel, listTextModels, textModelInfo } from './text_registry.js';
export type { TextModelInfo } from './text_registry.js';
