/** The parts of T5 in transformers' names: attention with relative positions, feed-forward layer, block. */
import {
  activationLayer,
  type Context,
  Dropout,
  Embedding,
  init,
  Linear,
  Module,
  RMSNorm,
  site,
  Span,
} from '../nn/index.js';
import { arange, aten, type Device, type Tensor } from '../tensor/index.js';
import { BlockList } from './blocks.js';
import { Heads, type Place, placed, type Slot, type Surroundings } from './text_attention.js';
import { stretch } from './vit_blocks.js';

/** Sizes of T5's blocks. */
export interface T5Sizes {
  readonly dim: number;
  readonly headDim: number;
  readonly heads: number;
  readonly hidden: number;
  readonly feedForward: 'relu' | 'gated_gelu';
  readonly normEps: number;
  readonly dropRate: number;
  readonly buckets: number;
  readonly maxDistance: number;
}

/** How distances between positions fall into buckets. */
export interface BucketOptions {
  /** Half of the buckets for keys behind the query (encoder), or none (decoder). */
  readonly bidirectional: boolean;
  readonly buckets: number;
  /** From this distance on, all share the last bucket. */
  readonly maxDistance: number;
}

/**
 * Bucket of key position minus query position, int64 [queries, keys]: one bucket each for small distances, logarithmic
 * ones beyond. Raffel et al. 2020, arXiv 1910.10683, section 2.1. The logarithm is taken in float32, as the published
 * models were trained; its rounding decides at the edges.
 */
export function relativeBuckets(queries: number, keys: number, options: BucketOptions, device: Device): Tensor {
  const positions = (count: number): Tensor => arange(count, { dtype: 'int64', device });
  const relative = positions(keys)
    .view([1, -1])
    .sub(positions(queries).view([-1, 1]));
  const { bidirectional, maxDistance } = options;
  const count = bidirectional ? Math.floor(options.buckets / 2) : options.buckets;
  const distance = bidirectional ? relative.abs() : relative.neg().clampMin(0);
  const exact = Math.floor(count / 2);
  const far = distance
    .clampMin(1)
    .to('float32')
    .div(exact)
    .log()
    .div(Math.log(maxDistance / exact))
    .mul(count - exact)
    .to('int64')
    .add(exact)
    .clampMax(count - 1);
  const bucket = aten.where(distance.lt(exact), distance, far);
  return bidirectional ? bucket.add(relative.gt(0).to('int64').mul(count)) : bucket;
}

/** Table of biases [buckets, heads] to what is added to scores: [1, heads, queries, keys]. */
export function relativeBias(table: Embedding, queries: number, keys: number, options: BucketOptions): Tensor {
  const buckets = relativeBuckets(queries, keys, options, table.weight.device);
  return table.run(buckets).permute([2, 0, 1]).unsqueeze(0);
}

/** A linear layer without bias that is a site. */
function projection(inFeatures: number, outFeatures: number, role: string, std: number): Linear {
  const layer = site(new Linear(inFeatures, outFeatures, { bias: false }), {
    role: ['linear', role],
    layout: 'tokens',
  });
  init.normal_(layer.weight, 0, std);
  return layer;
}

function norm(o: T5Sizes): RMSNorm {
  return site(new RMSNorm(o.dim, { eps: o.normEps }), { role: 'norm' });
}

/** Attention without any scaling of scores: softmax(q kᵀ + bias) v, then `o`. */
class T5Attention extends Heads {
  readonly q: Linear;
  readonly k: Linear;
  readonly v: Linear;
  readonly o: Linear;
  /** Biases by bucket [buckets, heads]; only the first block of a stack has them. */
  readonly relative_attention_bias: Embedding | null;
  /** States to the joined heads. */
  readonly joined: Span;

  constructor(o: T5Sizes, place: Place, hasBias: boolean, surroundings: Slot<Surroundings>) {
    const { dim, headDim, heads } = o;
    super({ dim, heads, headDim, scale: 1, dropout: o.dropRate, place, surroundings });
    const width = heads * headDim;
    this.q = projection(dim, width, 'q', (dim * headDim) ** -0.5);
    this.k = projection(dim, width, 'k', dim ** -0.5);
    this.v = projection(dim, width, 'v', dim ** -0.5);
    this.o = projection(width, dim, 'o', width ** -0.5);
    this.relative_attention_bias = hasBias ? new Embedding(o.buckets, heads) : null;
    if (this.relative_attention_bias) init.normal_(this.relative_attention_bias.weight, 0, dim ** -0.5);
    this.joined = site(new Span((x, ctx) => this.join(x, ctx)), {
      role: placed('joined_heads', place),
      in: dim,
      out: width,
      layout: 'tokens',
    });
    site(this, { role: placed('attention', place), in: dim, out: dim, layout: 'tokens', heads });
  }

  protected projections(): readonly [Linear, Linear, Linear] {
    return [this.q, this.k, this.v];
  }

  forward(x: Tensor, ctx: Context): Tensor {
    return this.o.run(this.joined.run(x, ctx), ctx);
  }
}

/** wo(relu(wi x)), or wo(gelu(wi_0 x) * wi_1 x) with the tanh form of GELU (v1.1). */
class T5FeedForward extends Module {
  readonly wi: Linear | null;
  readonly wi_0: Linear | null;
  readonly wi_1: Linear | null;
  readonly wo: Linear;
  readonly dropout: Dropout;
  readonly act: Module;

  constructor({ dim, hidden, feedForward, dropRate }: T5Sizes) {
    super();
    const isGated = feedForward === 'gated_gelu';
    const into = (): Linear => projection(dim, hidden, 'fc1', dim ** -0.5);
    this.wi = isGated ? null : into();
    this.wi_0 = isGated ? into() : null;
    this.wi_1 = isGated ? into() : null;
    this.wo = projection(hidden, dim, 'fc2', hidden ** -0.5);
    this.dropout = new Dropout(dropRate);
    this.act = activationLayer(isGated ? 'gelu_tanh' : 'relu');
    site(this, { role: 'mlp', in: dim, out: dim, layout: 'tokens' });
  }

  forward(x: Tensor, ctx: Context): Tensor {
    // There is one of the two.
    const into = (this.wi ?? this.wi_0) as Linear;
    let hidden = this.act.run(into.run(x, ctx), ctx);
    if (this.wi_1) hidden = hidden.mul(this.wi_1.run(x, ctx));
    return this.wo.run(this.dropout.run(hidden, ctx), ctx);
  }
}

/** A pre-norm sub-layer: the stream to what is added to it. */
abstract class SubLayer extends Module {
  readonly layer_norm: RMSNorm;
  readonly dropout: Dropout;
  /** The normed stream to what is added. */
  readonly path: Span;

  constructor(o: T5Sizes, kind: 'attention' | 'mlp') {
    super();
    this.layer_norm = norm(o);
    this.dropout = new Dropout(o.dropRate);
    this.path = stretch(`${kind}_path`, o.dim, () => [this.body(), this.dropout]);
    site(this, { role: `${kind}_branch`, in: o.dim, out: o.dim, layout: 'tokens' });
  }

  protected abstract body(): Module;

  forward(x: Tensor, ctx: Context): Tensor {
    return this.path.run(this.layer_norm.run(x, ctx), ctx);
  }
}

class SelfAttentionLayer extends SubLayer {
  readonly SelfAttention: T5Attention;

  constructor(o: T5Sizes, place: Place, hasBias: boolean, surroundings: Slot<Surroundings>) {
    super(o, 'attention');
    this.SelfAttention = new T5Attention(o, place, hasBias, surroundings);
  }

  protected body(): Module {
    return this.SelfAttention;
  }
}

class CrossAttentionLayer extends SubLayer {
  readonly EncDecAttention: T5Attention;

  constructor(o: T5Sizes, surroundings: Slot<Surroundings>) {
    super(o, 'attention');
    this.EncDecAttention = new T5Attention(o, 'cross', false, surroundings);
  }

  protected body(): Module {
    return this.EncDecAttention;
  }
}

class FeedForwardLayer extends SubLayer {
  readonly DenseReluDense: T5FeedForward;

  constructor(o: T5Sizes) {
    super(o, 'mlp');
    this.DenseReluDense = new T5FeedForward(o);
  }

  protected body(): Module {
    return this.DenseReluDense;
  }
}

/** Where a block stands, and the slots of its stack. */
export interface T5BlockPlace {
  readonly stack: 'encoder' | 'decoder';
  readonly index: number;
  /** Index over both stacks. */
  readonly depth: number;
  readonly self: Slot<Surroundings>;
  /** For the decoder: the encoder's states. */
  readonly cross: Slot<Surroundings>;
}

/** x += attention(norm x); in the decoder x += cross(norm x); x += ff(norm x). [B, N, D] -> [B, N, D]. */
export class T5Block extends Module {
  readonly layer: BlockList;
  readonly #biases: Embedding | null;

  constructor(o: T5Sizes, { stack, index, depth, self, cross }: T5BlockPlace) {
    super();
    const first = new SelfAttentionLayer(o, stack, index === 0, self);
    const layers: SubLayer[] = [first];
    if (stack === 'decoder') layers.push(new CrossAttentionLayer(o, cross));
    layers.push(new FeedForwardLayer(o));
    this.layer = new BlockList(...layers);
    this.#biases = first.SelfAttention.relative_attention_bias;
    site(this, {
      role: 'block',
      in: o.dim,
      out: o.dim,
      layout: 'tokens',
      stage: stack === 'encoder' ? 0 : 1,
      depth,
    });
  }

  /** The position biases of the stack [buckets, heads]. @throws Error at other blocks than the first */
  get biases(): Embedding {
    if (!this.#biases) throw new Error('only the first block of a stack has position biases');
    return this.#biases;
  }

  forward(x: Tensor, ctx: Context): Tensor {
    let z = x;
    for (const layer of this.layer) z = z.add(layer.run(z, ctx));
    return z;
  }
}
