/**
 * The family of adapters as the unified view orders it. He et al., ICLR 2022, arXiv 2110.04366, table 1; Houlsby et al.,
 * ICML 2019, arXiv 1902.00751; Pfeiffer et al., EACL 2021, arXiv 2005.00247; official code
 * jxhe/unify-parameter-efficient-tuning, commit 3222ce2.
 */
import { z } from 'zod';
import { type ActivationName, ACTIVATIONS, type Context, type Module, type Site } from '../nn/index.js';
import type { Tensor } from '../tensor/index.js';
import {
  Bottleneck,
  BOTTLENECK_STARTS,
  type BottleneckNorm,
  type BottleneckOptions,
  type BottleneckStart,
} from './bottleneck.js';
import { before, type Composition, defineMethod, parallel, type Rule, sequential } from './core/index.js';
import { prefixRules } from './prefix.js';
import { unifiedName } from './unified_names.js';

/** What one place may be told; what is left out is the design's. */
const placeShape = {
  /** Width of the bottleneck. */
  width: z.int().positive(),
  /** Factor of what comes up; `learned`: one number that starts at 1. */
  scale: z.union([z.number(), z.literal('learned')]),
  /** A layer norm on the input, on the scaled output, or none. */
  norm: z.enum(['in', 'out', 'none']),
  /** How it starts: with `lora`, `xavier` and `normal` as the backbone, unless its output is normed. */
  start: z.enum(BOTTLENECK_STARTS),
  activation: z.enum(ACTIVATIONS),
  dropout: z.number().min(0).max(1),
};

const attentionPlace = z.strictObject({ ...placeShape, insertion: z.enum(['sequential', 'parallel']) }).partial();
const mlpPlace = z.strictObject({ ...placeShape, insertion: z.enum(['sequential', 'parallel', 'pfeiffer']) }).partial();

type Insertion = 'sequential' | 'parallel' | 'pfeiffer';

/** One place, completely told. */
interface Place {
  readonly insertion: Insertion;
  readonly width: number;
  readonly scale: number | 'learned';
  readonly norm: BottleneckNorm;
  readonly start: BottleneckStart;
  readonly activation: ActivationName;
  readonly dropout: number;
}

type Designed = Omit<Place, 'width'>;

const plain = { activation: 'relu', dropout: 0 } as const;
const bertNormed = { ...plain, scale: 1, norm: 'in', start: 'bert' } as const;

/** The rows of the unified view's table, with the starts and norms of its code. */
const DESIGNS: Readonly<Record<string, { readonly attention: Designed | null; readonly mlp: Designed | null }>> = {
  houlsby: {
    attention: { ...bertNormed, insertion: 'sequential' },
    mlp: { ...bertNormed, insertion: 'sequential' },
  },
  pfeiffer: { attention: null, mlp: { ...bertNormed, norm: 'none', insertion: 'pfeiffer' } },
  parallel: { attention: null, mlp: { ...plain, scale: 1, norm: 'none', start: 'lora', insertion: 'parallel' } },
  scaled_parallel: { attention: null, mlp: { ...plain, scale: 4, norm: 'none', start: 'lora', insertion: 'parallel' } },
};

/** x + Δ(norm x) before a post-norm block's last norm: the norm is computed twice, as the released code does. */
class BeforeNorm extends Bottleneck {
  readonly #norm: Module;

  constructor(site: Site, options: BottleneckOptions) {
    super(site.in, site.out, options);
    this.#norm = site.module;
  }

  override forward(x: Tensor, ctx: Context): Tensor {
    return x.add(super.forward(this.#norm.forward(x, ctx), ctx));
  }
}

/** Where an insertion stands and how it is combined. */
function stand(
  insertion: string,
  role: 'attention' | 'mlp',
  scale: number,
  isPostNorm: boolean,
): { at: string; compose: Composition } {
  if (insertion === 'sequential') return { at: role, compose: sequential({ scale }) };
  if (insertion === 'parallel')
    return { at: role === 'attention' ? 'joined_heads' : 'mlp_branch', compose: parallel(scale) };
  if (isPostNorm) return { at: 'block_norm', compose: before() };
  return { at: 'block', compose: sequential({ scale }) };
}

/** The rule that sets a bottleneck into every attention or MLP. */
export function bottleneckRule(role: 'attention' | 'mlp', place: Place, sites: readonly Site[]): Rule {
  const { insertion, scale, width, norm, start, activation, dropout } = place;
  const isPostNorm = sites.some(({ roles }) => roles.includes('block_norm'));
  const isBefore = insertion === 'pfeiffer' && isPostNorm;
  // A fixed factor is the composition's, which applies it while it adds; one that a norm follows is the form's.
  const outside = typeof scale === 'number' && norm !== 'out' && !isBefore ? scale : 1;
  const options: BottleneckOptions = { width, norm, start, activation, dropout, scale: outside === scale ? 1 : scale };
  const { at, compose } = stand(insertion, role, outside, isPostNorm);
  return {
    id: role === 'attention' ? 'attn' : 'ffn',
    at: { role: at },
    compose,
    // What stands in sequence reads the site's output.
    form: (site) =>
      isBefore
        ? new BeforeNorm(site, options)
        : new Bottleneck(compose.kind === 'parallel' ? site.in : site.out, site.out, {
            ...options,
            layout: site.layout,
          }),
  };
}

/** What is left out of a place filled in from the design; null leaves the place out. */
function filled(
  own: z.output<typeof mlpPlace> | null | undefined,
  designed: Designed | null,
  width: number,
): Place | null {
  if (own === null || (own === undefined && designed === null)) return null;
  const base = designed ?? { ...plain, scale: 1, norm: 'none', start: 'lora', insertion: 'parallel' };
  const given = Object.fromEntries(Object.entries(own ?? {}).filter(([, value]) => value !== undefined));
  return { ...base, width, ...given };
}

/**
 * Adapters by design. `houlsby`: after attention and MLP, in sequence; `pfeiffer`: after the MLP's sum; `parallel` and
 * `scaled_parallel`: beside the MLP, from the residual stream (on a ViT: AdaptFormer); `multi_head_parallel`: beside
 * each head, with ReLU instead of softmax over `width` learned keys. `attention` and `mlp` change single choices, add a place or
 * (null) leave one out.
 */
export const adapter = defineMethod({
  id: 'adapter',
  summary: 'bottlenecks after or beside attention and MLP, by the designs of the unified view',
  paper: 'He et al., Towards a Unified View of Parameter-Efficient Transfer Learning, ICLR 2022, arXiv 2110.04366',
  options: z.strictObject({
    design: z
      .enum(['houlsby', 'pfeiffer', 'parallel', 'scaled_parallel', 'multi_head_parallel'])
      .default('scaled_parallel'),
    /** Width of every bottleneck, unless its place states another. */
    width: z.int().positive().default(64),
    attention: attentionPlace.nullable().optional(),
    mlp: mlpPlace.nullable().optional(),
    /** Hidden width of the network that makes keys and values of `multi_head_parallel` in training; null for none. */
    reparametrize: z.int().positive().nullable().default(null),
  }),
  rules: ({ design, width, attention, mlp, reparametrize }, sites) => {
    const { attention: first, mlp: second } = DESIGNS[design] ?? { attention: null, mlp: null };
    const beside = filled(attention, first, width);
    const behind = filled(mlp, second, width);
    const rules = design === 'multi_head_parallel' ? headRules(width, reparametrize) : [];
    if (rules.length === 0 && !beside && !behind) {
      throw new RangeError(
        "adapter: neither attention nor mlp has a place left; give one of them options, or take the method 'linear_probe'",
      );
    }
    if (beside) rules.push(bottleneckRule('attention', beside, sites));
    if (behind) rules.push(bottleneckRule('mlp', behind, sites));
    return rules;
  },
  learningRate: 0.005,
  officialName: unifiedName,
});

function headRules(length: number, reparametrize: number | null): Rule[] {
  return prefixRules({
    ...{ length, reparametrize, dropout: 0, composition: 'add', nonlinearity: 'relu' },
    // As published for BART: queries of the normed input, scores without a scale.
    ...{ query: 'normed', scaled: false },
  });
}
