/** Prefixes of attention: where their keys and values come from, and how they meet the queries. */
import {
  type AttentionState,
  type Context,
  Dropout,
  Embedding,
  functional,
  init,
  LayerNorm,
  Linear,
  Module,
  Parameter,
  type Site,
  Tanh,
} from '../nn/index.js';
import { aten, empty, type Tensor } from '../tensor/index.js';
import { attentionPath } from './unified_names.js';

/** Sizes of a reparametrized prefix. */
export interface PrefixMlpOptions {
  readonly length: number;
  /** Attentions that it serves. */
  readonly layers: number;
  readonly heads: number;
  /** Width of all heads. */
  readonly width: number;
  /** Width of the hidden layer. */
  readonly hidden: number;
  readonly dropout: number;
}

/**
 * Keys and values of all layers from one table: E [l, d] through a linear layer, tanh and a second linear layer to
 * 2 L d numbers per row. Li & Liang, ACL 2021, arXiv 2101.00190, section 4.3. `embedding.weight`, `hidden.*`, `out.*`.
 */
export class PrefixMlp extends Module {
  readonly embedding: Embedding;
  readonly hidden: Linear;
  readonly act: Tanh;
  readonly out: Linear;
  readonly drop: Dropout;
  readonly #sizes: PrefixMlpOptions;

  constructor(sizes: PrefixMlpOptions) {
    super();
    this.#sizes = sizes;
    this.embedding = new Embedding(sizes.length, sizes.width);
    this.hidden = new Linear(sizes.width, sizes.hidden);
    this.act = new Tanh();
    this.out = new Linear(sizes.hidden, 2 * sizes.layers * sizes.width);
    this.drop = new Dropout(sizes.dropout);
  }

  /** The table [l, d] to [2 L, heads, l, d / heads]: key and value of layer 0, of layer 1, ... */
  forward(table: Tensor, ctx: Context): Tensor {
    const { length, layers, heads, width } = this.#sizes;
    const rows = this.out.run(this.act.run(this.hidden.run(table, ctx), ctx), ctx);
    return this.drop.run(rows.view([length, 2 * layers, heads, width / heads]), ctx).permute([1, 2, 0, 3]);
  }

  /** Key or value of a layer [heads, l, d / heads]; all are computed at the first request of a pass. */
  slot(layer: number, what: PrefixPart, ctx: Context): Tensor {
    let all = ctx.state.get(this) as Tensor | undefined;
    if (!all) ctx.state.set(this, (all = this.run(this.embedding.weight, ctx)));
    return all.select(0, 2 * layer + (what === 'key' ? 0 : 1));
  }
}

/** What of an attention a prefix stands in front of. */
export type PrefixPart = 'key' | 'value';

/** Where a graft's prefix comes from: rows of its own, or one layer of a shared reparametrization. */
export type PrefixSource =
  | { readonly kind: 'direct'; readonly length: number; readonly dropout: number }
  | { readonly kind: 'shared'; readonly mlp: PrefixMlp; readonly layer: number };

/** Rows [l, width] N(0, 0.02²). */
function freshRows(length: number, width: number): Parameter {
  return new Parameter(init.normal_(empty([length, width]), 0, 0.02));
}

/** Rows [l, width] as heads [heads, l, width / heads]. */
function asHeads(rows: Tensor, heads: number): Tensor {
  const [length = 0, width = 0] = rows.shape;
  return rows.view([length, heads, width / heads]).transpose(0, 1);
}

/** The rows of a pass [heads, l, width / heads]: a graft's `own` after dropout, or those of the shared MLP. */
function rowsOf(
  source: PrefixSource,
  what: PrefixPart,
  own: Parameter | null,
  drop: Dropout,
  heads: number,
  ctx: Context,
): Tensor {
  if (source.kind === 'shared') return source.mlp.slot(source.layer, what, ctx);
  return drop.run(asHeads(own as Parameter, heads), ctx);
}

/** P in front of keys or values [B, H, S, d]: [B, H, l + S, d]. `weight` [l, H d] unless the rows are shared. */
export class PrefixConcat extends Module {
  readonly weight: Parameter | null;
  readonly drop: Dropout;
  readonly #rows: (ctx: Context) => Tensor;

  constructor(site: Site, what: PrefixPart, source: PrefixSource) {
    super();
    const { heads = 1 } = site;
    const weight = source.kind === 'direct' ? freshRows(source.length, site.in) : null;
    this.weight = weight;
    this.drop = new Dropout(source.kind === 'direct' ? source.dropout : 0);
    this.#rows = (ctx) => rowsOf(source, what, weight, this.drop, heads, ctx);
  }

  forward(x: Tensor, ctx: Context): Tensor {
    const [batch = 0] = x.shape;
    const rows = this.#rows(ctx).to(x.dtype);
    return aten.cat([rows.unsqueeze(0).expand([batch, -1, -1, -1]), x], 2);
  }
}

/** Passes its input on and keeps it in the context for another graft of the same attention. */
export class Remember extends Module {
  readonly #key: object;

  constructor(key: object) {
    super();
    this.#key = key;
  }

  forward(x: Tensor, ctx: Context): Tensor {
    ctx.state.set(this.#key, x);
    return x;
  }
}

/** A key of the context's state for what `Remember` keeps. */
export class Memory {
  /** What was kept, which is forgotten thereby. */
  take(ctx: Context): Tensor {
    const kept = ctx.state.get(this) as Tensor | undefined;
    if (!kept) throw new Error('nothing has been kept: run the whole attention');
    ctx.state.delete(this);
    return kept;
  }
}

/** How a second attention meets the first. */
export interface PrefixAttentionOptions {
  readonly source: PrefixSource;
  readonly nonlinearity: 'softmax' | 'relu';
  /** Whether its scores are scaled as those of the attention. */
  readonly scaled: boolean;
  /** `gated`: by the weights that a common softmax would give; `add`: their sum. */
  readonly composition: 'gated' | 'add';
  /** With this, queries are those of the attention's normed input, projected anew. */
  readonly requery: {
    readonly input: Memory;
    readonly project: (x: Tensor, ctx: Context) => Tensor;
    readonly dim: number;
  } | null;
  /** The queries, for the gated form, which sees only what the heads found. */
  readonly queries: Memory;
  /** The attention, whose keys and mask stand in the context while its heads run. */
  readonly attention: Module | null;
}

/**
 * A second attention of the same queries to a prefix: f(s q P_kᵀ) P_v per head. He et al., ICLR 2022, equation 5 (prefix as
 * a gated sum) and section 4.1 (multi-head parallel adapter: f = ReLU). `key`, `value` [l, H d] unless shared; `norm`.
 */
export class PrefixAttention extends Module {
  readonly key: Parameter | null;
  readonly value: Parameter | null;
  readonly norm: LayerNorm | null;
  readonly drop: Dropout;
  readonly #options: PrefixAttentionOptions;
  readonly #heads: number;
  readonly #scale: number;

  constructor(site: Site, options: PrefixAttentionOptions) {
    super();
    const { source, requery } = options;
    const { heads = 1 } = site;
    this.#options = options;
    this.#heads = heads;
    this.#scale = site.scoreScale ?? (site.in / heads) ** -0.5;
    const own = source.kind === 'direct' ? source : null;
    this.key = own && freshRows(own.length, site.in);
    this.value = own && freshRows(own.length, site.in);
    this.drop = new Dropout(own?.dropout ?? 0);
    this.norm = requery && new LayerNorm(requery.dim);
  }

  #rows(what: PrefixPart, ctx: Context): Tensor {
    return rowsOf(this.#options.source, what, this[what], this.drop, this.#heads, ctx);
  }

  #queries(plain: Tensor, ctx: Context): Tensor {
    const { requery } = this.#options;
    if (!requery || !this.norm) return plain;
    const q = requery.project(this.norm.run(requery.input.take(ctx), ctx), ctx);
    const [batch = 0, length = 0, width = 0] = q.shape;
    return q.view([batch, length, this.#heads, width / this.#heads]).transpose(1, 2);
  }

  /** Added: queries [B, H, N, d] to the sum's second part. Gated: what the heads found to the weighted sum. */
  forward(x: Tensor, ctx: Context): Tensor {
    const { composition, nonlinearity, scaled, queries } = this.#options;
    const plain = composition === 'gated' ? queries.take(ctx) : x;
    const q = this.#queries(plain, ctx);
    const scores = (scaled ? q.mul(this.#scale) : q).matmul(this.#rows('key', ctx).to(q.dtype).transpose(1, 2));
    const weights = nonlinearity === 'relu' ? functional.relu(scores) : functional.softmax(scores);
    const found = weights.matmul(this.#rows('value', ctx).to(q.dtype));
    if (composition === 'add') return found;
    const share = scores.logsumexp([-1], true).sub(this.#total(plain, ctx)).sigmoid();
    return x.add(found.sub(x).mul(share));
  }

  /** log Σ exp of the attention's own scores [B, H, N, 1]. */
  #total(q: Tensor, ctx: Context): Tensor {
    const own = ctx.state.get(this.#options.attention) as AttentionState | undefined;
    if (!own) throw new Error('the heads of an attention do not say what they read: run the whole attention');
    if (own.k.shape[0] !== q.shape[0]) {
      throw new RangeError('a gated second attention cannot take part in a mixed batch; run its samples by themselves');
    }
    const scores = q.mul(this.#scale).matmul(own.k.transpose(2, 3));
    const mask = typeof own.mask === 'function' ? own.mask(q) : own.mask;
    if (mask === null) return scores.logsumexp([-1], true);
    const masked = mask.dtype === 'bool' ? scores.maskedFill(mask.logicalNot(), -Infinity) : scores.add(mask);
    return masked.logsumexp([-1], true);
  }
}

/** The queries' projection of the attention that owns `site`: [B, N, C] to [B, N, H d]. @throws RangeError without one */
export function queryProjection(
  site: Site,
  all: readonly Site[],
): { project: (x: Tensor, ctx: Context) => Tensor; dim: number } {
  const owner = attentionPath(site.path);
  const found = all.find(({ path, roles }) => roles.includes('q') && path.startsWith(`${owner}.`));
  const layer = found?.module;
  if (!found || !(layer instanceof Linear))
    throw new RangeError('the attention here has no projection of queries of its own');
  const { slice } = found;
  if (!slice) return { project: (x, ctx) => layer.run(x, ctx), dim: found.in };
  const rows = (t: Tensor): Tensor => t.narrow(0, slice.start, slice.length);
  const project = (x: Tensor): Tensor => functional.linear(x, rows(layer.weight), layer.bias && rows(layer.bias));
  return { project, dim: found.in };
}
