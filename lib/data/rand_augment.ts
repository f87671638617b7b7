/**
 * RandAugment of clips, all frames of one alike. Cubuk et al., CVPRW 2020, arXiv 1909.13719; the operations and their
 * magnitudes are timm's with increasing severity (`rand-m7-n4-mstd0.5-inc1`), which ST-Adapter uses for SSv2.
 */
import { arange, aten, ones, scope, tensor, type Tensor, zeros } from '../tensor/index.js';
import type { Random } from './random.js';

/** How much is changed, and how often. */
export interface RandAugmentOptions {
  /** Mean of the magnitude, of 10. Default 7. */
  readonly magnitude?: number;
  /** Its deviation. Default 0.5. */
  readonly deviation?: number;
  /** Operations drawn, with replacement. Default 4. */
  readonly operations?: number;
  /** Probability with which a drawn operation is carried out. Default 0.5. */
  readonly probability?: number;
}

/** Value of pixels that come from outside of the frame. */
const FILL = 128;

/** Frames [T, 3, H, W] of whole numbers 0-255 (float32) at a level 0-1; the result may lie between and beyond them. */
type Operation = (frames: Tensor, level: number, sign: 1 | -1) => Tensor;

// ---- color ----------------------------------------------------------------------------------------------------------

/** ITU-R 601. */
function gray(frames: Tensor): Tensor {
  const weights = tensor([0.299, 0.587, 0.114], { dtype: frames.dtype, device: frames.device });
  return frames.mul(weights.view([1, 3, 1, 1])).sum([1], true);
}

/** Pillow's SMOOTH filter; the outermost pixels stay. */
function smooth(frames: Tensor): Tensor {
  const [, , height = 0, width = 0] = frames.shape;
  if (height < 3 || width < 3) return frames;
  const kernel = ones([3, 1, 3, 3], { dtype: frames.dtype, device: frames.device });
  kernel.narrow(2, 1, 1).narrow(3, 1, 1).mul_(5);
  const result = frames.clone();
  const inner = aten.conv2d(frames, kernel.div_(13), null, [1, 1], [0, 0], [1, 1], 3);
  result
    .narrow(2, 1, height - 2)
    .narrow(3, 1, width - 2)
    .copy_(inner);
  return result;
}

/** Frames drawn toward a plainer version of themselves, or away from it. */
const enhance =
  (plainer: (frames: Tensor) => Tensor): Operation =>
  (frames, level, sign) => {
    const other = plainer(frames);
    return frames
      .sub(other)
      .mul(1 + sign * 0.9 * level)
      .add(other);
  };

const autoContrast: Operation = (frames) => {
  const low = frames.amin([2, 3], true);
  const range = frames.amax([2, 3], true).sub(low);
  return aten.where(range.gt(0), frames.sub(low).mul(255).div(range.clampMin(1)), frames);
};

/** Spreads the values of each channel of each frame evenly, by the whole-number sums of Pillow. */
const equalize: Operation = (frames) => {
  const [count = 0, channels = 0, height = 0, width = 0] = frames.shape;
  const values = frames.to('int64').reshape([count * channels, height * width]);
  const histogram = zeros([count * channels, 256], { dtype: 'int64', device: frames.device });
  histogram.scatterAdd_(1, values, aten.onesLike(values));
  const ofLargest = histogram.gather(1, values.amax([1], true));
  const floor = { roundingMode: 'floor' } as const;
  const step = aten.div(ofLargest.neg().add(height * width), 255, floor);
  const below = histogram.cumsum(1).sub(histogram);
  const table = aten.div(below.add(aten.div(step, 2, floor)), step.clampMin(1), floor).clamp(0, 255);
  return aten.where(step.gt(0), table.gather(1, values), values).reshape(frames.shape).to(frames.dtype);
};

const posterize: Operation = (frames, level) => {
  const unit = 2 ** (8 - (4 - Math.trunc(4 * level)));
  return frames.div(unit).floor().mul(unit);
};

const invert = (frames: Tensor): Tensor => frames.neg().add(255);

const solarize: Operation = (frames, level) =>
  aten.where(frames.ge(256 - Math.trunc(256 * level)), invert(frames), frames);

const solarizeAdd: Operation = (frames, level) =>
  aten.where(frames.lt(128), frames.add(Math.trunc(110 * level)), frames);

// ---- geometry -------------------------------------------------------------------------------------------------------

/** x' = a x + b y + c, y' = d x + e y + f: where a place of the result comes from, in pixels from the upper left corner. */
type Affine = readonly [a: number, b: number, c: number, d: number, e: number, f: number];

function resample(frames: Tensor, [a, b, c, d, e, f]: Affine): Tensor {
  const [count = 0, , height = 0, width = 0] = frames.shape;
  const options = { dtype: frames.dtype, device: frames.device };
  const x = arange(width, options).add(0.5).view([1, -1]);
  const y = arange(height, options).add(0.5).view([-1, 1]);
  // From -1 to 1 over the image, as gridSampler wants it.
  const place = (byX: number, byY: number, shift: number, size: number): Tensor =>
    x
      .mul(byX)
      .add(y.mul(byY))
      .add(shift)
      .mul(2 / size)
      .sub(1);
  const grid = aten
    .stack([place(a, b, c, width), place(d, e, f, height)], 2)
    .unsqueeze(0)
    .expand([count, -1, -1, -1]);
  const [cubic, zerosOutside] = [2, 0];
  return aten.gridSampler(frames.sub(FILL), grid, cubic, zerosOutside, false).add(FILL);
}

const rotate: Operation = (frames, level, sign) => {
  const [, , height = 0, width = 0] = frames.shape;
  const angle = (sign * 30 * level * Math.PI) / 180;
  const [cos, sin, x, y] = [Math.cos(angle), Math.sin(angle), width / 2, height / 2];
  return resample(frames, [cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y]);
};

const shearX: Operation = (frames, level, sign) => resample(frames, [1, sign * 0.3 * level, 0, 0, 1, 0]);
const shearY: Operation = (frames, level, sign) => resample(frames, [1, 0, 0, sign * 0.3 * level, 1, 0]);
const translateX: Operation = (frames, level, sign) =>
  resample(frames, [1, 0, sign * 0.45 * level * (frames.shape[3] ?? 0), 0, 1, 0]);
const translateY: Operation = (frames, level, sign) =>
  resample(frames, [1, 0, 0, 0, 1, sign * 0.45 * level * (frames.shape[2] ?? 0)]);

/** The operations by timm's names. */
export const randAugmentOperations: Readonly<Record<string, Operation>> = {
  AutoContrast: autoContrast,
  Equalize: equalize,
  Invert: invert,
  Rotate: rotate,
  Posterize: posterize,
  Solarize: solarize,
  SolarizeAdd: solarizeAdd,
  Color: enhance(gray),
  Contrast: enhance((frames) => gray(frames).mean([2, 3], true).round()),
  Brightness: enhance((frames) => aten.zerosLike(frames)),
  Sharpness: enhance(smooth),
  ShearX: shearX,
  ShearY: shearY,
  TranslateXRel: translateX,
  TranslateYRel: translateY,
};

/** A draw from N(mean, deviation), by the method of Box and Muller. */
function normal(random: Random, mean: number, deviation: number): number {
  const radius = Math.sqrt(-2 * Math.log(1 - random.uniform()));
  return mean + deviation * radius * Math.cos(2 * Math.PI * random.uniform());
}

/**
 * Frames of bytes [T, H, W, 3] with some operations drawn for all of them: same shape, bytes.
 *
 * @throws TypeError for anything but bytes of three channels
 */
export function randAugment(frames: Tensor, options: RandAugmentOptions, random: Random): Tensor {
  const { magnitude = 7, deviation = 0.5, operations = 4, probability = 0.5 } = options;
  if (frames.ndim !== 4 || frames.dtype !== 'uint8' || frames.shape[3] !== 3) {
    throw new TypeError(
      `randAugment: expected bytes [frames, height, width, 3], got ${frames.dtype} [${frames.shape.join(', ')}]`,
    );
  }
  const all = Object.values(randAugmentOperations);
  return scope(() => {
    let clip = frames.permute([0, 3, 1, 2]).to('float32');
    for (let n = 0; n < operations; n++) {
      // All draws are made, so that what is skipped does not change what follows.
      const operation = all[random.integer(all.length)] as Operation;
      const isSkipped = !random.chance(probability);
      const level = Math.min(10, Math.max(0, normal(random, magnitude, deviation))) / 10;
      const sign = random.chance(0.5) ? -1 : 1;
      if (!isSkipped) clip = operation(clip, level, sign).round().clamp(0, 255);
    }
    return clip.permute([0, 2, 3, 1]).to('uint8').contiguous();
  });
}
