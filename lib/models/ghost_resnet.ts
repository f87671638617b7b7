/**
 * Ghost-ResNet as released (huawei-noah/Efficient-AI-Backbones, commit f90e129, `ghost_resnet.py`, Apache-2.0): a
 * ResNet whose convolutions, the stem's excepted, are ghost modules with biases and without any norm. Han et al., CVPR
 * 2020, arXiv 1911.11907, section 4.1. The files also hold tensors that nothing reads; so does the model.
 */
import { z } from 'zod';
import {
  type BatchNorm2d,
  Buffer,
  Context,
  Conv2d,
  convNormAct,
  DropPath,
  type Identity,
  init,
  type Linear,
  MaxPool2d,
  Module,
  Parameter,
  Sequential,
  site,
  Span,
} from '../nn/index.js';
import { aten, empty, ones, tensor, type Tensor, zeros } from '../tensor/index.js';
import type { FeatureLevel, Preprocessing } from './backbone.js';
import {
  batchNormSite,
  BlockList,
  classifierSite,
  convSite,
  dropPathRateAt,
  identitySite,
  imageSite,
  poolMap,
  UnusedAffine,
} from './blocks.js';
import { backboneOptions, type Family, positive, preprocessing, requireSameLength } from './family.js';
import { StagedBackbone } from './staged_backbone.js';

/** A BatchNorm that the published files hold and nothing runs. */
class UnusedBatchNorm extends UnusedAffine {
  readonly running_mean: Buffer;
  readonly running_var: Buffer;
  readonly num_batches_tracked: Buffer;

  constructor(channels: number) {
    super(channels);
    this.running_mean = new Buffer(zeros([channels]));
    this.running_var = new Buffer(ones([channels]));
    this.num_batches_tracked = new Buffer(tensor(0, { dtype: 'int64' }), { optional: true });
  }
}

/** What a `GhostConv` is built from, beside its channels. */
export interface GhostConvOptions {
  readonly kernelSize: number;
  readonly stride?: number;
  readonly padding?: number;
  /** How many maps are made of each intrinsic one, itself included. Default 4. */
  readonly ratio?: number;
  /** Kernel of the cheap operation. Default 3. */
  readonly cheapKernel?: number;
}

/**
 * a = conv x of ceil(out / ratio) channels, b = depth-wise conv a; [a, b] cut to `out` channels. Both have biases; no
 * norm, no activation. [B, in, H, W] to [B, out, H', W'].
 */
export class GhostConv extends Module {
  readonly weight1: Parameter;
  readonly weight2: Parameter;
  readonly conv1: Conv2d;
  readonly conv2: Conv2d;
  readonly bn1: UnusedBatchNorm;
  readonly bn2: UnusedBatchNorm;

  constructor(
    readonly inChannels: number,
    readonly outChannels: number,
    { kernelSize, stride = 1, padding = 0, ratio = 4, cheapKernel = 3 }: GhostConvOptions,
  ) {
    super();
    const intrinsic = Math.ceil(outChannels / ratio);
    const cheap = intrinsic * (ratio - 1);
    if (ratio < 2 || intrinsic >= outChannels) {
      throw new RangeError(
        `GhostConv: ${outChannels} channels with a ratio of ${ratio} leave nothing for the cheap operation; a ratio of at least 2 and 2 channels are needed`,
      );
    }
    this.weight1 = new Parameter(empty([intrinsic, inChannels, kernelSize, kernelSize]));
    this.weight2 = new Parameter(empty([cheap, 1, cheapKernel, cheapKernel]));
    this.conv1 = convSite(inChannels, intrinsic, { kernelSize, stride, padding, bias: true });
    this.conv2 = convSite(intrinsic, cheap, {
      kernelSize: cheapKernel,
      padding: Math.floor(cheapKernel / 2),
      groups: intrinsic,
      bias: true,
    });
    this.bn1 = new UnusedBatchNorm(intrinsic);
    this.bn2 = new UnusedBatchNorm(outChannels - intrinsic);
    for (const weight of [this.weight1, this.weight2]) init.kaimingUniform_(weight, { a: Math.sqrt(5) });
  }

  forward(x: Tensor, ctx: Context): Tensor {
    const intrinsic = this.conv1.run(x, ctx);
    const cheap = this.conv2.run(intrinsic, ctx);
    return aten.cat([intrinsic, cheap.narrow(1, 0, this.outChannels - this.conv1.outChannels)], 1);
  }
}

interface BlockOptions {
  readonly inChannels: number;
  readonly planes: number;
  readonly stride: number;
  readonly ratio: number;
  readonly cheapKernel: number;
  readonly stage: number;
  readonly depth: number;
  readonly dropPath: number;
}

/** Ghost modules 1x1, 3x3 with the stride, 1x1, ReLU between them; the sum with the skip, ReLU. */
class GhostResNetBottleneck extends Module {
  readonly conv1: GhostConv;
  readonly conv2: GhostConv;
  readonly conv3: GhostConv;
  readonly downsample: Sequential | null;
  readonly drop_path: DropPath | null;
  /** u -> ReLU(conv2 u). */
  readonly spatial: Span;
  readonly residual: Span;

  constructor({ inChannels, planes, stride, ratio, cheapKernel, stage, depth, dropPath }: BlockOptions) {
    super();
    const out = 4 * planes;
    const ghost = { ratio, cheapKernel };
    this.conv1 = new GhostConv(inChannels, planes, { kernelSize: 1, ...ghost });
    this.conv2 = new GhostConv(planes, planes, { kernelSize: 3, stride, padding: 1, ...ghost });
    this.conv3 = new GhostConv(planes, out, { kernelSize: 1, ...ghost });
    this.downsample =
      stride === 1 && inChannels === out
        ? null
        : new Sequential(new GhostConv(inChannels, out, { kernelSize: 1, stride, ...ghost }));
    this.drop_path = dropPath > 0 ? new DropPath(dropPath) : null;
    const convolution = { layout: 'map', kernel: 3, stride, padding: 1, groups: 1, activation: 'relu' } as const;
    this.spatial = site(new Span((u, ctx) => this.conv2.run(u, ctx).relu()), {
      role: 'spatial',
      in: planes,
      out: planes,
      ...convolution,
    });
    this.residual = site(
      new Span((x, ctx) => this.conv3.run(this.spatial.run(this.conv1.run(x, ctx).relu(), ctx), ctx)),
      { role: 'residual', in: inChannels, out, ...convolution },
    );
    site(this, { role: 'block', in: inChannels, out, layout: 'map', stride, stage, depth });
  }

  forward(x: Tensor, ctx: Context): Tensor {
    const branch = this.residual.run(x, ctx);
    const skip = this.downsample ? this.downsample.run(x, ctx) : x;
    return (this.drop_path ? this.drop_path.run(branch, ctx) : branch).add(skip).relu();
  }
}

const options = z.strictObject({
  /** Blocks per stage. */
  layers: z.array(positive).min(1).default([3, 4, 6, 3]),
  /** Planes per stage; the output has four times as many channels. */
  channels: z.array(positive).min(1).default([64, 128, 256, 512]),
  stemChannels: positive.default(64),
  /** Ratio s of the ghost modules. */
  ratio: z.int().min(2).default(4),
  /** Kernel d of the cheap operations. */
  cheapKernel: positive.default(3),
  ...backboneOptions,
});

/** Options of a Ghost-ResNet, defaults filled in. */
export type GhostResNetOptions = z.output<typeof options>;

/**
 * Ghost-ResNet with bottleneck blocks. The published head averages windows of 7x7 and so takes maps of 7x7 only; the
 * mean of the whole map, which is the same there, takes any size.
 */
export class GhostResNet extends StagedBackbone {
  readonly name: string;
  readonly classifier = 'fc';
  readonly numFeatures: number;
  readonly featureLevels: readonly FeatureLevel[];
  readonly stages: readonly BlockList[];

  /** The image batch. */
  readonly input: Identity;
  readonly conv1: Conv2d;
  readonly bn1: BatchNorm2d;
  readonly maxpool: MaxPool2d;
  /** Image to the map that enters the first stage. */
  readonly stem: Span;
  /** The map before the pool. */
  readonly features: Identity;
  /** The pooled vector. */
  readonly pre_logits: Identity;
  /** Declared, not defined, so that it follows the stages in the order of properties. */
  declare fc: Linear | Identity;

  constructor(name: string, o: GhostResNetOptions, config: Preprocessing) {
    super(config);
    requireSameLength(name, { layers: o.layers, channels: o.channels });
    this.name = name;
    this.input = imageSite(o.inChans);
    this.conv1 = convSite(o.inChans, o.stemChannels, { kernelSize: 7, stride: 2, padding: 3 });
    this.bn1 = batchNormSite(o.stemChannels);
    this.maxpool = new MaxPool2d({ kernelSize: 3, stride: 2, padding: 1 });
    this.stem = site(new Span((x, ctx) => this.maxpool.run(convNormAct(this.conv1, this.bn1, x, ctx), ctx)), {
      role: 'stem',
      in: o.inChans,
      out: o.stemChannels,
      layout: 'map',
      stride: 4,
    });
    this.stages = buildStages(o);
    this.stages.forEach((stage, i) => Object.assign(this, { [`layer${i + 1}`]: stage }));
    this.featureLevels = o.channels.map((planes, i) => ({
      path: `layer${i + 1}`,
      channels: 4 * planes,
      stride: 4 * 2 ** i,
    }));
    this.numFeatures = this.featureLevels.at(-1)?.channels ?? 0;
    this.features = identitySite('features', this.numFeatures, 'map');
    this.pre_logits = identitySite('pre_logits', this.numFeatures, 'vector');
    this.fc = classifierSite(this.numFeatures, o.numClasses);
    this.apply((module) => {
      if (module instanceof Conv2d) init.kaimingNormal_(module.weight, { mode: 'fan_out', nonlinearity: 'relu' });
      // The published start counts the output channels, not those of a group.
      if (module instanceof GhostConv) {
        const [out = 1, , height = 1, width = 1] = module.conv2.weight.shape;
        init.normal_(module.conv2.weight, 0, Math.sqrt(2 / (height * width * out)));
      }
    });
  }

  forwardHead(features: Tensor, ctx: Context = new Context()): Tensor {
    return this.fc.run(this.pre_logits.run(poolMap(features, 'avg'), ctx), ctx);
  }

  resetClassifier(numClasses: number): void {
    this.fc = this.like(classifierSite(this.numFeatures, numClasses));
  }
}

function buildStages(o: GhostResNetOptions): BlockList[] {
  const total = o.layers.reduce((sum, n) => sum + n, 0);
  let depth = 0;
  let inChannels = o.stemChannels;
  return o.layers.map((count, stage) => {
    const planes = o.channels[stage] ?? 0;
    const stageStride = stage === 0 ? 1 : 2;
    const ends = { in: inChannels, out: 4 * planes, layout: 'map', stage, stride: stageStride } as const;
    const blocks = new BlockList();
    for (let j = 0; j < count; j++, depth++) {
      const stride = j === 0 ? stageStride : 1;
      const dropPath = dropPathRateAt(o.dropPathRate, depth, total);
      const { ratio, cheapKernel } = o;
      blocks.push(
        new GhostResNetBottleneck({ inChannels, planes, stride, ratio, cheapKernel, stage, depth, dropPath }),
      );
      inChannels = 4 * planes;
    }
    return site(blocks, { role: 'stage', ...ends });
  });
}

export const ghostResnet: Family<typeof options> = {
  id: 'ghost_resnet',
  checkpoints: { source: 'huawei-noah/Efficient-AI-Backbones', license: 'Apache-2.0' },
  paper: 'Han et al., GhostNet: More Features from Cheap Operations, CVPR 2020, arXiv 1911.11907',
  options,
  variants: { ghost_resnet50: {}, ghost_resnet50_s2: { ratio: 2 } },
  create: (name, o) => new GhostResNet(name, o, preprocessing(o, { interpolation: 'bilinear', cropPct: 0.875 })),
};
