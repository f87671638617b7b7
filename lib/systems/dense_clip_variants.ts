/** Published DenseCLIPs by name, and how they are trained. */
import { z } from 'zod';
import { FasterRcnn, type Detector, type DetectionInputOptions, Fpn, FpnHead, RetinaNet } from '../heads/index.js';
import {
  CLIP_COLORS,
  clipTextOptions,
  type ClipTextOptions,
  ClipTextTransformer,
  type ClipTokenizer,
  parseOptions,
  suggestion,
} from '../models/index.js';
import type { Module } from '../nn/index.js';
import { scope, type Tensor } from '../tensor/index.js';
import { DenseClip, scoreLevelOf } from './dense_clip.js';
import { contextDecoderOptions } from './dense_clip_context.js';
import { DenseClipPyramid } from './dense_clip_detection.js';
import {
  type DenseClipEncoder,
  DenseClipResNet,
  type DenseClipResNetOptions,
  DenseClipViT,
  type DenseClipViTOptions,
} from './dense_clip_encoders.js';
import type { PoolPositions } from './dense_clip_pool.js';

/** The image tower of a DenseCLIP: a residual network when `layers` is a list, else a transformer. */
export type DenseClipVisual =
  Omit<DenseClipResNetOptions, 'inputResolution' | 'positions'> | Omit<DenseClipViTOptions, 'inputResolution'>;

/** Sizes of both towers. */
export interface DenseClipSizes {
  readonly visual: DenseClipVisual;
  /** The text tower; the lengths of context and embeddings follow. Default: that of all published ones. */
  readonly text?: Partial<Omit<ClipTextOptions, 'contextLength' | 'embedDim'>>;
}

interface Published extends DenseClipSizes {
  /** Side of the images, by task. */
  readonly segment: number;
  readonly detect: number;
}

const PUBLISHED: Readonly<Record<string, Published>> = {
  RN50: { visual: { layers: [3, 4, 6, 3], outputDim: 1024 }, segment: 512, detect: 1344 },
  RN101: { visual: { layers: [3, 4, 23, 3], outputDim: 512 }, segment: 512, detect: 1344 },
  'ViT-B/16': { visual: { outputDim: 512 }, segment: 640, detect: 1344 },
};

/** Names that `createDenseClip` and `createDenseClipDetector` know: those of the CLIPs whose weights they take. */
export function listDenseClips(): string[] {
  return Object.keys(PUBLISHED);
}

const common = z.strictObject({
  /** Names of the classes, bare. */
  classes: z.array(z.string()).min(1),
  /** Makes tokens of the names. Without it call `language.setClasses` with tokens. */
  tokenizer: z.custom<ClipTokenizer>().optional(),
  /** Side of the images that positions are made for. Default: the published one (512, 640 for ViT; 1344 for detection). */
  inputResolution: z.int().positive().optional(),
  /** N1: tokens of a name with start and end. */
  textTokens: z.int().min(2).default(5),
  /** N2: learned vectors before each name. */
  contexts: z.int().nonnegative().default(8),
  /** Post-model prompting; null leaves it out. */
  contextDecoder: contextDecoderOptions.nullable().prefault({}),
  /** τ. */
  tau: z.number().positive().default(0.07),
  /** Width of the pyramid. */
  channels: z.int().positive().default(256),
});

const segmentation = common.extend({
  /** false: the baseline, CLIP's image tower with the same neck and head. */
  language: z.boolean().default(true),
  /** Dropout of channels in the head. */
  dropout: z.number().min(0).max(1).default(0.1),
  /** Factor of the scores' loss; 0 for none. */
  scoreWeight: z.number().nonnegative().default(0.4),
});

const detection = common.extend({
  /** `retinanet` has labels from 0, `faster_rcnn` from 1. */
  head: z.enum(['retinanet', 'faster_rcnn']).default('retinanet'),
  /** Width of the two linear layers of a `faster_rcnn`. */
  boxWidth: z.int().positive().default(1024),
  /** How images are resized; colors are CLIP's. */
  input: z.custom<Omit<DetectionInputOptions, 'mean' | 'std'>>().optional(),
  /** Factor of the scores' loss. */
  scoreWeight: z.number().nonnegative().default(1),
});

/** Options of `createDenseClip`. */
export type CreateDenseClipOptions = z.input<typeof segmentation>;
/** Options of `createDenseClipDetector`. */
export type CreateDenseClipDetectorOptions = z.input<typeof detection>;

/** An image tower of any size. */
export function denseClipEncoder(
  visual: DenseClipVisual,
  inputResolution: number,
  positions: PoolPositions = 'resize',
): DenseClipEncoder {
  return isResNet(visual)
    ? new DenseClipResNet({ ...visual, inputResolution, positions })
    : new DenseClipViT({ ...visual, inputResolution });
}

function isResNet(visual: DenseClipVisual): visual is Extract<DenseClipVisual, { layers: readonly number[] }> {
  return Array.isArray(visual.layers);
}

type Task = 'segment' | 'detect';

function sizesOf(model: string | DenseClipSizes): DenseClipSizes & Partial<Published> {
  if (typeof model !== 'string') return model;
  const found = Object.hasOwn(PUBLISHED, model) ? PUBLISHED[model] : undefined;
  if (found) return found;
  const known = listDenseClips();
  throw new RangeError(
    `there is no DenseCLIP '${model}'${suggestion(model, known)}; there are ${known.join(', ')}, and sizes of your own`,
  );
}

function towers(model: string | DenseClipSizes, o: z.output<typeof common>, task: Task) {
  const sizes = sizesOf(model);
  const resolution = o.inputResolution ?? sizes[task];
  if (resolution === undefined) {
    throw new RangeError('DenseCLIP: sizes of your own need inputResolution, the side of the images');
  }
  const text = clipTextOptions.parse({
    ...(o.tokenizer && { vocabSize: o.tokenizer.vocabSize }),
    ...sizes.text,
    contextLength: o.textTokens + o.contexts,
    embedDim: sizes.visual.outputDim,
  });
  return { backbone: denseClipEncoder(sizes.visual, resolution, task === 'segment' ? 'resize' : 'crop'), text };
}

const languageOf = ({ classes, textTokens, contexts, contextDecoder, tau }: z.output<typeof common>) => ({
  numClasses: classes.length,
  textTokens,
  contexts,
  contextDecoder,
  tau,
});

/**
 * A DenseCLIP for semantic segmentation (Semantic FPN), with fresh weights: `loadClip` or `loadWeights` come next.
 *
 * @param model a published size (`listDenseClips()`), or sizes of your own with `inputResolution`
 * @throws RangeError for an unknown name, or a class name of more than N1 - 2 tokens; TypeError for wrong options
 */
export function createDenseClip(model: string | DenseClipSizes, options: CreateDenseClipOptions): DenseClip {
  const o = parseOptions(segmentation, options, 'createDenseClip');
  return scope(() => {
    const { backbone, text } = towers(model, o, 'segment');
    const { classes, channels, dropout, language, scoreWeight, tokenizer } = o;
    const scoreLevel = scoreLevelOf(backbone);
    const extra = (i: number): number => (language && i === scoreLevel ? classes.length : 0);
    const inChannels = backbone.featureLevels.map((level, i) => level.channels + extra(i));
    const head = {
      numClasses: classes.length,
      inChannels: inChannels.map(() => channels),
      featureStrides: backbone.featureLevels.map((level) => level.stride),
      channels,
      dropout,
    };
    const made = new DenseClip({
      ...languageOf(o),
      backbone,
      text: language ? new ClipTextTransformer(text) : null,
      neck: new Fpn({ inChannels, outChannels: channels }),
      decodeHead: new FpnHead(head),
      scoreLoss: scoreWeight > 0 ? { weight: scoreWeight } : null,
    });
    if (tokenizer) made.language?.setClasses(classes, tokenizer);
    return made;
  });
}

/** A detector on a `DenseClipPyramid`. */
export type DenseClipDetector = Detector & { readonly backbone: DenseClipPyramid };

/**
 * A DenseCLIP for detection, with fresh weights: `detector.backbone.loadClip` or `loadWeights` come next. The labels of a
 * `retinanet` begin with 0, those of a `faster_rcnn` with 1; class i of the names is label i, or i + 1.
 *
 * @throws RangeError, TypeError as `createDenseClip`
 */
export function createDenseClipDetector(
  model: string | DenseClipSizes,
  options: CreateDenseClipDetectorOptions,
): DenseClipDetector {
  const o = parseOptions(detection, options, 'createDenseClipDetector');
  return scope(() => {
    const { backbone, text } = towers(model, o, 'detect');
    const { channels: outChannels, classes, head, scoreWeight, tokenizer } = o;
    const isRetina = head === 'retinanet';
    const body = new DenseClipPyramid({
      ...languageOf(o),
      backbone,
      text: new ClipTextTransformer(text),
      scoreLevel: scoreLevelOf(backbone),
      neck: isRetina
        ? { outChannels, startLevel: 1, numOuts: 5, extra: 'on_input' }
        : { outChannels, numOuts: 5, extra: 'pool' },
      scoreWeight,
    });
    if (tokenizer) body.language.setClasses(classes, tokenizer);
    const input = { ...CLIP_COLORS, ...o.input };
    const made = isRetina
      ? new RetinaNet({ body, input, numClasses: classes.length })
      : new FasterRcnn({ body, input, numClasses: classes.length + 1, boxHead: { kind: 'mlp', width: o.boxWidth } });
    return made as Detector as DenseClipDetector;
  });
}

/** Rates of `denseClipGroups`. */
export interface DenseClipRates {
  /** Default 1e-4. */
  readonly lr?: number;
  /** Default 1e-4. */
  readonly weightDecay?: number;
  /** Factor of the image tower's rate. Default 0.1. */
  readonly backboneScale?: number;
}

/**
 * The groups of parameters that the paper trains, for an optimizer: the image tower at a tenth of the rate, norms outside
 * of it (by their names) without decay, everything else. The text tower is frozen and in none.
 * For a `Trainer`, `optimizer: { kind: 'adamw', lr, rateFactor: (name) => (name.startsWith('backbone.') ? 0.1 : 1) }` sets the same
 * rates.
 *
 * @param model a `DenseClip`, a detector of `createDenseClipDetector`, or any model around them
 */
export function denseClipGroups(
  model: Module,
  { lr = 1e-4, weightDecay = 1e-4, backboneScale = 0.1 }: DenseClipRates = {},
): { params: Tensor[]; lr: number; weightDecay: number }[] {
  const isTower = (module: Module): boolean => module instanceof DenseClipResNet || module instanceof DenseClipViT;
  const tower = new Set<Tensor>(
    model.namedModules().flatMap(([, module]) => (isTower(module) ? module.parameters() : [])),
  );
  const groups = {
    tower: { params: [] as Tensor[], lr: lr * backboneScale, weightDecay },
    norms: { params: [] as Tensor[], lr, weightDecay: 0 },
    rest: { params: [] as Tensor[], lr, weightDecay },
  };
  for (const [name, parameter] of model.namedParameters()) {
    if (!parameter.requiresGrad) continue;
    groups[tower.has(parameter) ? 'tower' : name.includes('norm') ? 'norms' : 'rest'].params.push(parameter);
  }
  return Object.values(groups).filter((group) => group.params.length > 0);
}
