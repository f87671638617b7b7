/** What the commands must know of a task: its data, its loaders, its score in words, its predictions. */
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import type { Image, Skipped, SkippedImage, SplitsOf, TransformInput } from '../../data/index.js';
import type { Preprocessing } from '../../models/index.js';
import type { Device } from '../../tensor/index.js';
import type { BatchSource, LossOptions, Report, Score, Task, TaskBatch } from '../../train/index.js';
import { asUsage, note, UsageError } from '../output.js';
import { overlayNames } from '../overlay.js';
import type { PreprocessFlags } from '../preprocess.js';
import type { TaskKind, TaskSpec } from '../task_spec.js';
import type { Trained } from '../trained.js';

/** How data is split where it has no parts of its own. */
export interface OpenOptions {
  readonly valFraction?: number;
  readonly seed?: number;
  /** Leave out what is wrong already in a list of files or annotations: a mask without an image, an empty video. */
  readonly skipBroken?: boolean;
}

/** How a part of the data is read. */
export interface LoaderSettings {
  readonly batchSize: number;
  /** Training: in random order, with augmentation. */
  readonly isTraining: boolean;
  readonly transforms: readonly TransformInput[];
  readonly spec: TaskSpec;
  readonly seed: number;
  readonly skipBroken: boolean;
  readonly cacheBytes: number;
}

/** A loader of any task. */
export interface Loader<B extends TaskBatch> extends BatchSource<B> {
  readonly skipped: readonly SkippedImage[];
}

/** How files are answered. */
export interface PredictOptions {
  readonly device: Device;
  readonly batchSize: number;
  readonly topK: number;
  /** Detections must exceed it. */
  readonly minScore: number;
  readonly skipBroken: boolean;
  /** Where overlays go. */
  readonly out: string;
}

/** A result, for machines and for people. */
export interface Answer {
  readonly data: object;
  readonly text: () => string;
}

/** The parts of a task that commands use. `Source` is what its data sets are. */
export interface TaskKit<
  Source extends { readonly classNames: readonly string[] },
  B extends TaskBatch,
  S extends Score,
> {
  /** Whether `--data` names the built-in set. */
  isBuiltIn(data: string): boolean;
  /** Opens data for training: a path, or the built-in set. */
  open(data: string, o: OpenOptions): Promise<SplitsOf<Source>>;
  /** Opens data for scoring that has no parts. */
  openWhole(data: string, classNames: readonly string[], skipBroken: boolean): Promise<Source>;
  /** Preparation for training and for evaluation. */
  transforms(config: Preprocessing, flags: PreprocessFlags): { train: TransformInput[]; evaluate: TransformInput[] };
  loader(source: Source, o: LoaderSettings): Promise<Loader<B>>;
  task(spec: TaskSpec, classes: number, loss: LossOptions): Promise<Task<B, S>>;
  /** The score by class. */
  describe(score: S, classNames: readonly string[], spec: TaskSpec): Promise<Answer>;
  /** What a report shows besides the curves. */
  report(score: S, val: Source, of: string, spec: TaskSpec): Promise<Pick<Report, 'confusion' | 'samples' | 'classes'>>;
  /** What the model makes of files or folders. */
  predict(trained: Trained, targets: readonly string[], o: PredictOptions): Promise<Answer>;
}

/** Calls `use` with the kit of a task. Kits load what they need when they are used. */
export async function withKit<R>(
  kind: TaskKind,
  use: <Source extends { readonly classNames: readonly string[] }, B extends TaskBatch, S extends Score>(
    kit: TaskKit<Source, B, S>,
  ) => R | Promise<R>,
): Promise<R> {
  switch (kind) {
    case 'classify':
      return use((await import('./classify.js')).classifyKit);
    case 'segment':
      return use((await import('./segment.js')).segmentKit);
    case 'detect':
      return use((await import('./detect.js')).detectKit);
    case 'multi':
      return use((await import('./multi.js')).multiKit);
    case 'video':
      return use((await import('./video.js')).videoKit);
  }
}

/** What a data set has left out when it was opened. */
export function leftOut(source: object): readonly Skipped[] {
  if ('skipped' in source) return source.skipped as readonly Skipped[];
  // A part that was split off.
  return 'source' in source ? leftOut(source.source as object) : [];
}

/** What `BatchLoader`s are told, from the settings of a run. */
export function loaderOptions<Source>(dataset: Source, o: LoaderSettings) {
  const { batchSize, seed, skipBroken, cacheBytes, isTraining: shuffle } = o;
  return { dataset, batchSize, seed, skipBroken, cacheBytes, shuffle };
}

/** The results of `load` for all paths that can be read; a broken file is an error, or left out with a note. */
export async function loadAll<T>(
  paths: readonly string[],
  skipBroken: boolean,
  load: (path: string) => Promise<T>,
): Promise<{ path: string; value: T }[]> {
  const { SampleError } = await import('../../data/index.js');
  const outcomes = await Promise.allSettled(paths.map(load));
  return outcomes.flatMap((outcome, i) => {
    if (outcome.status === 'fulfilled') return [{ path: paths[i]!, value: outcome.value }];
    if (!skipBroken || !(outcome.reason instanceof SampleError)) throw outcome.reason;
    note(`left out: ${outcome.reason.message}`);
    return [];
  });
}

/** The image files that are given, and those in the folders that are given. @throws UsageError if there are none */
export async function imagesOf(targets: readonly string[]): Promise<string[]> {
  const { listImages } = await import('../../data/index.js');
  const paths = asUsage(() => targets.flatMap((path) => listImages(path)));
  if (paths.length === 0) throw new UsageError(`there are no images in ${targets.join(', ')}`);
  return paths;
}

/** What `draw` says of each image that is given, after it has written a picture to the path that it gets. */
export async function drawEach<T extends object>(
  targets: readonly string[],
  { out, skipBroken }: PredictOptions,
  draw: (image: Image, overlay: string) => Promise<T>,
): Promise<({ path: string } & T)[]> {
  const { decodeImage } = await import('../../data/index.js');
  const paths = await imagesOf(targets);
  const names = overlayNames(paths);
  mkdirSync(out, { recursive: true });
  const answers: ({ path: string } & T)[] = [];
  for (const [i, path] of paths.entries()) {
    for (const { value: image } of await loadAll([path], skipBroken, decodeImage))
      answers.push({ path, ...(await draw(image, join(out, names[i]!))) });
  }
  return answers;
}

/** Parts of `size`, in order. */
export function* chunks<T>(list: readonly T[], size: number): Generator<readonly T[]> {
  for (let start = 0; start < list.length; start += size) yield list.slice(start, start + size);
}
