/**
 * Vision transformer as timm defines it (`vision_transformer.py`, release 1.0.29, Apache-2.0). Dosovitskiy et al., ICLR
 * 2021, arXiv 2010.11929; DeiT: Touvron et al. 2021, arXiv 2012.12877; DeiT III (layer scale, class token without
 * position): Touvron et al. 2022, arXiv 2204.07118; registers: Darcet et al. 2023, arXiv 2309.16588.
 */
import type { z } from 'zod';
import { Context, Dropout, Identity, init, LayerNorm, Linear, Parameter, site, Span } from '../nn/index.js';
import { aten, empty, noGrad, type Tensor } from '../tensor/index.js';
import type { KeyMap } from '../checkpoint/index.js';
import { Backbone, type FeatureLevel, type Preprocessing } from './backbone.js';
import { BlockList, classifierSite, dropPathRateAt, identitySite } from './blocks.js';
import { meanOverFrames } from './clips.js';
import { sizePair } from './family.js';
import { resamplePosEmbed } from './pos_embed.js';
import { PatchEmbed, tokenNorm, ViTBlock } from './vit_blocks.js';
import type { vitOptions } from './vit_variants.js';

/** Options of a vision transformer, defaults filled in. */
export type ViTOptions = z.output<typeof vitOptions>;

/** Vision transformer. Tokens stand in the order [class, registers, patches row by row]. */
export class VisionTransformer extends Backbone {
  readonly name: string;
  readonly classifier = 'head';
  /** Names are timm's; old files hold a `pre_logits` layer in vain, DeiT III's call the layer scale `gamma_1`, `gamma_2`. */
  override readonly keyMap: KeyMap = [
    { kind: 'drop', match: 'pre_logits.{rest...}' },
    { kind: 'rename', from: 'blocks.{i}.gamma_1', to: 'blocks.{i}.ls1.gamma' },
    { kind: 'rename', from: 'blocks.{i}.gamma_2', to: 'blocks.{i}.ls2.gamma' },
  ];
  readonly numFeatures: number;
  /** Width of the tokens. */
  readonly embedDim: number;
  readonly featureLevels: readonly FeatureLevel[];
  readonly globalPool: ViTOptions['globalPool'];
  /** Class token and registers. */
  readonly numPrefixTokens: number;
  readonly dynamicImgSize: boolean;
  readonly noEmbedClass: boolean;

  readonly cls_token: Parameter | null;
  readonly reg_token: Parameter | null;
  readonly pos_embed: Parameter;
  /** The image batch. */
  readonly input: Identity;
  readonly patch_embed: PatchEmbed;
  readonly pos_drop: Dropout;
  readonly norm_pre: LayerNorm | null;
  /** The token sequence that enters the blocks. */
  readonly tokens: Identity;
  readonly blocks: BlockList;
  /** Over all tokens; an identity when the norm follows the pool as `fc_norm`. */
  readonly norm: LayerNorm | Identity;
  /** All tokens after the last norm. */
  readonly features: Identity;
  /** All tokens to the vector that the head reads. */
  readonly pool: Span;
  readonly fc_norm: LayerNorm | null;
  /** From the pooled vector to another space, without a bias: CLIP's. */
  readonly proj: Linear | null;
  /** The vector that enters the classifier. */
  readonly pre_logits: Identity;
  readonly head_drop: Dropout;
  head: Linear | Identity;

  constructor(name: string, o: ViTOptions, config: Preprocessing) {
    super(config);
    if (!o.classToken && o.globalPool === 'token') {
      throw new RangeError(`${name}: without a class token there is none to read; give globalPool 'avg' or 'max'`);
    }
    const dim = o.embedDim;
    this.name = name;
    this.numFeatures = o.projDim ?? dim;
    this.embedDim = dim;
    this.globalPool = o.globalPool;
    this.numPrefixTokens = (o.classToken ? 1 : 0) + o.regTokens;
    this.dynamicImgSize = o.dynamicImgSize;
    this.noEmbedClass = o.noEmbedClass;
    const patch = sizePair(o.patchSize);
    this.featureLevels = Array.from({ length: o.depth }, (_, i) => ({
      path: `blocks.${i}`,
      channels: dim,
      stride: patch[0],
    }));

    this.input = identitySite('input', o.inChans, 'map');
    this.patch_embed = new PatchEmbed(sizePair(o.imgSize), patch, o.inChans, dim, {
      sizes: o.dynamicImgSize ? 'any' : o.strictImgSize ? 'exact' : 'count',
      bias: !o.preNorm,
      normEps: o.patchNorm ? o.normEps : null,
    });
    const [rows, columns] = this.patch_embed.grid;
    this.cls_token = o.classToken ? new Parameter(empty([1, 1, dim])) : null;
    this.reg_token = o.regTokens > 0 ? new Parameter(empty([1, o.regTokens, dim])) : null;
    this.pos_embed = new Parameter(empty([1, this.positionPrefix + rows * columns, dim]));
    this.pos_drop = new Dropout(o.posDropRate);
    this.norm_pre = o.preNorm ? tokenNorm(dim, o.normEps) : null;
    const length = this.numPrefixTokens + rows * columns;
    this.tokens = site(new Identity(), { role: 'tokens', in: dim, out: dim, layout: 'tokens', length });
    this.blocks = new BlockList(...Array.from({ length: o.depth }, (_, i) => blockOf(o, i)));
    const normAfterPool = o.fcNorm ?? o.globalPool !== 'token';
    this.norm = normAfterPool ? identitySite('norm', dim, 'tokens') : tokenNorm(dim, o.normEps);
    this.features = identitySite('features', dim, 'tokens');
    this.pool = site(new Span((z, ctx) => this.pooled(z, ctx)), { role: 'pool', in: dim, out: dim, layout: 'vector' });
    this.fc_norm = normAfterPool
      ? site(new LayerNorm(dim, { eps: o.normEps }), { role: 'head_norm', layout: 'vector' })
      : null;
    this.proj =
      o.projDim === null
        ? null
        : site(new Linear(dim, o.projDim, { bias: false }), { role: 'linear', layout: 'vector' });
    this.pre_logits = identitySite('pre_logits', this.numFeatures, 'vector');
    this.head_drop = new Dropout(o.dropRate);
    this.head = classifierSite(this.numFeatures, o.numClasses);
    this.initWeights();
  }

  /** Leading positions of `pos_embed` that belong to no patch. */
  get positionPrefix(): number {
    return this.noEmbedClass ? 0 : this.numPrefixTokens;
  }

  /** The tokens [B, N, D] after the last norm, which reads the mean over the frames of a clip. */
  forwardFeatures(x: Tensor, ctx: Context = new Context()): Tensor {
    const z = meanOverFrames(this.blocks.run(this.embed(x, ctx), ctx), ctx);
    return this.features.run(this.norm.run(z, ctx), ctx);
  }

  forwardHead(features: Tensor, ctx: Context = new Context()): Tensor {
    let pooled = this.pool.run(features, ctx);
    if (this.fc_norm) pooled = this.fc_norm.run(pooled, ctx);
    if (this.proj) pooled = this.proj.run(pooled, ctx);
    return this.head.run(this.head_drop.run(this.pre_logits.run(pooled, ctx), ctx), ctx);
  }

  /** The patch tokens after each block as maps, without the final norm. */
  forwardIntermediates(x: Tensor, ctx: Context = new Context()): Tensor[] {
    let z = this.embed(x, ctx);
    const maps: Tensor[] = [];
    for (const block of this.blocks) {
      z = block.run(z, ctx);
      maps.push(this.patchMap(z, ctx));
    }
    return maps;
  }

  /** The patches among tokens [B, N, C] as a map [B, C, h, w]. */
  protected patchMap(tokens: Tensor, ctx: Context): Tensor {
    const [rows, columns] = ctx.grid ?? this.patch_embed.grid;
    const patches = tokens.narrow(1, ctx.prefixTokens, rows * columns).transpose(1, 2);
    return patches.unflatten(2, [rows, columns]);
  }

  protected override get tail(): readonly string[] {
    return ['norm', 'fc_norm', 'proj', 'head'];
  }

  resetClassifier(numClasses: number): void {
    this.head = this.like(classifierSite(this.numFeatures, numClasses));
  }

  /** Also unfolds a patch projection stored as a matrix and resamples position embeddings of another grid, taken as square. */
  override convertStateDict(state: ReadonlyMap<string, Tensor>): Map<string, Tensor> {
    const out = super.convertStateDict(state);
    const positions = out.get('pos_embed');
    if (positions) out.set('pos_embed', this.fitPositions(positions));
    const patches = out.get('patch_embed.proj.weight');
    const expected = this.patch_embed.proj.weight;
    if (patches?.ndim === 2 && patches.numel() === expected.numel())
      out.set('patch_embed.proj.weight', patches.reshape(expected.shape));
    return out;
  }

  /** Position embeddings of another grid, resampled; unchanged where that is impossible, for the loader to report. */
  private fitPositions(stored: Tensor): Tensor {
    const [, positions = 0, channels = 0] = stored.shape;
    const [, expected = 0, dim = 0] = this.pos_embed.shape;
    const side = Math.sqrt(positions - this.positionPrefix);
    if (positions === expected || stored.ndim !== 3 || channels !== dim || !Number.isInteger(side)) return stored;
    return noGrad(() => this.resample(stored, [side, side], this.patch_embed.grid));
  }

  /** Patches, position embeddings and prefix tokens: the sequence [B, N, D] that enters the blocks. */
  embed(x: Tensor, ctx: Context): Tensor {
    let z = this.patch_embed.run(this.input.run(x, ctx), ctx);
    const position = this.positions(ctx.grid ?? this.patch_embed.grid);
    if (this.noEmbedClass) z = z.add(position);
    const batch = z.shape[0] ?? 0;
    const prefix = [this.cls_token, this.reg_token].filter((token) => token !== null);
    if (prefix.length > 0) z = aten.cat([...prefix.map((token) => token.expand([batch, -1, -1])), z], 1);
    if (!this.noEmbedClass) z = z.add(position);
    ctx.prefixTokens = this.numPrefixTokens;
    z = this.pos_drop.run(z, ctx);
    return this.tokens.run(this.norm_pre ? this.norm_pre.run(z, ctx) : z, ctx);
  }

  /** The position embeddings for a grid of patches, resampled where it is not the own one. */
  protected positions(grid: readonly [number, number]): Tensor {
    if (!this.dynamicImgSize) return this.pos_embed;
    return this.resample(this.pos_embed, this.patch_embed.grid, grid);
  }

  /** Positions [1, prefix + N, D] of one grid at another: bicubic, with a low-pass filter. */
  protected resample(
    positions: Tensor,
    from: readonly [rows: number, columns: number],
    to: readonly [rows: number, columns: number],
  ): Tensor {
    return resamplePosEmbed(positions, to, { oldGrid: from, prefixTokens: this.positionPrefix });
  }

  private pooled(z: Tensor, ctx: Context): Tensor {
    if (this.globalPool === 'token') return z.select(1, 0);
    const length = z.shape[1] ?? 0;
    const prefix = ctx.grid ? ctx.prefixTokens : this.numPrefixTokens;
    const patches = prefix > 0 ? z.narrow(1, prefix, length - prefix) : z;
    if (this.globalPool === 'avg') return patches.mean([1]);
    if (this.globalPool === 'max') return patches.amax([1]);
    return patches
      .mean([1])
      .add(patches.amax([1]))
      .mul(0.5);
  }

  /** Linear weights and positions truncated normal (0.02, cut at +-2), biases 0, class token and registers N(0, 1e-6). */
  protected initWeights(): void {
    init.truncNormal_(this.pos_embed, { std: 0.02 });
    for (const token of [this.cls_token, this.reg_token]) if (token) init.normal_(token, 0, 1e-6);
    this.apply((module) => {
      if (!(module instanceof Linear)) return;
      init.truncNormal_(module.weight, { std: 0.02 });
      if (module.bias) init.zeros_(module.bias);
    });
  }
}

function blockOf(o: ViTOptions, depth: number): ViTBlock {
  return new ViTBlock({
    dim: o.embedDim,
    numHeads: o.numHeads,
    hidden: Math.floor(o.embedDim * o.mlpRatio),
    qkvBias: o.qkvBias,
    normEps: o.normEps,
    initValues: o.initValues,
    dropPath: dropPathRateAt(o.dropPathRate, depth, o.depth),
    projDrop: o.projDropRate,
    attnDrop: o.attnDropRate,
    activation: o.activation,
    depth,
  });
}
