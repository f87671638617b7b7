/**
 * Which frames of a video a clip takes, and how frames become views and training clips: ST-Adapter's rules (Pan et al.,
 * NeurIPS 2022, arXiv 2206.13559; linziyi96/st-adapter, commit b914b38), which are those of most video classifiers.
 */
import { aten, scope, tensor, type Tensor } from '../tensor/index.js';
import { roundHalfEven } from './geometry.js';
import { randomResizedCropBox } from './boxes.js';
import { randAugment, type RandAugmentOptions } from './rand_augment.js';
import type { Random } from './random.js';

/** How frames are chosen. */
export interface FrameSampling {
  /** Frames per clip. */
  readonly frames: number;
  /** Distance of the frames taken; 0 (default) takes one out of each of as many equal segments. */
  readonly stride?: number;
}

/** The first and last frame of each of `frames` equal segments of a video, which share their ends. */
function segments(length: number, frames: number): [first: number, last: number][] {
  const each = (length - 1) / frames;
  return Array.from({ length: frames }, (_, i) => [roundHalfEven(each * i), roundHalfEven(each * (i + 1))]);
}

/** @throws RangeError for an empty video or sizes that are no whole numbers */
function checkSampling(length: number, { frames, stride = 0 }: FrameSampling, views = 1): void {
  if (!Number.isInteger(length) || length < 1) {
    throw new RangeError(`a video must have at least one frame, this one has ${String(length)}`);
  }
  const wanted = { frames, stride: stride + 1, views };
  for (const [name, value] of Object.entries(wanted)) {
    if (!Number.isInteger(value) || value < 1) {
      const given = name === 'stride' ? stride : value;
      throw new RangeError(`clips: ${name} must be a whole number from ${name === 'stride' ? 0 : 1} on, got ${given}`);
    }
  }
}

/**
 * Indices of the frames of one training clip from a video of `length` frames: out of each segment a frame at random, or
 * every stride-th from a random start. Of a video that is too short for that, every stride-th from the first frame, the
 * last one taken being repeated.
 */
export function trainingFrames(length: number, sampling: FrameSampling, random: Random): number[] {
  checkSampling(length, sampling);
  const { frames, stride = 0 } = sampling;
  if (stride === 0) return segments(length, frames).map(([first, last]) => first + random.integer(last - first + 1));
  const span = stride * (frames - 1) + 1;
  const start = span < length ? random.integer(length - span + 1) : 0;
  const last = start + stride * Math.floor((length - 1 - start) / stride);
  return Array.from({ length: frames }, (_, i) => Math.min(start + i * stride, last));
}

/**
 * Indices of the frames of `views` test clips, [views][frames]: the middles of the segments (one view only), or every
 * stride-th frame from starts spread over the video. The last frame of a video that is too short is repeated.
 *
 * @throws RangeError for an empty video, or several views of segments
 */
export function testFrames(length: number, sampling: FrameSampling, views = 1): number[][] {
  checkSampling(length, sampling, views);
  const { frames, stride = 0 } = sampling;
  if (stride === 0) {
    if (views !== 1) throw new RangeError(`clips: frames of segments make one view in time, and ${views} are wanted`);
    return [segments(length, frames).map(([first, last]) => Math.floor((first + last) / 2))];
  }
  const slack = Math.max(0, length - ((frames - 1) * stride + 1));
  return Array.from({ length: views }, (_, view) => {
    const start = views === 1 ? Math.floor(slack / 2) : roundHalfEven((slack / (views - 1)) * view);
    return Array.from({ length: frames }, (_, i) => Math.min(start + i * stride, length - 1));
  });
}

/** How pixels become what the network reads. */
export interface ClipPreparation {
  /** Side of the square frames that the network reads. */
  readonly size: number;
  /** Per channel, for pixels in 0..1. */
  readonly mean: readonly number[];
  readonly std: readonly number[];
}

/** How a video is seen in a test. */
export interface ClipViews extends FrameSampling, ClipPreparation {
  /** Clips at different times. Default 1. */
  readonly temporalViews?: number;
  /** 1 (default): the middle; 3: both ends and the middle of the longer side. */
  readonly spatialViews?: 1 | 3;
}

/** Frames of bytes [T, H, W, 3] to normalized floats [3, T, H, W]. */
function normalized(frames: Tensor, { mean, std }: ClipPreparation): Tensor {
  const [, , , channels = 0] = frames.shape;
  if (frames.ndim !== 4 || frames.dtype !== 'uint8' || channels !== mean.length || channels !== std.length) {
    throw new TypeError(
      `clips: expected bytes [frames, height, width, ${mean.length}], got ${frames.dtype} [${frames.shape.join(', ')}]`,
    );
  }
  const perChannel = (values: readonly number[]): Tensor =>
    tensor([...values], { dtype: 'float32', device: frames.device }).view([-1, 1, 1, 1]);
  return frames.permute([3, 0, 1, 2]).to('float32').div(255).sub(perChannel(mean)).div(perChannel(std));
}

/** Resamples [3, T, H, W] by cubic interpolation (coefficient -0.75, no low-pass filter). */
function resized(clip: Tensor, height: number, width: number): Tensor {
  return aten.upsampleBicubic2d(clip, [height, width], false);
}

/** [height, width] for a shorter side of `size`; the longer one is rounded down. */
function withShortSide(height: number, width: number, size: number): [height: number, width: number] {
  return height < width ? [size, Math.floor((width * size) / height)] : [Math.floor((height * size) / width), size];
}

/** Offsets of `count` squares along a side with `margin` to spare. */
function offsets(margin: number, count: 1 | 3): number[] {
  const middle = Math.floor(margin / 2);
  return count === 1 ? [middle] : [0, middle, margin];
}

/**
 * The views of a decoded video that a test averages over: [V, 3, T, S, S] from bytes [frames, H, W, 3], views at one
 * place side by side.
 *
 * @throws RangeError for an empty video; TypeError for anything but bytes of this shape
 */
export function clipViews(video: Tensor, options: ClipViews): Tensor {
  const [length = 0] = video.shape;
  return cutViews(video, testFrames(length, options, options.temporalViews), options);
}

/**
 * As `clipViews`, for frames [n, H, W, 3] out of a video of which `taken` says which ones each view takes, by their places
 * among the n.
 *
 * @throws TypeError for anything but bytes of this shape
 */
export function cutViews(video: Tensor, taken: readonly (readonly number[])[], options: ClipViews): Tensor {
  const { size, spatialViews = 1 } = options;
  const [, height = 0, width = 0] = video.shape;
  return scope(() => {
    const clip = resized(normalized(video, options), ...withShortSide(height, width, size));
    const [, , rows = 0, columns = 0] = clip.shape;
    const isWide = columns > rows;
    const along = offsets(Math.max(rows, columns) - size, spatialViews);
    const squares = along.map((offset) => clip.narrow(isWide ? 3 : 2, offset, size));
    const inTime = taken.map((frames) => tensor([...frames], { dtype: 'int64', device: video.device }));
    return aten.stack(squares.flatMap((square) => inTime.map((frames) => square.indexSelect(1, frames))));
  });
}

/** How a training clip is cut out of its frames; all frames alike. */
export interface ClipCrop extends ClipPreparation {
  /**
   * `random_resized_crop`: a box of 8 to 100 % of the area, of 3/4 to 4/3; `short_side_jitter`: the shorter side made 1 to
   * 1.15 times the size, and a square out of that.
   */
  readonly crop: 'random_resized_crop' | 'short_side_jitter';
  /** Mirrors left and right with this probability. Default 0. */
  readonly flip?: number;
  /** Random changes of color and geometry before all else. Default: none. */
  readonly augment?: RandAugmentOptions;
}

const LARGEST_JITTER = 1.15;

/** A training clip [3, T, S, S] from the frames [T, H, W, 3] that were taken. @throws TypeError for anything but bytes */
export function trainingClip(frames: Tensor, options: ClipCrop, random: Random): Tensor {
  const { size, crop, flip = 0, augment } = options;
  return scope(() => {
    const clip = normalized(augment ? randAugment(frames, augment, random) : frames, options);
    const square = crop === 'random_resized_crop' ? boxed(clip, size, random) : jittered(clip, size, random);
    return flip > 0 && random.chance(flip) ? square.flip([3]) : square;
  });
}

function boxed(clip: Tensor, size: number, random: Random): Tensor {
  const [, , height = 0, width = 0] = clip.shape;
  const box = randomResizedCropBox({ height, width }, { scale: [0.08, 1], ratio: [3 / 4, 4 / 3] }, random);
  return resized(clip.narrow(2, box.top, box.height).narrow(3, box.left, box.width), size, size);
}

function jittered(clip: Tensor, size: number, random: Random): Tensor {
  const [, , height = 0, width = 0] = clip.shape;
  const short = roundHalfEven(random.uniform(size, LARGEST_JITTER * size));
  const larger = resized(clip, ...withShortSide(height, width, short));
  const [, , rows = 0, columns = 0] = larger.shape;
  // As in the public code, the last place is never taken, unless it is the only one.
  const place = (side: number): number => random.integer(Math.max(1, side - size));
  const top = place(rows);
  return larger.narrow(2, top, size).narrow(3, place(columns), size);
}
