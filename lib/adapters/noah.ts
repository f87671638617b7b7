/**
 * NOAH, neural prompt search: prompts, LoRA and adapters in every block, each of a size of its own; a supernet holds the
 * largest sizes, of which a sub-network uses the leading rows. Zhang, Zhou & Liu, arXiv 2206.04673; official code
 * ZhangYuanhan-AI/NOAH, commit e9c55f3. The search is in `noah_search.ts`.
 */
import { z } from 'zod';
import {
  type Context,
  Dropout,
  functional,
  init,
  Linear,
  Module,
  modulePath,
  Parameter,
  QuickGELU,
  type Site,
} from '../nn/index.js';
import { aten, empty, type Tensor } from '../tensor/index.js';
import {
  type Adapter,
  before,
  defineMethod,
  delta,
  type DeltaForm,
  type Rule,
  sequential,
  type Surroundings,
} from './core/index.js';

/** Sizes of the three kinds in each block: prompts, rank of LoRA, width of the adapter; 0 leaves one out. */
export interface NoahSizes {
  readonly prompts: readonly number[];
  readonly lora: readonly number[];
  readonly adapters: readonly number[];
}

/** A kind of module. */
export type NoahKind = keyof NoahSizes;

/** The three kinds of grafts that a NOAH searches over. */
export const NOAH_KINDS = ['prompts', 'lora', 'adapters'] as const satisfies readonly NoahKind[];

/** The sub-network in force, which all grafts of an adapter read. It has no parameters. */
class SubNetwork extends Module {
  constructor(
    readonly largest: Readonly<Record<NoahKind, number>>,
    public sizes: NoahSizes,
  ) {
    super();
  }

  of(kind: NoahKind, block: number): number {
    return this.sizes[kind][block] ?? 0;
  }

  /** @throws TypeError always */
  forward(): Tensor {
    throw new TypeError('the sizes of a sub-network are no layer; the grafts read them');
  }
}

/** What every form knows: the sub-network, and in which block it stands. */
interface Place {
  readonly network: SubNetwork;
  readonly block: number;
}

/** How a form starts. */
interface StartOptions {
  readonly dropout: number;
  readonly zero: boolean;
}

/** Normal with deviation 0.02, cut; biases 0: how the official code leaves every linear layer. */
function startLinear(layer: Linear): void {
  init.truncNormal_(layer.weight, { std: 0.02 });
  if (layer.bias) init.zeros_(layer.bias);
}

/** One pair for the fused projection of q, k and v: D = b a with `a` [r, d] and `b` [3 d, r]; dropout on the input. */
export class NoahLora extends Module implements DeltaForm {
  readonly a: Linear;
  readonly b: Linear;
  readonly drop: Dropout;
  readonly #place: Place;

  constructor(site: Site, rank: number, place: Place, { dropout, zero }: StartOptions) {
    super();
    const most = Math.min(site.in, site.out);
    if (rank > most)
      throw new RangeError(`rank ${rank} exceeds what a ${site.in} to ${site.out} layer can hold; at most ${most}`);
    this.a = new Linear(site.in, rank, { bias: false });
    this.b = new Linear(rank, site.out, { bias: false });
    this.drop = new Dropout(dropout);
    this.#place = place;
    for (const layer of [this.a, this.b]) startLinear(layer);
    if (zero) init.zeros_(this.b.weight);
  }

  get #rank(): number {
    return this.#place.network.of('lora', this.#place.block);
  }

  forward(x: Tensor, ctx: Context): Tensor {
    const rank = this.#rank;
    const reduced = functional.linear(this.drop.run(x, ctx), this.a.weight.narrow(0, 0, rank));
    return functional.linear(reduced, this.b.weight.narrow(1, 0, rank));
  }

  delta(): Tensor {
    const rank = this.#rank;
    return this.b.weight.narrow(1, 0, rank).mm(this.a.weight.narrow(0, 0, rank));
  }

  addTo(base: Tensor, x: Tensor, scale: number, ctx: Context): Tensor {
    return this.#rank === 0 ? base : base.add(this.forward(x, ctx), { alpha: scale });
  }
}

/** ln2(drop(φ(ln1 x))) with φ(t) = t sigmoid(1.702 t), of the leading hidden features; nothing at width 0. */
export class NoahAdapter extends Module {
  readonly ln1: Linear;
  readonly ln2: Linear;
  readonly act: QuickGELU;
  readonly drop: Dropout;
  readonly #place: Place;

  constructor(channels: number, width: number, place: Place, { dropout, zero }: StartOptions) {
    super();
    this.ln1 = new Linear(channels, width);
    this.ln2 = new Linear(width, channels);
    this.act = new QuickGELU();
    this.drop = new Dropout(dropout);
    this.#place = place;
    for (const layer of [this.ln1, this.ln2]) startLinear(layer);
    if (zero) init.zeros_(this.ln2.weight);
  }

  forward(x: Tensor, ctx: Context): Tensor {
    const width = this.#place.network.of('adapters', this.#place.block);
    if (width === 0) return aten.zerosLike(x);
    const { ln1, ln2 } = this;
    const hidden = functional.linear(x, ln1.weight.narrow(0, 0, width), ln1.bias?.narrow(0, 0, width));
    return functional.linear(this.drop.run(this.act.run(hidden, ctx), ctx), ln2.weight.narrow(1, 0, width), ln2.bias);
  }
}

/**
 * Puts a block's own prompts at the end of the sequence, in place of those of the block before. A block without prompts
 * changes nothing; those that stand there then stay to the end.
 */
export class NoahPrompts extends Module {
  readonly visual_prompt_token: Parameter;
  readonly drop: Dropout;
  readonly #place: Place;

  constructor(channels: number, count: number, place: Place, dropout: number) {
    super();
    this.visual_prompt_token = new Parameter(init.truncNormal_(empty([1, count, channels]), { std: 0.02 }));
    this.drop = new Dropout(dropout);
    this.#place = place;
  }

  forward(x: Tensor, ctx: Context): Tensor {
    const { network, block } = this.#place;
    const own = network.of('prompts', block);
    if (own === 0) return x;
    const [batch = 0, length = 0] = x.shape;
    const old = block > 0 ? network.of('prompts', block - 1) : 0;
    const kept = old > 0 ? x.narrow(1, 0, length - old) : x;
    const prompts = this.drop.run(this.visual_prompt_token.narrow(1, 0, own).expand([batch, -1, -1]), ctx);
    return aten.cat([kept, prompts], 1);
  }
}

/** Prompts before the first block, which replaces them at once: official checkpoints hold them, and nothing reads them. */
class RootPrompts extends Module {
  readonly visual_prompt_token: Parameter;
  readonly visual_prompt_token_pos_embed: Parameter;

  constructor(channels: number, count: number) {
    super();
    const make = (): Parameter => new Parameter(init.truncNormal_(empty([1, count, channels]), { std: 0.02 }));
    this.visual_prompt_token = make();
    this.visual_prompt_token_pos_embed = make();
  }

  forward(x: Tensor): Tensor {
    return x;
  }
}

/** Takes the prompts away behind the last block, so that nothing that follows meets them. */
class WithoutPrompts extends Module {
  forward(x: Tensor, ctx: Context): Tensor {
    const { grid, prefixTokens } = ctx;
    return grid ? x.narrow(1, 0, prefixTokens + grid[0] * grid[1]) : x;
  }
}

/** Sizes for each of `blocks` blocks. @throws RangeError for a list of another length */
function perBlock(kind: NoahKind, sizes: number | readonly number[], blocks: number): readonly number[] {
  if (typeof sizes === 'number') return Array.from({ length: blocks }, () => sizes);
  if (sizes.length === blocks) return sizes;
  throw new RangeError(`noah: ${kind} lists ${sizes.length} sizes, the model has ${blocks} blocks; give one for each`);
}

/** @throws RangeError for sizes that the supernet does not hold, or of other lengths */
function checkSizes(sizes: NoahSizes, largest: Readonly<Record<NoahKind, number>>, blocks: number): void {
  for (const kind of NOAH_KINDS) {
    const list = perBlock(kind, sizes[kind], blocks);
    const wrong = list.find((size) => !Number.isInteger(size) || size < 0 || size > largest[kind]);
    if (wrong !== undefined) {
      throw new RangeError(`noah: a size of ${wrong} for ${kind}; the supernet holds 0 to ${largest[kind]}`);
    }
  }
}

/** The blocks of a network that every block of which reads the same sequence. */
function blocksOf(sites: readonly Site[]): readonly Site[] {
  const blocks = sites.filter(({ roles }) => roles.includes('block'));
  const isUniform = new Set(blocks.map(({ in: width }) => width)).size === 1;
  const isSequence = blocks.every(({ layout }) => layout === 'tokens');
  if (isUniform && isSequence && !sites.some(({ roles }) => roles.includes('stage'))) return blocks;
  throw new RangeError('noah: needs a transformer whose blocks all see one sequence of tokens, such as vit');
}

const size = z.int().nonnegative();
const sizes = z.union([size, z.array(size).min(1)]);
const rate = z.number().min(0).max(1);

const options = z.strictObject({
  /** Number of prompts: one for all blocks, or one for each; 0 leaves them out. */
  prompts: sizes.default(5),
  /** Rank of LoRA, likewise. */
  lora: sizes.default(5),
  /** Width of the adapter, likewise. */
  adapters: sizes.default(5),
  /** The largest sizes, which a supernet holds. Default: the largest of those in use. */
  largest: z.strictObject({ prompts: size, lora: size, adapters: size }).optional(),
  promptDropout: rate.default(0.1),
  loraDropout: rate.default(0.1),
  adapterDropout: rate.default(0.1),
  /** `official`: no module starts at zero; `zero`: LoRA and adapters start as nothing. */
  init: z.enum(['official', 'zero']).default('official'),
  /** Also the prompts before the first block, which official checkpoints hold and which never reach the output. */
  rootPrompts: z.boolean().default(false),
});

/** Sub-network and largest sizes of the options for a model of `blocks` blocks. */
function networkOf(o: z.output<typeof options>, blocks: number): SubNetwork {
  const chosen = Object.fromEntries(NOAH_KINDS.map((kind) => [kind, perBlock(kind, o[kind], blocks)]));
  const inUse = Object.fromEntries(NOAH_KINDS.map((kind) => [kind, Math.max(...(chosen[kind] ?? []))]));
  const largest = o.largest ?? (inUse as Record<NoahKind, number>);
  checkSizes(chosen as unknown as NoahSizes, largest, blocks);
  return new SubNetwork(largest, chosen as unknown as NoahSizes);
}

function rulesOf(o: z.output<typeof options>, sites: readonly Site[]): Rule[] {
  const blocks = blocksOf(sites);
  const { largest } = networkOf(o, blocks.length);
  const place = (site: Site, around: Surroundings): Place => ({
    network: around.shared('network', () => networkOf(o, blocks.length)),
    block: blocks.findIndex(({ path }) => path === site.block),
  });
  const zero = o.init === 'zero';
  const projections = sites.filter(({ slice }) => slice?.name === 'q').map(modulePath);
  const rules: (Rule | false)[] = [
    o.rootPrompts && {
      id: 'root',
      at: { role: 'tokens' },
      compose: sequential({ residual: false }),
      form: (site) => new RootPrompts(site.out, largest.prompts),
    },
    {
      id: 'prompts',
      at: { role: 'block' },
      compose: before(),
      form: (site, around) => new NoahPrompts(site.in, largest.prompts, place(site, around), o.promptDropout),
    },
    {
      id: 'trim',
      at: { role: 'features' },
      compose: sequential({ residual: false }),
      form: () => new WithoutPrompts(),
    },
  ];
  const lora: Rule = {
    id: 'lora',
    at: { role: 'linear', path: projections },
    compose: delta(),
    form: (site, around) => new NoahLora(site, largest.lora, place(site, around), { dropout: o.loraDropout, zero }),
  };
  const adapter: Rule = {
    id: 'adapter',
    at: { role: 'mlp_path' },
    compose: sequential(),
    form: (site, around) =>
      new NoahAdapter(site.out, largest.adapters, place(site, around), { dropout: o.adapterDropout, zero }),
  };
  return [...(largest.prompts > 0 ? rules : []), largest.lora > 0 && lora, largest.adapters > 0 && adapter].filter(
    (rule) => rule !== false,
  );
}

/**
 * NOAH's mixed form. With the published start it does not begin as the backbone. At the default sizes 331,836 parameters
 * on ViT-B/16; the published sub-networks have 360,134 on average.
 */
export const noah = defineMethod({
  id: 'noah',
  summary: 'prompts, LoRA and adapters together, each block with sizes of its own',
  paper: 'Zhang, Zhou & Liu, Neural Prompt Search, arXiv 2206.04673',
  options,
  rules: rulesOf,
  officialName: ({ path, site, rule, leaf }) => {
    const block = site?.block ?? '';
    if (rule === 'lora') return `${path.split('.').slice(0, -1).join('.')}.LoRA_${leaf}`;
    if (rule === 'adapter') return `${block}.adapter.${leaf}`;
    return rule === 'prompts' ? `${block}.${leaf}` : leaf;
  },
});

function networkOfAdapter(adapter: Adapter): SubNetwork {
  const network = adapter.shared.get('network');
  if (network instanceof SubNetwork) return network;
  throw new TypeError(
    `adapter '${adapter.name}' (${adapter.method.id}) has no sub-networks; it must be of the method noah`,
  );
}

/** The sizes of the sub-network that an adapter of the method `noah` computes with. */
export function noahSizes(adapter: Adapter): NoahSizes {
  return networkOfAdapter(adapter).sizes;
}

/**
 * Makes a supernet compute with another of its sub-networks: while it is trained, one drawn at random in every step.
 * An adapter folder holds the sizes that the adapter was made with.
 *
 * @throws RangeError for sizes above the supernet's, or not one per block
 */
export function setNoahSizes(adapter: Adapter, sizes: NoahSizes): void {
  const network = networkOfAdapter(adapter);
  checkSizes(sizes, network.largest, network.sizes.prompts.length);
  network.sizes = sizes;
}
