/** Images: data sets, decoding, transforms, batches; text: tokenizers. */
export { BatchLoader } from './batch_loader.js';
export type { BatchLoaderOptions, Collated, SkippedImage } from './batch_loader.js';
export { ClipLoader, stackFrames } from './clip_loader.js';
export type { ClipLoaderOptions, TrainingClips } from './clip_loader.js';
export { clipViews, testFrames, trainingClip, trainingFrames } from './clips.js';
export type { ClipCrop, ClipPreparation, ClipViews, FrameSampling } from './clips.js';
export { CocoDataset, openCoco } from './coco_dataset.js';
export type { CocoDatasetOptions, CocoReadOptions, OpenCocoOptions } from './coco_dataset.js';
export { adjustBrightness, adjustContrast, adjustHue, adjustSaturation } from './color.js';
export { Selection, splitDataset, splitSamples, Subset, TensorDataset } from './dataset.js';
export type { Dataset } from './dataset.js';
export { DetectionLoader, SegmentationLoader } from './dense_loaders.js';
export type { AnnotatedLoaderOptions, DetectionLoaderOptions, SegmentationLoaderOptions } from './dense_loaders.js';
export { decodeImage, hasImageSuffix, ImageError, imageSuffixes } from './decode.js';
export { hasVideoSuffix, videoSuffixes } from './ffmpeg.js';
export { ImageFolder, listImages, openImageFolder } from './folder.js';
export type { ImageFolderOptions, Splits, SplitsOf, SplitsOptions } from './folder.js';
export { cropImage, flipHorizontal, flipVertical } from './geometry.js';
export type { Box } from './geometry.js';
export { imageFromTensor, imageToTensor, resizeImage } from './image.js';
export type { Image, Interpolation } from './image.js';
export { DataLoader } from './loader.js';
export type { DataLoaderOptions } from './loader.js';
export { MaskFolder, openMaskFolder, openMasks, readMask } from './masks.js';
export type { MaskFolderOptions, MaskOptions, OpenMaskFolderOptions, OpenMasksOptions } from './masks.js';
export { groupTaskClasses, MultiTaskFolder, openMultiTask, taskClassNames } from './multi_task.js';
export type { MultiTaskFolderOptions, OpenMultiTaskOptions, TaskClasses } from './multi_task.js';
export { MultiTaskLoader } from './multi_task_loader.js';
export type { MultiTaskLoaderOptions } from './multi_task_loader.js';
export { MovingShapes } from './moving_shapes.js';
export type { MovingShapesOptions } from './moving_shapes.js';
export { Pipeline } from './pipeline.js';
export type { CollateOptions } from './pipeline.js';
export { randAugment, randAugmentOperations } from './rand_augment.js';
export type { RandAugmentOptions } from './rand_augment.js';
export { Random } from './random.js';
export { SampleError } from './samples.js';
export type {
  AnnotatedImage,
  AnyBatch,
  DetectionSample,
  LabeledSource,
  LoadedBatch,
  LoadedBoxes,
  LoadedClips,
  LoadedMasks,
  LoadedObjects,
  LoadedScenes,
  MultiTaskSample,
  Objects,
  SampleSource,
  SegmentationSample,
  Skipped,
  Video,
  VideoSource,
} from './samples.js';
export { Shapes, shapesTasks } from './shapes.js';
export type { ShapesAttributes, ShapesOptions, ShapesTask } from './shapes.js';
export { RoadShapes } from './shapes_roads.js';
export { DetectionShapes, SegmentationShapes } from './shapes_scenes.js';
export type { ShapeScenesOptions } from './shapes_scenes.js';
export { TextTokenizer } from './text_tokenizer.js';
export type { EncodeOptions, TokenizedTexts } from './text_tokenizer.js';
export { parseTransforms } from './transforms.js';
export type { Transform, TransformInput, TransformKind, TransformOf } from './transforms.js';
export { openVideo, openVideos, VideoFolder } from './video.js';
export type { OpenVideosOptions, VideoFolderOptions } from './video.js';
/** The steps as functions: `transforms.resize(32)`, `transforms.compose(...)`. */
export * as transforms from './transforms.js';
