/**
 * CLIP's text tower: token ids to embeddings in the space that images share. Radford et al., ICML 2021, arXiv 2103.00020;
 * openai/CLIP, commit d05afc4. Its blocks are those of the vision transformer, with timm's names, and causal.
 */
import { z } from 'zod';
import {
  Context,
  Embedding,
  type Identity,
  init,
  type LayerNorm,
  Linear,
  Module,
  Parameter,
  site,
} from '../nn/index.js';
import { aten, empty, type Tensor } from '../tensor/index.js';
import { BlockList, dropPathRateAt, identitySite } from './blocks.js';
import { positive } from './family.js';
import { tokenNorm, ViTBlock } from './vit_blocks.js';

/** Sizes of a text tower; the defaults are those of CLIP with ViT-B. */
export const clipTextOptions = z.strictObject({
  contextLength: positive.default(77),
  vocabSize: positive.default(49408),
  width: positive.default(512),
  heads: positive.default(8),
  layers: positive.default(12),
  /** Width of the embedding. */
  embedDim: positive.default(512),
  /** `quick_gelu` in OpenAI's weights. */
  activation: z.enum(['quick_gelu', 'gelu']).default('quick_gelu'),
  dropPathRate: z.number().min(0).max(1).default(0),
});

/** Options of a text tower, defaults filled in. */
export type ClipTextOptions = z.output<typeof clipTextOptions>;

/**
 * Text transformer: ids [K, n] (int64, n at most the context length) to embeddings [K, e], read at the position of the
 * largest id, which is the end of the text.
 */
export class ClipTextTransformer extends Module {
  readonly token_embedding: Embedding;
  readonly positional_embedding: Parameter;
  /** The token sequence that enters the blocks. */
  readonly tokens: Identity;
  readonly blocks: BlockList;
  readonly ln_final: LayerNorm;
  /** All tokens after the last norm. */
  readonly features: Identity;
  readonly proj: Linear;

  constructor(readonly options: ClipTextOptions) {
    super();
    const { contextLength, vocabSize, width, heads, layers, embedDim, activation, dropPathRate } = options;
    this.token_embedding = new Embedding(vocabSize, width);
    this.positional_embedding = new Parameter(empty([contextLength, width]));
    this.tokens = identitySite('tokens', width, 'tokens');
    this.blocks = new BlockList(
      ...Array.from({ length: layers }, (_, depth) =>
        causalBlock({ width, heads, activation, depth, dropPath: dropPathRateAt(dropPathRate, depth, layers) }),
      ),
    );
    this.ln_final = tokenNorm(width, 1e-5);
    this.features = identitySite('features', width, 'tokens');
    this.proj = site(new Linear(width, embedDim, { bias: false }), { role: 'linear', layout: 'vector' });
    this.initWeights();
  }

  forward(ids: Tensor, ctx: Context = new Context()): Tensor {
    return this.readOut(this.transform(this.token_embedding.run(ids, ctx), ctx), endOfText(ids), ctx);
  }

  /**
   * Embedded tokens [K, n, d], without positions, to the sequence [K, n, d] after the last norm: for callers that put
   * vectors of their own among the words.
   *
   * @throws RangeError when the sequence is longer than the context
   */
  transform(sequence: Tensor, ctx: Context = new Context()): Tensor {
    const length = sequence.shape[1] ?? 0;
    const { contextLength } = this.options;
    if (length > contextLength) {
      throw new RangeError(`a text of ${length} tokens does not fit the context of ${contextLength}; truncate it`);
    }
    const z = this.tokens.run(sequence.add(this.positional_embedding.narrow(0, 0, length)), ctx);
    return this.features.run(this.ln_final.run(this.blocks.run(z, ctx), ctx), ctx);
  }

  /** The embedding [K, e] of each sequence [K, n, d] at its position [K]. */
  readOut(sequence: Tensor, positions: Tensor, ctx: Context = new Context()): Tensor {
    const [texts = 0, , width = 0] = sequence.shape;
    const rows = sequence.gather(1, positions.view([-1, 1, 1]).expand([texts, 1, width])).squeeze(1);
    return this.proj.run(rows, ctx);
  }

  /**
   * Words N(0, 0.02), positions N(0, 0.01); in each block the fused projection N(0, d^-1/2), the outputs of attention and
   * MLP N(0, d^-1/2 (2L)^-1/2), the MLP's first layer N(0, (2d)^-1/2); the last projection N(0, d^-1/2).
   */
  private initWeights(): void {
    const { width, layers } = this.options;
    const std = width ** -0.5;
    init.normal_(this.token_embedding.weight, 0, 0.02);
    init.normal_(this.positional_embedding, 0, 0.01);
    for (const block of this.blocks) {
      if (!(block instanceof ViTBlock)) continue;
      const { attn, mlp } = block;
      init.normal_(attn.qkv.weight, 0, std);
      for (const { weight } of [attn.proj, mlp.fc2]) init.normal_(weight, 0, std * (2 * layers) ** -0.5);
      init.normal_(mlp.fc1.weight, 0, (2 * width) ** -0.5);
      for (const { bias } of [attn.qkv, attn.proj]) if (bias) init.zeros_(bias);
    }
    init.normal_(this.proj.weight, 0, std);
  }
}

/** Position [K] of the largest id of each text, the first of equal ones: where OpenAI's tower reads. */
export function endOfText(ids: Tensor): Tensor {
  return aten.argmax(ids, -1);
}

/** A residual attention block of CLIP's: LayerNorms with eps 1e-5, x sigmoid(1.702 x), hidden width 4 d. */
export function clipBlock(o: {
  readonly width: number;
  readonly heads: number;
  readonly causal: boolean;
  readonly activation?: ClipTextOptions['activation'];
  readonly depth?: number;
  readonly dropPath?: number;
}): ViTBlock {
  return new ViTBlock({
    dim: o.width,
    numHeads: o.heads,
    hidden: 4 * o.width,
    qkvBias: true,
    normEps: 1e-5,
    initValues: null,
    dropPath: o.dropPath ?? 0,
    projDrop: 0,
    attnDrop: 0,
    depth: o.depth ?? 0,
    activation: o.activation ?? 'quick_gelu',
    causal: o.causal,
  });
}

const causalBlock = (o: Omit<Parameters<typeof clipBlock>[0], 'causal'>): ViTBlock => clipBlock({ ...o, causal: true });
