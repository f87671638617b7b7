/**
 * RoBERTa with a head for classes. Liu et al. 2019, arXiv 1907.11692; names as in Hugging Face transformers
 * (`RobertaForSequenceClassification`).
 */
import { z } from 'zod';
import type { KeyMap } from '../checkpoint/index.js';
import type { Span } from '../nn/index.js';
import {
  ACTIVATIONS,
  activationLayer,
  Buffer,
  type Context,
  Dropout,
  Embedding,
  Identity,
  LayerNorm,
  Linear,
  Module,
  site,
  Tanh,
} from '../nn/index.js';
import { arange, type Tensor } from '../tensor/index.js';
import { roleLinear } from './bart_blocks.js';
import { BlockList, headWidth, identitySite } from './blocks.js';
import { type Family, positive, rate } from './family.js';
import { additive, Heads, hiddenKeys, Slot, type Surroundings } from './text_attention.js';
import { startAsBert, TextModel } from './text_model.js';
import { stretch, tokenNorm } from './vit_blocks.js';

const robertaOptions = z.strictObject({
  vocabulary: positive.default(50265),
  dim: positive,
  depth: positive,
  numHeads: positive,
  hidden: positive,
  /** Rows of the table of positions: the longest sequence and the id of padding, plus 1. */
  positions: positive.default(514),
  tokenTypes: positive.default(1),
  numClasses: z.int().nonnegative().default(2),
  activation: z.enum(ACTIVATIONS).default('gelu'),
  normEps: z.number().positive().default(1e-5),
  /** Id of padding; positions are counted from behind it. */
  pad: z.int().nonnegative().default(1),
  dropRate: rate.default(0.1),
  attnDropRate: rate.default(0.1),
});

/** Options of RoBERTa, defaults filled in. */
export type RobertaOptions = z.output<typeof robertaOptions>;

/** Words, positions and token types, summed; ids [B, N] to [B, N, dim]. */
class Embeddings extends Module {
  readonly word_embeddings: Embedding;
  readonly position_embeddings: Embedding;
  readonly token_type_embeddings: Embedding;
  readonly LayerNorm: LayerNorm;
  /** Part of older files; nothing reads it. */
  readonly position_ids: Buffer;
  readonly dropout: Dropout;
  /** The embedded tokens before their norm. */
  readonly tokens: Identity;
  readonly #pad: number;
  readonly #longest: number;

  constructor(o: RobertaOptions) {
    super();
    this.#pad = o.pad;
    this.#longest = o.positions - o.pad - 1;
    this.word_embeddings = new Embedding(o.vocabulary, o.dim, { paddingIndex: o.pad });
    this.position_embeddings = new Embedding(o.positions, o.dim, { paddingIndex: o.pad });
    this.token_type_embeddings = new Embedding(o.tokenTypes, o.dim);
    this.LayerNorm = tokenNorm(o.dim, o.normEps);
    this.position_ids = new Buffer(arange(o.positions, { dtype: 'int64' }).view([1, -1]), { optional: true });
    this.dropout = new Dropout(o.dropRate);
    this.tokens = identitySite('tokens', o.dim, 'tokens');
  }

  forward(ids: Tensor, ctx: Context): Tensor {
    const length = ids.shape[1] ?? 0;
    if (length > this.#longest) {
      throw new RangeError(
        `a sequence of ${length} tokens; this model was built for at most ${this.#longest}; truncate it`,
      );
    }
    const isToken = ids.ne(this.#pad).to('int64');
    const places = isToken.cumsum(1).mul(isToken).add(this.#pad);
    const types = ids.mul(0);
    const sum = this.word_embeddings
      .run(ids, ctx)
      .add(this.token_type_embeddings.run(types, ctx))
      .add(this.position_embeddings.run(places, ctx));
    return this.dropout.run(this.LayerNorm.run(this.tokens.run(sum, ctx), ctx), ctx);
  }
}

/** States to the joined heads. */
class SelfAttention extends Heads {
  readonly query: Linear;
  readonly key: Linear;
  readonly value: Linear;

  constructor({ dim, numHeads: heads, attnDropRate }: RobertaOptions, surroundings: Slot<Surroundings>) {
    super({ dim, heads, headDim: headWidth(dim, heads), dropout: attnDropRate, place: 'self', surroundings });
    this.query = roleLinear(dim, dim, 'q');
    this.key = roleLinear(dim, dim, 'k');
    this.value = roleLinear(dim, dim, 'v');
    site(this, { role: 'joined_heads', in: dim, out: dim, layout: 'tokens', heads });
  }

  protected projections(): readonly [Linear, Linear, Linear] {
    return [this.query, this.key, this.value];
  }

  forward(x: Tensor, ctx: Context): Tensor {
    return this.join(x, ctx);
  }
}

/** The end of a sub-layer: a projection, and the norm of the sum with the sub-layer's input. */
class Output extends Module {
  readonly dense: Linear;
  readonly LayerNorm: LayerNorm;
  readonly dropout: Dropout;

  constructor(inFeatures: number, role: string, o: RobertaOptions) {
    super();
    this.dense = roleLinear(inFeatures, o.dim, role);
    const norm = new LayerNorm(o.dim, { eps: o.normEps });
    this.LayerNorm = site(norm, { role: role === 'fc2' ? ['norm', 'block_norm'] : 'norm' });
    this.dropout = new Dropout(o.dropRate);
  }

  forward(x: Tensor, ctx: Context): Tensor {
    return this.dense.run(x, ctx);
  }
}

/** norm(x + attention(x)). */
class AttentionLayer extends Module {
  readonly self: SelfAttention;
  readonly output: Output;
  /** x to the output projection. */
  readonly inner: Span;
  /** x to what is added to it. */
  readonly path: Span;
  readonly branch: Span;

  constructor(o: RobertaOptions, surroundings: Slot<Surroundings>) {
    super();
    this.self = new SelfAttention(o, surroundings);
    this.output = new Output(o.dim, 'o', o);
    this.inner = stretch('attention', o.dim, () => [this.self, this.output]);
    this.path = stretch('attention_path', o.dim, () => [this.inner, this.output.dropout]);
    this.branch = stretch('attention_branch', o.dim, () => [this.path]);
  }

  forward(x: Tensor, ctx: Context): Tensor {
    return this.output.LayerNorm.run(x.add(this.branch.run(x, ctx)), ctx);
  }
}

/** The first half of the MLP. */
class Intermediate extends Module {
  readonly dense: Linear;
  readonly act: Module;

  constructor(o: RobertaOptions) {
    super();
    this.dense = roleLinear(o.dim, o.hidden, 'fc1');
    this.act = activationLayer(o.activation);
  }

  forward(x: Tensor, ctx: Context): Tensor {
    return this.act.run(this.dense.run(x, ctx), ctx);
  }
}

/** Post-norm block. [B, N, D] -> [B, N, D]. */
class RobertaLayer extends Module {
  readonly attention: AttentionLayer;
  readonly intermediate: Intermediate;
  readonly output: Output;
  readonly mlp: Span;
  readonly mlp_path: Span;
  readonly mlp_branch: Span;

  constructor(o: RobertaOptions, depth: number, surroundings: Slot<Surroundings>) {
    super();
    this.attention = new AttentionLayer(o, surroundings);
    this.intermediate = new Intermediate(o);
    this.output = new Output(o.hidden, 'fc2', o);
    this.mlp = stretch('mlp', o.dim, () => [this.intermediate, this.output]);
    this.mlp_path = stretch('mlp_path', o.dim, () => [this.mlp, this.output.dropout]);
    this.mlp_branch = stretch('mlp_branch', o.dim, () => [this.mlp_path]);
    site(this, { role: ['block', 'post_norm_block'], in: o.dim, out: o.dim, layout: 'tokens', stage: 0, depth });
  }

  forward(x: Tensor, ctx: Context): Tensor {
    const z = this.attention.run(x, ctx);
    return this.output.LayerNorm.run(z.add(this.mlp_branch.run(z, ctx)), ctx);
  }
}

class Encoder extends Module {
  readonly layer: BlockList;

  constructor(o: RobertaOptions, surroundings: Slot<Surroundings>) {
    super();
    this.layer = new BlockList(...Array.from({ length: o.depth }, (_, i) => new RobertaLayer(o, i, surroundings)));
  }

  forward(x: Tensor, ctx: Context): Tensor {
    return this.layer.run(x, ctx);
  }
}

class Core extends Module {
  readonly embeddings: Embeddings;
  readonly encoder: Encoder;
  readonly #self = new Slot<Surroundings>('the mask of self-attention');

  constructor(o: RobertaOptions) {
    super();
    this.embeddings = new Embeddings(o);
    this.encoder = new Encoder(o, this.#self);
  }

  forward(ids: Tensor, ctx: Context): Tensor {
    const x = this.embeddings.run(ids, ctx);
    const padded = hiddenKeys(ctx.inputs['attentionMask'], x.shape[1] ?? 0);
    this.#self.set(ctx, { memory: null, mask: padded && additive(padded, x) });
    return this.encoder.run(x, ctx);
  }
}

/** dropout, dense, tanh, dropout, out_proj on the first token's vector. */
class ClassificationHead extends Module {
  readonly dense: Linear;
  readonly out_proj: Linear;
  readonly dropout: Dropout;
  readonly act: Tanh;

  constructor(dim: number, classes: number, dropRate: number) {
    super();
    this.dense = new Linear(dim, dim);
    this.out_proj = new Linear(dim, classes);
    this.dropout = new Dropout(dropRate);
    this.act = new Tanh();
  }

  forward(x: Tensor, ctx: Context): Tensor {
    const hidden = this.act.run(this.dense.run(this.dropout.run(x, ctx), ctx), ctx);
    return this.out_proj.run(this.dropout.run(hidden, ctx), ctx);
  }
}

/** RoBERTa. Logits [B, classes] from the state of the first token, or that state when there are no classes. */
export class Roberta extends TextModel {
  readonly name: string;
  readonly classifier = 'classifier';
  readonly hasDecoder = false;
  readonly width: number;
  readonly vocabulary: number;
  /** The pretrained files hold a masked-word head or a pooler, which a classifier does not use. */
  override readonly keyMap: KeyMap = [
    { kind: 'drop', match: 'lm_head.{rest...}' },
    { kind: 'drop', match: 'roberta.pooler.{rest...}' },
  ];
  readonly roberta: Core;
  readonly features: Identity;
  /** The first token's vector. */
  readonly pre_logits: Identity;
  head: ClassificationHead | Identity;
  protected override readonly renamed = { head: 'classifier' };
  readonly #dropRate: number;

  constructor(name: string, o: RobertaOptions) {
    super();
    this.name = name;
    this.width = o.dim;
    this.vocabulary = o.vocabulary;
    this.#dropRate = o.dropRate;
    this.roberta = new Core(o);
    this.features = identitySite('features', o.dim, 'tokens');
    this.pre_logits = identitySite('pre_logits', o.dim, 'vector');
    this.head = this.#newHead(o.numClasses);
    startAsBert(this);
  }

  #newHead(classes: number): ClassificationHead | Identity {
    const head = classes > 0 ? new ClassificationHead(this.width, classes, this.#dropRate) : new Identity();
    return site<ClassificationHead | Identity>(head, {
      role: 'classifier',
      in: this.width,
      out: classes > 0 ? classes : this.width,
      layout: 'vector',
    });
  }

  protected compute(inputIds: Tensor, ctx: Context): Tensor {
    const states = this.features.run(this.roberta.run(inputIds, ctx), ctx);
    ctx.aux.set('encoder', states);
    return this.head.run(this.pre_logits.run(states.select(1, ctx.prefixTokens), ctx), ctx);
  }

  resetClassifier(numClasses: number): void {
    const head = this.#newHead(numClasses);
    startAsBert(head);
    this.head = this.like(head);
  }
}

export const roberta: Family<typeof robertaOptions, Roberta> = {
  id: 'roberta',
  checkpoints: { source: 'facebookresearch/fairseq, transformers', license: 'MIT' },
  paper: 'Liu et al., RoBERTa: A Robustly Optimized BERT Pretraining Approach, 2019, arXiv 1907.11692',
  options: robertaOptions,
  variants: {
    roberta_base: { dim: 768, depth: 12, numHeads: 12, hidden: 3072 },
    roberta_large: { dim: 1024, depth: 24, numHeads: 16, hidden: 4096 },
  },
  create: (name, options) => new Roberta(name, options),
};
