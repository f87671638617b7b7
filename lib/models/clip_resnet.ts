/**
 * CLIP's residual network, which OpenAI calls ModifiedResNet: a stem of three convolutions, average pools instead of
 * strides, and attention as the last pool. Radford et al., ICML 2021, arXiv 2103.00020; openai/CLIP, commit d05afc4. Names
 * are OpenAI's.
 */
import { z } from 'zod';
import { applyKeyMap, type KeyMap } from '../checkpoint/index.js';
import type { Conv2d } from '../nn/index.js';
import {
  AvgPool2d,
  type BatchNorm2d,
  Context,
  convNormAct,
  DropPath,
  Dropout,
  type Identity,
  init,
  type Linear,
  type Module,
  site,
  Span,
} from '../nn/index.js';
import { noGrad, type Tensor } from '../tensor/index.js';
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
  ResidualBlock,
  type ResidualBlockOptions,
} from './blocks.js';
import { AttentionPool2d, type Grid } from './clip_attention_pool.js';
import { visualTower } from './clip_names.js';
import { CLIP_COLORS, CLIP_PAPER } from './clip_vit.js';
import { backboneOptions, type Family, positive, preprocessing, rate, sizePair } from './family.js';
import { StagedBackbone } from './staged_backbone.js';

/** Pool (where the stride is above 1), 1x1 convolution, norm: the skip of a block that changes the shape. */
class PooledSkip extends ConvNorm {
  readonly #pool: AvgPool2d | null;

  constructor(inChannels: number, outChannels: number, stride: number, bias: boolean) {
    super([convSite(inChannels, outChannels, { kernelSize: 1, bias }), batchNormSite(outChannels)]);
    this.#pool = stride > 1 ? new AvgPool2d({ kernelSize: stride }) : null;
  }

  override forward(x: Tensor, ctx: Context): Tensor {
    return super.forward(this.#pool ? this.#pool.run(x, ctx) : x, ctx);
  }
}

/** Sizes of a bottleneck; its output has 4 * planes channels. */
export interface ClipBottleneckOptions extends Omit<ResidualBlockOptions, 'downsample' | 'norm'> {
  /** Whether the skip's convolution has a bias. Default false. */
  readonly downsampleBias?: boolean;
}

/**
 * u = ReLU(bn1(conv1 x)), h = ReLU(bn2(conv2 u)), y = ReLU(bn3(conv3(pool h)) + skip(x)): every convolution has stride 1,
 * and the average pool before the last one does the shrinking. [B, C, H, W] to [B, 4 planes, H / stride, W / stride].
 */
export class ClipBottleneck extends ResidualBlock {
  static readonly expansion = 4;
  readonly conv1: Conv2d;
  readonly bn1: BatchNorm2d;
  readonly conv2: Conv2d;
  readonly bn2: BatchNorm2d;
  readonly avgpool: AvgPool2d | null;
  readonly conv3: Conv2d;
  readonly bn3: BatchNorm2d;
  readonly downsample: Module | null;
  readonly drop_path: DropPath | null;
  readonly residual: Span;
  /** u -> ReLU(bn2(conv2 u)), before the pool. */
  readonly spatial: Span;
  protected readonly outerSpans: readonly Span[];

  constructor(options: ClipBottleneckOptions) {
    super();
    const { inChannels, planes, stride, stage, depth, dropPath = 0, convBias: bias = false } = options;
    const out = planes * ClipBottleneck.expansion;
    this.conv1 = convSite(inChannels, planes, { kernelSize: 1, bias });
    this.bn1 = batchNormSite(planes);
    this.conv2 = convSite(planes, planes, { kernelSize: 3, padding: 1, bias });
    this.bn2 = batchNormSite(planes);
    this.avgpool = stride > 1 ? new AvgPool2d({ kernelSize: stride }) : null;
    this.conv3 = convSite(planes, out, { kernelSize: 1, bias });
    this.bn3 = batchNormSite(out);
    this.downsample =
      stride > 1 || inChannels !== out
        ? new PooledSkip(inChannels, out, stride, options.downsampleBias ?? false)
        : null;
    this.drop_path = dropPath > 0 ? new DropPath(dropPath) : null;

    const convolution = { layout: 'map', kernel: 3, padding: 1, groups: 1, activation: 'relu' } as const;
    this.spatial = site(new Span((u, ctx) => convNormAct(this.conv2, this.bn2, u, ctx)), {
      role: 'spatial',
      in: planes,
      out: planes,
      stride: 1,
      ...convolution,
    });
    this.residual = site(
      new Span((x, ctx) => convNormAct(this.conv3, this.bn3, this.trunk(x, ctx), ctx, { act: 'none' })),
      { role: 'residual', in: inChannels, out, stride, ...convolution },
    );
    this.outerSpans = [this.residual];
    site(this, { role: 'block', in: inChannels, out, layout: 'map', stride, stage, depth });
  }

  get lastConv(): Conv2d {
    return this.conv3;
  }

  get lastNorm(): BatchNorm2d {
    return this.bn3;
  }

  protected trunk(x: Tensor, ctx: Context): Tensor {
    const h = this.spatial.run(convNormAct(this.conv1, this.bn1, x, ctx), ctx);
    return this.avgpool ? this.avgpool.run(h, ctx) : h;
  }
}

const options = z.strictObject({
  /** Blocks per stage. */
  layers: z.array(positive).min(1),
  /** Channels that enter the first stage; stage i (from 0) has width * 2^i planes. */
  width: positive.default(64),
  /** Width of the embedding. */
  outputDim: positive,
  /** Heads of the attention pool. Default: channels of the last map / 64. */
  heads: positive.optional(),
  ...backboneOptions,
  numClasses: z.int().nonnegative().default(0),
  /** Accept maps of any size, resampling the attention pool's positions in every forward pass. */
  dynamicImgSize: z.boolean().default(false),
  /** Give the convolutions of skips a bias, as Conv-Adapter's version of this network has. */
  downsampleBias: z.boolean().default(false),
  /** Give the convolutions of the blocks a bias. */
  convBias: z.boolean().default(false),
  /** Dropout before the classifier. */
  dropRate: rate.default(0),
});

/** Options of CLIP's residual network, defaults filled in. */
export type ClipResNetOptions = z.output<typeof options>;

/** timm's names (`resnet50_clip`) to ours, which are OpenAI's, for a network of `stages` stages. Invertible. */
export function timmClipResnetNames(stages: number): KeyMap {
  return [
    { kind: 'rename', from: 'stem.conv{k}.conv.{leaf}', to: 'conv{k}.{leaf}' },
    { kind: 'rename', from: 'stem.conv{k}.bn.{leaf}', to: 'bn{k}.{leaf}' },
    ...Array.from({ length: stages }, (_, i) =>
      Object.entries({ conv1_1x1: 1, conv2_kxk: 2, conv3_1x1: 3 })
        .flatMap(([theirs, k]) => [
          [`${theirs}.conv.{leaf}`, `conv${k}.{leaf}`],
          [`${theirs}.bn.{leaf}`, `bn${k}.{leaf}`],
        ])
        .concat([
          ['shortcut.conv.conv.{leaf}', 'downsample.0.{leaf}'],
          ['shortcut.conv.bn.{leaf}', 'downsample.1.{leaf}'],
        ])
        .map(([from, to]) => ({
          kind: 'rename' as const,
          from: `stages.${i}.{j}.${from}`,
          to: `layer${i + 1}.{j}.${to}`,
        })),
    ).flat(),
    { kind: 'rename', from: 'head.pos_embed', to: 'attnpool.positional_embedding' },
    { kind: 'rename', from: 'head.proj.{leaf}', to: 'attnpool.c_proj.{leaf}' },
    ...['q', 'k', 'v'].map(
      (part) => ({ kind: 'rename', from: `head.${part}.{leaf}`, to: `attnpool.${part}_proj.{leaf}` }) as const,
    ),
  ];
}

type MakePool = (grid: Grid, channels: number, o: ClipResNetOptions) => AttentionPool2d;

const clipPool: MakePool = (grid, channels, o) =>
  new AttentionPool2d(grid, channels, o.heads ?? Math.floor(channels / 64), o.outputDim, o.dynamicImgSize);

/** CLIP's residual network; without classes it gives the embedding. Stages are `layer1`, `layer2`, ... */
export class ClipResNet extends StagedBackbone {
  readonly name: string;
  readonly classifier = 'head';
  readonly numFeatures: number;
  readonly featureLevels: readonly FeatureLevel[];
  /** The stages `layer1`, `layer2`, ... */
  readonly stages: readonly BlockList[];

  /** The image batch. */
  readonly input: Identity;
  readonly conv1: Conv2d;
  readonly bn1: BatchNorm2d;
  readonly conv2: Conv2d;
  readonly bn2: BatchNorm2d;
  readonly conv3: Conv2d;
  readonly bn3: BatchNorm2d;
  readonly avgpool: AvgPool2d;
  /** Image to the map that enters the first stage. */
  readonly stem: Span;
  /** The map that leaves the last stage. */
  readonly features: Identity;
  // Declared, not defined, so that they follow the stages in the order of properties.
  declare readonly attnpool: AttentionPool2d;
  /** The embedding. */
  declare readonly pre_logits: Identity;
  declare readonly drop: Dropout;
  declare head: Linear | Identity;

  /** @param makePool the attention pool over the last map; default: CLIP's */
  constructor(name: string, o: ClipResNetOptions, config: Preprocessing, makePool: MakePool = clipPool) {
    super(config);
    this.name = name;
    const half = Math.floor(o.width / 2);
    this.input = imageSite(o.inChans);
    this.conv1 = convSite(o.inChans, half, { kernelSize: 3, stride: 2, padding: 1 });
    this.bn1 = batchNormSite(half);
    this.conv2 = convSite(half, half, { kernelSize: 3, padding: 1 });
    this.bn2 = batchNormSite(half);
    this.conv3 = convSite(half, o.width, { kernelSize: 3, padding: 1 });
    this.bn3 = batchNormSite(o.width);
    this.avgpool = new AvgPool2d({ kernelSize: 2 });
    this.stem = site(new Span((x, ctx) => this.runStem(x, ctx)), {
      role: 'stem',
      in: o.inChans,
      out: o.width,
      layout: 'map',
      stride: 4,
    });
    const { stages, levels, channels } = buildStages(o);
    this.stages = stages;
    this.featureLevels = levels;
    this.features = identitySite('features', channels, 'map');
    stages.forEach((stage, i) => Object.assign(this, { [`layer${i + 1}`]: stage }));
    const stride = levels.at(-1)?.stride ?? 32;
    const [rows, columns] = sizePair(o.imgSize).map((side) => Math.floor(side / stride)) as [number, number];
    this.attnpool = makePool([rows, columns], channels, o);
    this.numFeatures = o.outputDim;
    this.pre_logits = identitySite('pre_logits', o.outputDim, 'vector');
    this.drop = new Dropout(o.dropRate);
    this.head = classifierSite(o.outputDim, o.numClasses);
    this.initWeights();
  }

  private runStem(x: Tensor, ctx: Context): Tensor {
    const first = convNormAct(this.conv1, this.bn1, x, ctx);
    const second = convNormAct(this.conv2, this.bn2, first, ctx);
    return this.avgpool.run(convNormAct(this.conv3, this.bn3, second, ctx), ctx);
  }

  forwardHead(features: Tensor, ctx: Context = new Context()): Tensor {
    const pooled = this.pre_logits.run(this.attnpool.run(features, ctx), ctx);
    return this.head.run(this.drop.run(pooled, ctx), ctx);
  }

  protected override get tail(): readonly string[] {
    return ['attnpool', 'head'];
  }

  resetClassifier(numClasses: number): void {
    this.head = this.like(classifierSite(this.numFeatures, numClasses));
  }

  /**
   * From OpenAI's archive (whole, or the tower alone) or timm's names; the pool's positions are resampled to this
   * model's image size.
   */
  override convertStateDict(state: ReadonlyMap<string, Tensor>): Map<string, Tensor> {
    const out = state.has('stem.conv1.conv.weight')
      ? applyKeyMap(timmClipResnetNames(this.stages.length), state).tensors
      : visualTower(state, 'resnet');
    const positions = out.get('attnpool.positional_embedding');
    if (positions && !this.isTrunk) {
      out.set(
        'attnpool.positional_embedding',
        noGrad(() => this.attnpool.fitPositions(positions)),
      );
    }
    return out;
  }

  /** Last norms of the blocks 0; the pool has started itself, and all else has PyTorch's default. */
  private initWeights(): void {
    this.apply((module) => {
      if (module instanceof ClipBottleneck && module.bn3.weight) init.zeros_(module.bn3.weight);
    });
  }
}

function buildStages(o: ClipResNetOptions) {
  const total = o.layers.reduce((sum, n) => sum + n, 0);
  const stages: BlockList[] = [];
  const levels: FeatureLevel[] = [];
  let depth = 0;
  let inChannels = o.width;
  o.layers.forEach((count, stage) => {
    const planes = o.width * 2 ** stage;
    const stride = stage === 0 ? 1 : 2;
    const entering = inChannels;
    const blocks = new BlockList();
    for (let j = 0; j < count; j++, depth++) {
      const { convBias, downsampleBias } = o;
      const dropPath = dropPathRateAt(o.dropPathRate, depth, total);
      const shape = { inChannels, planes, stride: j === 0 ? stride : 1, stage, depth };
      blocks.push(new ClipBottleneck({ ...shape, dropPath, convBias, downsampleBias }));
      inChannels = planes * ClipBottleneck.expansion;
    }
    stages.push(site(blocks, { role: 'stage', in: entering, out: inChannels, layout: 'map', stage, stride }));
    levels.push({ path: `layer${stage + 1}`, channels: inChannels, stride: 4 * 2 ** stage });
  });
  return { stages, levels, channels: inChannels };
}

const variants = {
  resnet50_clip: { layers: [3, 4, 6, 3], width: 64, outputDim: 1024, imgSize: 224 },
  resnet101_clip: { layers: [3, 4, 23, 3], width: 64, outputDim: 512, imgSize: 224 },
  resnet50x4_clip: { layers: [4, 6, 10, 6], width: 80, outputDim: 640, imgSize: 288 },
  resnet50x16_clip: { layers: [6, 8, 18, 8], width: 96, outputDim: 768, imgSize: 384 },
  resnet50x64_clip: { layers: [3, 15, 36, 10], width: 128, outputDim: 1024, imgSize: 448 },
};

export const clipResnet: Family<typeof options> = {
  id: 'clip_resnet',
  checkpoints: { source: 'openai/CLIP', license: 'MIT' },
  paper: CLIP_PAPER,
  options,
  variants,
  create: (name, o) =>
    new ClipResNet(name, o, preprocessing(o, { interpolation: 'bicubic', cropPct: 1, ...CLIP_COLORS })),
};
