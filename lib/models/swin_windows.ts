/**
 * The windows of a Swin transformer: how a map is cut into them and put together again, which positions may see each
 * other, and how tokens that are no patches take part. Liu et al., ICCV 2021, arXiv 2103.14030, section 3.2.
 */
import { aten, keep, type Device, type DType, tensor, type Tensor } from '../tensor/index.js';

/** Rows and columns. */
export type Extent = readonly [rows: number, columns: number];

/**
 * What becomes of a window that is larger than the map. `timm`: each axis by itself takes the map's size and is not
 * shifted; `microsoft`: where the smaller side of the map is not larger than the window, both axes take that side and
 * none is shifted; `always`: the window and its shift stay, the map is padded.
 */
export type WindowRule = 'timm' | 'microsoft' | 'always';

/** Window and shift of a block on a map. `map` is the configured one: what the rule goes by. */
export function windowOf(
  map: Extent,
  window: Extent,
  shifted: boolean,
  rule: WindowRule,
): { window: Extent; shift: Extent } {
  const shift: Extent = shifted ? [Math.floor(window[0] / 2), Math.floor(window[1] / 2)] : [0, 0];
  const smaller = Math.min(...map);
  if (rule === 'microsoft' && smaller <= Math.min(...window)) {
    return { window: [smaller, smaller], shift: [0, 0] };
  }
  if (rule !== 'timm') return { window, shift };
  const [rows, columns] = map;
  return {
    window: [Math.min(rows, window[0]), Math.min(columns, window[1])],
    shift: [rows <= window[0] ? 0 : shift[0], columns <= window[1] ? 0 : shift[1]],
  };
}

/**
 * Row of the table of relative positions for each pair (p, q) of a window's positions, [N, N] of int64:
 * (dy + h - 1)(2 w - 1) + dx + w - 1, where dy and dx lead from q to p.
 */
export function relativePositionIndex([rows, columns]: Extent): Tensor {
  const area = rows * columns;
  const index: number[] = [];
  for (let p = 0; p < area; p++) {
    for (let q = 0; q < area; q++) {
      const dy = Math.floor(p / columns) - Math.floor(q / columns);
      const dx = (p % columns) - (q % columns);
      index.push((dy + rows - 1) * (2 * columns - 1) + dx + columns - 1);
    }
  }
  return tensor(index, { dtype: 'int64' }).view([area, area]);
}

/** Number of rows of the table of relative positions. */
export function relativePositions([rows, columns]: Extent): number {
  return (2 * rows - 1) * (2 * columns - 1);
}

/** Which part of a rolled axis a place belongs to: what a roll has brought together must not see each other. */
function regionOf(place: number, length: number, window: number, shift: number): number {
  if (shift === 0 || place < length - window) return 0;
  return place < length - shift ? 1 : 2;
}

/** Masks that are kept for maps of other sizes: with images of changing size there would be no end. */
const KEPT_MASKS = 8;

/** How the blocks of a stage that are alike cut their maps. */
export class Windows {
  readonly #masks = new Map<string, Tensor>();

  constructor(
    readonly window: Extent,
    readonly shift: Extent,
  ) {}

  /** Positions in a window. */
  get area(): number {
    return this.window[0] * this.window[1];
  }

  get isShifted(): boolean {
    return this.shift[0] > 0 || this.shift[1] > 0;
  }

  /** How many windows a map has, along rows and columns; the last ones may reach over the edge. */
  count([rows, columns]: Extent): Extent {
    return [Math.ceil(rows / this.window[0]), Math.ceil(columns / this.window[1])];
  }

  /** [B, H, W, C] to [B * windows, area, C]: rolled, then padded with zeros at the bottom and on the right, then cut. */
  split(map: Tensor): Tensor {
    const [batch = 0, rows = 0, columns = 0, channels = 0] = map.shape;
    const [h, w] = this.window;
    const [down, across] = this.count([rows, columns]);
    const [below, right] = [down * h - rows, across * w - columns];
    let rolled = this.isShifted ? aten.roll(map, [-this.shift[0], -this.shift[1]], [1, 2]) : map;
    if (below > 0 || right > 0) rolled = aten.constantPadNd(rolled, [0, 0, 0, right, 0, below], 0);
    const cut = rolled.reshape([batch, down, h, across, w, channels]).permute([0, 1, 3, 2, 4, 5]);
    return cut.reshape([batch * down * across, h * w, channels]);
  }

  /** The reverse of `split` for a map of `size`. */
  join(windows: Tensor, size: Extent): Tensor {
    const [rows, columns] = size;
    const [h, w] = this.window;
    const [down, across] = this.count(size);
    const channels = windows.shape.at(-1) ?? 0;
    const cut = windows.reshape([-1, down, across, h, w, channels]).permute([0, 1, 3, 2, 4, 5]);
    let map = cut.reshape([-1, down * h, across * w, channels]);
    if (down * h > rows || across * w > columns) map = map.narrow(1, 0, rows).narrow(2, 0, columns);
    return this.isShifted ? aten.roll(map, [this.shift[0], this.shift[1]], [1, 2]) : map;
  }

  /**
   * What is added to the scores of the windows of a map of `size`, [windows, area, area]: 0, or -100 for pairs that only
   * the roll has made neighbors. Null without a shift. Made once for each size, device and dtype.
   */
  mask(size: Extent, device: Device, dtype: DType): Tensor | null {
    if (!this.isShifted) return null;
    const key = `${this.count(size).join('x')}/${device}/${dtype}`;
    const known = this.#masks.get(key);
    if (known) return known;
    for (const [oldest] of this.#masks) {
      if (this.#masks.size < KEPT_MASKS) break;
      this.#masks.delete(oldest);
    }
    const regions = this.#regions(size, device);
    const mask = keep(regions.unsqueeze(1).ne(regions.unsqueeze(2)).to(dtype).mul(-100));
    this.#masks.set(key, mask);
    return mask;
  }

  /** For each window and position the part of the rolled map that it comes from. */
  #regions(size: Extent, device: Device): Tensor {
    const [down, across] = this.count(size);
    const [h, w] = this.window;
    const regions: number[] = [];
    for (let window = 0; window < down * across; window++) {
      const [top, left] = [Math.floor(window / across) * h, (window % across) * w];
      for (let position = 0; position < h * w; position++) {
        const y = regionOf(top + Math.floor(position / w), down * h, h, this.shift[0]);
        const x = regionOf(left + (position % w), across * w, w, this.shift[1]);
        regions.push(3 * y + x);
      }
    }
    return tensor(regions, { dtype: 'int64', device }).view([down * across, h * w]);
  }
}

/**
 * Key of `Context.state`: set to true, prefix tokens are dealt to the windows as the official code of visual prompt
 * tuning does it. It takes the windows, which are stored image by image, for stored window by window, so that with
 * several images in a batch window k (over the whole batch) gets the tokens of image k mod B, and image b the mean over
 * the windows k with k mod B = b.
 */
export const PREFIX_ACROSS_BATCH: unique symbol = Symbol('prefix tokens across the batch');

/** Prefix tokens [B, P, C], copied for each of `count` windows: [B * count, P, C]. */
export function dealPrefix(prefix: Tensor, count: number, acrossBatch: boolean): Tensor {
  const [batch = 0, tokens = 0, channels = 0] = prefix.shape;
  const copies = acrossBatch
    ? prefix.unsqueeze(0).expand([count, -1, -1, -1])
    : prefix.unsqueeze(1).expand([-1, count, -1, -1]);
  return copies.reshape([batch * count, tokens, channels]);
}

/** The reverse of `dealPrefix`: the mean over the windows. */
export function gatherPrefix(dealt: Tensor, count: number, acrossBatch: boolean): Tensor {
  const [all = 0, tokens = 0, channels = 0] = dealt.shape;
  return acrossBatch
    ? dealt.reshape([count, all / count, tokens, channels]).mean([0])
    : dealt.reshape([all / count, count, tokens, channels]).mean([1]);
}
