/**
 * Vision transformer as timm defines it (`vision_transformer.py`, release 1.0.29, Apache-2.0). Dosovitskiy et al., ICLR
 * 2021, arXiv 2010.11929; DeiT: Touvron et al. 2021, arXiv 2012.12877; DeiT III (layer scale, class token without
 * position): Touvron et al. 2022, arXiv 2204.07118; registers: Darcet et al. 2023, arXiv 2309.16588.
 */
import type { z } from 'zod';
import {
  chain,
  Context,
  Conv2d,
  DropPath,
  Dropout,
  GELU,
  type Identity,
  init,
  LayerNorm,
  LayerScale,
  Linear,
  Module,
  Parameter,
  site,
} from '../nn/index.js';
import { aten, empty, noGrad, type Tensor } from '../tensor/index.js';
import type { KeyMap } from '../checkpoint/index.js';
import { Backbone, type FeatureLevel, type Preprocessing } from './backbone.js';
import { BlockList, classifierSite, dropPathRateAt, identitySite } from './blocks.js';
import { sizePair } from './family.js';
import { resamplePosEmbed } from './pos_embed.js';
import type { vitOptions } from './vit_variants.js';

/** Options of a vision transformer, defaults filled in. */
export type ViTOptions = z.output<typeof vitOptions>;

/** Image [B, C, H, W] to tokens [B, N, D], row by row; says the grid to the context. */
export class PatchEmbed extends Module {
  readonly proj: Conv2d;

  constructor(
    private readonly imgSize: readonly [number, number],
    readonly patchSize: readonly [number, number],
    inChans: number,
    embedDim: number,
    private readonly anySize: boolean,
  ) {
    super();
    this.proj = site(
      new Conv2d(inChans, embedDim, { kernelSize: [...patchSize], stride: [...patchSize], bias: true }),
      { role: 'conv' },
    );
    site(this, {
      role: 'patch_embed',
      in: inChans,
      out: embedDim,
      layout: 'tokens',
      kernel: patchSize,
      stride: patchSize,
    });
  }

  /** Rows and columns of patches at the configured image size. */
  get grid(): [number, number] {
    return [Math.floor(this.imgSize[0] / this.patchSize[0]), Math.floor(this.imgSize[1] / this.patchSize[1])];
  }

  forward(x: Tensor, ctx: Context): Tensor {
    const [, , height = 0, width = 0] = x.shape;
    const [ph, pw] = this.patchSize;
    if (!this.anySize && (height !== this.imgSize[0] || width !== this.imgSize[1])) {
      throw new RangeError(
        `this vision transformer was built for images of ${this.imgSize.join(' x ')} and was given ${height} x ${width}; ` +
          'resize them, or create the model with { imgSize } of that size or { dynamicImgSize: true }',
      );
    }
    if (height % ph !== 0 || width % pw !== 0) {
      throw new RangeError(`an image of ${height} x ${width} does not divide into patches of ${ph} x ${pw}`);
    }
    const map = this.proj.run(x, ctx);
    const [, , rows = 0, columns = 0] = map.shape;
    ctx.grid = [rows, columns];
    return map.flatten(2).transpose(1, 2);
  }
}

/** Sizes of a transformer block. */
export interface ViTBlockOptions {
  readonly dim: number;
  readonly numHeads: number;
  /** Width of the MLP's hidden layer. */
  readonly hidden: number;
  readonly qkvBias: boolean;
  readonly normEps: number;
  /** Initial layer scale, or null for none. */
  readonly initValues: number | null;
  readonly dropPath: number;
  readonly projDrop: number;
  readonly attnDrop: number;
  readonly depth: number;
}

/**
 * Multi-head self-attention: softmax(q k^T / sqrt(d)) v per head of width d = D / heads, then `proj`. Rows 0..D-1 of
 * `qkv` make q (head after head), then k, then v. [B, N, D] -> [B, N, D].
 */
export class Attention extends Module {
  readonly qkv: Linear;
  readonly proj: Linear;
  readonly proj_drop: Dropout;

  constructor(
    dim: number,
    readonly numHeads: number,
    { qkvBias, attnDrop, projDrop }: Pick<ViTBlockOptions, 'qkvBias' | 'attnDrop' | 'projDrop'>,
  ) {
    super();
    if (dim % numHeads !== 0)
      throw new RangeError(`attention: a width of ${dim} does not divide into ${numHeads} heads`);
    this.attnDrop = attnDrop;
    this.qkv = site(new Linear(dim, 3 * dim, { bias: qkvBias }), {
      role: 'linear',
      layout: 'tokens',
      slice: ['q', 'k', 'v'].map((name, i) => ({ name, start: i * dim, length: dim })),
    });
    this.proj = site(new Linear(dim, dim), { role: 'linear', layout: 'tokens' });
    this.proj_drop = new Dropout(projDrop);
    site(this, { role: 'attention', in: dim, out: dim, layout: 'tokens' });
  }

  private readonly attnDrop: number;

  forward(x: Tensor, ctx: Context): Tensor {
    const [batch = 0, length = 0, dim = 0] = x.shape;
    const headDim = dim / this.numHeads;
    const qkv = this.qkv.run(x, ctx).reshape([batch, length, 3, this.numHeads, headDim]).permute([2, 0, 3, 1, 4]);
    const dropout = this.training ? this.attnDrop : 0;
    // One unbind: its gradient is one stack, where three selects would each make a gradient of full size.
    const [q, k, v] = qkv.unbind(0) as [Tensor, Tensor, Tensor];
    const mixed = aten.scaledDotProductAttention(q, k, v, null, dropout);
    const joined = mixed.transpose(1, 2).reshape([batch, length, dim]);
    return this.proj_drop.run(this.proj.run(joined, ctx), ctx);
  }
}

/** fc2(GELU(fc1 x)), exact (erf) GELU. */
export class Mlp extends Module {
  readonly fc1: Linear;
  readonly act: GELU;
  readonly drop1: Dropout;
  readonly fc2: Linear;
  readonly drop2: Dropout;

  constructor(dim: number, hidden: number, drop = 0) {
    super();
    this.fc1 = site(new Linear(dim, hidden), { role: 'linear', layout: 'tokens' });
    this.act = new GELU();
    this.drop1 = new Dropout(drop);
    this.fc2 = site(new Linear(hidden, dim), { role: 'linear', layout: 'tokens' });
    this.drop2 = new Dropout(drop);
    site(this, { role: 'mlp', in: dim, out: dim, layout: 'tokens' });
  }

  forward(x: Tensor, ctx: Context): Tensor {
    const parts = [this.fc1, this.act, this.drop1, this.fc2, this.drop2];
    return chain<Module>(parts, (part, t) => part.run(t, ctx), x, ctx);
  }
}

/** Pre-norm block: z += ls1(attn(norm1 z)); z += ls2(mlp(norm2 z)). [B, N, D] -> [B, N, D]. */
export class ViTBlock extends Module {
  readonly norm1: LayerNorm;
  readonly attn: Attention;
  readonly ls1: LayerScale | null;
  readonly drop_path1: DropPath | null;
  readonly norm2: LayerNorm;
  readonly mlp: Mlp;
  readonly ls2: LayerScale | null;
  readonly drop_path2: DropPath | null;

  constructor(o: ViTBlockOptions) {
    super();
    const scale = () => (o.initValues === null ? null : new LayerScale(o.dim, { init: o.initValues }));
    const path = () => (o.dropPath > 0 ? new DropPath(o.dropPath) : null);
    this.norm1 = tokenNorm(o.dim, o.normEps);
    this.attn = new Attention(o.dim, o.numHeads, o);
    this.ls1 = scale();
    this.drop_path1 = path();
    this.norm2 = tokenNorm(o.dim, o.normEps);
    this.mlp = new Mlp(o.dim, o.hidden, o.projDrop);
    this.ls2 = scale();
    this.drop_path2 = path();
    site(this, { role: 'block', in: o.dim, out: o.dim, layout: 'tokens', stage: 0, depth: o.depth });
  }

  forward(x: Tensor, ctx: Context): Tensor {
    const run = (module: Module, t: Tensor): Tensor => module.run(t, ctx);
    let y = chain<Module>([this.norm1, this.attn], run, x, ctx);
    if (this.ls1) y = this.ls1.run(y, ctx);
    if (this.drop_path1) y = this.drop_path1.run(y, ctx);
    const z = x.add(y);
    y = chain<Module>([this.norm2, this.mlp], run, z, ctx);
    if (this.ls2) y = this.ls2.run(y, ctx);
    if (this.drop_path2) y = this.drop_path2.run(y, ctx);
    return z.add(y);
  }
}

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
  /** The token sequence that enters the blocks. */
  readonly tokens: Identity;
  readonly blocks: BlockList;
  /** Over all tokens; an identity when the norm follows the pool as `fc_norm`. */
  readonly norm: LayerNorm | Identity;
  /** All tokens after the last norm. */
  readonly features: Identity;
  readonly fc_norm: LayerNorm | null;
  /** The pooled vector. */
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
    this.numFeatures = dim;
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
    this.patch_embed = new PatchEmbed(sizePair(o.imgSize), patch, o.inChans, dim, o.dynamicImgSize);
    const [rows, columns] = this.patch_embed.grid;
    this.cls_token = o.classToken ? new Parameter(empty([1, 1, dim])) : null;
    this.reg_token = o.regTokens > 0 ? new Parameter(empty([1, o.regTokens, dim])) : null;
    this.pos_embed = new Parameter(empty([1, this.positionPrefix + rows * columns, dim]));
    this.pos_drop = new Dropout(o.posDropRate);
    this.tokens = identitySite('tokens', dim, 'tokens');
    this.blocks = new BlockList(...Array.from({ length: o.depth }, (_, i) => blockOf(o, i)));
    const normAfterPool = o.fcNorm ?? o.globalPool !== 'token';
    this.norm = normAfterPool ? identitySite('norm', dim, 'tokens') : tokenNorm(dim, o.normEps);
    this.features = identitySite('features', dim, 'tokens');
    this.fc_norm = normAfterPool
      ? site(new LayerNorm(dim, { eps: o.normEps }), { role: 'head_norm', layout: 'vector' })
      : null;
    this.pre_logits = identitySite('pre_logits', dim, 'vector');
    this.head_drop = new Dropout(o.dropRate);
    this.head = classifierSite(dim, o.numClasses);
    this.initWeights();
  }

  /** Leading positions of `pos_embed` that belong to no patch. */
  get positionPrefix(): number {
    return this.noEmbedClass ? 0 : this.numPrefixTokens;
  }

  forwardFeatures(x: Tensor, ctx: Context = new Context()): Tensor {
    const z = this.blocks.run(this.embed(x, ctx), ctx);
    return this.features.run(this.norm.run(z, ctx), ctx);
  }

  forwardHead(features: Tensor, ctx: Context = new Context()): Tensor {
    let pooled = this.pool(features, ctx);
    if (this.fc_norm) pooled = this.fc_norm.run(pooled, ctx);
    return this.head.run(this.head_drop.run(this.pre_logits.run(pooled, ctx), ctx), ctx);
  }

  /** The patch tokens after each block as maps, without the final norm. */
  forwardIntermediates(x: Tensor, ctx: Context = new Context()): Tensor[] {
    let z = this.embed(x, ctx);
    const [rows, columns] = ctx.grid ?? this.patch_embed.grid;
    const maps: Tensor[] = [];
    for (const block of this.blocks) {
      z = block.run(z, ctx);
      const patches = z.narrow(1, ctx.prefixTokens, rows * columns);
      maps.push(patches.transpose(1, 2).reshape([patches.shape[0] ?? 0, this.numFeatures, rows, columns]));
    }
    return maps;
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
    return noGrad(() => resamplePosEmbed(stored, this.patch_embed.grid, { prefixTokens: this.positionPrefix }));
  }

  /** Patches, position embeddings and prefix tokens: the sequence that enters the blocks. */
  private embed(x: Tensor, ctx: Context): Tensor {
    let z = this.patch_embed.run(this.input.run(x, ctx), ctx);
    const position = this.positions(ctx.grid ?? this.patch_embed.grid);
    if (this.noEmbedClass) z = z.add(position);
    const batch = z.shape[0] ?? 0;
    const prefix = [this.cls_token, this.reg_token].filter((token) => token !== null);
    if (prefix.length > 0) z = aten.cat([...prefix.map((token) => token.expand([batch, -1, -1])), z], 1);
    if (!this.noEmbedClass) z = z.add(position);
    ctx.prefixTokens = this.numPrefixTokens;
    return this.tokens.run(this.pos_drop.run(z, ctx), ctx);
  }

  private positions(grid: readonly [number, number]): Tensor {
    if (!this.dynamicImgSize) return this.pos_embed;
    return resamplePosEmbed(this.pos_embed, grid, {
      oldGrid: this.patch_embed.grid,
      prefixTokens: this.positionPrefix,
    });
  }

  private pool(z: Tensor, ctx: Context): Tensor {
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
  private initWeights(): void {
    init.truncNormal_(this.pos_embed, { std: 0.02 });
    for (const token of [this.cls_token, this.reg_token]) if (token) init.normal_(token, 0, 1e-6);
    this.apply((module) => {
      if (!(module instanceof Linear)) return;
      init.truncNormal_(module.weight, { std: 0.02 });
      if (module.bias) init.zeros_(module.bias);
    });
  }
}

function tokenNorm(dim: number, eps: number): LayerNorm {
  return site(new LayerNorm(dim, { eps }), { role: 'norm', layout: 'tokens' });
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
    depth,
  });
}
