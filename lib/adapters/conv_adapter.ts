/**
 * Conv-Adapter: a small convolutional bottleneck beside the convolutions of a frozen network. Chen et al., CVPR 2024
 * Workshop on Prompting in Vision, arXiv 2208.07463; official code Hhhhhhao/Conv-Adapter, commit 97e1fc8.
 */
import { z } from 'zod';
import { GroupNorm, init, type Module, type Site } from '../nn/index.js';
import { affine, defineMethod, parallel, sequential, type BackboneParameter, type Rule } from './core/index.js';
import {
  ChannelBias,
  ConvAdapter,
  FeatureNorm,
  LinearAdapter,
  PaddingPrompt,
  type Start,
  TokenConvAdapter,
} from './conv_adapter_forms.js';

/** Where A sits for each scheme: the stretch of the block that it adapts, and whether it reads its input or output. */
const SCHEMES = {
  conv_par: { at: { role: 'spatial' }, compose: parallel() },
  // Behind a convolution that halves the map there is nothing to add to with the same kernel.
  conv_seq: { at: { role: 'spatial', inBlock: true }, compose: sequential() },
  res_par: { at: { role: 'residual' }, compose: parallel() },
  res_seq: { at: { role: 'residual' }, compose: sequential() },
} as const satisfies Record<string, Pick<Rule, 'at' | 'compose'>>;

/**
 * Official start by host: Kaiming over fan-out beside ReLU (per group beside SiLU), truncated normal beside GELU, PyTorch's
 * own on tokens and before the norms of pre-activated networks, there without bias.
 */
function officialStart({ activation, layout, roles }: Site): Start {
  if (layout === 'tokens') return 'default';
  if (roles.includes('preactivation')) return 'default_without_bias';
  if (activation === 'silu') return 'fan_out_per_group';
  return activation === 'gelu' ? 'trunc_normal' : 'fan_out';
}

/**
 * floor(channels / reduction), exact where a quotient such as 8 / 1.6 is rounded up to a whole number, as the official
 * code's floor division is.
 */
function bottleneckWidth(channels: number, reduction: number): number {
  const width = Math.round((channels - (channels % reduction)) / reduction);
  if (width >= 1) return width;
  throw new RangeError(`a reduction of ${reduction} leaves none of ${channels} channels; at most ${channels}`);
}

const fits = (channels: number, reduction: number): boolean =>
  reduction <= channels && channels % bottleneckWidth(channels, reduction) === 0;

/** Largest reduction that an error proposes. */
const LARGEST_PROPOSED = 64;

/** @throws RangeError with the reductions that suit all sites, which share one */
function refuseReduction(channels: number, reduction: number, all: readonly number[]): never {
  const proposed = Array.from({ length: LARGEST_PROPOSED }, (_, i) => i + 1).filter((r) =>
    all.every((c) => fits(c, r)),
  );
  throw new RangeError(
    `${channels} channels do not divide into a bottleneck of ${bottleneckWidth(channels, reduction)}, which a reduction of ` +
      `${reduction} leaves; reductions that fit every site here: ${proposed.join(', ')}`,
  );
}

function adapterForm(
  site: Site,
  sites: readonly Site[],
  { scheme, reduction, start }: { scheme: keyof typeof SCHEMES; reduction: number; start: Start | 'official' },
): Module {
  const readsOutput = scheme.endsWith('seq');
  const channelsOf = (at: Site): number => (readsOutput ? at.out : at.in);
  const inChannels = channelsOf(site);
  const width = bottleneckWidth(inChannels, reduction);
  if (inChannels % width !== 0) refuseReduction(inChannels, reduction, sites.map(channelsOf));
  const Form = site.layout === 'tokens' ? TokenConvAdapter : ConvAdapter;
  return new Form({
    inChannels,
    outChannels: site.out,
    width,
    kernel: site.kernel ?? [3, 3],
    stride: readsOutput ? [1, 1] : (site.stride ?? [1, 1]),
    padding: site.padding ?? [1, 1],
    activation: site.activation ?? 'relu',
    start: start === 'official' ? officialStart(site) : start,
  });
}

/** Beside CLIP's attention pool, on its query: the official adapter also sees the other tokens, whose result nobody reads. */
function poolAdapter(site: Site, reduction: number, start: Start | 'official'): LinearAdapter {
  const adapter = new LinearAdapter(site.in, site.out, bottleneckWidth(site.in, reduction));
  if (start === 'zero') {
    init.zeros_(adapter.fc2.weight);
    if (adapter.fc2.bias) init.zeros_(adapter.fc2.bias);
  }
  return adapter;
}

/** Side of the square images that a model takes. */
function sideOf({ size }: Site): number {
  const [height, width] = size ?? [];
  if (height !== undefined && height === width) return height;
  const given = size ? `of ${size.join(' x ')} pixels` : 'of any size';
  throw new RangeError(`the padding prompt is for square images, and the model takes those ${given}; give imageSize`);
}

type Trains = (parameter: BackboneParameter) => boolean;

/** The norm after the last stage, by the names of all hosts. ResNet has none: there it comes with `finalNorm`. */
const isLastNorm: Trains = ({ name }) => /^(head\.)?norm\./.test(name);

/** What has `norm` in its official name: in blocks that is every norm but BatchNorm and GroupNorm (`bn1`, `gn1`). */
const isNamedNorm: Trains = (p) => isLastNorm(p) || (p.name.includes('norm') && !(p.module instanceof GroupNorm));

const isAnyNorm: Trains = ({ name }) => /bn|gn|norm|before_head/.test(name);
const isBias: Trains = ({ name }) => name.includes('bias');

/** What the official code calls methods: which grafts there are, and which backbone parameters train besides the head. */
const VARIANTS: Readonly<Record<string, { readonly adapters: boolean; readonly trains: Trains }>> = {
  conv_adapt: { adapters: true, trains: isNamedNorm },
  conv_adapt_norm: { adapters: true, trains: isAnyNorm },
  conv_adapt_bias: { adapters: true, trains: (p) => isLastNorm(p) || isBias(p) },
  norm: { adapters: false, trains: isAnyNorm },
  bias: { adapters: false, trains: (p) => isLastNorm(p) || isBias(p) },
  prompt: { adapters: false, trains: isLastNorm },
  linear: { adapters: false, trains: isLastNorm },
  full: { adapters: false, trains: () => true },
};

/** Official path of the adapter at a site: in its block or pool, or, before ConvNeXt's stages, in a list of their own. */
function adapterPath({ path, block, activation, roles }: Site): string {
  if (roles.includes('attention_pool')) return `${path.slice(0, path.lastIndexOf('.'))}.tuning_module`;
  const [, stage] = /^stages\.(\d+)\.downsample\.\d+$/.exec(path) ?? [];
  if (stage !== undefined) return `tuning_module_downsample.${Number(stage) - 1}`;
  // The official ConvNeXt, the host with GELU, has no `blocks` in its names.
  const own = activation === 'gelu' ? block?.replace(/^(stages\.\d+)\.blocks\./, '$1.') : block;
  return `${own ?? ''}.tuning_module`;
}

/**
 * Conv-Adapter, its four schemes and the comparison methods of its code. On ConvNeXt the convolutions between the stages
 * have adapters too; on Swin they stand beside attention, on the whole map; on CLIP's residual network a linear one stands
 * beside the attention pool as well; on EfficientNet-V2 they stand beside whole blocks. 356,848 parameters on ResNet-50,
 * 1,250,496 on ConvNeXt-T, 2,361,536 on Swin-B for a reduction of 4, besides the norms that the variant trains.
 *
 * The published start does not make the adapted model equal to the backbone: nothing is zero at first. `init: 'zero'`
 * does; it is also what makes training stable when BatchNorm's statistics stay frozen (docs/adapters.md has figures).
 */
export const convAdapter = defineMethod({
  id: 'conv_adapter',
  summary: 'a depth-wise separable bottleneck beside every spatial convolution',
  paper: 'Chen et al., Conv-Adapter, CVPR 2024 Workshop on Prompting in Vision, arXiv 2208.07463',
  options: z.strictObject({
    /** Compression γ: the bottleneck has floor(channels / γ) channels. */
    reduction: z.number().min(1).default(8),
    /** What is adapted, and whether in parallel or in sequence. */
    scheme: z.enum(['conv_par', 'conv_seq', 'res_par', 'res_seq']).default('conv_par'),
    /** Which of the official code's methods. */
    variant: z
      .enum(['conv_adapt', 'conv_adapt_norm', 'conv_adapt_bias', 'norm', 'bias', 'prompt', 'linear', 'full'])
      .default('conv_adapt'),
    /** `official`: as the backbone's own convolutions start; `zero`: the adapted model starts as the backbone. */
    init: z.enum(['official', 'zero', 'default', 'fan_out', 'trunc_normal']).default('official'),
    /** Sets a new, trained BatchNorm after the last stage, as the official ResNet does. */
    finalNorm: z.boolean().default(false),
    /** Border of the `prompt` variant, in pixels. */
    promptSize: z.int().positive().default(10),
    /** Side of the images, for the `prompt` variant. Default: the model's. */
    imageSize: z.int().positive().optional(),
  }),
  rules: ({ reduction, scheme, variant, init: start, finalNorm, promptSize, imageSize }) => {
    const rules: Rule[] = [];
    if (VARIANTS[variant]?.adapters) {
      const form: Rule['form'] = (site, { sites }) => adapterForm(site, sites, { scheme, reduction, start });
      rules.push({ id: 'adapter', ...SCHEMES[scheme], form });
      const pool = { at: { role: 'attention_pool' }, compose: parallel(), optional: true } as const;
      if (scheme === 'conv_par')
        rules.push({ id: 'adapter', ...pool, form: (site) => poolAdapter(site, reduction, start) });
    }
    if (variant === 'bias') {
      // The bottlenecks of the residual networks; other hosts have none, or biases of their own.
      const at = { role: 'conv', inBlock: true, name: ['conv1', 'conv2', 'conv3'], except: '**.axial_shift.**' };
      const form = (site: Site): Module => new ChannelBias(site.out);
      rules.push({ id: 'bias', at, compose: affine(), form, optional: true });
    }
    if (variant === 'prompt') {
      const form = (site: Site): Module => new PaddingPrompt(imageSize ?? sideOf(site), promptSize, site.in);
      rules.push({ id: 'prompt', at: { role: 'input' }, compose: sequential({ residual: false }), form });
    }
    if (finalNorm) {
      const form = (site: Site): Module => new FeatureNorm(site.out);
      rules.push({ id: 'norm', at: { role: 'features' }, compose: sequential({ residual: false }), form });
    }
    return rules;
  },
  trains: ({ variant }) => VARIANTS[variant]?.trains ?? (() => false),
  bnStats: 'update',
  headInit: 'uniform',
  officialHead: 'head.linear',
  learningRate: 0.01,
  officialName: ({ rule, site, path, leaf }) => {
    if (rule === 'norm') return `norm.${leaf}`;
    if (rule === 'bias') return `${path}.${leaf}`;
    return rule === 'prompt' || !site ? `tuning_module.${leaf}` : `${adapterPath(site)}.${leaf}`;
  },
});
