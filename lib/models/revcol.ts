/**
 * RevCol as released (megvii-research/RevCol, commit 1680848, Apache-2.0): copies of a small four-level network, each
 * refining the levels of the one before through an invertible sum. Cai et al., ICLR 2023, arXiv 2212.11696.
 */
import { z } from 'zod';
import type { KeyMap } from '../checkpoint/index.js';
import {
  Context,
  Conv2d,
  type Identity,
  init,
  LayerNorm2d,
  Linear,
  ModuleList,
  Sequential,
  site,
} from '../nn/index.js';
import { noGrad, type Tensor } from '../tensor/index.js';
import { Backbone, type FeatureLevel, type Preprocessing } from './backbone.js';
import { convSite, dropPathRateAt, identitySite, imageSite } from './blocks.js';
import { backboneOptions, type Family, oddKernel, positive, preprocessing, rate, requireSameLength } from './family.js';
import { Column, Decoder, RevColHead, SimpleDecoder } from './revcol_blocks.js';
import type { Supervision } from './revcol_loss.js';
import { type ColumnsOutput, runColumns } from './revcol_reversible.js';

const options = z.strictObject({
  /** Channels of the four levels. */
  channels: z.array(positive).length(4),
  /** Blocks of the four levels of a column. */
  layers: z.array(positive).length(4),
  /** Number of columns. */
  columns: positive,
  kernelSize: oddKernel.default(3),
  /** Width of the MLPs, in channels of their level. */
  expansion: positive.default(4),
  /** Whether the finest level also reads the coarsest of the column before, as in the huge model. */
  huge: z.boolean().default(false),
  /** Intermediate supervision: four classifiers and three decoders along the columns, whose number is then a multiple of 4. */
  supervised: z.boolean().default(false),
  /** Recompute what lies between the columns in the backward pass instead of keeping it. */
  reversible: z.boolean().default(true),
  ...backboneOptions,
  /** Initial factor between columns, and initial layer scale. */
  alpha: z.number().default(0.5),
  layerScale: z.number().default(1e-6),
  /** Factor of the classifier's initial weights; not with intermediate supervision. */
  headInitScale: z.number().nullable().default(null),
  /** Stochastic depth of a column's last block, rising linearly from 0; the same in every column. */
  dropPathRate: rate.default(0),
});

/** Options of a RevCol, defaults filled in. */
export type RevColOptions = z.output<typeof options>;

/** Supervised training's files in a model with one classifier, which is the last of their four. */
const SUPERVISED_NAMES: KeyMap = [
  { kind: 'drop', match: /^(decoder_blocks|cls_blocks\.[0-2])\./ },
  { kind: 'rename', from: 'cls_blocks.3.{rest...}', to: 'cls.{rest...}' },
];

/** RevCol. Columns are `subnet0`, `subnet1`, ...; the features are the four levels of the last. */
export class RevCol extends Backbone {
  readonly name: string;
  readonly classifier: string;
  /** A model with one classifier also takes the files of supervised training; their decoders have no use in it. */
  override readonly keyMap: KeyMap;
  readonly numFeatures: number;
  readonly featureLevels: readonly FeatureLevel[];
  /** Whether the backward pass recomputes what lies between the columns instead of keeping it. May be switched. */
  reversible: boolean;
  readonly #columns: readonly Column[];

  /** The image batch. */
  readonly input: Identity;
  readonly stem: Sequential;
  /** The coarsest level of the last column. */
  declare readonly features: Identity;
  /** The only classifier, or null with intermediate supervision. */
  declare cls: RevColHead | null;
  declare cls_blocks: ModuleList<RevColHead> | null;
  declare decoder_blocks: ModuleList<Decoder | SimpleDecoder> | null;

  constructor(name: string, o: RevColOptions, config: Preprocessing) {
    super(config);
    requireSameLength(name, { channels: o.channels, layers: o.layers });
    if (o.supervised && o.columns % 4 !== 0) {
      throw new RangeError(`${name}: intermediate supervision needs a multiple of 4 columns, given ${o.columns}`);
    }
    if (o.supervised && o.headInitScale !== null) {
      throw new RangeError(`${name}: headInitScale is for models without intermediate supervision`);
    }
    const [finest = 0, , , coarsest = 0] = o.channels;
    this.name = name;
    this.reversible = o.reversible;
    this.keyMap = o.supervised ? [] : SUPERVISED_NAMES;
    this.numFeatures = coarsest;
    this.classifier = o.supervised ? 'cls_blocks.3.classifier.1' : 'cls.classifier.1';
    this.featureLevels = o.channels.map((channels, i) => ({
      path: `subnet${o.columns - 1}.level${i}`,
      channels,
      stride: 4 * 2 ** i,
    }));
    this.input = imageSite(o.inChans);
    this.stem = site(
      new Sequential(
        convSite(o.inChans, finest, { kernelSize: 4, stride: 4, bias: true }),
        site(new LayerNorm2d(finest, { eps: 1e-6 }), { role: 'norm' }),
      ),
      { role: ['stem', 'patch_embed'], in: o.inChans, out: finest, layout: 'map', stride: 4 },
    );
    this.#columns = buildColumns(o);
    this.#columns.forEach((column, t) => Object.assign(this, { [`subnet${t}`]: column }));
    this.features = identitySite('features', coarsest, 'map');
    this.cls = o.supervised ? null : new RevColHead(coarsest, o.numClasses);
    this.cls_blocks = o.supervised ? supervisedHeads(coarsest, o.numClasses) : null;
    this.decoder_blocks = o.supervised ? new ModuleList([0, 1, 2].map(() => decoderOf(o))) : null;
    this.initWeights(o.headInitScale);
  }

  forwardFeatures(x: Tensor, ctx: Context = new Context()): Tensor {
    return this.features.run(this.run_(x, ctx).levels[3], ctx);
  }

  forwardHead(features: Tensor, ctx: Context = new Context()): Tensor {
    const head = this.cls ?? this.cls_blocks?.at(-1);
    return head ? head.run(features, ctx) : features;
  }

  /** The four levels of the last column. */
  forwardIntermediates(x: Tensor, ctx: Context = new Context()): Tensor[] {
    return [...this.run_(x, ctx).levels];
  }

  /**
   * Logits of all classifiers and images of all decoders, for `compoundLoss`. Without intermediate supervision: the only
   * logits, no image.
   */
  supervised(x: Tensor, ctx: Context = new Context()): Supervision {
    const { cls_blocks: heads, decoder_blocks: decoders } = this;
    if (!heads || !decoders) return { logits: [this.run(x, ctx)], images: [] };
    const interval = this.#columns.length / 4;
    const ends = [1, 2, 3, 4].map((j) => j * interval - 1);
    const { taps } = this.run_(x, ctx, new Set(ends));
    const maps = ends.map((t) => taps.get(t) as Tensor);
    const logits = maps.map((map, j) => heads.at(j).run(j === 3 ? this.features.run(map, ctx) : map, ctx));
    return { logits, images: maps.slice(0, 3).map((map, j) => decoders.at(j).run(map, ctx)) };
  }

  protected override get tail(): readonly string[] {
    return ['cls', 'cls_blocks', 'decoder_blocks'];
  }

  /** With intermediate supervision, all four classifiers. */
  resetClassifier(numClasses: number): void {
    if (this.cls) this.cls = this.like(new RevColHead(this.numFeatures, numClasses));
    else this.cls_blocks = this.like(supervisedHeads(this.numFeatures, numClasses));
  }

  private run_(x: Tensor, ctx: Context, wanted: ReadonlySet<number> = new Set()): ColumnsOutput {
    const map = this.stem.run(this.input.run(x, ctx), ctx);
    const [, , rows = 0, columns = 0] = map.shape;
    if (rows % 8 !== 0 || columns % 8 !== 0 || rows === 0 || columns === 0) {
      throw new RangeError(
        `${this.name} halves its map of ${rows} x ${columns} three times and doubles it again: the image's sides must be multiples of 32`,
      );
    }
    return runColumns(this.#columns, map, ctx, { wanted, reversible: this.reversible });
  }

  /** Convolutions and linear layers truncated normal (0.02, cut at +-2), biases 0. */
  private initWeights(headInitScale: number | null): void {
    this.apply((module) => {
      if (!(module instanceof Conv2d || module instanceof Linear)) return;
      init.truncNormal_(module.weight, { std: 0.02 });
      if (module.bias) init.zeros_(module.bias);
    });
    const linear = this.cls?.classifier.at(1);
    if (linear instanceof Linear && headInitScale !== null) noGrad(() => linear.weight.mul_(headInitScale));
  }
}

function buildColumns(o: RevColOptions): Column[] {
  const total = o.layers.reduce((sum, n) => sum + n, 0);
  const dropPaths = Array.from({ length: total }, (_, i) => dropPathRateAt(o.dropPathRate, i, total));
  const { channels, layers, kernelSize: kernel, expansion, layerScale, alpha, huge } = o;
  return Array.from(
    { length: o.columns },
    (_, t) =>
      new Column({
        ...{ channels, layers, kernel, expansion, layerScale, alpha, huge, dropPaths },
        first: t === 0,
        depth: t * total,
      }),
  );
}

function supervisedHeads(dim: number, numClasses: number): ModuleList<RevColHead> {
  return new ModuleList([0, 1, 2, 3].map((j) => new RevColHead(dim, numClasses, j === 3)));
}

function decoderOf(o: RevColOptions): Decoder | SimpleDecoder {
  return o.numClasses <= 1000 ? new Decoder(o.channels, o.layerScale) : new SimpleDecoder(o.channels[3] ?? 0);
}

const doubling = (width: number): number[] => [width, 2 * width, 4 * width, 8 * width];

export const revcol: Family<typeof options> = {
  id: 'revcol',
  checkpoints: { source: 'megvii-research/RevCol', license: 'Apache-2.0' },
  paper: 'Cai et al., Reversible Column Networks, ICLR 2023, arXiv 2212.11696',
  options,
  variants: {
    revcol_tiny: { channels: doubling(64), layers: [2, 2, 4, 2], columns: 4 },
    revcol_small: { channels: doubling(64), layers: [2, 2, 4, 2], columns: 8 },
    revcol_base: { channels: doubling(72), layers: [1, 1, 3, 2], columns: 16 },
    revcol_large: { channels: doubling(128), layers: [1, 2, 6, 2], columns: 8 },
    revcol_xlarge: { channels: doubling(224), layers: [1, 2, 6, 2], columns: 8 },
    revcol_huge: { channels: doubling(360), layers: [1, 2, 6, 2], columns: 8, huge: true },
  },
  create: (name, o) => new RevCol(name, o, preprocessing(o, { interpolation: 'bicubic', cropPct: 0.875 })),
};
