/** Images in folders: one sub-folder per class. */
import { readdirSync, statSync } from 'node:fs';
import path from 'node:path';
import { checkIndex, splitDataset, type Dataset } from './dataset.js';
import { decodeImage, hasImageSuffix, imageSuffixes } from './decode.js';
import type { Image } from './image.js';

/** Names by which the folders of a ready split go. */
const splitNames = {
  train: ['train', 'training'],
  val: ['val', 'valid', 'validation'],
  test: ['test', 'testing'],
} as const;

/** What `ImageFolder` can be told. */
export interface ImageFolderOptions {
  /** The classes and their order; default: the sub-folders, sorted by name. A sub-folder that is not among them is an error. */
  readonly classNames?: readonly string[];
}

/**
 * The images of a folder that has one sub-folder per class. Classes are numbered in the order of their sorted names, files
 * are sorted by name within a class. Hidden files, and files whose names do not end as images' do, are passed over.
 *
 * @example const dataset = new ImageFolder('photos');   // photos/cat/1.jpg, photos/dog/7.png, ...
 */
export class ImageFolder implements Dataset {
  readonly root: string;
  readonly length: number;
  readonly classNames: readonly string[];
  readonly labels: Uint32Array;
  /** The path of each image. */
  readonly paths: readonly string[];
  /** Files that were passed over because their names do not end as images' do; hidden ones not included. */
  readonly ignored: readonly string[];

  /** @throws RangeError if there are no classes, a class has no images or has folders inside, or is not among `classNames` */
  constructor(root: string, o: ImageFolderOptions = {}) {
    const { classNames, present, files } = readClasses(root, o.classNames, {
      opener: 'openImageFolder',
      kind: 'images',
    });
    this.root = root;
    this.classNames = classNames;
    const paths: string[] = [];
    const labels: number[] = [];
    const ignored = files.map((name) => path.join(root, name));
    for (const { label, folder } of present) {
      const inside = listFolder(folder);
      if (inside.folders.length) {
        throw new RangeError(
          `the class folder ${folder} has folders inside (${quoted(inside.folders)}); expected only images: ` +
            'nested classes are not supported, move the images up or make each inner folder a class',
        );
      }
      const images = inside.files.filter(hasImageSuffix);
      if (images.length === 0) {
        throw new RangeError(
          `the class folder ${folder} has no images (${imageSuffixes.join(', ')}); add some, or remove the folder`,
        );
      }
      for (const file of images) {
        paths.push(path.join(folder, file));
        labels.push(label);
      }
      ignored.push(...inside.files.filter((file) => !hasImageSuffix(file)).map((file) => path.join(folder, file)));
    }
    this.paths = paths;
    this.labels = Uint32Array.from(labels);
    this.length = paths.length;
    this.ignored = ignored;
  }

  load(index: number): Promise<Image> {
    return decodeImage(this.describe(index));
  }

  /** The path of the image. */
  describe(index: number): string {
    checkIndex(index, this.length);
    return this.paths[index] as string;
  }
}

/** The parts of a data set. */
export interface SplitsOf<Source> {
  readonly classNames: readonly string[];
  readonly train: Source;
  readonly val: Source;
  /** Only where the folder has one. */
  readonly test?: Source;
}

/** The parts of a data set of labeled images. */
export type Splits = SplitsOf<Dataset>;

/** How `openImageFolder` splits what is not split. */
export interface SplitsOptions {
  /** Share of each class that is held back for validation where the folder has no split of its own. Default 0.2. */
  readonly valFraction?: number;
  /** Seed of that split. Default 0. */
  readonly seed?: number;
}

/** What belongs to the parts of a ready split. */
export interface Parts<T> {
  readonly train: T;
  readonly val?: T;
  readonly test?: T;
}

/** The parts, each made anew by `make`. */
export function mapParts<A, B>({ train, val, test }: Parts<A>, make: (part: A, name: keyof Parts<A>) => B): Parts<B> {
  return {
    train: make(train, 'train'),
    ...(val !== undefined && { val: make(val, 'val') }),
    ...(test !== undefined && { test: make(test, 'test') }),
  };
}

/** Opened parts as a data set for training; where there is none for validation, `split` holds one back. */
export function completeSplits<Source extends { readonly classNames: readonly string[] }>(
  parts: Parts<Source>,
  split: (whole: Source) => readonly [train: Source, val: Source],
): SplitsOf<Source> {
  const [train, val] = parts.val ? [parts.train, parts.val] : split(parts.train);
  return { classNames: train.classNames, train, val, ...(parts.test && { test: parts.test }) };
}

/** The parts of a data set, if it has a folder for training. @throws RangeError if two folders mean the same part */
export function findParts(root: string): Parts<string> | undefined {
  const { folders } = listFolder(root);
  const part = (name: keyof typeof splitNames): string | undefined => {
    const names: readonly string[] = splitNames[name];
    const found = folders.filter((folder) => names.includes(folder.toLowerCase()));
    if (found.length > 1) throw new RangeError(`${root} has ${quoted(found)}, which mean the same; keep one of them`);
    return found[0] === undefined ? undefined : path.join(root, found[0]);
  };
  const train = part('train');
  if (train === undefined) return undefined;
  const [val, test] = [part('val'), part('test')];
  return { train, ...(val && { val }), ...(test && { test }) };
}

/**
 * Opens a data set for training. If `root` has the folders `train` and perhaps `val` and `test` (or `training`, `valid`,
 * `validation`, `testing`), each with one sub-folder per class, these are the parts, and the classes are those of `train`.
 * Otherwise `root` itself has one sub-folder per class. Where there is no validation part, one is held back from the
 * training images: the same share of each class, chosen by the seed.
 */
export function openImageFolder(root: string, o: SplitsOptions = {}): Splits {
  const { train: trainRoot = root, ...others } = findParts(root) ?? {};
  const whole = new ImageFolder(trainRoot);
  const { classNames } = whole;
  const open = (folder: string): Dataset => (folder === trainRoot ? whole : new ImageFolder(folder, { classNames }));
  const splits = completeSplits<Dataset>(mapParts({ train: trainRoot, ...others }, open), (all) =>
    splitDataset(all, { fraction: o.valFraction ?? 0.2, seed: o.seed ?? 0 }),
  );
  if (splits.val.length === 0) {
    throw new RangeError(`${whole.root} has too few images to hold some back for validation`);
  }
  return splits;
}

/** The image files directly in a folder, or the one file that `target` is; sorted. For prediction without classes. */
export function listImages(target: string): string[] {
  if (stat(target).isFile()) return [target];
  return listFolder(target)
    .files.filter(hasImageSuffix)
    .map((name) => path.join(target, name));
}

/** What a folder of classes holds, and which function opens it in parts; for messages. */
interface ClassContent {
  readonly opener: string;
  readonly kind: 'images' | 'videos';
}

/** The class folders of `root`, and the files beside them. @throws RangeError if there are none, or one that is not wanted */
export function readClasses(
  root: string,
  wanted: readonly string[] | undefined,
  { opener, kind }: ClassContent,
): { classNames: string[]; present: { label: number; folder: string }[]; files: string[] } {
  const { folders, files } = listFolder(root);
  const isSplit = (name: string): boolean =>
    Object.values(splitNames)
      .flat()
      .some((split) => split === name.toLowerCase());
  if (folders.length && folders.every(isSplit)) {
    const first = path.join(root, folders[0] ?? '');
    throw new RangeError(
      `${root} holds a split data set (${quoted(folders)}); open it with ${opener}, or one part such as ${first}`,
    );
  }
  if (folders.length === 0 && files.some(hasImageSuffix)) {
    throw new RangeError(`${root} has images but no class folders; expected one folder per class inside it`);
  }
  const classNames = wanted ? [...wanted] : folders;
  const unknown = folders.filter((name) => !classNames.includes(name));
  if (unknown.length) {
    throw new RangeError(
      `${root} has folders that are no known classes: ${quoted(unknown)}; the classes are ${quoted(classNames)}`,
    );
  }
  if (folders.length === 0) {
    const example = kind === 'images' ? path.join(root, 'cat', '1.jpg') : path.join(root, 'wave', '1', 'frame_000.jpg');
    throw new RangeError(`${root} has no class folders; expected one folder of ${kind} per class, such as ${example}`);
  }
  const present = classNames.flatMap((name, label) =>
    folders.includes(name) ? [{ label, folder: path.join(root, name) }] : [],
  );
  return { classNames, present, files };
}

/** The names in a folder, sorted by code unit as Python and C sort; without hidden ones; links are followed. */
export function listFolder(folder: string): { folders: string[]; files: string[] } {
  if (!stat(folder).isDirectory()) throw new RangeError(`${folder} is not a folder`);
  const folders: string[] = [];
  const files: string[] = [];
  for (const entry of readdirSync(folder, { withFileTypes: true })) {
    if (entry.name.startsWith('.')) continue;
    const isLink = entry.isSymbolicLink();
    const target = isLink ? statSync(path.join(folder, entry.name), { throwIfNoEntry: false }) : entry;
    // A dangling link counts as a file, so that its image is reported as missing and not silently left out.
    if (target?.isDirectory()) folders.push(entry.name);
    else if (!target || target.isFile()) files.push(entry.name);
  }
  return { folders: folders.sort(), files: files.sort() };
}

/** @throws RangeError if there is nothing of that name */
export function stat(target: string): { isDirectory(): boolean; isFile(): boolean } {
  const found = statSync(target, { throwIfNoEntry: false });
  if (!found) throw new RangeError(`${target}: no such file or folder`);
  return found;
}

/** Names for messages, not more than ten. */
export function quoted(names: readonly string[]): string {
  const shown = names.slice(0, 10).map((name) => `"${name}"`);
  return names.length > 10 ? `${shown.join(', ')} and ${String(names.length - 10)} more` : shown.join(', ');
}
