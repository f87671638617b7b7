/**
 * ResNetV2 in the form of Big Transfer (BiT), as timm defines it (`resnetv2.py`, release 1.0.29, Apache-2.0): convolutions
 * with standardized weights, and GroupNorm and ReLU before them. Kolesnikov et al., ECCV 2020, arXiv 1912.11370; weight
 * standardization: Qiao et al. 2019, arXiv 1903.10520; pre-activation: He et al. 2016, arXiv 1603.05027.
 */
import { z } from 'zod';
import { applyKeyMap } from '../checkpoint/index.js';
import {
  runChain,
  Context,
  DropPath,
  GroupNorm,
  type Identity,
  init,
  Linear,
  MaxPool2d,
  Module,
  site,
  Span,
} from '../nn/index.js';
import { aten, type Tensor } from '../tensor/index.js';
import { type FeatureLevel, HALF, type Preprocessing } from './backbone.js';
import { BlockList, dropPathRateAt, identitySite, imageSite, makeDivisible, poolMap } from './blocks.js';
import { ClassifierHead } from './classifier_head.js';
import {
  backboneOptions,
  type Family,
  imageSize,
  positive,
  preprocessing,
  rate,
  requireSameLength,
  sizePair,
} from './family.js';
import { bitKeyMap } from './resnetv2_names.js';
import { StagedBackbone } from './staged_backbone.js';
import { StdConv2d, type StdConv2dOptions } from './std_conv.js';

function stdConv(inChannels: number, outChannels: number, options: StdConv2dOptions): StdConv2d {
  return site(new StdConv2d(inChannels, outChannels, options), { role: 'conv' });
}

/** A GroupNorm that a ReLU follows. */
function groupNorm(channels: number, groups: number): GroupNorm {
  return site(new GroupNorm(groups, channels), { role: 'norm', activation: 'relu' });
}

/** The skip of a block that changes the shape: a 1x1 convolution, no norm. */
class Projection extends Module {
  readonly conv: StdConv2d;

  constructor(inChannels: number, outChannels: number, stride: number, eps: number) {
    super();
    this.conv = stdConv(inChannels, outChannels, { kernelSize: 1, stride, eps });
  }

  forward(x: Tensor, ctx: Context): Tensor {
    return this.conv.run(x, ctx);
  }
}

interface BlockOptions {
  readonly inChannels: number;
  readonly midChannels: number;
  readonly outChannels: number;
  readonly stride: number;
  readonly hasProjection: boolean;
  readonly groups: number;
  readonly eps: number;
  readonly dropPath: number;
  readonly stage: number;
  readonly depth: number;
}

/**
 * a = ReLU(norm1 x); u = conv1 a; h = conv2(ReLU(norm2 u)); y = conv3(ReLU(norm3 h)) + skip, where the skip is x, or in
 * the first block of a stage a projection of a. The stride is on conv2. [B, C, H, W] to [B, out, H / stride, W / stride].
 */
class PreActBottleneck extends Module {
  readonly downsample: Projection | null;
  readonly norm1: GroupNorm;
  readonly conv1: StdConv2d;
  readonly norm2: GroupNorm;
  readonly conv2: StdConv2d;
  readonly norm3: GroupNorm;
  readonly conv3: StdConv2d;
  readonly drop_path: DropPath | null;
  /** x -> what is added to the skip. */
  readonly residual: Span;
  /** u, before norm and ReLU, -> conv2(ReLU(norm2 u)). */
  readonly spatial: Span;

  constructor(o: BlockOptions) {
    super();
    const { inChannels, midChannels: mid, outChannels, stride, groups, eps, stage, depth } = o;
    this.downsample = o.hasProjection ? new Projection(inChannels, outChannels, stride, eps) : null;
    this.norm1 = groupNorm(inChannels, groups);
    this.conv1 = stdConv(inChannels, mid, { kernelSize: 1, eps });
    this.norm2 = groupNorm(mid, groups);
    this.conv2 = stdConv(mid, mid, { kernelSize: 3, stride, padding: 1, eps });
    this.norm3 = groupNorm(mid, groups);
    this.conv3 = stdConv(mid, outChannels, { kernelSize: 1, eps });
    this.drop_path = o.dropPath > 0 ? new DropPath(o.dropPath) : null;

    const ends = { layout: 'map', kernel: 3, stride, padding: 1, groups: 1, activation: 'relu' } as const;
    this.spatial = site(new Span((u, ctx) => this.conv2.run(this.norm2.run(u, ctx).relu(), ctx)), {
      role: ['spatial', 'preactivation'],
      in: mid,
      out: mid,
      ...ends,
    });
    this.residual = site(new Span((x, ctx) => this.branch(x, ctx)), {
      role: ['residual', 'preactivation'],
      in: inChannels,
      out: outChannels,
      ...ends,
    });
    site(this, { role: 'block', in: inChannels, out: outChannels, layout: 'map', stride, stage, depth });
  }

  forward(x: Tensor, ctx: Context): Tensor {
    const a = this.norm1.run(x, ctx).relu();
    const skip = this.downsample ? this.downsample.run(a, ctx) : x;
    ctx.state.set(this, { x, a });
    const branch = this.residual.run(x, ctx);
    ctx.state.delete(this);
    return (this.drop_path ? this.drop_path.run(branch, ctx) : branch).add(skip);
  }

  private branch(x: Tensor, ctx: Context): Tensor {
    // The skip has needed the same norm of the same map, unless a graft has changed what enters here.
    const known = ctx.state.get(this) as { x: Tensor; a: Tensor } | undefined;
    const a = known?.x === x ? known.a : this.norm1.run(x, ctx).relu();
    const h = this.spatial.run(this.conv1.run(a, ctx), ctx);
    return this.conv3.run(this.norm3.run(h, ctx).relu(), ctx);
  }
}

/** A stage: its blocks. */
class Stage extends Module {
  constructor(readonly blocks: BlockList) {
    super();
  }

  forward(x: Tensor, ctx: Context): Tensor {
    return this.blocks.run(x, ctx);
  }
}

/** 7x7 convolution of stride 2, a border of zeros, and max-pooling in which the zeros compete. */
class Stem extends Module {
  readonly conv: StdConv2d;
  readonly pool: MaxPool2d;

  constructor(inChannels: number, outChannels: number, eps: number) {
    super();
    this.conv = stdConv(inChannels, outChannels, { kernelSize: 7, stride: 2, padding: 3, eps });
    this.pool = new MaxPool2d({ kernelSize: 3, stride: 2 });
    site(this, { role: 'stem', in: inChannels, out: outChannels, layout: 'map', stride: 4 });
  }

  forward(x: Tensor, ctx: Context): Tensor {
    return this.pool.run(aten.constantPadNd(this.conv.run(x, ctx), [1, 1, 1, 1]), ctx);
  }
}

const options = z.strictObject({
  /** Blocks per stage. */
  layers: z.array(positive).min(1),
  /** Factor of all widths: 3 in `101x3`. */
  widthFactor: positive.default(1),
  /**
   * Channels that leave each stage, before the factor. Default 256, 512, 1024, ... These and the stem's are rounded to 8
   * as in timm, unless `midChannels` are given.
   */
  channels: z.array(positive).min(1).optional(),
  /** Channels inside the blocks of each stage, before the factor. Default: a quarter of `channels`, rounded to 8. */
  midChannels: z.array(positive).min(1).optional(),
  /** Stride of the first block of each stage. Default 1, 2, 2, ... */
  strides: z.array(positive).min(1).optional(),
  /** Channels of the stem, before the factor. */
  stemChannels: positive.default(64),
  /** Groups of every GroupNorm. */
  normGroups: positive.default(32),
  /** Added to the variance of the weights. */
  weightEps: z.number().positive().default(1e-8),
  /** Which first blocks project the skip: those of all stages, or only where shapes differ. */
  projection: z.enum(['always', 'needed']).default('always'),
  ...backboneOptions,
  imgSize: imageSize.default(448),
  globalPool: z.enum(['avg', 'max', 'avgmax']).default('avg'),
  /** Dropout before the classifier. */
  dropRate: rate.default(0),
});

/** Options of a BiT ResNetV2, defaults filled in. */
export type ResNetV2Options = z.output<typeof options>;

/** ResNetV2 in BiT's form. */
export class ResNetV2 extends StagedBackbone {
  readonly name: string;
  readonly classifier = 'head.fc';
  readonly numFeatures: number;
  readonly featureLevels: readonly FeatureLevel[];
  readonly globalPool: ResNetV2Options['globalPool'];
  /** Blocks per stage. */
  readonly layers: readonly number[];

  /** The image batch. */
  readonly input: Identity;
  readonly stem: Stem;
  readonly stages: BlockList;
  readonly norm: GroupNorm;
  /** The map after the last norm and ReLU. */
  readonly features: Identity;
  readonly head: ClassifierHead;

  constructor(name: string, o: ResNetV2Options, config: Preprocessing) {
    super(config);
    this.name = name;
    this.globalPool = o.globalPool;
    this.layers = o.layers;
    const stemChannels = widened(o)(o.stemChannels);
    this.input = imageSite(o.inChans);
    this.stem = new Stem(o.inChans, stemChannels, o.weightEps);
    const { stages, levels, channels } = buildStages(o, stemChannels);
    this.stages = stages;
    this.featureLevels = levels;
    this.numFeatures = channels;
    this.norm = groupNorm(channels, o.normGroups);
    this.features = identitySite('features', channels, 'map');
    this.head = new ClassifierHead(channels, o.numClasses, { drop: o.dropRate });
    this.initWeights();
  }

  /** The feature levels are the maps before this norm and ReLU. */
  override forwardFeatures(x: Tensor, ctx: Context = new Context()): Tensor {
    const y = runChain([this.input, this.stem, ...this.stages], x, ctx);
    return this.features.run(this.norm.run(y, ctx).relu(), ctx);
  }

  forwardHead(features: Tensor, ctx: Context = new Context()): Tensor {
    return this.head.run(poolMap(features, this.globalPool), ctx);
  }

  protected override get tail(): readonly string[] {
    return ['norm', 'head'];
  }

  resetClassifier(numClasses: number): void {
    const { fc } = new ClassifierHead(this.numFeatures, numClasses);
    this.head.fc = this.like(fc);
    startClassifier(this.head);
  }

  /** From timm's names, where the classifier is a 1x1 convolution, Google's npz files, or their PyTorch code's names. */
  override convertStateDict(state: ReadonlyMap<string, Tensor>): Map<string, Tensor> {
    return applyKeyMap(bitKeyMap(state, this.layers), state).tensors;
  }

  /** Convolutions Kaiming-normal over fan-out; classifier N(0, 0.01), its bias 0. */
  private initWeights(): void {
    this.apply((module) => {
      if (module instanceof StdConv2d) init.kaimingNormal_(module.weight, { mode: 'fan_out', nonlinearity: 'relu' });
    });
    startClassifier(this.head);
  }
}

function startClassifier({ fc }: ClassifierHead): void {
  if (!(fc instanceof Linear)) return;
  init.normal_(fc.weight, 0, 0.01);
  if (fc.bias) init.zeros_(fc.bias);
}

/** Channels with the factor: rounded to 8 as in timm, unless those inside the blocks are given too. */
function widened({ widthFactor, midChannels }: ResNetV2Options): (channels: number) => number {
  return (channels) => (midChannels ? channels * widthFactor : makeDivisible(channels * widthFactor));
}

function buildStages(o: ResNetV2Options, stemChannels: number) {
  const outs = (o.channels ?? o.layers.map((_, i) => 256 * 2 ** i)).map(widened(o));
  const mids = o.midChannels?.map((n) => n * o.widthFactor) ?? outs.map((n) => makeDivisible(n / 4));
  const strides = o.strides ?? o.layers.map((_, i) => (i === 0 ? 1 : 2));
  requireSameLength('ResNetV2', { layers: o.layers, channels: outs, midChannels: mids, strides });
  const total = o.layers.reduce((sum, n) => sum + n, 0);
  const stages = new BlockList();
  const levels: FeatureLevel[] = [];
  let depth = 0;
  let inChannels = stemChannels;
  let reduction = 4;
  o.layers.forEach((count, stage) => {
    const outChannels = outs[stage] ?? 0;
    const entering = inChannels;
    const stageStride = strides[stage] ?? 1;
    const blocks = new BlockList();
    for (let j = 0; j < count; j++, depth++) {
      const stride = j === 0 ? stageStride : 1;
      const isNeeded = stride !== 1 || inChannels !== outChannels;
      blocks.push(
        new PreActBottleneck({
          inChannels,
          midChannels: mids[stage] ?? 0,
          outChannels,
          stride,
          hasProjection: j === 0 && (isNeeded || o.projection === 'always'),
          groups: o.normGroups,
          eps: o.weightEps,
          dropPath: dropPathRateAt(o.dropPathRate, depth, total),
          stage,
          depth,
        }),
      );
      inChannels = outChannels;
    }
    reduction *= stageStride;
    const ends = { in: entering, out: outChannels, layout: 'map', stage, stride: stageStride } as const;
    stages.push(site(new Stage(blocks), { role: 'stage', ...ends }));
    levels.push({ path: `stages.${stage}`, channels: outChannels, stride: reduction });
  });
  return { stages, levels, channels: inChannels };
}

/** Image sizes are those of timm's default weights: tuned at 448 or 480, the distilled 50x1 and the teacher 152x2 at 224. */
const variants = {
  resnetv2_50x1_bit: { layers: [3, 4, 6, 3], widthFactor: 1, imgSize: 224 },
  resnetv2_50x3_bit: { layers: [3, 4, 6, 3], widthFactor: 3 },
  resnetv2_101x1_bit: { layers: [3, 4, 23, 3], widthFactor: 1 },
  resnetv2_101x3_bit: { layers: [3, 4, 23, 3], widthFactor: 3 },
  resnetv2_152x2_bit: { layers: [3, 8, 36, 3], widthFactor: 2, imgSize: 224 },
  resnetv2_152x4_bit: { layers: [3, 8, 36, 3], widthFactor: 4, imgSize: 480 },
};

export const resnetv2: Family<typeof options> = {
  id: 'resnetv2',
  checkpoints: { source: 'google-research/big_transfer, timm', license: 'Apache-2.0' },
  paper: 'Kolesnikov et al., Big Transfer (BiT): General Visual Representation Learning, ECCV 2020, arXiv 1912.11370',
  options,
  variants,
  create: (name, o) => {
    // BiT was resized without a crop, but for the distilled one at 224.
    const cropPct = Math.min(...sizePair(o.imgSize)) >= 384 ? 1 : 0.875;
    const interpolation = cropPct === 1 ? 'bilinear' : 'bicubic';
    return new ResNetV2(name, o, preprocessing(o, { interpolation, cropPct, mean: HALF, std: HALF }));
  },
};
