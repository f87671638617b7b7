/** Heads for dense tasks: semantic segmentation and detection, in the key layouts of MMSegmentation and torchvision. */
export { ConvModule, Upsample } from './conv_module.js';
export type { ConvModuleOptions, HeadNormOptions } from './conv_module.js';
export { DenseModel } from './dense_model.js';
export type { FeatureSource } from './dense_model.js';
export { EncoderDecoder, pixelAccuracy } from './encoder_decoder.js';
export type { EncoderDecoderOptions, SegmentationLosses, SegmentOptions } from './encoder_decoder.js';
export { FcnHead } from './fcn_head.js';
export type { FcnHeadOptions } from './fcn_head.js';
export { Fpn } from './fpn.js';
export type { FpnOptions, Neck } from './fpn.js';
export { FpnHead } from './fpn_head.js';
export type { FpnHeadOptions } from './fpn_head.js';
export { SegmentationHead } from './segmentation_head.js';
export type { SegmentationHeadOptions } from './segmentation_head.js';
export { LinearDecoder, MaskDecoder, Segmenter, SegmenterDecoder } from './segmenter.js';
export type { MaskDecoderOptions, SegmenterEncoderOptions, SegmenterOptions } from './segmenter.js';
export { SetrUpHead } from './setr_up_head.js';
export type { SetrUpHeadOptions } from './setr_up_head.js';
export { probabilities, segmenterStarts, slideInference, windowStarts } from './sliding.js';
export type { ProbabilityOptions, SlideOptions } from './sliding.js';
export { UPerHead } from './uper_head.js';
export type { UPerHeadOptions } from './uper_head.js';
export { AnchorGenerator, octave } from './anchors.js';
export {
  BoxCoder,
  clipBoxes,
  giouLoss,
  isLarge,
  matchBoxes,
  sampleBalanced,
  sigmoidFocalLoss,
  type FocalOptions,
  type MatchOptions,
} from './boxes.js';
export { defaultMaxSize, DetectionInput, scaleBoxes } from './detection_input.js';
export type { Detection, DetectionBatch, DetectionInputOptions, DetectionTarget } from './detection_input.js';
export { Detector } from './detector.js';
export type { DetectorOptions } from './detector.js';
export { createDetector, listDetectors } from './detectors.js';
export type { CreateDetectorOptions } from './detectors.js';
export { FasterRcnn } from './faster_rcnn.js';
export type { FasterRcnnOptions } from './faster_rcnn.js';
export { FeaturePyramid, PyramidBackbone, PyramidSource } from './pyramid.js';
export type { ConvNormChoice, PyramidBackboneOptions, PyramidExtra, PyramidNeck, PyramidOptions } from './pyramid.js';
export {
  createDetectionModel,
  createSegmentationModel,
  defaultAnchor,
  detectionHeads,
  detectionNecks,
  detectorOver,
  firstLabel,
  fusions,
  paddingOf,
  pickLevels,
  segmentationHeads,
} from './on_backbone.js';
export type {
  DetectionHeadName,
  DetectionModelOptions,
  DetectionNeckName,
  FusionName,
  SegmentationHeadName,
  SegmentationModelOptions,
} from './on_backbone.js';
export { RetinaNet } from './retinanet.js';
export type { RetinaNetOptions } from './retinanet.js';
export { RoiHeads } from './roi_heads.js';
export type { BoxHeadOptions, RoiHeadsOptions } from './roi_heads.js';
export { roiLevels, RoiPool } from './roi_pool.js';
export type { RoiPoolOptions } from './roi_pool.js';
export { RegionProposals } from './rpn.js';
export type { RpnOptions } from './rpn.js';
