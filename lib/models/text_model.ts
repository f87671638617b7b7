/** What models of token ids have in common; image backbones are in `backbone.ts`. */
import { Context, type ContextOptions, Embedding, init, Linear, type Module } from '../nn/index.js';
import { aten, full, type Tensor } from '../tensor/index.js';
import { Host } from './host.js';

/** What a text model reads: int64 ids [B, N], and masks of the same shape with 1 for tokens and 0 for padding. */
export interface TextInputs {
  readonly inputIds: Tensor;
  /** Default: no padding. */
  readonly attentionMask?: Tensor;
  /** For encoder-decoders; see `shiftRight`. */
  readonly decoderInputIds?: Tensor;
  /** Default: no padding. */
  readonly decoderAttentionMask?: Tensor;
}

/** What a text model gives. */
export interface TextOutputs {
  /** [B, N, vocabulary] of the decoder, or [B, classes]. */
  readonly logits: Tensor;
  /** The encoder's final states [B, N, C]; prompts that grafts have put in front are in it. */
  readonly encoder: Tensor;
  /** The decoder's final states, for encoder-decoders. */
  readonly decoder: Tensor | null;
}

/**
 * A pretrained model of text that grafts are set into. `run` and `forward` take the token ids; everything else that a
 * pass reads (masks, the decoder's ids) stands in the context's `inputs`, so that a batch can be split by adapters.
 */
export abstract class TextModel extends Host {
  /** Width of the states. */
  abstract readonly width: number;
  abstract readonly vocabulary: number;
  /** Whether a pass needs `decoderInputIds`. */
  abstract readonly hasDecoder: boolean;

  /** One pass inside a context; puts final states into `ctx.aux` as `encoder` and `decoder`. */
  protected abstract compute(inputIds: Tensor, ctx: Context): Tensor;

  /**
   * Token ids [B, N] to logits. With options instead of a context, a pass of its own:
   * `model.forward(ids, { inputs: { attentionMask, decoderInputIds }, adapters: ['a', 'b'] })`.
   *
   * @throws TypeError when an input is missing or is not int64; RangeError when shapes do not agree
   */
  forward(inputIds: Tensor, ctx: Context | ContextOptions = {}): Tensor {
    if (!(ctx instanceof Context)) return this.run(inputIds, new Context(ctx));
    this.#check(inputIds, ctx.inputs);
    return this.compute(inputIds, ctx);
  }

  /** One pass with named inputs; `options.adapters` says which adapter each sample uses. */
  outputs({ inputIds, ...rest }: TextInputs, options: Omit<ContextOptions, 'inputs'> = {}): TextOutputs {
    const ctx = new Context({ ...options, inputs: rest });
    const logits = this.run(inputIds, ctx);
    return { logits, encoder: ctx.aux.get('encoder') as Tensor, decoder: ctx.aux.get('decoder') ?? null };
  }

  #check(inputIds: Tensor, inputs: Readonly<Record<string, Tensor>>): void {
    const known = ['attentionMask', ...(this.hasDecoder ? ['decoderInputIds', 'decoderAttentionMask'] : [])];
    const unknown = Object.keys(inputs).filter((name) => !known.includes(name));
    if (unknown.length > 0)
      throw new TypeError(`${this.name} reads no '${unknown.join("', '")}'; it reads ${known.join(', ')}`);
    const { attentionMask, decoderInputIds, decoderAttentionMask } = inputs;
    if (this.hasDecoder && !decoderInputIds) {
      throw new TypeError(
        `${this.name} needs decoderInputIds; give them as inputs: { decoderInputIds } (see shiftRight)`,
      );
    }
    this.#checkIds('inputIds', inputIds, attentionMask);
    if (!decoderInputIds) return;
    this.#checkIds('decoderInputIds', decoderInputIds, decoderAttentionMask);
    if (decoderInputIds.shape[0] !== inputIds.shape[0]) {
      throw new RangeError(
        `${this.name}: ${inputIds.shape[0] ?? 0} sequences for the encoder and ${decoderInputIds.shape[0] ?? 0} for the decoder`,
      );
    }
  }

  #checkIds(what: string, ids: Tensor, mask: Tensor | undefined): void {
    const shape = ids.shape.join(', ');
    if (ids.dtype !== 'int64') throw new TypeError(`${this.name}: ${what} must be int64, got ${ids.dtype}`);
    if (ids.ndim !== 2 || ids.numel() === 0)
      throw new RangeError(`${this.name}: ${what} must be [B, N], got [${shape}]`);
    if (mask && mask.shape.join(', ') !== shape) {
      throw new RangeError(`${this.name}: the mask of ${what} is [${mask.shape.join(', ')}], the ids are [${shape}]`);
    }
  }
}

/**
 * Labels [B, N] to what the decoder reads in training: shifted right by one, `start` first, and `pad` in the places that
 * the loss leaves out (-100). T5: both 0, the defaults; BART: `start` 2, `pad` 1.
 */
export function shiftRight(labels: Tensor, { start = 0, pad = 0 }: { start?: number; pad?: number } = {}): Tensor {
  const [batch = 0, length = 0] = labels.shape;
  const first = full([batch, 1], start, { dtype: labels.dtype, device: labels.device });
  const shifted = aten.cat([first, labels.narrow(1, 0, length - 1)], 1);
  return shifted.maskedFill(shifted.eq(-100), pad);
}

/** Gives the names of one tensor that are missing in `state` the tensor of one that is there. */
export function fillShared(state: Map<string, Tensor>, names: readonly string[]): void {
  const there = names.map((name) => state.get(name)).find((tensor) => tensor !== undefined);
  if (there) for (const name of names) if (!state.has(name)) state.set(name, there);
}

/** The start of BERT's descendants: weights N(0, 0.02²), biases 0, norms 1 and 0, the padding's row 0. */
export function startAsBert(model: Module): void {
  model.apply((module) => {
    if (!(module instanceof Linear || module instanceof Embedding)) return;
    init.normal_(module.weight, 0, 0.02);
    if (module instanceof Linear && module.bias) init.zeros_(module.bias);
    if (module instanceof Embedding && module.paddingIndex !== null) {
      init.zeros_(module.weight.detach().select(0, module.paddingIndex));
    }
  });
}
