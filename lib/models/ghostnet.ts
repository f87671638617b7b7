/**
 * C-GhostNet as timm and the official repository define it (huawei-noah/Efficient-AI-Backbones, commit f90e129,
 * Apache-2.0; the names of both are the same). Han et al., CVPR 2020, arXiv 1911.11907; IJCV 2022, arXiv 2201.03297.
 */
import { z } from 'zod';
import {
  runChain,
  Context,
  type Conv2d,
  Dropout,
  DropPath,
  type Identity,
  type Linear,
  Module,
  Sequential,
  site,
  Span,
} from '../nn/index.js';
import { aten, type Tensor } from '../tensor/index.js';
import { Backbone, type FeatureLevel, type Preprocessing } from './backbone.js';
import {
  batchNormSite,
  BlockList,
  classifierSite,
  ConvNorm,
  convSite,
  dropPathRateAt,
  identitySite,
  imageSite,
  outputsOf,
  poolMap,
} from './blocks.js';
import { backboneOptions, type Family, positive, preprocessing, rate } from './family.js';

/** The nearest multiple of 4 that is not below 90 % of `v`, and at least 4: 9 gives 12, because 8 < 8.1. */
function divisibleByFour(v: number): number {
  const rounded = Math.max(4, Math.floor(Math.trunc(v + 2) / 4) * 4);
  return rounded < 0.9 * v ? rounded + 4 : rounded;
}

/** What a `GhostModule` is built from, beside its channels. */
export interface GhostModuleOptions {
  readonly kernelSize?: number;
  /** How many maps are made of each intrinsic one, itself included. Default 2. */
  readonly ratio?: number;
  /** Kernel of the cheap operation. Default 3. */
  readonly cheapKernel?: number;
  readonly stride?: number;
  readonly relu?: boolean;
}

/**
 * x1 = act(BN(conv x)) of ceil(out / ratio) channels, x2 = act(BN(depth-wise conv x1)): the channels of x1, then those
 * of x2, cut to `out`. [B, in, H, W] to [B, out, H', W']. arXiv 1911.11907, equation 3.
 */
export class GhostModule extends Module {
  readonly primary_conv: ConvNorm;
  readonly cheap_operation: ConvNorm;

  constructor(
    inChannels: number,
    readonly outChannels: number,
    { kernelSize = 1, ratio = 2, cheapKernel = 3, stride = 1, relu = true }: GhostModuleOptions = {},
  ) {
    super();
    if (ratio < 2) throw new RangeError(`GhostModule: the ratio must be at least 2, got ${ratio}`);
    const intrinsic = Math.ceil(outChannels / ratio);
    const cheap = intrinsic * (ratio - 1);
    const act = relu ? 'relu' : 'none';
    const padding = Math.floor(kernelSize / 2);
    this.primary_conv = new ConvNorm(
      [convSite(inChannels, intrinsic, { kernelSize, stride, padding }), batchNormSite(intrinsic)],
      act,
    );
    this.cheap_operation = new ConvNorm(
      [
        convSite(intrinsic, cheap, {
          kernelSize: cheapKernel,
          padding: Math.floor(cheapKernel / 2),
          groups: intrinsic,
        }),
        batchNormSite(cheap),
      ],
      act,
    );
  }

  forward(x: Tensor, ctx: Context): Tensor {
    const intrinsic = this.primary_conv.run(x, ctx);
    const all = aten.cat([intrinsic, this.cheap_operation.run(intrinsic, ctx)], 1);
    return all.shape[1] === this.outChannels ? all : all.narrow(1, 0, this.outChannels);
  }
}

/** x * hardSigmoid(conv(ReLU(conv(mean x)))), one gate per channel. Hu et al. 2018, arXiv 1709.01507. */
export class SqueezeExcite extends Module {
  readonly conv_reduce: Conv2d;
  readonly conv_expand: Conv2d;

  constructor(channels: number, ratio: number) {
    super();
    const reduced = divisibleByFour(channels * ratio);
    this.conv_reduce = convSite(channels, reduced, { kernelSize: 1, bias: true });
    this.conv_expand = convSite(reduced, channels, { kernelSize: 1, bias: true });
  }

  forward(x: Tensor, ctx: Context): Tensor {
    const gate = this.conv_expand.run(this.conv_reduce.run(x.mean([2, 3], true), ctx).relu(), ctx);
    return x.mul(aten.hardsigmoid(gate));
  }
}

/** What a `GhostBottleneck` is built from. */
export interface GhostBottleneckOptions {
  readonly inChannels: number;
  readonly midChannels: number;
  readonly outChannels: number;
  /** Kernel of the strided depth-wise convolution and of the shortcut's. Default 3. */
  readonly kernelSize?: number;
  readonly stride?: number;
  /** Squeezed share of the middle channels; 0 for no squeeze-and-excitation. Default 0. */
  readonly seRatio?: number;
  readonly stage?: number;
  readonly depth?: number;
  readonly dropPath?: number;
}

/**
 * Ghost module to the middle width, [strided depth-wise convolution, BN], [squeeze and excitation], linear ghost module;
 * plus x, or its depth-wise separable projection where the shape changes. No activation after the sum.
 */
export class GhostBottleneck extends Module {
  readonly ghost1: GhostModule;
  readonly conv_dw: Conv2d | null;
  readonly bn_dw: Module | null;
  readonly se: SqueezeExcite | null;
  readonly ghost2: GhostModule;
  readonly shortcut: Sequential | null;
  readonly drop_path: DropPath | null;
  /** x -> ghost1 and the strided convolution. */
  readonly spatial: Span;
  /** x -> what is added to the shortcut. */
  readonly residual: Span;

  constructor(options: GhostBottleneckOptions) {
    super();
    const { inChannels, midChannels, outChannels, kernelSize = 3, stride = 1, seRatio = 0 } = options;
    const { stage = 0, depth = 0, dropPath = 0 } = options;
    const padding = Math.floor((kernelSize - 1) / 2);
    const isStrided = stride > 1;
    this.ghost1 = new GhostModule(inChannels, midChannels);
    this.conv_dw = isStrided
      ? convSite(midChannels, midChannels, { kernelSize, stride, padding, groups: midChannels })
      : null;
    this.bn_dw = isStrided ? batchNormSite(midChannels) : null;
    this.se = seRatio > 0 ? new SqueezeExcite(midChannels, seRatio) : null;
    this.ghost2 = new GhostModule(midChannels, outChannels, { relu: false });
    this.shortcut =
      inChannels === outChannels && !isStrided
        ? null
        : new Sequential(
            convSite(inChannels, inChannels, { kernelSize, stride, padding, groups: inChannels }),
            batchNormSite(inChannels),
            convSite(inChannels, outChannels, { kernelSize: 1 }),
            batchNormSite(outChannels),
          );
    this.drop_path = dropPath > 0 ? new DropPath(dropPath) : null;

    const kernel = isStrided ? kernelSize : 3;
    const convolution = {
      layout: 'map',
      kernel,
      stride,
      padding: Math.floor(kernel / 2),
      groups: 1,
      activation: 'relu',
    } as const;
    const along = (modules: readonly (Module | null)[]) => (x: Tensor, ctx: Context) =>
      modules.reduce((y, module) => module?.run(y, ctx) ?? y, x);
    this.spatial = site(new Span(along([this.ghost1, this.conv_dw, this.bn_dw])), {
      role: 'spatial',
      in: inChannels,
      out: midChannels,
      ...convolution,
    });
    this.residual = site(new Span(along([this.spatial, this.se, this.ghost2])), {
      role: 'residual',
      in: inChannels,
      out: outChannels,
      ...convolution,
    });
    site(this, { role: 'block', in: inChannels, out: outChannels, layout: 'map', stride, stage, depth });
  }

  forward(x: Tensor, ctx: Context): Tensor {
    const branch = this.residual.run(x, ctx);
    const skip = this.shortcut ? this.shortcut.run(x, ctx) : x;
    return (this.drop_path ? this.drop_path.run(branch, ctx) : branch).add(skip);
  }
}

/** One bottleneck: kernel, middle channels, output channels, squeeze ratio (0 for none), stride; channels at width 1. */
const row = z.tuple([positive, positive, positive, rate, positive]);

const TABLE: z.output<typeof row>[][] = [
  [[3, 16, 16, 0, 1]],
  [[3, 48, 24, 0, 2]],
  [[3, 72, 24, 0, 1]],
  [[5, 72, 40, 0.25, 2]],
  [[5, 120, 40, 0.25, 1]],
  [[3, 240, 80, 0, 2]],
  [
    [3, 200, 80, 0, 1],
    [3, 184, 80, 0, 1],
    [3, 184, 80, 0, 1],
    [3, 480, 112, 0.25, 1],
    [3, 672, 112, 0.25, 1],
  ],
  [[5, 672, 160, 0.25, 2]],
  [
    [5, 960, 160, 0, 1],
    [5, 960, 160, 0.25, 1],
    [5, 960, 160, 0, 1],
    [5, 960, 160, 0.25, 1],
  ],
];

const options = z.strictObject({
  /** Multiplies all channels but those of the head; rounded to multiples of 4. */
  width: z.number().positive().default(1),
  /** Bottlenecks by stage. */
  stages: z.array(z.array(row).min(1)).min(1).default(TABLE),
  ...backboneOptions,
  /** Width of the vector before the classifier. */
  headChannels: positive.default(1280),
  /** Dropout before the classifier. */
  dropRate: rate.default(0.2),
});

/** Options of a C-GhostNet, defaults filled in. */
export type GhostNetOptions = z.output<typeof options>;

/** C-GhostNet: a strided stem, ghost bottlenecks, a 1x1 convolution; pooled, widened to 1280, classified. */
export class GhostNet extends Backbone {
  readonly name: string;
  readonly classifier = 'classifier';
  protected override readonly renamed = { head: 'classifier' };
  readonly numFeatures: number;
  readonly featureLevels: readonly FeatureLevel[];

  /** The image batch. */
  readonly input: Identity;
  readonly conv_stem: Conv2d;
  readonly bn1: Module;
  /** Image to the map that enters the first stage. */
  readonly stem: Span;
  readonly blocks: Sequential;
  /** The map before the pool. */
  readonly features: Identity;
  readonly conv_head: Conv2d;
  /** The vector that is classified. */
  readonly pre_logits: Identity;
  readonly drop: Dropout;
  /** `classifier` in the state dict. */
  head: Linear | Identity;

  constructor(name: string, o: GhostNetOptions, config: Preprocessing) {
    super(config);
    this.name = name;
    this.numFeatures = o.headChannels;
    const stemOut = divisibleByFour(16 * o.width);
    this.input = imageSite(o.inChans);
    this.conv_stem = convSite(o.inChans, stemOut, { kernelSize: 3, stride: 2, padding: 1 });
    this.bn1 = batchNormSite(stemOut);
    this.stem = site(new Span((x, ctx) => this.bn1.run(this.conv_stem.run(x, ctx), ctx).relu()), {
      role: 'stem',
      in: o.inChans,
      out: stemOut,
      layout: 'map',
      stride: 2,
    });
    const { stages, levels, width } = buildStages(o, stemOut);
    this.featureLevels = levels;
    const lastRow = o.stages.at(-1)?.at(-1);
    const last = divisibleByFour((lastRow?.[1] ?? 0) * o.width);
    const conv = convSite(width, last, { kernelSize: 1 });
    this.blocks = new Sequential(...stages, new Sequential(new ConvNorm({ conv, bn1: batchNormSite(last) }, 'relu')));
    this.features = identitySite('features', last, 'map');
    this.conv_head = convSite(last, o.headChannels, { kernelSize: 1, bias: true });
    this.pre_logits = identitySite('pre_logits', o.headChannels, 'vector');
    this.drop = new Dropout(o.dropRate);
    this.head = classifierSite(o.headChannels, o.numClasses);
  }

  forwardFeatures(x: Tensor, ctx: Context = new Context()): Tensor {
    return runChain([this.input, this.stem, ...this.blocks, this.features], x, ctx);
  }

  forwardHead(features: Tensor, ctx: Context = new Context()): Tensor {
    const pooled = poolMap(features, 'avg').unsqueeze(-1).unsqueeze(-1);
    const vector = this.pre_logits.run(this.conv_head.run(pooled, ctx).relu().flatten(1), ctx);
    return this.head.run(this.drop.run(vector, ctx), ctx);
  }

  forwardIntermediates(x: Tensor, ctx: Context = new Context()): Tensor[] {
    const levels = new Set(this.featureLevels.map(({ path }) => path));
    const stages = [...this.blocks].slice(0, -1);
    const y = this.stem.run(this.input.run(x, ctx), ctx);
    return outputsOf(stages, y, ctx, (_, i) => levels.has(`blocks.${i}`));
  }

  protected override get tail(): readonly string[] {
    return ['conv_head', 'classifier'];
  }

  resetClassifier(numClasses: number): void {
    this.head = this.like(classifierSite(this.numFeatures, numClasses));
  }
}

/** The stages, and as feature levels the last stage of each resolution. */
function buildStages(o: GhostNetOptions, stemOut: number) {
  const total = o.stages.reduce((sum, rows) => sum + rows.length, 0);
  const levels: FeatureLevel[] = [];
  let depth = 0;
  let inChannels = stemOut;
  let reduction = 2;
  const stages = o.stages.map((rows, stage) => {
    const stageIn = inChannels;
    const blocks = new BlockList();
    for (const [kernelSize, mid, out, seRatio, stride] of rows) {
      const outChannels = divisibleByFour(out * o.width);
      const midChannels = divisibleByFour(mid * o.width);
      const dropPath = dropPathRateAt(o.dropPathRate, depth, total);
      const ends = { inChannels, midChannels, outChannels, kernelSize, stride, seRatio };
      blocks.push(new GhostBottleneck({ ...ends, stage, depth, dropPath }));
      inChannels = outChannels;
      depth++;
    }
    const stride = rows.reduce((product, [, , , , s]) => product * s, 1);
    reduction *= stride;
    if (levels.at(-1)?.stride === reduction) levels.pop();
    levels.push({ path: `blocks.${stage}`, channels: inChannels, stride: reduction });
    return site(blocks, { role: 'stage', in: stageIn, out: inChannels, layout: 'map', stage, stride });
  });
  return { stages, levels, width: inChannels };
}

export const ghostnet: Family<typeof options> = {
  id: 'ghostnet',
  checkpoints: { source: 'huawei-noah/Efficient-AI-Backbones, timm', license: 'Apache-2.0' },
  paper: 'Han et al., GhostNets on Heterogeneous Devices via Cheap Operations, IJCV 2022, arXiv 2201.03297',
  options,
  variants: { ghostnet_050: { width: 0.5 }, ghostnet_100: { width: 1 }, ghostnet_130: { width: 1.3 } },
  create: (name, o) => new GhostNet(name, o, preprocessing(o, { interpolation: 'bicubic', cropPct: 0.875 })),
};
