/**
 * HAT-Net: a pyramid of transformer blocks on maps, whose attention looks first into windows, then from every pixel at
 * the pooled map. Liu et al., Machine Intelligence Research 2024, arXiv 2106.03180; names are those of the official
 * files (yun-liu/HAT-Net, commit 4b2e7bf).
 */
import { z } from 'zod';
import {
  ACTIVATIONS,
  type ActivationName,
  activationLayer,
  runChain,
  Context,
  Conv2d,
  Dropout,
  type GroupNorm,
  type Identity,
  init,
  Linear,
  Module,
  Sequential,
  site,
} from '../nn/index.js';
import type { Tensor } from '../tensor/index.js';
import { Backbone, type FeatureLevel, type Preprocessing } from './backbone.js';
import {
  BlockList,
  classifierSite,
  convSite,
  dropPathRateAt,
  identitySite,
  imageSite,
  leastCommonMultiple,
  outputsOf,
  poolMap,
} from './blocks.js';
import { backboneOptions, type Family, oddKernel, positive, preprocessing, rate, requireSameLength } from './family.js';
import { HatBlock, mapNorm } from './hatnet_blocks.js';

const four = z.array(positive).length(4);

const options = z.strictObject({
  /** Channels per stage. */
  dims: four.default([64, 128, 256, 512]),
  /** Channels per attention head. */
  headDim: positive.default(64),
  /** Blocks per stage. */
  depths: four.default([3, 4, 8, 3]),
  /** Width of the MLP per stage, in channels of the stage. */
  expansions: z.array(z.number().positive()).length(4).default([4, 4, 6, 6]),
  /** Side of the attention windows per stage; 1 for one attention over the whole map. */
  windows: four.default([1, 1, 1, 1]),
  /** Side of the cells that keys and values of the global attention are averaged over. */
  pools: four.default([8, 4, 2, 1]),
  /** Kernel of the MLP's depth-wise convolution per stage. */
  kernelSizes: z.array(oddKernel).length(4).default([3, 3, 3, 3]),
  activation: z.enum(ACTIVATIONS).default('silu'),
  ...backboneOptions,
  /** Dropout of whole channels in the blocks. */
  dropRate: rate.default(0),
  /** Dropout before the classifier. */
  headDropRate: rate.default(0.2),
});

/** Options of a HAT-Net, defaults filled in. */
export type HatNetOptions = z.output<typeof options>;

/** Halves the map: 3x3 convolution, norm. */
class HatDownsample extends Module {
  readonly conv: Conv2d;
  readonly norm: GroupNorm;

  constructor(inChannels: number, outChannels: number) {
    super();
    this.conv = convSite(inChannels, outChannels, { kernelSize: 3, stride: 2, padding: 1, bias: true });
    this.norm = mapNorm(outChannels);
    site(this, {
      role: 'downsample',
      in: inChannels,
      out: outChannels,
      layout: 'map',
      kernel: 3,
      stride: 2,
      padding: 1,
    });
  }

  forward(x: Tensor, ctx: Context): Tensor {
    return this.norm.run(this.conv.run(x, ctx), ctx);
  }
}

/** HAT-Net: a convolutional stem to a quarter of the size, four stages, mean, classifier; no norm at the end. */
export class HatNet extends Backbone {
  readonly name: string;
  readonly classifier = 'classifier.1';
  protected override readonly renamed = { head: 'classifier' };
  readonly numFeatures: number;
  readonly featureLevels: readonly FeatureLevel[];

  /** The image batch. */
  readonly input: Identity;
  readonly patch_embed: Sequential;
  readonly blocks: Sequential;
  readonly ds2: HatDownsample;
  readonly ds3: HatDownsample;
  readonly ds4: HatDownsample;
  /** The map before the pool. */
  readonly features: Identity;
  /** The pooled vector. */
  readonly pre_logits: Identity;
  /** `classifier` in the state dict: dropout, linear layer. */
  head: Sequential;
  readonly #headDrop: number;
  readonly #sizeMultiple: number;

  constructor(name: string, o: HatNetOptions, config: Preprocessing) {
    super(config);
    const { dims, depths, expansions, windows, pools, kernelSizes } = o;
    requireSameLength(name, { dims, depths, expansions, windows, pools, kernelSizes });
    const [c1 = 0, c2 = 0, c3 = 0, c4 = 0] = dims;
    this.name = name;
    this.numFeatures = c4;
    this.featureLevels = dims.map((channels, i) => ({ path: `blocks.${i}`, channels, stride: 4 * 2 ** i }));
    this.input = imageSite(o.inChans);
    this.patch_embed = stem(o.inChans, c1, o.activation);
    this.blocks = new Sequential(...dims.map((_, stage) => stageOf(o, stage)));
    this.ds2 = new HatDownsample(c1, c2);
    this.ds3 = new HatDownsample(c2, c3);
    this.ds4 = new HatDownsample(c3, c4);
    this.features = identitySite('features', c4, 'map');
    this.pre_logits = identitySite('pre_logits', c4, 'vector');
    this.#headDrop = o.headDropRate;
    this.#sizeMultiple = windows.map((side, stage) => side * 4 * 2 ** stage).reduce(leastCommonMultiple);
    this.head = this.newHead(o.numClasses);
    this.apply((module) => {
      if (!(module instanceof Conv2d || module instanceof Linear)) return;
      init.truncNormal_(module.weight, { std: 0.02 });
      if (module.bias) init.zeros_(module.bias);
    });
  }

  /** Maps must divide into the windows of their stage: 224 for the published models. */
  override get sizeMultiple(): number {
    return this.#sizeMultiple;
  }

  /** Stem, stages and what lies between them, in the order of the computation. */
  private get path(): readonly Module[] {
    const [one, two, three, four] = [...this.blocks] as [Module, Module, Module, Module];
    return [this.input, this.patch_embed, one, this.ds2, two, this.ds3, three, this.ds4, four];
  }

  forwardFeatures(x: Tensor, ctx: Context = new Context()): Tensor {
    return runChain([...this.path, this.features], x, ctx);
  }

  forwardHead(features: Tensor, ctx: Context = new Context()): Tensor {
    return this.head.run(this.pre_logits.run(poolMap(features, 'avg'), ctx), ctx);
  }

  forwardIntermediates(x: Tensor, ctx: Context = new Context()): Tensor[] {
    return outputsOf(this.path, x, ctx, (part) => part instanceof BlockList);
  }

  protected override get tail(): readonly string[] {
    return ['classifier'];
  }

  resetClassifier(numClasses: number): void {
    this.head = this.like(this.newHead(numClasses));
  }

  private newHead(numClasses: number): Sequential {
    return new Sequential(new Dropout(this.#headDrop), classifierSite(this.numFeatures, numClasses));
  }
}

function stem(inChans: number, out: number, activation: ActivationName): Sequential {
  const conv = (from: number, to: number): Conv2d =>
    convSite(from, to, { kernelSize: 3, stride: 2, padding: 1, bias: true });
  const parts = new Sequential(conv(inChans, 16), mapNorm(16), activationLayer(activation), conv(16, out));
  return site(parts, { role: ['patch_embed', 'stem'], in: inChans, out, layout: 'map', stride: 4 });
}

function stageOf(o: HatNetOptions, stage: number): BlockList {
  const before = o.depths.slice(0, stage).reduce((sum, n) => sum + n, 0);
  const total = o.depths.reduce((sum, n) => sum + n, 0);
  const dim = o.dims[stage] ?? 0;
  const blocks = Array.from({ length: o.depths[stage] ?? 0 }, (_, j) => {
    const depth = before + j;
    return new HatBlock({
      dim,
      headDim: o.headDim,
      window: o.windows[stage] ?? 1,
      pool: o.pools[stage] ?? 1,
      hidden: Math.floor(dim * (o.expansions[stage] ?? 1)),
      kernelSize: o.kernelSizes[stage] ?? 3,
      activation: o.activation,
      drop: o.dropRate,
      dropPath: dropPathRateAt(o.dropPathRate, depth, total),
      stage,
      depth,
    });
  });
  return site(new BlockList(...blocks), { role: 'stage', in: dim, out: dim, layout: 'map', stage, stride: 1 });
}

const published = { expansions: [8, 8, 4, 4], windows: [8, 7, 7, 1] };

export const hatnet: Family<typeof options> = {
  id: 'hatnet',
  checkpoints: { source: 'yun-liu/HAT-Net', license: 'none stated' },
  paper:
    'Liu et al., Vision Transformers with Hierarchical Attention, Machine Intelligence Research 2024, arXiv 2106.03180',
  options,
  variants: {
    hatnet_tiny: { ...published, dims: [48, 96, 240, 384], headDim: 48, depths: [2, 2, 6, 3] },
    hatnet_small: { ...published, dims: [64, 128, 320, 512], depths: [2, 3, 8, 3] },
    hatnet_medium: {
      ...published,
      dims: [64, 128, 320, 512],
      depths: [3, 6, 18, 3],
      kernelSizes: [5, 3, 5, 3],
    },
    hatnet_large: { ...published, dims: [64, 128, 320, 640], depths: [3, 8, 27, 3] },
  },
  create: (name, o) => new HatNet(name, o, preprocessing(o, { interpolation: 'bicubic', cropPct: 0.875 })),
};
