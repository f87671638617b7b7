/** The parts of RevCol, in the names of its files: block, fusion, level, column, classifier, decoders. */
import {
  type Context,
  Conv2d,
  DropPath,
  GELU,
  type Identity,
  LayerNorm,
  LayerNorm2d,
  Linear,
  Module,
  Parameter,
  Sequential,
  site,
  Span,
} from '../nn/index.js';
import { aten, full, noGrad, type Tensor } from '../tensor/index.js';
import { BlockList, classifierSite, convSite, identitySite, poolMap } from './blocks.js';
import { mapOf, tokensOf } from './hornet_blocks.js';
import { stretch, tokenNorm } from './vit_blocks.js';

const EPS = 1e-6;

/** The four maps of a column, finest first. */
export type Levels = readonly [Tensor, Tensor, Tensor, Tensor];

/** What a `RevColBlock` is built from. */
export interface RevColBlockOptions {
  readonly dim: number;
  /** Width of the MLP's hidden layer. */
  readonly hidden: number;
  /** Odd side of the depth-wise kernel. */
  readonly kernel: number;
  readonly layerScale: number;
  readonly dropPath: number;
}

/** y = x + gamma pwconv2(GELU(pwconv1(norm(dwconv x)))) on maps [B, C, H, W]; norm and MLP see the pixels as tokens. */
class RevColBlock extends Module {
  readonly gamma: Parameter;
  readonly dwconv: Conv2d;
  readonly norm: LayerNorm;
  readonly pwconv1: Linear;
  readonly act: GELU;
  readonly pwconv2: Linear;
  readonly drop_path: DropPath | null;
  readonly mlp: Span;
  /** x -> dwconv x. */
  readonly spatial: Span;
  /** x -> what is added to x, before stochastic depth. */
  readonly residual: Span;

  constructor({ dim, hidden, kernel, layerScale, dropPath }: RevColBlockOptions) {
    super();
    const padding = Math.floor(kernel / 2);
    this.gamma = new Parameter(full([dim], layerScale));
    this.dwconv = convSite(dim, dim, { kernelSize: kernel, padding, groups: dim, bias: true });
    this.norm = tokenNorm(dim, EPS);
    this.pwconv1 = site(new Linear(dim, hidden), { role: 'linear', layout: 'tokens' });
    this.act = new GELU();
    this.pwconv2 = site(new Linear(hidden, dim), { role: 'linear', layout: 'tokens' });
    this.drop_path = dropPath > 0 ? new DropPath(dropPath) : null;
    const around = { in: dim, out: dim, layout: 'map', kernel, padding, stride: 1, activation: 'gelu' } as const;
    this.mlp = stretch('mlp', dim, () => [this.pwconv1, this.act, this.pwconv2]);
    this.spatial = site(new Span((x, ctx) => this.dwconv.run(x, ctx)), { role: 'spatial', ...around });
    const branch = (x: Tensor, ctx: Context): Tensor => {
      const tokens = tokensOf(this.spatial.run(x, ctx), ctx);
      return mapOf(this.mlp.run(this.norm.run(tokens, ctx), ctx).mul(this.gamma), ctx);
    };
    this.residual = site(new Span(branch), { role: 'residual', ...around });
  }

  forward(x: Tensor, ctx: Context): Tensor {
    const branch = this.residual.run(x, ctx);
    return x.add(this.drop_path ? this.drop_path.run(branch, ctx) : branch);
  }
}

/** A coarser level to a finer one: linear layer and norm of each pixel, then every pixel `factor` x `factor` times. */
class UpSample extends Module {
  readonly channel_reschedule: Sequential;

  constructor(
    inChannels: number,
    outChannels: number,
    private readonly factor: number,
  ) {
    super();
    const linear = site(new Linear(inChannels, outChannels), { role: 'linear', layout: 'tokens' });
    this.channel_reschedule = new Sequential(linear, tokenNorm(outChannels, EPS));
  }

  forward(x: Tensor, ctx: Context): Tensor {
    const map = mapOf(this.channel_reschedule.run(tokensOf(x, ctx), ctx), ctx);
    const [, , rows = 0, columns = 0] = map.shape;
    return aten.upsampleNearest2d(map, [rows * this.factor, columns * this.factor]);
  }
}

/** What a level reads: the finer level of its own column and the coarser ones of the column before. */
class Fusion extends Module {
  readonly down: Sequential | null;
  readonly up: UpSample | null;
  /** From the coarsest level to the finest; huge model only. */
  readonly up2: UpSample | null;

  constructor(channels: readonly number[], level: number, first: boolean, huge: boolean) {
    super();
    const [finer = 0, own = 0, coarser = 0] = [channels[level - 1], channels[level], channels[level + 1]];
    this.down =
      level === 0
        ? null
        : site(
            new Sequential(
              convSite(finer, own, { kernelSize: 2, stride: 2, bias: true }),
              site(new LayerNorm2d(own, { eps: EPS }), { role: 'norm' }),
            ),
            { role: 'downsample', in: finer, out: own, layout: 'map', kernel: 2, stride: 2 },
          );
    this.up = first || level === 3 ? null : new UpSample(coarser, own, 2);
    this.up2 = huge && !first && level === 0 ? new UpSample(channels[3] ?? 0, own, 8) : null;
  }

  /** Down-part of `down`, plus the up-parts of `ups`: the next coarser level and, where it is used, the coarsest. */
  fuse(down: Tensor, ups: readonly Tensor[], ctx: Context): Tensor {
    let sum = this.down ? this.down.run(down, ctx) : down;
    [this.up, this.up2].forEach((part, i) => {
      const up = ups[i];
      if (part && up) sum = sum.add(part.run(up, ctx));
    });
    return sum;
  }

  /** @throws TypeError always: a fusion has many inputs; its level calls `fuse` */
  forward(): Tensor {
    throw new TypeError('a fusion has several inputs; its level runs it');
  }
}

/** What a `Column` is built from. */
export interface ColumnOptions {
  /** Channels of the four levels. */
  readonly channels: readonly number[];
  /** Blocks of the four levels. */
  readonly layers: readonly number[];
  readonly kernel: number;
  readonly expansion: number;
  readonly layerScale: number;
  readonly alpha: number;
  /** Stochastic depth of each block. Default: none. */
  readonly dropPaths?: readonly number[];
  /** Whether there is no column before. */
  readonly first: boolean;
  /** Whether the finest level also reads the coarsest. */
  readonly huge: boolean;
  /** Depth of the first block. Default 0. */
  readonly depth?: number;
}

/** L_i(down, up) = blocks(fusion(down, up)). */
export class Level extends Module {
  readonly fusion: Fusion;
  readonly blocks: BlockList;

  constructor(o: ColumnOptions, level: number) {
    super();
    const dim = o.channels[level] ?? 0;
    const before = o.layers.slice(0, level).reduce((sum, n) => sum + n, 0);
    const hidden = o.expansion * dim;
    this.fusion = new Fusion(o.channels, level, o.first, o.huge);
    const blocks = Array.from({ length: o.layers[level] ?? 0 }, (_, j) => {
      const dropPath = o.dropPaths?.[before + j] ?? 0;
      const block = new RevColBlock({ dim, hidden, kernel: o.kernel, layerScale: o.layerScale, dropPath });
      const depth = (o.depth ?? 0) + before + j;
      return site(block, { role: 'block', in: dim, out: dim, layout: 'map', stage: level, depth });
    });
    const ends = { in: dim, out: dim, layout: 'map', stride: 1 } as const;
    this.blocks = site(new BlockList(...blocks), { role: 'stage', stage: level, ...ends });
  }

  compute(down: Tensor, ups: readonly Tensor[], ctx: Context): Tensor {
    return this.blocks.run(this.fusion.fuse(down, ups, ctx), ctx);
  }

  /** @throws TypeError always: a level has many inputs; its column calls `compute` */
  forward(): Tensor {
    throw new TypeError('a level has several inputs; its column runs it');
  }
}

/** Smallest magnitude that a factor is brought to before use; exact zeros stay. */
const SMALLEST_ALPHA = 1e-3;

/**
 * One column: c_i' = alpha_i c_i + L_i(c_{i-1}', c_{i+1}) for i = 0..3, with c_{-1}' the stem's map and c the levels of
 * the column before (none: 0). Cai et al., ICLR 2023, arXiv 2212.11696, equation 5.
 */
export class Column extends Module {
  readonly alpha0: Parameter;
  readonly alpha1: Parameter;
  readonly alpha2: Parameter;
  readonly alpha3: Parameter;
  readonly level0: Level;
  readonly level1: Level;
  readonly level2: Level;
  readonly level3: Level;
  readonly #huge: boolean;

  constructor(o: ColumnOptions) {
    super();
    const [alpha0, alpha1, alpha2, alpha3] = o.channels.map((c) => new Parameter(full([1, c, 1, 1], o.alpha)));
    if (!alpha0 || !alpha1 || !alpha2 || !alpha3 || o.channels.length !== 4 || o.layers.length !== 4) {
      throw new RangeError(
        `a column has 4 levels, and channels and layers name ${o.channels.length} and ${o.layers.length}`,
      );
    }
    [this.alpha0, this.alpha1, this.alpha2, this.alpha3] = [alpha0, alpha1, alpha2, alpha3];
    this.level0 = new Level(o, 0);
    this.level1 = new Level(o, 1);
    this.level2 = new Level(o, 2);
    this.level3 = new Level(o, 3);
    this.#huge = o.huge;
  }

  get alphas(): readonly Parameter[] {
    return [this.alpha0, this.alpha1, this.alpha2, this.alpha3];
  }

  get levels(): readonly Level[] {
    return [this.level0, this.level1, this.level2, this.level3];
  }

  /** Brings the stored factors to sign(a) max(|a|, 1e-3), as the official code does before every use. */
  clampAlphas(): void {
    noGrad(() => {
      // New data rather than a change in place: graphs of earlier passes keep what they saved.
      for (const a of this.alphas) a.setData(a.sign().mul(a.abs().clampMin(SMALLEST_ALPHA)));
    });
  }

  /** Levels of the column before that level `i` reads, besides its own. */
  upsOf(i: number, old: Levels | null): Tensor[] {
    if (old === null || i === 3) return [];
    return i === 0 && this.#huge ? [old[1], old[3]] : [old[i + 1] as Tensor];
  }

  /**
   * @param x the stem's map
   * @param old levels of the column before, null for the first column
   */
  compute(x: Tensor, old: Levels | null, ctx: Context): Levels {
    const out: Tensor[] = [];
    let down = x;
    for (let i = 0; i < 4; i++) out.push((down = this.computeLevel(i, down, old, ctx)));
    return out as unknown as Levels;
  }

  /** c_i' from c_{i-1}' (`down`) and the levels of the column before. */
  computeLevel(i: number, down: Tensor, old: Levels | null, ctx: Context): Tensor {
    const own = (this.levels[i] as Level).compute(down, this.upsOf(i, old), ctx);
    return old ? aten.addcmul(own, old[i] as Tensor, this.alphas[i] as Parameter) : own;
  }

  /** @throws TypeError always: a column has many inputs; call `compute` */
  forward(): Tensor {
    throw new TypeError('a column has several inputs: call compute(x, levels, ctx)');
  }
}

/** Mean over the map, norm, linear layer. [B, C, H, W] -> [B, classes]. */
export class RevColHead extends Module {
  readonly classifier: Sequential;
  /** The vector that enters the linear layer. */
  readonly pre_logits: Identity | null;

  /** @param isSite false for classifiers of inner columns, which no graft should find */
  constructor(dim: number, numClasses: number, isSite = true) {
    super();
    const norm = new LayerNorm(dim, { eps: EPS });
    this.classifier = new Sequential(
      isSite ? site(norm, { role: 'head_norm', layout: 'vector' }) : norm,
      isSite || numClasses === 0 ? classifierSite(dim, numClasses) : new Linear(dim, numClasses),
    );
    this.pre_logits = isSite ? identitySite('pre_logits', dim, 'vector') : null;
  }

  forward(x: Tensor, ctx: Context): Tensor {
    const vector = this.classifier.at(0).run(poolMap(x, 'avg'), ctx);
    return this.classifier.at(1).run(this.pre_logits ? this.pre_logits.run(vector, ctx) : vector, ctx);
  }
}

/** Removes the site tags of a part that no graft should find. */
function hidden<M extends Module>(part: M): M {
  for (const [, module] of part.namedModules()) module.siteTag = undefined;
  return part;
}

/**
 * The coarsest level [B, C, H, W] to an image [B, 3, 32 H, 32 W] of logits. Three times: 1x1 convolution, norm, GELU,
 * twice the size, a block; then 1x1 convolution and pixel shuffle.
 */
export class Decoder extends Module {
  readonly proj_layers: Sequential;
  readonly normal_layers: Sequential;
  readonly projback: Sequential;

  constructor(channels: readonly number[], layerScale: number) {
    super();
    const widths = [...channels].reverse();
    const steps = widths.slice(1);
    this.proj_layers = new Sequential(
      ...steps.map(
        (width, s) =>
          new Sequential(
            new Conv2d(widths[s] ?? 0, width, { kernelSize: 1 }),
            new LayerNorm2d(width, { eps: EPS }),
            new GELU(),
          ),
      ),
    );
    this.normal_layers = new Sequential(
      ...steps.map(
        (dim) => new Sequential(hidden(new RevColBlock({ dim, hidden: dim, kernel: 3, layerScale, dropPath: 0 }))),
      ),
    );
    this.projback = new Sequential(new Conv2d(widths.at(-1) ?? 0, 48, { kernelSize: 1 }));
  }

  forward(x: Tensor, ctx: Context): Tensor {
    let y = x;
    [...this.proj_layers].forEach((project, s) => {
      const small = project.run(y, ctx);
      const [, , rows = 0, columns = 0] = small.shape;
      const large = aten.upsampleBilinear2d(small, [2 * rows, 2 * columns], true);
      y = this.normal_layers.at(s).run(large, ctx);
    });
    return aten.pixelShuffle(this.projback.run(y, ctx), 4);
  }
}

/** The decoder of models with more than 1000 classes: norm, 1x1 convolution, pixel shuffle by 32. */
export class SimpleDecoder extends Module {
  readonly projback: Sequential;

  constructor(dim: number) {
    super();
    this.projback = new Sequential(new LayerNorm2d(dim, { eps: EPS }), new Conv2d(dim, 3072, { kernelSize: 1 }));
  }

  forward(x: Tensor, ctx: Context): Tensor {
    return aten.pixelShuffle(this.projback.run(x, ctx), 32);
  }
}
