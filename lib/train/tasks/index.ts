/** What can be trained: tasks for `Trainer` and `evaluate`. */
export { classifyTask, type Evaluation, type Prediction } from './classify.js';
export { detectTask, type BoxBatch, type DetectionEvaluation } from './detect.js';
export { multiTask, type MultiTaskEvaluation, type SceneBatch } from './multi.js';
export {
  segmentationLogits,
  segmentTask,
  type MaskBatch,
  type SegmentationEvaluation,
  type SegmentationStep,
  type SegmentTaskOptions,
} from './segment.js';
export { type Meter, type Scoring, type Task, type TrainStep } from './task.js';
export { videoTask, type ClipBatch, type VideoEvaluation } from './video.js';
