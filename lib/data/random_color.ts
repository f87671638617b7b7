/** The random changes of color. */
import {
  addBrightness,
  adjustBrightness,
  adjustContrast,
  adjustHue,
  adjustSaturation,
  scaleSaturation,
} from './color.js';
import type { Image } from './image.js';
import type { Random } from './random.js';
import type { TransformOf } from './transforms.js';

const adjustments = [
  { name: 'brightness', adjust: adjustBrightness, neutral: 1 },
  { name: 'contrast', adjust: adjustContrast, neutral: 1 },
  { name: 'saturation', adjust: adjustSaturation, neutral: 1 },
  { name: 'hue', adjust: adjustHue, neutral: 0 },
] as const;

/** Carries out `colorJitter`. */
export function jitterColors(image: Image, step: TransformOf<'colorJitter'>, random: Random): Image {
  // All draws are made, and in a fixed order, so that switching one adjustment off leaves the others as they were.
  const order = random.permutation(adjustments.length);
  const factors = adjustments.map(({ name, neutral }) => random.uniform(...factorRange(step[name], neutral)));
  let current = image;
  for (const i of order) {
    const adjustment = adjustments[i];
    const factor = factors[i];
    if (adjustment && factor !== undefined && factor !== adjustment.neutral)
      current = adjustment.adjust(current, factor);
  }
  return current;
}

function factorRange(strength: number | readonly [number, number], neutral: number): readonly [number, number] {
  if (typeof strength !== 'number') return strength;
  return neutral === 0 ? [-strength, strength] : [Math.max(0, neutral - strength), neutral + strength];
}

/** Carries out `photometricDistortion`. */
export function distortColors(image: Image, step: TransformOf<'photometricDistortion'>, random: Random): Image {
  // All draws are made, and in a fixed order, so that one change leaves the others as they were.
  const isContrastFirst = random.chance(0.5);
  const drawn = (range: readonly [number, number], neutral: number): number => {
    const value = random.uniform(...range);
    return random.chance(0.5) ? value : neutral;
  };
  const amount = drawn([-step.brightness, step.brightness], 0);
  const contrast = drawn(step.contrast, 1);
  const saturation = drawn(step.saturation, 1);
  const hue = drawn([-step.hue, step.hue], 0);
  const withContrast = (current: Image): Image => (contrast === 1 ? current : adjustBrightness(current, contrast));
  let current = amount === 0 ? image : addBrightness(image, amount);
  if (isContrastFirst) current = withContrast(current);
  if (saturation !== 1) current = scaleSaturation(current, saturation);
  if (hue !== 0) current = adjustHue(current, hue / 360);
  return isContrastFirst ? current : withContrast(current);
}
