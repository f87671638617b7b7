/**
 * EfficientNet-V2 as timm defines Google's (`efficientnet.py`, release 1.0.29, Apache-2.0: `tf_efficientnetv2_*`): SiLU,
 * BatchNorm with eps 1e-3, TensorFlow's padding. Tan and Le, ICML 2021, arXiv 2104.00298.
 */
import { z } from 'zod';
import {
  type BatchNorm2d,
  runChain,
  Context,
  Conv2d,
  Dropout,
  type Identity,
  init,
  Linear,
  site,
  Span,
} from '../nn/index.js';
import type { Tensor } from '../tensor/index.js';
import { Backbone, type FeatureLevel, HALF, type Preprocessing } from './backbone.js';
import {
  batchNormSite,
  BlockList,
  classifierSite,
  dropPathRateAt,
  identitySite,
  imageSite,
  makeDivisible,
  type NormOptions,
  outputsOf,
  poolMap,
} from './blocks.js';
import {
  convNormSilu,
  efficientBlock,
  parseStage,
  sameConv,
  type StageSpec,
  startConvolution,
} from './efficientnet_blocks.js';
import { backboneOptions, type Family, positive, preprocessing, rate } from './family.js';

const options = z.strictObject({
  /** One text per stage, such as `er_r4_k3_s2_e4_c48`; a list of texts for a stage of several kinds of blocks. */
  stages: z.array(z.union([z.string(), z.array(z.string()).min(1)])).min(1),
  /** Factor of widths (then rounded to multiples of 8) and of repeats (then rounded up). */
  widthFactor: z.number().positive().default(1),
  depthFactor: z.number().positive().default(1),
  /** How much of its width a layer may lose in rounding before it is rounded up instead. */
  leastWidth: rate.default(0.9),
  stemChannels: positive.default(32),
  headChannels: positive.default(1280),
  ...backboneOptions,
  bnEps: z.number().positive().default(1e-3),
  bnMomentum: rate.default(0.1),
  globalPool: z.enum(['avg', 'max', 'avgmax']).default('avg'),
  /** Dropout before the classifier. */
  dropRate: rate.default(0),
  /** Stochastic depth; the rate rises linearly from 0 toward it over the blocks. */
  dropPathRate: rate.default(0),
  /** Mean and deviation of the pixels: of ImageNet, or 0.5. */
  colors: z.enum(['imagenet', 'half']).default('imagenet'),
  /** Of convolutions with a stride: as TensorFlow does (`same`), or on both sides, as torchvision's weights need it. */
  padding: z.enum(['same', 'symmetric']).default('same'),
  /** The center crop's share of the resized image's side. */
  cropPct: z.number().positive().max(1).default(1),
});

/** Options of an EfficientNet-V2, defaults filled in. */
export type EfficientNetV2Options = z.output<typeof options>;

/** EfficientNet-V2. Maps of any size; a stride of 2 makes ceil(size / 2). */
export class EfficientNetV2 extends Backbone {
  readonly name: string;
  readonly classifier = 'classifier';
  protected override readonly renamed = { head: 'classifier' };
  readonly numFeatures: number;
  readonly featureLevels: readonly FeatureLevel[];
  readonly globalPool: EfficientNetV2Options['globalPool'];
  readonly padding: EfficientNetV2Options['padding'];
  /** The kind of the blocks of each stage; of the first, where a stage has several. */
  readonly kinds: readonly StageSpec['type'][];

  /** The image batch. */
  readonly input: Identity;
  readonly conv_stem: Conv2d;
  readonly bn1: BatchNorm2d;
  /** Image to the map that enters the first stage. */
  readonly stem: Span;
  /** The stages. */
  readonly blocks: BlockList;
  readonly conv_head: Conv2d;
  readonly bn2: BatchNorm2d;
  /** The map after the last convolution, norm and SiLU. */
  readonly features: Identity;
  /** The pooled vector. */
  readonly pre_logits: Identity;
  readonly drop: Dropout;
  /** `classifier` in the state dict. */
  head: Linear | Identity;

  constructor(name: string, o: EfficientNetV2Options, config: Preprocessing) {
    super(config);
    this.name = name;
    this.globalPool = o.globalPool;
    const norm: NormOptions = { eps: o.bnEps, momentum: o.bnMomentum };
    const stemChannels = widthOf(o.stemChannels, o);
    this.input = imageSite(o.inChans);
    this.padding = o.padding;
    this.conv_stem = sameConv(o.inChans, stemChannels, 3, { stride: 2, pad: o.padding });
    this.bn1 = batchNormSite(stemChannels, norm);
    this.stem = site(new Span((x, ctx) => convNormSilu(this.conv_stem, this.bn1, x, ctx)), {
      role: 'stem',
      in: o.inChans,
      out: stemChannels,
      layout: 'map',
      stride: 2,
    });
    this.kinds = o.stages.map((texts) => parseStage([texts].flat()[0] ?? '').type);
    const { stages, levels, channels } = buildStages(o, stemChannels, norm);
    this.blocks = stages;
    this.featureLevels = levels;
    this.numFeatures = widthOf(o.headChannels, o);
    this.conv_head = sameConv(channels, this.numFeatures, 1);
    this.bn2 = batchNormSite(this.numFeatures, norm);
    this.features = identitySite('features', this.numFeatures, 'map');
    this.pre_logits = identitySite('pre_logits', this.numFeatures, 'vector');
    this.drop = new Dropout(o.dropRate);
    this.head = classifierSite(this.numFeatures, o.numClasses);
    this.initWeights();
  }

  forwardFeatures(x: Tensor, ctx: Context = new Context()): Tensor {
    const parts = [this.input, this.stem, ...this.blocks];
    const y = runChain(parts, x, ctx);
    return this.features.run(convNormSilu(this.conv_head, this.bn2, y, ctx), ctx);
  }

  forwardHead(features: Tensor, ctx: Context = new Context()): Tensor {
    const pooled = this.pre_logits.run(poolMap(features, this.globalPool), ctx);
    return this.head.run(this.drop.run(pooled, ctx), ctx);
  }

  /** The map of each stage after which the next one shrinks, and of the last. */
  forwardIntermediates(x: Tensor, ctx: Context = new Context()): Tensor[] {
    const levels = new Set(this.featureLevels.map(({ path }) => path));
    const y = this.stem.run(this.input.run(x, ctx), ctx);
    return outputsOf(this.blocks, y, ctx, (_, i) => levels.has(`blocks.${i}`));
  }

  protected override get tail(): readonly string[] {
    return ['conv_head', 'bn2', 'classifier'];
  }

  resetClassifier(numClasses: number): void {
    this.head = this.like(classifierSite(this.numFeatures, numClasses));
    startClassifier(this.head);
  }

  /** Convolutions normal with variance 2 / fan-out, classifier uniform within 1 / sqrt(classes), biases 0. */
  private initWeights(): void {
    this.apply((module) => {
      if (module instanceof Conv2d) startConvolution(module);
    });
    startClassifier(this.head);
  }
}

function startClassifier(head: Linear | Identity): void {
  if (!(head instanceof Linear)) return;
  const bound = 1 / Math.sqrt(head.outFeatures);
  init.uniform_(head.weight, -bound, bound);
  if (head.bias) init.zeros_(head.bias);
}

function widthOf(channels: number, { widthFactor, leastWidth }: EfficientNetV2Options): number {
  return widthFactor === 1 ? channels : makeDivisible(channels * widthFactor, leastWidth);
}

/** The runs of equal blocks of each stage, widths and repeats multiplied by their factors. */
function stageSpecs(o: EfficientNetV2Options): StageSpec[][] {
  return o.stages.map((texts) =>
    [texts].flat().map((text) => {
      const spec = parseStage(text);
      return { ...spec, repeats: Math.ceil(spec.repeats * o.depthFactor), channels: widthOf(spec.channels, o) };
    }),
  );
}

function buildStages(o: EfficientNetV2Options, stemChannels: number, norm: NormOptions) {
  const specs = stageSpecs(o);
  // One more than the last index: the official rate never reaches its maximum.
  const total = specs.flat().reduce((sum, { repeats }) => sum + repeats, 0);
  const stages = new BlockList();
  const levels: FeatureLevel[] = [];
  let depth = 0;
  let inChannels = stemChannels;
  let reduction = 2;
  specs.forEach((kinds, stage) => {
    const entering = inChannels;
    const blocks = new BlockList();
    for (const { type, repeats, ...spec } of kinds) {
      for (let j = 0; j < repeats; j++, depth++) {
        const dropPath = dropPathRateAt(o.dropPathRate, depth, total + 1);
        const stride = j === 0 ? spec.stride : 1;
        blocks.push(
          efficientBlock(type, { ...spec, stride, inChannels, dropPath, norm, pad: o.padding, stage, depth }),
        );
        inChannels = spec.channels;
      }
    }
    const shrinks = kinds.reduce((product, { stride }) => product * stride, 1);
    reduction *= shrinks;
    const ends = { in: entering, out: inChannels, layout: 'map', stage, stride: shrinks } as const;
    stages.push(site(blocks, { role: 'stage', ...ends }));
    // A level is the last map of its resolution.
    if (levels.at(-1)?.stride === reduction) levels.pop();
    levels.push({ path: `blocks.${stage}`, channels: inChannels, stride: reduction });
  });
  return { stages, levels, channels: inChannels };
}

/** A stage of the larger members: `ir(7, 2, 4, 160)`. */
const cn = (r: number, c: number): string => `cn_r${r}_k3_s1_e1_c${c}_skip`;
const er = (r: number, c: number): string => `er_r${r}_k3_s2_e4_c${c}`;
const ir = (r: number, s: number, e: number, c: number): string => `ir_r${r}_k3_s${s}_e${e}_c${c}_se0.25`;

const base = {
  stages: [cn(1, 16), er(2, 32), er(2, 48), ir(3, 2, 4, 96), ir(5, 1, 6, 112), ir(8, 2, 6, 192)],
  leastWidth: 0,
};
const s = {
  stages: [cn(2, 24), er(4, 48), er(4, 64), ir(6, 2, 4, 128), ir(9, 1, 6, 160), ir(15, 2, 6, 256)],
  stemChannels: 24,
  colors: 'half',
} as const;
const m = {
  stages: [cn(3, 24), er(5, 48), er(5, 80), ir(7, 2, 4, 160), ir(14, 1, 6, 176), ir(18, 2, 6, 304), ir(5, 1, 6, 512)],
  stemChannels: 24,
  colors: 'half',
} as const;
const l = {
  stages: [cn(4, 32), er(7, 64), er(7, 96), ir(10, 2, 4, 192), ir(19, 1, 6, 224), ir(25, 2, 6, 384), ir(7, 1, 6, 640)],
  colors: 'half',
} as const;
const xl = {
  stages: [cn(4, 32), er(8, 64), er(8, 96), ir(16, 2, 4, 192), ir(24, 1, 6, 256), ir(32, 2, 6, 512), ir(8, 1, 6, 640)],
  colors: 'half',
} as const;

/** Image sizes are those of training; evaluation of the published weights is at up to a quarter more. */
const variants: Readonly<Record<string, z.input<typeof options>>> = Object.fromEntries(
  Object.entries({
    b0: { ...base, imgSize: 192, cropPct: 0.875 },
    b1: { ...base, depthFactor: 1.1, imgSize: 192, cropPct: 0.882 },
    b2: { ...base, widthFactor: 1.1, depthFactor: 1.2, imgSize: 208, cropPct: 0.89 },
    b3: { ...base, widthFactor: 1.2, depthFactor: 1.4, imgSize: 240, cropPct: 0.9, colors: 'half' as const },
    s: { ...s, imgSize: 300 },
    m: { ...m, imgSize: 384 },
    l: { ...l, imgSize: 384 },
    xl: { ...xl, imgSize: 384 },
  }).map(([size, variant]): [string, z.input<typeof options>] => [
    `tf_efficientnetv2_${size}`,
    { ...variant, stages: [...variant.stages] },
  ]),
);

export const efficientnetV2: Family<typeof options> = {
  id: 'efficientnet_v2',
  checkpoints: { source: 'timm (huggingface/pytorch-image-models)', license: 'Apache-2.0; weights carry their own' },
  paper: 'Tan and Le, EfficientNetV2: Smaller Models and Faster Training, ICML 2021, arXiv 2104.00298',
  options,
  variants,
  create: (name, o) => {
    const colors = o.colors === 'half' ? { mean: HALF, std: HALF } : {};
    return new EfficientNetV2(name, o, preprocessing(o, { interpolation: 'bicubic', cropPct: o.cropPct, ...colors }));
  },
};
