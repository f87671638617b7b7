/**
 * Training in a random subspace: the weights of some submodules become w₀ + P θ, with P a fixed random map and θ a few
 * trained numbers. Li et al., ICLR 2018, arXiv 1804.08838, equation 2; Aghajanyan et al., ACL 2021, arXiv 2012.13255. How
 * large θ must be is a submodule's local intrinsic dimension, by which KAdaptation (He et al., AAAI 2023, arXiv
 * 2203.16329) chooses what to adapt.
 */
import { z } from 'zod';
import { type Context, Conv2d, Fastfood, Linear, Module, Parameter, type Site } from '../nn/index.js';
import { type Tensor, zeros } from '../tensor/index.js';
import {
  affine,
  type AffineForm,
  defineMethod,
  delta,
  type DeltaForm,
  matches,
  type Rule,
  SharedPart,
  type SiteQuery,
  type Surroundings,
} from './core/index.js';

/** θ `theta` [d], zero at the start, and P `projection`. */
export class Subspace extends SharedPart {
  readonly theta: Parameter;
  readonly projection: Fastfood;

  /** @param size how many numbers θ moves */
  constructor(dimension: number, size: number) {
    super();
    this.projection = new Fastfood(dimension, size);
    this.theta = new Parameter(zeros([dimension]));
  }

  /** P θ; computed once in a pass. */
  increments(ctx?: Context): Tensor {
    const known = ctx?.state.get(this) as Tensor | undefined;
    const found = known ?? this.projection.run(this.theta, ctx);
    ctx?.state.set(this, found);
    return found;
  }

  /** The numbers from `offset` on, in a tensor's shape. */
  part(offset: number, shape: readonly number[], ctx?: Context): Tensor {
    const count = shape.reduce((product, size) => product * size, 1);
    return this.increments(ctx).narrow(0, offset, count).view(shape);
  }
}

/** A layer that a subspace may move. */
type Layer = Linear | Conv2d;

const isLayer = (module: Module): module is Layer => module instanceof Linear || module instanceof Conv2d;

/** The part of P θ that belongs to a layer's weight. It owns no parameters. */
class SubspaceWeight extends Module implements DeltaForm {
  readonly #subspace: Subspace;
  readonly #layer: Layer;
  readonly #offset: number;

  constructor(subspace: Subspace, layer: Layer, offset: number) {
    super();
    this.#subspace = subspace;
    this.#layer = layer;
    this.#offset = offset;
  }

  #increment(ctx?: Context): Tensor {
    return this.#subspace.part(this.#offset, this.#layer.weight.shape, ctx);
  }

  forward(x: Tensor, ctx: Context): Tensor {
    return this.#layer.forwardWith(x, this.#increment(ctx), null);
  }

  delta(): Tensor {
    return this.#increment();
  }

  applyWith(_layer: Module, x: Tensor, scale: number, ctx: Context): Tensor {
    const { weight, bias } = this.#layer;
    return this.#layer.forwardWith(x, weight.add(this.#increment(ctx), { alpha: scale }), bias);
  }
}

/** The part of P θ that belongs to a layer's bias. */
class SubspaceBias extends Module implements AffineForm {
  readonly #subspace: Subspace;
  readonly #offset: number;
  readonly #length: number;

  constructor(subspace: Subspace, offset: number, length: number) {
    super();
    this.#subspace = subspace;
    this.#offset = offset;
    this.#length = length;
  }

  /** @throws TypeError always */
  forward(): Tensor {
    throw new TypeError('a bias is added, not run');
  }

  factorAndSummand(ctx?: Context): { factor: null; summand: Tensor } {
    return { factor: null, summand: this.#subspace.part(this.#offset, [this.#length], ctx) };
  }
}

/** Which submodules: all of a kind, or those of them at some depths. */
export interface SubmoduleQuery {
  /** Their role, such as `attention`, `mlp` or `block`, or the end of it (`window_attention`). */
  readonly submodule: string;
  /** Default: all. */
  readonly depth?: SiteQuery['depth'];
}

/**
 * The linear layers and convolutions in the submodules, in the model's order, each once. None for a submodule that is only
 * a stretch of its block.
 */
export function layersOf(sites: readonly Site[], { submodule, depth }: SubmoduleQuery): Site[] {
  const blocks = sites.reduce((count, { depth: d = -1 }) => Math.max(count, d + 1), 0);
  const isKind = (role: string): boolean => role === submodule || role.endsWith(`_${submodule}`);
  const query: SiteQuery = depth === undefined ? {} : { depth };
  const roots = sites.filter((site) => site.roles.some(isKind) && matches(query, site, blocks)).map(({ path }) => path);
  return sites.filter(
    ({ path, module, slice }) =>
      !slice && isLayer(module) && roots.some((root) => path === root || path.startsWith(`${root}.`)),
  );
}

/** How many numbers there are in the weights and biases of layers. */
export function sizeOf(layers: readonly Site[]): number {
  return layers.reduce((sum, { module }) => sum + module.parameters().reduce((n, p) => n + p.numel(), 0), 0);
}

/** Where a layer's weight begins among the numbers: weight, bias, weight, bias, ... in the order of the layers. */
function offsetOf(site: Site, layers: readonly Site[]): number {
  return sizeOf(
    layers.slice(
      0,
      layers.findIndex(({ path }) => path === site.path),
    ),
  );
}

/**
 * A random subspace. It has `dimension` parameters, whatever it moves; starts as the backbone and merges exactly. The
 * random map is drawn when the adapter is set in and is saved with it.
 */
export const intrinsicSubspace = defineMethod({
  id: 'intrinsic_subspace',
  summary: 'weights move in a fixed random subspace, to measure intrinsic dimensions; merges',
  paper: 'Li et al., Measuring the Intrinsic Dimension of Objective Landscapes, ICLR 2018, arXiv 1804.08838',
  options: z.strictObject({
    /** Number of trained parameters. */
    dimension: z.int().positive().default(256),
    /** Role of the submodules whose linear layers and convolutions are moved, weights and biases. */
    submodule: z.string().default('block'),
    /** Index of the block, several of them, or a range. Default: all. */
    depth: z
      .union([z.int(), z.array(z.int()).min(1), z.strictObject({ from: z.int().optional(), to: z.int().optional() })])
      .optional(),
  }),
  rules: ({ dimension, ...query }, sites): readonly Rule[] => {
    const layers = layersOf(sites, query as SubmoduleQuery);
    const biased = layers.filter(({ module }) => isLayer(module) && module.bias);
    const subspaceOf = (around: Surroundings): Subspace =>
      around.shared('subspace', () => new Subspace(dimension, sizeOf(layers)));
    // Without a layer the query itself is asked for, so that the message says what there is.
    const at = (chosen: readonly Site[]): SiteQuery =>
      layers.length > 0 ? { path: chosen.map(({ path }) => path) } : { role: query.submodule, name: ['weight'] };
    return [
      {
        id: 'weight',
        at: at(layers),
        compose: delta(),
        form: (site, around) => new SubspaceWeight(subspaceOf(around), site.module as Layer, offsetOf(site, layers)),
      },
      {
        id: 'bias',
        at: at(biased),
        compose: affine(),
        optional: true,
        form: (site, around) => {
          const { weight } = site.module as Layer;
          return new SubspaceBias(subspaceOf(around), offsetOf(site, layers) + weight.numel(), site.out);
        },
      },
    ];
  },
});
