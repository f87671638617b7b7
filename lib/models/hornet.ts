/**
 * HorNet as released (raoyongming/HorNet, commit ac9e210, MIT): a ConvNeXt-shaped backbone whose spatial mixing is a
 * recursive gated convolution; also its form for feature pyramids, and the isotropic form, for which there is no code.
 * Rao et al., NeurIPS 2022, arXiv 2207.14284.
 */
import type { z } from 'zod';
import {
  runChain,
  Context,
  Conv2d,
  type Identity,
  init,
  LayerNorm,
  LayerNorm2d,
  Linear,
  type Module,
  Sequential,
  site,
} from '../nn/index.js';
import { noGrad, type Tensor } from '../tensor/index.js';
import { Backbone, type FeatureLevel, type Preprocessing } from './backbone.js';
import { BlockList, classifierSite, convSite, dropPathRateAt, identitySite, outputsOf, poolMap } from './blocks.js';
import { downsampling } from './convnext_blocks.js';
import { requireSameLength } from './family.js';
import { GlobalLocalFilter, HorBlock, type HorBlockOptions, resizeFilter } from './hornet_blocks.js';
import type { hornetIsotropicOptions, hornetOptions } from './hornet_variants.js';

/** Options of a HorNet, defaults filled in. */
export type HorNetOptions = z.output<typeof hornetOptions>;

/** Options of an isotropic HorNet, defaults filled in. */
export type HorNetIsotropicOptions = z.output<typeof hornetIsotropicOptions>;

/** What both forms share: the head after the pool, the start of the weights, filters of other sizes. */
abstract class HorNetBase extends Backbone {
  readonly classifier = 'head';
  declare norm: LayerNorm | null;
  declare features: Identity;
  declare pre_logits: Identity;
  declare head: Linear | Identity;

  /** The last parts, in the order of the state dict. */
  protected finish(dim: number, o: HorNetOptions | HorNetIsotropicOptions, hasNorm: boolean): void {
    this.features = identitySite('features', dim, 'map');
    this.norm = hasNorm ? site(new LayerNorm(dim, { eps: o.normEps }), { role: 'head_norm', layout: 'vector' }) : null;
    this.pre_logits = identitySite('pre_logits', dim, 'vector');
    this.head = classifierSite(dim, o.numClasses);
    this.initWeights(o);
  }

  forwardHead(features: Tensor, ctx: Context = new Context()): Tensor {
    const pooled = poolMap(features, 'avg');
    const vector = this.norm ? this.norm.run(pooled, ctx) : pooled;
    return this.head.run(this.pre_logits.run(vector, ctx), ctx);
  }

  protected override get tail(): readonly string[] {
    return ['norm', 'head'];
  }

  resetClassifier(numClasses: number): void {
    this.head = this.like(classifierSite(this.numFeatures, numClasses));
  }

  /** Also resizes global filters that were learned at another image size. */
  override convertStateDict(state: ReadonlyMap<string, Tensor>): Map<string, Tensor> {
    const out = super.convertStateDict(state);
    for (const [path, module] of this.namedModules()) {
      if (!(module instanceof GlobalLocalFilter)) continue;
      const name = `${path}.complex_weight`;
      const stored = out.get(name);
      const fits = stored?.ndim === 4 && stored.shape[0] === module.complex_weight.shape[0] && stored.shape[3] === 2;
      if (stored && fits)
        out.set(
          name,
          noGrad(() => resizeFilter(stored, module.grid)),
        );
    }
    return out;
  }

  /** Weights truncated normal (0.02, cut at +-2) or Xavier-uniform, biases 0; the classifier times `headInitScale`. */
  private initWeights(o: HorNetOptions | HorNetIsotropicOptions): void {
    this.apply((module) => {
      if (!(module instanceof Conv2d || module instanceof Linear)) return;
      if (o.uniformInit) init.xavierUniform_(module.weight);
      else init.truncNormal_(module.weight, { std: 0.02 });
      if (module.bias) init.zeros_(module.bias);
    });
    const { head } = this;
    if (head instanceof Linear) noGrad(() => head.weight.mul_(o.headInitScale));
  }
}

/** HorNet. See the option schema for what can be chosen. */
export class HorNet extends HorNetBase {
  readonly name: string;
  readonly numFeatures: number;
  readonly featureLevels: readonly FeatureLevel[];

  /** The image batch. */
  readonly input: Identity;
  /** The stem, and what lies before each later stage. */
  readonly downsample_layers: Sequential;
  readonly stages: Sequential;
  /** Norms of the stages' outputs, for feature pyramids: `norm0`, `norm1`, ... */
  readonly #levelNorms: readonly LayerNorm2d[];

  constructor(name: string, o: HorNetOptions, config: Preprocessing) {
    super(config);
    const { depths, orders, scales, filters } = o;
    requireSameLength(name, { depths, orders, scales, filters });
    const dims = depths.map((_, i) => o.baseDim * 2 ** i);
    const dim = dims.at(-1) ?? 0;
    this.name = name;
    this.numFeatures = dim;
    this.featureLevels = dims.map((channels, i) => ({ path: `stages.${i}`, channels, stride: 4 * 2 ** i }));
    this.input = identitySite('input', o.inChans, 'map');
    const between = dims
      .slice(1)
      .map((channels, i) => downsampling(dims[i] ?? 0, channels, { normEps: o.normEps, unbiased: false }));
    this.downsample_layers = new Sequential(stem(o), ...between);
    this.stages = new Sequential(...dims.map((width, stage) => stageOf(o, width, stage)));
    this.#levelNorms = o.featureNorms
      ? dims.map((channels) => site(new LayerNorm2d(channels, { eps: o.normEps }), { role: 'norm' }))
      : [];
    this.#levelNorms.forEach((norm, i) => Object.assign(this, { [`norm${i}`]: norm }));
    this.finish(dim, o, !o.featureNorms);
  }

  /** Stem, stages and what lies between them, in the order of the computation. */
  private get path(): Module[] {
    const stages = [...this.stages];
    return [this.input, ...[...this.downsample_layers].flatMap((down, i) => [down, stages[i] as Module])];
  }

  forwardFeatures(x: Tensor, ctx: Context = new Context()): Tensor {
    const norm = this.#levelNorms.at(-1);
    return runChain([...this.path, ...(norm ? [norm] : []), this.features], x, ctx);
  }

  /** The maps after each stage; with `featureNorms` each after its own norm. */
  forwardIntermediates(x: Tensor, ctx: Context = new Context()): Tensor[] {
    const maps = outputsOf(this.path, x, ctx, (part) => part instanceof BlockList);
    return maps.map((map, i) => this.#levelNorms[i]?.run(map, ctx) ?? map);
  }
}

/** Patches of 4x4 pixels, then a norm; the map that leaves it has its channels last in memory. */
function stem(o: HorNetOptions): Sequential {
  const patches = convSite(o.inChans, o.baseDim, { kernelSize: 4, stride: 4, bias: true });
  const norm = site(new LayerNorm2d(o.baseDim, { eps: o.normEps }), { role: 'norm' });
  const ends = { in: o.inChans, out: o.baseDim, layout: 'map', stride: 4 } as const;
  return site(new Sequential(patches, norm), { role: ['stem', 'patch_embed'], ...ends });
}

function stageOf(o: HorNetOptions, dim: number, stage: number): BlockList {
  const before = o.depths.slice(0, stage).reduce((sum, n) => sum + n, 0);
  const total = o.depths.reduce((sum, n) => sum + n, 0);
  const blocks = Array.from({ length: o.depths[stage] ?? 0 }, (_, j) => {
    const gated = { order: o.orders[stage] ?? 1, scale: o.scales[stage] ?? 1, filter: o.filters[stage] ?? 7 };
    return blockOf(o, { dim, ...gated, stage, depth: before + j, total });
  });
  return site(new BlockList(...blocks), { role: 'stage', in: dim, out: dim, layout: 'map', stage, stride: 1 });
}

function blockOf(
  o: HorNetOptions | HorNetIsotropicOptions,
  place: Pick<HorBlockOptions, 'dim' | 'order' | 'scale' | 'filter' | 'stage' | 'depth'> & { total: number },
): HorBlock {
  return new HorBlock({
    ...place,
    hidden: Math.floor(place.dim * o.mlpRatio),
    normEps: o.normEps,
    layerScale: o.layerScale !== null && o.layerScale > 0 ? o.layerScale : null,
    dropPath: dropPathRateAt(o.dropPathRate, place.depth, place.total),
  });
}

/**
 * HorNet of constant width: patches without a norm, blocks, mean, norm, classifier. Only the paper describes it; the
 * names, and one order, scale and filter for all blocks, are ours.
 */
export class HorNetIsotropic extends HorNetBase {
  readonly name: string;
  readonly numFeatures: number;
  readonly featureLevels: readonly FeatureLevel[];

  /** The image batch. */
  readonly input: Identity;
  readonly stem: Conv2d;
  readonly blocks: BlockList;

  constructor(name: string, o: HorNetIsotropicOptions, config: Preprocessing) {
    super(config);
    const { dim, depth: total, order, scale, filter } = o;
    this.name = name;
    this.numFeatures = dim;
    this.featureLevels = [{ path: 'blocks', channels: dim, stride: o.patchSize }];
    this.input = identitySite('input', o.inChans, 'map');
    const patches = new Conv2d(o.inChans, dim, { kernelSize: o.patchSize, stride: o.patchSize });
    this.stem = site(patches, { role: ['conv', 'stem', 'patch_embed'] });
    const blocks = Array.from({ length: total }, (_, depth) =>
      blockOf(o, { dim, order, scale, filter, stage: 0, depth, total }),
    );
    this.blocks = site(new BlockList(...blocks), { role: 'stage', in: dim, out: dim, layout: 'map', stage: 0 });
    this.finish(dim, o, true);
  }

  forwardFeatures(x: Tensor, ctx: Context = new Context()): Tensor {
    return this.features.run(this.blocks.run(this.embed(x, ctx), ctx), ctx);
  }

  forwardIntermediates(x: Tensor, ctx: Context = new Context()): Tensor[] {
    return [this.blocks.run(this.embed(x, ctx), ctx)];
  }

  /** The map that enters the blocks, channels last: so their tokens are views of it. */
  private embed(x: Tensor, ctx: Context): Tensor {
    return this.stem.run(this.input.run(x, ctx), ctx).contiguous({ memoryFormat: 'channels_last' });
  }
}
