/** Videos in folders: one sub-folder per class, with a folder of frames or a file for each video. */
import path from 'node:path';
import { checkIndex, splitDataset } from './dataset.js';
import { decodeImage, hasImageSuffix } from './decode.js';
import { countFrames, decodeFrames, hasVideoSuffix, videoSuffixes } from './ffmpeg.js';
import {
  completeSplits,
  findParts,
  listFolder,
  mapParts,
  quoted,
  readClasses,
  stat,
  type SplitsOf,
  type SplitsOptions,
} from './folder.js';
import type { Image } from './image.js';
import { Defects, SampleError, type LabeledSource, type Skipped, type Video, type VideoSource } from './samples.js';

/** Frames in the order of the numbers in their names: frame_2 comes before frame_10. */
const byNumber = new Intl.Collator('en', { numeric: true });

/** The frames in a folder, in order. */
function framesIn(folder: string): string[] {
  return listFolder(folder)
    .files.filter(hasImageSuffix)
    .sort(byNumber.compare)
    .map((name) => path.join(folder, name));
}

/** The places of `frames` in a list without repetitions, and that list, rising. */
export function distinctFrames(frames: readonly number[]): { distinct: number[]; places: number[] } {
  const distinct = [...new Set(frames)].sort((a, b) => a - b);
  const place = new Map(distinct.map((frame, i) => [frame, i]));
  return { distinct, places: frames.map((frame) => place.get(frame) ?? 0) };
}

/** A video that decodes each frame asked for once. */
function videoOf(target: string, frameCount: number, decode: (distinct: readonly number[]) => Promise<Image[]>): Video {
  return {
    frameCount,
    async read(frames) {
      for (const frame of frames) checkIndex(frame, frameCount);
      const { distinct, places } = distinctFrames(frames);
      const images = await decode(distinct);
      const [first] = images;
      for (const [i, image] of images.entries()) {
        if (first && (image.width !== first.width || image.height !== first.height)) {
          throw new SampleError(
            target,
            `the frames of the video ${target} differ in size: frame ${String(distinct[0])} is ${sides(first)}, frame ` +
              `${String(distinct[i])} is ${sides(image)} (height x width)`,
          );
        }
      }
      return places.map((place) => images[place] as Image);
    },
  };
}

function sides({ height, width }: Image): string {
  return `${String(height)}x${String(width)}`;
}

/**
 * Opens one video: a folder of frames (images, in the order of the numbers in their names), or a file, which ffmpeg decodes.
 *
 * @throws SampleError for a folder without frames or a file that cannot be decoded; RangeError if there is nothing of that
 *   name; Error for a file where ffmpeg is not installed
 */
export async function openVideo(target: string): Promise<Video> {
  if (!stat(target).isDirectory()) {
    return videoOf(target, await countFrames(target), (distinct) => decodeFrames(target, distinct));
  }
  const files = framesIn(target);
  if (files.length === 0) throw new SampleError(target, emptyClip(target));
  return videoOf(target, files.length, (distinct) =>
    Promise.all(distinct.map((frame) => decodeImage(files[frame] as string))),
  );
}

function emptyClip(folder: string): string {
  return `the video ${folder} is empty: the folder has no frames (images such as frame_000.jpg)`;
}

/** What `VideoFolder` can be told. */
export interface VideoFolderOptions {
  /** The classes and their order; default: the sub-folders, sorted by name. A sub-folder that is not among them is an error. */
  readonly classNames?: readonly string[];
  /** Leave out videos without frames and count them (`skipped`). Default false: an error. */
  readonly skipBroken?: boolean;
}

/**
 * The videos of a folder that has one sub-folder per class. A video is a folder of frames, or a file. Classes are numbered in
 * the order of their sorted names, videos are sorted by name within a class.
 *
 * @example const dataset = new VideoFolder('gestures');   // gestures/wave/01/frame_000.jpg, gestures/nod/7.mp4, ...
 */
export class VideoFolder implements LabeledSource<Video> {
  readonly length: number;
  readonly classNames: readonly string[];
  readonly labels: Uint32Array;
  /** The path of each video. */
  readonly paths: readonly string[];
  readonly #defects: Defects;
  /** Those that were opened; files are counted through once. */
  readonly #opened = new Map<number, Promise<Video>>();

  /**
   * @throws RangeError if there are no classes, a class has no videos or is not among `classNames`; SampleError for a folder
   *   without frames
   */
  constructor(root: string, o: VideoFolderOptions = {}) {
    const { classNames, present } = readClasses(root, o.classNames, { opener: 'openVideos', kind: 'videos' });
    this.#defects = new Defects(o.skipBroken);
    this.classNames = classNames;
    const paths: string[] = [];
    const labels: number[] = [];
    for (const { label, folder } of present) {
      const videos = this.#videosIn(folder);
      paths.push(...videos);
      labels.push(...videos.map(() => label));
    }
    if (paths.length === 0) throw new RangeError(`${root} has no videos`);
    this.paths = paths;
    this.labels = Uint32Array.from(labels);
    this.length = paths.length;
  }

  #videosIn(folder: string): string[] {
    const { folders, files } = listFolder(folder);
    const clips = folders.map((name) => path.join(folder, name));
    const good = clips.filter((clip) => {
      const isEmpty = framesIn(clip).length === 0;
      if (isEmpty) this.#defects.report(clip, emptyClip(clip));
      return !isEmpty;
    });
    const videos = files.filter(hasVideoSuffix).map((name) => path.join(folder, name));
    if (clips.length + videos.length === 0) {
      const images = files.some(hasImageSuffix) ? ' It has images: put the frames of each video into a folder.' : '';
      throw new RangeError(
        `the class folder ${folder} has no videos: expected folders of frames, or files (${videoSuffixes.join(', ')}).${images}`,
      );
    }
    return [...good, ...videos].sort();
  }

  /** Videos that were left out because they are empty. */
  get skipped(): readonly Skipped[] {
    return this.#defects.skipped;
  }

  load(index: number): Promise<Video> {
    const target = this.describe(index);
    const opened = this.#opened.get(index) ?? openVideo(target);
    this.#opened.set(index, opened);
    return opened;
  }

  /** The path of the video. */
  describe(index: number): string {
    checkIndex(index, this.length);
    return this.paths[index] as string;
  }
}

/** See `openVideos`. */
export interface OpenVideosOptions extends SplitsOptions {
  /** Leave out videos without frames. Default false: an error. */
  readonly skipBroken?: boolean;
}

/**
 * Opens videos for training, as `openImageFolder` opens images: the parts `train`, `val` and perhaps `test`, each with one
 * sub-folder per class, or the classes at once, of each of which a share is then held back for validation.
 */
export function openVideos(root: string, o: OpenVideosOptions = {}): SplitsOf<VideoSource> {
  const { valFraction = 0.2, seed = 0, ...options } = o;
  const parts = findParts(root) ?? { train: root };
  const whole = new VideoFolder(parts.train, options);
  const { classNames } = whole;
  const open = (folder: string, part: string): VideoSource =>
    part === 'train' ? whole : new VideoFolder(folder, { ...options, classNames });
  const splits = completeSplits(mapParts(parts, open), (all) => splitDataset(all, { fraction: valFraction, seed }));
  if (splits.val.length === 0) {
    throw new RangeError(`${parts.train} has too few videos to hold some back for validation (${quoted(classNames)})`);
  }
  return splits;
}
