/** Measures of how good a model is. */
export { accuracy, ClassificationMeter, confusionMatrix, perClassAccuracy, topKAccuracy } from './classification.js';
export type { ClassificationResult, ClassNumbers } from './classification.js';
