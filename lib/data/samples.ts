/**
 * What is loaded and what a batch is, for the tasks beyond classification: segmentation, detection, video. Samples are
 * plain values like `Image`s, batches are tensors.
 */
import type { Tensor } from '../tensor/index.js';
import type { Image } from './image.js';

/** A sample that cannot be used: a file that is broken, or an annotation that does not fit its image. */
export class SampleError extends Error {
  /** The file. */
  readonly path: string;

  /** @param message names the file and the value that is wrong */
  constructor(path: string, message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = 'SampleError';
    this.path = path;
  }
}

/** Something broken that was left out on request. */
export interface Skipped {
  /** The file. */
  readonly path: string;
  readonly message: string;
}

/** Where broken things go that are found before any sample is loaded: an error at once, or a list of what is left out. */
export class Defects {
  /** What was left out. */
  readonly skipped: Skipped[] = [];
  readonly #isSkipping: boolean;

  constructor(skipBroken = false) {
    this.#isSkipping = skipBroken;
  }

  /** @throws SampleError unless broken things are skipped */
  report(path: string, message: string): void {
    if (!this.#isSkipping) throw new SampleError(path, message);
    this.skipped.push({ path, message });
  }
}

/** A numbered collection of samples. Loading the same index twice gives the same sample. */
export interface SampleSource<Sample> {
  readonly length: number;
  /** One name per class, in the order of the class numbers. */
  readonly classNames: readonly string[];
  /** The sample before any transform. Rejects or throws a `SampleError` (an `ImageError`, say) if it is broken. */
  load(index: number): Sample | Promise<Sample>;
  /** A name for messages: the file's path where there is one. */
  describe(index: number): string;
}

/** Samples of one class each. */
export interface LabeledSource<Sample> extends SampleSource<Sample> {
  /** The class number of each sample. */
  readonly labels: ArrayLike<number>;
}

/** The objects in an image; entry i of each list belongs to object i. */
export interface Objects {
  /** (x1, y1, x2, y2) of each object, one after the other, in pixels; x from the left, y from the top. */
  readonly boxes: Float32Array;
  /** Class numbers, from 0 on. */
  readonly labels: Int32Array;
  /** Areas of the outlines, in square pixels: what decides an object's size when COCO's precisions are computed. */
  readonly areas: Float32Array;
  /** 1: a crowd, which may hold any number of objects. */
  readonly crowds: Uint8Array;
}

/** An image and what is marked in it; transforms move everything along. */
export interface AnnotatedImage {
  readonly image: Image;
  /** One channel of bytes, of the image's size: the class number of each pixel, `IGNORE_INDEX` where none counts. */
  readonly mask?: Image;
  /** Further masks of the same kind, by the name of what they label. */
  readonly masks?: Readonly<Record<string, Image>>;
  readonly objects?: Objects;
}

/** An image whose pixels have classes. */
export interface SegmentationSample extends AnnotatedImage {
  readonly mask: Image;
}

/** An image whose objects have boxes and classes. */
export interface DetectionSample extends AnnotatedImage {
  readonly objects: Objects;
}

/** An image with several masks, and perhaps objects: what several tasks learn from at once. */
export interface MultiTaskSample extends AnnotatedImage {
  /** By task; none where there are only objects. */
  readonly masks: Readonly<Record<string, Image>>;
}

/** A video whose frames are decoded when they are asked for. */
export interface Video {
  /** How many frames there are, at least 1. */
  readonly frameCount: number;
  /** The frames of these numbers (from 0, rising or not, some perhaps twice), in this order, all of one size. */
  read(frames: readonly number[]): Promise<Image[]>;
}

/** Videos of one class each. */
export type VideoSource = LabeledSource<Video>;

/** What batches of all tasks have. Whoever receives one frees its tensors, which belong to no scope, with `dispose`. */
export interface AnyBatch {
  /** Its number within the epoch. */
  readonly index: number;
  /** Place of each sample in the data set. */
  readonly indices: readonly number[];
  /** Frees the batch's tensors. */
  readonly dispose: () => void;
}

/** A batch of images with a class each. */
export interface LoadedBatch extends AnyBatch {
  /** [B, C, H, W]; float32 if the transforms have `toFloat`. */
  readonly images: Tensor;
  /** int64 [B]. */
  readonly labels: Tensor;
}

/** A batch of images whose pixels have classes. Smaller images are padded at the right and at the bottom. */
export interface LoadedMasks extends AnyBatch {
  /** [B, 3, H, W], normalized if the transforms have `normalize`; 0 where padded. */
  readonly images: Tensor;
  /** int64 [B, H, W]; `IGNORE_INDEX` (255) does not count, and is where images are padded. */
  readonly masks: Tensor;
  /** [height, width] of each image without the padding. */
  readonly sizes: readonly (readonly [height: number, width: number])[];
}

/** What is annotated in one image: a `DetectionTarget` for a detector's losses, and `AnnotatedBoxes` for `DetectionMeter`. */
export interface LoadedObjects {
  /** float32 [n, 4] (x1, y1, x2, y2) in pixels of the image. */
  readonly boxes: Tensor;
  /** int64 [n], from the loader's `firstLabel` on. */
  readonly labels: Tensor;
  /** float32 [n]. */
  readonly areas: Tensor;
  /** bool [n]. */
  readonly crowds: Tensor;
}

/** A batch of images with objects. */
export interface LoadedBoxes extends AnyBatch {
  /** [3, H, W] each, of any sizes: what detectors read, who normalize, resize and pad by themselves. */
  readonly images: readonly Tensor[];
  /** One for each image. */
  readonly targets: readonly LoadedObjects[];
}

/** A batch of images with several masks and perhaps objects. */
export interface LoadedScenes extends AnyBatch {
  /** [3, H, W] each, of any sizes, float32 from 0 to 1 if not normalized. */
  readonly images: readonly Tensor[];
  /** By task: int64 [H, W] for each image; `IGNORE_INDEX` (255) does not count. */
  readonly masks: Readonly<Record<string, readonly Tensor[]>>;
  /** One for each image, empty lists where it has no objects; null where the data has none. */
  readonly targets: readonly LoadedObjects[] | null;
}

/** A batch of clips with a class each. */
export interface LoadedClips extends AnyBatch {
  /** [B V, 3, T, S, S] float32, normalized: the V views of a video one after the other, V = 1 in training. */
  readonly images: Tensor;
  /** int64 [B]. */
  readonly labels: Tensor;
  /** V; `averageViews(logits, views)` makes scores of videos. */
  readonly views: number;
}
