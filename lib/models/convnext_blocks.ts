/** The parts of a ConvNeXt, in timm's names: block, downsampling, stage. */
import {
  runChain,
  type Context,
  Conv2d,
  DropPath,
  type LayerNorm,
  LayerNorm2d,
  Module,
  Parameter,
  Sequential,
  site,
  Span,
} from '../nn/index.js';
import { aten, full, type Tensor } from '../tensor/index.js';
import { type BlockList, convSite } from './blocks.js';
import { Mlp, tokenNorm } from './vit_blocks.js';

/**
 * `LayerNorm2d` with the variance divided by C - 1: what the norm of channels in the official code computes on tensors
 * that are not contiguous.
 */
export class UnbiasedLayerNorm2d extends LayerNorm2d {
  override forward(x: Tensor): Tensor {
    const [variance, mean] = aten.varMean(x, [1], { correction: 1, keepdim: true });
    const normed = x.sub(mean).mul(variance.add(this.eps).rsqrt());
    const spread = (v: Parameter): Tensor => v.view([1, -1, 1, 1]);
    const scaled = this.weight ? normed.mul(spread(this.weight)) : normed;
    return this.bias ? scaled.add(spread(this.bias)) : scaled;
  }
}

/** Sizes of a block. */
export interface ConvNeXtBlockOptions {
  readonly dim: number;
  /** Odd side of the depth-wise kernel. */
  readonly kernel: number;
  /** Width of the MLP's hidden layer. */
  readonly hidden: number;
  readonly normEps: number;
  /** Initial layer scale; null for none. */
  readonly layerScale: number | null;
  readonly dropPath: number;
  readonly stage: number;
  readonly depth: number;
}

/**
 * y = x + gamma * mlp(norm(conv_dw x)) on maps [B, C, H, W]: a depth-wise convolution, then norm and MLP on each pixel by
 * itself. They see the pixels as tokens [B, H W, C], which on channels-last maps costs nothing. Liu et al., CVPR 2022,
 * figure 4.
 */
export class ConvNeXtBlock extends Module {
  readonly gamma: Parameter | null;
  readonly conv_dw: Conv2d;
  readonly norm: LayerNorm;
  readonly mlp: Mlp;
  readonly drop_path: DropPath | null;
  /** x -> conv_dw x. */
  readonly spatial: Span;
  /** x -> what is added to x, before stochastic depth. */
  readonly residual: Span;

  constructor(o: ConvNeXtBlockOptions) {
    super();
    const { dim, kernel, stage, depth } = o;
    const padding = (kernel - 1) / 2;
    this.gamma = o.layerScale === null ? null : new Parameter(full([dim], o.layerScale));
    this.conv_dw = convSite(dim, dim, { kernelSize: kernel, padding, groups: dim, bias: true });
    this.norm = tokenNorm(dim, o.normEps);
    this.mlp = new Mlp(dim, o.hidden);
    this.drop_path = o.dropPath > 0 ? new DropPath(o.dropPath) : null;
    const around = { in: dim, out: dim, layout: 'map', kernel, padding, stride: 1, activation: 'gelu' } as const;
    this.spatial = site(new Span((x, ctx) => this.conv_dw.run(x, ctx)), { role: 'spatial', ...around });
    this.residual = site(new Span((x, ctx) => this.#branch(x, ctx)), { role: 'residual', ...around });
    site(this, { role: 'block', in: dim, out: dim, layout: 'map', stage, depth });
  }

  forward(x: Tensor, ctx: Context): Tensor {
    const branch = this.residual.run(x, ctx);
    return x.add(this.drop_path ? this.drop_path.run(branch, ctx) : branch);
  }

  #branch(x: Tensor, ctx: Context): Tensor {
    const map = this.spatial.run(x, ctx);
    const [batch = 0, channels = 0, rows = 0, columns = 0] = map.shape;
    ctx.grid = [rows, columns];
    const tokens = map.permute([0, 2, 3, 1]).reshape([batch, rows * columns, channels]);
    const mixed = this.mlp.run(this.norm.run(tokens, ctx), ctx);
    const scaled = this.gamma ? mixed.mul(this.gamma) : mixed;
    return scaled.view([batch, rows, columns, channels]).permute([0, 3, 1, 2]);
  }
}

/** Halves the map: norm, then a 2x2 convolution of stride 2. */
export function downsampling(
  inChannels: number,
  outChannels: number,
  { normEps, unbiased }: { normEps: number; unbiased: boolean },
): Sequential {
  const Norm = unbiased ? UnbiasedLayerNorm2d : LayerNorm2d;
  const norm = site(new Norm(inChannels, { eps: normEps }), { role: 'downsample_norm' });
  const conv = site(new Conv2d(inChannels, outChannels, { kernelSize: 2, stride: 2 }), {
    role: ['downsample_conv', 'spatial'],
    activation: 'gelu',
  });
  return site(new Sequential(norm, conv), {
    role: 'downsample',
    in: inChannels,
    out: outChannels,
    layout: 'map',
    stride: 2,
  });
}

/** Downsampling, except in the first stage, and the blocks. [B, C, H, W] -> [B, C', H', W']. */
export class ConvNeXtStage extends Module {
  readonly downsample: Sequential | null;
  readonly blocks: BlockList;

  constructor(
    inChannels: number,
    outChannels: number,
    stage: number,
    { downsample, blocks }: { downsample: Sequential | null; blocks: BlockList },
  ) {
    super();
    this.downsample = downsample;
    this.blocks = blocks;
    const stride = downsample ? 2 : 1;
    site(this, { role: 'stage', in: inChannels, out: outChannels, layout: 'map', stage, stride });
  }

  forward(x: Tensor, ctx: Context): Tensor {
    const parts = this.downsample ? [this.downsample, this.blocks] : [this.blocks];
    return runChain(parts, x, ctx);
  }
}
