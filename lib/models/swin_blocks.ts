/** The parts of a Swin transformer, in timm's names: patches, windowed attention, block, patch merging, stage. */
import {
  type Buffer,
  runChain,
  type Context,
  DropPath,
  type Identity,
  Linear,
  LayerNorm,
  Module,
  Parameter,
  site,
  type Span,
} from '../nn/index.js';
import { aten, empty, type Tensor } from '../tensor/index.js';
import { type BlockList, identitySite } from './blocks.js';
import {
  dealPrefix,
  type Extent,
  gatherPrefix,
  PREFIX_ACROSS_BATCH,
  relativePositions,
  type Windows,
} from './swin_windows.js';
import { Attention, Mlp, stretch, tokenNorm } from './vit_blocks.js';

/** Rows and columns of the patches in a sequence [B, prefix + N, C]. @throws RangeError when other tokens follow them */
function gridOf(x: Tensor, ctx: Context): Extent {
  const [rows, columns] = ctx.grid ?? [0, 0];
  const patches = (x.shape[1] ?? 0) - ctx.prefixTokens;
  if (rows * columns !== patches) {
    throw new RangeError(
      `a Swin transformer takes other tokens in front of the patches only: the sequence holds ${ctx.prefixTokens} and ` +
        `${patches} more, the grid is ${rows} x ${columns}`,
    );
  }
  return [rows, columns];
}

/** A sequence [B, prefix + H W, C] as its first tokens (null for none) and the map [B, H, W, C] of the patches. */
function parted(x: Tensor, [rows, columns]: Extent, prefixTokens: number): { prefix: Tensor | null; map: Tensor } {
  const [batch = 0, length = 0, channels = 0] = x.shape;
  const patches = prefixTokens > 0 ? x.narrow(1, prefixTokens, length - prefixTokens) : x;
  return {
    prefix: prefixTokens > 0 ? x.narrow(1, 0, prefixTokens) : null,
    map: patches.reshape([batch, rows, columns, channels]),
  };
}

/** Sizes of a block. */
export interface SwinBlockOptions {
  readonly dim: number;
  readonly numHeads: number;
  /** Width of the MLP's hidden layer. */
  readonly hidden: number;
  readonly qkvBias: boolean;
  readonly normEps: number;
  readonly dropPath: number;
  readonly projDrop: number;
  readonly attnDrop: number;
  readonly stage: number;
  readonly depth: number;
  readonly windows: Windows;
  /** `relativePositionIndex` of the window, flat; blocks with equal windows share it. */
  readonly index: Buffer;
}

/**
 * Attention within windows: [B, P + N, C] -> [B, P + N, C] with `ctx.grid` the map of the N patches. The map is cut into
 * windows [B * windows, P + area, C], and that is what `qkv`, `proj` and what is between them see. A learned bias for each
 * head and relative position is added to the scores, and the mask of a shifted window. The P tokens in front join every
 * window, see all and are seen by all, without a bias; what comes out for them is the mean over the windows. Keys that
 * grafts set in front are seen in the same way.
 */
export class WindowAttention extends Attention {
  readonly relative_position_bias_table: Parameter;
  readonly relative_position_index: Buffer;
  readonly windows: Windows;

  constructor(o: SwinBlockOptions) {
    super(o.dim, o.numHeads, o);
    this.windows = o.windows;
    this.relative_position_bias_table = new Parameter(empty([relativePositions(o.windows.window), o.numHeads]));
    this.relative_position_index = o.index;
  }

  override forward(x: Tensor, ctx: Context): Tensor {
    const grid = gridOf(x, ctx);
    const { windows } = this;
    const { prefix, map } = parted(x, grid, ctx.prefixTokens);
    const [down, across] = windows.count(grid);
    const acrossBatch = ctx.state.get(PREFIX_ACROSS_BATCH) === true;
    let cut = windows.split(map);
    if (prefix) cut = aten.cat([dealPrefix(prefix, down * across, acrossBatch), cut], 1);

    // Inside, a sequence is one window.
    ctx.grid = windows.window;
    ctx.state.set(windows, windows.mask(grid, x.device, cut.dtype));
    const mixed = super.forward(cut, ctx);
    ctx.state.delete(windows);
    ctx.grid = grid;

    const tokens = mixed.narrow(1, ctx.prefixTokens, windows.area);
    const patches = windows.join(tokens, grid).reshape([x.shape[0] ?? 0, grid[0] * grid[1], -1]);
    if (!prefix) return patches;
    const front = gatherPrefix(mixed.narrow(1, 0, ctx.prefixTokens), down * across, acrossBatch);
    return aten.cat([front, patches], 1);
  }

  protected override scoreMask(q: Tensor, k: Tensor, ctx: Context): Tensor {
    const { area } = this.windows;
    const [batch = 0, , queries = 0] = q.shape;
    const table = this.relative_position_bias_table;
    let bias = aten.index(table, [this.relative_position_index]).t().reshape([1, this.numHeads, area, area]);
    const mask = ctx.state.get(this.windows) as Tensor | null | undefined;
    if (mask) bias = bias.add(mask.unsqueeze(1));
    const [above, before] = [queries - area, (k.shape[2] ?? 0) - area];
    if (above > 0 || before > 0) bias = aten.constantPadNd(bias, [before, 0, above, 0], 0);
    bias = bias.to(q.dtype);
    const [count = 1] = bias.shape;
    // The fused kernels want one mask for all windows of the batch or one for each.
    return count === 1 || count === batch ? bias : bias.repeat([batch / count, 1, 1, 1]);
  }
}

/** z += attn(norm1 z); z += mlp(norm2 z). [B, P + N, C] -> [B, P + N, C], P tokens in front of the N patches. */
export class SwinBlock extends Module {
  readonly norm1: LayerNorm;
  readonly attn: WindowAttention;
  readonly drop_path1: DropPath | null;
  readonly norm2: LayerNorm;
  readonly mlp: Mlp;
  readonly drop_path2: DropPath | null;
  /** norm1 x -> what is added to x. */
  readonly attn_path: Span;
  /** x -> what is added to x. */
  readonly attn_branch: Span;
  readonly mlp_path: Span;
  readonly mlp_branch: Span;
  /** The stream before the attention branch and its skip, and before those of the MLP. */
  readonly attn_stream: Identity;
  readonly mlp_stream: Identity;

  constructor(o: SwinBlockOptions) {
    super();
    const { dim, stage, depth } = o;
    const path = () => (o.dropPath > 0 ? new DropPath(o.dropPath) : null);
    this.norm1 = tokenNorm(dim, o.normEps);
    this.attn = new WindowAttention(o);
    this.drop_path1 = path();
    this.norm2 = tokenNorm(dim, o.normEps);
    this.mlp = new Mlp(dim, o.hidden, o.projDrop);
    this.drop_path2 = path();
    // Mixing in windows is what a Swin block has of a spatial convolution; one beside it sees the whole map.
    const beside = { kernel: 7, stride: 1, padding: 3, activation: 'gelu' } as const;
    this.attn_path = stretch(['attention_path', 'spatial'], dim, () => [this.attn, this.drop_path1], beside);
    this.attn_branch = stretch('attention_branch', dim, () => [this.norm1, this.attn_path]);
    this.mlp_path = stretch('mlp_path', dim, () => [this.mlp, this.drop_path2]);
    this.mlp_branch = stretch('mlp_branch', dim, () => [this.norm2, this.mlp_path]);
    this.attn_stream = identitySite('attention_stream', dim, 'tokens');
    this.mlp_stream = identitySite('mlp_stream', dim, 'tokens');
    site(this, { role: 'block', in: dim, out: dim, layout: 'tokens', stage, depth });
  }

  forward(x: Tensor, ctx: Context): Tensor {
    const y = this.attn_stream.run(x, ctx);
    const z = this.mlp_stream.run(y.add(this.attn_branch.run(y, ctx)), ctx);
    return z.add(this.mlp_branch.run(z, ctx));
  }
}

/**
 * Halves the map: the four pixels (0,0), (1,0), (0,1), (1,1) (row, column) of each square side by side, norm, and a
 * linear layer 4 C -> 2 C without a bias. Odd maps are padded with zeros at the bottom and on the right. Tokens in front
 * stand four times side by side.
 */
export class PatchMerging extends Module {
  readonly norm: LayerNorm;
  readonly reduction: Linear;

  constructor(dim: number, outDim: number, normEps: number) {
    super();
    this.norm = site(new LayerNorm(4 * dim, { eps: normEps }), { role: 'downsample_norm', layout: 'tokens' });
    this.reduction = site(new Linear(4 * dim, outDim, { bias: false }), {
      role: 'downsample_linear',
      layout: 'tokens',
    });
    site(this, { role: 'downsample', in: dim, out: outDim, layout: 'tokens', stride: 2 });
  }

  forward(x: Tensor, ctx: Context): Tensor {
    const grid = gridOf(x, ctx);
    const { prefix, map } = parted(x, grid, ctx.prefixTokens);
    const [batch = 0, , , channels = 0] = map.shape;
    const [rows, columns] = [Math.ceil(grid[0] / 2), Math.ceil(grid[1] / 2)];
    const isOdd = 2 * rows > grid[0] || 2 * columns > grid[1];
    const even = isOdd ? aten.constantPadNd(map, [0, 0, 0, 2 * columns - grid[1], 0, 2 * rows - grid[0]], 0) : map;
    const squares = even.reshape([batch, rows, 2, columns, 2, channels]).permute([0, 1, 3, 4, 2, 5]);
    let merged = squares.reshape([batch, rows * columns, 4 * channels]);
    if (prefix) merged = aten.cat([prefix.repeat([1, 1, 4]), merged], 1);
    ctx.grid = [rows, columns];
    return this.reduction.run(this.norm.run(merged, ctx), ctx);
  }
}

/** Patch merging, except in the first stage, and the blocks. [B, P + N, C] -> [B, P + N', C']. */
export class SwinStage extends Module {
  readonly downsample: PatchMerging | null;
  readonly blocks: BlockList;

  constructor(dim: number, outDim: number, stage: number, downsample: PatchMerging | null, blocks: BlockList) {
    super();
    this.downsample = downsample;
    this.blocks = blocks;
    const stride = downsample ? 2 : 1;
    site(this, { role: 'stage', in: dim, out: outDim, layout: 'tokens', stage, stride });
  }

  forward(x: Tensor, ctx: Context): Tensor {
    const parts = this.downsample ? [this.downsample, this.blocks] : [this.blocks];
    return runChain(parts, x, ctx);
  }
}
