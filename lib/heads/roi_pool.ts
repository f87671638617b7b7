/** Pooling of regions from the level of a pyramid that fits their size. Lin et al., CVPR 2017, arXiv 1612.03144, equation 1. */
import { boxArea, roiAlign, type Size2 } from '../nn/index.js';
import { aten, noGrad, type Tensor } from '../tensor/index.js';
import { sizeOf } from './conv_module.js';

/** How regions are cut out of maps. */
export interface RoiPoolOptions {
  /** Rows and columns of the result. Default 7. */
  readonly outputSize?: Size2;
  /** Samples per axis of a cell. Default 2. */
  readonly samplingRatio?: number;
  /** Side of the boxes that belong to the canonical level. Default 224. */
  readonly canonicalScale?: number;
  /** The level of boxes of that side; level k has 2^-k of the image's resolution. Default 4. */
  readonly canonicalLevel?: number;
}

/**
 * The level of each box [N, 4]: floor(k0 + log2(sqrt(area) / s0) + 1e-6), clamped to the levels there are; int64 [N],
 * counted from the first of them.
 *
 * @param scales resolution of each level over the image's
 */
export function roiLevels(
  boxes: Tensor,
  scales: readonly number[],
  { canonicalScale = 224, canonicalLevel = 4 }: Pick<RoiPoolOptions, 'canonicalScale' | 'canonicalLevel'> = {},
): Tensor {
  const [first = 1] = scales;
  const [lowest, highest] = [-Math.log2(first), -Math.log2(scales.at(-1) ?? first)];
  const sides = boxArea(boxes).sqrt();
  const level = sides.div(canonicalScale).log2().add(canonicalLevel).add(1e-6).floor();
  return level.clamp(lowest, highest).sub(lowest).to('int64');
}

/** See `RoiPoolOptions`. The resolutions of the levels are found at the first use and kept. */
export class RoiPool {
  readonly outputSize: Size2;
  readonly #samplingRatio: number;
  readonly #canonical: { canonicalScale: number; canonicalLevel: number };
  #scales: readonly number[] | undefined;

  constructor(options: RoiPoolOptions = {}) {
    const { outputSize = 7, samplingRatio = 2, canonicalScale = 224, canonicalLevel = 4 } = options;
    this.outputSize = outputSize;
    this.#samplingRatio = samplingRatio;
    this.#canonical = { canonicalScale, canonicalLevel };
  }

  /**
   * @param maps [B, C, H_l, W_l] of each level, finest first
   * @param boxes [N_i, 4] of each image, in pixels of the batch
   * @param sizes of the images without padding; the tallest gives the resolutions
   * @returns [Σ N_i, C, ...outputSize], image by image
   */
  pool(maps: readonly Tensor[], boxes: readonly Tensor[], sizes: readonly (readonly [number, number])[]): Tensor {
    const height = Math.max(...sizes.map(([h]) => h));
    const scales = (this.#scales ??= maps.map((map) => 2 ** Math.round(Math.log2(sizeOf(map)[0] / height))));
    const { rois, levels } = noGrad(() => {
      const all = aten.cat([...boxes]);
      const image = aten.cat(boxes.map((list, i) => list.newFull([list.shape[0] ?? 0, 1], i)));
      return { rois: aten.cat([image, all], 1), levels: roiLevels(all, scales, this.#canonical) };
    });
    return roiAlign(maps, rois, { outputSize: this.outputSize, scales, levels, samplingRatio: this.#samplingRatio });
  }
}
