/**
 * T5, the text-to-text transformer. Raffel et al., JMLR 2020, arXiv 1910.10683; names and numbers as in Hugging Face
 * transformers (`modeling_t5.py`, release 5.18.0, Apache-2.0).
 */
import { z } from 'zod';
import type { KeyMap } from '../checkpoint/index.js';
import { type Context, Dropout, Embedding, type Identity, init, Linear, Module, RMSNorm, site } from '../nn/index.js';
import type { Tensor } from '../tensor/index.js';
import { BlockList, identitySite } from './blocks.js';
import { type Family, positive } from './family.js';
import { relativeBias, T5Block, type T5Sizes } from './t5_blocks.js';
import { additive, hiddenKeys, laterKeys, lowest, Slot, type Surroundings } from './text_attention.js';
import { fillShared, TextModel } from './text_model.js';

const t5Options = z.strictObject({
  vocabulary: positive.default(32128),
  dim: positive,
  headDim: positive.default(64),
  hidden: positive,
  /** Blocks of the encoder. */
  depth: positive,
  /** Default: as the encoder. */
  decoderDepth: positive.optional(),
  numHeads: positive,
  feedForward: z.enum(['relu', 'gated_gelu']).default('relu'),
  /** Whether the table of embeddings also makes the logits. */
  tied: z.boolean().default(true),
  /** Whether the decoder's output is multiplied by dim^-0.5 before the logits. Default: if tied. */
  scaleOutputs: z.boolean().optional(),
  buckets: z.int().min(4).default(32),
  maxDistance: positive.default(128),
  normEps: z.number().positive().default(1e-6),
  dropRate: z.number().min(0).max(1).default(0.1),
});

/** Options of T5, defaults filled in. */
export type T5Options = z.output<typeof t5Options>;

/** Encoder or decoder: embeddings, blocks, last norm. */
class T5Stack extends Module {
  readonly embed_tokens: Embedding;
  readonly block: BlockList;
  readonly final_layer_norm: RMSNorm;
  readonly dropout: Dropout;
  /** The embedded tokens that enter the encoder's blocks. */
  readonly tokens: Identity | null;
  readonly features: Identity;
  readonly #attention = new Slot<Tensor | undefined>('the padding mask');
  readonly #self = new Slot<Surroundings>('the mask of self-attention');
  readonly #cross = new Slot<Surroundings>("the encoder's output");
  readonly #stack: 'encoder' | 'decoder';
  readonly #first: T5Block;
  readonly #sizes: T5Sizes;

  constructor(sizes: T5Sizes, stack: 'encoder' | 'decoder', embeddings: Embedding, blocks: number, firstDepth: number) {
    super();
    this.#stack = stack;
    this.#sizes = sizes;
    this.embed_tokens = embeddings;
    const slots = { self: this.#self, cross: this.#cross };
    const all = Array.from(
      { length: blocks },
      (_, index) => new T5Block(sizes, { stack, index, depth: firstDepth + index, ...slots }),
    );
    this.block = new BlockList(...all);
    this.#first = all[0] as T5Block;
    this.final_layer_norm = site(new RMSNorm(sizes.dim, { eps: sizes.normEps }), { role: 'norm' });
    this.dropout = new Dropout(sizes.dropRate);
    this.tokens = stack === 'encoder' ? identitySite('tokens', sizes.dim, 'tokens') : null;
    this.features = identitySite(stack === 'encoder' ? 'encoder_features' : 'features', sizes.dim, 'tokens');
  }

  /** Says what the next run reads beside its ids: their padding mask, and what the decoder looks at. */
  prepare(ctx: Context, attention: Tensor | undefined, cross?: Surroundings): void {
    this.#attention.set(ctx, attention);
    if (cross) this.#cross.set(ctx, cross);
  }

  /** Ids [B, N] to states [B, N, dim], once `prepare` has been called. */
  forward(ids: Tensor, ctx: Context): Tensor {
    const embedded = this.dropout.run(this.embed_tokens.run(ids, ctx), ctx);
    const x = this.tokens ? this.tokens.run(embedded, ctx) : embedded;
    const attention = this.#attention.get(ctx);
    this.#self.set(ctx, {
      memory: null,
      mask: this.#mask(x, attention),
      mayHideAll: this.#stack === 'decoder' && attention !== undefined,
    });
    const states = this.final_layer_norm.run(this.block.run(x, ctx), ctx);
    return this.features.run(this.dropout.run(states, ctx), ctx);
  }

  /** Position biases, with the lowest number where a key is hidden: put there, not added, so that it cannot overflow. */
  #mask(x: Tensor, attention: Tensor | undefined): Tensor {
    const [batch = 0, length = 0] = x.shape;
    const table = this.#first.biases;
    const { buckets, maxDistance } = this.#sizes;
    const isDecoder = this.#stack === 'decoder';
    const bias = relativeBias(table, length, length, { bidirectional: !isDecoder, buckets, maxDistance });
    const later = isDecoder ? laterKeys(length, x) : null;
    const padded = hiddenKeys(attention, length);
    const hidden = later && padded ? later.logicalOr(padded) : (later ?? padded);
    if (!hidden) return bias;
    const wide = padded ? bias.expand([batch, -1, -1, -1]) : bias;
    return wide.maskedFill(hidden, lowest(bias.dtype));
  }
}

/** T5 with its language-model head. Logits over the vocabulary; the model has no classifier that adapters could replace. */
export class T5 extends TextModel {
  readonly name: string;
  readonly classifier = null;
  readonly hasDecoder = true;
  readonly width: number;
  readonly vocabulary: number;
  /** Old files hold a table of biases that their cross-attention does not use. */
  override readonly keyMap: KeyMap = [
    { kind: 'drop', match: 'decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.{rest...}' },
  ];
  readonly shared: Embedding;
  readonly encoder: T5Stack;
  readonly decoder: T5Stack;
  readonly lm_head: Linear;
  readonly #outputScale: number;

  constructor(name: string, o: T5Options) {
    super();
    this.name = name;
    this.width = o.dim;
    this.vocabulary = o.vocabulary;
    const sizes: T5Sizes = { ...o, heads: o.numHeads };
    this.shared = new Embedding(o.vocabulary, o.dim);
    this.encoder = new T5Stack(sizes, 'encoder', this.shared, o.depth, 0);
    this.decoder = new T5Stack(sizes, 'decoder', this.shared, o.decoderDepth ?? o.depth, o.depth);
    this.lm_head = new Linear(o.dim, o.vocabulary, { bias: false });
    if (o.tied) this.lm_head.weight = this.shared.weight;
    else init.normal_(this.lm_head.weight);
    this.#outputScale = (o.scaleOutputs ?? o.tied) ? o.dim ** -0.5 : 1;
  }

  protected compute(inputIds: Tensor, ctx: Context): Tensor {
    const { attentionMask, decoderInputIds, decoderAttentionMask } = ctx.inputs;
    this.encoder.prepare(ctx, attentionMask);
    const memory = this.encoder.run(inputIds, ctx);
    ctx.aux.set('encoder', memory);
    const padded = hiddenKeys(attentionMask, memory.shape[1] ?? 0);
    this.decoder.prepare(ctx, decoderAttentionMask, { memory, mask: padded && additive(padded, memory) });
    const states = this.decoder.run(decoderInputIds as Tensor, ctx);
    ctx.aux.set('decoder', states);
    return this.lm_head.run(this.#outputScale === 1 ? states : states.mul(this.#outputScale), ctx);
  }

  /** @throws RangeError always: the vocabulary is no classifier */
  resetClassifier(): void {
    throw new RangeError(`${this.name} writes text and has no classifier; adapt it with head: 'frozen'`);
  }

  /** Files hold a table that several modules share under one or all of its names; here it stands under all. */
  override convertStateDict(state: ReadonlyMap<string, Tensor>): Map<string, Tensor> {
    const out = super.convertStateDict(state);
    const isTied = this.lm_head.weight === this.shared.weight;
    const names = ['shared', 'encoder.embed_tokens', 'decoder.embed_tokens', ...(isTied ? ['lm_head'] : [])];
    fillShared(
      out,
      names.map((name) => `${name}.weight`),
    );
    return out;
  }
}

const original = {
  small: [512, 64, 8, 2048, 6],
  base: [768, 64, 12, 3072, 12],
  large: [1024, 64, 16, 4096, 24],
  '3b': [1024, 128, 32, 16384, 24],
  '11b': [1024, 128, 128, 65536, 24],
} as const;
const revised = {
  small: [512, 64, 6, 1024, 8],
  base: [768, 64, 12, 2048, 12],
  large: [1024, 64, 16, 2816, 24],
  xl: [2048, 64, 32, 5120, 24],
  xxl: [4096, 64, 64, 10240, 24],
} as const;

type Variant = z.input<typeof t5Options>;

function variants(
  sizes: Readonly<Record<string, readonly [number, number, number, number, number]>>,
  prefix: string,
  rest: Partial<Variant>,
): [string, Variant][] {
  return Object.entries(sizes).map(([size, [dim, headDim, numHeads, hidden, depth]]) => [
    `${prefix}_${size}`,
    { dim, headDim, numHeads, hidden, depth, ...rest },
  ]);
}

export const t5: Family<typeof t5Options, T5> = {
  id: 't5',
  checkpoints: { source: 'google-research/text-to-text-transfer-transformer, transformers', license: 'Apache-2.0' },
  paper:
    'Raffel et al., Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer, JMLR 2020, arXiv 1910.10683',
  options: t5Options,
  variants: Object.fromEntries([
    ...variants(original, 't5', {}),
    ...variants(revised, 't5_v1_1', { feedForward: 'gated_gelu', tied: false }),
  ]),
  create: (name, options) => new T5(name, options),
};
