/**
 * InternImage as released (OpenGVLab/InternImage, commit 31c962d, MIT): transformer-like layers whose mixing is a
 * deformable convolution. Wang et al., CVPR 2023, arXiv 2211.05778.
 */
import type { z } from 'zod';
import type { KeyMap } from '../checkpoint/index.js';
import type { Conv2d } from '../nn/index.js';
import {
  activationLayer,
  BatchNorm2d,
  runChain,
  Context,
  Dropout,
  type Identity,
  init,
  Linear,
  Module,
  Sequential,
  site,
} from '../nn/index.js';
import { aten, type Tensor } from '../tensor/index.js';
import { Backbone, type FeatureLevel, type Preprocessing } from './backbone.js';
import { classifierSite, convSite, dropPathRateAt, identitySite, imageSite, outputsOf, poolMap } from './blocks.js';
import { requireSameLength } from './family.js';
import { tokensOf } from './hornet_blocks.js';
import {
  AttentionPooling,
  convNorm,
  DeformConv,
  InternDownsample,
  InternLayer,
  InternLevel,
  vectorNorm,
} from './internimage_blocks.js';
import type { internImageOptions } from './internimage_variants.js';

/** Options of an InternImage, defaults filled in. */
export type InternImageOptions = z.output<typeof internImageOptions>;

/** 3x3 convolution, norm, act, 3x3 convolution, norm: both of stride 2. */
class InternStem extends Module {
  readonly conv1: Conv2d;
  readonly norm1: Sequential;
  readonly act: Module;
  readonly conv2: Conv2d;
  readonly norm2: Sequential;

  constructor(o: InternImageOptions) {
    super();
    const half = Math.floor(o.channels / 2);
    const conv = (from: number, to: number): Conv2d =>
      convSite(from, to, { kernelSize: 3, stride: 2, padding: 1, bias: true });
    this.conv1 = conv(o.inChans, half);
    this.norm1 = convNorm(half, o.norm);
    this.act = activationLayer(o.activation);
    this.conv2 = conv(half, o.channels);
    this.norm2 = convNorm(o.channels, o.norm);
    site(this, { role: ['stem', 'patch_embed'], in: o.inChans, out: o.channels, layout: 'map', stride: 4 });
  }

  forward(x: Tensor, ctx: Context): Tensor {
    const parts = [this.conv1, this.norm1, this.act, this.conv2, this.norm2];
    return runChain(parts, x, ctx);
  }
}

/** InternImage. Levels are `levels.0`, `levels.1`, ...; their features are the maps before downsampling. */
export class InternImage extends Backbone {
  readonly name: string;
  readonly classifier = 'head';
  /** Copies on Hugging Face have a prefix and other names for the layer scales. */
  override readonly keyMap: KeyMap = [
    { kind: 'rename', from: 'model.{rest...}', to: '{rest...}' },
    { kind: 'rename', from: 'levels.{i}.blocks.{j}.layer_scale1', to: 'levels.{i}.blocks.{j}.gamma1' },
    { kind: 'rename', from: 'levels.{i}.blocks.{j}.layer_scale2', to: 'levels.{i}.blocks.{j}.gamma2' },
  ];
  readonly numFeatures: number;
  readonly featureLevels: readonly FeatureLevel[];

  /** The image batch. */
  readonly input: Identity;
  readonly patch_embed: InternStem;
  readonly pos_drop: Dropout;
  readonly levels: Sequential;
  /** The map that the head pools. */
  readonly features: Identity;
  /** 1x1 convolution, norm, act; models without CLIP's head. */
  readonly conv_head: Sequential | null;
  /** The last level at the size of the one before it, and that level, in one width; models with CLIP's head. */
  readonly dcnv3_head_x4: Sequential | null;
  readonly dcnv3_head_x3: Conv2d | null;
  readonly clip_projector: AttentionPooling | null;
  readonly fc_norm: Sequential | null;
  readonly #clip: InternImageOptions['clip'];
  /** The vector that enters the classifier. */
  readonly pre_logits: Identity;
  head: Linear | Identity;

  constructor(name: string, o: InternImageOptions, config: Preprocessing) {
    super(config);
    requireSameLength(name, { depths: o.depths, groups: o.groups });
    const widths = o.depths.map((_, i) => o.channels * 2 ** i);
    const [before = 0, last = 0] = [widths.at(-2), widths.at(-1)];
    const clip = o.clip;
    if (clip && widths.length < 2)
      throw new RangeError(`${name}: CLIP's head joins two levels, given ${widths.length}`);
    this.name = name;
    this.featureLevels = widths.map((channels, i) => ({ path: `levels.${i}`, channels, stride: 4 * 2 ** i }));
    this.input = imageSite(o.inChans);
    this.patch_embed = new InternStem(o);
    this.pos_drop = new Dropout(o.dropRate);
    this.levels = new Sequential(...buildLevels(o, widths));
    this.#clip = clip;
    this.features = identitySite('features', clip ? clip.embedDim : last, 'map');
    const wide = Math.trunc(last * o.clsScale);
    this.numFeatures = clip ? clip.outDim : wide;
    this.conv_head = clip
      ? null
      : new Sequential(
          convSite(last, wide, { kernelSize: 1 }),
          new Sequential(site(new BatchNorm2d(wide), { role: 'norm' })),
          activationLayer(o.activation),
        );
    this.dcnv3_head_x4 = clip
      ? new Sequential(convSite(last, clip.embedDim * clip.stride ** 2, { kernelSize: 1, bias: true }))
      : null;
    this.dcnv3_head_x3 = clip ? convSite(before, clip.embedDim, { kernelSize: 1, bias: true }) : null;
    this.clip_projector = clip ? new AttentionPooling(clip.embedDim, clip.heads, clip.outDim) : null;
    this.fc_norm = clip ? vectorNorm(clip.outDim) : null;
    this.pre_logits = identitySite('pre_logits', this.numFeatures, 'vector');
    this.head = classifierSite(this.numFeatures, o.numClasses);
    this.initWeights();
  }

  /** The last level's map; with CLIP's head, the last two levels joined at the finer one's size. */
  forwardFeatures(x: Tensor, ctx: Context = new Context()): Tensor {
    const { dcnv3_head_x4: fromLast, dcnv3_head_x3: fromBefore } = this;
    const clip = this.#clip;
    if (!clip || !fromLast || !fromBefore) {
      return runChain([...this.path, this.features], this.embed(x, ctx), ctx);
    }
    const maps = this.forwardIntermediates(x, ctx);
    const [finer, last] = maps.slice(-2) as [Tensor, Tensor];
    const sides = (map: Tensor): number[] => map.shape.slice(2);
    if (sides(last).some((side, axis) => side * clip.stride !== sides(finer)[axis])) {
      throw new RangeError(
        `${this.name}: the last level's map of ${sides(last).join(' x ')} is not 1/${clip.stride} of the one before it, ${sides(finer).join(' x ')}; give images whose sides are multiples of ${this.featureLevels.at(-1)?.stride}`,
      );
    }
    const joined = aten.pixelShuffle(fromLast.run(last, ctx), clip.stride).add(fromBefore.run(finer, ctx));
    return this.features.run(joined, ctx);
  }

  forwardHead(features: Tensor, ctx: Context = new Context()): Tensor {
    return this.head.run(this.pre_logits.run(this.pool(features, ctx), ctx), ctx);
  }

  /** The maps of the levels, before downsampling. */
  forwardIntermediates(x: Tensor, ctx: Context = new Context()): Tensor[] {
    return outputsOf(this.path, this.embed(x, ctx), ctx, (part) => part instanceof InternLevel);
  }

  protected override get tail(): readonly string[] {
    return ['conv_head', 'dcnv3_head_x4', 'dcnv3_head_x3', 'clip_projector', 'fc_norm', 'head'];
  }

  resetClassifier(numClasses: number): void {
    this.head = this.like(classifierSite(this.numFeatures, numClasses));
  }

  /** The levels, each followed by its downsampling. */
  private get path(): Module[] {
    const parts = [...this.levels].flatMap((level) => (level instanceof InternLevel ? [level, level.downsample] : []));
    return parts.filter((part) => part !== null);
  }

  private embed(x: Tensor, ctx: Context): Tensor {
    return this.pos_drop.run(this.patch_embed.run(this.input.run(x, ctx), ctx), ctx);
  }

  private pool(features: Tensor, ctx: Context): Tensor {
    if (this.conv_head) return poolMap(this.conv_head.run(features, ctx), 'avg');
    const vector = this.clip_projector?.run(tokensOf(features, ctx), ctx) ?? features;
    return this.fc_norm ? this.fc_norm.run(vector, ctx) : vector;
  }

  /** Linear layers truncated normal (0.02), biases 0; offsets and weights of the points 0; projections Xavier-uniform. */
  private initWeights(): void {
    this.apply((module) => {
      if (module instanceof Linear) {
        init.truncNormal_(module.weight, { std: 0.02 });
        if (module.bias) init.zeros_(module.bias);
      } else if (module instanceof DeformConv) {
        for (const layer of [module.offset, module.mask]) init.zeros_(layer.weight);
        for (const layer of [module.input_proj, module.output_proj]) init.xavierUniform_(layer.weight);
      }
    });
  }
}

function buildLevels(o: InternImageOptions, widths: readonly number[]): InternLevel[] {
  const total = o.depths.reduce((sum, n) => sum + n, 0);
  let depth = 0;
  return widths.map((channels, stage) => {
    const layers = Array.from({ length: o.depths[stage] ?? 0 }, () => {
      const dropPath = dropPathRateAt(o.dropPathRate, depth, total);
      const { offsetScale, activation, norm, centerFeatureScale, removeCenter, dwKernelSize } = o;
      const { mlpRatio, postNorm, resPostNorm, layerScale } = o;
      return new InternLayer({
        ...{ channels, groups: o.groups[stage] ?? 1, offsetScale, activation, norm, centerFeatureScale, removeCenter },
        ...{ dwKernelSize, mlpRatio, drop: o.dropRate, dropPath, postNorm, resPostNorm, layerScale },
        stage,
        depth: depth++,
      });
    });
    return new InternLevel({
      channels,
      layers,
      stage,
      norm: !o.postNorm || o.centerFeatureScale,
      postNormIds: stage === 2 ? o.level2PostNormIds : null,
      downsample: stage < widths.length - 1 ? new InternDownsample(channels, o.norm) : null,
    });
  });
}
