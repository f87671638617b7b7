/** Anchor boxes of a feature pyramid, as torchvision places them. Ren et al., NeurIPS 2015, arXiv 1506.01497, section 3.1.1. */
import { arange, aten, noGrad, scope, tensor, type Tensor } from '../tensor/index.js';

/** Sizes of the anchors of one level; 3 scales per octave of a base size, as RetinaNet has them. Lin et al., arXiv 1708.02002. */
export function octave(size: number): number[] {
  return [size, Math.trunc(size * 2 ** (1 / 3)), Math.trunc(size * 2 ** (2 / 3))];
}

/** Boxes of given areas and shapes around every cell of every level. */
export class AnchorGenerator {
  /** Square roots of the areas, per level. */
  readonly sizes: readonly (readonly number[])[];
  /** Height / width, for all levels. */
  readonly aspectRatios: readonly number[];

  /** @throws RangeError for sizes or ratios that are not positive, or levels with different numbers of sizes */
  constructor(sizes: readonly (readonly number[])[], aspectRatios: readonly number[] = [0.5, 1, 2]) {
    const lengths = new Set(sizes.map((level) => level.length));
    if (lengths.size !== 1 || [...sizes.flat(), ...aspectRatios].some((n) => !(n > 0)) || aspectRatios.length === 0) {
      throw new RangeError(
        `AnchorGenerator: needs positive ratios and as many positive sizes on every level, got ${JSON.stringify(sizes)} and ${JSON.stringify(aspectRatios)}`,
      );
    }
    this.sizes = sizes;
    this.aspectRatios = aspectRatios;
  }

  /** Anchors per cell. */
  get perCell(): number {
    return (this.sizes[0]?.length ?? 0) * this.aspectRatios.length;
  }

  /** Anchors of a level around the origin, [A, 4]: ratio by ratio, each in all sizes; whole pixels, halves to even. */
  cellAnchors(level: number): Tensor {
    const sizes = this.sizes[level];
    if (!sizes) throw new RangeError(`AnchorGenerator: it has ${this.sizes.length} levels, none of index ${level}`);
    return scope(() => {
      // Square roots in float32: rounded halves depend on it.
      const kind = { dtype: 'float32', device: 'cpu' } as const;
      const heights = tensor([...this.aspectRatios], kind).sqrt();
      const scales = tensor([...sizes], kind);
      const h = aten.outer(heights, scales).flatten();
      const w = aten.outer(heights.reciprocal(), scales).flatten();
      return aten.stack([w.neg(), h.neg(), w, h], 1).div(2).round();
    });
  }

  /**
   * Anchors of all levels: row by row, cell by cell, anchor by anchor. The distance of cells is the padded image's size
   * divided by the map's without remainder; cells are not moved by half of it.
   *
   * @param image height and width of the padded images
   * @param grids height and width of each level's map
   * @param like gives dtype and device
   * @returns one [H_l * W_l * A, 4] per level
   * @throws RangeError for another number of levels
   */
  grid(
    image: readonly [number, number],
    grids: readonly (readonly [number, number])[],
    like: { dtype: Tensor['dtype']; device: Tensor['device'] },
  ): Tensor[] {
    if (grids.length !== this.sizes.length) {
      throw new RangeError(
        `AnchorGenerator: sizes for ${this.sizes.length} levels, and ${grids.length} maps; they must be as many`,
      );
    }
    const kind = { dtype: like.dtype, device: like.device };
    return noGrad(() =>
      grids.map(([rows, columns], level) =>
        scope(() => {
          const [y, x] = [rows, columns].map((count, axis) =>
            arange(count, kind).mul(Math.floor((image[axis] ?? 0) / count)),
          ) as [Tensor, Tensor];
          const [dy, dx] = aten.meshgrid([y, x], { indexing: 'ij' }) as [Tensor, Tensor];
          const shifts = aten.stack([dx, dy, dx, dy], -1).view([-1, 1, 4]);
          return shifts.add(this.cellAnchors(level).to(kind).unsqueeze(0)).view([-1, 4]);
        }),
      ),
    );
  }
}
