/** Which detections of an image are right: pycocotools' greedy matching. */
import type { CocoAnnotation, CocoBox, CocoDetection } from './coco.js';

/** The detections of one category in one image, by falling score. */
export interface MatchedImage {
  readonly scores: readonly number[];
  /** Annotated objects that count. */
  readonly objects: number;
  /** For each threshold: which detections hold an object, and which do not count. */
  readonly outcomes: readonly { readonly hit: readonly boolean[]; readonly ignored: readonly boolean[] }[];
}

/** Intersection over union; against a crowd, over the detection's own area. */
function overlap(detection: CocoBox, object: CocoBox, isCrowd: boolean): number {
  const [dx, dy, dw, dh] = detection;
  const [gx, gy, gw, gh] = object;
  const width = Math.min(dw + dx, gw + gx) - Math.max(dx, gx);
  const height = Math.min(dh + dy, gh + gy) - Math.max(dy, gy);
  if (width <= 0 || height <= 0) return 0;
  const both = width * height;
  return both / (isCrowd ? dw * dh : dw * dh + gw * gh - both);
}

/**
 * @param range areas that count, both bounds included
 * @param most detections beyond this number do not count
 */
export function matchImage(
  annotations: readonly CocoAnnotation[],
  detections: readonly CocoDetection[],
  thresholds: readonly number[],
  [low, high]: readonly [number, number],
  most: number,
): MatchedImage {
  const isOutside = (area: number): boolean => area < low || area > high;
  // Those that do not count come last; both sorts are stable.
  const objects = annotations
    .map((object) => {
      const isCrowd = (object.iscrowd ?? 0) !== 0;
      return { box: object.bbox, isCrowd, ignored: isCrowd || isOutside(object.area) };
    })
    .sort((a, b) => Number(a.ignored) - Number(b.ignored));
  const ranked = [...detections].sort((a, b) => b.score - a.score).slice(0, most);
  const overlaps = ranked.map(({ bbox }) => objects.map(({ box, isCrowd }) => overlap(bbox, box, isCrowd)));
  const outcomes = thresholds.map((threshold) => {
    const isTaken = objects.map(() => false);
    const hit: boolean[] = [];
    const ignored: boolean[] = [];
    ranked.forEach(({ bbox }, d) => {
      let best = Math.min(threshold, 1 - 1e-10);
      let match = -1;
      for (const [g, object] of objects.entries()) {
        if (isTaken[g] && !object.isCrowd) continue;
        if (match >= 0 && !objects[match]?.ignored && object.ignored) break;
        const value = overlaps[d]?.[g] ?? 0;
        if (value < best) continue;
        best = value;
        match = g;
      }
      hit.push(match >= 0);
      ignored.push(match >= 0 ? objects[match]?.ignored === true : isOutside(bbox[2] * bbox[3]));
      if (match >= 0) isTaken[match] = true;
    });
    return { hit, ignored };
  });
  return {
    scores: ranked.map(({ score }) => score),
    objects: objects.filter(({ ignored }) => !ignored).length,
    outcomes,
  };
}
