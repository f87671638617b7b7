/**
 * ConvNeXt as timm defines it (`convnext.py`, release 1.0.29, Apache-2.0), the isotropic form and the form for feature
 * pyramids of the official code (facebookresearch/ConvNeXt, MIT). Liu et al., CVPR 2022, arXiv 2201.03545.
 */
import type { z } from 'zod';
import type { KeyMap } from '../checkpoint/index.js';
import { runChain, Context, Conv2d, Identity, init, LayerNorm2d, Linear, Sequential, site } from '../nn/index.js';
import { noGrad, type Tensor } from '../tensor/index.js';
import { Backbone, type FeatureLevel, type Preprocessing } from './backbone.js';
import { BlockList, classifierSite, convSite, dropPathRateAt, identitySite, outputsOf, poolMap } from './blocks.js';
import { ClassifierHead } from './classifier_head.js';
import { ConvNeXtBlock, ConvNeXtStage, downsampling } from './convnext_blocks.js';
import { requireSameLength } from './family.js';
import type { convnextOptions } from './convnext_variants.js';

/** Options of a ConvNeXt, defaults filled in. */
export type ConvNeXtOptions = z.output<typeof convnextOptions>;

/** Names inside a block of the official code to ours; `from` and `to` are the block's paths. */
function blockNames(from: string, to: string): KeyMap {
  return [
    { kind: 'rename', from: `${from}.dwconv.{leaf}`, to: `${to}.conv_dw.{leaf}` },
    { kind: 'rename', from: `${from}.norm.{leaf}`, to: `${to}.norm.{leaf}` },
    { kind: 'rename', from: `${from}.pwconv1.{leaf}`, to: `${to}.mlp.fc1.{leaf}` },
    { kind: 'rename', from: `${from}.pwconv2.{leaf}`, to: `${to}.mlp.fc2.{leaf}` },
    { kind: 'rename', from: `${from}.gamma`, to: `${to}.gamma` },
  ];
}

const HEAD_NAMES: KeyMap = [
  { kind: 'rename', from: 'norm.{leaf}', to: 'head.norm.{leaf}' },
  { kind: 'rename', from: 'head.{leaf}', to: 'head.fc.{leaf}' },
];

const BODY_NAMES: KeyMap = [
  { kind: 'rename', from: 'downsample_layers.0.{i}.{leaf}', to: 'stem.{i}.{leaf}' },
  { kind: 'rename', from: 'downsample_layers.{stage}.{i}.{leaf}', to: 'stages.{stage}.downsample.{i}.{leaf}' },
  ...blockNames('stages.{stage}.{j}', 'stages.{stage}.blocks.{j}'),
];

const ISOTROPIC_BODY_NAMES: KeyMap = [
  { kind: 'rename', from: 'stem.{leaf}', to: 'stem.0.{leaf}' },
  ...blockNames('blocks.{j}', 'stages.0.blocks.{j}'),
];

/** From the names of the official code; can be inverted. */
export const OFFICIAL_CONVNEXT_NAMES: KeyMap = [...BODY_NAMES, ...HEAD_NAMES];

/** From the names of the official code's isotropic models; can be inverted. */
export const OFFICIAL_ISOTROPIC_NAMES: KeyMap = [...ISOTROPIC_BODY_NAMES, ...HEAD_NAMES];

/** From the names that the official code of SSF gives the parts that timm numbers; can be inverted. */
export const SSF_CONVNEXT_NAMES: KeyMap = [
  { kind: 'rename', from: 'stem.proj.{leaf}', to: 'stem.0.{leaf}' },
  { kind: 'rename', from: 'stem.norm.{leaf}', to: 'stem.1.{leaf}' },
  { kind: 'rename', from: 'stages.{stage}.downsample.norm.{leaf}', to: 'stages.{stage}.downsample.0.{leaf}' },
  { kind: 'rename', from: 'stages.{stage}.downsample.proj.{leaf}', to: 'stages.{stage}.downsample.1.{leaf}' },
];

/**
 * From the shapes of timm's smallest models, which hold the linear layers of their MLPs as 1x1 convolutions; can be
 * inverted.
 */
export const TIMM_CONV_MLP: KeyMap = ['fc1', 'fc2'].flatMap((layer) =>
  [3, 2].map((dim) => ({ kind: 'squeeze', match: `stages.{i}.blocks.{j}.mlp.${layer}.weight`, dim }) as const),
);

/** ConvNeXt. See the option schema for what can be chosen; stages are `stages.0`, `stages.1`, ... as in timm. */
export class ConvNeXt extends Backbone {
  readonly name: string;
  readonly classifier = 'head.fc';
  override readonly keyMap: KeyMap;
  readonly numFeatures: number;
  readonly featureLevels: readonly FeatureLevel[];

  /** The image batch. */
  readonly input: Identity;
  readonly stem: Sequential;
  readonly stages: Sequential;
  /** Norms of the stages' outputs, for feature pyramids: `norm0`, `norm1`, ... */
  readonly #levelNorms: readonly LayerNorm2d[];
  /** Norm before the pool instead of after it, or an identity; null where the stages' outputs have norms of their own. */
  readonly norm_pre: LayerNorm2d | Identity | null;
  /** Behind a `norm_pre` that acts twice: what acts after it once. */
  readonly norm_post: Identity | null;
  /** The map that leaves the last stage. */
  readonly features: Identity;
  readonly head: ClassifierHead;

  constructor(name: string, o: ConvNeXtOptions, config: Preprocessing) {
    super(config);
    requireSameLength(name, { depths: o.depths, dims: o.dims });
    if (o.kernelSize % 2 === 0)
      throw new RangeError(`${name}: a kernel of ${o.kernelSize} has no center; take an odd one`);
    this.name = name;
    this.keyMap = [...SSF_CONVNEXT_NAMES, ...BODY_NAMES, ...ISOTROPIC_BODY_NAMES, ...HEAD_NAMES];
    const [first = 0] = o.dims;
    const dim = o.dims.at(-1) ?? 0;
    this.numFeatures = dim;
    this.featureLevels = o.dims.map((channels, i) => ({ path: `stages.${i}`, channels, stride: o.patchSize * 2 ** i }));
    const norm = (channels: number): LayerNorm2d => new LayerNorm2d(channels, { eps: o.normEps });

    this.input = identitySite('input', o.inChans, 'map');
    const patches = convSite(o.inChans, first, { kernelSize: o.patchSize, stride: o.patchSize, bias: true });
    this.stem = site(new Sequential(...(o.stemNorm ? [patches, site(norm(first), { role: 'norm' })] : [patches])), {
      role: 'stem',
      in: o.inChans,
      out: first,
      layout: 'map',
      stride: o.patchSize,
    });
    this.stages = new Sequential(...buildStages(o));
    this.#levelNorms = o.featureNorms ? o.dims.map((channels) => site(norm(channels), { role: 'norm' })) : [];
    this.#levelNorms.forEach((level, i) => Object.assign(this, { [`norm${i}`]: level }));
    const isTwice = o.headNormFirst === 'twice' && !o.featureNorms;
    const normPre = (): LayerNorm2d | Identity =>
      o.headNormFirst === false
        ? identitySite('norm', dim, 'map')
        : site(norm(dim), { role: isTwice ? 'head_norm' : 'norm' });
    this.norm_pre = o.featureNorms ? null : normPre();
    const ends = { in: dim, out: dim, layout: 'map' } as const;
    this.norm_post = isTwice ? site(new Identity(), { role: 'norm', reader: 'classifier', ...ends }) : null;
    this.features = identitySite('features', dim, 'map');
    const normEps = o.headNormFirst === false && !o.featureNorms ? o.normEps : null;
    this.head = new ClassifierHead(dim, o.numClasses, { drop: o.dropRate, normEps });
    this.initWeights(o.headInitScale);
  }

  forwardFeatures(x: Tensor, ctx: Context = new Context()): Tensor {
    const norm = this.#levelNorms.at(-1) ?? this.norm_pre;
    const norms = this.norm_post ? [norm, norm, this.norm_post] : [norm];
    const parts = [...this.stages, ...norms, this.features].filter((part) => part !== null);
    return runChain(parts, this.embed(x, ctx), ctx);
  }

  forwardHead(features: Tensor, ctx: Context = new Context()): Tensor {
    return this.head.run(poolMap(features, 'avg'), ctx);
  }

  /** The maps after each stage; with `featureNorms` each after its own norm. */
  forwardIntermediates(x: Tensor, ctx: Context = new Context()): Tensor[] {
    const maps = outputsOf(this.stages, this.embed(x, ctx), ctx);
    return maps.map((map, i) => this.#levelNorms[i]?.run(map, ctx) ?? map);
  }

  protected override get tail(): readonly string[] {
    return ['norm_pre', 'head'];
  }

  resetClassifier(numClasses: number): void {
    this.head.fc = this.like(classifierSite(this.numFeatures, numClasses));
  }

  /** Also takes MLPs that are stored as 1x1 convolutions, as in timm's smallest models. */
  override convertStateDict(state: ReadonlyMap<string, Tensor>): Map<string, Tensor> {
    const out = super.convertStateDict(state);
    for (const [name, tensor] of out) {
      const isPointwise = tensor.ndim === 4 && tensor.shape[2] === 1 && tensor.shape[3] === 1;
      if (isPointwise && /\.mlp\.fc[12]\.weight$/.test(name)) out.set(name, tensor.flatten(1));
    }
    return out;
  }

  /** The map that enters the first stage, channels last: so the blocks' tokens are views of it. */
  private embed(x: Tensor, ctx: Context): Tensor {
    const map = this.stem.run(this.input.run(x, ctx), ctx);
    return map.contiguous({ memoryFormat: 'channels_last' });
  }

  /** Convolutions and linear layers truncated normal (0.02, cut at +-2), biases 0; the classifier times `headInitScale`. */
  private initWeights(headInitScale: number): void {
    this.apply((module) => {
      if (!(module instanceof Linear || module instanceof Conv2d)) return;
      init.truncNormal_(module.weight, { std: 0.02 });
      if (module.bias) init.zeros_(module.bias);
    });
    const { fc } = this.head;
    if (fc instanceof Linear) noGrad(() => fc.weight.mul_(headInitScale));
  }
}

function buildStages(o: ConvNeXtOptions): ConvNeXtStage[] {
  const total = o.depths.reduce((sum, n) => sum + n, 0);
  let depth = 0;
  return o.depths.map((count, stage) => {
    const dim = o.dims[stage] ?? 0;
    const before = o.dims[stage - 1] ?? dim;
    const blocks = Array.from(
      { length: count },
      () =>
        new ConvNeXtBlock({
          dim,
          kernel: o.kernelSize,
          hidden: Math.floor(dim * o.mlpRatio),
          normEps: o.normEps,
          layerScale: o.layerScale === 0 ? null : o.layerScale,
          dropPath: dropPathRateAt(o.dropPathRate, depth, total),
          stage,
          depth: depth++,
        }),
    );
    const downsample =
      stage > 0 ? downsampling(before, dim, { normEps: o.normEps, unbiased: o.unbiasedDownsampleNorm }) : null;
    return new ConvNeXtStage(before, dim, stage, { downsample, blocks: new BlockList(...blocks) });
  });
}
