/** Measures of how good a model is. */
export { accuracy, ClassificationMeter, confusionMatrix, perClassAccuracy, topKAccuracy } from './classification.js';
export type { ClassificationResult, ClassNumbers } from './classification.js';
export { evaluateCoco } from './coco.js';
export type { CocoAnnotation, CocoBox, CocoDetection, CocoGroundTruth, CocoOptions, CocoResult } from './coco.js';
export { DetectionMeter } from './detection.js';
export type { AnnotatedBoxes, FoundBoxes } from './detection.js';
export { SegmentationMeter } from './segmentation.js';
export type { SegmentationAreas, SegmentationMeterOptions, SegmentationResult } from './segmentation.js';
