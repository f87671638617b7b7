/** CLIP's attention pool: multi-head attention whose one query is the mean of the map. */
import { type Context, functional, init, Linear, Module, Parameter, site, Span } from '../nn/index.js';
import { aten, empty, type Tensor } from '../tensor/index.js';
import { headWidth } from './blocks.js';
import { resamplePosEmbed } from './pos_embed.js';

/** Size of a map. */
export type Grid = readonly [rows: number, columns: number];

/**
 * Tokens [mean of the map; map row by row] plus positions, then attention with separate projections, of which the first
 * token's result is the pool: [B, C, H, W] to [B, out]. Radford et al. 2021, section 2.4.
 *
 * Maps of another shape with as many places get the positions in raster order; any other size needs `anySize`.
 */
export class AttentionPool2d extends Module {
  readonly positional_embedding: Parameter;
  readonly k_proj: Linear;
  readonly q_proj: Linear;
  readonly v_proj: Linear;
  readonly c_proj: Linear;
  /** Queries [B, L, C], here one, to what they find [B, L, out]. */
  readonly attention: Span;

  constructor(
    readonly grid: Grid,
    readonly channels: number,
    readonly numHeads: number,
    outDim: number,
    private readonly anySize = false,
  ) {
    super();
    headWidth(channels, numHeads, 'attention pool');
    const linear = (out: number): Linear => site(new Linear(channels, out), { role: 'linear', layout: 'tokens' });
    this.positional_embedding = new Parameter(empty([1 + grid[0] * grid[1], channels]));
    this.k_proj = linear(channels);
    this.q_proj = linear(channels);
    this.v_proj = linear(channels);
    this.c_proj = linear(outDim);
    this.attention = site(new Span((query, ctx) => this.attend(query, ctx.state.get(this) as Tensor, ctx)), {
      role: 'attention_pool',
      in: channels,
      out: outDim,
      layout: 'tokens',
      heads: numHeads,
    });
    this.initWeights();
  }

  forward(x: Tensor, ctx: Context): Tensor {
    const tokens = this.tokens(x, this.positionsFor(x));
    return this.find(tokens.narrow(1, 0, 1), tokens, ctx).select(1, 0);
  }

  /** `attend` through the site, where grafts are heard. */
  protected find(queries: Tensor, tokens: Tensor, ctx: Context): Tensor {
    ctx.state.set(this, tokens);
    const found = this.attention.run(queries, ctx);
    ctx.state.delete(this);
    return found;
  }

  /** [mean; map row by row] [B, 1 + HW, C] of a map, with `positions` [1 + HW, C] added. */
  tokens(x: Tensor, positions: Tensor): Tensor {
    const places = x.flatten(2).transpose(1, 2);
    return aten.cat([places.mean([1], true), places], 1).add(positions);
  }

  /** What `queries` [B, L, C], some or all of the tokens, find in `tokens` [B, N, C], as [B, L, out]. */
  attend(queries: Tensor, tokens: Tensor, ctx: Context): Tensor {
    const heads = (t: Tensor): Tensor => t.reshape([...t.shape.slice(0, 2), this.numHeads, -1]).transpose(1, 2);
    const q = heads(this.q_proj.run(queries, ctx));
    const k = heads(this.k_proj.run(tokens, ctx));
    const v = heads(this.v_proj.run(tokens, ctx));
    const mixed = functional.scaledDotProductAttention(q, k, v).transpose(1, 2);
    return this.c_proj.run(mixed.reshape(queries.shape), ctx);
  }

  /** Stored positions [1 + N, C] at this pool's grid: resampled from a square; unchanged where that is impossible. */
  fitPositions(stored: Tensor): Tensor {
    const [count = 0, channels = 0] = stored.shape;
    const isSquare = Number.isInteger(Math.sqrt(count - 1));
    if (count === this.positional_embedding.shape[0] || channels !== this.channels || !isSquare) return stored;
    const side = Math.sqrt(count - 1);
    return this.resample(stored, [side, side], this.grid);
  }

  /** Positions [1 + N, C] of one grid at another: bicubic. */
  protected resample(positions: Tensor, from: Grid, to: Grid): Tensor {
    return resamplePosEmbed(positions.unsqueeze(0), to, { oldGrid: from, antialias: false }).squeeze(0);
  }

  /** Positions [1 + HW, C] for a map. */
  protected positionsFor(x: Tensor): Tensor {
    const [, , height = 0, width = 0] = x.shape;
    const [rows, columns] = this.grid;
    if (this.anySize) return this.resample(this.positional_embedding, this.grid, [height, width]);
    if (height * width !== rows * columns) {
      throw new RangeError(
        `attention pool: a map of ${height} x ${width} does not fit the positions of ${rows} x ${columns}; resize the images, ` +
          'or create the model with { imgSize } of that size or { dynamicImgSize: true }',
      );
    }
    return this.positional_embedding;
  }

  /** Positions and projections N(0, 1 / C); biases keep PyTorch's default. */
  private initWeights(): void {
    const std = this.channels ** -0.5;
    init.normal_(this.positional_embedding, 0, std);
    for (const { weight } of [this.q_proj, this.k_proj, this.v_proj, this.c_proj]) init.normal_(weight, 0, std);
  }
}
