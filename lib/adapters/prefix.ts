/**
 * Prefix tuning and its relatives in the unified view. Li & Liang, ACL 2021, arXiv 2101.00190; He et al., ICLR 2022, arXiv
 * 2110.04366 (table 1, equation 5); official code jxhe/unify-parameter-efficient-tuning, commit 3222ce2.
 */
import { z } from 'zod';
import type { Site } from '../nn/index.js';
import { before, defineMethod, parallel, type Rule, sequential, type Surroundings } from './core/index.js';
import {
  Memory,
  PrefixAttention,
  PrefixConcat,
  PrefixMlp,
  type PrefixPart,
  type PrefixSource,
  queryProjection,
  Remember,
} from './prefix_forms.js';
import { attentionPath, placeOf, unifiedName } from './unified_names.js';

/** Options of every method with a prefix in it. */
export const prefixShape = {
  /** Rows of the prefix. */
  length: z.int().positive().default(30),
  /** Hidden width of the network that makes the prefix in training; null: its keys and values are learned directly. */
  reparametrize: z.int().positive().nullable().default(null),
  /** On the prefix. */
  dropout: z.number().min(0).max(1).default(0),
};

const prefixOptions = z.strictObject({
  ...prefixShape,
  /**
   * How the prefix meets the attention: its rows stand before the other keys and values (`concat`), or a second
   * attention to them is joined by the weights of a common softmax (`gated`: the same numbers for plain softmax) or
   * summed (`add`).
   */
  composition: z.enum(['concat', 'gated', 'add']).default('concat'),
  /** Of the second attention: `relu` makes it the multi-head parallel adapter. */
  nonlinearity: z.enum(['softmax', 'relu']).default('softmax'),
  /** Whose queries the second attention has: the attention's, or those of its input after a norm of its own. */
  query: z.enum(['plain', 'normed']).default('plain'),
  /** Whether the second attention's scores are scaled like the first's. */
  scaled: z.boolean().default(true),
});

/** What `prefixRules` needs. */
export type PrefixOptions = z.output<typeof prefixOptions>;

/** The sites of a rule that share one reparametrization with `site`: same kind of attention, same width. */
function groupOf(site: Site, role: string, sites: readonly Site[]): { name: string; group: readonly Site[] } {
  const place = placeOf(site, role);
  const alike = sites.filter((other) => placeOf(other, role) === place);
  const group = alike.filter(({ in: width, heads }) => width === site.in && heads === site.heads);
  const suffix = group.length === alike.length ? '' : `_${site.in}_${site.heads ?? 1}`;
  return { name: `prefix_${place}${suffix}`, group };
}

function sourceFor(site: Site, role: string, around: Surroundings, options: PrefixOptions): PrefixSource {
  const { length, reparametrize, dropout } = options;
  if (reparametrize === null) return { kind: 'direct', length, dropout };
  const { name, group } = groupOf(site, role, around.sites);
  const sizes = {
    length,
    layers: group.length,
    heads: site.heads ?? 1,
    width: site.in,
    hidden: reparametrize,
    dropout,
  };
  return { kind: 'shared', mlp: around.shared(name, () => new PrefixMlp(sizes)), layer: group.indexOf(site) };
}

/** Rules that set a prefix into every attention. @throws RangeError for options that exclude each other */
export function prefixRules(options: PrefixOptions): Rule[] {
  const { composition, nonlinearity, query, scaled } = options;
  const isPlain = nonlinearity === 'softmax' && query === 'plain' && scaled;
  if (composition === 'concat' && !isPlain) {
    throw new RangeError(
      "prefix: rows before the other keys share their softmax, queries and scale; give composition 'gated' or 'add' for another form",
    );
  }
  if (composition === 'concat' || (composition === 'gated' && isPlain)) {
    return (['key', 'value'] as const).map((what) => concatRule(what, options));
  }
  return secondAttention(options);
}

function concatRule(what: PrefixPart, options: PrefixOptions): Rule {
  const role = `${what}s`;
  return {
    id: `prefix_${what}`,
    at: { role },
    compose: sequential({ residual: false }),
    form: (site, around) => new PrefixConcat(site, what, sourceFor(site, role, around, options)),
  };
}

/** One memory for each attention, by its path. */
function memories(): (path: string) => Memory {
  const made = new Map<string, Memory>();
  return (path) => {
    const owner = attentionPath(path);
    const memory = made.get(owner) ?? new Memory();
    made.set(owner, memory);
    return memory;
  };
}

function secondAttention(options: PrefixOptions): Rule[] {
  const { composition, nonlinearity, query, scaled } = options;
  const inputs = memories();
  const queries = memories();
  const rules: Rule[] = [];
  const remember = (id: string, role: string, of: (path: string) => Memory): Rule => ({
    id,
    at: { role },
    compose: before(),
    form: ({ path }) => new Remember(of(path)),
  });
  if (query === 'normed') rules.push(remember('prefix_input', 'joined_heads', inputs));
  if (composition === 'gated') rules.push(remember('prefix_queries', 'heads', queries));
  rules.push({
    id: 'prefix',
    at: { role: 'heads' },
    compose: composition === 'gated' ? sequential({ residual: false }) : parallel(),
    form: (site, around) => {
      const attention = around.all.find(({ path }) => path === attentionPath(site.path))?.module ?? null;
      if (composition === 'gated' && (attention === null || attention === site.module)) {
        throw new RangeError(
          "the gate weighs the prefix against the keys of an attention, and the heads here keep theirs to themselves; composition 'add' would do",
        );
      }
      return new PrefixAttention(site, {
        source: sourceFor(site, 'heads', around, options),
        nonlinearity,
        scaled,
        composition: composition === 'gated' ? 'gated' : 'add',
        requery: query === 'normed' ? { input: inputs(site.path), ...queryProjection(site, around.all) } : null,
        queries: queries(site.path),
        attention,
      });
    },
  });
  return rules;
}

/**
 * Learned keys and values in every attention. Not equal to the backbone at the start. The published setting makes them by
 * a network of 800 hidden features (`reparametrize`), which is not needed after training.
 */
export const prefix = defineMethod({
  id: 'prefix',
  summary: 'learned keys and values before those of every attention',
  paper: 'Li & Liang, Prefix-Tuning: Optimizing Continuous Prompts for Generation, ACL 2021, arXiv 2101.00190',
  options: prefixOptions,
  rules: prefixRules,
  learningRate: 0.01,
  officialName: unifiedName,
});
