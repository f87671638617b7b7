/** Images with boxes, as COCO's files describe them. Lin et al., ECCV 2014, arXiv 1405.0312. */
import { existsSync, statSync } from 'node:fs';
import path from 'node:path';
import { readCoco, type CocoImage } from './coco_file.js';
import { checkIndex, splitSamples } from './dataset.js';
import { decodeImage } from './decode.js';
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
import { SampleError, type DetectionSample, type Objects, type SampleSource, type Skipped } from './samples.js';

/** How COCO's files are read. */
export interface CocoReadOptions {
  /**
   * The classes and their order, by the names of the categories; a category that is not among them is an error. Default: the
   * categories of the file by rising id.
   */
  readonly classNames?: readonly string[];
  /**
   * `contiguous` (default): the place among `classNames`; `id`: the ids of the categories themselves, as published detectors
   * know them, with names of '' in between.
   */
  readonly labels?: 'contiguous' | 'id';
  /** Leave out annotations that are wrong and count them (`skipped`). Default false: an error. */
  readonly skipBroken?: boolean;
}

/** See `CocoDataset`. */
export interface CocoDatasetOptions extends CocoReadOptions {
  /** The JSON file. */
  readonly annotations: string;
  /** The folder from which the images' `file_name`s count. */
  readonly images: string;
}

/**
 * Images with boxes from a JSON file of COCO's form, by rising id of the images; those without any object included. Crowds
 * are marked. Boxes are taken as they are, up to a pixel over the edges.
 *
 * @example const dataset = new CocoDataset({ annotations: 'annotations/instances_val2017.json', images: 'val2017' });
 */
export class CocoDataset implements SampleSource<DetectionSample> {
  readonly length: number;
  readonly classNames: readonly string[];
  /** The path of each image. */
  readonly paths: readonly string[];
  /** COCO's id of each image. */
  readonly ids: readonly (number | string)[];
  /** Annotations that were left out because they are wrong. */
  readonly skipped: readonly Skipped[];
  readonly #images: readonly CocoImage[];

  /**
   * @throws RangeError for a file that is not of COCO's form; SampleError for an annotation without its image, of an unknown
   *   category, or with a box that is empty or outside of its image
   */
  constructor(o: CocoDatasetOptions) {
    const { images, classNames, skipped } = readCoco(o.annotations, o);
    this.length = images.length;
    this.classNames = classNames;
    this.skipped = skipped;
    this.paths = images.map(({ fileName }) => path.join(o.images, fileName));
    this.ids = images.map(({ id }) => id);
    this.#images = images;
  }

  async load(index: number): Promise<DetectionSample> {
    const file = this.describe(index);
    const image = await decodeImage(file);
    return { image, objects: objectsFor(image, file, this.#images[index] as CocoImage) };
  }

  /** The path of the image. */
  describe(index: number): string {
    checkIndex(index, this.length);
    return this.paths[index] as string;
  }
}

/** The objects of an image, if it has the size that its annotations say. @throws SampleError that names the file */
export function objectsFor(image: Image, file: string, { height, width, objects }: CocoImage): Objects {
  if (image.height === height && image.width === width) return objects;
  throw new SampleError(
    file,
    `the image ${file} is ${String(image.height)}x${String(image.width)}, but its annotations say ` +
      `${String(height)}x${String(width)} (height x width)`,
  );
}

/** See `openCoco`. */
export interface OpenCocoOptions extends SplitsOptions, CocoReadOptions {}

/**
 * Opens images with boxes for training. `target` is a JSON file of COCO's form with the images beside it (or in a folder
 * `images` beside it); or a folder with such a file; or one with the parts `train`, `val` and perhaps `test`, either as folders
 * with a JSON file each, or as COCO has them: `annotations/instances_train2017.json` with the images in `train2017` or
 * `images/train2017`. Where there is no part for validation, one is held back from the training images, chosen by the seed.
 *
 * @throws RangeError where that is not so; and what `CocoDataset` throws
 */
export function openCoco(target: string, o: OpenCocoOptions = {}): SplitsOf<SampleSource<DetectionSample>> {
  const { valFraction = 0.2, seed = 0, ...options } = o;
  const files = findFiles(target);
  const train = new CocoDataset({ ...options, ...files.train });
  const { classNames } = train;
  const open = (file: CocoFiles, part: string): SampleSource<DetectionSample> => {
    if (part === 'train') return train;
    // The ids are the same in all parts where they are the labels.
    return new CocoDataset({ ...options, ...file, ...(options.labels !== 'id' && { classNames }) });
  };
  return completeSplits(mapParts(files, open), (whole) => splitSamples(whole, { fraction: valFraction, seed }));
}

type CocoFiles = Pick<CocoDatasetOptions, 'annotations' | 'images'>;

function findFiles(target: string): Parts<CocoFiles> {
  if (statSync(target, { throwIfNoEntry: false })?.isFile()) {
    const folder = path.dirname(target);
    return { train: { annotations: target, images: firstFolder([path.join(folder, 'images')], folder) } };
  }
  const { folders } = listFolder(target);
  if (folders.includes('annotations')) return asCocoHasThem(target);
  const parts = findParts(target);
  const inFolder = (folder: string): CocoFiles => ({
    annotations: onlyJson(folder),
    images: firstFolder([path.join(folder, 'images')], folder),
  });
  return parts ? mapParts(parts, inFolder) : { train: inFolder(target) };
}

function firstFolder(candidates: readonly string[], otherwise: string): string {
  return candidates.find((folder) => existsSync(folder)) ?? otherwise;
}

function onlyJson(folder: string): string {
  const found = listFolder(folder).files.filter((name) => name.endsWith('.json'));
  if (found.length === 1 && found[0] !== undefined) return path.join(folder, found[0]);
  const problem = found.length ? `has several JSON files (${quoted(found)})` : 'has no JSON file';
  throw new RangeError(`${folder} ${problem}; expected one file of annotations in COCO's form`);
}

/** Parts in one folder `annotations`, by the names of its files. */
function asCocoHasThem(root: string): Parts<CocoFiles> {
  const folder = path.join(root, 'annotations');
  const files = listFolder(folder).files.filter((name) => name.endsWith('.json'));
  const find = (part: string): CocoFiles | undefined => {
    const found = files.filter((name) => new RegExp(`(^|[^a-z])${part}[^a-z]*\\.json$`, 'i').test(name));
    const boxes = found.filter((name) => name.startsWith('instances_'));
    const [file, another] = boxes.length ? boxes : found;
    if (file === undefined) return undefined;
    if (another !== undefined) {
      throw new RangeError(`${folder} has ${quoted([file, another])}, which mean the same; keep one of them`);
    }
    const name = path.basename(file, '.json').replace(/^.*_/, '');
    const candidates = [name, part].flatMap((one) => [path.join(root, one), path.join(root, 'images', one)]);
    return {
      annotations: path.join(folder, file),
      images: firstFolder([...candidates, path.join(root, 'images')], root),
    };
  };
  const train = find('train');
  if (!train) {
    const whole = { annotations: onlyJson(folder), images: firstFolder([path.join(root, 'images')], root) };
    return { train: whole };
  }
  const [val, test] = [find('val') ?? find('valid'), find('test')];
  return { train, ...(val && { val }), ...(test && { test }) };
}
