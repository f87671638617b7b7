/**
 * Factor-tuning: the increments of all weight matrices as one tensor in tensor-train (TT) or Tucker (TK) form, a few
 * small factors shared by the whole network. Jie & Deng, AAAI 2023, arXiv 2212.03145, equations 4 to 9; official code
 * JieShibo/PETL-ViT, commit 026e4f1.
 */
import { z } from 'zod';
import {
  type Context,
  Dropout,
  functional,
  init,
  Linear,
  loraLinear,
  Module,
  ModuleDict,
  Parameter,
  type Site,
} from '../nn/index.js';
import { aten, empty, type Tensor } from '../tensor/index.js';
import {
  defineMethod,
  delta,
  type DeltaForm,
  type Rule,
  siteName,
  type SiteQuery,
  type Surroundings,
} from './core/index.js';
import { siteQuery } from './lora.js';

/** Tensors that increments share: they are computed with, never run. */
abstract class SharedFactors extends Module {
  /** @throws TypeError always */
  forward(): Tensor {
    throw new TypeError('shared factors are no layer; the increments compute with them');
  }
}

/** The outer factors of one width: U `u.weight` [r, d], V `v.weight` [d, r]. V starts at 0. */
export class FactFactors extends SharedFactors {
  readonly u: Linear;
  readonly v: Linear;

  constructor(
    readonly width: number,
    readonly rank: number,
  ) {
    super();
    if (rank > width) {
      throw new RangeError(`rank ${rank} exceeds the width of ${width} of the blocks; at most ${width}`);
    }
    this.u = new Linear(width, rank, { bias: false });
    this.v = new Linear(rank, width, { bias: false });
    init.zeros_(this.v.weight);
  }
}

/** What the Tucker form shares besides: the core C `c` [r, r, r] and P `p` [r, slices]. */
export class FactTuckerCore extends SharedFactors {
  readonly p: Parameter;
  readonly c: Parameter;

  constructor(rank: number, slices: number) {
    super();
    this.p = new Parameter(init.xavierUniform_(empty([rank, slices])));
    this.c = new Parameter(init.xavierUniform_(empty([rank, rank, rank])));
  }

  /** T[:, :, first ... first + count] of T[a, b, n] = Σ_c C[a, b, c] P[c, n]: [r, r, count]. */
  slab(first: number, count: number): Tensor {
    return this.c.matmul(this.p.narrow(1, first, count));
  }
}

/**
 * The increment of a layer from a·d to b·d features, one of a and b being 1: with the core M [b r, a r], block (j, k)
 * of the increment is V M_jk U. Computed as: U on each of the a pieces, M, dropout, V on each of the b pieces.
 */
abstract class FactIncrement extends Module implements DeltaForm {
  readonly drop: Dropout;
  readonly #factors: FactFactors;
  /** Pieces of width d that enter (a) and leave (b). */
  protected readonly pieces: readonly [number, number];

  constructor(factors: FactFactors, pieces: readonly [number, number], dropout: number) {
    super();
    this.drop = new Dropout(dropout);
    this.#factors = factors;
    this.pieces = pieces;
  }

  /** M [b r, a r], used as a linear layer. */
  protected abstract core(): Tensor;

  get #rank(): number {
    return this.#factors.rank;
  }

  /** What enters V: [..., a d] to [(rows b), r]. */
  #reduce(x: Tensor, ctx: Context): Tensor {
    const [a] = this.pieces;
    const { u, width } = this.#factors;
    const t = functional.linear(x.reshape([-1, width]), u.weight).view([-1, a * this.#rank]);
    return this.drop.run(functional.linear(t, this.core()), ctx).view([-1, this.#rank]);
  }

  forward(x: Tensor, ctx: Context): Tensor {
    const [, b] = this.pieces;
    const { v, width } = this.#factors;
    return functional.linear(this.#reduce(x, ctx), v.weight).view([...x.shape.slice(0, -1), b * width]);
  }

  /** The increment as a product of two matrices: [b d, q] times [q, a d] with the smaller of the inner sizes q. */
  #product(): { up: Tensor; down: Tensor } {
    const [a, b] = this.pieces;
    const { u, v, width } = this.#factors;
    const r = this.#rank;
    const core = this.core();
    if (a === 1) return { up: v.weight.matmul(core.view([b, r, r])).view([b * width, r]), down: u.weight };
    return {
      up: v.weight,
      down: core
        .view([r * a, r])
        .matmul(u.weight)
        .view([r, a * width]),
    };
  }

  delta(): Tensor {
    const { up, down } = this.#product();
    return up.mm(down);
  }

  applyWith(layer: Module, x: Tensor, scale: number): Tensor | null {
    if ((this.drop.p > 0 && this.drop.training) || !(layer instanceof Linear)) return null;
    const { up, down } = this.#product();
    return loraLinear(x, layer.weight, down, up, { scale, bias: layer.bias });
  }

  /** One pass over the layer's output: the products with V accumulate into it. */
  addTo(base: Tensor, x: Tensor, scale: number, ctx: Context): Tensor {
    const reduced = this.#reduce(x, ctx);
    const { v, width } = this.#factors;
    if (reduced.dtype !== base.dtype)
      return base.add(functional.linear(reduced, v.weight).view(base.shape), { alpha: scale });
    return aten.addmm(base.reshape([-1, width]), reduced, v.weight.t(), { alpha: scale }).view(base.shape);
  }
}

/** Tensor-train increment: a free core [r, r] for each slice of a fused projection, [b r, a r] for other layers. */
export class FactTensorTrain extends FactIncrement {
  readonly cores: ModuleDict<Linear>;

  /** @param names of the cores: those of the layer's slices, or of the layer */
  constructor(factors: FactFactors, pieces: readonly [number, number], names: readonly string[], dropout: number) {
    super(factors, pieces, dropout);
    const [a, b] = pieces;
    const make = (): Linear => new Linear(a * factors.rank, (b / names.length) * factors.rank, { bias: false });
    this.cores = new ModuleDict(Object.fromEntries(names.map((name) => [name, make()])));
  }

  protected core(): Tensor {
    const weights = Array.from(this.cores, ([, { weight }]) => weight);
    return weights.length === 1 ? (weights[0] as Tensor) : aten.cat(weights, 0);
  }
}

/**
 * Tucker increment: its cores are slices of T. Those of a fused projection act as t T[:, :, n]; the slab of a layer that
 * widens or narrows is read in memory order, so that every piece mixes all its slices, as the official code has it.
 */
export class FactTucker extends FactIncrement {
  readonly #core: FactTuckerCore;
  readonly #first: number;
  readonly #fused: boolean;

  /** `first`: column of P that is the layer's first slice; `fused`: whether the pieces are slices of a projection. */
  constructor(
    factors: FactFactors,
    core: FactTuckerCore,
    pieces: readonly [number, number],
    { first, fused, dropout }: { first: number; fused: boolean; dropout: number },
  ) {
    super(factors, pieces, dropout);
    this.#core = core;
    this.#first = first;
    this.#fused = fused;
  }

  protected core(): Tensor {
    const [a, b] = this.pieces;
    const slab = this.#core.slab(this.#first, a * b);
    const [r = 0] = slab.shape;
    if (this.#fused) return slab.permute([2, 1, 0]).reshape([b * r, r]);
    const flat = slab.reshape([r, r * a * b]);
    return a === 1 ? flat.t() : flat;
  }
}

/** How many pieces of the block's width enter and leave a layer. @throws RangeError when it does not divide so */
function piecesOf(site: Site, width: number): readonly [number, number] {
  const pieces = [site.in / width, site.out / width] as const;
  if (pieces.every(Number.isInteger) && Math.min(...pieces) === 1) return pieces;
  throw new RangeError(
    `${site.path} from ${site.in} to ${site.out} features is not cut into slices of ${width} by ${width}, the width of its ` +
      `block: one of the two must be ${width}, the other a multiple; leave the layer out with the option at`,
  );
}

/** Width of the block that a layer stands in. */
function widthOf(site: Site, { all }: Surroundings): number {
  return all.find(({ path }) => path === site.block)?.in ?? Math.min(site.in, site.out);
}

function slicesOf(site: Site, around: Surroundings): number {
  const [a, b] = piecesOf(site, widthOf(site, around));
  return a * b;
}

/** Options of a rule of factor-tuning. */
export interface FactOptions {
  readonly variant: 'tt' | 'tk';
  readonly rank: number;
  readonly scale: number;
  readonly dropout: number;
  readonly at: SiteQuery | readonly SiteQuery[];
  /** Tucker form: number of columns of P, and the one of the first layer. Default: as many as there are slices, and 0. */
  readonly columns?: { readonly count: number; readonly first: number };
}

/** The single rule of factor-tuning: every layer's increment, all of them from the same factors (per stage U and V). */
export function factRule({ variant, rank, scale, dropout, at, columns }: FactOptions): Rule {
  const form = (site: Site, around: Surroundings): Module => {
    const width = widthOf(site, around);
    const pieces = piecesOf(site, width);
    const stages = new Set(around.sites.map(({ stage = 0 }) => stage));
    const key = stages.size > 1 ? `factors_${site.stage ?? 0}` : 'factors';
    const factors = around.shared(key, () => new FactFactors(width, rank));
    const slices = site.module.siteTag?.slice ?? [];
    const fused = slices.length > 0 && slices.length === pieces[1];
    const names = fused ? slices.map(({ name }) => name) : [siteName(site)];
    if (variant === 'tt') return new FactTensorTrain(factors, pieces, names, dropout);
    const before = around.sites.slice(0, around.sites.indexOf(site));
    const first = (columns?.first ?? 0) + before.reduce((sum, other) => sum + slicesOf(other, around), 0);
    const core = around.shared('core', () => {
      const count = columns?.count ?? around.sites.reduce((sum, other) => sum + slicesOf(other, around), 0);
      return new FactTuckerCore(rank, count);
    });
    return new FactTucker(factors, core, pieces, { first, fused, dropout });
  };
  return { id: 'fact', at, compose: delta(scale), form };
}

/** Official name of a shared factor: `FacTu.weight`, or `FacTu.2.weight` where every stage has its own. */
function sharedName(rule: string, leaf: string): string {
  if (rule === 'core') return `FacT${leaf}`;
  const stage = rule.replace(/^factors_?/, '');
  const [factor = '', ...rest] = leaf.split('.');
  return [`FacT${factor}`, ...(stage === '' ? [] : [stage]), ...rest].join('.');
}

/** The blocks' layers that mix features; those that say where to sample have other shapes and another purpose. */
function linearLayers(sites: readonly Site[]): SiteQuery {
  const sampling = sites.filter(({ roles }) => roles.includes('sampling')).map(({ path }) => path);
  return { role: 'linear', inBlock: true, except: sampling };
}

/**
 * Factor-tuning. Merges exactly, starts as the backbone. On ViT-B/16 8,448 parameters at rank 4 (TT, "tiny"), 86,528 at
 * rank 32 (TK). A backbone of several widths has one pair U, V per stage.
 */
export const fact = defineMethod({
  id: 'fact',
  summary: 'increments of all linear layers from a few shared factors; merges',
  paper:
    'Jie & Deng, FacT: Factor-Tuning for Lightweight Adaptation on Vision Transformer, AAAI 2023, arXiv 2212.03145',
  options: z.strictObject({
    /** Tensor-train: a core of its own for every slice; Tucker: the cores, too, are made of shared factors. */
    variant: z.enum(['tt', 'tk']).default('tt'),
    rank: z.int().positive().default(8),
    /** Factor of the increments, not divided by the rank; the paper chooses it per task between 0.01 and 100. */
    scale: z.number().default(1),
    /** Between core and V. */
    dropout: z.number().min(0).max(1).default(0.1),
    /** Which layers. Default: all linear layers of the blocks. */
    at: z.union([siteQuery, z.array(siteQuery).min(1)]).optional(),
  }),
  rules: ({ at, ...options }, sites) => [
    factRule({ ...options, at: (at as SiteQuery | SiteQuery[] | undefined) ?? linearLayers(sites) }),
  ],
  officialName: ({ path, rule, leaf }) => {
    if (path === '') return sharedName(rule, leaf);
    const [, core = '', ...rest] = leaf.split('.');
    return [...path.split('.').slice(0, -1), `${core}_FacTs`, ...rest].join('.');
  },
});
