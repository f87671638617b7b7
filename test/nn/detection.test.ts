import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { boxIou, nms, roiAlign, type RoiAlignOptions } from '../../lib/nn/index.js';
import { aten, manualSeed, rand, randint, scope, tensor, type Tensor } from '../../lib/tensor/index.js';

type Box = readonly [number, number, number, number];

/** Intersection over union in double precision, of boxes with whole numbers. */
function iouOf(a: Box, b: Box): number {
  const width = Math.max(0, Math.min(a[2], b[2]) - Math.max(a[0], b[0]));
  const height = Math.max(0, Math.min(a[3], b[3]) - Math.max(a[1], b[1]));
  const area = ([x1, y1, x2, y2]: Box): number => (x2 - x1) * (y2 - y1);
  return (width * height) / (area(a) + area(b) - width * height);
}

/** One box after the other. */
function plainNms(
  boxes: readonly Box[],
  scores: readonly number[],
  threshold: number,
  groups?: readonly number[],
): number[] {
  const order = boxes.map((_, i) => i).sort((a, b) => (scores[b] ?? 0) - (scores[a] ?? 0) || a - b);
  const kept: number[] = [];
  for (const i of order) {
    const isGone = kept.some((j) => groups?.[i] === groups?.[j] && iouOf(boxes[j] as Box, boxes[i] as Box) > threshold);
    if (!isGone) kept.push(i);
  }
  return kept;
}

const boxes = (list: readonly Box[]): Tensor => tensor(list.flat()).view([-1, 4]);

describe('nms', () => {
  const box = fc.tuple(fc.nat(12), fc.nat(12), fc.nat(8), fc.nat(8)).map(([x, y, w, h]): Box => [x, y, x + w, y + h]);
  const rows = fc.array(fc.tuple(box, fc.nat(4), fc.nat(2)), { minLength: 0, maxLength: 40 });

  it('agrees with looking at one box after the other: ties, groups, boxes without area', () => {
    fc.assert(
      fc.property(rows, fc.constantFrom(0.3, 0.45, 0.7), fc.boolean(), (list, threshold, isGrouped) => {
        const [corners, scores, groups] = [list.map(([b]) => b), list.map(([, s]) => s), list.map(([, , g]) => g)];
        const ours = scope(() =>
          nms(
            boxes(corners),
            tensor(scores),
            threshold,
            isGrouped ? tensor(groups, { dtype: 'int64' }) : null,
          ).tolist(),
        );
        expect(ours).toEqual(plainNms(corners, scores, threshold, isGrouped ? groups : undefined));
      }),
      { numRuns: 60 },
    );
  });

  it('agrees beyond one block, with long chains of boxes that suppress each other', () => {
    const chain = Array.from({ length: 700 }, (_, i): Box => [i, 0, i + 10, 10]);
    const scores = chain.map((_, i) => 1000 - i);
    expect(nms(boxes(chain), tensor(scores), 0.5).tolist()).toEqual(plainNms(chain, scores, 0.5));
    manualSeed(1);
    const corner = randint(0, 60, [1300, 2]);
    const random = aten.cat([corner, corner.add(randint(1, 20, [1300, 2]))], 1);
    const score = rand([1300]);
    const list = random.tolist() as unknown as Box[];
    expect(nms(random.float(), score, 0.4).tolist()).toEqual(plainNms(list, score.tolist() as number[], 0.4));
  });

  it('gives nothing for nothing, has no gradient, and refuses other shapes', () => {
    expect(nms(tensor([]).view([0, 4]), tensor([]), 0.5).shape).toEqual([0]);
    const learned = boxes([[0, 0, 2, 2], [0, 0, 1, 1]]).requiresGrad_(); // prettier-ignore
    expect(nms(learned, tensor([1, 2]), 0.1).requiresGrad).toBe(false);
    expect(() => nms(tensor([1, 2, 3, 4]), tensor([1]), 0.5)).toThrow(/nms: boxes: expected \[N, 4\], got \[4\]/);
    expect(() => nms(learned, tensor([1]), 0.5)).toThrow(/scores must be \[2\], got \[1\]/);
    expect(() => nms(learned, tensor([1, 2]), 0.5, tensor([1]))).toThrow(/groups must be \[2\]/);
  });
});

describe('boxIou', () => {
  it('is a table of pairs, NaN where neither has an area', () => {
    const iou = boxIou(boxes([[0, 0, 4, 4], [1, 1, 1, 1]]), boxes([[2, 2, 6, 6], [1, 1, 1, 1], [9, 9, 10, 10]])); // prettier-ignore
    expect(iou.shape).toEqual([2, 3]);
    expect(Number(iou.index(0, 0).item())).toBeCloseTo(4 / 28);
    expect(iou.index(1, 1).item()).toBeNaN();
    expect(iou.index(0, 2).item()).toBe(0);
  });
});

/** Sample by sample, as the definition says. */
function plainRoiAlign(
  maps: number[][][][][],
  rois: number[][],
  levels: number[],
  o: RoiAlignOptions & { outputSize: [number, number] },
): number[] {
  const { outputSize: [rows, columns], scales, samplingRatio = 2, aligned = false } = o; // prettier-ignore
  const out: number[] = [];
  rois.forEach(([image = 0, ...corners], r) => {
    const map = maps[levels[r] ?? 0]?.[image] ?? [];
    const [x1 = 0, y1 = 0, x2 = 0, y2 = 0] = corners.map(
      (c) => c * (scales[levels[r] ?? 0] ?? 1) - (aligned ? 0.5 : 0),
    );
    const [w, h] = aligned ? [x2 - x1, y2 - y1] : [Math.max(x2 - x1, 1), Math.max(y2 - y1, 1)];
    const count = (bin: number): number => (samplingRatio > 0 ? samplingRatio : Math.ceil(bin));
    const [ny, nx] = [count(h / rows), count(w / columns)];
    for (const channel of map) {
      const [height, width] = [channel.length, channel[0]?.length ?? 0];
      const at = (y: number, x: number): number => {
        if (y < -1 || y > height || x < -1 || x > width) return 0;
        const [py, px] = [Math.min(Math.max(y, 0), height - 1), Math.min(Math.max(x, 0), width - 1)];
        const [iy, ix] = [Math.floor(py), Math.floor(px)];
        const value = (i: number, j: number): number => channel[Math.min(i, height - 1)]?.[Math.min(j, width - 1)] ?? 0;
        const [fy, fx] = [py - iy, px - ix];
        return (
          (1 - fy) * ((1 - fx) * value(iy, ix) + fx * value(iy, ix + 1)) +
          fy * ((1 - fx) * value(iy + 1, ix) + fx * value(iy + 1, ix + 1))
        );
      };
      for (let i = 0; i < rows; i++) {
        for (let j = 0; j < columns; j++) {
          let sum = 0;
          for (let a = 0; a < ny; a++)
            for (let b = 0; b < nx; b++)
              sum += at(y1 + (h / rows) * (i + (a + 0.5) / ny), x1 + (w / columns) * (j + (b + 0.5) / nx));
          out.push(sum / Math.max(ny * nx, 1));
        }
      }
    }
  });
  return out;
}

describe('roiAlign', () => {
  manualSeed(3);
  const double = { dtype: 'float64' } as const;
  const maps = [rand([2, 3, 9, 11], double), rand([2, 3, 5, 6], double)];
  // Inside, over every border, far outside, without area.
  const rois = [[0, 3, 2, 30, 28], [1, -20, -9, 12, 60], [1, 35, 30, 80, 90], [0, 200, 200, 220, 210], [1, 7, 7, 7, 7]]; // prettier-ignore
  const levels = [0, 1, 0, 1, 1];
  const scales = [0.25, 0.125];

  it.each([
    { samplingRatio: 2, aligned: false },
    { samplingRatio: 3, aligned: true },
    { samplingRatio: 0, aligned: false },
    { samplingRatio: 0, aligned: true },
  ])('agrees with its definition, levels mixed: %o', (variant) => {
    const options = { outputSize: [3, 2] as [number, number], scales, ...variant };
    const ours = roiAlign(maps, tensor(rois, double), { ...options, levels: tensor(levels, { dtype: 'int64' }) });
    const expected = plainRoiAlign(
      maps.map((map) => map.tolist()) as unknown as number[][][][][],
      rois,
      levels,
      options,
    );
    expect(ours.shape).toEqual([5, 3, 3, 2]);
    const values = Array.from(ours.flatten().data() as Float64Array);
    values.forEach((value, i) => expect(value).toBeCloseTo(expected[i] ?? NaN, 10));
  });

  it('sends gradients to the maps that are read, zero to the others, none to the regions', () => {
    const leaves = maps.map((map) => map.clone().requiresGrad_());
    const regions = tensor([[0, 4, 4, 20, 20]], double).requiresGrad_();
    const y = roiAlign(leaves, regions, { outputSize: 2, scales });
    y.sum().backward();
    // Weights of a cell sum to 1.
    expect(Number(leaves[0]?.grad?.sum().item())).toBeCloseTo(4 * 3);
    expect(leaves[1]?.grad?.abs().sum().item()).toBe(0);
    expect(regions.grad).toBeNull();
  });

  it('takes no regions, half precision, and refuses what does not fit', () => {
    expect(roiAlign(maps, tensor([]).view([0, 5]), { outputSize: 7, scales }).shape).toEqual([0, 3, 7, 7]);
    const half = roiAlign([maps[0]!.half()], tensor([[0, 4, 4, 20, 20]]), { outputSize: 2, scales: [0.25] });
    expect(half.dtype).toBe('float16');
    expect(() => roiAlign(maps, tensor([[0, 1, 2, 3]]), { outputSize: 2, scales })).toThrow(/rois: expected \[N, 5\]/);
    expect(() => roiAlign(maps, tensor(rois), { outputSize: 2, scales: [1] })).toThrow(/a scale for each.*1 scales/);
  });
});
