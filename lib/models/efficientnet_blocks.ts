/** The three kinds of block of EfficientNet-V2, in timm's names, and their spelling as text. */
import {
  type BatchNorm2d,
  type Context,
  type Conv2d,
  convNormAct,
  DropPath,
  init,
  Module,
  site,
  Span,
} from '../nn/index.js';
import { aten, type Tensor } from '../tensor/index.js';
import { batchNormSite, convSite, makeDivisible, type NormOptions } from './blocks.js';

/** What a stage is made of. */
export interface StageSpec {
  /** `cn`: one convolution; `er`: expansion by the spatial convolution; `ir`: by a 1x1, then depth-wise. */
  readonly type: 'cn' | 'er' | 'ir';
  readonly repeats: number;
  readonly kernel: number;
  /** Of the first block. */
  readonly stride: number;
  /** Channels inside, in multiples of those that enter. */
  readonly expansion: number;
  readonly channels: number;
  /** Share of the entering channels that squeeze-and-excitation reduces to; 0 for none. */
  readonly se: number;
  /** Whether blocks that keep the shape add their input. */
  readonly skip: boolean;
}

/**
 * Reads a stage such as `ir_r7_k3_s2_e4_c160_se0.25`: type, then repeats, kernel, stride of the first block, expansion,
 * channels, squeeze-and-excitation. Skips are there for `er` and `ir` (unless `noskip`), and for `cn` with `skip`.
 *
 * @throws RangeError for what it does not know, or when a part is missing
 */
export function parseStage(text: string): StageSpec {
  const [type = '', ...parts] = text.split('_');
  const refuse = (what: string): never => {
    throw new RangeError(`EfficientNet: stage '${text}': ${what}; expected such as 'er_r4_k3_s2_e4_c48'`);
  };
  if (type !== 'cn' && type !== 'er' && type !== 'ir') return refuse(`the type '${type}' is not cn, er or ir`);
  const values = new Map<string, number>();
  let skip = type !== 'cn';
  for (const part of parts) {
    const [, key, value] = /^(se|[rksec])(\d+(?:\.\d+)?)$/.exec(part) ?? [];
    if (part === 'skip' || part === 'noskip') skip = part === 'skip';
    else if (key === undefined) refuse(`'${part}' is unknown`);
    else values.set(key, Number(value));
  }
  const required = (key: string): number => values.get(key) ?? refuse(`'${key}' is missing`);
  return {
    type,
    repeats: required('r'),
    kernel: required('k'),
    stride: required('s'),
    expansion: required('e'),
    channels: required('c'),
    se: values.get('se') ?? 0,
    skip,
  };
}

/** Halves go to the even neighbor, as Python rounds. */
function roundHalfEven(value: number): number {
  const floor = Math.floor(value);
  return value - floor === 0.5 ? floor + (floor % 2) : Math.round(value);
}

/** How TensorFlow pads: so that the output has ceil(size / stride) places, the smaller half first. */
function padSame(x: Tensor, { kernelSize, stride, padding }: Conv2d): Tensor {
  const pads = [1, 0].flatMap((axis) => {
    const [size = 0, k = 1, s = 1] = [x.shape[2 + axis], kernelSize[axis], stride[axis]];
    const total = Math.max((Math.ceil(size / s) - 1) * s + k - size, 0) - 2 * (padding[axis] ?? 0);
    const before = Math.floor(total / 2);
    return [before, total - before];
  });
  return pads.some((n) => n > 0) ? aten.constantPadNd(x, pads) : x;
}

/** How convolutions are padded: as TensorFlow does, by the size of the map; or with half a kernel on every side. */
export type ConvPadding = 'same' | 'symmetric';

/**
 * A convolution without a bias. With `same` it is padded as `padSame` says: by itself where that is the same on both sides
 * for every size; with `symmetric` always by itself.
 */
export function sameConv(
  inChannels: number,
  outChannels: number,
  kernel: number,
  { stride = 1, groups = 1, pad = 'same' }: { stride?: number; groups?: number; pad?: ConvPadding } = {},
): Conv2d {
  const isFixed = pad === 'symmetric' || (stride === 1 && kernel % 2 === 1);
  const padding = isFixed ? Math.floor((kernel - 1) / 2) : 0;
  return convSite(inChannels, outChannels, { kernelSize: kernel, stride, padding, groups });
}

/** norm(conv(x)), padded as TensorFlow does, then SiLU unless told otherwise. */
export function convNormSilu(conv: Conv2d, norm: BatchNorm2d, x: Tensor, ctx: Context, act = true): Tensor {
  const y = convNormAct(conv, norm, padSame(x, conv), ctx, { act: 'none' });
  return act ? y.silu() : y;
}

/** x * sigmoid(expand(SiLU(reduce(mean x)))): a factor per channel from the whole map. Hu et al. 2018, arXiv 1709.01507. */
class SqueezeExcite extends Module {
  readonly conv_reduce: Conv2d;
  readonly conv_expand: Conv2d;

  constructor(channels: number, reduced: number) {
    super();
    this.conv_reduce = convSite(channels, reduced, { kernelSize: 1, bias: true });
    this.conv_expand = convSite(reduced, channels, { kernelSize: 1, bias: true });
  }

  forward(x: Tensor, ctx: Context): Tensor {
    const reduced = this.conv_reduce.run(x.mean([2, 3], true), ctx).silu();
    return x.mul(this.conv_expand.run(reduced, ctx).sigmoid());
  }
}

/** Sizes of one block. */
export interface EfficientBlockOptions extends Omit<StageSpec, 'type' | 'repeats'> {
  readonly inChannels: number;
  readonly dropPath: number;
  readonly norm: NormOptions;
  readonly pad: ConvPadding;
  readonly stage: number;
  readonly depth: number;
}

/**
 * A block y = branch(x) [+ x]. As a site it is also `spatial`: adapters that stand beside spatial convolutions stand beside
 * the whole block here, with the geometry of its first convolution and its stride.
 */
abstract class EfficientBlock extends Module {
  readonly drop_path: DropPath | null;
  /** x -> what is added to x. */
  readonly residual: Span;
  readonly hasSkip: boolean;

  constructor(o: EfficientBlockOptions, kernel: number) {
    super();
    const ends = {
      in: o.inChannels,
      out: o.channels,
      layout: 'map',
      kernel,
      stride: o.stride,
      padding: Math.floor((kernel - 1) / 2),
      groups: 1,
      activation: 'silu',
    } as const;
    this.hasSkip = o.skip && o.stride === 1 && o.inChannels === o.channels;
    this.drop_path = this.hasSkip && o.dropPath > 0 ? new DropPath(o.dropPath) : null;
    this.residual = site(new Span((x, ctx) => this.branch(x, ctx)), { role: 'residual', ...ends });
    site(this, { role: ['block', 'spatial'], stage: o.stage, depth: o.depth, ...ends });
  }

  protected abstract branch(x: Tensor, ctx: Context): Tensor;

  forward(x: Tensor, ctx: Context): Tensor {
    const y = this.residual.run(x, ctx);
    if (!this.hasSkip) return y;
    return (this.drop_path ? this.drop_path.run(y, ctx) : y).add(x);
  }
}

/** SiLU(bn1(conv x)), the stride on the convolution. */
class ConvBnAct extends EfficientBlock {
  readonly conv: Conv2d;
  readonly bn1: BatchNorm2d;

  constructor(o: EfficientBlockOptions) {
    super(o, o.kernel);
    this.conv = sameConv(o.inChannels, o.channels, o.kernel, o);
    this.bn1 = batchNormSite(o.channels, o.norm);
  }

  protected branch(x: Tensor, ctx: Context): Tensor {
    return convNormSilu(this.conv, this.bn1, x, ctx);
  }
}

/** Fused MBConv: bn2(conv_pwl [SE] SiLU(bn1(conv_exp x))). Gupta & Akin 2020; Tan & Le 2021, arXiv 2104.00298, figure 2. */
class EdgeResidual extends EfficientBlock {
  readonly conv_exp: Conv2d;
  readonly bn1: BatchNorm2d;
  readonly se: SqueezeExcite | null;
  readonly conv_pwl: Conv2d;
  readonly bn2: BatchNorm2d;

  constructor(o: EfficientBlockOptions) {
    super(o, o.kernel);
    const mid = makeDivisible(o.inChannels * o.expansion);
    this.conv_exp = sameConv(o.inChannels, mid, o.kernel, o);
    this.bn1 = batchNormSite(mid, o.norm);
    this.se = squeezeExcite(mid, o);
    this.conv_pwl = sameConv(mid, o.channels, 1);
    this.bn2 = batchNormSite(o.channels, o.norm);
  }

  protected branch(x: Tensor, ctx: Context): Tensor {
    const inner = convNormSilu(this.conv_exp, this.bn1, x, ctx);
    return convNormSilu(this.conv_pwl, this.bn2, this.se ? this.se.run(inner, ctx) : inner, ctx, false);
  }
}

/** MBConv: bn3(conv_pwl [SE] SiLU(bn2(conv_dw SiLU(bn1(conv_pw x))))). Sandler et al. 2018, arXiv 1801.04381. */
export class InvertedResidual extends EfficientBlock {
  readonly conv_pw: Conv2d;
  readonly bn1: BatchNorm2d;
  readonly conv_dw: Conv2d;
  readonly bn2: BatchNorm2d;
  readonly se: SqueezeExcite | null;
  readonly conv_pwl: Conv2d;
  readonly bn3: BatchNorm2d;

  constructor(o: EfficientBlockOptions) {
    super(o, 1);
    const mid = makeDivisible(o.inChannels * o.expansion);
    this.conv_pw = sameConv(o.inChannels, mid, 1);
    this.bn1 = batchNormSite(mid, o.norm);
    this.conv_dw = sameConv(mid, mid, o.kernel, { ...o, groups: mid });
    this.bn2 = batchNormSite(mid, o.norm);
    this.se = squeezeExcite(mid, o);
    this.conv_pwl = sameConv(mid, o.channels, 1);
    this.bn3 = batchNormSite(o.channels, o.norm);
  }

  protected branch(x: Tensor, ctx: Context): Tensor {
    const expanded = convNormSilu(this.conv_pw, this.bn1, x, ctx);
    const inner = convNormSilu(this.conv_dw, this.bn2, expanded, ctx);
    return convNormSilu(this.conv_pwl, this.bn3, this.se ? this.se.run(inner, ctx) : inner, ctx, false);
  }
}

function squeezeExcite(mid: number, o: EfficientBlockOptions): SqueezeExcite | null {
  return o.se > 0 ? new SqueezeExcite(mid, roundHalfEven(o.inChannels * o.se)) : null;
}

/** A block of that type. */
export function efficientBlock(type: StageSpec['type'], o: EfficientBlockOptions): EfficientBlock {
  return new { cn: ConvBnAct, er: EdgeResidual, ir: InvertedResidual }[type](o);
}

/** Kernels normal with variance 2 / (fan-out per group), biases 0: Google's start. */
export function startConvolution(conv: Conv2d): void {
  const [height, width] = conv.kernelSize;
  const fanOut = Math.floor((conv.outChannels * height * width) / conv.groups);
  init.normal_(conv.weight, 0, Math.sqrt(2 / fanOut));
  if (conv.bias) init.zeros_(conv.bias);
}
