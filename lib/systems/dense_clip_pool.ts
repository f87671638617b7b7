/** CLIP's attention pool for dense prediction: the map is kept beside the pooled vector. */
import type { Grid } from '../models/clip_attention_pool.js';
import { AttentionPool2d, resamplePosEmbed } from '../models/index.js';
import { Context } from '../nn/index.js';
import { aten, type Tensor } from '../tensor/index.js';

/** An image in the space that it shares with text. */
export interface DenseEmbedding {
  /** z̄, [B, D]. */
  readonly global: Tensor;
  /** z, [B, D, h, w]. */
  readonly map: Tensor;
}

/**
 * How positions that were made for one grid serve a map of another size: all of them resampled bilinearly (`resize`), or
 * the top left corner of the grid as it is (`crop`), which the map must not exceed.
 */
export type PoolPositions = 'resize' | 'crop';

/**
 * CLIP's attention pool in which every token is a query: [B, C, H, W] to the pooled vector and to a map in the space of
 * the embeddings. Rao et al. 2022, section 3.1.
 *
 * Positions of another grid that are loaded are resampled bilinearly, with the one of the mean kept.
 */
export class DenseAttentionPool2d extends AttentionPool2d {
  constructor(
    grid: Grid,
    channels: number,
    numHeads: number,
    outDim: number,
    readonly positions: PoolPositions = 'resize',
  ) {
    super(grid, channels, numHeads, outDim, true);
  }

  /** @throws RangeError for a map beyond the grid when positions are cropped */
  dense(x: Tensor, ctx: Context = new Context()): DenseEmbedding {
    const tokens = this.tokens(x, this.positionsFor(x));
    const found = this.find(tokens, tokens, ctx).transpose(1, 2);
    const map = found.narrow(2, 1, (found.shape[2] ?? 1) - 1).unflatten(2, x.shape.slice(2));
    return { global: found.select(2, 0), map };
  }

  protected override positionsFor(x: Tensor): Tensor {
    if (this.positions === 'resize') return super.positionsFor(x);
    const [rows, columns] = this.grid;
    const [, , height = 0, width = 0] = x.shape;
    if (height > rows || width > columns) {
      throw new RangeError(
        `attention pool: a map of ${height} x ${width} does not lie in the positions of ${rows} x ${columns}; take ` +
          'smaller images, a larger inputResolution, or resized positions',
      );
    }
    const [first, grid] = aten.splitWithSizes(this.positional_embedding, [1, rows * columns]) as [Tensor, Tensor];
    const corner = grid.unflatten(0, [rows, columns]).narrow(0, 0, height).narrow(1, 0, width);
    return aten.cat([first, corner.flatten(0, 1)]);
  }

  protected override resample(positions: Tensor, from: Grid, to: Grid): Tensor {
    const options = { oldGrid: from, interpolation: 'bilinear', antialias: false } as const;
    return resamplePosEmbed(positions.unsqueeze(0), to, options).squeeze(0);
  }
}
