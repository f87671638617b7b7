/** The parts of InternImage, in the names of its files: norms, deformable convolution, layer, level, attention pooling. */
import {
  type ActivationName,
  activationLayer,
  BatchNorm2d,
  type Context,
  type Conv2d,
  dcnv3,
  DropPath,
  functional,
  LayerNorm,
  LayerNorm2d,
  Linear,
  Module,
  ModuleList,
  Parameter,
  type Role,
  Sequential,
  site,
  type Size2,
  Span,
} from '../nn/index.js';
import { aten, full, type Tensor, zeros } from '../tensor/index.js';
import { BlockList, convSite, headWidth, UnusedAffine } from './blocks.js';
import { mapOf, tokensOf } from './hornet_blocks.js';
import { Mlp, stretch, tokenNorm } from './vit_blocks.js';

const EPS = 1e-6;

/** Which norm the stem, the downsampling and the branch of the offsets have. */
export type InternNorm = 'LN' | 'BN';

/** A norm of maps [B, C, H, W] that the files number 0; the official code keeps channels last here. */
function innerNorm(channels: number): Sequential {
  return new Sequential(site(new LayerNorm2d(channels, { eps: EPS }), { role: 'norm' }));
}

/** The norm behind a convolution: in the files a layer norm is number 1 (a permutation is 0), a batch norm 0. */
export function convNorm(channels: number, kind: InternNorm): Sequential {
  return kind === 'BN'
    ? new Sequential(site(new BatchNorm2d(channels), { role: 'norm' }))
    : new Sequential({ 1: site(new LayerNorm2d(channels, { eps: EPS }), { role: 'norm' }) });
}

/** What a deformable convolution v3 is built from. */
export interface DeformConvOptions {
  readonly channels: number;
  readonly groups: number;
  /** Default 3. */
  readonly kernelSize?: number;
  /** Kernel of the depth-wise convolution in front of offsets and weights. Default: `kernelSize`. */
  readonly dwKernelSize?: number | null;
  /** Default 1. */
  readonly stride?: Size2;
  /** Default 1. */
  readonly padding?: Size2;
  /** Default 1. */
  readonly dilation?: Size2;
  /** Default 1. */
  readonly offsetScale?: number;
  /** Default `gelu`. */
  readonly activation?: ActivationName;
  /** Default `LN`. */
  readonly norm?: InternNorm;
  /** Mixes the result with the projected input, by a learned share per group. Default false. */
  readonly centerFeatureScale?: boolean;
  /** Default false. */
  readonly removeCenter?: boolean;
}

/**
 * z = input_proj x, u = act(norm(dw_conv x)), y = DCNv3(z, offset u, softmax(mask u)), output_proj y, on maps
 * [B, C, H, W]. With center feature scale, y <- y (1 - a) + z a with a = sigmoid(W u + b) per group. Wang et al., CVPR
 * 2023, arXiv 2211.05778, section 3.1.
 */
export class DeformConv extends Module {
  readonly center_feature_scale_proj_weight: Parameter | null;
  readonly center_feature_scale_proj_bias: Parameter | null;
  readonly dw_conv: Sequential;
  readonly offset: Linear;
  readonly mask: Linear;
  readonly input_proj: Linear;
  readonly output_proj: Linear;
  readonly #options: DeformConvOptions & { readonly kernelSize: number };

  constructor(o: DeformConvOptions) {
    super();
    const { channels, groups, kernelSize = 3, removeCenter = false, norm = 'LN', activation = 'gelu' } = o;
    if (channels % groups !== 0) {
      throw new RangeError(`a deformable convolution's ${channels} channels do not divide into ${groups} groups`);
    }
    const points = groups * (kernelSize ** 2 - (removeCenter ? 1 : 0));
    const dwKernel = o.dwKernelSize ?? kernelSize;
    const linear = (out: number, role: Role | Role[] = 'linear'): Linear =>
      site(new Linear(channels, out), { role, layout: 'tokens' });
    this.#options = { ...o, kernelSize };
    const isScaled = o.centerFeatureScale ?? false;
    this.center_feature_scale_proj_weight = isScaled ? new Parameter(zeros([groups, channels])) : null;
    this.center_feature_scale_proj_bias = isScaled ? new Parameter(zeros([groups])) : null;
    this.dw_conv = new Sequential(
      convSite(channels, channels, {
        kernelSize: dwKernel,
        padding: Math.floor((dwKernel - 1) / 2),
        groups: channels,
        bias: true,
      }),
      convNorm(channels, norm),
      activationLayer(activation),
    );
    this.offset = linear(2 * points, ['linear', 'sampling']);
    this.mask = linear(points, ['linear', 'sampling']);
    this.input_proj = linear(channels);
    this.output_proj = linear(channels);
    site(this, {
      role: ['attention', 'spatial'],
      in: channels,
      out: channels,
      layout: 'map',
      kernel: kernelSize,
      stride: o.stride ?? 1,
      padding: o.padding ?? 1,
      activation,
    });
  }

  forward(x: Tensor, ctx: Context): Tensor {
    const { groups, kernelSize: kernel, stride = 1, padding = 1, dilation = 1 } = this.#options;
    const { offsetScale = 1, removeCenter = false } = this.#options;
    const [batch = 0, channels = 0, rows = 0, columns = 0] = x.shape;
    const grid = [batch, rows, columns];
    const z = this.input_proj.run(tokensOf(x, ctx), ctx).reshape([...grid, channels]);
    const u = tokensOf(this.dw_conv.run(x, ctx), ctx);
    const offset = this.offset.run(u, ctx).reshape([...grid, -1]);
    const weights = this.mask.run(u, ctx).reshape([...grid, groups, -1]);
    const mask = functional.softmax(weights).to(x.dtype).flatten(-2);
    const geometry = { kernel, stride, padding, dilation, groups, offsetScale, removeCenter };
    const y = dcnv3(z, offset, mask, geometry);
    return mapOf(this.output_proj.run(this.#centered(y, z, u).reshape([batch, rows * columns, channels]), ctx), ctx);
  }

  /** y (1 - a) + z a. */
  #centered(y: Tensor, z: Tensor, u: Tensor): Tensor {
    const [weight, bias] = [this.center_feature_scale_proj_weight, this.center_feature_scale_proj_bias];
    if (!weight || !bias) return y;
    const [batch = 0, rows = 0, columns = 0] = y.shape;
    const perGroup = [batch, rows, columns, weight.shape[0] ?? 1, -1];
    const share = functional.linear(u, weight, bias).sigmoid().reshape(perGroup);
    return aten.lerp(y.reshape(perGroup), z.reshape(perGroup), share).reshape(y.shape);
  }
}

/** What an `InternLayer` is built from. */
export interface InternLayerOptions extends DeformConvOptions {
  readonly mlpRatio: number;
  /** Dropout in the MLP. */
  readonly drop: number;
  readonly dropPath: number;
  readonly postNorm: boolean;
  readonly resPostNorm: boolean;
  /** Initial layer scale; null for none. */
  readonly layerScale: number | null;
  readonly stage: number;
  readonly depth: number;
}

/**
 * x += dcn branch, x += MLP branch, on maps [B, C, H, W]; norms before (default), after (`postNorm`) or both before and
 * after (`resPostNorm`, without layer scale) what they belong to. Layer scale comes behind the norm.
 */
export class InternLayer extends Module {
  readonly gamma1: Parameter | null;
  readonly gamma2: Parameter | null;
  readonly norm1: Sequential;
  readonly dcn: DeformConv;
  readonly drop_path1: DropPath | null;
  readonly norm2: Sequential;
  readonly mlp: Mlp;
  readonly drop_path2: DropPath | null;
  readonly res_post_norm1: Sequential | null;
  readonly res_post_norm2: Sequential | null;
  /** What the convolution is given -> what is added to x. */
  readonly attn_path: Span;
  /** x -> what is added to x. */
  readonly attn_branch: Span;
  readonly mlp_path: Span;
  readonly mlp_branch: Span;

  constructor(o: InternLayerOptions) {
    super();
    const { channels: dim, postNorm, layerScale, kernelSize = 3, activation = 'gelu' } = o;
    const hasResNorms = o.resPostNorm && !postNorm && layerScale === null;
    const gamma = () => (layerScale === null ? null : new Parameter(full([dim], layerScale)));
    const path = () => (o.dropPath > 0 ? new DropPath(o.dropPath) : null);
    const scaled = (factor: Parameter | null): Span | null =>
      factor && new Span((y) => y.mul(factor.view([1, -1, 1, 1])));
    this.gamma1 = gamma();
    this.gamma2 = gamma();
    this.norm1 = innerNorm(dim);
    this.dcn = new DeformConv(o);
    this.drop_path1 = path();
    this.norm2 = innerNorm(dim);
    this.mlp = new Mlp(dim, Math.trunc(dim * o.mlpRatio), o.drop, activation);
    this.drop_path2 = path();
    // The files hold these norms also where nothing runs them.
    this.res_post_norm1 = o.resPostNorm ? resNorm(dim, hasResNorms) : null;
    this.res_post_norm2 = o.resPostNorm ? resNorm(dim, hasResNorms) : null;

    const [scale1, scale2] = [scaled(this.gamma1), scaled(this.gamma2)];
    const mlp = new Span((x, ctx) => mapOf(this.mlp.run(tokensOf(x, ctx), ctx), ctx));
    const after = (norm: Sequential, residual: Sequential | null): Sequential | null =>
      postNorm ? norm : hasResNorms ? residual : null;
    const map = { layout: 'map' } as const;
    const around = { ...map, kernel: kernelSize, stride: 1, padding: Math.floor(kernelSize / 2), activation } as const;
    this.attn_path = stretch(
      'attention_path',
      dim,
      () => [this.dcn, after(this.norm1, this.res_post_norm1), scale1, this.drop_path1],
      map,
    );
    this.attn_branch = stretch(
      ['attention_branch', 'residual'],
      dim,
      () => [postNorm ? null : this.norm1, this.attn_path],
      around,
    );
    this.mlp_path = stretch(
      'mlp_path',
      dim,
      () => [mlp, after(this.norm2, this.res_post_norm2), scale2, this.drop_path2],
      map,
    );
    this.mlp_branch = stretch('mlp_branch', dim, () => [postNorm ? null : this.norm2, this.mlp_path], map);
    site(this, { role: 'block', in: dim, out: dim, layout: 'map', stage: o.stage, depth: o.depth });
  }

  forward(x: Tensor, ctx: Context): Tensor {
    const z = x.add(this.attn_branch.run(x, ctx));
    return z.add(this.mlp_branch.run(z, ctx));
  }
}

function resNorm(dim: number, isUsed: boolean): Sequential {
  return isUsed ? innerNorm(dim) : new Sequential(new UnusedAffine(dim));
}

/** Halves the map, rounding up: 3x3 convolution to twice the channels, norm. */
export class InternDownsample extends Module {
  readonly conv: Conv2d;
  readonly norm: Sequential;

  constructor(channels: number, norm: InternNorm) {
    super();
    this.conv = convSite(channels, 2 * channels, { kernelSize: 3, stride: 2, padding: 1 });
    this.norm = convNorm(2 * channels, norm);
    const geometry = { kernel: 3, stride: 2, padding: 1 };
    site(this, { role: 'downsample', in: channels, out: 2 * channels, layout: 'map', ...geometry });
  }

  forward(x: Tensor, ctx: Context): Tensor {
    return this.norm.run(this.conv.run(x, ctx), ctx);
  }
}

/** What an `InternLevel` is built from. */
export interface InternLevelOptions {
  readonly channels: number;
  readonly layers: readonly InternLayer[];
  readonly stage: number;
  /** Whether a norm ends the level. */
  readonly norm: boolean;
  /** Indices of the layers that a norm of their own follows; null for none. */
  readonly postNormIds: readonly number[] | null;
  /** What leads to the next level; null behind the last. */
  readonly downsample: InternDownsample | null;
}

/** The layers of one resolution and their norms; the way to the next level is here but runs after the level's features. */
export class InternLevel extends Module {
  readonly blocks: BlockList;
  readonly norm: Sequential | null;
  readonly post_norms: ModuleList<Sequential> | null;
  readonly downsample: InternDownsample | null;
  readonly #postNormIds: readonly number[];

  constructor({ channels, layers, stage, norm, postNormIds, downsample }: InternLevelOptions) {
    super();
    this.blocks = new BlockList(...layers);
    this.norm = norm ? innerNorm(channels) : null;
    this.post_norms = postNormIds ? new ModuleList(postNormIds.map(() => innerNorm(channels))) : null;
    this.downsample = downsample;
    this.#postNormIds = postNormIds ?? [];
    site(this, { role: 'stage', in: channels, out: channels, layout: 'map', stage, stride: 1 });
  }

  forward(x: Tensor, ctx: Context): Tensor {
    let y = x;
    let from = 0;
    const members = [...this.blocks];
    const run = (to: number): void => {
      if (to > from) y = new BlockList(...members.slice(from, to)).run(y, ctx);
      from = to;
    };
    [...this.#postNormIds.entries()]
      .sort(([, a], [, b]) => a - b)
      .forEach(([place, id]) => {
        if (id >= members.length) return;
        run(id + 1);
        y = this.post_norms?.at(place).run(y, ctx) ?? y;
      });
    run(members.length);
    return this.norm ? this.norm.run(y, ctx) : y;
  }
}

/** Attention of one query [B, 1, E] to tokens [B, N, E], with biases apart from the projections. */
class CrossAttention extends Module {
  readonly q_bias: Parameter;
  readonly k_bias: Parameter;
  readonly v_bias: Parameter;
  readonly q: Linear;
  readonly k: Linear;
  readonly v: Linear;
  readonly proj: Linear;

  constructor(
    dim: number,
    private readonly heads: number,
    out: number,
  ) {
    super();
    headWidth(dim, heads);
    const linear = (to: number, bias: boolean): Linear =>
      site(new Linear(dim, to, { bias }), { role: 'linear', layout: 'tokens' });
    [this.q_bias, this.k_bias, this.v_bias] = [0, 1, 2].map(() => new Parameter(zeros([dim]))) as [
      Parameter,
      Parameter,
      Parameter,
    ];
    this.q = linear(dim, false);
    this.k = linear(dim, false);
    this.v = linear(dim, false);
    this.proj = linear(out, true);
  }

  attend(query: Tensor, keys: Tensor, values: Tensor, ctx: Context): Tensor {
    const split = (x: Tensor): Tensor => x.reshape([x.shape[0] ?? 0, x.shape[1] ?? 0, this.heads, -1]).transpose(1, 2);
    const q = split(this.q.run(query, ctx).add(this.q_bias));
    const k = split(this.k.run(keys, ctx).add(this.k_bias));
    const v = split(this.v.run(values, ctx).add(this.v_bias));
    const mixed = functional.scaledDotProductAttention(q, k, v).transpose(1, 2).flatten(2);
    return this.proj.run(mixed, ctx);
  }

  /** @throws TypeError always: an attention to others has three inputs; call `attend` */
  forward(): Tensor {
    throw new TypeError('this attention has three inputs: call attend(query, keys, values, ctx)');
  }
}

/** Tokens [B, N, E] to one vector [B, out]: attention of their mean to all of them, each input normed by itself. */
export class AttentionPooling extends Module {
  readonly norm1_q: Sequential;
  readonly norm1_k: Sequential;
  readonly norm1_v: Sequential;
  readonly cross_dcn: CrossAttention;

  constructor(dim: number, heads: number, out: number) {
    super();
    const norm = (): Sequential => new Sequential(tokenNorm(dim, EPS));
    this.norm1_q = norm();
    this.norm1_k = norm();
    this.norm1_v = norm();
    this.cross_dcn = new CrossAttention(dim, heads, out);
  }

  forward(x: Tensor, ctx: Context): Tensor {
    const query = this.norm1_q.run(x.mean([1], true), ctx);
    const [keys, values] = [this.norm1_k.run(x, ctx), this.norm1_v.run(x, ctx)];
    return this.cross_dcn.attend(query, keys, values, ctx).squeeze(1);
  }
}

/** The norm of a vector [B, C] before the classifier. */
export function vectorNorm(channels: number): Sequential {
  return new Sequential(site(new LayerNorm(channels, { eps: EPS }), { role: 'head_norm', layout: 'vector' }));
}
