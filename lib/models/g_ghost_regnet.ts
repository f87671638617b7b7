/**
 * G-Ghost-RegNet as released (huawei-noah/Efficient-AI-Backbones, commit f90e129, `g_ghost_regnet.py`, Apache-2.0):
 * RegNet-X whose longer stages make part of their channels cheaply from the first block's output. Han et al., IJCV 2022,
 * arXiv 2201.03297, section 4; RegNet: Radosavovic et al. 2020, arXiv 2003.13678.
 */
import { z } from 'zod';
import {
  AdaptiveAvgPool2d,
  type BatchNorm2d,
  Context,
  Conv2d,
  convNormAct,
  Dropout,
  type Identity,
  init,
  type Linear,
  Module,
  ReLU,
  runBlock,
  Sequential,
  site,
  Span,
} from '../nn/index.js';
import { aten, type Tensor } from '../tensor/index.js';
import type { FeatureLevel, Preprocessing } from './backbone.js';
import {
  batchNormSite,
  BlockList,
  classifierSite,
  ConvNorm,
  convSite,
  dropPathRateAt,
  identitySite,
  imageSite,
  poolMap,
} from './blocks.js';
import { backboneOptions, type Family, positive, preprocessing, rate, requireSameLength } from './family.js';
import { Bottleneck } from './resnet.js';
import { StagedBackbone } from './staged_backbone.js';

/** Where a block stands in its network, and its stochastic depth. */
interface Place {
  readonly stage: number;
  readonly depth: number;
  readonly dropPath: number;
}

/** RegNet-X's block: a bottleneck of constant width whose 3x3 convolution has groups of (at most) `groupWidth` channels. */
function regnetBlock(inChannels: number, planes: number, stride: number, groupWidth: number, place: Place): Bottleneck {
  const projection = (): ConvNorm =>
    new ConvNorm([convSite(inChannels, planes, { kernelSize: 1, stride }), batchNormSite(planes)]);
  return new Bottleneck({
    inChannels,
    planes,
    stride,
    width: planes,
    expansion: 1,
    cardinality: Math.floor(planes / Math.min(planes, groupWidth)),
    downsample: stride !== 1 || inChannels !== planes ? projection() : null,
    ...place,
  });
}

/** What a `GGhostStage` is built from. */
export interface GGhostStageOptions {
  readonly inChannels: number;
  readonly planes: number;
  readonly groupWidth: number;
  /** Number of blocks, at least 3. */
  readonly blocks: number;
  readonly stride: number;
  /** Share of the channels that is made cheaply, before rounding. Default 0.5. */
  readonly cheapRatio?: number;
  readonly stage?: number;
  /** Depth of the first block. */
  readonly depth?: number;
  /** Stochastic depth of each block. */
  readonly dropPaths?: readonly number[];
}

/**
 * A stage whose inner blocks work on the first r channels of the first block's output; the other channels come from a
 * 1x1 convolution of it, corrected by the means of all blocks (`merge`); the last block joins both. [B, in, H, W] to
 * [B, planes, H', W'].
 */
export class GGhostStage extends Module {
  /** Channels of the inner blocks. */
  readonly rawPlanes: number;
  readonly cheapPlanes: number;
  readonly base: Bottleneck;
  readonly layers: BlockList;
  readonly end: Bottleneck;
  /** Means of the blocks to a correction of the cheap channels. */
  readonly merge: Sequential;
  readonly cheap: ConvNorm;

  constructor(o: GGhostStageOptions) {
    super();
    const { inChannels, planes, groupWidth, blocks, stride, cheapRatio = 0.5, stage = 0, depth = 0 } = o;
    const innerWidth = Math.floor(0.75 * groupWidth);
    const raw = innerWidth > 0 ? Math.floor((planes * (1 - cheapRatio)) / innerWidth) * innerWidth : 0;
    if (blocks < 3) throw new RangeError(`a G-Ghost stage has at least 3 blocks, given ${blocks}`);
    if (raw < 1 || raw >= planes) {
      throw new RangeError(
        `a G-Ghost stage of ${planes} channels with group width ${groupWidth} and cheap ratio ${cheapRatio} keeps ${raw} channels for its inner blocks; some, but not all, are needed`,
      );
    }
    const cheap = planes - raw;
    this.rawPlanes = raw;
    this.cheapPlanes = cheap;
    const place = (i: number): Place => ({ stage, depth: depth + i, dropPath: o.dropPaths?.[i] ?? 0 });
    const inner = Array.from({ length: blocks - 2 }, (_, i) => regnetBlock(raw, raw, 1, innerWidth, place(i + 1)));
    this.base = regnetBlock(inChannels, planes, stride, groupWidth, place(0));
    this.layers = new BlockList(...inner);
    this.end = regnetBlock(planes, planes, 1, groupWidth, place(blocks - 1));
    this.merge = new Sequential(
      new AdaptiveAvgPool2d(1),
      convSite(planes + raw * (blocks - 2), cheap, { kernelSize: 1 }),
      batchNormSite(cheap),
      new ReLU(),
      convSite(cheap, cheap, { kernelSize: 1 }),
      batchNormSite(cheap),
    );
    this.cheap = new ConvNorm([convSite(cheap, cheap, { kernelSize: 1 }), batchNormSite(cheap)]);
    site(this, { role: 'stage', in: inChannels, out: planes, layout: 'map', stage, stride });
  }

  forward(x: Tensor, ctx: Context): Tensor {
    const first = runBlock(this.base, x, ctx);
    // The mean of the joined maps is their joined means: nothing of full size is joined for it.
    const means = [first.mean([2, 3], true)];
    let inner = first.narrow(1, 0, this.rawPlanes);
    for (const block of this.layers) {
      inner = runBlock(block, inner, ctx);
      means.push(inner.mean([2, 3], true));
    }
    const correction = this.merge.run(aten.cat(means, 1), ctx);
    const cheap = this.cheap
      .run(first.narrow(1, this.rawPlanes, this.cheapPlanes), ctx)
      .add(correction)
      .relu();
    return runBlock(this.end, aten.cat([inner, cheap], 1), ctx);
  }
}

const options = z.strictObject({
  /** Blocks per stage. */
  layers: z.array(positive).length(4),
  /** Channels per stage. */
  widths: z.array(positive).length(4),
  /** Channels in each group of the 3x3 convolutions. */
  groupWidth: positive,
  /** Share of a stage's channels that is made cheaply. */
  cheapRatio: z.number().gt(0).lt(1).default(0.5),
  stemChannels: positive.default(32),
  ...backboneOptions,
  /** Dropout before the classifier. */
  dropRate: rate.default(0.2),
});

/** Options of a G-Ghost-RegNet, defaults filled in. */
export type GGhostRegNetOptions = z.output<typeof options>;

/**
 * G-Ghost-RegNet: a strided stem without pooling and four strided stages. The first is always plain, the third always a
 * G-Ghost stage, the second and fourth are where they have more than two blocks.
 */
export class GGhostRegNet extends StagedBackbone {
  readonly name: string;
  readonly classifier = 'fc';
  readonly numFeatures: number;
  readonly featureLevels: readonly FeatureLevel[];

  /** The image batch. */
  readonly input: Identity;
  readonly conv1: Conv2d;
  readonly bn1: BatchNorm2d;
  /** Image to the map that enters the first stage. */
  readonly stem: Span;
  readonly layer1: Module;
  readonly layer2: Module;
  readonly layer3: Module;
  readonly layer4: Module;
  /** The map before the pool. */
  readonly features: Identity;
  /** The pooled vector. */
  readonly pre_logits: Identity;
  readonly drop: Dropout;
  fc: Linear | Identity;

  constructor(name: string, o: GGhostRegNetOptions, config: Preprocessing) {
    super(config);
    requireSameLength(name, { layers: o.layers, widths: o.widths });
    this.name = name;
    this.input = imageSite(o.inChans);
    this.conv1 = convSite(o.inChans, o.stemChannels, { kernelSize: 3, stride: 2, padding: 1 });
    this.bn1 = batchNormSite(o.stemChannels);
    this.stem = site(new Span((x, ctx) => convNormAct(this.conv1, this.bn1, x, ctx)), {
      role: 'stem',
      in: o.inChans,
      out: o.stemChannels,
      layout: 'map',
      stride: 2,
    });
    [this.layer1, this.layer2, this.layer3, this.layer4] = [0, 1, 2, 3].map((stage) => buildStage(o, stage)) as [
      Module,
      Module,
      Module,
      Module,
    ];
    this.featureLevels = o.widths.map((channels, i) => ({ path: `layer${i + 1}`, channels, stride: 4 * 2 ** i }));
    this.numFeatures = o.widths[3] ?? 0;
    this.features = identitySite('features', this.numFeatures, 'map');
    this.pre_logits = identitySite('pre_logits', this.numFeatures, 'vector');
    this.drop = new Dropout(o.dropRate);
    this.fc = classifierSite(this.numFeatures, o.numClasses);
    this.apply((module) => {
      if (module instanceof Conv2d) init.kaimingNormal_(module.weight, { mode: 'fan_out', nonlinearity: 'relu' });
    });
  }

  get stages(): readonly Module[] {
    return [this.layer1, this.layer2, this.layer3, this.layer4];
  }

  forwardHead(features: Tensor, ctx: Context = new Context()): Tensor {
    const pooled = this.pre_logits.run(poolMap(features, 'avg'), ctx);
    return this.fc.run(this.drop.run(pooled, ctx), ctx);
  }

  resetClassifier(numClasses: number): void {
    this.fc = this.like(classifierSite(this.numFeatures, numClasses));
  }
}

function buildStage(o: GGhostRegNetOptions, stage: number): Module {
  const total = o.layers.reduce((sum, n) => sum + n, 0);
  const depth = o.layers.slice(0, stage).reduce((sum, n) => sum + n, 0);
  const blocks = o.layers[stage] ?? 0;
  const planes = o.widths[stage] ?? 0;
  const inChannels = stage === 0 ? o.stemChannels : (o.widths[stage - 1] ?? 0);
  const dropPaths = Array.from({ length: blocks }, (_, i) => dropPathRateAt(o.dropPathRate, depth + i, total));
  const { groupWidth, cheapRatio } = o;
  if (stage === 2 || (stage !== 0 && blocks > 2)) {
    return new GGhostStage({ inChannels, planes, groupWidth, cheapRatio, blocks, stride: 2, stage, depth, dropPaths });
  }
  const list = dropPaths.map((dropPath, i) => {
    const first = i === 0;
    return regnetBlock(first ? inChannels : planes, planes, first ? 2 : 1, groupWidth, {
      stage,
      depth: depth + i,
      dropPath,
    });
  });
  return site(new BlockList(...list), { role: 'stage', in: inChannels, out: planes, layout: 'map', stage, stride: 2 });
}

/** Megaflops by name: blocks, channels, group width. */
const SIZES: Readonly<Record<string, readonly [layers: number[], widths: number[], groupWidth: number]>> = {
  '002': [[1, 1, 4, 7], [24, 56, 152, 368], 8],
  '004': [[1, 2, 7, 12], [32, 64, 160, 384], 16],
  '006': [[1, 3, 5, 7], [48, 96, 240, 528], 24],
  '008': [[1, 3, 7, 5], [64, 128, 288, 672], 16],
  '016': [[2, 4, 10, 2], [72, 168, 408, 912], 24],
  '032': [[2, 6, 15, 2], [96, 192, 432, 1008], 48],
  '040': [[2, 5, 14, 2], [80, 240, 560, 1360], 40],
  '064': [[2, 4, 10, 1], [168, 392, 784, 1624], 56],
  '080': [[2, 5, 15, 1], [80, 240, 720, 1920], 120],
  '120': [[2, 5, 11, 1], [224, 448, 896, 2240], 112],
  '160': [[2, 6, 13, 1], [256, 512, 896, 2048], 128],
  '320': [[2, 7, 13, 1], [336, 672, 1344, 2520], 168],
};

export const gGhostRegnet: Family<typeof options> = {
  id: 'g_ghost_regnet',
  checkpoints: { source: 'huawei-noah/Efficient-AI-Backbones', license: 'Apache-2.0' },
  paper: 'Han et al., GhostNets on Heterogeneous Devices via Cheap Operations, IJCV 2022, arXiv 2201.03297',
  options,
  variants: Object.fromEntries(
    Object.entries(SIZES).map(([size, [layers, widths, groupWidth]]) => [
      `g_ghost_regnetx_${size}`,
      { layers, widths, groupWidth },
    ]),
  ),
  create: (name, o) => new GGhostRegNet(name, o, preprocessing(o, { interpolation: 'bilinear', cropPct: 0.875 })),
};
