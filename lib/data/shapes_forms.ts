/** The outlines of the `shapes` data set: is a point inside? In the shape's own frame: y up, within the unit circle. */

type Inside = (x: number, y: number) => boolean;

const disk = (x: number, y: number, radius: number): boolean => x * x + y * y <= radius * radius;

/** Inside all the half planes n . p <= d. */
const convex =
  (planes: readonly (readonly [nx: number, ny: number, d: number])[]): Inside =>
  (x, y) =>
    planes.every(([nx, ny, d]) => nx * x + ny * y <= d);

/** The half plane to the left of the line from a to b, as [nx, ny, d]. */
function edge(ax: number, ay: number, bx: number, by: number): readonly [number, number, number] {
  const nx = by - ay;
  const ny = ax - bx;
  return [nx, ny, nx * ax + ny * ay];
}

const triangle = convex([edge(-0.68, -0.75, 0.68, -0.75), edge(0.68, -0.75, 0, 1), edge(0, 1, -0.68, -0.75)]);
const arrowHead = convex([edge(-0.85, 0.05, 0.85, 0.05), edge(0.85, 0.05, 0, 1), edge(0, 1, -0.85, 0.05)]);

// The points of a five-pointed star on circles of radius 1 and 0.42, written out so that no sine is needed.
const starX = [0, 0.24687, 0.95106, 0.39944, 0.58779, 0, -0.58779, -0.39944, -0.95106, -0.24687];
const starY = [1, 0.33979, 0.30902, -0.12979, -0.80902, -0.42, -0.80902, -0.12979, 0.30902, 0.33979];

/** Even-odd rule: a ray to the right crosses the outline an odd number of times. */
const star: Inside = (x, y) => {
  let inside = false;
  for (let i = 0, j = starX.length - 1; i < starX.length; j = i++) {
    const xi = starX[i] ?? 0;
    const yi = starY[i] ?? 0;
    const xj = starX[j] ?? 0;
    const yj = starY[j] ?? 0;
    if (yi > y !== yj > y && x < ((xj - xi) * (y - yi)) / (yj - yi) + xi) inside = !inside;
  }
  return inside;
};

const forms = {
  disk: (x, y) => disk(x, y, 0.9),
  ring: (x, y) => disk(x, y, 0.98) && !disk(x, y, 0.52),
  square: (x, y) => Math.abs(x) <= 0.74 && Math.abs(y) <= 0.74,
  triangle,
  star,
  cross: (x, y) => Math.max(Math.abs(x), Math.abs(y)) <= 0.95 && Math.min(Math.abs(x), Math.abs(y)) <= 0.32,
  crescent: (x, y) => disk(x, y, 1) && !disk(x, y - 0.55, 0.8),
  arrow: (x, y) => arrowHead(x, y) || (Math.abs(x) <= 0.32 && y >= -0.98 && y <= 0.1),
} satisfies Record<string, Inside>;

/** Class names of the task `shape`. */
export const shapeNames = Object.keys(forms) as readonly (keyof typeof forms)[];

/** Whether (x, y) is inside, per shape. */
export const insideShape: readonly Inside[] = Object.values(forms);

/** The shapes that show where up is. */
export const asymmetricShapes: readonly number[] = (['triangle', 'crescent', 'arrow'] as const).map((name) =>
  shapeNames.indexOf(name),
);
