/**
 * Kronecker adaptation: the query and value projections of every attention get an increment Σ_i A_i ⊗ (L_i R_i), its
 * small matrices A shared by all blocks. He et al., AAAI 2023, arXiv 2203.16329, equation 7; official code
 * eric-ai-lab/PEViT, commit be6fb43, which differs from the formula (see the option `variant`).
 */
import { z } from 'zod';
import { type Context, Dropout, Module, Parameter, type Site, type SiteLayout } from '../nn/index.js';
import { aten, type Tensor, zeros } from '../tensor/index.js';
import {
  affine,
  type AffineForm,
  defineMethod,
  delta,
  type DeltaForm,
  parallel,
  type Rule,
  SharedPart,
  type Surroundings,
} from './core/index.js';
import {
  type FactorStart,
  KroneckerFactors,
  kroneckerLowRank,
  kroneckerMatrix,
  kroneckerProduct,
  KroneckerRule,
  type RuleKind,
} from './kronecker.js';
import {
  checkPointwise,
  type HeadAddition,
  headsAround,
  overChannels,
  parentPath,
  PEVIT,
  pevitCopies,
  pevitHead,
  pevitPath,
  rawReshape,
} from './pevit.js';

/** What the increments of one attention share: `b`, and in the released code all factors. */
export class AttentionFactors extends SharedPart {
  readonly q: KroneckerFactors | null;
  readonly v: KroneckerFactors | null;
  readonly b: Parameter | null;

  constructor(width: number, make: { factors: (() => KroneckerFactors) | null; bias: boolean }) {
    super();
    this.q = make.factors && make.factors();
    this.v = make.factors && make.factors();
    this.b = make.bias ? new Parameter(zeros([width])) : null;
  }
}

/** H of a rule and factors, as an operation on rows; dropout acts on the elements of H. */
class KroneckerIncrement {
  constructor(
    readonly rule: KroneckerRule,
    readonly factors: KroneckerFactors,
    readonly drop: Dropout,
  ) {}

  /** H [in, out] with dropout, where there is some; else null. */
  #dropped(ctx: Context): Tensor | null {
    const { p, training } = this.drop;
    return p > 0 && training ? this.drop.run(kroneckerMatrix(this.rule, this.factors), ctx) : null;
  }

  /** x H. */
  apply(x: Tensor, ctx: Context): Tensor {
    const whole = this.#dropped(ctx);
    return whole ? x.matmul(whole) : kroneckerProduct(x, this.rule, this.factors);
  }

  /** beta base + alpha x H in one pass over the output where there is such a product; `base` [..., out] or [out]. */
  addTo(base: Tensor, x: Tensor, { alpha, beta = 1, ctx }: { alpha: number; beta?: number; ctx: Context }): Tensor {
    const whole = this.#dropped(ctx);
    const low = whole ? null : kroneckerLowRank(this.rule, this.factors);
    const [a, b] = whole ? [x, whole] : low ? [aten.linear(x, low.down), low.up.t()] : [null, null];
    if (a === null || a.dtype !== base.dtype) {
      const increment = this.apply(x, ctx);
      return (beta === 1 ? base : base.mul(beta)).add(increment, { alpha });
    }
    const rows = base.ndim > 1 ? base.flatten(0, -2) : base;
    const sum = aten.addmm(rows, a.flatten(0, -2), b, { alpha, beta });
    return sum.view([...x.shape.slice(0, -1), sum.shape[1] ?? 0]);
  }
}

/**
 * The increment as a change of a projection's weight: D = Hᵀ [out, in], for a convolution of one pixel [out, in, 1, 1].
 * Parameters `factors.left`, `factors.right`.
 */
export class KroneckerDelta extends Module implements DeltaForm {
  readonly factors: KroneckerFactors;
  readonly drop: Dropout;
  readonly #increment: KroneckerIncrement;

  readonly #layout: SiteLayout;

  constructor(
    rule: KroneckerRule,
    factors: KroneckerFactors,
    { dropout = 0, layout = 'tokens' }: { readonly dropout?: number; readonly layout?: SiteLayout } = {},
  ) {
    super();
    this.factors = factors;
    this.drop = new Dropout(dropout);
    this.#increment = new KroneckerIncrement(rule, factors, this.drop);
    this.#layout = layout;
  }

  forward(x: Tensor, ctx: Context): Tensor {
    return overChannels(x, this.#layout, (rows) => this.#increment.apply(rows, ctx));
  }

  delta(): Tensor {
    const weight = kroneckerMatrix(this.#increment.rule, this.factors).t();
    return this.#layout === 'map' ? weight.unsqueeze(-1).unsqueeze(-1) : weight;
  }

  addTo(base: Tensor, x: Tensor, scale: number, ctx: Context): Tensor {
    if (this.#layout === 'map') return base.add(this.forward(x, ctx), { alpha: scale });
    return this.#increment.addTo(base, x, { alpha: scale, ctx });
  }
}

/** b of an attention, added to one of its projections. */
class SharedBias extends Module implements AffineForm {
  readonly #b: Tensor;

  constructor(b: Tensor) {
    super();
    this.#b = b;
  }

  /** @throws TypeError always */
  forward(): Tensor {
    throw new TypeError('a bias is added, not run');
  }

  factorAndSummand(): { factor: null; summand: Tensor } {
    return { factor: null, summand: this.#b };
  }
}

/**
 * The released code's increment s x H + b of a projection: computed from the tokens, dealt out to the heads by
 * `rawReshape`, and added behind the scaling of the scores. It owns no parameters; those of `AttentionFactors` are used.
 */
export class KroneckerHeads extends Module {
  readonly drop: Dropout;
  readonly #increment: KroneckerIncrement;
  readonly #b: Tensor | null;
  readonly #scale: number;
  readonly #to: HeadAddition;

  /** @param to the heads, and the factor that undoes the scaling of the scores (1 for values) */
  constructor(
    rule: KroneckerRule,
    factors: KroneckerFactors,
    {
      b,
      scale,
      dropout,
      to,
    }: {
      readonly b: Tensor | null;
      readonly scale: number;
      readonly dropout: number;
      readonly to: HeadAddition;
    },
  ) {
    super();
    this.drop = new Dropout(dropout);
    this.#increment = new KroneckerIncrement(rule, factors, this.drop);
    this.#b = b;
    this.#scale = scale;
    this.#to = to;
  }

  forward(x: Tensor, ctx: Context): Tensor {
    const { heads, unscaled, layout } = this.#to;
    const alpha = this.#scale * unscaled;
    return overChannels(x, layout, (rows) => {
      const d = this.#b
        ? this.#increment.addTo(this.#b, rows, { alpha, beta: unscaled, ctx })
        : this.#increment.apply(rows, ctx).mul(alpha);
      return rawReshape(d, heads);
    });
  }
}

/** A projection that becomes queries or values: which rule its increment uses, and its name in the files. */
const PARTS = { q: 'phm_rule1', v: 'phm_rule2' } as const;

interface Settings {
  readonly phmDim: number;
  readonly rank: number;
  readonly rule: RuleKind;
  readonly scale: number;
  readonly bias: boolean;
  readonly dropout: number;
  readonly start: FactorStart;
}

/** The released code draws every number of the rules from ±0.01. */
const RULE_RANGE = 0.01;

function ruleOf(part: keyof typeof PARTS, { phmDim, rule }: Settings, around: Surroundings): KroneckerRule {
  return around.shared(PARTS[part], () => new KroneckerRule(phmDim, { kind: rule, range: RULE_RANGE }));
}

function factorsOf(site: Site, { phmDim, rank, start }: Settings): KroneckerFactors {
  checkPointwise(site);
  return new KroneckerFactors(site.in, site.out, { n: phmDim, rank, start });
}

/** Increments of the weights, and b beside the biases. */
function paperRules(settings: Settings): Rule[] {
  const increments = (['q', 'v'] as const).map((part): Rule => ({
    id: part,
    at: { role: part },
    compose: delta(settings.scale),
    form: (site, around) =>
      new KroneckerDelta(ruleOf(part, settings, around), factorsOf(site, settings), {
        dropout: settings.dropout,
        layout: site.layout,
      }),
  }));
  const bias: Rule = {
    id: 'b',
    at: { role: ['q', 'v'] },
    compose: affine(),
    form: (site, around) => {
      const make = (): AttentionFactors => new AttentionFactors(site.out, { factors: null, bias: true });
      return new SharedBias(around.shared(parentPath(site), make).b as Tensor);
    },
  };
  return settings.bias ? [...increments, bias] : increments;
}

/** What the released code computes: both increments from the query's factors, added to the heads as they lie in memory. */
function officialRules(settings: Settings): Rule[] {
  const { bias, scale, dropout } = settings;
  return (['q', 'v'] as const).map((part): Rule => ({
    id: part,
    at: { role: part },
    compose: parallel(),
    form: (site, around) => {
      const to = headsAround(site, around, part);
      const make = (): AttentionFactors =>
        new AttentionFactors(site.out, { factors: () => factorsOf(site, settings), bias });
      const { q, b } = around.shared(parentPath(site), make);
      const rule = ruleOf(part, settings, around);
      return new KroneckerHeads(rule, q as KroneckerFactors, { b, scale, dropout, to });
    },
  }));
}

/**
 * Kronecker adaptation. 50,176 parameters on ViT-B with its bias. Starts as the backbone. Variant `paper` changes
 * weights and merges; variant `official` is what the released code computes, for whoever needs its numbers: its
 * increments mix tokens, heads and the samples of a batch, cannot be merged, use the query's factors for the values, and
 * with its own start (`zero`) only b ever learns.
 */
export const kadaptation = defineMethod({
  id: 'kadaptation',
  summary: 'increments of queries and values from sums of Kronecker products with shared factors; merges',
  paper: 'He et al., Parameter-efficient Model Adaptation for Vision Transformers, AAAI 2023, arXiv 2203.16329',
  options: z.strictObject({
    /** The paper's formula, or the released code's. */
    variant: z.enum(['paper', 'official']).default('paper'),
    /** n: number and side of the matrices A; must divide the width. */
    phmDim: z.int().positive().default(32),
    /** Rank of B_i = L_i R_i. */
    rank: z.int().positive().default(1),
    /** Whether A_i is of rank 1 or free. */
    rule: z.enum(['factored', 'full']).default('factored'),
    /** Factor of the increments; the released code's. */
    scale: z.number().default(160),
    /** A vector b per attention, added to queries and values. Default: only in variant `official`. */
    bias: z.boolean().optional(),
    /** On the elements of the summed matrix. Default: 0.5 in variant `official`, else 0. */
    dropout: z.number().min(0).max(1).optional(),
    /** L and R both at 0, as in the released code, or L Xavier-uniform. Default: by the variant. */
    start: z.enum(['zero', 'xavier']).optional(),
  }),
  rules: ({ variant, bias, dropout, start, ...rest }) => {
    const isOfficial = variant === 'official';
    const settings: Settings = {
      ...rest,
      bias: bias ?? isOfficial,
      dropout: dropout ?? (isOfficial ? 0.5 : 0),
      start: start ?? (isOfficial ? 'zero' : 'xavier'),
    };
    return isOfficial ? officialRules(settings) : paperRules(settings);
  },
  backboneMode: 'eval',
  officialHead: pevitHead,
  officialCopies: pevitCopies,
  learningRate: 0.001,
  officialName: ({ path, site, rule, leaf }) => {
    if (path === '' && rule.startsWith('phm_rule')) return `${PEVIT}${rule}${leaf === 'full' ? '' : `_${leaf}`}`;
    if (leaf === 'b') return `${pevitPath(rule)}.b`;
    // `factors.left` of the increment q, or `q.left` of what its attention shares.
    const [owner = '', side = ''] = leaf.split('.');
    return site
      ? `${pevitPath(parentPath(site))}.${rule}_proj_adapter1_${side}`
      : `${pevitPath(rule)}.${owner}_proj_adapter1_${side}`;
  },
});
