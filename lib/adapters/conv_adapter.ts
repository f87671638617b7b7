/**
 * Conv-Adapter: a small convolutional bottleneck beside the convolutions of a frozen network. Chen et al., CVPR 2024
 * Workshop on Prompting in Vision, arXiv 2208.07463; official code Hhhhhhao/Conv-Adapter, commit 97e1fc8.
 */
import { z } from 'zod';
import {
  activationLayer,
  BatchNorm2d,
  type Context,
  Conv2d,
  functional,
  GroupNorm,
  init,
  Linear,
  Module,
  Parameter,
  type Site,
} from '../nn/index.js';
import { aten, ones, randn, type Tensor, zeros } from '../tensor/index.js';
import {
  affine,
  defineMethod,
  parallel,
  sequential,
  type AffineForm,
  type BackboneParameter,
  type Rule,
} from './core/index.js';
import { overPatches } from './patch_map.js';

/** How the convolutions of an adapter start; the official code gives adapters the start of their backbone's own. */
type Start = 'fan_out' | 'fan_out_per_group' | 'trunc_normal' | 'default' | 'default_without_bias' | 'zero';

/** Shapes of a Conv-Adapter: those of the convolution that it stands beside. */
export interface ConvAdapterOptions {
  readonly inChannels: number;
  readonly outChannels: number;
  /** Channels of the bottleneck; inChannels must be divisible by it. */
  readonly width: number;
  readonly kernel: readonly [number, number];
  readonly stride?: readonly [number, number];
  readonly padding?: readonly [number, number];
  /** Default `relu`. */
  readonly activation?: string;
  /** Default `fan_out`. */
  readonly start?: Start;
}

/**
 * A(u) = se * conv2(act(conv1 u)): conv1 is k x k with `width` groups, conv2 is 1x1, `se` is a learned scale per output
 * channel that starts at 1. [B, in, H, W] to [B, out, H', W'].
 */
export class ConvAdapter extends Module {
  readonly se: Parameter;
  readonly conv1: Conv2d;
  readonly conv2: Conv2d;
  readonly act: Module;

  constructor(options: ConvAdapterOptions) {
    super();
    const { inChannels, outChannels, width, kernel, stride = [1, 1], padding = [0, 0] } = options;
    if (width < 1 || inChannels % width !== 0) {
      throw new RangeError(
        `${inChannels} channels do not divide into a bottleneck of ${width}; take a reduction that divides ${inChannels}`,
      );
    }
    this.se = new Parameter(ones([1, outChannels, 1, 1]));
    this.conv1 = new Conv2d(inChannels, width, { kernelSize: kernel, stride, padding, groups: width });
    this.conv2 = new Conv2d(width, outChannels, { kernelSize: 1 });
    this.act = activationLayer(options.activation ?? 'relu');
    startConvolutions([this.conv1, this.conv2], options.start ?? 'fan_out');
  }

  forward(u: Tensor, ctx: Context): Tensor {
    // se goes into the 1x1 convolution: the same numbers without a product, and a saved map, of full size.
    const { weight, bias } = this.conv2;
    const hidden = this.act.run(this.conv1.run(u, ctx), ctx);
    return functional.conv2d(hidden, weight.mul(this.se.view([-1, 1, 1, 1])), bias?.mul(this.se.flatten()) ?? null);
  }
}

function startConvolutions(convolutions: readonly Conv2d[], start: Start): void {
  if (start === 'default') return;
  for (const { weight, bias, outChannels, kernelSize, groups } of convolutions) {
    // Fan-out is that of the official code, which divides it by the groups for EfficientNet only.
    const fanOut = outChannels * kernelSize[0] * kernelSize[1];
    if (start === 'trunc_normal') init.truncNormal_(weight, { std: 0.02 });
    else if (start === 'fan_out_per_group') init.normal_(weight, 0, Math.sqrt(2 / Math.floor(fanOut / groups)));
    else if (start !== 'default_without_bias') init.normal_(weight, 0, Math.sqrt(2 / fanOut));
    if (bias) init.zeros_(bias);
  }
  const last = convolutions.at(-1);
  if (start === 'zero' && last) init.zeros_(last.weight);
}

/** A(x) = se * fc2(ReLU(fc1 x)) on vectors or tokens [..., in] to [..., out]. */
export class LinearAdapter extends Module {
  readonly se: Parameter;
  readonly fc1: Linear;
  readonly fc2: Linear;
  readonly act: Module;

  constructor(inFeatures: number, outFeatures: number, width: number, activation = 'relu') {
    super();
    this.se = new Parameter(ones([1, outFeatures]));
    this.fc1 = new Linear(inFeatures, width);
    this.fc2 = new Linear(width, outFeatures);
    this.act = activationLayer(activation);
  }

  forward(x: Tensor, ctx: Context): Tensor {
    return this.fc2.run(this.act.run(this.fc1.run(x, ctx), ctx), ctx).mul(this.se);
  }
}

/**
 * The earlier design that the official file keeps: 1x1, norm, act; k x k in `groups`, norm; 1x1, norm, act; times a
 * constant.
 */
export class ConvAdapterDesign1 extends Module {
  readonly conv1: Conv2d;
  readonly norm1: BatchNorm2d;
  readonly conv2: Conv2d;
  readonly norm2: BatchNorm2d;
  readonly conv3: Conv2d;
  readonly norm3: BatchNorm2d;
  readonly act: Module;

  constructor(options: ConvAdapterOptions & { readonly groups: number; readonly scale: number }) {
    super();
    const { inChannels, outChannels, width, kernel, stride = [1, 1], padding = [0, 0], groups } = options;
    this.conv1 = new Conv2d(inChannels, width, { kernelSize: 1 });
    this.norm1 = new BatchNorm2d(width);
    this.conv2 = new Conv2d(width, width, { kernelSize: kernel, stride, padding, groups });
    this.norm2 = new BatchNorm2d(width);
    this.conv3 = new Conv2d(width, outChannels, { kernelSize: 1 });
    this.norm3 = new BatchNorm2d(outChannels);
    this.act = activationLayer(options.activation ?? 'relu');
    this.#scale = options.scale;
  }

  readonly #scale: number;

  forward(u: Tensor, ctx: Context): Tensor {
    const a = this.act.run(this.norm1.run(this.conv1.run(u, ctx), ctx), ctx);
    const b = this.norm2.run(this.conv2.run(a, ctx), ctx);
    return this.act.run(this.norm3.run(this.conv3.run(b, ctx), ctx), ctx).mul(this.#scale);
  }
}

/** x + P: a learned border of `size` pixels on images of exactly `imageSize`, shared by the batch. */
export class PaddingPrompt extends Module {
  readonly pad_up: Parameter;
  readonly pad_down: Parameter;
  readonly pad_left: Parameter;
  readonly pad_right: Parameter;

  constructor(
    readonly imageSize: number,
    readonly size: number,
    channels = 3,
  ) {
    super();
    const inner = imageSize - 2 * size;
    if (size < 1 || inner < 1) {
      throw new RangeError(
        `a border of ${size} leaves nothing of a ${imageSize} pixel image; at most ${Math.floor((imageSize - 1) / 2)}`,
      );
    }
    const border = (height: number, width: number): Parameter => new Parameter(randn([1, channels, height, width]));
    this.pad_up = border(size, imageSize);
    this.pad_down = border(size, imageSize);
    this.pad_left = border(inner, size);
    this.pad_right = border(inner, size);
  }

  forward(x: Tensor): Tensor {
    const [, channels = 3, height, width] = x.shape;
    if (height !== this.imageSize || width !== this.imageSize) {
      throw new RangeError(
        `the padding prompt is for images of ${this.imageSize} x ${this.imageSize}, given ${height} x ${width}`,
      );
    }
    const inner = this.imageSize - 2 * this.size;
    const hole = zeros([1, channels, inner, inner], { device: x.device, dtype: this.pad_up.dtype });
    const middle = aten.cat([this.pad_left, hole, this.pad_right], 3);
    return x.add(aten.cat([this.pad_up, middle, this.pad_down], 2));
  }
}

/** A learned summand per channel that starts at 0: the bias that a convolution was built without. */
export class ChannelBias extends Module implements AffineForm {
  readonly bias: Parameter;

  constructor(channels: number) {
    super();
    this.bias = new Parameter(zeros([channels]));
  }

  /** As an affine map: y = x + bias. */
  factorAndSummand(): { factor: null; summand: Tensor } {
    return { factor: null, summand: this.bias };
  }

  forward(x: Tensor): Tensor {
    return x.add(this.bias);
  }
}

/** `ConvAdapter` over the patches of tokens [B, N, C]; it gives nothing to tokens that are no patches. */
class TokenConvAdapter extends ConvAdapter {
  override forward(x: Tensor, ctx: Context): Tensor {
    return overPatches(x, ctx, 'tokens', {
      onMap: (map) => super.forward(map, ctx),
      onRest: (tokens) => tokens.newZeros([...tokens.shape.slice(0, 2), this.conv2.outChannels]),
    });
  }
}

/** `BatchNorm2d` of maps [B, C, H, W] and of tokens [B, N, C]. */
class FeatureNorm extends BatchNorm2d {
  override forward(x: Tensor, ctx: Context): Tensor {
    if (x.ndim !== 3) return super.forward(x, ctx);
    return super.forward(x.transpose(1, 2).unsqueeze(-1), ctx).squeeze(-1).transpose(1, 2);
  }
}

/** Where A sits for each scheme: the stretch of the block that it adapts, and whether it reads its input or output. */
const SCHEMES = {
  conv_par: { at: { role: 'spatial' }, compose: parallel() },
  // Behind a convolution that halves the map there is nothing to add to with the same kernel.
  conv_seq: { at: { role: 'spatial', inBlock: true }, compose: sequential() },
  res_par: { at: { role: 'residual' }, compose: parallel() },
  res_seq: { at: { role: 'residual' }, compose: sequential() },
} as const satisfies Record<string, Pick<Rule, 'at' | 'compose'>>;

/**
 * Official start by host: Kaiming over fan-out beside ReLU (per group beside SiLU), truncated normal beside GELU, PyTorch's
 * own on tokens and before the norms of pre-activated networks, there without bias.
 */
function officialStart({ activation, layout, roles }: Site): Start {
  if (layout === 'tokens') return 'default';
  if (roles.includes('preactivation')) return 'default_without_bias';
  if (activation === 'silu') return 'fan_out_per_group';
  return activation === 'gelu' ? 'trunc_normal' : 'fan_out';
}

/**
 * floor(channels / reduction), exact where a quotient such as 8 / 1.6 is rounded up to a whole number, as the official
 * code's floor division is.
 */
function bottleneckWidth(channels: number, reduction: number): number {
  const width = Math.round((channels - (channels % reduction)) / reduction);
  if (width >= 1) return width;
  throw new RangeError(`a reduction of ${reduction} leaves none of ${channels} channels; at most ${channels}`);
}

const fits = (channels: number, reduction: number): boolean =>
  reduction <= channels && channels % bottleneckWidth(channels, reduction) === 0;

/** Largest reduction that an error proposes. */
const LARGEST_PROPOSED = 64;

/** @throws RangeError with the reductions that suit all sites, which share one */
function refuseReduction(channels: number, reduction: number, all: readonly number[]): never {
  const proposed = Array.from({ length: LARGEST_PROPOSED }, (_, i) => i + 1).filter((r) =>
    all.every((c) => fits(c, r)),
  );
  throw new RangeError(
    `${channels} channels do not divide into a bottleneck of ${bottleneckWidth(channels, reduction)}, which a reduction of ` +
      `${reduction} leaves; reductions that fit every site here: ${proposed.join(', ')}`,
  );
}

function adapterForm(
  site: Site,
  sites: readonly Site[],
  { scheme, reduction, start }: { scheme: keyof typeof SCHEMES; reduction: number; start: Start | 'official' },
): Module {
  const readsOutput = scheme.endsWith('seq');
  const channelsOf = (at: Site): number => (readsOutput ? at.out : at.in);
  const inChannels = channelsOf(site);
  const width = bottleneckWidth(inChannels, reduction);
  if (inChannels % width !== 0) refuseReduction(inChannels, reduction, sites.map(channelsOf));
  const Form = site.layout === 'tokens' ? TokenConvAdapter : ConvAdapter;
  return new Form({
    inChannels,
    outChannels: site.out,
    width,
    kernel: site.kernel ?? [3, 3],
    stride: readsOutput ? [1, 1] : (site.stride ?? [1, 1]),
    padding: site.padding ?? [1, 1],
    activation: site.activation ?? 'relu',
    start: start === 'official' ? officialStart(site) : start,
  });
}

/** Beside CLIP's attention pool, on its query: the official adapter also sees the other tokens, whose result nobody reads. */
function poolAdapter(site: Site, reduction: number, start: Start | 'official'): LinearAdapter {
  const adapter = new LinearAdapter(site.in, site.out, bottleneckWidth(site.in, reduction));
  if (start === 'zero') {
    init.zeros_(adapter.fc2.weight);
    if (adapter.fc2.bias) init.zeros_(adapter.fc2.bias);
  }
  return adapter;
}

/** Side of the square images that a model takes. */
function sideOf({ size }: Site): number {
  const [height, width] = size ?? [];
  if (height !== undefined && height === width) return height;
  const given = size ? `of ${size.join(' x ')} pixels` : 'of any size';
  throw new RangeError(`the padding prompt is for square images, and the model takes those ${given}; give imageSize`);
}

type Trains = (parameter: BackboneParameter) => boolean;

/** The norm after the last stage, by the names of all hosts. ResNet has none: there it comes with `finalNorm`. */
const isLastNorm: Trains = ({ name }) => /^(head\.)?norm\./.test(name);

/** What has `norm` in its official name: in blocks that is every norm but BatchNorm and GroupNorm (`bn1`, `gn1`). */
const isNamedNorm: Trains = (p) => isLastNorm(p) || (p.name.includes('norm') && !(p.module instanceof GroupNorm));

const isAnyNorm: Trains = ({ name }) => /bn|gn|norm|before_head/.test(name);
const isBias: Trains = ({ name }) => name.includes('bias');

/** What the official code calls methods: which grafts there are, and which backbone parameters train besides the head. */
const VARIANTS: Readonly<Record<string, { readonly adapters: boolean; readonly trains: Trains }>> = {
  conv_adapt: { adapters: true, trains: isNamedNorm },
  conv_adapt_norm: { adapters: true, trains: isAnyNorm },
  conv_adapt_bias: { adapters: true, trains: (p) => isLastNorm(p) || isBias(p) },
  norm: { adapters: false, trains: isAnyNorm },
  bias: { adapters: false, trains: (p) => isLastNorm(p) || isBias(p) },
  prompt: { adapters: false, trains: isLastNorm },
  linear: { adapters: false, trains: isLastNorm },
  full: { adapters: false, trains: () => true },
};

/** Official path of the adapter at a site: in its block or pool, or, before ConvNeXt's stages, in a list of their own. */
function adapterPath({ path, block, activation, roles }: Site): string {
  if (roles.includes('attention_pool')) return `${path.slice(0, path.lastIndexOf('.'))}.tuning_module`;
  const [, stage] = /^stages\.(\d+)\.downsample\.\d+$/.exec(path) ?? [];
  if (stage !== undefined) return `tuning_module_downsample.${Number(stage) - 1}`;
  // The official ConvNeXt, the host with GELU, has no `blocks` in its names.
  const own = activation === 'gelu' ? block?.replace(/^(stages\.\d+)\.blocks\./, '$1.') : block;
  return `${own ?? ''}.tuning_module`;
}

/**
 * Conv-Adapter, its four schemes and the comparison methods of its code. On ConvNeXt the convolutions between the stages
 * have adapters too; on Swin they stand beside attention, on the whole map; on CLIP's residual network a linear one stands
 * beside the attention pool as well; on EfficientNet-V2 they stand beside whole blocks. 356,848 parameters on ResNet-50,
 * 1,250,496 on ConvNeXt-T, 2,361,536 on Swin-B for a reduction of 4, besides the norms that the variant trains.
 *
 * The published start does not make the adapted model equal to the backbone: nothing is zero at first. `init: 'zero'`
 * does; it is also what makes training stable when BatchNorm's statistics stay frozen (docs/adapters.md has figures).
 */
export const convAdapter = defineMethod({
  id: 'conv_adapter',
  summary: 'a depth-wise separable bottleneck beside every spatial convolution',
  paper: 'Chen et al., Conv-Adapter, CVPR 2024 Workshop on Prompting in Vision, arXiv 2208.07463',
  options: z.strictObject({
    /** Compression γ: the bottleneck has floor(channels / γ) channels. */
    reduction: z.number().min(1).default(8),
    /** What is adapted, and whether in parallel or in sequence. */
    scheme: z.enum(['conv_par', 'conv_seq', 'res_par', 'res_seq']).default('conv_par'),
    /** Which of the official code's methods. */
    variant: z
      .enum(['conv_adapt', 'conv_adapt_norm', 'conv_adapt_bias', 'norm', 'bias', 'prompt', 'linear', 'full'])
      .default('conv_adapt'),
    /** `official`: as the backbone's own convolutions start; `zero`: the adapted model starts as the backbone. */
    init: z.enum(['official', 'zero', 'default', 'fan_out', 'trunc_normal']).default('official'),
    /** Sets a new, trained BatchNorm after the last stage, as the official ResNet does. */
    finalNorm: z.boolean().default(false),
    /** Border of the `prompt` variant, in pixels. */
    promptSize: z.int().positive().default(10),
    /** Side of the images, for the `prompt` variant. Default: the model's. */
    imageSize: z.int().positive().optional(),
  }),
  rules: ({ reduction, scheme, variant, init: start, finalNorm, promptSize, imageSize }) => {
    const rules: Rule[] = [];
    if (VARIANTS[variant]?.adapters) {
      const form: Rule['form'] = (site, { sites }) => adapterForm(site, sites, { scheme, reduction, start });
      rules.push({ id: 'adapter', ...SCHEMES[scheme], form });
      const pool = { at: { role: 'attention_pool' }, compose: parallel(), optional: true } as const;
      if (scheme === 'conv_par')
        rules.push({ id: 'adapter', ...pool, form: (site) => poolAdapter(site, reduction, start) });
    }
    if (variant === 'bias') {
      // The bottlenecks of the residual networks; other hosts have none, or biases of their own.
      const at = { role: 'conv', inBlock: true, name: ['conv1', 'conv2', 'conv3'], except: '**.axial_shift.**' };
      const form = (site: Site): Module => new ChannelBias(site.out);
      rules.push({ id: 'bias', at, compose: affine(), form, optional: true });
    }
    if (variant === 'prompt') {
      const form = (site: Site): Module => new PaddingPrompt(imageSize ?? sideOf(site), promptSize, site.in);
      rules.push({ id: 'prompt', at: { role: 'input' }, compose: sequential({ residual: false }), form });
    }
    if (finalNorm) {
      const form = (site: Site): Module => new FeatureNorm(site.out);
      rules.push({ id: 'norm', at: { role: 'features' }, compose: sequential({ residual: false }), form });
    }
    return rules;
  },
  trains: ({ variant }) => VARIANTS[variant]?.trains ?? (() => false),
  bnStats: 'update',
  headInit: 'uniform',
  officialHead: 'head.linear',
  learningRate: 0.01,
  officialName: ({ rule, site, path, leaf }) => {
    if (rule === 'norm') return `norm.${leaf}`;
    if (rule === 'bias') return `${path}.${leaf}`;
    return rule === 'prompt' || !site ? `tuning_module.${leaf}` : `${adapterPath(site)}.${leaf}`;
  },
});
