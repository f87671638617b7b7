/** Images with masks of several kinds and boxes: a folder of images, one of masks for each kind, and a file of COCO's form. */
import { existsSync } from 'node:fs';
import path from 'node:path';
import { objectsFor } from './coco_dataset.js';
import { readCoco, type CocoImage } from './coco_file.js';
import { checkIndex, splitSamples } from './dataset.js';
import { decodeImage, hasImageSuffix } from './decode.js';
import { completeSplits, findParts, listFolder, mapParts, type SplitsOf, type SplitsOptions } from './folder.js';
import { filesIn, fitting, MaskFolder, readClassNames, readMask } from './masks.js';
import { Defects, type MultiTaskSample, type SampleSource, type Skipped } from './samples.js';

/** The classes of each task. */
export type TaskClasses = Readonly<Record<string, readonly string[]>>;

/** The task of the boxes. */
export const BOXES = 'det';

/** Classes of several tasks as one list, which is what data sets and adapter folders keep: `sem/road`, `det/car`. */
export function taskClassNames(classes: TaskClasses): string[] {
  return Object.entries(classes).flatMap(([task, names]) => names.map((name) => `${task}/${name}`));
}

/** The other way round. @throws RangeError for a name without its task */
export function groupTaskClasses(classNames: readonly string[]): TaskClasses {
  const groups: Record<string, string[]> = {};
  for (const full of classNames) {
    const slash = full.indexOf('/');
    if (slash < 1) throw new RangeError(`'${full}' does not say its task; expected a name such as sem/road`);
    (groups[full.slice(0, slash)] ??= []).push(full.slice(slash + 1));
  }
  return groups;
}

/** See `MultiTaskFolder`. */
export interface MultiTaskFolderOptions {
  /** Classes by the name of the folder of masks, and those of the objects as `det`. A task that is left out is not read. */
  readonly classes: TaskClasses;
  /** Leave out images, masks and annotations that do not belong together, and count them (`skipped`). Default false: an error. */
  readonly skipBroken?: boolean;
}

const ANNOTATIONS = 'objects.json';

/** What is known of an image before it is read. */
interface Entry {
  readonly file: string;
  /** By task. */
  readonly masks: Readonly<Record<string, string>>;
  readonly coco: CocoImage | null;
}

/**
 * Images with masks of several kinds and boxes, in a folder of this form; what is not there (masks, or `objects.json`) is no
 * task:
 *
 *     images/1.jpg
 *     masks/sem/1.png     classes of pixels, indexed PNG: `MaskFolder`
 *     masks/driv/1.png    and of another kind
 *     objects.json        boxes, in COCO's form: `CocoDataset`; `file_name` counts from images/
 *
 * Every image must have a mask of every kind, and an entry among the images of `objects.json`.
 */
export class MultiTaskFolder implements SampleSource<MultiTaskSample> {
  readonly length: number;
  readonly classNames: readonly string[];
  readonly #classes: TaskClasses;
  readonly #entries: readonly Entry[];
  readonly #skipped: readonly Skipped[];

  /**
   * @throws RangeError for a folder of another form; SampleError for an image without a mask or annotations, for masks or
   *   annotations without their image, and for a box that is outside of its image
   */
  constructor(root: string, { classes, skipBroken = false }: MultiTaskFolderOptions) {
    const images = path.join(root, 'images');
    const kinds = Object.keys(classes).filter((task) => task !== BOXES);
    const folders = kinds.map((task) => {
      const classNames = classes[task] ?? [];
      return [task, new MaskFolder({ images, masks: path.join(root, 'masks', task), classNames, skipBroken })] as const;
    });
    const annotations = path.join(root, ANNOTATIONS);
    const labels = classes[BOXES];
    const coco = labels ? readCoco(annotations, { classNames: labels, skipBroken }) : null;
    const defects = new Defects(skipBroken);
    const maskOf = folders.map(
      ([task, { paths, maskPaths }]) => [task, new Map(paths.map((file, i) => [file, maskPaths[i] ?? '']))] as const,
    );
    const described = new Map(coco?.images.map((image) => [path.join(images, image.fileName), image]));
    const present = filesIn(images)
      .filter(hasImageSuffix)
      .map((file) => path.join(images, file));
    for (const [file, { fileName }] of described) {
      if (!present.includes(file))
        defects.report(
          annotations,
          `${annotations} has annotations of the image ${fileName}, which is not in ${images}`,
        );
    }
    this.#entries = present.flatMap((file) => {
      const entry = described.get(file) ?? null;
      if (coco && !entry) defects.report(file, `the image ${file} is not among the images of ${annotations}`);
      const masks = Object.fromEntries(maskOf.map(([task, of]) => [task, of.get(file) ?? '']));
      const isWhole = !(coco && !entry) && !Object.values(masks).includes('');
      return isWhole ? [{ file, masks, coco: entry }] : [];
    });
    this.length = this.#entries.length;
    if (this.length === 0) throw new RangeError(`${root} has no image of which everything is known that it should`);
    this.#classes = classes;
    this.classNames = taskClassNames(classes);
    this.#skipped = [...defects.skipped, ...folders.flatMap(([, { skipped }]) => skipped), ...(coco?.skipped ?? [])];
  }

  /** What was left out. */
  get skipped(): readonly Skipped[] {
    return this.#skipped;
  }

  async load(index: number): Promise<MultiTaskSample> {
    const file = this.describe(index);
    const { masks: files, coco } = this.#entries[index] as Entry;
    // All are waited for, so that no error is left to nobody.
    const [image, ...masks] = await Promise.allSettled([
      decodeImage(file),
      ...Object.entries(files).map(async ([task, mask]) => ({
        task,
        mask,
        content: await readMask(mask, this.#classes[task]?.length ?? 0),
      })),
    ]);
    if (image.status === 'rejected') throw image.reason;
    const found = masks.map((outcome) => {
      if (outcome.status === 'rejected') throw outcome.reason;
      const { task, mask, content } = outcome.value;
      return [task, fitting(content, mask, image.value, file)] as const;
    });
    return {
      image: image.value,
      masks: Object.fromEntries(found),
      ...(coco && { objects: objectsFor(image.value, file, coco) }),
    };
  }

  /** The path of the image. */
  describe(index: number): string {
    checkIndex(index, this.length);
    return (this.#entries[index] as Entry).file;
  }
}

/** See `openMultiTask`. */
export interface OpenMultiTaskOptions extends SplitsOptions {
  /** Default: see `openMultiTask`. */
  readonly classes?: TaskClasses;
  /** See `MultiTaskFolderOptions`. */
  readonly skipBroken?: boolean;
}

/**
 * Opens images with masks of several kinds and boxes for training: `root` is a folder as `MultiTaskFolder` reads it, or has the
 * parts `train`, `val` and perhaps `test`, each such a folder. Where there is no part for validation, one is held back from
 * the training images, chosen by the seed. The classes of the masks in `masks/sem` are the lines of `root/sem.txt`, those of
 * the boxes the categories of `objects.json`.
 *
 * @throws RangeError where that is not so; and what `MultiTaskFolder` throws
 */
export function openMultiTask(
  root: string,
  { classes: given, skipBroken = false, valFraction = 0.2, seed = 0 }: OpenMultiTaskOptions = {},
): SplitsOf<SampleSource<MultiTaskSample>> {
  const parts = findParts(root) ?? { train: root };
  const classes = given ?? classesOf(root, parts.train);
  const opened = mapParts(
    parts,
    (folder): SampleSource<MultiTaskSample> => new MultiTaskFolder(folder, { classes, skipBroken }),
  );
  return completeSplits(opened, (whole) => splitSamples(whole, { fraction: valFraction, seed }));
}

/** The tasks of a folder and their classes. */
function classesOf(root: string, folder: string): TaskClasses {
  const masks = path.join(folder, 'masks');
  const kinds = existsSync(masks) ? listFolder(masks).folders : [];
  if (kinds.includes(BOXES)) {
    throw new RangeError(
      `${masks} has the folder "${BOXES}", which is what boxes are called; give these masks another name`,
    );
  }
  const entries = kinds.map((task) => {
    const file = path.join(root, `${task}.txt`);
    const names = readClassNames(file);
    if (!names)
      throw new RangeError(`${file} is missing: the names of the classes of the masks in ${masks}, one a line`);
    return [task, names] as const;
  });
  const annotations = path.join(folder, ANNOTATIONS);
  const boxes = existsSync(annotations)
    ? [[BOXES, readCoco(annotations, { skipBroken: true }).classNames] as const]
    : [];
  const classes = [...entries, ...boxes];
  if (classes.length === 0) {
    throw new RangeError(
      `${folder} has neither folders of masks (such as masks/sem) nor ${ANNOTATIONS}; expected images/ and at least one of them`,
    );
  }
  return Object.fromEntries(classes);
}
