/**
 * The steps from a decoded image to a network's input, as data: each is a small JSON value, so that a preprocessing can
 * be stored in an adapter folder and rebuilt exactly. `Pipeline` (pipeline.ts) carries them out.
 */
import { z } from 'zod';

const length = z.int().positive();
const interpolation = z.enum(['bilinear', 'bicubic']).default('bilinear');
const probability = z.number().min(0).max(1);
/** One length for a square, or [height, width]. */
const size = z.union([length, z.tuple([length, length])]);
/** One number for all channels, or one per channel. */
const fill = z.union([z.number(), z.array(z.number()).min(1)]).default(0);
const perChannel = z.array(z.number()).min(1);

const ordered = (low: number, high: number) =>
  z
    .tuple([z.number().min(low).max(high), z.number().min(low).max(high)])
    .refine(([from, to]) => from <= to, { error: 'expected [least, most]' });
/** How far a factor may stray from 1, or [least, most]. */
const strength = z.union([z.number().nonnegative(), ordered(0, Infinity)]).default(0);

const schemas = {
  resize: z
    .strictObject({ kind: z.literal('resize'), size, interpolation, maxSize: length.optional() })
    .refine(({ size, maxSize }) => maxSize === undefined || typeof size === 'number', {
      error: 'maxSize goes with one size, that of the shorter side',
    }),
  randomShortSide: z.strictObject({
    kind: z.literal('randomShortSide'),
    sizes: z.array(length).min(1),
    maxSize: length.optional(),
    interpolation,
  }),
  randomScale: z.strictObject({
    kind: z.literal('randomScale'),
    size: z.tuple([length, length]),
    ratio: ordered(Number.MIN_VALUE, Infinity).default([0.5, 2]),
    interpolation,
  }),
  pad: z.strictObject({ kind: z.literal('pad'), size, fill }),
  centerCrop: z.strictObject({ kind: z.literal('centerCrop'), size }),
  randomCrop: z.strictObject({
    kind: z.literal('randomCrop'),
    size,
    padding: z.int().nonnegative().default(0),
    fill,
  }),
  randomMaskCrop: z.strictObject({
    kind: z.literal('randomMaskCrop'),
    size,
    maxClassRatio: z.number().positive().max(1).default(0.75),
  }),
  randomResizedCrop: z.strictObject({
    kind: z.literal('randomResizedCrop'),
    size,
    scale: ordered(0, Infinity).default([0.08, 1]),
    ratio: ordered(Number.MIN_VALUE, Infinity).default([3 / 4, 4 / 3]),
    interpolation,
  }),
  horizontalFlip: z.strictObject({ kind: z.literal('horizontalFlip'), probability: probability.default(0.5) }),
  verticalFlip: z.strictObject({ kind: z.literal('verticalFlip'), probability: probability.default(0.5) }),
  colorJitter: z.strictObject({
    kind: z.literal('colorJitter'),
    brightness: strength,
    contrast: strength,
    saturation: strength,
    hue: z.union([z.number().min(0).max(0.5), ordered(-0.5, 0.5)]).default(0),
  }),
  photometricDistortion: z.strictObject({
    kind: z.literal('photometricDistortion'),
    brightness: z.number().min(0).max(255).default(32),
    contrast: ordered(0, Infinity).default([0.5, 1.5]),
    saturation: ordered(0, Infinity).default([0.5, 1.5]),
    hue: z.number().min(0).max(180).default(36),
  }),
  toFloat: z.strictObject({ kind: z.literal('toFloat') }),
  normalize: z
    .strictObject({
      kind: z.literal('normalize'),
      mean: perChannel,
      std: perChannel.refine((v) => v.every((s) => s > 0), { error: 'expected positive numbers' }),
    })
    .refine(({ mean, std }) => mean.length === std.length, { error: 'mean and std must have the same length' }),
} as const;

type Schemas = typeof schemas;
/** The name of a transform. */
export type TransformKind = keyof Schemas;
/** One step, all defaults filled in: a tagged union over `kind`. */
export type Transform = { [K in TransformKind]: z.output<Schemas[K]> }[TransformKind];
/** One step as written by hand: what has a default may be left out. */
export type TransformInput = { [K in TransformKind]: z.input<Schemas[K]> }[TransformKind];
/** The step of one kind. */
export type TransformOf<K extends TransformKind> = z.output<Schemas[K]>;

type Options<K extends TransformKind, Named extends string = never> = Omit<z.input<Schemas[K]>, 'kind' | Named>;

/** Whether a step draws random numbers. */
export function isRandom(step: Transform): boolean {
  return /^(random|horizontalFlip|verticalFlip|colorJitter|photometric)/.test(step.kind);
}

/** Whether a step is carried out on the whole batch at once, after all others. */
export function isBatchStep(step: Transform): step is TransformOf<'toFloat'> | TransformOf<'normalize'> {
  return step.kind === 'toFloat' || step.kind === 'normalize';
}

/**
 * Checks a list of steps, from JSON or by hand, and fills in the defaults; the value given is not changed. `toFloat` and
 * `normalize` come last, in this order, since they are carried out per batch.
 *
 * @throws TypeError naming the step and the key that is unknown or wrong
 */
export function parseTransforms(value: unknown): Transform[] {
  // No list of steps is so long, and the holes of a longer one would be visited one by one.
  if (!Array.isArray(value) || value.length > 1000)
    throw new TypeError('transforms: expected a list of steps such as { kind: "resize", size: 32 }');
  const steps = value.flat(Infinity).map((step: unknown, i) => parseStep(step, i));
  const firstBatchStep = steps.findIndex(isBatchStep);
  if (firstBatchStep >= 0) {
    const kinds = steps
      .slice(firstBatchStep)
      .map((step) => step.kind)
      .join(', ');
    if (kinds !== 'toFloat' && kinds !== 'toFloat, normalize') {
      throw new TypeError(
        `transforms: toFloat and then, if at all, normalize must come last and once; the list ends with ${kinds}`,
      );
    }
  }
  return steps;
}

function parseStep(step: unknown, i: number): Transform {
  const kind = typeof step === 'object' && step !== null && 'kind' in step ? step.kind : undefined;
  if (typeof kind !== 'string' || !Object.hasOwn(schemas, kind)) {
    const known = Object.keys(schemas).join(', ');
    throw new TypeError(
      `transforms[${String(i)}]: unknown kind ${JSON.stringify(kind) ?? 'undefined'}; expected one of ${known}`,
    );
  }
  const schema = schemas[kind as TransformKind];
  const result = schema.safeParse(step);
  if (result.success) return result.data;
  const known = Object.keys(schema.shape).filter((key) => key !== 'kind');
  const problems = result.error.issues.map(
    (issue) => `${issue.path.join('.')}${issue.path.length ? ': ' : ''}${issue.message}`,
  );
  const options = known.length ? `; its options: ${known.join(', ')}` : '; it has no options';
  throw new TypeError(`transforms[${String(i)}] (${kind}): ${problems.join('; ')}${options}`);
}

function make<K extends TransformKind>(kind: K, options: object): TransformOf<K> {
  return parseStep({ ...options, kind }, 0) as TransformOf<K>;
}

/**
 * Resizes: a number is the new length of the shorter side, [height, width] the exact new size. Pillow's antialiased
 * `bilinear` (default) or `bicubic`. With `maxSize`, the longer side is at most that, and the shorter one then shorter
 * than asked for.
 */
export function resize(
  size: Options<'resize'>['size'],
  options: Options<'resize', 'size'> = {},
): TransformOf<'resize'> {
  return make('resize', { ...options, size });
}

/** Resizes the shorter side to one of `sizes`, drawn at random, the longer side to at most `maxSize` (default: any). */
export function randomShortSide(
  sizes: readonly number[],
  options: Options<'randomShortSide', 'sizes'> = {},
): TransformOf<'randomShortSide'> {
  return make('randomShortSide', { ...options, sizes: [...sizes] });
}

/**
 * Resizes to a random scale: as large as fits into `size` ([shorter, longer] side) times a random number from `ratio`
 * (default [0.5, 2]). As MMSegmentation's `RandomResize` with `keep_ratio`.
 */
export function randomScale(
  size: readonly [shorter: number, longer: number],
  options: Options<'randomScale', 'size'> = {},
): TransformOf<'randomScale'> {
  return make('randomScale', { ...options, size: [...size] });
}

/** Adds pixels of the value `fill` (default 0) at the right and at the bottom up to `size`; larger sides stay. */
export function pad(size: Options<'pad'>['size'], options: Options<'pad', 'size'> = {}): TransformOf<'pad'> {
  return make('pad', { ...options, size });
}

/**
 * Cuts out `size`, or as much of it as there is, at a random place; up to ten times more until no class has `maxClassRatio`
 * (default 0.75; 1: any place will do) or more of the pixels that count. As MMSegmentation's `RandomCrop`; `pad` makes small images equal.
 */
export function randomMaskCrop(
  size: Options<'randomMaskCrop'>['size'],
  options: Options<'randomMaskCrop', 'size'> = {},
): TransformOf<'randomMaskCrop'> {
  return make('randomMaskCrop', { ...options, size });
}

/** Cuts `size` (a square, or [height, width]) out of the middle; a smaller image gets a black border. */
export function centerCrop(size: Options<'centerCrop'>['size']): TransformOf<'centerCrop'> {
  return make('centerCrop', { size });
}

/**
 * Cuts `size` out at a random place, after a border of `padding` pixels (default 0) of the value `fill` (default 0,
 * black; one number or one per channel).
 */
export function randomCrop(
  size: Options<'randomCrop'>['size'],
  options: Options<'randomCrop', 'size'> = {},
): TransformOf<'randomCrop'> {
  return make('randomCrop', { ...options, size });
}

/**
 * Cuts out a random box and resizes it to `size`: its area is a random share from `scale` (default [0.08, 1]) of the
 * image's, its width to height from `ratio` (default [3/4, 4/3], uniform in the logarithm). Szegedy et al. 2015, as in
 * torchvision.
 */
export function randomResizedCrop(
  size: Options<'randomResizedCrop'>['size'],
  options: Options<'randomResizedCrop', 'size'> = {},
): TransformOf<'randomResizedCrop'> {
  return make('randomResizedCrop', { ...options, size });
}

/** Mirrors left and right with the given probability (default 0.5). */
export function horizontalFlip(probability = 0.5): TransformOf<'horizontalFlip'> {
  return make('horizontalFlip', { probability });
}

/** Mirrors top and bottom with the given probability (default 0.5). */
export function verticalFlip(probability = 0.5): TransformOf<'verticalFlip'> {
  return make('verticalFlip', { probability });
}

/**
 * Changes brightness, contrast, saturation and hue by random factors, in random order, by torchvision's formulas. A
 * number b draws from [max(0, 1 - b), 1 + b] (hue: [-b, b], at most 0.5), a pair from [least, most]; default 0: none.
 */
export function colorJitter(options: Options<'colorJitter'> = {}): TransformOf<'colorJitter'> {
  return make('colorJitter', options);
}

/**
 * Random changes of color, each with probability 1/2: adds up to `brightness` (default 32, of 255) or takes it away,
 * multiplies by `contrast` (before or after the rest) and the saturation by `saturation` (both default [0.5, 1.5]), turns
 * the hue by up to `hue` degrees (default 36). MMSegmentation's `PhotoMetricDistortion`, after Liu et al., SSD, ECCV 2016.
 */
export function photometricDistortion(
  options: Options<'photometricDistortion'> = {},
): TransformOf<'photometricDistortion'> {
  return make('photometricDistortion', options);
}

/** Bytes 0-255 to float32 0-1; floats stay as they are. Per batch. */
export function toFloat(): TransformOf<'toFloat'> {
  return make('toFloat', {});
}

/** (x - mean) / std, one mean and one deviation per channel. Per batch, after `toFloat`. */
export function normalize(mean: readonly number[], std: readonly number[]): TransformOf<'normalize'> {
  for (const [name, values] of Object.entries({ mean, std })) {
    // The holes of an endless list would be visited one by one.
    if (!Array.isArray(values) || values.length > 1000)
      throw new TypeError(`normalize: ${name} must be a list of one number per channel`);
  }
  return make('normalize', { mean: [...mean], std: [...std] });
}

/** One list from steps and lists of steps, checked. */
export function compose(...steps: readonly (TransformInput | readonly TransformInput[])[]): Transform[] {
  return parseTransforms(steps);
}
