/** The parts of BART and mBART in transformers' names: attention, layer. */
import {
  activationLayer,
  type ActivationName,
  type Context,
  Dropout,
  Linear,
  Module,
  LayerNorm,
  site,
  Span,
} from '../nn/index.js';
import type { Tensor } from '../tensor/index.js';
import { headWidth } from './blocks.js';
import { Heads, type Place, placed, type Slot, type Surroundings } from './text_attention.js';
import { stretch, tokenNorm } from './vit_blocks.js';

/** Sizes of one of BART's stacks. */
export interface BartSizes {
  readonly dim: number;
  readonly heads: number;
  readonly hidden: number;
  readonly activation: ActivationName;
  /** mBART's order: a norm before each sub-layer instead of after its sum. */
  readonly preNorm: boolean;
  readonly dropRate: number;
  readonly attnDropRate: number;
  readonly actDropRate: number;
}

/** A linear layer that is a site. */
export function roleLinear(inFeatures: number, outFeatures: number, role: string): Linear {
  return site(new Linear(inFeatures, outFeatures), { role: ['linear', role], layout: 'tokens' });
}

/** softmax(q kᵀ / sqrt(d)) v per head, then `out_proj`. */
class BartAttention extends Heads {
  readonly k_proj: Linear;
  readonly v_proj: Linear;
  readonly q_proj: Linear;
  readonly out_proj: Linear;
  /** States to the joined heads. */
  readonly joined: Span;

  constructor({ dim, heads, attnDropRate }: BartSizes, place: Place, surroundings: Slot<Surroundings>) {
    super({ dim, heads, headDim: headWidth(dim, heads), dropout: attnDropRate, place, surroundings });
    this.k_proj = roleLinear(dim, dim, 'k');
    this.v_proj = roleLinear(dim, dim, 'v');
    this.q_proj = roleLinear(dim, dim, 'q');
    this.out_proj = roleLinear(dim, dim, 'o');
    const ends = { in: dim, out: dim, layout: 'tokens', heads } as const;
    this.joined = site(new Span((x, ctx) => this.join(x, ctx)), { role: placed('joined_heads', place), ...ends });
    site(this, { role: placed('attention', place), ...ends });
  }

  protected projections(): readonly [Linear, Linear, Linear] {
    return [this.q_proj, this.k_proj, this.v_proj];
  }

  forward(x: Tensor, ctx: Context): Tensor {
    return this.out_proj.run(this.joined.run(x, ctx), ctx);
  }
}

/** Where a layer stands, and the slots of its stack. */
export interface BartLayerPlace {
  readonly stack: 'encoder' | 'decoder';
  /** Index over both stacks. */
  readonly depth: number;
  readonly self: Slot<Surroundings>;
  /** For the decoder: the encoder's states. */
  readonly cross: Slot<Surroundings>;
}

/** x = norm(x + f(x)) for attention, in the decoder cross-attention, and MLP; mBART: x += f(norm x). [B, N, D] -> [B, N, D]. */
export class BartLayer extends Module {
  readonly self_attn: BartAttention;
  readonly self_attn_layer_norm: LayerNorm;
  readonly encoder_attn: BartAttention | null;
  readonly encoder_attn_layer_norm: LayerNorm | null;
  readonly fc1: Linear;
  readonly fc2: Linear;
  readonly final_layer_norm: LayerNorm;
  readonly act: Module;
  readonly dropout: Dropout;
  readonly act_dropout: Dropout;
  readonly mlp: Span;
  readonly self_path: Span;
  readonly self_branch: Span;
  readonly cross_path: Span | null;
  readonly cross_branch: Span | null;
  readonly mlp_path: Span;
  readonly mlp_branch: Span;
  readonly #preNorm: boolean;

  constructor(o: BartSizes, { stack, depth, self, cross }: BartLayerPlace) {
    super();
    const { dim, hidden } = o;
    const isDecoder = stack === 'decoder';
    this.#preNorm = o.preNorm;
    this.self_attn = new BartAttention(o, stack, self);
    this.self_attn_layer_norm = tokenNorm(dim, 1e-5);
    this.encoder_attn = isDecoder ? new BartAttention(o, 'cross', cross) : null;
    this.encoder_attn_layer_norm = isDecoder ? tokenNorm(dim, 1e-5) : null;
    this.fc1 = roleLinear(dim, hidden, 'fc1');
    this.fc2 = roleLinear(hidden, dim, 'fc2');
    this.final_layer_norm = site(new LayerNorm(dim), { role: o.preNorm ? 'norm' : ['norm', 'block_norm'] });
    this.act = activationLayer(o.activation);
    this.dropout = new Dropout(o.dropRate);
    this.act_dropout = new Dropout(o.actDropRate);
    this.mlp = stretch('mlp', dim, () => [this.fc1, this.act, this.act_dropout, this.fc2]);
    const [selfPath, selfBranch] = this.#branch('attention', dim, () => this.self_attn, this.self_attn_layer_norm);
    this.self_path = selfPath;
    this.self_branch = selfBranch;
    const crossing = isDecoder
      ? this.#branch('attention', dim, () => this.encoder_attn, this.encoder_attn_layer_norm)
      : null;
    this.cross_path = crossing?.[0] ?? null;
    this.cross_branch = crossing?.[1] ?? null;
    const [mlpPath, mlpBranch] = this.#branch('mlp', dim, () => this.mlp, this.final_layer_norm);
    this.mlp_path = mlpPath;
    this.mlp_branch = mlpBranch;
    site(this, {
      role: o.preNorm ? 'block' : ['block', 'post_norm_block'],
      in: dim,
      out: dim,
      layout: 'tokens',
      stage: isDecoder ? 1 : 0,
      depth,
    });
  }

  /** What a sub-layer adds to the stream, from its normed input and from the stream; without a norm before, the same. */
  #branch(kind: string, dim: number, body: () => Module | null, norm: Module | null): readonly [Span, Span] {
    const path = stretch(`${kind}_path`, dim, () => [body(), this.dropout]);
    return [path, stretch(`${kind}_branch`, dim, () => [this.#preNorm ? norm : null, path])];
  }

  forward(x: Tensor, ctx: Context): Tensor {
    const step = (z: Tensor, branch: Span, norm: LayerNorm): Tensor => {
      const sum = z.add(branch.run(z, ctx));
      return this.#preNorm ? sum : norm.run(sum, ctx);
    };
    let z = step(x, this.self_branch, this.self_attn_layer_norm);
    if (this.cross_branch && this.encoder_attn_layer_norm) z = step(z, this.cross_branch, this.encoder_attn_layer_norm);
    return step(z, this.mlp_branch, this.final_layer_norm);
  }
}
