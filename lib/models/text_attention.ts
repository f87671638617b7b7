/** Attention over token sequences with separate projections, as T5, BART and RoBERTa have it. */
import {
  type AttentionState,
  type Context,
  functional,
  Identity,
  type Linear,
  Module,
  type Role,
  site,
  Span,
} from '../nn/index.js';
import { aten, type DType, ones, type Tensor, zeros } from '../tensor/index.js';

/** A typed entry of a context's state: what a stack tells the attentions inside its blocks. */
export class Slot<T> {
  readonly #what: string;

  constructor(what: string) {
    this.#what = what;
  }

  set(ctx: Context, value: T): void {
    ctx.state.set(this, value);
  }

  /** @throws Error when nobody has set it: the block was run outside its stack */
  get(ctx: Context): T {
    if (!ctx.state.has(this))
      throw new Error(`${this.#what} is missing: run the whole model, or set it in the context`);
    return ctx.state.get(this) as T;
  }
}

/** What an attention needs beside the states that make its queries. */
export interface Surroundings {
  /** Where keys and values come from; null: the same states as the queries. */
  readonly memory: Tensor | null;
  /** Added to the scores: broadcasts to [B, H, N, S]; its last dimension is the number of keys. */
  readonly mask: Tensor | null;
  /** Whether the mask may hide all keys of a query, as padding in front of a decoder's tokens does. Default false. */
  readonly mayHideAll?: boolean;
}

/** Which attention of a model it is; a role `<place>_attention` (and `_keys`, `_values`, `_heads`) says it to methods. */
export type Place = 'self' | 'encoder' | 'decoder' | 'cross';

/** Roles at an attention of `place`. */
export function placed(role: Role, place: Place): Role | readonly Role[] {
  return place === 'self' ? role : [role, `${place}_${role}`];
}

/** Sizes of an attention. */
export interface HeadsOptions {
  /** Width of the states. */
  readonly dim: number;
  readonly heads: number;
  /** Width of one head; heads times this need not be `dim`. */
  readonly headDim: number;
  /** Factor of the scores. Default 1 / sqrt(headDim). */
  readonly scale?: number;
  /** Probability with which attention weights are dropped. */
  readonly dropout: number;
  readonly place: Place;
  readonly surroundings: Slot<Surroundings>;
}

interface TextAttentionState extends AttentionState {
  readonly mask: Tensor | null;
  /** See `Surroundings`. */
  readonly mayHideAll: boolean;
}

/**
 * softmax(scale q kᵀ + mask) v per head. Subclasses own the projections under their checkpoints' names. Keys and values
 * that grafts have lengthened in front are never masked and have no position bias.
 */
export abstract class Heads extends Module {
  /** The keys [B, H, S, d] before they meet the queries; `values` alike. */
  readonly keys: Identity;
  readonly values: Identity;
  /** Queries [B, H, N, d] to what the heads found. */
  readonly core: Span;
  readonly #options: HeadsOptions;

  constructor(options: HeadsOptions) {
    super();
    this.#options = options;
    const { heads, headDim, place, scale } = options;
    const width = heads * headDim;
    const ends = {
      in: width,
      out: width,
      layout: 'heads',
      heads,
      ...(scale !== undefined && { scoreScale: scale }),
    } as const;
    this.keys = site(new Identity(), { role: placed('keys', place), ...ends });
    this.values = site(new Identity(), { role: placed('values', place), ...ends });
    this.core = site(new Span((q, ctx) => this.#mix(q, ctx)), { role: placed('heads', place), ...ends });
  }

  /** The layers that make queries, keys and values. */
  protected abstract projections(): readonly [q: Linear, k: Linear, v: Linear];

  /** States [B, N, dim] to the joined heads [B, N, heads * headDim], before any output projection. */
  protected join(x: Tensor, ctx: Context): Tensor {
    const { heads, headDim, surroundings } = this.#options;
    const { memory, mask, mayHideAll = false } = surroundings.get(ctx);
    const [batch = 0, length = 0] = x.shape;
    const split = (t: Tensor): Tensor => t.view([batch, t.shape[1] ?? 0, heads, headDim]).transpose(1, 2);
    const [toQ, toK, toV] = this.projections();
    const source = memory ?? x;
    const k = this.keys.run(split(toK.run(source, ctx)), ctx);
    const v = this.values.run(split(toV.run(source, ctx)), ctx);
    const lengthenedMask = mask && lengthened(mask, k.shape[2] ?? 0);
    ctx.state.set(this, { k, v, mask: lengthenedMask, mayHideAll } satisfies TextAttentionState);
    const mixed = this.core.run(split(toQ.run(x, ctx)), ctx);
    ctx.state.delete(this);
    return mixed.transpose(1, 2).reshape([batch, length, heads * headDim]);
  }

  #mix(q: Tensor, ctx: Context): Tensor {
    const { k, v, mask: given, mayHideAll } = ctx.state.get(this) as TextAttentionState;
    const { scale = null } = this.#options;
    const mask = given && given.dtype !== q.dtype ? given.to(q.dtype).clampMin(lowest(q.dtype)) : given;
    const dropout = this.training ? this.#options.dropout : 0;
    return functional.scaledDotProductAttention(q, k, v, { mask, dropout, scale, mayHideAll });
  }
}

/** A mask for keys that grafts have lengthened in front to `keys`: 0 there. */
function lengthened(mask: Tensor, keys: number): Tensor {
  const added = keys - (mask.shape.at(-1) ?? 0);
  return added > 0 ? aten.constantPadNd(mask, [added, 0]) : mask;
}

/** The most negative number of a floating-point dtype: what hides a key. */
export function lowest(dtype: DType): number {
  if (dtype === 'float16') return -65504;
  if (dtype === 'bfloat16') return -3.3895313892515355e38;
  return dtype === 'float64' ? -Number.MAX_VALUE : -3.4028234663852886e38;
}

/**
 * Which keys are hidden, from [B, N] of 1 (token) and 0 (padding): bool [B, 1, 1, length]. The length - N tokens in
 * front, which grafts have added, are visible.
 */
export function hiddenKeys(attention: Tensor | undefined, length: number): Tensor | null {
  if (!attention) return null;
  const [batch = 0, given = 0] = attention.shape;
  const whole = length > given ? aten.constantPadNd(attention, [length - given, 0], 1) : attention;
  return whole.eq(0).view([batch, 1, 1, length]);
}

/** Which keys lie behind their query: bool [1, 1, N, N]. */
export function laterKeys(length: number, like: Tensor): Tensor {
  return ones([length, length], { dtype: 'bool', device: like.device }).triu(1).view([1, 1, length, length]);
}

/** `value` (default: the lowest number) where `hidden`, 0 elsewhere, in the dtype of `like`. */
export function additive(hidden: Tensor, like: Tensor, value = lowest(like.dtype)): Tensor {
  return zeros(hidden.shape, { dtype: like.dtype, device: like.device }).maskedFill(hidden, value);
}
