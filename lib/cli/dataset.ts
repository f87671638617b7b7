/** `--data`: a folder of images, or the built-in `shapes`. */
import type { Dataset } from '../data/index.js';
import { UsageError, asUsage } from './output.js';

/** Images for training and validation. */
export interface TrainingData {
  readonly classNames: readonly string[];
  readonly train: Dataset;
  readonly val: Dataset;
  readonly test?: Dataset;
}

const SHAPES = /^shapes:([a-z]+)(?::(\d+))?$/;
const DEFAULT_COUNT = 1000;
const SEEDS = { train: 0, val: 1, test: 2 } as const;

/** What `--data` means, for help texts. */
export const DATA_HELP = 'folder with train/ and val/, or with a folder per class; or shapes:TASK[:COUNT], built in';

/**
 * Opens data for training: a folder (see `openImageFolder`), or `shapes:TASK[:COUNT]` with COUNT images for training and a
 * quarter as many for validation and for testing.
 */
export async function openTrainingData(
  spec: string,
  o: { valFraction?: number; seed?: number } = {},
): Promise<TrainingData> {
  const { openImageFolder } = await import('../data/index.js');
  const shapes = await openShapes(spec);
  return shapes ?? asUsage(() => openImageFolder(spec, o));
}

/** Opens labeled images to score on: a folder per class, or one part (`split`) of data for training. */
export async function openLabeled(
  spec: string,
  o: { split?: string; classNames: readonly string[]; valFraction?: number; seed?: number },
): Promise<Dataset> {
  const { ImageFolder } = await import('../data/index.js');
  if (o.split === undefined && !SHAPES.test(spec))
    return asUsage(() => new ImageFolder(spec, { classNames: o.classNames }));
  const parts = await openTrainingData(spec, o);
  const split = o.split ?? 'val';
  if (!['train', 'val', 'test'].includes(split))
    throw new UsageError(`--split: expected train, val or test, got '${split}'`);
  const part = parts[split as 'train' | 'val' | 'test'];
  if (part === undefined) throw new UsageError(`${spec} has no part '${split}'`);
  if (part.classNames.join('\n') !== o.classNames.join('\n'))
    throw new UsageError(
      `${spec} has the classes ${part.classNames.join(', ')}, but the model knows ${o.classNames.join(', ')}`,
    );
  return part;
}

async function openShapes(spec: string): Promise<TrainingData | null> {
  const match = SHAPES.exec(spec);
  if (match === null) return null;
  const { Shapes } = await import('../data/index.js');
  const count = Number(match[2] ?? DEFAULT_COUNT);
  const part = (seed: number, n: number): Dataset =>
    asUsage(() => new Shapes({ task: match[1] as 'shape', count: Math.max(1, n), seed }));
  const held = Math.ceil(count / 4);
  const train = part(SEEDS.train, count);
  return { classNames: train.classNames, train, val: part(SEEDS.val, held), test: part(SEEDS.test, held) };
}
