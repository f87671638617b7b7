/**
 * Average precision of boxes as COCO defines it: the numbers of pycocotools 2.0.11, in the same double arithmetic. Lin et
 * al., ECCV 2014, arXiv 1405.0312.
 */
import { matchImage, type MatchedImage } from './coco_match.js';

/** (x, y, width, height) in pixels. */
export type CocoBox = readonly [x: number, y: number, width: number, height: number];

/** An annotated object, as in COCO's files. */
export interface CocoAnnotation {
  /** At least 1. */
  readonly id: number;
  readonly image_id: number;
  readonly category_id: number;
  readonly bbox: CocoBox;
  /** Of the object's outline, which decides its size; not the box's. */
  readonly area: number;
  /** 1: a crowd, which may hold any number of detections. Default 0. */
  readonly iscrowd?: number;
}

/** What is annotated, as in COCO's files. */
export interface CocoGroundTruth {
  readonly images: readonly { readonly id: number }[];
  readonly categories: readonly { readonly id: number }[];
  readonly annotations: readonly CocoAnnotation[];
}

/** A detection, as in COCO's result files. */
export interface CocoDetection {
  readonly image_id: number;
  readonly category_id: number;
  readonly bbox: CocoBox;
  readonly score: number;
}

/** What COCO's evaluation leaves open. */
export interface CocoOptions {
  /** Default 0.5, 0.55, ..., 0.95. */
  readonly iouThresholds?: readonly number[];
  /** At equal distances from 0 to 1. Default 101. */
  readonly recallPoints?: number;
  /** Detections per image and category, rising; the last one counts for the precisions. Default 1, 10, 100. */
  readonly maxDets?: readonly number[];
  /** Bounds of the annotated areas, both included, by name. Default `all`, `small`, `medium`, `large`. */
  readonly areaRanges?: Readonly<Record<string, readonly [number, number]>>;
}

/** -1 stands for what is not defined because nothing is annotated. */
export interface CocoResult {
  /** Mean over thresholds, recalls and categories. */
  readonly AP: number;
  readonly AP50: number;
  readonly AP75: number;
  readonly APs: number;
  readonly APm: number;
  readonly APl: number;
  /** Largest recalls, by the number of detections per image and category: mean over thresholds and categories. */
  readonly AR: Readonly<Record<number, number>>;
  readonly ARs: number;
  readonly ARm: number;
  readonly ARl: number;
  /** pycocotools' list: AP, AP50, AP75, APs, APm, APl, AR for each of `maxDets`, ARs, ARm, ARl. */
  readonly stats: readonly number[];
  readonly categoryIds: readonly number[];
  readonly apPerCategory: readonly number[];
  /** At the last of `maxDets`, flat: threshold, recall, category, area range. */
  readonly precision: Float64Array;
  /** Flat: threshold, category, area range, number of detections. */
  readonly recall: Float64Array;
}

const DEFAULT_AREAS = { all: [0, 1e10], small: [0, 1024], medium: [1024, 9216], large: [9216, 1e10] } as const;

/** Distance of 1 to the next double. */
const EPSILON = 2 ** -52;

/** `count` numbers at equal distances, as numpy's `linspace` rounds them. */
function linspace(start: number, end: number, count: number): number[] {
  const step = (end - start) / (count - 1);
  return Array.from({ length: count }, (_, i) => (i === count - 1 ? end : i * step + start));
}

/**
 * Evaluates detections against annotations.
 *
 * @throws RangeError for an annotation id below 1, or a detection or annotation of an image that is not listed; TypeError
 *   for a box that is not four numbers, or a score that is none
 */
export function evaluateCoco(
  truth: CocoGroundTruth,
  detections: readonly CocoDetection[],
  options: CocoOptions = {},
): CocoResult {
  const { iouThresholds = linspace(0.5, 0.95, 10), recallPoints = 101, maxDets = [1, 10, 100] } = options;
  const areaRanges: Readonly<Record<string, readonly [number, number]>> = options.areaRanges ?? DEFAULT_AREAS;
  check(truth, detections);
  const areas = Object.values(areaRanges);
  const imageIds = rising(truth.images);
  const categoryIds = rising(truth.categories);
  const recalls = linspace(0, 1, recallPoints);
  const [T, R, K, A, M] = [iouThresholds.length, recallPoints, categoryIds.length, areas.length, maxDets.length];
  const precision = new Float64Array(T * R * K * A).fill(-1);
  const recall = new Float64Array(T * K * A * M).fill(-1);
  const key = ({ image_id, category_id }: CocoDetection | CocoAnnotation): string => `${image_id}/${category_id}`;
  const annotated = groupBy(truth.annotations, key);
  const found = groupBy(detections, key);
  const most = maxDets.at(-1) ?? 0;

  categoryIds.forEach((category, k) => {
    const pairs = imageIds.map((image) => {
      const name = `${image}/${category}`;
      return { objects: annotated.get(name) ?? [], detections: found.get(name) ?? [] };
    });
    const images = pairs.filter((pair) => pair.objects.length + pair.detections.length > 0);
    areas.forEach((area, a) => {
      const matched = images.map((pair) => matchImage(pair.objects, pair.detections, iouThresholds, area, most));
      const objects = matched.reduce((total, image) => total + image.objects, 0);
      if (objects === 0) return;
      maxDets.forEach((maxDet, m) => {
        const ranked = rank(matched, maxDet);
        for (let t = 0; t < T; t++) {
          const curve = precisionRecall(matched, ranked, t, objects);
          recall[((t * K + k) * A + a) * M + m] = curve.recalls.at(-1) ?? 0;
          if (m < M - 1) continue;
          const sampled = sample(curve, recalls);
          for (let r = 0; r < R; r++) precision[((t * R + r) * K + k) * A + a] = sampled[r] ?? 0;
        }
      });
    });
  });
  const tables: Tables = {
    precision,
    recall,
    iouThresholds,
    areaNames: Object.keys(areaRanges),
    sizes: [T, R, K, A, M],
  };
  return summarize(tables, maxDets, categoryIds);
}

function check(truth: CocoGroundTruth, detections: readonly CocoDetection[]): void {
  const images = new Set(truth.images.map(({ id }) => id));
  const isBox = (box: readonly number[]): boolean =>
    Array.isArray(box) && box.length === 4 && box.every(Number.isFinite);
  for (const { id, image_id, bbox } of truth.annotations) {
    if (!(id >= 1)) throw new RangeError(`COCO: annotation ids must be at least 1, got ${id}`);
    if (!images.has(image_id))
      throw new RangeError(`COCO: annotation ${id} belongs to image ${image_id}, which is not listed`);
    if (!isBox(bbox)) throw new TypeError(`COCO: annotation ${id} has no box of four numbers: ${JSON.stringify(bbox)}`);
  }
  for (const [i, { image_id, bbox, score }] of detections.entries()) {
    if (!images.has(image_id))
      throw new RangeError(`COCO: detection ${i} belongs to image ${image_id}, which is not listed`);
    if (!isBox(bbox)) throw new TypeError(`COCO: detection ${i} has no box of four numbers: ${JSON.stringify(bbox)}`);
    if (!Number.isFinite(score)) throw new TypeError(`COCO: detection ${i} must have a score, got ${String(score)}`);
  }
}

function rising(items: readonly { readonly id: number }[]): number[] {
  return [...new Set(items.map(({ id }) => id))].sort((a, b) => a - b);
}

function groupBy<T>(items: readonly T[], key: (item: T) => string): Map<string, T[]> {
  const groups = new Map<string, T[]>();
  for (const item of items) {
    const name = key(item);
    const group = groups.get(name);
    if (group) group.push(item);
    else groups.set(name, [item]);
  }
  return groups;
}

/** One detection of an image, by its place there. */
interface Ranked {
  readonly image: number;
  readonly index: number;
  readonly score: number;
}

/** The first `maxDet` detections of every image, by falling score; equal scores keep the images' order. */
function rank(images: readonly MatchedImage[], maxDet: number): Ranked[] {
  return images
    .flatMap(({ scores }, image) => scores.slice(0, maxDet).map((score, index) => ({ image, index, score })))
    .sort((a, b) => b.score - a.score);
}

interface Curve {
  readonly recalls: readonly number[];
  readonly precisions: readonly number[];
}

/** Recall and precision after each detection that counts or not, precision made falling from the right. */
function precisionRecall(
  images: readonly MatchedImage[],
  ranked: readonly Ranked[],
  threshold: number,
  objects: number,
): Curve {
  let [right, wrong] = [0, 0];
  const recalls: number[] = [];
  const precisions: number[] = [];
  for (const { image, index } of ranked) {
    const { hit, ignored } = (images[image] as MatchedImage).outcomes[threshold] as MatchedImage['outcomes'][number];
    if (!ignored[index]) {
      if (hit[index]) right++;
      else wrong++;
    }
    recalls.push(right / objects);
    precisions.push(right / (wrong + right + EPSILON));
  }
  for (let i = precisions.length - 1; i > 0; i--) {
    precisions[i - 1] = Math.max(precisions[i - 1] ?? 0, precisions[i] ?? 0);
  }
  return { recalls, precisions };
}

/** Precision at the first detection that reaches each recall; 0 where none does. */
function sample({ recalls, precisions }: Curve, points: readonly number[]): number[] {
  let at = 0;
  return points.map((point) => {
    while (at < recalls.length && (recalls[at] ?? 0) < point) at++;
    return precisions[at] ?? 0;
  });
}

interface Tables {
  readonly precision: Float64Array;
  readonly recall: Float64Array;
  readonly iouThresholds: readonly number[];
  readonly areaNames: readonly string[];
  readonly sizes: readonly [T: number, R: number, K: number, A: number, M: number];
}

/** Mean of the values that are defined, or -1. */
function mean(values: readonly number[]): number {
  const defined = values.filter((value) => value > -1);
  return defined.length === 0 ? -1 : defined.reduce((sum, value) => sum + value, 0) / defined.length;
}

function summarize(tables: Tables, maxDets: readonly number[], categoryIds: readonly number[]): CocoResult {
  const { precision, recall, iouThresholds, areaNames, sizes } = tables;
  const [T, R, K, A, M] = sizes;
  const thresholds = Array.from({ length: T }, (_, t) => t);
  const categories = Array.from({ length: K }, (_, k) => k);
  const precisions = (area: string, ts = thresholds, ks = categories): number => {
    const a = areaNames.indexOf(area);
    if (a < 0) return -1;
    const values = ts.flatMap((t) =>
      ks.flatMap((k) => Array.from({ length: R }, (_, r) => precision[((t * R + r) * K + k) * A + a] ?? -1)),
    );
    return mean(values);
  };
  const recallOf = (area: string, m: number): number => {
    const a = areaNames.indexOf(area);
    if (a < 0) return -1;
    return mean(thresholds.flatMap((t) => categories.map((k) => recall[((t * K + k) * A + a) * M + m] ?? -1)));
  };
  const at = (iou: number): number =>
    precisions(
      'all',
      thresholds.filter((t) => Math.abs((iouThresholds[t] ?? 0) - iou) < 1e-9),
    );
  const [AP, AP50, AP75] = [precisions('all'), at(0.5), at(0.75)];
  const [APs, APm, APl] = ['small', 'medium', 'large'].map((area) => precisions(area)) as [number, number, number];
  const recalls = maxDets.map((_, m) => recallOf('all', m));
  const [ARs, ARm, ARl] = ['small', 'medium', 'large'].map((area) => recallOf(area, M - 1)) as [number, number, number];
  return {
    ...{ AP, AP50, AP75, APs, APm, APl, ARs, ARm, ARl },
    AR: Object.fromEntries(maxDets.map((maxDet, m) => [maxDet, recalls[m] ?? -1])),
    stats: [AP, AP50, AP75, APs, APm, APl, ...recalls, ARs, ARm, ARl],
    categoryIds,
    apPerCategory: categories.map((k) => precisions('all', thresholds, [k])),
    precision,
    recall,
  };
}
