/** The parts of HAT-Net, in the names of its files: hierarchical attention, inverted residual, block. */
import {
  type ActivationName,
  activationLayer,
  AvgPool2d,
  type Context,
  type Conv2d,
  Dropout2d,
  DropPath,
  functional,
  GroupNorm,
  Identity,
  Module,
  Sequential,
  site,
  type Span,
} from '../nn/index.js';
import type { Tensor } from '../tensor/index.js';
import { convSite, UnusedAffine } from './blocks.js';
import { stretch } from './vit_blocks.js';

/** Normalization over channels and pixels of a map at once, with a scale and a shift per channel. */
export function mapNorm(channels: number): GroupNorm {
  return site(new GroupNorm(1, channels, { eps: 1e-6 }), { role: 'norm' });
}

/** softmax(q k^T / sqrt(d)) v over heads [B, H, N, d]; itself the stretch from queries to what the heads found. */
class HeadAttention extends Module {
  readonly keys: Identity;
  readonly values: Identity;

  constructor(dim: number, heads: number) {
    super();
    const ends = { in: dim, out: dim, layout: 'heads', heads } as const;
    this.keys = site(new Identity(), { role: 'keys', ...ends });
    this.values = site(new Identity(), { role: 'values', ...ends });
    site(this, { role: 'heads', ...ends });
  }

  attend(q: Tensor, k: Tensor, v: Tensor, ctx: Context): Tensor {
    ctx.state.set(this, { k: this.keys.run(k, ctx), v: this.values.run(v, ctx) });
    const mixed = this.run(q, ctx);
    ctx.state.delete(this);
    return mixed;
  }

  forward(q: Tensor, ctx: Context): Tensor {
    const { k, v } = ctx.state.get(this) as { k: Tensor; v: Tensor };
    return functional.scaledDotProductAttention(q, k, v);
  }
}

/** What a `HatAttention` is built from. */
export interface HatAttentionOptions {
  readonly dim: number;
  readonly headDim: number;
  /** Side of the windows; 1 for one attention over the whole map. */
  readonly window: number;
  /** Side of the cells that keys and values of the global attention are averaged over. */
  readonly pool: number;
  /** Dropout of whole channels of the result. Default 0. */
  readonly drop?: number;
}

/**
 * Hierarchical attention of maps [B, C, H, W], norm included. With windows: w = attention within g x g windows of the
 * normed map, y = norm(x + w), s = y + attention of every pixel of y to the pooled, normed y. Without: s = attention
 * over the whole map. Then a 1x1 convolution. arXiv 2106.03180, section 3.2; its order of steps is the code's.
 */
export class HatAttention extends Module {
  readonly window: number;
  readonly heads: number;
  readonly norm: GroupNorm;
  readonly qkv: Conv2d;
  readonly proj: Conv2d;
  /** In the files, and never used. */
  readonly proj_norm: UnusedAffine;
  readonly grid_norm: GroupNorm | null;
  readonly ds_norm: GroupNorm | null;
  readonly q: Conv2d | null;
  readonly kv: Conv2d | null;
  readonly pool: AvgPool2d | null;
  readonly drop: Dropout2d;
  /** Attention within the windows; over the whole map when there are none. */
  readonly local: HeadAttention;
  readonly global: HeadAttention | null;

  constructor({ dim, headDim, window, pool, drop = 0 }: HatAttentionOptions) {
    super();
    if (dim % headDim !== 0) {
      throw new RangeError(`hierarchical attention: ${dim} channels do not divide into heads of ${headDim}`);
    }
    const isHierarchical = window > 1;
    this.window = window;
    this.heads = dim / headDim;
    this.norm = mapNorm(dim);
    this.qkv = projection(dim, ['q', 'k', 'v']);
    this.proj = projection(dim);
    this.proj_norm = new UnusedAffine(dim);
    this.grid_norm = isHierarchical ? mapNorm(dim) : null;
    this.ds_norm = isHierarchical ? mapNorm(dim) : null;
    this.q = isHierarchical ? projection(dim, ['q']) : null;
    this.kv = isHierarchical ? projection(dim, ['k', 'v']) : null;
    this.pool = isHierarchical ? new AvgPool2d({ kernelSize: pool }) : null;
    this.drop = new Dropout2d(drop);
    this.local = new HeadAttention(dim, this.heads);
    this.global = isHierarchical ? new HeadAttention(dim, this.heads) : null;
    site(this, { role: 'attention', in: dim, out: dim, layout: 'map' });
  }

  forward(x: Tensor, ctx: Context): Tensor {
    const local = this.#windowed(this.qkv.run(this.norm.run(x, ctx), ctx), ctx);
    const { grid_norm: norm, ds_norm: poolNorm, q, kv, pool, global } = this;
    if (!(norm && poolNorm && q && kv && pool && global)) return this.#project(local, ctx);
    const y = norm.run(x.add(local), ctx);
    const [queries] = this.#heads(q.run(y, ctx), 1) as [Tensor];
    const [keys, values] = this.#heads(kv.run(poolNorm.run(pool.run(y, ctx), ctx), ctx), 2) as [Tensor, Tensor];
    const seen = global.attend(queries, keys, values, ctx).transpose(2, 3).reshape(y.shape);
    return this.#project(seen.add(y), ctx);
  }

  #project(s: Tensor, ctx: Context): Tensor {
    return this.drop.run(this.proj.run(s, ctx), ctx);
  }

  /** A map [B, n C, H, W] as n tensors of heads [B, heads, H W, d]. */
  #heads(map: Tensor, count: number): Tensor[] {
    const [batch = 0, channels = 0] = map.shape;
    const headDim = channels / count / this.heads;
    return map.reshape([batch, count, this.heads, headDim, -1]).permute([1, 0, 2, 4, 3]).unbind(0);
  }

  /** Attention of q, k, v [B, 3 C, H, W] in each window by itself, back at its place: [B, C, H, W]. */
  #windowed(qkv: Tensor, ctx: Context): Tensor {
    const { heads, window: g } = this;
    const [batch = 0, channels = 0, height = 0, width = 0] = qkv.shape;
    if (g === 1) {
      const [q, k, v] = this.#heads(qkv, 3) as [Tensor, Tensor, Tensor];
      const mixed = this.local.attend(q, k, v, ctx);
      return mixed.transpose(2, 3).reshape([batch, channels / 3, height, width]);
    }
    if (height % g !== 0 || width % g !== 0) {
      throw new RangeError(
        `a map of ${height} x ${width} does not divide into attention windows of ${g} x ${g}; the published models take images whose sides are multiples of 224`,
      );
    }
    const [down, across] = [height / g, width / g];
    const headDim = channels / 3 / heads;
    const cut = qkv.reshape([batch, 3, heads, headDim, down, g, across, g]).permute([1, 0, 4, 6, 2, 5, 7, 3]);
    const [q, k, v] = cut.reshape([3, batch * down * across, heads, g * g, headDim]).unbind(0) as [
      Tensor,
      Tensor,
      Tensor,
    ];
    const mixed = this.local.attend(q, k, v, ctx).reshape([batch, down, across, heads, g, g, headDim]);
    return mixed.permute([0, 3, 6, 1, 4, 2, 5]).reshape([batch, channels / 3, height, width]);
  }
}

/** A 1x1 convolution C -> C, or C -> n C for n named parts. */
function projection(dim: number, parts: readonly string[] = []): Conv2d {
  const conv = convSite(dim, dim * Math.max(1, parts.length), { kernelSize: 1, bias: true });
  return site(conv, { role: 'conv', slice: parts.map((name, i) => ({ name, start: i * dim, length: dim })) });
}

/** What an `InvertedResidual` is built from. */
export interface InvertedResidualOptions {
  readonly inChannels: number;
  readonly hidden: number;
  readonly outChannels: number;
  /** Kernel of the depth-wise convolution. */
  readonly kernelSize: number;
  /** Default `silu`. */
  readonly activation?: ActivationName;
  /** Dropout of whole channels. Default 0. */
  readonly drop?: number;
}

/** Norm, 1x1 convolution, act, depth-wise convolution, act, 1x1 convolution, norm, on maps [B, C, H, W]. */
export class InvertedResidual extends Module {
  readonly conv1: Sequential;
  /** The depth-wise stretch. */
  readonly conv2: Sequential;
  readonly drop1: Dropout2d;
  readonly conv3: Sequential;
  readonly drop2: Dropout2d;

  constructor(o: InvertedResidualOptions) {
    super();
    const { inChannels, hidden, outChannels, kernelSize, activation = 'silu', drop = 0 } = o;
    const padding = Math.floor((kernelSize - 1) / 2);
    this.conv1 = new Sequential(
      mapNorm(inChannels),
      convSite(inChannels, hidden, { kernelSize: 1 }),
      activationLayer(activation),
    );
    this.conv2 = site(
      new Sequential(convSite(hidden, hidden, { kernelSize, padding, groups: hidden }), activationLayer(activation)),
      { role: 'spatial', in: hidden, out: hidden, layout: 'map', kernel: kernelSize, stride: 1, padding, activation },
    );
    this.drop1 = new Dropout2d(drop);
    this.conv3 = new Sequential(convSite(hidden, outChannels, { kernelSize: 1 }), mapNorm(outChannels));
    this.drop2 = new Dropout2d(drop);
    site(this, { role: 'mlp', in: inChannels, out: outChannels, layout: 'map' });
  }

  forward(x: Tensor, ctx: Context): Tensor {
    const parts = [this.conv1, this.conv2, this.drop1, this.conv3, this.drop2];
    return parts.reduce<Tensor>((y, part) => part.run(y, ctx), x);
  }
}

/** Sizes of a block. */
export interface HatBlockOptions extends HatAttentionOptions {
  /** Width of the MLP. */
  readonly hidden: number;
  readonly kernelSize: number;
  readonly activation: ActivationName;
  readonly drop: number;
  readonly dropPath: number;
  readonly stage: number;
  readonly depth: number;
}

/**
 * x += attn(x); x += conv(x), on maps [B, C, H, W]. Both begin with their norm, and the attention also reads what the
 * norm was given: so the branch, from the stream to what is added to it, is also the path.
 */
export class HatBlock extends Module {
  readonly attn: HatAttention;
  readonly drop_path1: DropPath | null;
  readonly conv: InvertedResidual;
  readonly drop_path2: DropPath | null;
  readonly attn_branch: Span;
  readonly mlp_branch: Span;

  constructor(o: HatBlockOptions) {
    super();
    const { dim, kernelSize, hidden, activation, drop } = o;
    const path = () => (o.dropPath > 0 ? new DropPath(o.dropPath) : null);
    this.attn = new HatAttention(o);
    this.drop_path1 = path();
    this.conv = new InvertedResidual({ inChannels: dim, outChannels: dim, hidden, kernelSize, activation, drop });
    this.drop_path2 = path();
    const padding = Math.floor((kernelSize - 1) / 2);
    const map = { layout: 'map', kernel: kernelSize, stride: 1, padding, activation } as const;
    this.attn_branch = stretch(['attention_branch', 'attention_path'], dim, () => [this.attn, this.drop_path1], {
      layout: 'map',
    });
    const roles = ['mlp_branch', 'mlp_path', 'residual'];
    this.mlp_branch = stretch(roles, dim, () => [this.conv, this.drop_path2], map);
    site(this, { role: 'block', in: dim, out: dim, layout: 'map', stage: o.stage, depth: o.depth });
  }

  forward(x: Tensor, ctx: Context): Tensor {
    const z = x.add(this.attn_branch.run(x, ctx));
    return z.add(this.mlp_branch.run(z, ctx));
  }
}
