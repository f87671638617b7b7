/** What methods that convolve over tokens share: the patches of a sequence as a map, the other tokens beside them. */
import type { Context, Site } from '../nn/index.js';
import { aten, type Tensor } from '../tensor/index.js';

/** What becomes of the patches, as maps [B, C, H, W], and of tokens that are no patches, [B, n, C]. */
export interface PatchFunctions {
  readonly onMap: (map: Tensor) => Tensor;
  readonly onRest: (tokens: Tensor) => Tensor;
}

/**
 * For methods whose forms call `overPatches`.
 *
 * @throws RangeError when the sites are those of a model that reads no images
 */
export function requirePatches(method: string, sites: readonly Site[]): void {
  if (sites.some(({ roles }) => roles.includes('input'))) return;
  throw new RangeError(
    `${method}: convolves over the patches of images, and this model reads none; lora, krona, adapter and mam fit models of text`,
  );
}

/** Where patches stand in a sequence: row by row as a `grid`, with other tokens before them and behind them. */
export interface PatchPlace {
  readonly grid: readonly [height: number, width: number];
  readonly before: number;
  readonly after: number;
}

/** @throws RangeError for a sequence that has no grid, or is shorter than it says */
function patchesIn(length: number, { grid, prefixTokens: before }: Context): PatchPlace {
  const after = length - before - (grid ? grid[0] * grid[1] : 0);
  if (grid !== null && after >= 0) return { grid, before, after };
  const wanted = grid ? `a grid of ${grid.join(' x ')} after ${before} other tokens` : 'a grid of patches';
  throw new RangeError(`a convolution over tokens needs ${wanted}, and the sequence has ${length} tokens without one`);
}

/**
 * Applies a function of sequences [B, N, C] to whatever holds patches, as `overPatches` takes it; maps and grids become
 * sequences of patches only. The result has the layout of `x`.
 *
 * @throws RangeError as `overPatches`
 */
export function overTokens(
  x: Tensor,
  ctx: Context,
  layout: string,
  onTokens: (tokens: Tensor, place: PatchPlace) => Tensor,
): Tensor {
  if (layout === 'map') {
    return overTokens(x.permute([0, 2, 3, 1]), ctx, 'grid', onTokens).permute([0, 3, 1, 2]);
  }
  if (x.ndim !== 4) return onTokens(x, patchesIn(x.size(1), ctx));
  const [batch = 0, height = 0, width = 0, channels = 0] = x.shape;
  const place = { grid: [height, width], before: 0, after: 0 } as const;
  return onTokens(x.reshape([batch, height * width, channels]), place).reshape([batch, height, width, channels]);
}

/**
 * Applies a function of maps to whatever holds patches: maps [B, C, H, W] (`layout` map), grids [B, H, W, C], or
 * sequences [B, N, C] whose patches stand row by row after `ctx.prefixTokens` others; what stands in front of them and
 * behind them goes to `onRest`. The result has the layout of `x`.
 *
 * @throws RangeError for a sequence that has no grid, or is shorter than it says
 */
export function overPatches(x: Tensor, ctx: Context, layout: string, { onMap, onRest }: PatchFunctions): Tensor {
  if (layout === 'map') return onMap(x);
  if (x.ndim === 4) return onMap(x.permute([0, 3, 1, 2])).permute([0, 2, 3, 1]);
  const [batch = 0, length = 0, channels = 0] = x.shape;
  const { grid, before, after } = patchesIn(length, ctx);
  const patches = length - before - after;
  const map = onMap(
    x
      .narrow(1, before, patches)
      .reshape([batch, ...grid, channels])
      .permute([0, 3, 1, 2]),
  );
  const parts = [map.permute([0, 2, 3, 1]).reshape([batch, patches, map.shape[1] ?? 0])];
  if (before > 0) parts.unshift(onRest(x.narrow(1, 0, before)));
  if (after > 0) parts.push(onRest(x.narrow(1, before + patches, after)));
  return parts.length === 1 ? (parts[0] as Tensor) : aten.cat(parts, 1);
}
