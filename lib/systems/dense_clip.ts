/**
 * DenseCLIP for semantic segmentation. Rao et al., DenseCLIP: Language-Guided Dense Prediction with Context-Aware
 * Prompting, CVPR 2022, arXiv 2112.01518; raoyongming/DenseCLIP, commit 5eda47f (MIT).
 */
import { readCheckpoint, stateDictOf } from '../checkpoint/index.js';
import { resize, sizeOf } from '../heads/conv_module.js';
import {
  EncoderDecoder,
  type EncoderDecoderOptions,
  type SegmentationHead,
  type SegmentationLosses,
  type SegmentOptions,
} from '../heads/index.js';
import { type ClipTextTransformer, loadState, type WeightsReport } from '../models/index.js';
import { Context, IGNORE_INDEX, type Parameter, pixelCrossEntropy } from '../nn/index.js';
import { noGrad, type Tensor } from '../tensor/index.js';
import type { ContextDecoder } from './dense_clip_context.js';
import { type DenseClipEncoder, DenseClipViT } from './dense_clip_encoders.js';
import { LanguageGuide, type LanguageOptions, withScores } from './dense_clip_language.js';
import { fromOfficial, isClip, RESIZERS, toOfficial, towersOf } from './dense_clip_names.js';

/** Loss of the scores themselves. */
export interface ScoreLossOptions {
  /** Default 0.4. */
  readonly weight?: number;
  /** Label of pixels that count 0. Default 255. */
  readonly ignoreIndex?: number;
}

/** What a `DenseClip` is assembled from. */
export interface DenseClipOptions extends Omit<EncoderDecoderOptions, 'backbone'>, LanguageOptions {
  readonly backbone: DenseClipEncoder;
  /** CLIP's text tower; null for the baseline without language, whose neck has no channels for scores. */
  readonly text: ClipTextTransformer | null;
  /** Level (from 0) that the scores are joined to. Default: that of the embeddings' size. */
  readonly scoreLevel?: number;
  /** null for none. */
  readonly scoreLoss?: ScoreLossOptions | null;
  /** Whether the decode head gets the class embeddings [B, K, D] before the levels (it must know). Default false. */
  readonly embeddingsToHead?: boolean;
  /** Windows of `predict` for images that are larger. Default: the side of the encoder's images, at two thirds of it. */
  readonly windows?: SegmentOptions['windows'];
}

/** Name of the scores [B, K, h, w], not divided by τ, that a pass leaves in the context's `aux`. */
export const SCORE_MAP = 'score_map';
/** Name of t' [B, K, D], the classes' embeddings in the context of the image, that a pass leaves in the context's `aux`. */
export const TEXT_EMBEDDINGS = 'text_embeddings';

/** Index of the level that is as large as the map of the embeddings. */
export function scoreLevelOf(encoder: DenseClipEncoder): number {
  const stride =
    encoder instanceof DenseClipViT ? encoder.patch_embed.patchSize[0] : encoder.featureLevels.at(-1)?.stride;
  return encoder.featureLevels.findIndex((level) => level.stride === stride);
}

/**
 * CLIP, a context decoder, a neck and a head: the scores of the classes' names guide the head, and are trained
 * themselves. The text tower is frozen, everything else learns, the image tower at a tenth of the rate
 * (`denseClipGroups`). Adapters may be set into the image tower.
 *
 * Names are the official ones but for the blocks of transformers; official files load with `loadWeights`, CLIP's with
 * `loadClip`.
 *
 * ```ts
 * const model = createDenseClip('RN50', { classes: ['sky', 'road', 'tree'], tokenizer });
 * model.loadClip('RN50.pt');
 * const optimizer = new AdamW(denseClipGroups(model));
 * model.losses(images, labels).loss.backward();
 * const labels = model.eval().predict(images);
 * ```
 */
export class DenseClip extends EncoderDecoder {
  override readonly name: string;
  declare readonly backbone: DenseClipEncoder;
  readonly text_encoder: ClipTextTransformer | null;
  readonly context_decoder: ContextDecoder | null;
  /** Learned vectors among the words, [1, N2, width of the text tower]. */
  readonly contexts: Parameter | null;
  /** γ [D]. */
  readonly gamma: Parameter | null;
  /** Classes and their embeddings; null for the baseline. */
  readonly language: LanguageGuide | null;
  readonly scoreLevel: number;
  readonly scoreLoss: Required<ScoreLossOptions> | null;
  readonly #embeddingsToHead: boolean;
  readonly #windows: NonNullable<SegmentOptions['windows']>;

  /** @throws TypeError for wrong options; RangeError for sizes that do not fit together */
  constructor(options: DenseClipOptions) {
    const { backbone, text, scoreLevel, scoreLoss = {}, embeddingsToHead = false, windows, ...rest } = options;
    const { numClasses, textTokens, contexts, contextDecoder, tau, ...heads } = rest;
    requireOneSpace(backbone, text);
    const language = text && new LanguageGuide(text, { numClasses, textTokens, contexts, contextDecoder, tau });
    super({ ...heads, backbone: text ? backbone : backbone.toTrunk() });
    this.name = `dense_clip on ${backbone.name}`;
    this.text_encoder = language?.text_encoder ?? null;
    this.context_decoder = language?.context_decoder ?? null;
    this.contexts = language?.contexts ?? null;
    this.gamma = language?.gamma ?? null;
    this.language = language;
    this.scoreLevel = scoreLevel ?? scoreLevelOf(backbone);
    this.scoreLoss = language && scoreLoss && { weight: 0.4, ignoreIndex: IGNORE_INDEX, ...scoreLoss };
    this.#embeddingsToHead = embeddingsToHead;
    const [, side] = backbone.config.inputSize;
    this.#windows = windows ?? { crop: side, stride: Math.max(1, Math.floor((2 * side) / 3)) };
  }

  /** The maps that the heads read; leaves scores and class embeddings in `ctx.aux`. */
  override features(images: Tensor, ctx: Context = new Context()): Tensor[] {
    if (!this.language) return super.features(images, ctx);
    const { levels, embedding } = this.backbone.encode(images, ctx);
    const classes = (ctx.state.get(this) as Tensor | undefined) ?? this.language.encodeClasses();
    const { text, scores } = this.language.guide(embedding, classes, ctx);
    ctx.aux.set(SCORE_MAP, scores);
    ctx.aux.set(TEXT_EMBEDDINGS, text);
    const joined = withScores(levels, this.scoreLevel, scores);
    return this.neck ? this.neck.fuse(joined, ctx) : joined;
  }

  protected override levelsFor(head: SegmentationHead, levels: readonly Tensor[], ctx: Context): readonly Tensor[] {
    const text = ctx.aux.get(TEXT_EMBEDDINGS);
    return this.#embeddingsToHead && text && head === this.decode_head ? [text, ...levels] : levels;
  }

  /** Beside the heads' losses `aux_identity.loss_seg`: cross entropy of s / τ at the size of the labels, weighted. */
  override lossesOf(levels: readonly Tensor[], labels: Tensor, ctx: Context = new Context()): SegmentationLosses {
    const found = super.lossesOf(levels, labels, ctx);
    const scores = ctx.aux.get(SCORE_MAP);
    if (!this.language || !this.scoreLoss || !scores) return found;
    const targets = labels.ndim === 4 ? labels.squeeze(1) : labels;
    const { weight, ignoreIndex } = this.scoreLoss;
    const logits = resize(scores.div(this.language.settings.tau), sizeOf(targets));
    const loss = pixelCrossEntropy(logits, targets, { ignoreIndex, average: this.average }).mul(weight);
    return { ...found, losses: { ...found.losses, 'aux_identity.loss_seg': loss }, loss: found.loss.add(loss) };
  }

  /** As in `EncoderDecoder`; the texts are read once for all windows. */
  override logits(images: Tensor, windows?: SegmentOptions['windows'], ctx: Context = new Context()): Tensor {
    if (this.language) ctx.state.set(this, this.language.encodeClasses());
    const logits = super.logits(images, windows, ctx);
    ctx.state.delete(this);
    return logits;
  }

  /**
   * The most probable class of each pixel, int64 [B, H, W], in evaluation mode and without a graph. Images larger than
   * the encoder's are seen window by window.
   */
  predict(images: Tensor, options: SegmentOptions = {}): Tensor {
    const { crop } = this.#windows;
    const [rows, columns] = typeof crop === 'number' ? [crop, crop] : crop;
    const [height, width] = sizeOf(images);
    const windows = height > rows || width > columns ? { windows: this.#windows } : {};
    const modes = this.namedModules().map(([, module]) => ({ module, training: module.training }));
    this.eval();
    try {
      return noGrad(() => this.segment([{ images, options: { ...windows, ...options } }]));
    } finally {
      for (const { module, training } of modes) module.training = training;
    }
  }

  /** The text tower is no head, and no adapter trains it. */
  override isUntouchable(name: string): boolean {
    return name === 'text_encoder' || name.startsWith('text_encoder.');
  }

  /** What a transformer's levels are resized by is as new as the head: adapters train both. */
  override isInClassifier(name: string): boolean {
    return (super.isInClassifier(name) && !this.isUntouchable(name)) || RESIZERS.test(name);
  }

  override hasGivenUp(name: string): boolean {
    return name.startsWith('backbone.') && this.backbone.hasGivenUp(name.slice('backbone.'.length));
  }

  /** From official files, or our own. */
  override convertStateDict(state: ReadonlyMap<string, Tensor>): Map<string, Tensor> {
    return fromOfficial(state, this.backbone);
  }

  /** The weights in the official names. */
  officialState(): Map<string, Tensor> {
    return toOfficial(this.backbone, this.stateDict());
  }

  /**
   * Both towers from a CLIP of the same size, a file or a state dict: OpenAI's archive, transformers' or our own.
   * Positions are resampled; everything that CLIP does not have stays.
   *
   * @throws Error when it is no CLIP, or another one
   */
  loadClip(source: string | ReadonlyMap<string, Tensor>): WeightsReport {
    const clip = typeof source === 'string' ? stateDictOf(readCheckpoint(source)) : source;
    const origin = typeof source === 'string' ? source : 'the state dict';
    if (!isClip(clip)) throw new Error(`${origin} does not hold a CLIP; load a DenseCLIP with loadWeights`);
    const context = this.text_encoder?.options.contextLength ?? 0;
    const towers = new Map(
      [...towersOf(clip, this.backbone, context)].filter(([name]) => this.text_encoder || !this.isUntouchable(name)),
    );
    const own = [...this.stateDict()].filter(([name]) => !isOfClip(name));
    return loadState(this, new Map([...own, ...towers]), {}, origin);
  }

  /** @throws TypeError always: texts, neck and head go by the classes; build a new model */
  override resetClassifier(): never {
    throw new TypeError(`${this.name}: texts, neck and head go by the classes; build a new model for others`);
  }
}

/** Whether a part of a DenseCLIP comes from CLIP. */
function isOfClip(name: string): boolean {
  return /^(backbone\.(?!fpn\d\.)|text_encoder\.)/.test(name);
}

/** @throws RangeError when images and texts become vectors of different widths */
export function requireOneSpace(backbone: DenseClipEncoder, text: ClipTextTransformer | null): void {
  if (text && backbone.outputDim !== text.options.embedDim) {
    throw new RangeError(
      `DenseCLIP: images become vectors of ${backbone.outputDim} and texts of ${text.options.embedDim}; both towers must end in one space`,
    );
  }
}
