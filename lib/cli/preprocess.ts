/** From a backbone's needs and a few flags to the transforms of training and of evaluation. */
import { Option, type Command } from 'commander';
import type { TransformInput } from '../data/index.js';
import type { Preprocessing } from '../models/index.js';
import { integer, real } from './arguments.js';

/** The flags, as commander parses them. What is absent is chosen from the backbone. */
export interface PreprocessFlags {
  /** Side of the input in pixels. */
  readonly imageSize?: number;
  /** `whole`: the image is squeezed to a square; `short`: its shorter side is resized and the middle is cut out. */
  readonly resize?: 'whole' | 'short';
  /** Training: random crop after a black border of so many pixels; 0 for none. */
  readonly cropPadding?: number;
  /** Training: random-resized crop whose area is at least this share; 0 for none. */
  readonly minScale?: number;
  readonly interpolation?: 'bilinear' | 'bicubic';
  /** Training: mirrored left and right at random. */
  readonly flip: boolean;
  readonly colorJitter?: number;
}

/** Adds the flags to a command. */
export function addPreprocessOptions(command: Command): Command {
  return command
    .optionsGroup('Images:')
    .addOption(
      new Option('--image-size <n>', "side of the network's input (default: the backbone's)").argParser(integer(1)),
    )
    .addOption(
      new Option(
        '--resize <mode>',
        'whole: squeeze to a square; short: shorter side, then center crop (default: whole below 64 pixels)',
      ).choices(['whole', 'short']),
    )
    .addOption(
      new Option('--interpolation <kind>', "antialiased resampling (default: the backbone's)").choices([
        'bilinear',
        'bicubic',
      ]),
    )
    .addOption(
      new Option(
        '--crop-padding <n>',
        'training: random crop after a black border of n pixels (default below 64 pixels: size / 8)',
      ).argParser(integer(0)),
    )
    .addOption(
      new Option(
        '--min-scale <share>',
        'training: random-resized crop of at least this share of the area, 0 for none (default from 64 pixels: 0.35)',
      ).argParser(real(0, 1)),
    )
    .addOption(
      new Option('--color-jitter <s>', 'training: brightness, contrast and saturation vary by this much').argParser(
        real(0, 1),
      ),
    )
    .option('--no-flip', 'training: do not mirror images');
}

/** Images smaller than this are seen whole: cutting a part out of so few pixels would lose too much. */
const SMALL = 64;

/** Steps for training and for evaluation, ready for `Pipeline`. */
export function buildTransforms(
  config: Preprocessing,
  flags: PreprocessFlags,
): { train: TransformInput[]; evaluate: TransformInput[] } {
  const { height, width, interpolation } = inputOf(config, flags);
  const isSmall = Math.min(height, width) < SMALL;
  const size: [number, number] = [height, width];
  const isWhole = isWholeInput(config, flags);
  const minScale = flags.minScale ?? (isSmall || flags.cropPadding !== undefined || isWhole ? 0 : 0.35);
  const padding = flags.cropPadding ?? (isSmall && minScale === 0 ? Math.round(Math.min(height, width) / 8) : 0);

  const short = Math.round(Math.min(height, width) / config.cropPct);
  const fit: TransformInput[] = isWhole
    ? [{ kind: 'resize', size, interpolation }]
    : [
        { kind: 'resize', size: short, interpolation },
        { kind: 'centerCrop', size },
      ];
  const vary: TransformInput[] =
    minScale > 0
      ? [{ kind: 'randomResizedCrop', size, scale: [minScale, 1], interpolation }]
      : [...fit, ...(padding > 0 ? [{ kind: 'randomCrop', size, padding } as const] : [])];
  const last = networkSteps(config);
  return {
    train: [...vary, ...flipSteps(flags), ...colorSteps(flags), ...last],
    evaluate: [...fit, ...last],
  };
}

/** Size of the network's input and how images come to it. */
export function inputOf(
  config: Preprocessing,
  flags: PreprocessFlags,
): { height: number; width: number; interpolation: 'bilinear' | 'bicubic' } {
  return {
    height: flags.imageSize ?? config.inputSize[1],
    width: flags.imageSize ?? config.inputSize[2],
    interpolation: flags.interpolation ?? config.interpolation,
  };
}

/** Whether images are squeezed to the network's input, instead of keeping their proportions. */
export function isWholeInput(config: Preprocessing, flags: PreprocessFlags): boolean {
  const { height, width } = inputOf(config, flags);
  return (flags.resize ?? (Math.min(height, width) < SMALL ? 'whole' : 'short')) === 'whole';
}

/** Training: mirrored at random, unless that is not wanted. */
export const flipSteps = ({ flip }: PreprocessFlags): TransformInput[] => (flip ? [{ kind: 'horizontalFlip' }] : []);

/** Training: colors that vary, if that is wanted. */
export function colorSteps({ colorJitter: jitter = 0 }: PreprocessFlags): TransformInput[] {
  return jitter > 0 ? [{ kind: 'colorJitter', brightness: jitter, contrast: jitter, saturation: jitter }] : [];
}

/** The last steps, which are done on batches. */
export const networkSteps = ({ mean, std }: Preprocessing): TransformInput[] => [
  { kind: 'toFloat' },
  { kind: 'normalize', mean: [...mean], std: [...std] },
];
