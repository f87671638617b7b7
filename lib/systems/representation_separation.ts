/**
 * Representation separation for semantic segmentation with vision transformers. Hong et al. 2022, arXiv 2212.13764. There is
 * no public code and the body of the paper could not be read when this was written: the three parts are named in the
 * abstract, their formulas are a reconstruction, and no figure of the paper is claimed.
 */
import { z } from 'zod';
import { SEGMENTATION_LABELS } from '../adapters/index.js';
import { DenseModel } from '../heads/index.js';
import { type Backbone, parseOptions } from '../models/index.js';
import {
  AvgPool2d,
  bceWithLogits,
  Context,
  Conv2d,
  crossEntropy,
  functional,
  IGNORE_INDEX,
  init,
  LayerNorm,
  LayerNorm2d,
  Linear,
  Module,
  ModuleList,
  Parameter,
  pixelCrossEntropy,
} from '../nn/index.js';
import { aten, empty, type Tensor } from '../tensor/index.js';

/** Epsilon of every norm here. */
const EPS = 1e-6;

/** What the two pathways make of the taps. */
export interface Pathways {
  /** Global representation plus local pathway, [B, d, h, w]. */
  readonly fused: Tensor;
  /** What the local pathway passed down. */
  readonly local: Tensor;
}

/**
 * Two decoupled pathways over J maps [B, C, h, w] of one size, shallowest first. The local one collects what distinguishes
 * a patch from its neighbors: r_j = x_j - mean over 3x3 of x_j, D_j = GELU(dw_j(D_{j-1} + proj_j r_j)), D_0 = 0; the global
 * one is the normed last map: Y = glob(norm(x_J)) + D_J.
 */
export class TwoPathways extends Module {
  readonly proj: ModuleList<Conv2d>;
  readonly dw: ModuleList<Conv2d>;
  readonly norm: LayerNorm2d;
  readonly glob: Conv2d;
  readonly #mean: AvgPool2d;

  constructor(channels: number, width: number, taps: number) {
    super();
    const each = <M>(make: () => M): M[] => Array.from({ length: taps }, make);
    this.proj = new ModuleList(each(() => new Conv2d(channels, width, { kernelSize: 1 })));
    this.dw = new ModuleList(each(() => new Conv2d(width, width, { kernelSize: 3, padding: 1, groups: width })));
    this.norm = new LayerNorm2d(channels, { eps: EPS });
    this.glob = new Conv2d(channels, width, { kernelSize: 1 });
    // At the borders the mean is over the neighbors that there are.
    this.#mean = new AvgPool2d({ kernelSize: 3, stride: 1, padding: 1, countIncludePad: false });
  }

  /** @throws RangeError for another number of maps than the pathways were built for */
  fuse(taps: readonly Tensor[], ctx: Context = new Context()): Pathways {
    const last = taps.at(-1);
    if (!last || taps.length !== this.proj.length) {
      throw new RangeError(`two pathways for ${this.proj.length} maps were given ${taps.length}`);
    }
    let local: Tensor | null = null;
    taps.forEach((map, j) => {
      const discrepancy = this.proj.at(j).run(map.sub(this.#mean.run(map, ctx)), ctx);
      local = functional.gelu(this.dw.at(j).run(local ? discrepancy.add(local) : discrepancy, ctx));
    });
    const passed = local as unknown as Tensor;
    return { fused: this.glob.run(this.norm.run(last, ctx), ctx).add(passed), local: passed };
  }

  /** @throws TypeError always: the pathways read several maps; see `fuse` */
  forward(): never {
    throw new TypeError('TwoPathways reads several maps; call fuse');
  }
}

/**
 * Spatially adaptive separation: Z = Y + a (Y - M), where M smooths each k x k neighborhood (zeros outside) by weights that
 * the place itself gives (softmax of `kernel` Y), and a = sigmoid(`strength` Y) says how far to go. [B, d, h, w] to the same.
 */
export class AdaptiveSeparation extends Module {
  readonly kernel: Conv2d;
  readonly strength: Conv2d;
  readonly #side: number;

  /** @param side odd side of the neighborhood. Default 3. @throws RangeError for an even one */
  constructor(width: number, side = 3) {
    super();
    if (side % 2 !== 1) throw new RangeError(`a neighborhood of side ${side} has no center; take an odd one such as 3`);
    this.kernel = new Conv2d(width, side ** 2, { kernelSize: 3, padding: 1 });
    this.strength = new Conv2d(width, 1, { kernelSize: 3, padding: 1 });
    this.#side = side;
  }

  forward(y: Tensor, ctx: Context): Tensor {
    const weights = functional.softmax(this.kernel.run(y, ctx), 1);
    const strength = this.strength.run(y, ctx).sigmoid();
    return y.add(strength.mul(y.sub(this.#smooth(y, weights))));
  }

  /** The sum over the neighbors of their weight [B, k k, h, w] times their features, one neighbor after the other. */
  #smooth(y: Tensor, weights: Tensor): Tensor {
    const side = this.#side;
    const reach = (side - 1) / 2;
    const [, , height = 0, width = 0] = y.shape;
    const padded = aten.constantPadNd(y, [reach, reach, reach, reach], 0);
    let sum: Tensor | null = null;
    for (let q = 0; q < side ** 2; q++) {
      const neighbor = padded.narrow(2, Math.floor(q / side), height).narrow(3, q % side, width);
      const weight = weights.narrow(1, q, 1);
      sum = sum ? aten.addcmul(sum, neighbor, weight) : neighbor.mul(weight);
    }
    return sum as Tensor;
  }
}

/** What discriminative cross-attention finds. */
export interface Regions {
  /** Logits of the segmentation, [B, K, h, w]. */
  readonly seg: Tensor;
  /** Logits of the attention of each class over the places, [B, K, h, w]. */
  readonly attention: Tensor;
  /** Representation of each class's region, [B, K, d]. */
  readonly region: Tensor;
  /** Which class each region is taken for, [B, K, K]. */
  readonly regionLogits: Tensor;
}

/**
 * Discriminative cross-attention of K class queries E over the places t of a map Z [B, d, h, w]:
 * A = q(norm E) k(t)^T / sqrt(d), R = softmax(A) v(t) + E, S = out(norm R) t^T / sqrt(d), and a classifier of R.
 */
export class DiscriminativeAttention extends Module {
  readonly query: Parameter;
  readonly norm_q: LayerNorm;
  readonly q: Linear;
  readonly k: Linear;
  readonly v: Linear;
  readonly norm_r: LayerNorm;
  readonly out: Linear;
  readonly region_cls: Linear;
  readonly #scale: number;

  constructor(width: number, classes: number) {
    super();
    this.query = new Parameter(init.normal_(empty([classes, width]), 0, 0.02));
    this.norm_q = new LayerNorm(width, { eps: EPS });
    this.q = new Linear(width, width);
    this.k = new Linear(width, width);
    this.v = new Linear(width, width);
    this.norm_r = new LayerNorm(width, { eps: EPS });
    this.out = new Linear(width, width);
    this.region_cls = new Linear(width, classes);
    this.#scale = width ** -0.5;
  }

  /** Where the learned queries look in a map [B, C, H, W], and what they find there. */
  attend(z: Tensor, ctx: Context = new Context()): Regions {
    const grid = z.shape.slice(2);
    const tokens = z.flatten(2).transpose(1, 2);
    const queries = this.q.run(this.norm_q.run(this.query, ctx), ctx).mul(this.#scale);
    const attention = queries.matmul(this.k.run(tokens, ctx).transpose(1, 2));
    const region = functional.softmax(attention).matmul(this.v.run(tokens, ctx)).add(this.query);
    const classifiers = this.out.run(this.norm_r.run(region, ctx), ctx).mul(this.#scale);
    return {
      seg: classifiers.matmul(z.flatten(2)).unflatten(2, grid),
      attention: attention.unflatten(2, grid),
      region,
      regionLogits: this.region_cls.run(region, ctx),
    };
  }

  forward(z: Tensor, ctx: Context): Tensor {
    return this.attend(z, ctx).seg;
  }
}

const options = z.strictObject({
  classes: z.int().positive(),
  /** d. */
  width: z.int().positive().default(256),
  /** J: into how many equal groups the blocks are cut; the map after each is read. */
  taps: z.int().positive().default(4),
  /** Side of the neighborhoods of the separation. */
  kernel: z.int().positive().default(3),
  attentionWeight: z.number().nonnegative().default(0.4),
  regionWeight: z.number().nonnegative().default(0.4),
});

/** What a `RepresentationSeparation` is built from. */
export type RepresentationSeparationOptions = z.input<typeof options>;

/** Everything that one pass finds, for losses and for looking at. */
export interface SeparatedMaps extends Pathways, Regions {
  /** The fused map after the separation. */
  readonly separated: Tensor;
}

/** The losses of `RepresentationSeparation`, unweighted, and their weighted sum. */
export interface SeparationLosses {
  readonly seg: Tensor;
  readonly attention: Tensor;
  readonly region: Tensor;
  readonly total: Tensor;
}

/**
 * A vision transformer, two pathways over its blocks, separation, and cross-attention of class queries. All of it is trained
 * unless the backbone is frozen (`model.backbone.freeze()`) or adapters are set into it.
 *
 * ```ts
 * const model = new RepresentationSeparation(createModel('vit_base_patch16_224', { imgSize: 512 }), { classes: 150 });
 * const { total } = model.losses(model.maps(images), labels);
 * ```
 */
export class RepresentationSeparation extends DenseModel {
  readonly name: string;
  protected readonly backbonePath = 'backbone';
  readonly backbone: Backbone;
  readonly pathway: TwoPathways;
  readonly sasm: AdaptiveSeparation;
  readonly dca: DiscriminativeAttention;
  readonly settings: z.output<typeof options>;

  /**
   * @param backbone a transformer of one width; it becomes a trunk (its last norm and classifier leave)
   * @throws RangeError when its blocks do not divide into the groups, or its levels differ in width
   */
  constructor(backbone: Backbone, given: RepresentationSeparationOptions) {
    super();
    this.name = `representation_separation on ${backbone.name}`;
    this.settings = parseOptions(options, given, 'representation_separation');
    const { classes, width, taps, kernel } = this.settings;
    const levels = backbone.featureLevels;
    const channels = levels[0]?.channels ?? 0;
    if (levels.length === 0 || levels.length % taps !== 0) {
      throw new RangeError(
        `${this.name}: ${levels.length} levels cannot be cut into ${taps} equal groups; give taps a divisor of ${levels.length}`,
      );
    }
    if (levels.some((level) => level.channels !== channels)) {
      throw new RangeError(
        `${this.name}: the pathways need a transformer of one width, and the levels of ${backbone.name} have ` +
          levels.map((level) => level.channels).join(', '),
      );
    }
    const sasm = new AdaptiveSeparation(width, kernel);
    this.backbone = backbone.toTrunk();
    this.pathway = new TwoPathways(channels, width, taps);
    this.sasm = sasm;
    this.dca = new DiscriminativeAttention(width, classes);
  }

  /** Images [B, 3, H, W] to all maps; those of places are as large as the backbone's. */
  maps(images: Tensor, ctx: Context = new Context()): SeparatedMaps {
    const { taps } = this.settings;
    const all = this.backbone.forwardIntermediates(images, ctx);
    const step = all.length / taps;
    const tapped = Array.from({ length: taps }, (_, j) => all[(j + 1) * step - 1] as Tensor);
    const pathways = this.pathway.fuse(tapped, ctx);
    const separated = this.sasm.run(pathways.fused, ctx);
    return { ...pathways, separated, ...this.dca.attend(separated, ctx) };
  }

  /**
   * Images [B, 3, H, W] to logits [B, K, H, W]. With labels (`labels` among the context's inputs) the weighted auxiliary
   * losses go to the context; what remains is the cross entropy of the pixels.
   */
  forward(images: Tensor, ctx: Context = new Context()): Tensor {
    const maps = this.maps(images, ctx);
    const labels = ctx.inputs[SEGMENTATION_LABELS];
    if (labels) {
      const { attentionWeight, regionWeight } = this.settings;
      if (attentionWeight > 0) ctx.losses.push(attentionLoss(maps.attention, labels).mul(attentionWeight));
      if (regionWeight > 0) ctx.losses.push(regionLoss(maps.regionLogits, labels).mul(regionWeight));
    }
    return functional.interpolate(maps.seg, { size: [images.shape.at(-2) ?? 0, images.shape.at(-1) ?? 0] });
  }

  /** The three losses for labels [B, H, W], in which 255 does not count. */
  losses(maps: SeparatedMaps, labels: Tensor): SeparationLosses {
    const { attentionWeight, regionWeight } = this.settings;
    const seg = pixelCrossEntropy(maps.seg, labels);
    const attention = attentionLoss(maps.attention, labels);
    const region = regionLoss(maps.regionLogits, labels);
    return { seg, attention, region, total: seg.add(attention.mul(attentionWeight)).add(region.mul(regionWeight)) };
  }

  /** @throws TypeError always: the classes are those of the queries; build a new model */
  resetClassifier(): never {
    throw new TypeError(`${this.name} has no classifier to exchange; build one with other classes`);
  }
}

/** One-hot masks [B, K, H, W] of labels [B, H, W]; a pixel that does not count is in none. */
function masksOf(labels: Tensor, classes: number): Tensor {
  const ids = aten.arange(classes, { device: labels.device }).view([1, -1, 1, 1]);
  return labels.unsqueeze(1).eq(ids);
}

/**
 * Binary cross entropy of attention logits [B, K, h, w] against the mask of each class, absent ones too, over the pixels
 * that count times K.
 */
function attentionLoss(attention: Tensor, labels: Tensor): Tensor {
  const [, classes = 0] = attention.shape;
  const [, height = 0, width = 0] = labels.shape;
  const logits = functional.interpolate(attention, { size: [height, width] });
  const weight = labels.ne(IGNORE_INDEX).unsqueeze(1).to(logits.dtype);
  const masks = masksOf(labels, classes).to(logits.dtype);
  const sum = bceWithLogits(logits, masks, { weight: weight.expandAs(logits), reduction: 'sum' });
  return sum.div(weight.sum().clampMin(1).mul(classes));
}

/** Mean over the classes that are there, image by image, of the cross entropy of region k [B, K, K] against k. */
function regionLoss(logits: Tensor, labels: Tensor): Tensor {
  const [batch = 0, classes = 0] = logits.shape;
  const present = masksOf(labels, classes).flatten(2).any(2);
  const targets = aten.arange(classes, { device: labels.device }).expand([batch, classes]).where(present, -1);
  const sum = crossEntropy(logits.flatten(0, 1), targets.flatten(), { ignoreIndex: -1, reduction: 'sum' });
  return sum.div(present.sum().clampMin(1));
}
