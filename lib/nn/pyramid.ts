/** Steps that all feature pyramids share. Lin et al., CVPR 2017, arXiv 1612.03144. */
import type { Tensor } from '../tensor/index.js';
import { interpolate } from './functional.js';

/** Maps [B, C, H_i, W_i], finest first: each plus the coarser sum, enlarged to its exact size by the nearest pixel. */
export function topDown(laterals: readonly Tensor[]): Tensor[] {
  const sums = [...laterals];
  for (let i = sums.length - 1; i > 0; i--) {
    const [fine, coarse] = [sums[i - 1], sums[i]] as [Tensor, Tensor];
    const [rows = 0, columns = 0] = fine.shape.slice(2);
    sums[i - 1] = fine.add(interpolate(coarse, { size: [rows, columns], mode: 'nearest' }));
  }
  return sums;
}

/** @throws RangeError for another number of maps than the neck was built for */
export function requireLevels(maps: readonly Tensor[], count: number, neck: string): void {
  if (maps.length !== count) throw new RangeError(`${neck}: ${count} levels are expected, given ${maps.length}`);
}

/** Every second pixel of maps [B, C, H, W]: max-pooling of kernel 1 and stride 2. */
export function everySecond(map: Tensor): Tensor {
  const [, , rows = 0, columns = 0] = map.shape;
  return map.slice(2, 0, rows, 2).slice(3, 0, columns, 2);
}
