/**
 * KronA: increments that are one Kronecker product. Edalati et al. 2022, arXiv 2212.10650; and LoKr, its relative of
 * the package peft (Apache-2.0). There is no official code of KronA.
 */
import { z } from 'zod';
import { Linear, type Site } from '../nn/index.js';
import { type BackboneParameter, defineMethod, delta, type Method, parallel, type SiteQuery } from './core/index.js';
import { type FactorShape, factorShapes, KroneckerBypass, KroneckerLinear, lokrForm } from './krona_forms.js';
import { alsoAt, siteQuery } from './lora.js';

const PAPER = 'Edalati et al., KronA: Parameter Efficient Tuning with Kronecker Adapter, 2022, arXiv 2212.10650';

/** For all three, and for LoKr. */
const LEARNING_RATE = 0.01;

const shape = z.tuple([z.int().positive(), z.int().positive()]);

const shared = {
  /** Rows and columns of A, the outer factor. Default: nearly square, by the width of each layer. */
  a: shape.optional(),
  /** Rows and columns of B, the inner factor. */
  b: shape.optional(),
  /** Factor of the product. */
  scale: z.number().default(1),
  /** Whether the backbone's norms are trained too, which the paper's 0.07 % suggest. */
  trainLayerNorm: z.boolean().default(false),
};

const at = z.union([siteQuery, z.array(siteQuery).min(1)]).optional();

/** Trains the backbone's norms where the options say so. */
const normsIfAsked =
  ({ trainLayerNorm }: { trainLayerNorm: boolean }) =>
  ({ module }: BackboneParameter): boolean =>
    trainLayerNorm && (module.siteTag?.role.includes('norm') ?? false);

/** What the two bypasses have in common. Our checkpoints keep their factors at the module that owns the feed-forward block. */
const bypass: Pick<Method, 'learningRate' | 'officialName'> & { trains: typeof normsIfAsked } = {
  trains: normsIfAsked,
  learningRate: LEARNING_RATE,
  officialName: ({ path, leaf }) => `${path.replace(/\.(DenseReluDense|mlp)$/, '')}.krona_${leaf}`,
};

/** W -> W + s (A ⊗ B) on linear layers, q and v of every attention by default. Starts as the backbone, merges exactly. */
export const krona = defineMethod({
  id: 'krona',
  summary: 'an increment of linear layers that is one Kronecker product; merges',
  paper: PAPER,
  options: z.strictObject({
    ...shared,
    /** Which linear layers. Default: q and v. */
    at,
  }),
  rules: ({ a, b, scale, at: where = { role: ['q', 'v'] } }) => [
    {
      id: 'krona',
      at: where as SiteQuery | SiteQuery[],
      compose: delta(scale),
      form: (site: Site) => {
        if (!(site.module instanceof Linear)) {
          throw new RangeError(
            `needs a linear layer, and this is a ${site.module.constructor.name}; 'lokr' also takes convolutions`,
          );
        }
        const shapes = factorShapes(site.in, site.slice?.length ?? site.out, a, b);
        return new KroneckerLinear(shapes.a, shapes.b);
      },
    },
  ],
  trains: normsIfAsked,
  learningRate: LEARNING_RATE,
  officialName: ({ path, leaf }) => `${path}.krona_${leaf}`,
});

type FactorOption = FactorShape | undefined;

/** Where both bypasses sit: beside every MLP, on its normed input. */
const beside = (a: FactorOption, b: FactorOption, scale: number, residual: number | null) => [
  {
    id: 'krona',
    at: { role: 'mlp' },
    compose: parallel(),
    form: (site: Site) => {
      const shapes = factorShapes(site.in, site.out, a, b);
      return new KroneckerBypass(shapes.a, shapes.b, {
        scale,
        residualScaleInit: residual,
        isMap: site.layout === 'map',
      });
    },
  },
];

/** y = MLP(x) + s x (A ⊗ B), x the normed input. Starts as the backbone; cannot merge, because the MLP is not linear. */
export const kronaB = defineMethod({
  id: 'krona_b',
  summary: 'a Kronecker product beside every MLP',
  paper: PAPER,
  options: z.strictObject(shared),
  rules: ({ a, b, scale }) => beside(a, b, scale, null),
  ...bypass,
});

/** As `krona_b`, plus r x with one learned number r per block. Equals the backbone at the start only if r starts at 0. */
export const kronaBRes = defineMethod({
  id: 'krona_b_res',
  summary: 'a Kronecker product and a learned multiple of the input beside every MLP',
  paper: PAPER,
  options: z.strictObject({
    ...shared,
    /** Start of r. */
    residualScaleInit: z.number().default(1),
  }),
  rules: ({ a, b, scale, residualScaleInit }) => beside(a, b, scale, residualScaleInit),
  ...bypass,
});

/** q and v of every attention, and every spatial convolution of the blocks. */
const LOKR_SITES = [{ role: ['q', 'v'] }, { role: 'conv', inBlock: true, minKernel: 2 }];

/**
 * W -> W + (α / r) (w1 ⊗ w2) on linear layers and convolutions; each factor may be a product of rank r itself. Starts as
 * the backbone, merges exactly.
 */
export const lokr = defineMethod({
  id: 'lokr',
  summary: 'increments that are a Kronecker product of factors of low rank; merges',
  paper:
    'Yeh et al., Navigating Text-To-Image Customization: From LyCORIS Fine-Tuning to Model Evaluation, ICLR 2024, arXiv 2309.14859',
  options: z.strictObject({
    rank: z.int().positive().default(8),
    /** The increment is scaled by alpha / rank. Default: the rank. */
    alpha: z.number().optional(),
    /** Whether the first factor, too, may be a product of rank r. */
    decomposeBoth: z.boolean().default(false),
    /** Size of the first factor of a dimension where it divides it, and else its upper bound; -1 for none. */
    decomposeFactor: z.union([z.literal(-1), z.int().positive()]).default(-1),
    /** A core of r x r kernels for convolutions above 1x1, instead of a product with flattened kernels. */
    effectiveConv: z.boolean().default(false),
    /** Which layers. Default: q and v of attention, and convolutions of the blocks with a kernel above 1x1. */
    at,
    /** Further layers, which those of `at` must not meet, with ranks and scales of their own. */
    also: z.array(alsoAt).readonly().optional(),
  }),
  rules: ({ rank, alpha = rank, at: where = LOKR_SITES, also = [], ...rest }) =>
    [{ at: where, rank, alpha }, ...also].map((layers) => ({
      id: 'lokr',
      at: layers.at as SiteQuery | SiteQuery[],
      compose: delta(layers.alpha / layers.rank),
      form: ({ module, slice, out }: Site) =>
        lokrForm(module, slice?.length ?? out, slice !== undefined, { ...rest, rank: layers.rank }),
    })),
  learningRate: LEARNING_RATE,
  officialName: ({ path, leaf }) => `${path}.lokr_${leaf}.default`,
});
