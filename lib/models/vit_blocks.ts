/** The parts of pre-norm vision transformers, in timm's names: patches, attention, MLP, block. */
import {
  activationLayer,
  type ActivationName,
  type AttentionState,
  runChain,
  type Context,
  Conv2d,
  DropPath,
  Dropout,
  functional,
  Identity,
  LayerNorm,
  LayerScale,
  Linear,
  Module,
  type Role,
  site,
  type SiteTag,
  Span,
} from '../nn/index.js';
import { ones, type Tensor } from '../tensor/index.js';
import { headWidth, identitySite } from './blocks.js';

/**
 * Which images a patch embedding takes: those of its size, also those with as many patches (positions then go by the
 * raster order), or also any that divide into patches. Of images of its size the pixels behind the last whole patch are
 * left out.
 */
export type SizeRule = 'exact' | 'count' | 'any';

/** What else a patch embedding may be told. */
export interface PatchEmbedOptions {
  /** Default `exact`. */
  readonly sizes?: SizeRule;
  /** Default true. */
  readonly bias?: boolean;
  /** A norm on the tokens with this added to the variance, or null for none. Default null. */
  readonly normEps?: number | null;
}

/** Image [B, C, H, W] to tokens [B, N, D], row by row; says the grid to the context. */
export class PatchEmbed extends Module {
  readonly proj: Conv2d;
  readonly norm: LayerNorm | null;
  readonly #sizes: SizeRule;

  constructor(
    private readonly imgSize: readonly [number, number],
    readonly patchSize: readonly [number, number],
    inChans: number,
    embedDim: number,
    { sizes = 'exact', bias = true, normEps = null }: PatchEmbedOptions = {},
  ) {
    super();
    this.#sizes = sizes;
    this.proj = site(new Conv2d(inChans, embedDim, { kernelSize: [...patchSize], stride: [...patchSize], bias }), {
      role: 'conv',
    });
    this.norm = normEps === null ? null : tokenNorm(embedDim, normEps);
    site(this, {
      role: 'patch_embed',
      in: inChans,
      out: embedDim,
      layout: 'tokens',
      kernel: patchSize,
      stride: patchSize,
    });
  }

  /** Rows and columns of patches at the configured image size. */
  get grid(): [number, number] {
    return [Math.floor(this.imgSize[0] / this.patchSize[0]), Math.floor(this.imgSize[1] / this.patchSize[1])];
  }

  forward(x: Tensor, ctx: Context): Tensor {
    const [, , height = 0, width = 0] = x.shape;
    const [ph, pw] = this.patchSize;
    const [rows, columns] = [Math.floor(height / ph), Math.floor(width / pw)];
    const isOwnSize = height === this.imgSize[0] && width === this.imgSize[1];
    if (!isOwnSize && !this.#takes(rows * columns)) {
      throw new RangeError(
        `this vision transformer was built for images of ${this.imgSize.join(' x ')} and was given ${height} x ${width}; ` +
          'resize them, or create the model with { imgSize } of that size or { dynamicImgSize: true }',
      );
    }
    if (!isOwnSize && (height % ph !== 0 || width % pw !== 0)) {
      throw new RangeError(`an image of ${height} x ${width} does not divide into patches of ${ph} x ${pw}`);
    }
    ctx.grid = [rows, columns];
    const tokens = this.proj.run(x, ctx).flatten(2).transpose(1, 2);
    return this.norm ? this.norm.run(tokens, ctx) : tokens;
  }

  /** Whether images of another size, of so many patches, are taken. */
  #takes(patches: number): boolean {
    const [rows, columns] = this.grid;
    return this.#sizes === 'any' || (this.#sizes === 'count' && patches === rows * columns);
  }
}

/** Sizes of a transformer block. */
export interface ViTBlockOptions {
  readonly dim: number;
  readonly numHeads: number;
  /** Width of the MLP's hidden layer. */
  readonly hidden: number;
  readonly qkvBias: boolean;
  readonly normEps: number;
  /** Initial layer scale, or null for none. */
  readonly initValues: number | null;
  readonly dropPath: number;
  readonly projDrop: number;
  readonly attnDrop: number;
  readonly depth: number;
  /** Nonlinearity of the MLP. Default `gelu`, the exact one. */
  readonly activation?: ActivationName;
  /** Each token sees only itself and earlier ones, as in text. Default false. */
  readonly causal?: boolean;
}

interface SelfAttentionState extends AttentionState {
  /** What `scoreMask` gives for queries. */
  readonly mask: (queries: Tensor) => Tensor | null;
}

/**
 * Multi-head self-attention: softmax(q k^T / sqrt(d)) v per head of width d = D / heads, then `proj`. Rows 0..D-1 of
 * `qkv` make q (head after head), then k, then v. [B, N, D] -> [B, N, D].
 */
export class Attention extends Module {
  readonly qkv: Linear;
  readonly proj: Linear;
  readonly proj_drop: Dropout;
  /** The keys [B, H, N, d] before they meet the queries; `values` alike. */
  readonly keys: Identity;
  readonly values: Identity;
  /** Queries [B, H, N, d] to what the heads found, before it is joined and projected. */
  readonly core: Span;
  /** Tokens to the joined heads, before the output projection. */
  readonly joined: Span;

  constructor(
    dim: number,
    readonly numHeads: number,
    {
      qkvBias,
      attnDrop,
      projDrop,
      causal = false,
    }: Pick<ViTBlockOptions, 'qkvBias' | 'attnDrop' | 'projDrop' | 'causal'>,
  ) {
    super();
    headWidth(dim, numHeads);
    this.attnDrop = attnDrop;
    this.causal = causal;
    this.qkv = site(new Linear(dim, 3 * dim, { bias: qkvBias }), {
      role: 'linear',
      layout: 'tokens',
      slice: ['q', 'k', 'v'].map((name, i) => ({ name, start: i * dim, length: dim })),
    });
    this.proj = site(new Linear(dim, dim), { role: 'linear', layout: 'tokens' });
    this.proj_drop = new Dropout(projDrop);
    const ends = { in: dim, out: dim, layout: 'heads', heads: numHeads } as const;
    this.keys = site(new Identity(), { role: 'keys', ...ends });
    this.values = site(new Identity(), { role: 'values', ...ends });
    this.core = site(new Span((q, ctx) => this.mix(q, ctx)), { role: 'heads', ...ends });
    this.joined = site(new Span((x, ctx) => this.join(x, ctx)), {
      role: 'joined_heads',
      in: dim,
      out: dim,
      layout: 'tokens',
    });
    site(this, { role: 'attention', in: dim, out: dim, layout: 'tokens' });
  }

  private readonly attnDrop: number;
  private readonly causal: boolean;

  forward(x: Tensor, ctx: Context): Tensor {
    return this.proj_drop.run(this.proj.run(this.joined.run(x, ctx), ctx), ctx);
  }

  private join(x: Tensor, ctx: Context): Tensor {
    const [batch = 0, length = 0, dim = 0] = x.shape;
    const headDim = dim / this.numHeads;
    const qkv = this.qkv.run(x, ctx).reshape([batch, length, 3, this.numHeads, headDim]).permute([2, 0, 3, 1, 4]);
    // One unbind: its gradient is one stack, where three selects would each make a gradient of full size.
    const [q, k, v] = qkv.unbind(0) as [Tensor, Tensor, Tensor];
    const [keys, values] = [this.keys.run(k, ctx), this.values.run(v, ctx)];
    const mask = (queries: Tensor): Tensor | null => this.scoreMask(queries, keys, ctx);
    ctx.state.set(this, { k: keys, v: values, mask } satisfies SelfAttentionState);
    const joined = this.core.run(q, ctx).transpose(1, 2).reshape([batch, length, dim]);
    ctx.state.delete(this);
    return joined;
  }

  /** softmax(q k^T / sqrt(d)) v for queries [B, H, N, d]; grafts may have lengthened keys and values. */
  private mix(q: Tensor, ctx: Context): Tensor {
    const { k, v, mask } = ctx.state.get(this) as SelfAttentionState;
    const dropout = this.training ? this.attnDrop : 0;
    return functional.scaledDotProductAttention(q, k, v, { mask: mask(q), dropout });
  }

  /** Added to the scores of queries [B, H, L, d] and keys [B, H, S, d], or (bool) which of them count; null for nothing. */
  protected scoreMask(q: Tensor, k: Tensor, _ctx: Context): Tensor | null {
    return this.causal ? causalMask(q, k) : null;
  }
}

/** [L, S] of bool for L queries and S keys: true where a query may look. Keys set in front of the sequence are seen by all. */
function causalMask(q: Tensor, k: Tensor): Tensor {
  const [queries = 0, keys = 0] = [q.shape.at(-2), k.shape.at(-2)];
  return ones([queries, keys], { dtype: 'bool', device: q.device }).tril(keys - queries);
}

/** fc2(g(fc1 x)); g is the exact (erf) GELU unless named otherwise. */
export class Mlp extends Module {
  readonly fc1: Linear;
  readonly act: Module;
  readonly drop1: Dropout;
  readonly fc2: Linear;
  readonly drop2: Dropout;

  constructor(dim: number, hidden: number, drop = 0, activation: ActivationName = 'gelu') {
    super();
    this.fc1 = site(new Linear(dim, hidden), { role: 'linear', layout: 'tokens' });
    this.act = activationLayer(activation);
    this.drop1 = new Dropout(drop);
    this.fc2 = site(new Linear(hidden, dim), { role: 'linear', layout: 'tokens' });
    this.drop2 = new Dropout(drop);
    site(this, { role: 'mlp', in: dim, out: dim, layout: 'tokens' });
  }

  forward(x: Tensor, ctx: Context): Tensor {
    const parts = [this.fc1, this.act, this.drop1, this.fc2, this.drop2];
    return runChain(parts, x, ctx);
  }
}

/** Pre-norm block: z += ls1(attn(norm1 z)); z += ls2(mlp(norm2 z)). [B, N, D] -> [B, N, D]. */
export class ViTBlock extends Module {
  readonly norm1: LayerNorm;
  readonly attn: Attention;
  readonly ls1: LayerScale | null;
  readonly drop_path1: DropPath | null;
  readonly norm2: LayerNorm;
  readonly mlp: Mlp;
  readonly ls2: LayerScale | null;
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

  constructor(o: ViTBlockOptions) {
    super();
    const scale = () => (o.initValues === null ? null : new LayerScale(o.dim, { init: o.initValues }));
    const path = () => (o.dropPath > 0 ? new DropPath(o.dropPath) : null);
    this.norm1 = tokenNorm(o.dim, o.normEps);
    this.attn = new Attention(o.dim, o.numHeads, o);
    this.ls1 = scale();
    this.drop_path1 = path();
    this.norm2 = tokenNorm(o.dim, o.normEps);
    this.mlp = new Mlp(o.dim, o.hidden, o.projDrop, o.activation);
    this.ls2 = scale();
    this.drop_path2 = path();
    this.attn_path = stretch('attention_path', o.dim, () => [this.attn, this.ls1, this.drop_path1]);
    this.attn_branch = stretch('attention_branch', o.dim, () => [this.norm1, this.attn_path]);
    this.mlp_path = stretch('mlp_path', o.dim, () => [this.mlp, this.ls2, this.drop_path2]);
    this.mlp_branch = stretch('mlp_branch', o.dim, () => [this.norm2, this.mlp_path]);
    this.attn_stream = identitySite('attention_stream', o.dim, 'tokens');
    this.mlp_stream = identitySite('mlp_stream', o.dim, 'tokens');
    site(this, { role: 'block', in: o.dim, out: o.dim, layout: 'tokens', stage: 0, depth: o.depth });
  }

  forward(x: Tensor, ctx: Context): Tensor {
    const y = this.attn_stream.run(x, ctx);
    const z = this.mlp_stream.run(y.add(this.attn_branch.run(y, ctx)), ctx);
    return z.add(this.mlp_branch.run(z, ctx));
  }
}

/** A stretch of a block: the modules that there are, one after the other. Each holds what it computes no longer than needed. */
export function stretch(
  role: Role | readonly Role[],
  dim: number,
  modules: () => readonly (Module | null)[],
  geometry: Omit<SiteTag, 'role'> = {},
): Span {
  const span = new Span((x, ctx) => {
    const there = modules().filter((module) => module !== null);
    return runChain(there, x, ctx);
  });
  return site(span, { role, in: dim, out: dim, layout: 'tokens', ...geometry });
}

/** A LayerNorm of tokens: a `norm` site. */
export function tokenNorm(dim: number, eps: number): LayerNorm {
  return site(new LayerNorm(dim, { eps }), { role: 'norm', layout: 'tokens' });
}
