/** Reading COCO's annotation files: every value is tested before it is believed. */
import { readFileSync } from 'node:fs';
import type { CocoReadOptions } from './coco_dataset.js';
import { Defects, type Objects, type Skipped } from './samples.js';

/** An image of a file, with its objects. */
export interface CocoImage {
  readonly id: number | string;
  readonly fileName: string;
  readonly width: number;
  readonly height: number;
  readonly objects: Objects;
}

type Id = number | string;
type Fields = Readonly<Record<string, unknown>>;

/** Pixels by which a box may reach over the edges of its image: annotators' rounding. */
const TOLERANCE = 1;

/** The images of a file by rising id, the names of its classes, and what was wrong and left out. */
export function readCoco(
  file: string,
  { classNames, labels = 'contiguous', skipBroken = false }: CocoReadOptions,
): { images: CocoImage[]; classNames: readonly string[]; skipped: readonly Skipped[] } {
  const content = parse(file);
  const defects = new Defects(skipBroken);
  const images = readImages(file, listOf(file, content, 'images'));
  const classes = readCategories(file, listOf(file, content, 'categories'), labels, classNames);
  const found = new Map<Id, Row[]>([...images.keys()].map((id) => [id, []]));
  const ids = new Set<Id>();
  for (const annotation of listOf(file, content, 'annotations')) {
    const problem = readAnnotation(annotation, images, classes.labels, ids);
    if (typeof problem === 'string') {
      const id = idOf(annotation['id']);
      defects.report(file, `${file}: annotation ${JSON.stringify(id) ?? '(without id)'} ${problem}`);
    } else found.get(problem.image)?.push(problem);
  }
  const sorted = [...images.values()].sort((a, b) => (a.id < b.id ? -1 : 1));
  return {
    images: sorted.map((image) => ({ ...image, objects: objectsOf(found.get(image.id) ?? []) })),
    classNames: classes.names,
    skipped: defects.skipped,
  };
}

function parse(file: string): Fields {
  let text: string;
  try {
    text = readFileSync(file, 'utf8');
  } catch (error) {
    throw new RangeError(`cannot read the annotations ${file}: ${(error as Error).message}`, { cause: error });
  }
  try {
    const value: unknown = JSON.parse(text);
    if (isFields(value)) return value;
  } catch (error) {
    throw new RangeError(`${file} is no JSON: ${(error as Error).message}`, { cause: error });
  }
  throw new RangeError(`${file}: expected an object with images, annotations and categories, as in COCO's files`);
}

function isFields(value: unknown): value is Fields {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function listOf(file: string, content: Fields, key: string): Fields[] {
  const list = content[key];
  if (!Array.isArray(list)) {
    throw new RangeError(
      `${file} has no list "${key}"; expected images, annotations and categories, as in COCO's files`,
    );
  }
  const wrong = list.findIndex((entry) => !isFields(entry));
  if (wrong >= 0) throw new RangeError(`${file}: ${key}[${String(wrong)}] is no object`);
  return list as Fields[];
}

function idOf(value: unknown): Id | undefined {
  return typeof value === 'number' || typeof value === 'string' ? value : undefined;
}

function isPositive(value: unknown): value is number {
  return typeof value === 'number' && Number.isFinite(value) && value > 0;
}

type ImageEntry = Omit<CocoImage, 'objects'>;

function readImages(file: string, list: readonly Fields[]): Map<Id, ImageEntry> {
  const images = new Map<Id, ImageEntry>();
  list.forEach(({ id: given, file_name: fileName, width, height }, i) => {
    const id = idOf(given);
    if (id === undefined || typeof fileName !== 'string' || !isPositive(width) || !isPositive(height)) {
      throw new RangeError(
        `${file}: images[${String(i)}] must have an id, a file_name, a width and a height, got ` +
          JSON.stringify({ id: given, file_name: fileName, width, height }),
      );
    }
    if (images.has(id)) throw new RangeError(`${file} has two images with the id ${JSON.stringify(id)}`);
    images.set(id, { id, fileName, width, height });
  });
  if (images.size === 0) throw new RangeError(`${file} has no images`);
  return images;
}

interface Classes {
  readonly names: readonly string[];
  /** The label of each category. */
  readonly labels: ReadonlyMap<Id, number>;
}

/** The largest id that may be a label; more columns would be of no use. */
const MAX_ID = 10_000;

function readCategories(
  file: string,
  list: readonly Fields[],
  kind: 'contiguous' | 'id',
  wanted: readonly string[] | undefined,
): Classes {
  const categories = list.map(({ id: given, name }, i) => {
    const id = idOf(given);
    if (id !== undefined && typeof name === 'string') return { id, name };
    throw new RangeError(
      `${file}: categories[${String(i)}] must have an id and a name, got ${JSON.stringify({ id: given, name })}`,
    );
  });
  categories.sort((a, b) => (a.id < b.id ? -1 : 1));
  categories.forEach(({ id, name }, i) => {
    const twin = categories.find((other, j) => j < i && (other.id === id || other.name === name));
    if (twin) {
      throw new RangeError(
        `${file} has two categories with the same id or name: ${JSON.stringify(twin)} and ${JSON.stringify({ id, name })}`,
      );
    }
  });
  if (categories.length === 0) throw new RangeError(`${file} has no categories`);
  if (kind === 'id') return labeledById(file, categories);
  const names = wanted ?? categories.map(({ name }) => name);
  const labels = categories.map(({ id, name }) => [id, names.indexOf(name)] as const);
  const unknown = categories.filter(({ name }) => !names.includes(name));
  if (unknown.length) {
    throw new RangeError(
      `${file} has the category ${JSON.stringify(unknown[0]?.name)}, which is none of the classes: ${names.join(', ')}`,
    );
  }
  return { names, labels: new Map(labels) };
}

function labeledById(file: string, categories: readonly { id: Id; name: string }[]): Classes {
  const names: string[] = [];
  const labels = new Map<Id, number>();
  for (const { id, name } of categories) {
    if (typeof id !== 'number' || !Number.isInteger(id) || id < 0 || id > MAX_ID) {
      throw new RangeError(
        `${file}: the category ${JSON.stringify(name)} has the id ${JSON.stringify(id)}; as a label it must be a whole ` +
          `number from 0 to ${String(MAX_ID)}`,
      );
    }
    while (names.length < id) names.push('');
    names[id] = name;
    labels.set(id, id);
  }
  return { names, labels };
}

interface Row {
  readonly image: Id;
  readonly box: readonly [x1: number, y1: number, x2: number, y2: number];
  readonly label: number;
  readonly area: number;
  readonly crowd: number;
}

/** The annotation, or what is wrong with it. */
function readAnnotation(
  annotation: Fields,
  images: ReadonlyMap<Id, ImageEntry>,
  labels: ReadonlyMap<Id, number>,
  ids: Set<Id>,
): Row | string {
  const { id: given, image_id, category_id, bbox, area, iscrowd } = annotation;
  const id = idOf(given);
  if (id !== undefined && ids.has(id)) return 'is there twice';
  if (id !== undefined) ids.add(id);
  const image = images.get(idOf(image_id) ?? NaN);
  if (!image) return `belongs to the image ${JSON.stringify(image_id) ?? '(none)'}, which is not among the images`;
  const where = `in the image ${image.fileName}`;
  const label = labels.get(idOf(category_id) ?? NaN);
  if (label === undefined)
    return `${where} has the category ${JSON.stringify(category_id) ?? '(none)'}, which is unknown`;
  if (!Array.isArray(bbox) || bbox.length !== 4 || !bbox.every((n) => typeof n === 'number' && Number.isFinite(n))) {
    return `${where} has the box ${JSON.stringify(bbox) ?? '(none)'}; expected four numbers [x, y, width, height]`;
  }
  const [x, y, width, height] = bbox as [number, number, number, number];
  const shown = `the box ${JSON.stringify(bbox)} ([x, y, width, height])`;
  if (!(width > 0 && height > 0)) return `${where} has ${shown}, whose width and height must be above 0`;
  const isInside =
    x >= -TOLERANCE &&
    y >= -TOLERANCE &&
    x + width <= image.width + TOLERANCE &&
    y + height <= image.height + TOLERANCE;
  if (!isInside) {
    return `${where} has ${shown}, which is outside of the image, ${String(image.width)} wide and ${String(image.height)} high`;
  }
  return {
    image: image.id,
    box: [x, y, x + width, y + height],
    label,
    area: isPositive(area) ? area : width * height,
    crowd: iscrowd === 1 || iscrowd === true ? 1 : 0,
  };
}

function objectsOf(rows: readonly Row[]): Objects {
  return {
    boxes: Float32Array.from(rows.flatMap(({ box }) => box)),
    labels: Int32Array.from(rows, ({ label }) => label),
    areas: Float32Array.from(rows, ({ area }) => area),
    crowds: Uint8Array.from(rows, ({ crowd }) => crowd),
  };
}
