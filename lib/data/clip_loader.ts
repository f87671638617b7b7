/** Batches of clips out of videos. */
import { aten, fromTypedArray, type Tensor } from '../tensor/index.js';
import { BatchLoader, type BatchLoaderOptions, type Collated } from './batch_loader.js';
import {
  cutViews,
  testFrames,
  trainingClip,
  trainingFrames,
  type ClipCrop,
  type ClipViews,
  type FrameSampling,
} from './clips.js';
import type { Image } from './image.js';
import { labelsOf } from './loader.js';
import type { Random } from './random.js';
import type { LoadedClips, Video, VideoSource } from './samples.js';
import { distinctFrames } from './video.js';

/** One clip of each video, other frames and another crop in each epoch. */
export interface TrainingClips extends FrameSampling, ClipCrop {}

/** See `ClipLoader`. */
export interface ClipLoaderOptions extends BatchLoaderOptions<VideoSource> {
  /** With a `crop`: training clips, see `trainingClip`. Without: the views of a test, the same in every epoch, see `clipViews`. */
  readonly clips: TrainingClips | ClipViews;
}

interface Cut {
  /** The frames that the clips need, each once in a test. */
  readonly frames: readonly Image[];
  /** Which of these each view takes; none in training. */
  readonly views?: readonly (readonly number[])[];
  /** In the state from which the crop follows. */
  readonly random: Random;
}

/**
 * Batches of clips with a class each: `LoadedClips`. Only the frames that a clip takes are decoded; decoded frames are kept
 * until they fill `cacheBytes`. All frames of a clip are treated alike. See `BatchLoader` for order and seeds.
 *
 * @example
 * const clips = { frames: 8, size: 224, mean, std, crop: 'random_resized_crop', flip: 0.5 };
 * const loader = new ClipLoader({ dataset: openVideos('gestures').train, batchSize: 8, shuffle: true, clips });
 */
export class ClipLoader extends BatchLoader<Video, Cut, LoadedClips, VideoSource> {
  readonly #clips: TrainingClips | ClipViews;
  readonly #cache: FrameBudget;

  /** @throws RangeError for frames or views that cannot be taken */
  constructor(options: ClipLoaderOptions) {
    const { cacheBytes = 256 * 2 ** 20 } = options;
    // What the loader keeps are videos that are opened, which weigh nothing; frames count on their own.
    super({ ...options, cacheBytes: cacheBytes >= 0 ? Infinity : cacheBytes }, ['clips']);
    this.#clips = options.clips;
    this.#cache = { left: cacheBytes };
    const { temporalViews } = { temporalViews: 1, ...options.clips };
    // Any length will do: wrong numbers are to be found now and not in the first epoch.
    testFrames(1, options.clips, temporalViews);
  }

  protected bytesOf(): number {
    return 0;
  }

  protected prepare(video: Video): Video {
    return cached(video, this.#cache);
  }

  protected async finish(video: Video, random: Random): Promise<Cut> {
    const clips = this.#clips;
    if ('crop' in clips) {
      const frames = await this.#read(video, trainingFrames(video.frameCount, clips, random));
      return { frames, random };
    }
    const taken = testFrames(video.frameCount, clips, clips.temporalViews);
    const { distinct, places } = distinctFrames(taken.flat());
    const views = taken.map((_, i) => places.slice(i * clips.frames, (i + 1) * clips.frames));
    return { frames: await this.#read(video, distinct), views, random };
  }

  async #read(video: Video, numbers: readonly number[]): Promise<Image[]> {
    const frames = await video.read(numbers);
    this.noteBytes(frames.reduce((sum, { data }) => sum + data.byteLength, 0));
    return frames;
  }

  protected collate(samples: readonly Cut[], indices: readonly number[]): Collated<LoadedClips> {
    const clips = samples.map((cut) => this.#clip(cut));
    const views = clips[0]?.shape[0] ?? 1;
    const batch = { images: aten.cat(clips), labels: labelsOf(this.dataset, indices).to(this.device) };
    return { fields: { ...batch, views }, tensors: Object.values(batch) };
  }

  /** [V, 3, T, S, S]. */
  #clip({ frames, views = [], random }: Cut): Tensor {
    const stacked = stackFrames(frames).to(this.device);
    const clips = this.#clips;
    return 'crop' in clips ? trainingClip(stacked, clips, random).unsqueeze(0) : cutViews(stacked, views, clips);
  }
}

/** Frames of one size as bytes [T, H, W, C]. */
export function stackFrames(frames: readonly Image[]): Tensor {
  return aten.stack(frames.map(({ data, height, width, channels }) => fromTypedArray(data, [height, width, channels])));
}

/** Bytes that frames may still fill. */
interface FrameBudget {
  left: number;
}

/** A video that keeps the frames it has read, as far as the budget goes. */
function cached(video: Video, budget: FrameBudget): Video {
  const kept = new Map<number, Image>();
  return {
    frameCount: video.frameCount,
    async read(frames) {
      const { distinct } = distinctFrames(frames.filter((frame) => !kept.has(frame)));
      const read = new Map<number, Image>();
      const images = distinct.length > 0 ? await video.read(distinct) : [];
      images.forEach((image, i) => {
        const frame = distinct[i] ?? 0;
        read.set(frame, image);
        if (kept.has(frame) || image.data.byteLength > budget.left) return;
        kept.set(frame, image);
        budget.left -= image.data.byteLength;
      });
      return frames.map((frame) => kept.get(frame) ?? (read.get(frame) as Image));
    },
  };
}
