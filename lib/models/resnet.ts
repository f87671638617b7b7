/**
 * ResNet as timm defines it (`resnet.py`, release 1.0.29, Apache-2.0): basic and bottleneck blocks, deep stem, average
 * pooling on the skip, cardinality and base width. Key names are also torchvision's. He et al., CVPR 2016, arXiv
 * 1512.03385; variant D: He et al. 2019, arXiv 1812.01187; ResNeXt: Xie et al. 2017, arXiv 1611.05431; wide: Zagoruyko
 * and Komodakis 2016, arXiv 1605.07146.
 */
import { z } from 'zod';
import {
  AvgPool2d,
  type BatchNorm2d,
  Context,
  Conv2d,
  convNormAct,
  DropPath,
  Dropout,
  Identity,
  init,
  type Linear,
  MaxPool2d,
  type Module,
  ReLU,
  Sequential,
  site,
  Span,
} from '../nn/index.js';
import type { Tensor } from '../tensor/index.js';
import type { KeyMap } from '../checkpoint/index.js';
import type { FeatureLevel, Preprocessing } from './backbone.js';
import {
  BasicBlock,
  batchNormSite,
  BlockList,
  classifierSite,
  ConvNorm,
  convSite,
  dropPathRateAt,
  identitySite,
  imageSite,
  type NormOptions,
  poolMap,
  ResidualBlock,
  type ResidualBlockOptions,
} from './blocks.js';
import { backboneOptions, type Family, positive, preprocessing, rate, requireSameLength } from './family.js';
import { StagedBackbone } from './staged_backbone.js';

/** Options of a ResNet that are the same for both kinds of block. */
export interface BottleneckOptions extends ResidualBlockOptions {
  readonly cardinality: number;
  /** Width inside, per group, of a block with 64 planes. Default 64. */
  readonly baseWidth?: number;
  /** Width inside, instead of the one that follows from cardinality and base width. */
  readonly width?: number;
  /** Channels of the output per plane. Default 4. */
  readonly expansion?: number;
}

/**
 * 1x1, 3x3 with the stride, 1x1: u = ReLU(bn1(conv1 x)), h = ReLU(bn2(conv2 u)), y = ReLU(bn3(conv3 h) + skip(x)); the
 * inner width is floor(planes * baseWidth / 64) * cardinality, the output has expansion * planes channels.
 */
export class Bottleneck extends ResidualBlock {
  static readonly expansion = 4;
  readonly conv1: Conv2d;
  readonly bn1: BatchNorm2d;
  readonly conv2: Conv2d;
  readonly bn2: BatchNorm2d;
  readonly conv3: Conv2d;
  readonly bn3: BatchNorm2d;
  readonly downsample: Module | null;
  readonly drop_path: DropPath | null;
  readonly residual: Span;
  /** u -> ReLU(bn2(conv2 u)). */
  readonly spatial: Span;
  protected readonly outerSpans: readonly Span[];

  constructor(options: BottleneckOptions) {
    super();
    const {
      inChannels,
      planes,
      stride,
      cardinality,
      baseWidth = 64,
      expansion = Bottleneck.expansion,
      downsample,
      stage,
      depth,
      norm,
      dropPath = 0,
    } = options;
    const bias = options.convBias ?? false;
    const { width = Math.floor((planes * baseWidth) / 64) * cardinality } = options;
    const outChannels = planes * expansion;
    this.conv1 = convSite(inChannels, width, { kernelSize: 1, bias });
    this.bn1 = batchNormSite(width, norm);
    this.conv2 = convSite(width, width, { kernelSize: 3, stride, padding: 1, groups: cardinality, bias });
    this.bn2 = batchNormSite(width, norm);
    this.conv3 = convSite(width, outChannels, { kernelSize: 1, bias });
    this.bn3 = batchNormSite(outChannels, norm);
    this.downsample = downsample;
    this.drop_path = dropPath > 0 ? new DropPath(dropPath) : null;

    const convolution = { layout: 'map', kernel: 3, stride, padding: 1, activation: 'relu' } as const;
    this.spatial = site(new Span((u, ctx) => convNormAct(this.conv2, this.bn2, u, ctx)), {
      role: 'spatial',
      in: width,
      out: width,
      groups: cardinality,
      ...convolution,
    });
    this.residual = site(
      new Span((x, ctx) => convNormAct(this.conv3, this.bn3, this.trunk(x, ctx), ctx, { act: 'none' })),
      {
        role: 'residual',
        in: inChannels,
        out: outChannels,
        groups: 1,
        ...convolution,
      },
    );
    this.outerSpans = [this.residual];
    site(this, { role: 'block', in: inChannels, out: outChannels, layout: 'map', stride, stage, depth });
  }

  get lastConv(): Conv2d {
    return this.conv3;
  }

  get lastNorm(): BatchNorm2d {
    return this.bn3;
  }

  protected trunk(x: Tensor, ctx: Context): Tensor {
    return this.spatial.run(convNormAct(this.conv1, this.bn1, x, ctx), ctx);
  }
}

const options = z.strictObject({
  block: z.enum(['basic', 'bottleneck']),
  /** Blocks per stage. */
  layers: z.array(positive).min(1),
  /** Planes per stage. Default 64, 128, 256, ... */
  channels: z.array(positive).min(1).optional(),
  /** Stride of the first block of each stage. Default 1, 2, 2, ... */
  strides: z.array(positive).min(1).optional(),
  ...backboneOptions,
  /** '': one 7x7 convolution; deep: three 3x3 of w, w, 2w; deep_tiered: of 3w/4, w, 2w. */
  stemType: z.enum(['', 'deep', 'deep_tiered']).default(''),
  /** w of a deep stem. */
  stemWidth: positive.default(64),
  /** Channels of the plain stem. */
  stemChannels: positive.default(64),
  avgDown: z.boolean().default(false),
  cardinality: positive.default(1),
  baseWidth: positive.default(64),
  bnEps: z.number().positive().default(1e-5),
  bnMomentum: rate.default(0.1),
  globalPool: z.enum(['avg', 'max', 'avgmax']).default('avg'),
  /** Start the last norm of every block at zero, so that blocks start as the identity. */
  zeroInitLast: z.boolean().default(true),
  /** Give the convolutions of the blocks a bias, initially zero. */
  convBias: z.boolean().default(false),
  /** Dropout before the classifier. */
  dropRate: rate.default(0),
});

/** Options of a ResNet, defaults filled in. */
export type ResNetOptions = z.output<typeof options>;

/** ResNet. See the option schema for what can be chosen; stages are `layer1`, `layer2`, ... as in timm. */
export class ResNet extends StagedBackbone {
  readonly name: string;
  readonly classifier = 'fc';
  /** Names are timm's and torchvision's; MoCo-v3 files hold the network as `base_encoder`. */
  override readonly keyMap: KeyMap = [
    { kind: 'drop', match: /^(momentum_encoder|predictor)\./ },
    { kind: 'rename', from: 'base_encoder.{rest...}', to: '{rest...}' },
  ];
  readonly numFeatures: number;
  readonly featureLevels: readonly FeatureLevel[];
  readonly globalPool: ResNetOptions['globalPool'];
  /** The stages `layer1`, `layer2`, ... */
  readonly stages: readonly BlockList[];

  /** The image batch. */
  readonly input: Identity;
  readonly conv1: Conv2d | Sequential;
  readonly bn1: BatchNorm2d;
  readonly maxpool: MaxPool2d;
  /** Image to the map that enters the first stage: convolution, norm, ReLU, max-pooling. */
  readonly stem: Span;
  /** The map that leaves the last stage. */
  readonly features: Identity;
  /** The pooled vector. */
  readonly pre_logits: Identity;
  readonly drop: Dropout;
  /** Declared, not defined, so that it follows the stages in the order of properties. */
  declare fc: Linear | Identity;

  constructor(name: string, o: ResNetOptions, config: Preprocessing) {
    super(config);
    this.name = name;
    this.globalPool = o.globalPool;
    const norm: NormOptions = { eps: o.bnEps, momentum: o.bnMomentum };
    const stemOut = o.stemType === '' ? o.stemChannels : 2 * o.stemWidth;
    this.input = imageSite(o.inChans);
    this.conv1 = stemConv(o, norm);
    this.bn1 = batchNormSite(stemOut, norm);
    this.maxpool = new MaxPool2d({ kernelSize: 3, stride: 2, padding: 1 });
    this.stem = site(new Span((x, ctx) => this.maxpool.run(convNormAct(this.conv1, this.bn1, x, ctx), ctx)), {
      role: 'stem',
      in: o.inChans,
      out: stemOut,
      layout: 'map',
      stride: 4,
    });
    const { stages, levels, width } = buildStages(o, stemOut, norm);
    this.stages = stages;
    stages.forEach((stage, i) => Object.assign(this, { [`layer${i + 1}`]: stage }));
    this.featureLevels = levels;
    this.numFeatures = width;
    this.features = identitySite('features', width, 'map');
    this.pre_logits = identitySite('pre_logits', width, 'vector');
    this.drop = new Dropout(o.dropRate);
    this.fc = classifierSite(width, o.numClasses);
    this.initWeights(o.zeroInitLast);
  }

  forwardHead(features: Tensor, ctx: Context = new Context()): Tensor {
    const pooled = this.pre_logits.run(poolMap(features, this.globalPool), ctx);
    return this.fc.run(this.drop.run(pooled, ctx), ctx);
  }

  resetClassifier(numClasses: number): void {
    this.fc = this.like(classifierSite(this.numFeatures, numClasses));
  }

  /** Convolutions Kaiming-normal over fan-out with ReLU's gain; norms 1 and 0, the last of each block 0 if asked. */
  private initWeights(zeroInitLast: boolean): void {
    this.apply((module) => {
      if (module instanceof Conv2d) {
        init.kaimingNormal_(module.weight, { mode: 'fan_out', nonlinearity: 'relu' });
        if (module.bias) init.zeros_(module.bias);
      } else if (module instanceof ResidualBlock && zeroInitLast) {
        if (module.lastNorm.weight) init.zeros_(module.lastNorm.weight);
      }
    });
  }
}

function stemConv(o: ResNetOptions, norm: NormOptions): Conv2d | Sequential {
  if (o.stemType === '') return convSite(o.inChans, o.stemChannels, { kernelSize: 7, stride: 2, padding: 3 });
  const w = o.stemWidth;
  const [first, second] = o.stemType === 'deep' ? [w, w] : [3 * Math.floor(w / 4), w];
  return new Sequential(
    convSite(o.inChans, first, { kernelSize: 3, stride: 2, padding: 1 }),
    batchNormSite(first, norm),
    new ReLU(),
    convSite(first, second, { kernelSize: 3, padding: 1 }),
    batchNormSite(second, norm),
    new ReLU(),
    convSite(second, 2 * w, { kernelSize: 3, padding: 1 }),
  );
}

/** The module on the skip of a stage's first block, or null when input and output already agree. */
function skip(
  inChannels: number,
  outChannels: number,
  stride: number,
  avgDown: boolean,
  norm: NormOptions,
): Module | null {
  if (stride === 1 && inChannels === outChannels) return null;
  const bn = batchNormSite(outChannels, norm);
  if (!avgDown) return new ConvNorm([convSite(inChannels, outChannels, { kernelSize: 1, stride }), bn]);
  const pool =
    stride === 1 ? new Identity() : new AvgPool2d({ kernelSize: 2, stride: 2, ceilMode: true, countIncludePad: false });
  return new ConvNorm([pool, convSite(inChannels, outChannels, { kernelSize: 1 }), bn]);
}

function buildStages(o: ResNetOptions, stemOut: number, norm: NormOptions) {
  const channels = o.channels ?? o.layers.map((_, i) => 64 * 2 ** i);
  const strides = o.strides ?? o.layers.map((_, i) => (i === 0 ? 1 : 2));
  requireSameLength('ResNet', { layers: o.layers, channels, strides });
  const expansion = o.block === 'basic' ? BasicBlock.expansion : Bottleneck.expansion;
  const total = o.layers.reduce((sum, n) => sum + n, 0);
  const stages: BlockList[] = [];
  const levels: FeatureLevel[] = [];
  let depth = 0;
  let inChannels = stemOut;
  let reduction = 4;
  o.layers.forEach((count, stage) => {
    const planes = channels[stage] ?? 0;
    const stageIn = inChannels;
    const blocks = new BlockList();
    for (let j = 0; j < count; j++, depth++) {
      const stride = j === 0 ? (strides[stage] ?? 1) : 1;
      const downsample = j === 0 ? skip(inChannels, planes * expansion, stride, o.avgDown, norm) : null;
      const shared = { inChannels, planes, stride, downsample, stage, depth, norm, convBias: o.convBias };
      const dropPath = dropPathRateAt(o.dropPathRate, depth, total);
      blocks.push(
        o.block === 'basic'
          ? new BasicBlock({ ...shared, dropPath })
          : new Bottleneck({ ...shared, dropPath, cardinality: o.cardinality, baseWidth: o.baseWidth }),
      );
      inChannels = planes * expansion;
    }
    const stride = strides[stage] ?? 1;
    reduction *= stride;
    stages.push(site(blocks, { role: 'stage', in: stageIn, out: inChannels, layout: 'map', stage, stride }));
    levels.push({ path: `layer${stage + 1}`, channels: inChannels, stride: reduction });
  });
  return { stages, levels, width: inChannels };
}

interface Variant {
  readonly block: ResNetOptions['block'];
  readonly layers: number[];
  readonly options?: Partial<ResNetOptions>;
}

const variants: Readonly<Record<string, Variant>> = {
  resnet18: { block: 'basic', layers: [2, 2, 2, 2] },
  resnet26: { block: 'bottleneck', layers: [2, 2, 2, 2] },
  resnet34: { block: 'basic', layers: [3, 4, 6, 3] },
  resnet50: { block: 'bottleneck', layers: [3, 4, 6, 3] },
  resnet50d: { block: 'bottleneck', layers: [3, 4, 6, 3], options: { stemType: 'deep', stemWidth: 32, avgDown: true } },
  resnet101: { block: 'bottleneck', layers: [3, 4, 23, 3] },
  resnet152: { block: 'bottleneck', layers: [3, 8, 36, 3] },
  resnext50_32x4d: { block: 'bottleneck', layers: [3, 4, 6, 3], options: { cardinality: 32, baseWidth: 4 } },
  wide_resnet50_2: { block: 'bottleneck', layers: [3, 4, 6, 3], options: { baseWidth: 128 } },
};

export const resnet: Family<typeof options> = {
  id: 'resnet',
  checkpoints: { source: 'timm (huggingface/pytorch-image-models)', license: 'Apache-2.0; weights carry their own' },
  paper: 'He et al., Deep Residual Learning for Image Recognition, CVPR 2016, arXiv 1512.03385',
  options,
  variants: Object.fromEntries(
    Object.entries(variants).map(([name, v]) => [name, { block: v.block, layers: v.layers, ...v.options }]),
  ),
  create: (name, o) => new ResNet(name, o, preprocessing(o, { interpolation: 'bilinear', cropPct: 0.875 })),
};
