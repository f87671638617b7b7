/** Images whose pixels have classes: a folder of images, and one of masks of the same names. */
import { existsSync, readFileSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import path from 'node:path';
import { IGNORE_INDEX } from '../nn/index.js';
import { checkIndex, splitSamples } from './dataset.js';
import { decodeImage, hasImageSuffix } from './decode.js';
import {
  completeSplits,
  findParts,
  listFolder,
  mapParts,
  quoted,
  type Parts,
  type SplitsOf,
  type SplitsOptions,
} from './folder.js';
import type { Image } from './image.js';
import { decodeNumbers } from './png.js';
import { Defects, SampleError, type SampleSource, type SegmentationSample, type Skipped } from './samples.js';

/** How the numbers in mask files become class numbers. */
export interface MaskOptions {
  /** The number of pixels that do not count, in the files. Default 255. */
  readonly ignoreIndex?: number;
  /** The numbers 1, 2, ... are the classes 0, 1, ..., and 0 does not count, as in ADE20K. Default false. */
  readonly reduceZeroLabel?: boolean;
}

/** The largest number of classes: their numbers are bytes, of which `IGNORE_INDEX` is none. */
const MAX_CLASSES = IGNORE_INDEX;

/**
 * Reads a mask: an indexed (palette) or gray PNG of class numbers. Pixels that do not count become `IGNORE_INDEX`.
 *
 * @param classes how many there are
 * @throws SampleError naming the file, and the first number that is no class and where it is
 */
export async function readMask(file: string, classes: number, options: MaskOptions = {}): Promise<Image> {
  const mask = await numbersOf(file);
  const table = classTable(classes, options);
  const data = new Uint8Array(mask.data.length);
  let unknown = -1;
  // A plain loop: masks have millions of pixels, and this runs on the JavaScript thread.
  for (let i = 0; i < data.length && unknown < 0; i++) {
    const label = table[mask.data[i] ?? 0] ?? UNKNOWN;
    if (label === UNKNOWN) unknown = i;
    else data[i] = label;
  }
  if (unknown < 0) return { ...mask, data };
  const place = `x ${String(unknown % mask.width)}, y ${String(Math.floor(unknown / mask.width))}`;
  const first = options.reduceZeroLabel ? 1 : 0;
  throw new SampleError(
    file,
    `the mask ${file} has the number ${String(mask.data[unknown])} at ${place}, but the ${String(classes)} classes have the numbers ` +
      `${String(first)} to ${String(classes - 1 + first)}, and ${String(options.ignoreIndex ?? IGNORE_INDEX)} does not count; ` +
      'correct the mask, name more classes, or set ignoreIndex',
  );
}

async function numbersOf(file: string): Promise<Image> {
  try {
    return await decodeNumbers(await readFile(file));
  } catch (error) {
    const isMissing = (error as NodeJS.ErrnoException).code === 'ENOENT';
    const reason = isMissing ? 'no such file' : (error as Error).message;
    throw new SampleError(file, `cannot read the mask ${file}: ${reason}`, { cause: error });
  }
}

const UNKNOWN = -1;

/** The class of each number that a file may hold. */
function classTable(classes: number, { ignoreIndex = IGNORE_INDEX, reduceZeroLabel = false }: MaskOptions): Int16Array {
  const table = new Int16Array(256).fill(UNKNOWN);
  const first = reduceZeroLabel ? 1 : 0;
  for (let label = 0; label < classes; label++) table[label + first] = label;
  if (reduceZeroLabel) table[0] = IGNORE_INDEX;
  table[ignoreIndex] = IGNORE_INDEX;
  return table;
}

/** See `MaskFolder`. */
export interface MaskFolderOptions extends MaskOptions {
  /** The folder of the images, which may have folders inside. */
  readonly images: string;
  /** The folder of the masks. */
  readonly masks: string;
  readonly classNames: readonly string[];
  /** How the name of a mask ends where that of its image has `.jpg` or the like. Default '.png'. */
  readonly maskSuffix?: string;
  /** Leave out images without a mask, and masks without an image, and count them (`skipped`). Default false: an error. */
  readonly skipBroken?: boolean;
}

/**
 * Images and masks in two folders, by name: `images/a/1.jpg` has the mask `masks/a/1.png`. Sorted by name.
 *
 * @example const dataset = new MaskFolder({ images: 'images/train', masks: 'masks/train', classNames: ['road', 'car'] });
 */
export class MaskFolder implements SampleSource<SegmentationSample> {
  readonly length: number;
  readonly classNames: readonly string[];
  /** The path of each image. */
  readonly paths: readonly string[];
  /** The path of each mask. */
  readonly maskPaths: readonly string[];
  readonly #options: MaskOptions;
  readonly #defects: Defects;

  /**
   * @throws RangeError for classes that are none or too many, a number to ignore that no file can hold, or folders without an
   *   image; SampleError for an image without a mask, or a mask without an image
   */
  constructor(o: MaskFolderOptions) {
    const { maskSuffix = '.png', ignoreIndex = IGNORE_INDEX, reduceZeroLabel = false } = o;
    checkClasses(o.classNames, ignoreIndex);
    this.#defects = new Defects(o.skipBroken);
    this.classNames = [...o.classNames];
    this.#options = { ignoreIndex, reduceZeroLabel };
    const masks = new Set(filesIn(o.masks).filter((file) => file.endsWith(maskSuffix)));
    const pairs: { image: string; mask: string }[] = [];
    const taken = new Map<string, string>();
    for (const file of filesIn(o.images).filter(hasImageSuffix)) {
      const image = path.join(o.images, file);
      const mask = file.slice(0, -path.extname(file).length) + maskSuffix;
      const other = taken.get(mask);
      if (other !== undefined) this.#defects.report(image, `${other} and ${image} would have the same mask, ${mask}`);
      else if (!masks.has(mask))
        this.#defects.report(image, `${image} has no mask: ${path.join(o.masks, mask)} is missing`);
      else pairs.push({ image, mask: path.join(o.masks, mask) });
      taken.set(mask, image);
    }
    for (const mask of masks) {
      const file = path.join(o.masks, mask);
      if (!taken.has(mask)) this.#defects.report(file, `the mask ${file} has no image in ${o.images}`);
    }
    if (pairs.length === 0) {
      throw new RangeError(
        `${o.images} has no images with masks in ${o.masks}; expected pairs such as 1.jpg there and 1${maskSuffix} here`,
      );
    }
    this.paths = pairs.map(({ image }) => image);
    this.maskPaths = pairs.map(({ mask }) => mask);
    this.length = pairs.length;
  }

  /** Images and masks that were left out because the other one is missing. */
  get skipped(): readonly Skipped[] {
    return this.#defects.skipped;
  }

  async load(index: number): Promise<SegmentationSample> {
    const file = this.describe(index);
    const maskFile = this.maskPaths[index] as string;
    // Both are waited for, so that no error is left to nobody.
    const [image, mask] = await Promise.allSettled([
      decodeImage(file),
      readMask(maskFile, this.classNames.length, this.#options),
    ]);
    if (image.status === 'rejected') throw image.reason;
    if (mask.status === 'rejected') throw mask.reason;
    return { image: image.value, mask: fitting(mask.value, maskFile, image.value, file) };
  }

  /** The path of the image. */
  describe(index: number): string {
    checkIndex(index, this.length);
    return this.paths[index] as string;
  }
}

/** A mask of the size of its image. @throws SampleError that names the file of any other */
export function fitting(mask: Image, maskFile: string, image: Image, file: string): Image {
  if (image.width === mask.width && image.height === mask.height) return mask;
  throw new SampleError(
    maskFile,
    `the mask ${maskFile} is ${sides(mask)}, but its image ${file} is ${sides(image)} (height x width); they must have one size`,
  );
}

function sides({ height, width }: Image): string {
  return `${String(height)}x${String(width)}`;
}

function checkClasses(classNames: readonly string[], ignoreIndex: number): void {
  if (classNames.length < 1 || classNames.length > MAX_CLASSES) {
    throw new RangeError(`masks have 1 to ${String(MAX_CLASSES)} classes, got ${String(classNames.length)}`);
  }
  if (!Number.isInteger(ignoreIndex) || ignoreIndex < 0 || ignoreIndex > 255) {
    throw new RangeError(`ignoreIndex must be a number that a mask can hold, 0 to 255, got ${String(ignoreIndex)}`);
  }
}

/** All files in a folder and the folders inside, as paths from there; sorted. */
export function filesIn(root: string, below = ''): string[] {
  const { folders, files } = listFolder(path.join(root, below));
  const here = files.map((name) => path.join(below, name));
  return [...here, ...folders.flatMap((name) => filesIn(root, path.join(below, name)))];
}

/** See `openMasks`. */
export interface OpenMasksOptions extends SplitsOptions, MaskOptions {
  /** Default: the lines of `classes.txt`, else '0', '1', ... up to the largest number in the masks. */
  readonly classNames?: readonly string[];
  readonly maskSuffix?: string;
  /** Leave out images without a mask, and masks without an image. Default false: an error. */
  readonly skipBroken?: boolean;
}

const folderNames = {
  images: ['images', 'imgs', 'jpegimages'],
  masks: ['masks', 'annotations', 'labels', 'segmentationclass'],
};

/**
 * Opens images with masks for training. `root` has the folders `images` and `masks`, and either these or `root` itself have
 * the parts `train`, `val` and perhaps `test`: `images/train/1.jpg` with `masks/train/1.png`, or `train/images/1.jpg` with
 * `train/masks/1.png`. Where there is no part for validation, one is held back from the training images, chosen by the seed.
 * `root/classes.txt` may name the classes, one per line.
 *
 * @throws RangeError where that is not so; SampleError for an image without a mask, or a mask without an image
 */
export async function openMasks(
  root: string,
  o: OpenMasksOptions = {},
): Promise<SplitsOf<SampleSource<SegmentationSample>>> {
  const parts = findPairs(root);
  const { valFraction = 0.2, seed = 0, classNames: given, ...options } = o;
  const named = given ?? readClassNames(path.join(root, 'classes.txt'));
  const classNames = named ?? (await numberedClasses(parts.train.masks, o));
  const opened = mapParts(
    parts,
    (pair): SampleSource<SegmentationSample> => new MaskFolder({ ...options, ...pair, classNames }),
  );
  return completeSplits(opened, (whole) => splitSamples(whole, { fraction: valFraction, seed }));
}

/** See `openMaskFolder`. */
export type OpenMaskFolderOptions = Omit<MaskFolderOptions, 'images' | 'masks'>;

/**
 * Opens the folders `images` and `masks` of `root` as one data set, without any parts.
 *
 * @throws what `MaskFolder` throws; RangeError if a folder is missing
 */
export function openMaskFolder(root: string, options: OpenMaskFolderOptions): MaskFolder {
  return new MaskFolder({ ...options, ...findPair(root) });
}

interface Pair {
  readonly images: string;
  readonly masks: string;
}

function findPairs(root: string): Parts<Pair> {
  const parts = findParts(root);
  if (parts) return mapParts(parts, findPair);
  const whole = findPair(root);
  const [images, masks] = [findParts(whole.images), findParts(whole.masks)];
  if (!images !== !masks) {
    throw new RangeError(
      `${root}: only one of ${whole.images} and ${whole.masks} has the parts train and val; expected both`,
    );
  }
  if (!images || !masks) return { train: whole };
  return mapParts(images, (folder, name) => {
    const counterpart = masks[name];
    if (counterpart === undefined) throw new RangeError(`${folder} has no counterpart in ${whole.masks}`);
    return { images: folder, masks: counterpart };
  });
}

function findPair(folder: string): Pair {
  const { folders } = listFolder(folder);
  const find = (kind: keyof typeof folderNames): string => {
    const found = folders.filter((name) => folderNames[kind].includes(name.toLowerCase()));
    if (found.length === 1 && found[0] !== undefined) return path.join(folder, found[0]);
    const problem = found.length ? `has ${quoted(found)}, which mean the same` : `has no folder of ${kind}`;
    throw new RangeError(
      `${folder} ${problem}; expected the folders images and masks, with files such as images/1.jpg and masks/1.png`,
    );
  };
  return { images: find('images'), masks: find('masks') };
}

/**
 * The lines of a file that names classes; undefined if there is no such file.
 *
 * @throws RangeError for names that are empty or there twice
 */
export function readClassNames(file: string): string[] | undefined {
  if (!existsSync(file)) return undefined;
  const names = readFileSync(file, 'utf8')
    .trimEnd()
    .split(/\r?\n/)
    .map((line) => line.trim());
  const wrong = names.findIndex((name, i) => name === '' || names.indexOf(name) !== i);
  if (wrong >= 0) {
    const problem = names[wrong] === '' ? 'is empty' : `repeats ${JSON.stringify(names[wrong])}`;
    throw new RangeError(`${file}: line ${String(wrong + 1)} ${problem}; expected the name of one class in each line`);
  }
  return names;
}

/** '0', '1', ... as far as the masks of a folder go. */
async function numberedClasses(
  folder: string,
  { maskSuffix = '.png', ...options }: OpenMasksOptions,
): Promise<string[]> {
  const table = classTable(MAX_CLASSES - 1, options);
  let most = -1;
  for (const file of filesIn(folder).filter((name) => name.endsWith(maskSuffix))) {
    let mask: Image;
    try {
      mask = await numbersOf(path.join(folder, file));
    } catch (error) {
      if (options.skipBroken) continue;
      throw error;
    }
    for (const number of mask.data) {
      const label = table[number] ?? UNKNOWN;
      if (label !== IGNORE_INDEX && label > most) most = label;
    }
  }
  if (most < 0) throw new RangeError(`the masks in ${folder} have no class; name the classes in classes.txt`);
  return Array.from({ length: most + 1 }, (_, i) => String(i));
}
