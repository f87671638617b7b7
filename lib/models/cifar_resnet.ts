/**
 * ResNet for 32x32 images: He et al., CVPR 2016, arXiv 1512.03385, section 4.2, with shortcut A (no parameters). Names
 * and layout follow the checkpoints of akamaster/pytorch_resnet_cifar10 (commit d5489e8, BSD-2-Clause), without their
 * `module.` prefix.
 */
import { z } from 'zod';
import {
  type BatchNorm2d,
  Context,
  Conv2d,
  convNormAct,
  type Identity,
  init,
  Linear,
  Module,
  site,
  Span,
} from '../nn/index.js';
import { aten, type Tensor } from '../tensor/index.js';
import type { FeatureLevel, Preprocessing } from './backbone.js';
import {
  BasicBlock,
  batchNormSite,
  BlockList,
  classifierSite,
  convSite,
  dropPathRateAt,
  identitySite,
  imageSite,
  poolMap,
} from './blocks.js';
import { backboneOptions, type Family, imageSize, positive, preprocessing, rate } from './family.js';
import { StagedBackbone } from './staged_backbone.js';

/** Shortcut A: every second row and column, zero channels in front and behind. [B, C, H, W] -> [B, C', H/2, W/2]. */
class PaddedSubsample extends Module {
  constructor(
    private readonly stride: number,
    private readonly before: number,
    private readonly after: number,
  ) {
    super();
  }

  forward(x: Tensor): Tensor {
    const [, , height = 0, width = 0] = x.shape;
    const kept = x.slice(2, 0, height, this.stride).slice(3, 0, width, this.stride);
    return aten.constantPadNd(kept, [0, 0, 0, 0, this.before, this.after], 0);
  }
}

const options = z.strictObject({
  /** Convolutions and classifier: 6n + 2 for n blocks per stage. */
  depth: positive.refine(
    (depth) => depth >= 8 && (depth - 2) % 6 === 0,
    'a depth of 6n + 2 is expected: 8, 14, 20, 32, ...',
  ),
  /** Channels per stage; the first is also the stem's. */
  channels: z.array(positive).length(3).default([16, 32, 64]),
  ...backboneOptions,
  numClasses: z.int().nonnegative().default(10),
  imgSize: imageSize.default(32),
  bnEps: z.number().positive().default(1e-5),
  bnMomentum: rate.default(0.1),
});

/** Options of a CIFAR ResNet, defaults filled in. */
export type CifarResNetOptions = z.output<typeof options>;

/** ResNet-20, 32, ... for small images: a 3x3 stem, three stages of basic blocks, global mean, `linear`. */
export class CifarResNet extends StagedBackbone {
  readonly name: string;
  readonly classifier = 'linear';
  readonly numFeatures: number;
  readonly featureLevels: readonly FeatureLevel[];

  /** The image batch. */
  readonly input: Identity;
  readonly conv1: Conv2d;
  readonly bn1: BatchNorm2d;
  /** Image to the map that enters the first stage. */
  readonly stem: Span;
  readonly layer1: BlockList;
  readonly layer2: BlockList;
  readonly layer3: BlockList;
  /** The map that leaves the last stage. */
  readonly features: Identity;
  /** The pooled vector. */
  readonly pre_logits: Identity;
  linear: Linear | Identity;

  constructor(name: string, o: CifarResNetOptions, config: Preprocessing) {
    super(config);
    this.name = name;
    const [c1 = 0, c2 = 0, c3 = 0] = o.channels;
    this.numFeatures = c3;
    this.featureLevels = [
      { path: 'layer1', channels: c1, stride: 1 },
      { path: 'layer2', channels: c2, stride: 2 },
      { path: 'layer3', channels: c3, stride: 4 },
    ];
    this.input = imageSite(o.inChans);
    this.conv1 = convSite(o.inChans, c1, { kernelSize: 3, padding: 1 });
    this.bn1 = batchNormSite(c1, { eps: o.bnEps, momentum: o.bnMomentum });
    const span = new Span((x, ctx) => convNormAct(this.conv1, this.bn1, x, ctx));
    this.stem = site(span, { role: 'stem', in: o.inChans, out: c1, layout: 'map', stride: 1 });
    this.layer1 = stageOf(o, 0, c1, c1, 1);
    this.layer2 = stageOf(o, 1, c1, c2, 2);
    this.layer3 = stageOf(o, 2, c2, c3, 2);
    this.features = identitySite('features', c3, 'map');
    this.pre_logits = identitySite('pre_logits', c3, 'vector');
    this.linear = classifierSite(c3, o.numClasses);
    this.apply((module) => {
      if (module instanceof Conv2d || module instanceof Linear) init.kaimingNormal_(module.weight);
    });
  }

  get stages(): readonly BlockList[] {
    return [this.layer1, this.layer2, this.layer3];
  }

  forwardHead(features: Tensor, ctx: Context = new Context()): Tensor {
    return this.linear.run(this.pre_logits.run(poolMap(features, 'avg'), ctx), ctx);
  }

  resetClassifier(numClasses: number): void {
    this.linear = this.like(classifierSite(this.numFeatures, numClasses));
  }
}

function stageOf(o: CifarResNetOptions, stage: number, inChannels: number, planes: number, stride: number): BlockList {
  const count = (o.depth - 2) / 6;
  const blocks = new BlockList();
  for (let j = 0; j < count; j++) {
    const depth = stage * count + j;
    const extra = planes - inChannels;
    const changes = j === 0 && (stride !== 1 || extra !== 0);
    // The published code pads planes / 4 on both sides, which is half of what is missing when the width doubles.
    const before = Math.floor(extra / 2);
    blocks.push(
      new BasicBlock({
        inChannels: j === 0 ? inChannels : planes,
        planes,
        stride: j === 0 ? stride : 1,
        downsample: changes ? new PaddedSubsample(stride, before, extra - before) : null,
        stage,
        depth,
        norm: { eps: o.bnEps, momentum: o.bnMomentum },
        dropPath: dropPathRateAt(o.dropPathRate, depth, 3 * count),
      }),
    );
  }
  return site(blocks, { role: 'stage', in: inChannels, out: planes, layout: 'map', stage, stride });
}

export const cifarResnet: Family<typeof options> = {
  id: 'cifar_resnet',
  checkpoints: { source: 'akamaster/pytorch_resnet_cifar10', license: 'BSD-2-Clause' },
  paper: 'He et al., Deep Residual Learning for Image Recognition, CVPR 2016, arXiv 1512.03385, section 4.2',
  options,
  variants: Object.fromEntries([20, 32, 44, 56, 110].map((depth) => [`cifar_resnet${depth}`, { depth }])),
  create: (name, o) => new CifarResNet(name, o, preprocessing(o, { interpolation: 'bilinear', cropPct: 1 })),
};
