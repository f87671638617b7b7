/**
 * BART and mBART, encoder-decoders trained to mend noisy text. Lewis et al., ACL 2020, arXiv 1910.13461; Liu et al., TACL
 * 2020, arXiv 2001.08210. Names as in Hugging Face transformers.
 */
import { z } from 'zod';
import {
  ACTIVATIONS,
  Buffer,
  type Context,
  Dropout,
  Embedding,
  type Identity,
  type LayerNorm,
  Linear,
  Module,
} from '../nn/index.js';
import { arange, type Tensor, zeros } from '../tensor/index.js';
import { BartLayer, type BartSizes } from './bart_blocks.js';
import { BlockList, identitySite } from './blocks.js';
import { type Family, positive, rate } from './family.js';
import { additive, hiddenKeys, laterKeys, Slot, type Surroundings } from './text_attention.js';
import { fillShared, startAsBert, TextModel } from './text_model.js';
import { tokenNorm } from './vit_blocks.js';

const bartOptions = z.strictObject({
  vocabulary: positive.default(50265),
  dim: positive,
  /** Layers of the encoder. */
  depth: positive,
  /** Default: as the encoder. */
  decoderDepth: positive.optional(),
  numHeads: positive,
  /** Default: as `numHeads`. */
  decoderHeads: positive.optional(),
  hidden: positive,
  /** Default: as the encoder. */
  decoderHidden: positive.optional(),
  /** Longest sequence. */
  positions: positive.default(1024),
  activation: z.enum(ACTIVATIONS).default('gelu'),
  /** Whether embedded tokens are multiplied by sqrt(dim). */
  scaleEmbedding: z.boolean().default(false),
  /** Id of padding. */
  pad: z.int().nonnegative().default(1),
  dropRate: rate.default(0.1),
  attnDropRate: rate.default(0),
  actDropRate: rate.default(0),
});

/** Options of BART, defaults filled in. */
export type BartOptions = z.output<typeof bartOptions>;

/** The first two rows of the table of positions are of no use: a habit of the code that trained BART. */
const POSITION_OFFSET = 2;

/** Encoder or decoder: embeddings, positions, layers. */
class BartStack extends Module {
  readonly embed_tokens: Embedding;
  readonly embed_positions: Embedding;
  readonly layernorm_embedding: LayerNorm;
  readonly layers: BlockList;
  readonly layer_norm: LayerNorm | null;
  readonly dropout: Dropout;
  /** The embedded tokens of the encoder before their norm. */
  readonly tokens: Identity | null;
  readonly features: Identity;
  readonly #attention = new Slot<Tensor | undefined>('the padding mask');
  readonly #self = new Slot<Surroundings>('the mask of self-attention');
  readonly #cross = new Slot<Surroundings>("the encoder's output");
  readonly #factor: number;
  readonly #positions: number;

  constructor(o: BartOptions, preNorm: boolean, stack: 'encoder' | 'decoder', embeddings: Embedding) {
    super();
    const { dim, activation, dropRate, attnDropRate, actDropRate } = o;
    const isDecoder = stack === 'decoder';
    const sizes: BartSizes = {
      ...{ dim, activation, preNorm, dropRate, attnDropRate, actDropRate },
      heads: isDecoder ? (o.decoderHeads ?? o.numHeads) : o.numHeads,
      hidden: isDecoder ? (o.decoderHidden ?? o.hidden) : o.hidden,
    };
    const count = isDecoder ? (o.decoderDepth ?? o.depth) : o.depth;
    const firstDepth = isDecoder ? o.depth : 0;
    const slots = { stack, self: this.#self, cross: this.#cross };
    this.#factor = o.scaleEmbedding ? Math.sqrt(dim) : 1;
    this.#positions = o.positions;
    this.embed_tokens = embeddings;
    this.embed_positions = new Embedding(o.positions + POSITION_OFFSET, dim);
    this.layernorm_embedding = tokenNorm(dim, 1e-5);
    this.layers = new BlockList(
      ...Array.from({ length: count }, (_, i) => new BartLayer(sizes, { ...slots, depth: firstDepth + i })),
    );
    this.layer_norm = preNorm ? tokenNorm(dim, 1e-5) : null;
    this.dropout = new Dropout(dropRate);
    this.tokens = isDecoder ? null : identitySite('tokens', dim, 'tokens');
    this.features = identitySite(isDecoder ? 'features' : 'encoder_features', dim, 'tokens');
  }

  /** Says what the next run reads beside its ids: their padding mask, and what the decoder looks at. */
  prepare(ctx: Context, attention: Tensor | undefined, cross?: Surroundings): void {
    this.#attention.set(ctx, attention);
    if (cross) this.#cross.set(ctx, cross);
  }

  /** Ids [B, N] to states [B, N, dim], once `prepare` has been called. */
  forward(ids: Tensor, ctx: Context): Tensor {
    const length = ids.shape[1] ?? 0;
    if (length > this.#positions) {
      throw new RangeError(
        `a sequence of ${length} tokens; this model was built for at most ${this.#positions}; truncate it`,
      );
    }
    const words = this.embed_tokens.run(ids, ctx);
    const places = arange(length, { dtype: 'int64', device: ids.device }).add(POSITION_OFFSET);
    const embedded = this.embed_positions.run(places, ctx).add(this.#factor === 1 ? words : words.mul(this.#factor));
    const x = this.dropout.run(
      this.layernorm_embedding.run(this.tokens ? this.tokens.run(embedded, ctx) : embedded, ctx),
      ctx,
    );
    const attention = this.#attention.get(ctx);
    this.#self.set(ctx, {
      memory: null,
      mask: this.#mask(x, attention),
      mayHideAll: this.tokens === null && attention !== undefined,
    });
    const states = this.layers.run(x, ctx);
    return this.features.run(this.layer_norm ? this.layer_norm.run(states, ctx) : states, ctx);
  }

  /** 0, the lowest number at padding, and minus infinity behind the query; null where nothing is hidden. */
  #mask(x: Tensor, attention: Tensor | undefined): Tensor | null {
    const length = x.shape[1] ?? 0;
    const padded = hiddenKeys(attention, length);
    const padding = padded && additive(padded, x);
    if (this.tokens) return padding;
    const causal = additive(laterKeys(length, x), x, -Infinity);
    return padding ? padding.add(causal) : causal;
  }
}

class BartCore extends Module {
  readonly shared: Embedding;
  readonly encoder: BartStack;
  readonly decoder: BartStack;

  constructor(o: BartOptions, preNorm: boolean) {
    super();
    this.shared = new Embedding(o.vocabulary, o.dim, { paddingIndex: o.pad });
    this.encoder = new BartStack(o, preNorm, 'encoder', this.shared);
    this.decoder = new BartStack(o, preNorm, 'decoder', this.shared);
  }

  /** @throws TypeError always: encoder and decoder run one after the other in `Bart` */
  forward(): Tensor {
    throw new TypeError('encoder and decoder of BART are two stacks: run the whole model');
  }
}

/** BART, or mBART, with its language-model head. Logits over the vocabulary; there is no classifier to replace. */
export class Bart extends TextModel {
  readonly name: string;
  readonly classifier = null;
  readonly hasDecoder = true;
  readonly width: number;
  readonly vocabulary: number;
  readonly model: BartCore;
  readonly lm_head: Linear;
  readonly final_logits_bias: Buffer;

  constructor(name: string, o: BartOptions, preNorm: boolean) {
    super();
    this.name = name;
    this.width = o.dim;
    this.vocabulary = o.vocabulary;
    this.model = new BartCore(o, preNorm);
    this.lm_head = new Linear(o.dim, o.vocabulary, { bias: false });
    this.lm_head.weight = this.model.shared.weight;
    this.final_logits_bias = new Buffer(zeros([1, o.vocabulary]), { optional: true });
    startAsBert(this);
  }

  protected compute(inputIds: Tensor, ctx: Context): Tensor {
    const { attentionMask, decoderInputIds, decoderAttentionMask } = ctx.inputs;
    const { encoder, decoder } = this.model;
    encoder.prepare(ctx, attentionMask);
    const memory = encoder.run(inputIds, ctx);
    ctx.aux.set('encoder', memory);
    const padded = hiddenKeys(attentionMask, memory.shape[1] ?? 0);
    decoder.prepare(ctx, decoderAttentionMask, { memory, mask: padded && additive(padded, memory) });
    const states = decoder.run(decoderInputIds as Tensor, ctx);
    ctx.aux.set('decoder', states);
    return this.lm_head.run(states, ctx).add(this.final_logits_bias);
  }

  /** @throws RangeError always: the vocabulary is no classifier */
  resetClassifier(): void {
    throw new RangeError(`${this.name} writes text and has no classifier; adapt it with head: 'frozen'`);
  }

  /** Files hold the shared table under one or all of its names, and some lack the prefix `model.`; here it stands under all. */
  override convertStateDict(state: ReadonlyMap<string, Tensor>): Map<string, Tensor> {
    const isBare = !state.has('model.shared.weight') && state.has('shared.weight');
    const named = [...state].map(([name, tensor]) => [isBare ? `model.${name}` : name, tensor] as const);
    const out = super.convertStateDict(new Map(named));
    fillShared(out, [
      'model.shared.weight',
      'model.encoder.embed_tokens.weight',
      'model.decoder.embed_tokens.weight',
      'lm_head.weight',
    ]);
    return out;
  }
}

const large = { dim: 1024, depth: 12, numHeads: 16, hidden: 4096 };

export const bart: Family<typeof bartOptions, Bart> = {
  id: 'bart',
  checkpoints: { source: 'facebookresearch/fairseq, transformers', license: 'MIT' },
  paper: 'Lewis et al., BART: Denoising Sequence-to-Sequence Pre-training, ACL 2020, arXiv 1910.13461',
  options: bartOptions,
  variants: { bart_base: { dim: 768, depth: 6, numHeads: 12, hidden: 3072 }, bart_large: large },
  create: (name, options) => new Bart(name, options, false),
};

export const mbart: Family<typeof bartOptions, Bart> = {
  id: 'mbart',
  checkpoints: { source: 'facebookresearch/fairseq, transformers', license: 'MIT' },
  paper: 'Liu et al., Multilingual Denoising Pre-training for Neural Machine Translation, TACL 2020, arXiv 2001.08210',
  options: bartOptions,
  variants: {
    mbart_large_cc25: { ...large, vocabulary: 250027, scaleEmbedding: true },
    mbart_large_50: { ...large, vocabulary: 250054, scaleEmbedding: true },
  },
  create: (name, options) => new Bart(name, options, true),
};
