/** DenseCLIP for detection: a pyramid whose coarsest level holds the scores of the classes' names, for stock detectors. */
import { applyKeyMap, type KeyMap, readCheckpoint, stateDictOf } from '../checkpoint/index.js';
import { resize, sizeOf } from '../heads/conv_module.js';
import { type DetectionBatch, type DetectionTarget, Fpn, type FpnOptions, PyramidSource } from '../heads/index.js';
import type { ClipTextTransformer } from '../models/index.js';
import { bceWithLogits, Context, type Parameter } from '../nn/index.js';
import { arange, aten, noGrad, type Tensor } from '../tensor/index.js';
import { requireOneSpace } from './dense_clip.js';
import type { ContextDecoder } from './dense_clip_context.js';
import type { DenseClipEncoder } from './dense_clip_encoders.js';
import { type Guidance, LanguageGuide, type LanguageOptions, withScores } from './dense_clip_language.js';
import { below, fromOfficial, isClip, RESIZERS, towersOf, under } from './dense_clip_names.js';

/** Distance, in pixels, of the places of the scores' loss. */
const STRIDE = 4;

/**
 * Binary cross entropy of the scores inside boxes: at a quarter of the images' resolution, over the places that any box
 * of their image covers, and over all classes there; the target is 1 in the boxes of a class. 0 when no box covers a place.
 *
 * @param logits s / τ, [B, K, H / 4, W / 4]
 * @param targets boxes (x1, y1, x2, y2) in pixels of the images, one target for each; labels 0 to K - 1
 */
export function boxScoreLoss(logits: Tensor, targets: readonly DetectionTarget[]): Tensor {
  const [, classes = 0, rows = 0, columns = 0] = logits.shape;
  const { target, mask } = noGrad(() => {
    const maps = targets.map((one) => boxMaps(one, classes, [rows, columns]));
    return { target: aten.stack(maps.map((m) => m.target)), mask: aten.stack(maps.map((m) => m.mask)) };
  });
  const weight = mask.to(logits.dtype);
  const options = { weight: weight.expandAs(logits), reduction: 'sum' } as const;
  return bceWithLogits(logits, target.to(logits.dtype), options).div(weight.sum().mul(classes).clampMin(1));
}

/** Where the boxes of each class lie, bool [K, h, w], and where any lies, bool [1, h, w]. */
function boxMaps({ boxes, labels }: DetectionTarget, classes: number, [rows, columns]: readonly [number, number]) {
  const { device } = boxes;
  const [x1, y1, x2, y2] = boxes.div(STRIDE).trunc().unbind(1) as [Tensor, Tensor, Tensor, Tensor];
  const along = (low: Tensor, high: Tensor, length: number): Tensor => {
    const places = arange(length, { dtype: 'int64', device });
    const [from, to] = [low, high].map((t) => t.clamp(0, length - 1).unsqueeze(1)) as [Tensor, Tensor];
    return places.ge(from).logicalAnd(places.lt(to));
  };
  const inside = along(y1, y2, rows)
    .unsqueeze(2)
    .logicalAnd(along(x1, x2, columns).unsqueeze(1));
  const ofClass = arange(classes, { dtype: 'int64', device }).unsqueeze(1).eq(labels);
  const covered = ofClass.to('float32').matmul(inside.flatten(1).to('float32')).gt(0);
  return { target: covered.unflatten(1, [rows, columns]), mask: inside.any(0).unsqueeze(0) };
}

/** What a `DenseClipPyramid` is made of. */
export interface DenseClipPyramidOptions extends LanguageOptions {
  readonly backbone: DenseClipEncoder;
  readonly text: ClipTextTransformer;
  /** The pyramid; `inChannels` follow from the encoder and the classes. Default: 256 channels on all levels. */
  readonly neck?: Omit<FpnOptions, 'inChannels'>;
  /** Level (from 0) that the scores are joined to. Default: the coarsest. */
  readonly scoreLevel?: number;
  /** Factor of the scores' loss. Default 1. */
  readonly scoreWeight?: number;
}

/**
 * CLIP, a context decoder and a pyramid that reads the scores s / τ beside one of the levels: the body of a `RetinaNet` or
 * `FasterRcnn`, whose losses it joins with `loss_seg` (`boxScoreLoss`). Names are the official ones but for the blocks of
 * transformers.
 */
export class DenseClipPyramid extends PyramidSource {
  readonly bodyPath = 'backbone';
  readonly backbone: DenseClipEncoder;
  readonly text_encoder: ClipTextTransformer;
  readonly context_decoder: ContextDecoder | null;
  readonly contexts: Parameter;
  readonly gamma: Parameter | null;
  readonly neck: Fpn;
  readonly language: LanguageGuide;
  readonly levelNames: readonly string[];
  readonly outChannels: number;
  readonly scoreLevel: number;
  readonly #scoreWeight: number;

  /** @throws TypeError for wrong options; RangeError for sizes that do not fit together */
  constructor(options: DenseClipPyramidOptions) {
    const { backbone, text, neck = {}, scoreLevel, scoreWeight = 1, ...language } = options;
    requireOneSpace(backbone, text);
    super();
    this.language = new LanguageGuide(text, language);
    this.backbone = backbone;
    this.text_encoder = this.language.text_encoder;
    this.context_decoder = this.language.context_decoder;
    this.contexts = this.language.contexts;
    this.gamma = this.language.gamma;
    const channels = backbone.featureLevels.map((level) => level.channels);
    this.scoreLevel = scoreLevel ?? channels.length - 1;
    const inChannels = channels.map((own, i) => (i === this.scoreLevel ? own + language.numClasses : own));
    this.neck = new Fpn({ ...neck, inChannels });
    this.outChannels = neck.outChannels ?? 256;
    this.#scoreWeight = scoreWeight;
    const used = channels.length - (neck.startLevel ?? 0);
    const count = neck.numOuts ?? used;
    this.levelNames = Array.from({ length: count }, (_, i) => (i < used ? String(i) : `extra${i - used}`));
  }

  get body(): DenseClipEncoder {
    return this.backbone;
  }

  /** The levels, and what language says about the images. */
  guided(images: Tensor, ctx: Context = new Context()): Guidance & { readonly levels: Tensor[] } {
    const { levels, embedding } = this.backbone.encode(images, ctx);
    const { text, scores } = this.language.guide(embedding, this.language.encodeClasses(), ctx);
    const joined = withScores(levels, this.scoreLevel, scores.div(this.language.settings.tau));
    return { text, scores, levels: this.neck.fuse(joined, ctx) };
  }

  maps(images: Tensor, ctx: Context = new Context()): Tensor[] {
    const { levels, scores } = this.guided(images, ctx);
    ctx.state.set(this, scores);
    return levels;
  }

  override auxiliaryLosses({ images, targets }: DetectionBatch, ctx: Context): Readonly<Record<string, Tensor>> {
    const scores = ctx.state.get(this) as Tensor | undefined;
    if (!scores) throw new Error('DenseClipPyramid: its losses follow maps(images, ctx) with the same context');
    ctx.state.delete(this);
    const logits = this.scoreLogits(scores, sizeOf(images));
    return { loss_seg: boxScoreLoss(logits, targets).mul(this.#scoreWeight) };
  }

  /** Scores s [B, K, h, w] over τ at a quarter of the images' size. */
  scoreLogits(scores: Tensor, [height, width]: readonly [number, number]): Tensor {
    const size = [Math.floor(height / STRIDE), Math.floor(width / STRIDE)] as const;
    return resize(scores.div(this.language.settings.tau), size);
  }

  override isNew(name: string): boolean {
    return RESIZERS.test(name);
  }

  override isUntouchable(name: string): boolean {
    return name === 'text_encoder' || name.startsWith('text_encoder.');
  }

  /** From official files, or our own; a RetinaNet's head too. */
  override convertStateDict(state: ReadonlyMap<string, Tensor>): Map<string, Tensor> {
    if (!state.has('contexts')) {
      const own = fromOfficial(below(PREFIX, state), this.backbone);
      return new Map([...[...state].filter(([name]) => !name.startsWith(PREFIX)), ...under(PREFIX, own)]);
    }
    const isPart = (name: string): boolean => PARTS.test(name);
    const parts = new Map([...state].filter(([name]) => isPart(name)));
    const heads = [...state].filter(([name]) => !isPart(name));
    return new Map([...applyKeyMap(STOCK_HEADS, heads).tensors, ...under(PREFIX, fromOfficial(parts, this.backbone))]);
  }

  /**
   * Both towers from a CLIP of the same size, a file or a state dict: OpenAI's archive, transformers' or our own.
   *
   * @throws Error when it is no CLIP, or another one
   */
  loadClip(source: string | ReadonlyMap<string, Tensor>): void {
    const clip = typeof source === 'string' ? stateDictOf(readCheckpoint(source)) : source;
    if (!isClip(clip)) throw new Error('DenseClipPyramid: this is no CLIP; load a DenseCLIP with loadWeights');
    const towers = towersOf(clip, this.backbone, this.text_encoder.options.contextLength);
    this.loadStateDict(new Map([...this.stateDict(), ...towers]));
  }
}

/** Where a detector keeps its pyramid, and the names that official files have there. */
const PREFIX = 'backbone.';
const PARTS = /^(backbone|text_encoder|context_decoder|neck)\.|^(contexts|gamma)$/;

/** MMDetection's names of a RetinaNet's head. */
const STOCK_HEADS: KeyMap = [
  { kind: 'rename', from: 'bbox_head.cls_convs.{i}.conv.{leaf}', to: 'head.classification_head.conv.{i}.0.{leaf}' },
  { kind: 'rename', from: 'bbox_head.reg_convs.{i}.conv.{leaf}', to: 'head.regression_head.conv.{i}.0.{leaf}' },
  { kind: 'rename', from: 'bbox_head.retina_cls.{leaf}', to: 'head.classification_head.cls_logits.{leaf}' },
  { kind: 'rename', from: 'bbox_head.retina_reg.{leaf}', to: 'head.regression_head.bbox_reg.{leaf}' },
];
