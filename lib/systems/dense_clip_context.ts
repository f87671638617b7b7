/** DenseCLIP's context decoder: class embeddings look at the image. Rao et al. 2022, section 3.2, arXiv 2112.01518. */
import { z } from 'zod';
import { parseOptions } from '../models/index.js';
import {
  Context,
  Dropout,
  functional,
  GELU,
  init,
  LayerNorm,
  Linear,
  Module,
  ModuleList,
  Sequential,
} from '../nn/index.js';
import type { Tensor } from '../tensor/index.js';

/** Attention of `queries` to `memory`: projections without a bias but for the last, dropout after it. */
class DecoderAttention extends Module {
  readonly q_proj: Linear;
  readonly k_proj: Linear;
  readonly v_proj: Linear;
  readonly proj: Linear;
  readonly proj_drop: Dropout;

  constructor(
    width: number,
    private readonly heads: number,
    dropout: number,
  ) {
    super();
    this.q_proj = new Linear(width, width, { bias: false });
    this.k_proj = new Linear(width, width, { bias: false });
    this.v_proj = new Linear(width, width, { bias: false });
    this.proj = new Linear(width, width);
    this.proj_drop = new Dropout(dropout);
  }

  /** Queries [B, L, m] and memory [B, N, m] to [B, L, m]. */
  attend(queries: Tensor, memory: Tensor, ctx: Context): Tensor {
    const split = (x: Tensor): Tensor => x.unflatten(-1, [this.heads, -1]).transpose(1, 2);
    const q = split(this.q_proj.run(queries, ctx));
    const [k, v] = [this.k_proj, this.v_proj].map((layer) => split(layer.run(memory, ctx))) as [Tensor, Tensor];
    const mixed = functional.scaledDotProductAttention(q, k, v).transpose(1, 2).flatten(2);
    return this.proj_drop.run(this.proj.run(mixed, ctx), ctx);
  }

  /** @throws TypeError always: it reads queries and a memory; call `attend` */
  forward(): never {
    throw new TypeError('attention of a context decoder reads two sequences: call attend(queries, memory, ctx)');
  }
}

/** x += SA(norm1 x); x += CA(norm2 x, memory); x += dropout(MLP(norm3 x)). */
class DecoderLayer extends Module {
  readonly self_attn: DecoderAttention;
  readonly cross_attn: DecoderAttention;
  readonly norm1: LayerNorm;
  readonly norm2: LayerNorm;
  readonly norm3: LayerNorm;
  readonly dropout: Dropout;
  readonly mlp: Sequential;

  constructor(width: number, heads: number, dropout: number) {
    super();
    this.self_attn = new DecoderAttention(width, heads, dropout);
    this.cross_attn = new DecoderAttention(width, heads, dropout);
    this.norm1 = new LayerNorm(width);
    this.norm2 = new LayerNorm(width);
    this.norm3 = new LayerNorm(width);
    this.dropout = new Dropout(dropout);
    this.mlp = new Sequential(
      new Linear(width, 4 * width),
      new GELU(),
      new Dropout(dropout),
      new Linear(4 * width, width),
    );
  }

  decode(x: Tensor, memory: Tensor, ctx: Context): Tensor {
    const own = this.norm1.run(x, ctx);
    const y = x.add(this.self_attn.attend(own, own, ctx));
    const w = y.add(this.cross_attn.attend(this.norm2.run(y, ctx), memory, ctx));
    return w.add(this.dropout.run(this.mlp.run(this.norm3.run(w, ctx), ctx), ctx));
  }

  /** @throws TypeError always: it reads two sequences; call `decode` */
  forward(): never {
    throw new TypeError('a layer of a context decoder reads two sequences: call decode(x, memory, ctx)');
  }
}

export const contextDecoderOptions = z.strictObject({
  /** m. */
  width: z.int().positive().default(256),
  heads: z.int().positive().default(4),
  layers: z.int().positive().default(3),
  /** One rate for all places: after attention, inside the MLPs and after them. */
  dropout: z.number().min(0).max(1).default(0.1),
});

/** Sizes of a `ContextDecoder`. */
export type ContextDecoderOptions = z.input<typeof contextDecoderOptions>;

/**
 * What is to be added to class embeddings [B, K, D] (times γ) after they have looked at an image [B, N, D]: a small
 * transformer decoder of width m whose memory is the image. Linear weights start truncated normal (0.02), biases 0.
 */
export class ContextDecoder extends Module {
  readonly memory_proj: Sequential;
  readonly text_proj: Sequential;
  readonly decoder: ModuleList<DecoderLayer>;
  readonly out_proj: Sequential;

  /**
   * @param dim D
   * @throws RangeError when the width does not divide into the heads
   */
  constructor(dim: number, options: ContextDecoderOptions = {}) {
    const { width, heads, layers, dropout } = parseOptions(contextDecoderOptions, options, 'ContextDecoder');
    if (width % heads !== 0) {
      throw new RangeError(`ContextDecoder: a width of ${width} does not divide into ${heads} heads`);
    }
    super();
    this.memory_proj = new Sequential(new LayerNorm(dim), new Linear(dim, width), new LayerNorm(width));
    this.text_proj = new Sequential(new LayerNorm(dim), new Linear(dim, width));
    this.decoder = new ModuleList(Array.from({ length: layers }, () => new DecoderLayer(width, heads, dropout)));
    this.out_proj = new Sequential(new LayerNorm(width), new Linear(width, dim));
    this.apply((module) => {
      if (!(module instanceof Linear)) return;
      init.truncNormal_(module.weight, { std: 0.02 });
      if (module.bias) init.zeros_(module.bias);
    });
  }

  /** Class embeddings [B, K, D] and the image's tokens [B, N, D] to [B, K, D]. */
  refine(text: Tensor, visual: Tensor, ctx: Context = new Context()): Tensor {
    const memory = this.memory_proj.run(visual, ctx);
    let x = this.text_proj.run(text, ctx);
    for (const layer of this.decoder) x = layer.decode(x, memory, ctx);
    return this.out_proj.run(x, ctx);
  }

  /** @throws TypeError always: it reads text and image; call `refine` */
  forward(): never {
    throw new TypeError('ContextDecoder reads text and image: call refine(text, visual, ctx)');
  }
}
