/** The methods that `methods.test.ts` sets into every tiny backbone, and what each of them promises. */
import { layersOf, matches, type SiteQuery } from '../../lib/adapters/index.js';
import { Conv2d, Linear, type Site } from '../../lib/nn/index.js';

/** A method with options that suit tiny widths, and what it promises. */
export interface MethodCase {
  readonly method: string;
  readonly options?: Record<string, unknown>;
  readonly identityAtStart: boolean;
  readonly merges: boolean;
  /** What a backbone must have; one without such a site refuses the method. Default: nothing. */
  readonly needs?: SiteQuery | readonly SiteQuery[] | ((sites: readonly Site[]) => boolean);
}

/** All blocks see one sequence of tokens. */
const sequence = (sites: readonly Site[]): boolean =>
  sites.some(({ roles, layout }) => roles.includes('block') && layout === 'tokens') &&
  !sites.some(({ roles }) => roles.includes('stage'));
const linears = { role: 'linear', inBlock: true };
/** Queries of attention come from a linear layer, not from a convolution. */
const linearQueries = (sites: readonly Site[]): boolean =>
  sites.some(({ roles, module }) => roles.includes('q') && module instanceof Linear);
/** Increments cannot be told apart from weights that are standardized whenever they are used (BiT). */
const takesIncrements = ({ module }: Site): boolean => module instanceof Linear || module instanceof Conv2d;
/** What low-rank increments go onto by default: queries, and spatial convolutions. */
const plainLayers = (sites: readonly Site[]): boolean =>
  sites.some(
    (site) =>
      matches({ role: 'q' }, site) ||
      (matches({ role: 'conv', inBlock: true, minKernel: 2 }, site) && takesIncrements(site)),
  );

/** Every registered method at least once. */
export const cases: readonly MethodCase[] = [
  { method: 'linear_probe', identityAtStart: true, merges: true },
  { method: 'full', identityAtStart: true, merges: true },
  { method: 'bitfit', identityAtStart: true, merges: true },
  {
    method: 'lora',
    options: { rank: 2, alpha: 6 },
    identityAtStart: true,
    merges: true,
    needs: plainLayers,
  },
  {
    method: 'lora',
    options: { rank: 2, at: { role: ['linear', 'conv'] } },
    identityAtStart: true,
    merges: true,
    needs: (sites) => sites.filter((site) => matches({ role: ['linear', 'conv'] }, site)).every(takesIncrements),
  },
  { method: 'ssf', identityAtStart: false, merges: true },
  { method: 'ssf', options: { init: 'identity' }, identityAtStart: true, merges: true },
  {
    method: 'conv_adapter',
    options: { reduction: 4 },
    identityAtStart: false,
    merges: false,
    needs: { role: 'spatial' },
  },
  ...['conv_par', 'conv_seq', 'res_par', 'res_seq'].map((scheme) => ({
    method: 'conv_adapter',
    options: { reduction: 4, scheme, init: 'zero' },
    identityAtStart: true,
    merges: false,
    needs: { role: scheme.startsWith('conv') ? 'spatial' : 'residual' },
  })),
  { method: 'convpass', options: { hidden: 3 }, identityAtStart: true, merges: false, needs: { role: 'mlp_path' } },
  {
    method: 'convpass',
    options: { hidden: 4, where: 'attention', start: 'identity', scale: 10, kernel: 5 },
    identityAtStart: true,
    merges: false,
    needs: { role: 'attention_path' },
  },
  { method: 'fact', options: { rank: 3 }, identityAtStart: true, merges: true, needs: linears },
  {
    method: 'fact',
    options: { variant: 'tk', rank: 5, scale: 10 },
    identityAtStart: true,
    merges: true,
    needs: linears,
  },
  {
    method: 'lora',
    options: { rank: 2, bits: 2, at: linears },
    identityAtStart: false,
    merges: true,
    needs: linears,
  },
  ...[
    { hidden: 5 },
    { hidden: 4, scale: 'learned', norm: 'in', placement: 'sequential' },
    { hidden: 3, scale: 10, norm: 'out', bias: false },
  ].map((options) => ({
    method: 'adaptformer',
    options,
    identityAtStart: true,
    merges: false,
    needs: { role: 'mlp_branch' },
  })),
  {
    method: 'adaptformer',
    options: { hidden: 4, bits: 1 },
    identityAtStart: false,
    merges: false,
    needs: { role: 'mlp_branch' },
  },
  {
    method: 'noah',
    options: { prompts: [2, 3], lora: [3, 1], adapters: [0, 4] },
    identityAtStart: false,
    merges: false,
    needs: sequence,
  },
  {
    method: 'noah',
    options: { prompts: 0, lora: 3, adapters: 2, init: 'zero' },
    identityAtStart: true,
    merges: false,
    needs: sequence,
  },
  ...['multiply', 'gate_only'].map((se) => ({
    method: 'pro_tuning',
    options: { groups: 2, kernel: 3, seRatio: 4, stages: 2, se },
    identityAtStart: true,
    merges: false,
  })),
  { method: 'vpt', options: { tokens: 2 }, identityAtStart: false, merges: false, needs: { role: 'tokens' } },
  {
    method: 'vpt',
    options: { tokens: 3, deep: true, project: 5 },
    identityAtStart: false,
    merges: false,
    // One projection widens the prompts of all blocks.
    needs: (sites) =>
      sites.some(({ roles }) => roles.includes('tokens')) &&
      new Set(sites.filter(({ roles }) => roles.includes('block')).map((site) => site.in)).size === 1,
  },
  { method: 'kadaptation', options: { phmDim: 4 }, identityAtStart: true, merges: true, needs: { role: 'q' } },
  {
    method: 'kadaptation',
    options: { phmDim: 4, rank: 2, rule: 'full', bias: true },
    identityAtStart: true,
    merges: true,
    needs: { role: 'q' },
  },
  {
    method: 'kadaptation',
    options: { phmDim: 4, variant: 'official', start: 'xavier' },
    identityAtStart: true,
    merges: false,
    needs: { role: 'q' },
  },
  { method: 'pevit_lora', options: { rank: 2 }, identityAtStart: true, merges: false, needs: { role: 'q' } },
  {
    method: 'compacter',
    options: { hidden: 8, trainRule: true },
    identityAtStart: false,
    merges: false,
    needs: { role: 'mlp' },
  },
  {
    method: 'intrinsic_subspace',
    options: { dimension: 40 },
    identityAtStart: true,
    merges: true,
    needs: (sites) => layersOf(sites, { submodule: 'block' }).length > 0,
  },
  {
    method: 'intrinsic_subspace',
    options: { dimension: 7, submodule: 'attention', depth: { from: -1 } },
    identityAtStart: true,
    merges: true,
    needs: { role: 'attention' },
  },
  {
    method: 'krona',
    options: { scale: 2, trainLayerNorm: true },
    identityAtStart: true,
    merges: true,
    needs: linearQueries,
  },
  { method: 'krona_b', identityAtStart: true, merges: false, needs: { role: 'mlp' } },
  {
    method: 'krona_b_res',
    options: { residualScaleInit: 0.5 },
    identityAtStart: false,
    merges: false,
    needs: { role: 'mlp' },
  },
  ...[{ rank: 2 }, { rank: 1, alpha: 3, decomposeBoth: true, decomposeFactor: 2, effectiveConv: true }].map(
    (options) => ({
      method: 'lokr',
      options,
      identityAtStart: true,
      merges: true,
      needs: plainLayers,
    }),
  ),
  { method: 'adapter', options: { width: 4 }, identityAtStart: true, merges: false, needs: { role: 'mlp_branch' } },
  {
    method: 'adapter',
    options: { design: 'houlsby', width: 4, mlp: { norm: 'out', scale: 'learned' } },
    identityAtStart: false,
    merges: false,
    needs: { role: 'attention' },
  },
  {
    method: 'adapter',
    options: { design: 'pfeiffer', width: 4 },
    identityAtStart: false,
    merges: false,
    needs: { role: 'block' },
  },
  {
    method: 'adapter',
    options: { design: 'multi_head_parallel', width: 3, attention: { width: 2, start: 'xavier' } },
    identityAtStart: false,
    merges: false,
    needs: { role: 'joined_heads' },
  },
  { method: 'prefix', options: { length: 3 }, identityAtStart: false, merges: false, needs: { role: 'keys' } },
  {
    method: 'prefix',
    options: { length: 3, reparametrize: 5, composition: 'add' },
    identityAtStart: false,
    merges: false,
    needs: { role: 'heads' },
  },
  {
    method: 'mam',
    options: { length: 2, width: 4, reparametrize: 5, scale: 2 },
    identityAtStart: false,
    merges: false,
    needs: { role: 'keys' },
  },
  { method: 'prompt_tuning', options: { length: 3 }, identityAtStart: false, merges: false, needs: { role: 'tokens' } },
  {
    method: 'st_adapter',
    options: { hidden: 4, kernel: [3, 3, 3], where: 'both' },
    identityAtStart: true,
    merges: false,
    needs: { role: 'mlp_stream' },
  },
  { method: 'st_adapter', options: { layers: 1 }, identityAtStart: true, merges: false, needs: { role: 'mlp_stream' } },
  { method: 'spm', options: { classes: 3, width: 4, stages: 2 }, identityAtStart: true, merges: false },
  ...['conv_adapt_norm', 'conv_adapt_bias'].map((variant) => ({
    method: 'conv_adapter',
    options: { reduction: 4, variant, finalNorm: true },
    identityAtStart: false,
    merges: false,
    needs: { role: 'spatial' },
  })),
];
