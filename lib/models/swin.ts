/**
 * Swin transformer as timm defines it (`swin_transformer.py`, release 1.0.29, Apache-2.0), and with the options of
 * Microsoft's code. Liu et al., ICCV 2021, arXiv 2103.14030; Swin-S3: Chen et al. 2021, arXiv 2111.14725.
 */
import type { z } from 'zod';
import { applyKeyMap, type KeyMap, type KeyRule } from '../checkpoint/index.js';
import {
  Buffer,
  runChain,
  Context,
  Dropout,
  functional,
  Identity,
  init,
  type LayerNorm,
  Linear,
  Parameter,
  Sequential,
  site,
  Span,
} from '../nn/index.js';
import { empty, noGrad, type Tensor } from '../tensor/index.js';
import { Backbone, type FeatureLevel, type Preprocessing } from './backbone.js';
import { BlockList, classifierSite, dropPathRateAt, identitySite } from './blocks.js';
import { ClassifierHead } from './classifier_head.js';
import { requireSameLength, sizePair } from './family.js';
import { resamplePosEmbed } from './pos_embed.js';
import { PatchMerging, SwinBlock, SwinStage, WindowAttention } from './swin_blocks.js';
import { type Extent, relativePositionIndex, windowOf, Windows } from './swin_windows.js';
import type { swinOptions } from './swin_variants.js';
import { PatchEmbed, tokenNorm } from './vit_blocks.js';

/** Options of a Swin transformer, defaults filled in. */
export type SwinOptions = z.output<typeof swinOptions>;

/**
 * Microsoft's names (also those of old timm versions) to ours, for a model of `stages` stages; can be inverted. There a
 * patch merging ends a stage, here it begins the next one.
 */
export function microsoftSwinNames(stages: number): KeyMap {
  if (!(Number.isInteger(stages) && stages >= 1 && stages <= 100)) {
    throw new RangeError(`microsoftSwinNames: expected a number of stages from 1 to 100, got ${String(stages)}`);
  }
  const mergings = Array.from({ length: stages - 1 }, (_, i): KeyRule => {
    // From the last to the first: the other way round a name would be moved again and again.
    const stage = stages - 2 - i;
    return {
      kind: 'rename',
      from: `layers.${stage}.downsample.{rest...}`,
      to: `layers.${stage + 1}.downsample.{rest...}`,
    };
  });
  return [...mergings, { kind: 'rename', from: 'head.{leaf}', to: 'head.fc.{leaf}' }];
}

/** Swin transformer. See the option schema for what can be chosen; stages are `layers.0`, `layers.1`, ... as in timm. */
export class SwinTransformer extends Backbone {
  readonly name: string;
  readonly classifier = 'head.fc';
  /** From Microsoft's names; `convertStateDict` uses it for files that have them. */
  override readonly keyMap: KeyMap;
  readonly numFeatures: number;
  readonly featureLevels: readonly FeatureLevel[];
  readonly dynamicImgSize: boolean;

  /** Where patches do not know their places by themselves; only with `ape`. */
  readonly absolute_pos_embed: Parameter | null;
  /** The image batch. */
  readonly input: Identity;
  readonly patch_embed: PatchEmbed;
  readonly pos_drop: Dropout;
  /** The token sequence that enters the first stage. */
  readonly tokens: Identity;
  readonly layers: Sequential;
  readonly norm: LayerNorm;
  /** All tokens after the last norm. */
  readonly features: Identity;
  /** All tokens, those in front of the patches too, to their mean. */
  readonly pool: Span;
  readonly head: ClassifierHead;

  constructor(name: string, o: SwinOptions, config: Preprocessing) {
    super(config);
    checkSizes(name, o);
    this.name = name;
    this.dynamicImgSize = o.dynamicImgSize;
    this.keyMap = [
      { kind: 'drop', match: /\.(relative_position_index|attn_mask)$/ },
      ...microsoftSwinNames(o.depths.length),
    ];
    const dims = o.depths.map((_, i) => o.embedDim * 2 ** i);
    const dim = dims.at(-1) ?? 0;
    this.numFeatures = dim;
    const patch = sizePair(o.patchSize);
    this.featureLevels = dims.map((channels, i) => ({ path: `layers.${i}`, channels, stride: patch[0] * 2 ** i }));

    this.input = identitySite('input', o.inChans, 'map');
    this.patch_embed = new PatchEmbed(sizePair(o.imgSize), patch, o.inChans, o.embedDim, {
      sizes: o.dynamicImgSize ? 'any' : 'exact',
      normEps: o.patchNorm ? o.normEps : null,
    });
    const { grid } = this.patch_embed;
    const length = grid[0] * grid[1];
    this.absolute_pos_embed = o.ape ? new Parameter(empty([1, length, o.embedDim])) : null;
    this.pos_drop = new Dropout(o.posDropRate);
    const ends = { in: o.embedDim, out: o.embedDim, layout: 'tokens' } as const;
    this.tokens = site(new Identity(), { role: 'tokens', ...ends, ...(!o.dynamicImgSize && { length }) });
    this.layers = new Sequential(...buildStages(o, dims, grid));
    this.norm = tokenNorm(dim, o.normEps);
    this.features = identitySite('features', dim, 'tokens');
    this.pool = site(new Span((z) => z.mean([1])), { role: 'pool', in: dim, out: dim, layout: 'vector' });
    this.head = new ClassifierHead(dim, o.numClasses, { drop: o.dropRate });
    this.initWeights();
  }

  /** The tokens after the last norm, [B, N, C]; `ctx.grid` is their map. */
  forwardFeatures(x: Tensor, ctx: Context = new Context()): Tensor {
    const parts = [...this.layers, this.norm, this.features];
    return runChain(parts, this.embed(x, ctx), ctx);
  }

  forwardHead(features: Tensor, ctx: Context = new Context()): Tensor {
    return this.head.run(this.pool.run(features, ctx), ctx);
  }

  /** The patch tokens after each stage as maps, without the final norm. */
  forwardIntermediates(x: Tensor, ctx: Context = new Context()): Tensor[] {
    let z = this.embed(x, ctx);
    return [...this.layers].map((stage) => {
      z = stage.run(z, ctx);
      const [rows, columns] = ctx.grid ?? this.patch_embed.grid;
      const [batch = 0, , channels = 0] = z.shape;
      const patches = z.narrow(1, ctx.prefixTokens, rows * columns);
      return patches.transpose(1, 2).reshape([batch, channels, rows, columns]);
    });
  }

  protected override get tail(): readonly string[] {
    return ['norm', 'head'];
  }

  resetClassifier(numClasses: number): void {
    this.head.fc = this.like(classifierSite(this.numFeatures, numClasses));
  }

  /**
   * Takes files in timm's names and in Microsoft's, drops what they hold of masks and indices, and resamples tables of
   * relative positions and absolute position embeddings of other sizes.
   */
  override convertStateDict(state: ReadonlyMap<string, Tensor>): Map<string, Tensor> {
    const isMicrosoft = [...state.keys()].some((name) =>
      /^(head|layers\.0\.downsample\.\w+)\.(weight|bias)$/.test(name),
    );
    const out = applyKeyMap(isMicrosoft ? this.keyMap : this.keyMap.slice(0, 1), state).tensors;
    for (const [path, module] of this.namedModules()) {
      if (!(module instanceof WindowAttention)) continue;
      const name = `${path}.relative_position_bias_table`;
      const stored = out.get(name);
      if (stored) out.set(name, fitTable(stored, module));
    }
    const positions = out.get('absolute_pos_embed');
    if (positions && this.absolute_pos_embed) out.set('absolute_pos_embed', this.fitPositions(positions));
    return out;
  }

  /** Absolute positions of another square grid, resampled; unchanged where that is impossible, for the loader to report. */
  private fitPositions(stored: Tensor): Tensor {
    const [, positions = 0, channels = 0] = stored.shape;
    const [, expected = 0, dim = 0] = this.absolute_pos_embed?.shape ?? [];
    if (positions === expected || channels !== dim || !Number.isInteger(Math.sqrt(positions))) return stored;
    return noGrad(() => resamplePosEmbed(stored, this.patch_embed.grid, { prefixTokens: 0, antialias: false }));
  }

  /** The patches with what is said about their places: the sequence [B, N, C] that enters the first stage. */
  embed(x: Tensor, ctx: Context): Tensor {
    let z = this.patch_embed.run(this.input.run(x, ctx), ctx);
    ctx.prefixTokens = 0;
    if (this.absolute_pos_embed) {
      const grid = ctx.grid ?? this.patch_embed.grid;
      z = z.add(resamplePosEmbed(this.absolute_pos_embed, grid, { oldGrid: this.patch_embed.grid, prefixTokens: 0 }));
    }
    return this.tokens.run(this.pos_drop.run(z, ctx), ctx);
  }

  /** Linear weights, tables and positions truncated normal (0.02, cut at +-2), biases 0. */
  private initWeights(): void {
    if (this.absolute_pos_embed) init.truncNormal_(this.absolute_pos_embed, { std: 0.02 });
    this.apply((module) => {
      if (module instanceof WindowAttention) init.truncNormal_(module.relative_position_bias_table, { std: 0.02 });
      if (!(module instanceof Linear)) return;
      init.truncNormal_(module.weight, { std: 0.02 });
      if (module.bias) init.zeros_(module.bias);
    });
  }
}

/** A table of relative positions in a square window, resampled to the module's (bicubic); unchanged where impossible. */
function fitTable(stored: Tensor, { relative_position_bias_table: table, windows }: WindowAttention): Tensor {
  const [rows = 0, heads = 0] = stored.shape;
  const side = Math.sqrt(rows);
  if (rows === table.shape[0] || heads !== table.shape[1] || !Number.isInteger(side)) return stored;
  const size: Extent = [2 * windows.window[0] - 1, 2 * windows.window[1] - 1];
  return noGrad(() => {
    const map = stored.t().reshape([1, heads, side, side]);
    return functional
      .interpolate(map, { size, mode: 'bicubic' })
      .reshape([heads, size[0] * size[1]])
      .t();
  });
}

/** The windows of each stage. */
function windowSizes({ windowSize, depths }: SwinOptions): readonly Extent[] {
  return (typeof windowSize === 'number' ? depths.map(() => windowSize) : windowSize).map(sizePair);
}

/** @throws RangeError for lists of different lengths, or an image that is too small for the stages */
function checkSizes(name: string, o: SwinOptions): void {
  requireSameLength(name, { depths: o.depths, numHeads: o.numHeads, windowSize: windowSizes(o) });
  const [height, width] = sizePair(o.imgSize);
  const [ph, pw] = sizePair(o.patchSize);
  const halvings = o.depths.length - 1;
  if (Math.min(height / ph, width / pw) < 2 ** halvings) {
    const least = `${ph * 2 ** halvings} x ${pw * 2 ** halvings}`;
    throw new RangeError(
      `${name}: ${o.depths.length} stages need images of at least ${least}, and imgSize is ${height} x ${width}`,
    );
  }
  o.numHeads.forEach((heads, i) => {
    const dim = o.embedDim * 2 ** i;
    if (dim % heads !== 0) {
      throw new RangeError(`${name}: the width ${dim} of stage ${i} does not divide into ${heads} heads`);
    }
  });
}

/** The stages; the rule for windows goes by the map of the configured image, halved and rounded down at each stage. */
function buildStages(o: SwinOptions, dims: readonly number[], grid: Extent): SwinStage[] {
  const total = o.depths.reduce((sum, n) => sum + n, 0);
  const sizes = windowSizes(o);
  const indices = new Map<string, Buffer>();
  const indexOf = (window: Extent): Buffer => {
    const known = indices.get(window.join());
    const index = known ?? new Buffer(relativePositionIndex(window).flatten(), { persistent: false });
    indices.set(window.join(), index);
    return index;
  };
  let depth = 0;
  return o.depths.map((count, stage) => {
    const map: Extent = [Math.floor(grid[0] / 2 ** stage), Math.floor(grid[1] / 2 ** stage)];
    const windows = [false, true].map((shifted) => {
      const { window, shift } = windowOf(map, sizes[stage] ?? map, shifted, o.windowRule);
      return new Windows(window, shift);
    });
    const dim = dims[stage] ?? 0;
    const before = dims[stage - 1] ?? dim;
    const blocks = Array.from({ length: count }, (_, j) => {
      const own = windows[j % 2] as Windows;
      return new SwinBlock({
        dim,
        numHeads: o.numHeads[stage] ?? 1,
        hidden: Math.floor(dim * o.mlpRatio),
        qkvBias: o.qkvBias,
        normEps: o.normEps,
        dropPath: dropPathRateAt(o.dropPathRate, depth, total),
        projDrop: o.projDropRate,
        attnDrop: o.attnDropRate,
        stage,
        depth: depth++,
        windows: own,
        index: indexOf(own.window),
      });
    });
    const merging = stage > 0 ? new PatchMerging(before, dim, o.normEps) : null;
    return new SwinStage(before, dim, stage, merging, new BlockList(...blocks));
  });
}
