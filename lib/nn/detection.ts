/**
 * Boxes and regions, as bare functions of ATen operators. Boxes are rows (x1, y1, x2, y2) in pixels. Nothing here reads
 * a box into JavaScript. Definitions are torchvision's (release 0.28.0).
 */
import { arange, aten, noGrad, scope, tensor, type Tensor } from '../tensor/index.js';
import { pair, type Size2 } from './site.js';

function requireBoxes(boxes: Tensor, where: string, columns = 4): void {
  if (boxes.ndim !== 2 || boxes.shape[1] !== columns) {
    throw new RangeError(`${where}: expected [N, ${columns}], got [${boxes.shape.join(', ')}]`);
  }
}

/** (x2 - x1) (y2 - y1) of boxes [..., 4]. */
export function boxArea(boxes: Tensor): Tensor {
  const [x1, y1, x2, y2] = boxes.unbind(-1) as [Tensor, Tensor, Tensor, Tensor];
  return x2.sub(x1).mul(y2.sub(y1));
}

/** Area of the overlap of boxes [..., 4]; the leading dimensions are broadcast. */
export function intersectionArea(a: Tensor, b: Tensor): Tensor {
  const low = aten.maximum(a.narrow(-1, 0, 2), b.narrow(-1, 0, 2));
  const high = aten.minimum(a.narrow(-1, 2, 2), b.narrow(-1, 2, 2));
  const [width, height] = high.sub(low).clampMin(0).unbind(-1) as [Tensor, Tensor];
  return width.mul(height);
}

/**
 * Intersection over union of every pair: [N, 4] and [M, 4] to [N, M]. Two boxes without area give 0 / 0 = NaN.
 * @throws RangeError for other shapes
 */
export function boxIou(a: Tensor, b: Tensor): Tensor {
  requireBoxes(a, 'boxIou');
  requireBoxes(b, 'boxIou');
  const overlap = intersectionArea(a.unsqueeze(1), b.unsqueeze(0));
  return overlap.div(boxArea(a).unsqueeze(1).add(boxArea(b).unsqueeze(0)).sub(overlap));
}

/** Boxes that are compared with all others at once: bounds the memory of `nms` to this many rows. */
const NMS_BLOCK = 512;

/**
 * Greedy non-maximum suppression: the box of the highest score stays and suppresses those whose IoU with it exceeds the
 * threshold, and so on. Equal scores keep the order of the input; boxes without area neither suppress nor are suppressed.
 *
 * @param boxes [N, 4]
 * @param scores [N]
 * @param groups int64 [N]: boxes suppress only those of their own group (class, pyramid level). Default: one group
 * @returns int64 [K]: the rows that stay, by falling score. Has no gradient
 * @throws RangeError when the shapes do not fit together
 */
export function nms(boxes: Tensor, scores: Tensor, threshold: number, groups: Tensor | null = null): Tensor {
  requireBoxes(boxes, 'nms: boxes');
  for (const [name, column] of [
    ['scores', scores],
    ['groups', groups],
  ] as const) {
    // prettier-ignore
    if (column && (column.ndim !== 1 || column.shape[0] !== boxes.shape[0])) {
      throw new RangeError(`nms: ${name} must be [${boxes.shape[0] ?? 0}], got [${column.shape.join(', ')}]`);
    }
  }
  return noGrad(() =>
    scope(() => {
      const order = aten.argsort(scores, { stable: true, dim: 0, descending: true });
      const kept: Tensor[] = [];
      let pending = order;
      while ((pending.shape[0] ?? 0) > 0) {
        const [next, rest] = nmsBlock(boxes, groups, threshold, pending);
        kept.push(next);
        pending = rest;
      }
      return kept.length > 0 ? aten.cat(kept) : order;
    }),
  );
}

/** Decides about the first rows of `pending` [N] and drops from the others those that they suppress. */
function nmsBlock(
  boxes: Tensor,
  groups: Tensor | null,
  threshold: number,
  pending: Tensor,
): readonly [kept: Tensor, rest: Tensor] {
  const [count = 0] = pending.shape;
  const size = Math.min(NMS_BLOCK, count);
  const candidates = boxes.indexSelect(0, pending);
  let suppresses = boxIou(candidates.narrow(0, 0, size), candidates).gt(threshold);
  if (groups) {
    const group = groups.indexSelect(0, pending);
    suppresses = suppresses.logicalAnd(group.narrow(0, 0, size).unsqueeze(1).eq(group.unsqueeze(0)));
  }
  const stays = greedy(suppresses.narrow(1, 0, size).triu(1));
  const first = pending.narrow(0, 0, size);
  const kept = first.maskedSelect(stays);
  if (size === count) return [kept, pending.narrow(0, 0, 0)];
  const gone = suppresses
    .narrow(1, size, count - size)
    .logicalAnd(stays.unsqueeze(1))
    .any(0);
  return [kept, pending.narrow(0, size, count - size).maskedSelect(gone.logicalNot())];
}

/**
 * The rows that stay when row i, if it stays, removes the later rows j with `suppresses[i, j]`. Each round assumes what
 * stays and corrects it; row j is right after at most j + 1 rounds, in practice after as many as chains of boxes are long.
 */
function greedy(suppresses: Tensor): Tensor {
  const matrix = suppresses.to('float32');
  let stays = matrix.newOnes([matrix.shape[0] ?? 0]);
  for (;;) {
    const next = stays.matmul(matrix).eq(0).to('float32');
    if (next.equal(stays)) return stays.bool();
    stays = next;
  }
}

/** How regions are pooled. */
export interface RoiAlignOptions {
  /** Rows and columns of the result. */
  readonly outputSize: Size2;
  /** Pixels of each map per pixel of the boxes. */
  readonly scales: readonly number[];
  /** int64 [R]: the map that each region reads. Default: all the first. */
  readonly levels?: Tensor | null;
  /** Samples per axis of a cell; 0 or less: as many as a cell has pixels, rounded up. Default 2. */
  readonly samplingRatio?: number;
  /** Half a pixel of shift, and no least size of 1. Default false. */
  readonly aligned?: boolean;
}

/** Samples along one axis: which two pixels each reads, and with what weight; [R, cells, 2 * samples]. */
interface Axis {
  readonly index: Tensor;
  readonly weight: Tensor;
}

/**
 * Along one axis: regions from `start` over `length` pixels (both [R]) of maps of `limit` [R] pixels, in `cells` cells.
 * A sample more than one pixel outside weighs nothing.
 */
function sampleAxis(start: Tensor, length: Tensor, limit: Tensor, cells: number, ratio: number): Axis {
  const bin = length.div(cells).reshape([-1, 1, 1]);
  // An aligned region may be without extent: it has no samples then, and pools zeros.
  const perCell = ratio > 0 ? bin.newFull([1, 1, 1], ratio) : bin.ceil().clampMin(0);
  const divisor = perCell.clampMin(1);
  // The one value that is read: how many samples the largest region needs.
  const samples = ratio > 0 || bin.numel() === 0 ? Math.max(ratio, 1) : Number(divisor.max().item());
  const kind = { dtype: start.dtype, device: start.device };
  const cell = arange(cells, kind).view([1, cells, 1]);
  const sample = arange(samples, kind).view([1, 1, samples]);
  const position = start.reshape([-1, 1, 1]).add(cell.mul(bin)).add(sample.add(0.5).mul(bin).div(divisor));
  const last = limit.reshape([-1, 1, 1]).sub(1);
  const counts = position
    .ge(-1)
    .logicalAnd(position.le(last.add(1)))
    .logicalAnd(sample.lt(perCell));
  const inside = aten.minimum(position.clampMin(0), last);
  const low = inside.floor();
  const high = aten.minimum(low.add(1), last);
  const fraction = inside.sub(low);
  const share = counts.to(start.dtype).div(divisor);
  const join = (a: Tensor, b: Tensor): Tensor => aten.stack([a, b], -1).flatten(2);
  return {
    index: join(low, high).to('int64'),
    weight: join(fraction.neg().add(1), fraction).mul(join(share, share)),
  };
}

/**
 * Bilinear samples of maps at regular points of each region, averaged per cell. He et al., Mask R-CNN, ICCV 2017, arXiv
 * 1703.06870, section 3. Gradients reach the maps, not the regions.
 *
 * @param maps [B, C, H_l, W_l] each
 * @param rois [R, 5]: index of the image, then the box
 * @returns [R, C, ...outputSize], in the dtype of the maps
 * @throws RangeError when shapes or numbers do not fit together
 */
export function roiAlign(maps: readonly Tensor[], rois: Tensor, options: RoiAlignOptions): Tensor {
  const { scales, levels = null, samplingRatio = 2, aligned = false } = options;
  const [rows, columns] = pair(options.outputSize);
  const [first] = maps;
  requireBoxes(rois, 'roiAlign: rois', 5);
  if (!first || maps.length !== scales.length || maps.some((map) => map.ndim !== 4)) {
    throw new RangeError(
      `roiAlign: expected maps [B, C, H, W] and a scale for each, got ${maps.map((map) => `[${map.shape.join(', ')}]`).join(', ') || 'none'} and ${scales.length} scales`,
    );
  }
  const channels = first.shape[1] ?? 0;
  const [count = 0] = rois.shape;
  if (count === 0) return first.newZeros([0, channels, rows, columns]);

  // One table of all pixels, and a weighted sum of its rows for every cell: no sample is ever stored.
  const dtype = first.dtype === 'float64' ? 'float64' : 'float32';
  const pixels = maps.map((map) => map.permute([0, 2, 3, 1]).reshape([-1, channels]).to(dtype));
  const table = pixels.length === 1 ? (pixels[0] as Tensor) : aten.cat(pixels);
  let next = 0;
  const starts = maps.map((map) => {
    const start = next;
    next += map.numel() / channels;
    return start;
  });
  const { device } = first;
  const ofLevel = (values: number[], type: 'int64' | typeof dtype): Tensor => {
    const each = tensor(values, { dtype: type, device });
    return levels ? each.indexSelect(0, levels) : each.narrow(0, 0, 1).expand([count]);
  };
  const [heights, widths] = [2, 3].map((dim) => maps.map((map) => map.shape[dim] ?? 0)) as [number[], number[]];
  const { index, weight } = noGrad(() => {
    const [image, x1, y1, x2, y2] = rois.detach().to(dtype).unbind(1) as [Tensor, Tensor, Tensor, Tensor, Tensor];
    const scale = ofLevel([...scales], dtype);
    const place = (corner: Tensor): Tensor => corner.mul(scale).sub(aligned ? 0.5 : 0);
    const extent = (from: Tensor, to: Tensor): Tensor => (aligned ? to.sub(from) : to.sub(from).clampMin(1));
    const [left, top, right, bottom] = [x1, y1, x2, y2].map(place) as [Tensor, Tensor, Tensor, Tensor];
    const y = sampleAxis(top, extent(top, bottom), ofLevel(heights, dtype), rows, samplingRatio);
    const x = sampleAxis(left, extent(left, right), ofLevel(widths, dtype), columns, samplingRatio);
    const width = ofLevel(widths, 'int64');
    const begin = ofLevel(starts, 'int64').add(image.to('int64').mul(ofLevel(heights, 'int64')).mul(width));
    const rowStart = y.index.mul(width.view([-1, 1, 1])).add(begin.view([-1, 1, 1]));
    // [R, rows, columns, samples of y, samples of x]
    return {
      index: rowStart.unsqueeze(2).unsqueeze(-1).add(x.index.unsqueeze(1).unsqueeze(3)),
      weight: y.weight.unsqueeze(2).unsqueeze(-1).mul(x.weight.unsqueeze(1).unsqueeze(3)),
    };
  });
  const perCell = index.numel() / (count * rows * columns);
  const offsets = arange(0, index.numel(), perCell, { dtype: 'int64', device });
  const [sums] = aten.embeddingBag(table, index.flatten(), offsets, false, 0, false, weight.flatten());
  return sums.view([count, rows, columns, channels]).permute([0, 3, 1, 2]).to(first.dtype);
}
