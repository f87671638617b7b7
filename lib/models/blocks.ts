/**
 * What several backbone families share: layers that publish themselves as sites, the norm-activation step, the list of
 * a stage's blocks, and the basic residual block.
 */
import {
  BatchNorm2d,
  type Context,
  Conv2d,
  convNormAct,
  DropPath,
  Identity,
  Linear,
  Module,
  Parameter,
  type Role,
  runBlocks,
  Sequential,
  site,
  type SiteLayout,
  Span,
} from '../nn/index.js';
import { ones, type Tensor, zeros } from '../tensor/index.js';

/** Geometry of a convolution; square kernels. */
export interface ConvOptions {
  readonly kernelSize: number;
  readonly stride?: number;
  readonly padding?: number;
  readonly groups?: number;
  readonly bias?: boolean;
}

/** Epsilon and momentum of the BatchNorms of a backbone. */
export interface NormOptions {
  readonly eps?: number;
  readonly momentum?: number;
}

/** A convolution (no bias unless asked) that is a `conv` site. */
export function convSite(inChannels: number, outChannels: number, options: ConvOptions): Conv2d {
  return site(new Conv2d(inChannels, outChannels, { bias: false, ...options }), { role: 'conv' });
}

/** A BatchNorm2d that is a `norm` site. */
export function batchNormSite(channels: number, options: NormOptions = {}): BatchNorm2d {
  return site(new BatchNorm2d(channels, options), { role: 'norm' });
}

/** A place where the backbone computes nothing but a graft may sit. */
export function identitySite(role: Role, channels: number, layout: SiteLayout): Identity {
  return site(new Identity(), { role, in: channels, out: channels, layout });
}

/**
 * The image batch, laid out with channels last, in which LibTorch's convolutions and ours are fastest; all maps behind it
 * keep that layout. A batch that comes so is not copied.
 */
class ImageInput extends Identity {
  override forward(x: Tensor): Tensor {
    return x.ndim === 4 ? x.contiguous({ memoryFormat: 'channels_last' }) : x;
  }
}

/** The `input` site of a convolutional backbone. */
export function imageSite(channels: number): Identity {
  return site(new ImageInput(), { role: 'input', in: channels, out: channels, layout: 'map' });
}

/** The classifier over a vector of `inFeatures`, or an identity when there are no classes: the `classifier` site. */
export function classifierSite(inFeatures: number, numClasses: number): Linear | Identity {
  const head = numClasses > 0 ? new Linear(inFeatures, numClasses) : new Identity();
  return site(head, {
    role: 'classifier',
    in: inFeatures,
    out: numClasses > 0 ? numClasses : inFeatures,
    layout: 'vector',
  });
}

/** A map [B, C, H, W] to a vector [B, C] by its mean, its maximum, or half of each. */
export function poolMap(x: Tensor, pool: 'avg' | 'max' | 'avgmax'): Tensor {
  if (pool === 'avg') return x.mean([2, 3]);
  if (pool === 'max') return x.amax([2, 3]);
  return x
    .mean([2, 3])
    .add(x.amax([2, 3]))
    .mul(0.5);
}

/** Blocks that run one after the other, each recomputed in the backward pass when checkpointing is on. */
export class BlockList extends Sequential {
  override forward(x: Tensor, ctx: Context): Tensor {
    return runBlocks(this, x, ctx);
  }
}

/** The outputs of those modules that `isWanted` (default: all), where one module runs after the other. */
export function outputsOf(
  modules: Iterable<Module>,
  x: Tensor,
  ctx: Context,
  isWanted: (module: Module, index: number) => boolean = () => true,
): Tensor[] {
  let y = x;
  return [...modules].flatMap((module, i) => {
    y = module.run(y, ctx);
    return isWanted(module, i) ? [y] : [];
  });
}

/** [anything,] a convolution, a norm[, ReLU]: the last two members and the activation are one step. */
export class ConvNorm extends Sequential {
  readonly #act: 'relu' | 'none';

  /** @param members in order, numbered or named as in Sequential */
  constructor(members: Module[] | Readonly<Record<string, Module>>, act: 'relu' | 'none' = 'none') {
    super(...(Array.isArray(members) ? members : ([members] as [Readonly<Record<string, Module>>])));
    this.#act = act;
  }

  override forward(x: Tensor, ctx: Context): Tensor {
    const input = this.length > 2 ? [...this].slice(0, -2).reduce((y, module) => module.run(y, ctx), x) : x;
    return convNormAct(this.at(-2), this.at(-1), input, ctx, { act: this.#act });
  }
}

/** A scale and a shift that the published files hold and nothing reads: there only so that files load completely. */
export class UnusedAffine extends Module {
  readonly weight: Parameter;
  readonly bias: Parameter;

  constructor(channels: number) {
    super();
    this.weight = new Parameter(ones([channels]));
    this.bias = new Parameter(zeros([channels]));
  }

  /** @throws TypeError always */
  forward(): Tensor {
    throw new TypeError('these tensors belong to the checkpoint format only; nothing computes with them');
  }
}

/** The smallest positive whole number that two such numbers divide. */
export function leastCommonMultiple(a: number, b: number): number {
  let [divisor, rest] = [a, b];
  while (rest) [divisor, rest] = [rest, divisor % rest];
  return (a / divisor) * b;
}

/** `channels` rounded to a multiple of 8, at least 8, but up where that would lose more than `least` allows: timm's rule. */
export function makeDivisible(channels: number, least = 0.9): number {
  const rounded = Math.max(8, Math.floor((channels + 4) / 8) * 8);
  return rounded < least * channels ? rounded + 8 : rounded;
}

/** Width of one head of an attention. @throws RangeError when the width does not divide into the heads */
export function headWidth(dim: number, heads: number, owner = 'attention'): number {
  if (dim % heads === 0) return dim / heads;
  throw new RangeError(
    `${owner}: a width of ${dim} does not divide into ${heads} heads; take a number that divides it`,
  );
}

/** Stochastic-depth rate of block `index` of `count`: 0 at the first block, `rate` at the last. */
export function dropPathRateAt(rate: number, index: number, count: number): number {
  return count > 1 ? (rate * index) / (count - 1) : 0;
}

/** What every residual block is built from. */
export interface ResidualBlockOptions {
  readonly inChannels: number;
  /** Width of the stage; the block's output has `planes * expansion` channels. */
  readonly planes: number;
  readonly stride: number;
  /** The module on the skip, or null when the input itself is added. */
  readonly downsample: Module | null;
  readonly stage: number;
  readonly depth: number;
  readonly norm?: NormOptions;
  /** Whether the convolutions of the branch have a bias. Default false. */
  readonly convBias?: boolean;
  /** Stochastic-depth rate. Default 0. */
  readonly dropPath?: number;
}

/**
 * A block y = ReLU(branch(x) + skip(x)) whose branch ends in a norm. The branch is the `residual` site. While nothing
 * sits on it, the last norm, the sum and the ReLU are one step.
 */
export abstract class ResidualBlock extends Module {
  abstract readonly residual: Span;
  abstract readonly downsample: Module | null;
  abstract readonly drop_path: DropPath | null;
  /** The convolution and the norm that end the branch. */
  abstract readonly lastConv: Conv2d;
  abstract readonly lastNorm: BatchNorm2d;
  /** The stretches of the branch that contain its last norm. */
  protected abstract readonly outerSpans: readonly Span[];

  /** The branch up to its last convolution, which is left out. */
  protected abstract trunk(x: Tensor, ctx: Context): Tensor;

  forward(x: Tensor, ctx: Context): Tensor {
    const skip = this.downsample ? this.downsample.run(x, ctx) : x;
    if (this.drop_path === null && this.outerSpans.every((span) => span.grafts === undefined)) {
      return convNormAct(this.lastConv, this.lastNorm, this.trunk(x, ctx), ctx, { residual: skip });
    }
    const branch = this.residual.run(x, ctx);
    return (this.drop_path ? this.drop_path.run(branch, ctx) : branch).add(skip).relu();
  }
}

/**
 * Two 3x3 convolutions: y = ReLU(bn2(conv2(ReLU(bn1(conv1 x)))) + skip(x)), x [B, C, H, W]. He et al., CVPR 2016,
 * arXiv 1512.03385, figure 5 left.
 */
export class BasicBlock extends ResidualBlock {
  static readonly expansion = 1;
  readonly conv1: Conv2d;
  readonly bn1: BatchNorm2d;
  readonly conv2: Conv2d;
  readonly bn2: BatchNorm2d;
  readonly downsample: Module | null;
  readonly drop_path: DropPath | null;
  readonly residual: Span;
  /** x -> ReLU(bn1(conv1 x)). */
  readonly spatial1: Span;
  /** u -> bn2(conv2 u). */
  readonly spatial2: Span;

  constructor(options: ResidualBlockOptions) {
    super();
    const {
      inChannels,
      planes,
      stride,
      downsample,
      stage,
      depth,
      norm,
      convBias: bias = false,
      dropPath = 0,
    } = options;
    this.conv1 = convSite(inChannels, planes, { kernelSize: 3, stride, padding: 1, bias });
    this.bn1 = batchNormSite(planes, norm);
    this.conv2 = convSite(planes, planes, { kernelSize: 3, padding: 1, bias });
    this.bn2 = batchNormSite(planes, norm);
    this.downsample = downsample;
    this.drop_path = dropPath > 0 ? new DropPath(dropPath) : null;

    const ends = { in: inChannels, out: planes, layout: 'map' } as const;
    const convolution = { kernel: 3, stride, padding: 1, groups: 1, activation: 'relu' } as const;
    this.spatial1 = site(new Span((x, ctx) => convNormAct(this.conv1, this.bn1, x, ctx)), {
      role: 'spatial',
      ...ends,
      ...convolution,
    });
    this.spatial2 = site(new Span((u, ctx) => convNormAct(this.conv2, this.bn2, u, ctx, { act: 'none' })), {
      role: 'spatial',
      ...ends,
      in: planes,
      ...convolution,
      stride: 1,
    });
    this.residual = site(new Span((x, ctx) => this.spatial2.run(this.spatial1.run(x, ctx), ctx)), {
      role: 'residual',
      ...ends,
      ...convolution,
    });
    site(this, { role: 'block', ...ends, stride, stage, depth });
  }

  get lastConv(): Conv2d {
    return this.conv2;
  }

  get lastNorm(): BatchNorm2d {
    return this.bn2;
  }

  protected get outerSpans(): readonly Span[] {
    return [this.residual, this.spatial2];
  }

  protected trunk(x: Tensor, ctx: Context): Tensor {
    return this.spatial1.run(x, ctx);
  }
}
