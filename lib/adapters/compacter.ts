/**
 * Compacter: a bottleneck behind the MLP whose two layers are sums of Kronecker products with one rule for the whole
 * network. Karimi Mahabadi et al., NeurIPS 2021, arXiv 2106.04647; on vision transformers as eric-ai-lab/PEViT has it
 * (commit be6fb43).
 */
import { z } from 'zod';
import {
  ACTIVATIONS,
  activationLayer,
  type ActivationName,
  type Context,
  LayerNorm,
  Module,
  Parameter,
  type SiteLayout,
} from '../nn/index.js';
import { type Tensor, zeros } from '../tensor/index.js';
import { defineMethod, sequential } from './core/index.js';
import { KroneckerFactors, kroneckerProduct, KroneckerRule } from './kronecker.js';
import { overChannels, PEVIT, pevitCopies, pevitHead, pevitPath } from './pevit.js';

/** y = z H + b with H of a shared rule: `W.left` [n, in / n, r], `W.right` [n, r, out / n], `b` [out]. */
export class PhmLayer extends Module {
  readonly W: KroneckerFactors;
  readonly b: Parameter;
  readonly #rule: KroneckerRule;

  constructor(inFeatures: number, outFeatures: number, rule: KroneckerRule, rank: number) {
    super();
    this.W = new KroneckerFactors(inFeatures, outFeatures, { n: rule.n, rank, start: 'both' });
    this.b = new Parameter(zeros([outFeatures]));
    this.#rule = rule;
  }

  forward(x: Tensor): Tensor {
    return kroneckerProduct(x, this.#rule, this.W).add(this.b);
  }
}

/** u = up(act(down(norm x))) of two PHM layers, over the channels of tokens or maps. */
export class PhmBottleneck extends Module {
  readonly norm: LayerNorm;
  readonly down: PhmLayer;
  readonly act: Module;
  readonly up: PhmLayer;
  readonly #layout: SiteLayout;

  constructor(
    channels: number,
    rule: KroneckerRule,
    {
      width,
      rank,
      activation,
      layout,
    }: {
      readonly width: number;
      readonly rank: number;
      readonly activation: ActivationName;
      readonly layout: SiteLayout;
    },
  ) {
    super();
    this.norm = new LayerNorm(channels);
    this.down = new PhmLayer(channels, width, rule, rank);
    this.act = activationLayer(activation);
    this.up = new PhmLayer(width, channels, rule, rank);
    this.#layout = layout;
  }

  forward(x: Tensor, ctx: Context): Tensor {
    const parts = [this.norm, this.down, this.act, this.up];
    return overChannels(x, this.#layout, (rows) => parts.reduce<Tensor>((t, part) => part.run(t, ctx), rows));
  }
}

const FILE_NAMES: Readonly<Record<string, string>> = {
  'norm.weight': 'adapter_norm_before.weight',
  'norm.bias': 'adapter_norm_before.bias',
  'down.W.left': 'adapter_down.1.W_left',
  'down.W.right': 'adapter_down.1.W_right',
  'down.b': 'adapter_down.1.b',
  'up.W.left': 'adapter_up.W_left',
  'up.W.right': 'adapter_up.W_right',
  'up.b': 'adapter_up.b',
};

/** Compacter. 48,384 parameters on ViT-B; does not start as the backbone. */
export const compacter = defineMethod({
  id: 'compacter',
  summary: 'a bottleneck behind the MLP from sums of Kronecker products',
  paper:
    'Karimi Mahabadi et al., Compacter: Efficient Low-Rank Hypercomplex Adapter Layers, NeurIPS 2021, arXiv 2106.04647',
  options: z.strictObject({
    /** Width of the bottleneck. */
    hidden: z.int().positive().default(64),
    /** n: number and side of the rule's matrices; must divide both widths. */
    phmDim: z.int().positive().default(4),
    rank: z.int().positive().default(1),
    activation: z.enum(ACTIVATIONS).default('gelu_tanh'),
    /** Whether the shared rule learns. PEViT's stays at its random start. */
    trainRule: z.boolean().default(false),
  }),
  rules: ({ hidden, phmDim, rank, activation, trainRule }) => [
    {
      id: 'compacter',
      at: { role: 'mlp' },
      compose: sequential(),
      form: (site, around) => {
        const make = (): KroneckerRule => new KroneckerRule(phmDim, { kind: 'full', range: 1, trained: trainRule });
        const rule = around.shared('phm_rule', make);
        return new PhmBottleneck(site.out, rule, { width: hidden, rank, activation, layout: site.layout });
      },
    },
  ],
  backboneMode: 'eval',
  officialHead: pevitHead,
  officialCopies: pevitCopies,
  officialName: ({ path, site, rule, leaf }) =>
    path === '' ? `${PEVIT}${rule}` : `${pevitPath(site?.block ?? path)}.compacter.${FILE_NAMES[leaf] ?? leaf}`,
});
