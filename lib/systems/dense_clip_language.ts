/** DenseCLIP's language side: classes as text among learned contexts, refined by the image, compared with every pixel. */
import { z } from 'zod';
import { type ClipTextTransformer, type ClipTokenizer, parseOptions } from '../models/index.js';
import { Context, functional, init, Parameter } from '../nn/index.js';
import { aten, empty, full, isGradEnabled, keep, noGrad, type Tensor } from '../tensor/index.js';
import { encodeWithContexts } from './context_text.js';
import { ContextDecoder, contextDecoderOptions } from './dense_clip_context.js';
import type { DenseEmbedding } from './dense_clip_pool.js';

/** How classes become embeddings. */
export const languageOptions = z.strictObject({
  /** K. */
  numClasses: z.int().positive(),
  /** N1: tokens of a class name, start and end of the text among them. */
  textTokens: z.int().min(2).default(5),
  /** N2: learned vectors between the start of the text and the name, the same for all classes. 0 for none. */
  contexts: z.int().nonnegative().default(8),
  /** Post-model prompting, in which the image refines the embeddings; null leaves it out. */
  contextDecoder: contextDecoderOptions.nullable().prefault({}),
  /** τ: temperature of the scores in their losses (and, for detection, in the features). */
  tau: z.number().positive().default(0.07),
});

/** Options of the language side. */
export type LanguageOptions = z.input<typeof languageOptions>;

/** γ at the start: the embeddings are those of the text. */
const GAMMA = 1e-4;

/** What language says about images. */
export interface Guidance {
  /** t': embeddings of the classes after they have looked at the images, [B, K, D], not normalized. */
  readonly text: Tensor;
  /** s: cosine of every pixel with every class, [B, K, h, w]. */
  readonly scores: Tensor;
}

/**
 * The language side of a DenseCLIP. Its parts are properties of the model; here is what they do together:
 * t = text(start, contexts, name), t' = t + γ decoder(t, [z̄; z]), s = cos(z, t'). Rao et al. 2022, equations 1 to 6.
 *
 * The text tower is frozen.
 */
export class LanguageGuide {
  readonly text_encoder: ClipTextTransformer;
  /** Null without post-model prompting. */
  readonly context_decoder: ContextDecoder | null;
  /** [1, N2, width of the text tower], truncated normal. */
  readonly contexts: Parameter;
  /** γ [D]; null without post-model prompting. */
  readonly gamma: Parameter | null;
  readonly settings: z.output<typeof languageOptions>;
  #tokens: Tensor | null = null;
  #names: readonly string[] | null = null;
  #remembered: { readonly text: Tensor; readonly version: number } | null = null;

  /** @throws TypeError for wrong options; RangeError when the sequences do not fit the text tower's context */
  constructor(text: ClipTextTransformer, given: LanguageOptions) {
    this.settings = parseOptions(languageOptions, given, 'DenseCLIP');
    const { textTokens, contexts, contextDecoder } = this.settings;
    const { contextLength, width, embedDim } = text.options;
    if (textTokens + contexts > contextLength) {
      throw new RangeError(
        `DenseCLIP: ${textTokens} tokens and ${contexts} learned vectors do not fit the text tower's context of ${contextLength}`,
      );
    }
    this.text_encoder = text.freeze();
    this.contexts = new Parameter(init.truncNormal_(empty([1, contexts, width])));
    this.context_decoder = contextDecoder && new ContextDecoder(embedDim, contextDecoder);
    this.gamma = contextDecoder && new Parameter(full([embedDim], GAMMA));
  }

  /** The names that were given as text. */
  get classNames(): readonly string[] | null {
    return this.#names;
  }

  /**
   * The classes: names as text, bare, or tokens [K, N1] (int64) of them.
   *
   * @throws RangeError for another number of classes or tokens; for a name of more than N1 - 2 tokens
   */
  setClasses(names: readonly string[], tokenizer: ClipTokenizer): this;
  setClasses(tokens: Tensor): this;
  setClasses(classes: readonly string[] | Tensor, tokenizer?: ClipTokenizer): this {
    const { numClasses, textTokens } = this.settings;
    const isText = (given: readonly string[] | Tensor): given is readonly string[] => Array.isArray(given);
    const names = isText(classes) ? classes : null;
    const count = names ? names.length : (classes as Tensor).shape[0];
    if (count !== numClasses) {
      throw new RangeError(`DenseCLIP: it was built for ${numClasses} classes and was given ${count}`);
    }
    const tokens = names
      ? (tokenizer as ClipTokenizer).tokenize(names, { contextLength: textTokens })
      : (classes as Tensor);
    if (tokens.ndim !== 2 || tokens.shape[1] !== textTokens) {
      throw new RangeError(
        `DenseCLIP: tokens must be [${numClasses}, ${textTokens}], got [${tokens.shape.join(', ')}]`,
      );
    }
    this.#tokens = keep(tokens);
    this.#names = names;
    this.#remembered = null;
    return this;
  }

  /** t: embeddings [K, D] of the classes, which no image has refined. @throws Error before `setClasses` */
  encodeClasses(): Tensor {
    const { text, version } = this.#remembered ?? {};
    if (text && version === this.contexts._version && !isGradEnabled()) return text;
    if (!this.#tokens) throw new Error('DenseCLIP: its classes are not known; call language.setClasses first');
    const ids = this.#tokens.to(this.contexts.device);
    // A context of its own: what the pass of the images says about adapters and tokens is not about texts.
    return encodeWithContexts(this.text_encoder, ids, this.contexts, new Context());
  }

  /**
   * Computes t once for all passes to come that need no graph: no image changes it. Other contexts or classes make it
   * being computed anew; call this again after changing the text tower.
   */
  remember(): this {
    this.#remembered = null;
    const text = keep(noGrad(() => this.encodeClasses()));
    this.#remembered = { text, version: this.contexts._version };
    return this;
  }

  /** What the classes, of embeddings `text` [K, D], say about images. */
  guide({ global, map }: DenseEmbedding, text: Tensor, ctx: Context = new Context()): Guidance {
    const [batch = 0, , height = 0, width = 0] = map.shape;
    const pixels = map.flatten(2);
    let refined = text.unsqueeze(0).expand([batch, -1, -1]);
    if (this.context_decoder && this.gamma) {
      const memory = aten.cat([global.unsqueeze(2), pixels], 2).transpose(1, 2);
      refined = refined.add(this.context_decoder.refine(refined, memory, ctx).mul(this.gamma));
    }
    const cosine = functional.normalize(refined, { dim: 2 }).matmul(functional.normalize(pixels, { dim: 1 }));
    return { text: refined, scores: cosine.unflatten(2, [height, width]) };
  }
}

/**
 * Levels with scores [B, K, h, w] behind the channels of one of them.
 *
 * @throws RangeError when that level does not exist or has another size
 */
export function withScores(levels: readonly Tensor[], index: number, scores: Tensor): Tensor[] {
  const level = levels[index];
  if (!level) throw new RangeError(`DenseCLIP: there are ${levels.length} levels, none of index ${index}`);
  if (level.shape.slice(2).join() !== scores.shape.slice(2).join()) {
    throw new RangeError(
      `DenseCLIP: scores of ${scores.shape.slice(2).join(' x ')} cannot be joined to level ${index} of ` +
        `${level.shape.slice(2).join(' x ')}; set scoreLevel to the level of the embeddings' size`,
    );
  }
  return levels.map((map, i) => (i === index ? aten.cat([map, scores], 1) : map));
}
