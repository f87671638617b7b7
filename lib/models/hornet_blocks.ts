/** The parts of HorNet, in the names of its files: recursive gated convolution, global filter, block. */
import {
  type Context,
  type Conv2d,
  DropPath,
  GELU,
  init,
  type LayerNorm,
  LayerNorm2d,
  Linear,
  Module,
  ModuleList,
  Parameter,
  site,
  Span,
} from '../nn/index.js';
import { aten, empty, full, type Tensor } from '../tensor/index.js';
import { convSite } from './blocks.js';
import { stretch, tokenNorm } from './vit_blocks.js';

/** A map [B, C, H, W] as tokens [B, H W, C]; costs nothing when its channels are last in memory. Says the grid to the context. */
export function tokensOf(map: Tensor, ctx: Context): Tensor {
  const [batch = 0, channels = 0, rows = 0, columns = 0] = map.shape;
  ctx.grid = [rows, columns];
  return map.permute([0, 2, 3, 1]).reshape([batch, rows * columns, channels]);
}

/** Tokens [B, H W, C] as a map [B, C, H, W] with its channels last in memory, of the size that the context says. */
export function mapOf(tokens: Tensor, ctx: Context): Tensor {
  const [batch = 0, , channels = 0] = tokens.shape;
  return tokens.reshape([batch, ...(ctx.grid ?? [0, 0]), channels]).permute([0, 3, 1, 2]);
}

/** Resizes a global filter [C, h, w, 2] to another grid, bilinearly with its corners in place; differentiable. */
export function resizeFilter(weight: Tensor, grid: readonly [number, number]): Tensor {
  if (weight.shape[1] === grid[0] && weight.shape[2] === grid[1]) return weight;
  return aten.upsampleBilinear2d(weight.permute([3, 0, 1, 2]), [...grid], true).permute([1, 2, 3, 0]);
}

/**
 * Half of the channels through a depth-wise 3x3 convolution, half through a learned filter of their Fourier transform;
 * channel 2i of the result is the i-th of the first half, 2i + 1 of the second. Norms over channels before and after.
 * Rao et al., NeurIPS 2022, arXiv 2207.14284, section 3.2; global filter: Rao et al. 2021, arXiv 2107.00645.
 */
export class GlobalLocalFilter extends Module {
  readonly dw: Conv2d;
  /** [C / 2, h, w, 2]: real and imaginary parts for maps of h rows and 2 (w - 1) or 2 w - 1 columns. */
  readonly complex_weight: Parameter;
  readonly pre_norm: LayerNorm2d;
  readonly post_norm: LayerNorm2d;

  constructor(
    channels: number,
    readonly grid: readonly [number, number],
  ) {
    super();
    if (channels % 2 !== 0) {
      throw new RangeError(
        `a global-local filter halves its channels, and ${channels} is odd: the width must be a multiple of 2^order`,
      );
    }
    const half = channels / 2;
    this.dw = convSite(half, half, { kernelSize: 3, padding: 1, groups: half });
    this.complex_weight = new Parameter(init.truncNormal_(empty([half, ...grid, 2]), { std: 0.02 }));
    this.pre_norm = site(new LayerNorm2d(channels, { eps: 1e-6 }), { role: 'norm' });
    this.post_norm = site(new LayerNorm2d(channels, { eps: 1e-6 }), { role: 'norm' });
  }

  forward(x: Tensor, ctx: Context): Tensor {
    const [local, global] = aten.chunk(this.pre_norm.run(x, ctx), 2, 1) as [Tensor, Tensor];
    const both = aten.stack([this.dw.run(local, ctx), this.#filter(global)], 2);
    return this.post_norm.run(both.flatten(1, 2), ctx);
  }

  /** x [B, C, H, W] with its spectrum multiplied by the filter. */
  #filter(x: Tensor): Tensor {
    const [, , height = 0, width = 0] = x.shape;
    // Fourier transforms know no half precision, and autocast does not cast for them.
    const dtype = x.dtype === 'float64' ? 'float64' : 'float32';
    const spectrum = aten.fftRfft2(x.to(dtype), null, [2, 3], 'ortho');
    const filter = resizeFilter(this.complex_weight.to(dtype), [height, Math.floor(width / 2) + 1]);
    const filtered = spectrum.mul(aten.viewAsComplex(filter.contiguous()));
    return aten.fftIrfft2(filtered, [height, width], [2, 3], 'ortho').to(x.dtype);
  }
}

/** The spatial filter of a gated convolution: a depth-wise convolution of that odd kernel, or a global filter [h, w]. */
export type GatedFilter = number | readonly [height: number, width: number];

/** What a recursive gated convolution is built from. */
export interface GnConvOptions {
  readonly inChannels: number;
  /** Channels inside, a multiple of 2^(order - 1). Default: as many as enter. */
  readonly dim?: number;
  /** Channels of the last 1x1 convolution; null for none. Default: as many as enter. */
  readonly outChannels?: number | null;
  readonly order: number;
  /** Factor of the filter's output. Default 1. */
  readonly scale?: number;
  /** Default 7. */
  readonly filter?: GatedFilter;
}

/**
 * Recursive gated convolution: [p, q] = proj_in x, q = scale * filter(q), p_1 = p q_0, p_{k+1} = pws_{k-1}(p_k) q_k,
 * y = proj_out p_n; the widths double from step to step up to `dim`. Maps [B, C, H, W] -> [B, C', H, W]. Rao et al.,
 * NeurIPS 2022, arXiv 2207.14284, equations 3.2 to 3.4.
 */
export class GnConv extends Module {
  readonly proj_in: Conv2d;
  readonly dwconv: Conv2d | GlobalLocalFilter;
  readonly proj_out: Conv2d | null;
  readonly pws: ModuleList<Conv2d>;
  readonly outChannels: number;
  readonly #widths: readonly number[];
  readonly #scale: number;

  constructor(o: GnConvOptions) {
    super();
    const { inChannels, order, dim = inChannels, outChannels = inChannels, scale = 1, filter = 7 } = o;
    if (!Number.isInteger(order) || order < 1 || dim % 2 ** (order - 1) !== 0) {
      throw new RangeError(
        `a gated convolution of order ${order} needs a multiple of ${2 ** Math.max(0, order - 1)} channels, given ${dim}`,
      );
    }
    const widths = Array.from({ length: order }, (_, k) => dim / 2 ** (order - 1 - k));
    const sum = widths.reduce((a, b) => a + b, 0);
    const pointwise = (from: number, to: number): Conv2d => convSite(from, to, { kernelSize: 1, bias: true });
    this.#widths = widths;
    this.#scale = scale;
    this.outChannels = outChannels ?? dim;
    this.proj_in = pointwise(inChannels, 2 * dim);
    this.dwconv =
      typeof filter === 'number'
        ? convSite(sum, sum, { kernelSize: filter, padding: Math.floor(filter / 2), groups: sum, bias: true })
        : new GlobalLocalFilter(sum, filter);
    this.proj_out = outChannels === null ? null : pointwise(dim, outChannels);
    this.pws = new ModuleList(widths.slice(1).map((width, k) => pointwise(widths[k] ?? 0, width)));
  }

  forward(x: Tensor, ctx: Context): Tensor {
    const [first = 0] = this.#widths;
    const both = this.proj_in.run(x, ctx);
    const filtered = this.dwconv.run(both.narrow(1, first, (both.shape[1] ?? 0) - first), ctx);
    const gates = aten.splitWithSizes(this.#scale === 1 ? filtered : filtered.mul(this.#scale), [...this.#widths], 1);
    let p = both.narrow(1, 0, first);
    gates.forEach((gate, k) => {
      p = (k === 0 ? p : this.pws.at(k - 1).run(p, ctx)).mul(gate);
    });
    return this.proj_out ? this.proj_out.run(p, ctx) : p;
  }
}

/** Sizes of a block. */
export interface HorBlockOptions {
  readonly dim: number;
  readonly order: number;
  readonly scale: number;
  readonly filter: GatedFilter;
  /** Width of the MLP's hidden layer. */
  readonly hidden: number;
  readonly normEps: number;
  /** Initial layer scale; null for none. */
  readonly layerScale: number | null;
  readonly dropPath: number;
  readonly stage: number;
  readonly depth: number;
}

/** x += gamma1 gnconv(norm1 x); x += gamma2 mlp(norm2 x), on maps [B, C, H, W]; norm2 and the MLP see the pixels as tokens. */
export class HorBlock extends Module {
  readonly gamma1: Parameter | null;
  readonly gamma2: Parameter | null;
  readonly norm1: LayerNorm2d;
  readonly gnconv: GnConv;
  readonly drop_path1: DropPath | null;
  readonly norm2: LayerNorm;
  readonly pwconv1: Linear;
  readonly act: GELU;
  readonly pwconv2: Linear;
  readonly drop_path2: DropPath | null;
  readonly mlp: Span;
  /** norm1 x -> what is added to x. */
  readonly attn_path: Span;
  /** x -> what is added to x. */
  readonly attn_branch: Span;
  /** norm2 x -> what is added to x, as tokens. */
  readonly mlp_path: Span;
  readonly mlp_branch: Span;

  constructor(o: HorBlockOptions) {
    super();
    const { dim, order, scale, filter, hidden, normEps } = o;
    const gamma = () => (o.layerScale === null ? null : new Parameter(full([dim], o.layerScale)));
    const path = () => (o.dropPath > 0 ? new DropPath(o.dropPath) : null);
    const scaled = (factor: Parameter | null, shape: number[]): Span | null =>
      factor && new Span((y) => y.mul(factor.view(shape)));
    this.gamma1 = gamma();
    this.gamma2 = gamma();
    this.norm1 = site(new LayerNorm2d(dim, { eps: normEps }), { role: 'norm' });
    const kernel = typeof filter === 'number' ? filter : 7;
    const around = { layout: 'map', kernel, padding: Math.floor(kernel / 2), stride: 1, activation: 'gelu' } as const;
    this.gnconv = site(new GnConv({ inChannels: dim, order, scale, filter }), {
      role: ['attention', 'spatial'],
      in: dim,
      out: dim,
      ...around,
    });
    this.drop_path1 = path();
    this.norm2 = tokenNorm(dim, normEps);
    this.pwconv1 = site(new Linear(dim, hidden), { role: 'linear', layout: 'tokens' });
    this.act = new GELU();
    this.pwconv2 = site(new Linear(hidden, dim), { role: 'linear', layout: 'tokens' });
    this.drop_path2 = path();

    const scale1 = scaled(this.gamma1, [1, -1, 1, 1]);
    const scale2 = scaled(this.gamma2, [-1]);
    this.mlp = stretch('mlp', dim, () => [this.pwconv1, this.act, this.pwconv2]);
    this.attn_path = stretch('attention_path', dim, () => [this.gnconv, scale1, this.drop_path1], { layout: 'map' });
    this.attn_branch = stretch(['attention_branch', 'residual'], dim, () => [this.norm1, this.attn_path], around);
    this.mlp_path = stretch('mlp_path', dim, () => [this.mlp, scale2, this.drop_path2]);
    const branch = (x: Tensor, ctx: Context): Tensor =>
      mapOf(this.mlp_path.run(this.norm2.run(tokensOf(x, ctx), ctx), ctx), ctx);
    this.mlp_branch = site(new Span(branch), { role: 'mlp_branch', in: dim, out: dim, layout: 'map' });
    site(this, { role: 'block', in: dim, out: dim, layout: 'map', stage: o.stage, depth: o.depth });
  }

  forward(x: Tensor, ctx: Context): Tensor {
    const z = x.add(this.attn_branch.run(x, ctx));
    return z.add(this.mlp_branch.run(z, ctx));
  }
}
