/** Learned position embeddings at another resolution, as timm resamples them. */
import { aten, type Tensor } from '../tensor/index.js';

/** How position embeddings are brought to another grid. */
export interface ResampleOptions {
  /** Rows and columns that the patch positions stand for. Default: a square. */
  readonly oldGrid?: readonly [number, number];
  /** Leading positions (class token, registers) that are kept as they are. Default 1. */
  readonly prefixTokens?: number;
  /** Default bicubic. */
  readonly interpolation?: 'bicubic' | 'bilinear';
  /** Default true. With it the bicubic coefficient is -0.5, as in Pillow; without, -0.75. */
  readonly antialias?: boolean;
}

/**
 * Resamples position embeddings [1, prefix + h w, C] to [1, prefix + h' w', C]; differentiable. Computed in float32 (as
 * in timm, in a float64 model too) with half-pixel centers; equal grids return the input itself.
 *
 * @throws RangeError when the number of positions is not the prefix plus the old grid
 */
export function resamplePosEmbed(
  posEmbed: Tensor,
  newGrid: readonly [number, number],
  options: ResampleOptions = {},
): Tensor {
  const { prefixTokens = 1, interpolation = 'bicubic', antialias = true } = options;
  const [, positions = 0, channels = 0] = posEmbed.shape;
  const patches = positions - prefixTokens;
  const side = Math.round(Math.sqrt(patches));
  const [rows, columns] = options.oldGrid ?? [side, side];
  if (posEmbed.ndim !== 3 || rows * columns !== patches) {
    throw new RangeError(
      `resamplePosEmbed: ${positions} positions with ${prefixTokens} in front leave ${patches}, which ` +
        (options.oldGrid ? `is not ${rows} x ${columns}` : `is no square; give oldGrid`),
    );
  }
  if (rows === newGrid[0] && columns === newGrid[1]) return posEmbed;
  const grid = posEmbed.narrow(1, prefixTokens, patches).to('float32');
  const map = grid.reshape([1, rows, columns, channels]).permute([0, 3, 1, 2]);
  const resized = resize(map, newGrid, interpolation, antialias);
  const tokens = resized
    .permute([0, 2, 3, 1])
    .reshape([1, newGrid[0] * newGrid[1], channels])
    .to(posEmbed.dtype);
  return prefixTokens > 0 ? aten.cat([posEmbed.narrow(1, 0, prefixTokens), tokens], 1) : tokens;
}

function resize(
  map: Tensor,
  size: readonly [number, number],
  interpolation: 'bicubic' | 'bilinear',
  antialias: boolean,
): Tensor {
  const grid = [size[0], size[1]];
  if (interpolation === 'bicubic') {
    return antialias ? aten._upsampleBicubic2dAa(map, grid, false) : aten.upsampleBicubic2d(map, grid, false);
  }
  return antialias ? aten._upsampleBilinear2dAa(map, grid, false) : aten.upsampleBilinear2d(map, grid, false);
}
