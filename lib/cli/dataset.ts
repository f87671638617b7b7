/** `--data`: a folder, or the built-in `shapes`. */
import type { Dataset, Splits, SplitsOf } from '../data/index.js';
import { UsageError, asUsage } from './output.js';

const SHAPES = /^shapes:([a-z]+)(?::(\d+))?$/;
/** The built-in sets of the other tasks. */
const BUILT_IN = /^shapes(?::(\d+))?$/;
const DEFAULT_COUNT = 1000;

export const isBuiltIn = (data: string): boolean => BUILT_IN.test(data);

const SEEDS = { train: 0, val: 1, test: 2 } as const;

/** What `--data` means, for help texts. */
export const DATA_HELP = 'folder with train/ and val/, or with a folder per class; or shapes:TASK[:COUNT], built in';
/** The same where there are tasks. */
export const TASK_DATA_HELP =
  'classify: a folder per class, or shapes:TASK[:COUNT], built in; segment: images/ and masks/; detect: images and COCO ' +
  'annotations; multi: images/, masks/KIND/ and objects.json; video: a folder per class of frame folders or video files; ' +
  'all but the first: or shapes[:COUNT], built in';

/**
 * Opens data for training: a folder (see `openImageFolder`), or `shapes:TASK[:COUNT]` with COUNT images for training and a
 * quarter as many for validation and for testing.
 */
export async function openTrainingData(spec: string, o: { valFraction?: number; seed?: number } = {}): Promise<Splits> {
  const { openImageFolder } = await import('../data/index.js');
  const shapes = await openShapes(spec);
  return shapes ?? asUsage(() => openImageFolder(spec, o));
}

/** Opens a folder with a folder of images per class. */
export async function openImages(folder: string, classNames: readonly string[]): Promise<Dataset> {
  const { ImageFolder } = await import('../data/index.js');
  return asUsage(() => new ImageFolder(folder, { classNames }));
}

/** What a kit opens data with. */
interface Opener<Source> {
  isBuiltIn(data: string): boolean;
  open(data: string, o: { valFraction?: number; seed?: number; skipBroken?: boolean }): Promise<SplitsOf<Source>>;
  openWhole(data: string, classNames: readonly string[], skipBroken: boolean): Promise<Source>;
}

/** Whether `--data` names a built-in set of labeled images. */
export const isShapes = (data: string): boolean => SHAPES.test(data);

/** Opens data to score on: without parts, or one part (`split`) of data for training. */
export async function openLabeled<Source extends { readonly classNames: readonly string[] }>(
  opener: Opener<Source>,
  spec: string,
  o: { split?: string; classNames: readonly string[]; valFraction?: number; seed?: number; skipBroken?: boolean },
): Promise<Source> {
  if (o.split === undefined && !opener.isBuiltIn(spec))
    return opener.openWhole(spec, o.classNames, o.skipBroken === true);
  const parts = await opener.open(spec, o);
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

async function openShapes(spec: string): Promise<Splits | null> {
  const match = SHAPES.exec(spec);
  if (match === null) return null;
  const { Shapes } = await import('../data/index.js');
  return splitsOf<Dataset>(Number(match[2] ?? DEFAULT_COUNT), (o) => new Shapes({ task: match[1] as 'shape', ...o }));
}

/** COUNT samples for training, a quarter as many for validation and for testing. */
function splitsOf<Source extends { readonly classNames: readonly string[] }>(
  count: number,
  make: (o: { count: number; seed: number }) => Source,
): SplitsOf<Source> {
  const part = (seed: number, n: number): Source => asUsage(() => make({ count: Math.max(1, n), seed }));
  const held = Math.ceil(count / 4);
  const train = part(SEEDS.train, count);
  return { classNames: train.classNames, train, val: part(SEEDS.val, held), test: part(SEEDS.test, held) };
}

/**
 * The built-in set of a task other than classification, `shapes[:COUNT]`: COUNT samples for training and a quarter as many
 * for validation and for testing; null for anything else.
 *
 * @param make a part of so many samples
 */
export function openBuiltIn<Source extends { readonly classNames: readonly string[] }>(
  spec: string,
  make: (o: { count: number; seed: number }) => Source,
  defaultCount = DEFAULT_COUNT,
): SplitsOf<Source> | null {
  const match = BUILT_IN.exec(spec);
  if (match === null) return null;
  return splitsOf(Number(match[1] ?? defaultCount), make);
}
