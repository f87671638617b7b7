/**
 * LV-Adapter: pretrain, adapt, finetune, for several tasks of driving at once. Liang et al., Effective Adaptation in
 * Multi-Task Co-Training for Unified Autonomous Driving, NeurIPS 2022, arXiv 2209.08953. There is no public code and only the
 * abstract and summaries could be read when this was written: the formulas are a reconstruction, and no figure of the paper
 * is claimed.
 */
import { z } from 'zod';
import { resize, sizeOf } from '../heads/conv_module.js';
import { DenseModel, FpnHead } from '../heads/index.js';
import { type Backbone, type ClipTextTransformer, parseOptions } from '../models/index.js';
import {
  Context,
  Conv2d,
  functional,
  init,
  LayerNorm,
  Linear,
  Module,
  ModuleDict,
  ModuleList,
  Parameter,
  pixelCrossEntropy,
  topDown,
} from '../nn/index.js';
import { empty, keep, type Tensor } from '../tensor/index.js';
import { encodeWithContexts } from './context_text.js';
import { fromOfficial } from './dense_clip_names.js';

/** The tasks: semantic segmentation, drivable area, detection. */
export const LV_TASKS = ['sem', 'driv', 'det'] as const;
/** One of the tasks that LV-Adapter learns together. */
export type LvTask = (typeof LV_TASKS)[number];

/** Names of BDD100K's classes by task. */
export const BDD100K_CLASSES: Readonly<Record<LvTask, readonly string[]>> = {
  sem: (
    'road,sidewalk,building,wall,fence,pole,traffic light,traffic sign,vegetation,terrain,sky,person,rider,car,truck,' +
    'bus,train,motorcycle,bicycle'
  ).split(','),
  driv: ['direct', 'alternative', 'background'],
  det: 'pedestrian,rider,car,truck,bus,train,motorcycle,bicycle,traffic light,traffic sign'.split(','),
};

/** A feature pyramid over the levels of a trunk: 1x1 convolutions, the top-down sum, a 3x3 convolution each. */
export class MultiScaleAdapter extends Module {
  readonly lateral: ModuleList<Conv2d>;
  readonly output: ModuleList<Conv2d>;

  constructor(inChannels: readonly number[], channels: number) {
    super();
    this.lateral = new ModuleList(inChannels.map((from) => new Conv2d(from, channels, { kernelSize: 1 })));
    this.output = new ModuleList(inChannels.map(() => new Conv2d(channels, channels, { kernelSize: 3, padding: 1 })));
    for (const { weight, bias } of [...this.lateral, ...this.output]) {
      init.xavierUniform_(weight);
      if (bias) init.zeros_(bias);
    }
  }

  /** One map of `channels` for each that enters, finest first. @throws RangeError for another number of maps */
  fuse(maps: readonly Tensor[], ctx: Context = new Context()): Tensor[] {
    if (maps.length !== this.lateral.length) {
      throw new RangeError(`a pyramid of ${this.lateral.length} levels was given ${maps.length}`);
    }
    const sums = topDown(maps.map((map, i) => this.lateral.at(i).run(map, ctx)));
    return sums.map((map, i) => this.output.at(i).run(map, ctx));
  }

  /** @throws TypeError always: a pyramid has many inputs; call `fuse` */
  forward(): never {
    throw new TypeError('MultiScaleAdapter takes a list of maps: call fuse(maps, ctx)');
  }
}

/**
 * What language knows of a map: each pixel of [B, c, h, w] attends, in several heads, to the K classes' embeddings
 * T [K, D]: q = q_proj(norm x), k = k_proj T, v = v_proj T. `out_proj` starts at 0, and with it the context.
 */
export class LanguageToVision extends Module {
  readonly norm: LayerNorm;
  readonly q_proj: Linear;
  readonly k_proj: Linear;
  readonly v_proj: Linear;
  readonly out_proj: Linear;
  readonly #heads: number;

  /** @throws RangeError when the channels do not divide into the heads */
  constructor(channels: number, textDim: number, heads: number) {
    super();
    if (channels % heads !== 0) {
      throw new RangeError(
        `${channels} channels do not divide into ${heads} heads; take heads that divide ${channels}`,
      );
    }
    this.norm = new LayerNorm(channels, { eps: 1e-5 });
    this.q_proj = new Linear(channels, channels);
    this.k_proj = new Linear(textDim, channels);
    this.v_proj = new Linear(textDim, channels);
    this.out_proj = new Linear(channels, channels);
    init.zeros_(this.out_proj.weight);
    if (this.out_proj.bias) init.zeros_(this.out_proj.bias);
    this.#heads = heads;
  }

  /** The context [B, c, h, w] of a map, which is added to it. */
  context(map: Tensor, text: Tensor, ctx: Context = new Context()): Tensor {
    const [batch = 0, channels = 0, height = 0, width = 0] = map.shape;
    const heads = (x: Tensor): Tensor => x.unflatten(-1, [this.#heads, -1]).transpose(-3, -2);
    const pixels = map.flatten(2).transpose(1, 2);
    const q = heads(this.q_proj.run(this.norm.run(pixels, ctx), ctx));
    const [k, v] = [this.k_proj, this.v_proj].map((layer) =>
      heads(layer.run(text, ctx)).unsqueeze(0).expand([batch, -1, -1, -1]),
    ) as [Tensor, Tensor];
    const found = functional.scaledDotProductAttention(q, k, v).transpose(1, 2).flatten(2);
    return this.out_proj.run(found, ctx).transpose(1, 2).reshape([batch, channels, height, width]);
  }

  /** @throws TypeError always: it reads a map and a text; call `context` */
  forward(): never {
    throw new TypeError('LanguageToVision reads a map and the embeddings of classes: call context(map, text, ctx)');
  }
}

/** Learned vectors [1, M, d] by task. */
class Prompts extends Module {
  constructor(tasks: readonly string[], length: number, width: number) {
    super();
    const make = (): Parameter => new Parameter(init.normal_(empty([1, length, width]), 0, 0.02));
    Object.assign(this, Object.fromEntries(tasks.map((task) => [task, make()])));
  }

  of(task: string): Parameter {
    return (this as unknown as Readonly<Record<string, Parameter>>)[task] as Parameter;
  }

  /** @throws TypeError always */
  forward(): never {
    throw new TypeError('prompts are read by the text tower; they cannot be run');
  }
}

const positive = z.int().positive();

const options = z.strictObject({
  /** Number of classes of each task; a task that is left out does not exist. */
  tasks: z
    .partialRecord(z.enum(LV_TASKS), positive)
    .refine((tasks) => Object.keys(tasks).length > 0, 'must name a task'),
  /** c. */
  channels: positive.default(256),
  heads: positive.default(8),
  /** M. */
  promptLength: positive.default(16),
  headChannels: positive.default(128),
  /** `adapt`: the pretrained towers are frozen; `finetune`: the image tower learns too. */
  stage: z.enum(['adapt', 'finetune']).default('adapt'),
});

/** Sizes of an `LvAdapter`. */
export type LvAdapterOptions = z.input<typeof options>;

/** What an `LvAdapter` finds. */
export interface LvOutputs {
  /** Logits [B, K, H, W] at the size of the images, of the tasks that label pixels. */
  readonly logits: Readonly<Partial<Record<'sem' | 'driv', Tensor>>>;
  /** The levels for a detector, finest first; empty without that task. */
  readonly detection: readonly Tensor[];
}

/**
 * One trunk for segmentation, drivable area and detection: a pyramid of multi-scale adapters, and for each task a language
 * branch and a head. Stages: take a pretrained trunk, train everything else (`adapt`), then the trunk too (`finetune`).
 * A detector is not part of it: it reads the levels of the task `det`; `LvMultiTask` has one.
 *
 * ```ts
 * const model = new LvAdapter(trunk, textTower, { tasks: { sem: 19, driv: 3 } });
 * model.setClasses({ sem: tokenizer.tokenize(names, { contextLength: 5 }), driv: ... });
 * const { total } = model.losses(model.outputs(images), labels);
 * ```
 */
export class LvAdapter extends DenseModel {
  readonly name: string;
  protected readonly backbonePath = 'backbone';
  readonly backbone: Backbone;
  /** Null in the variant without language. */
  readonly text_encoder: ClipTextTransformer | null;
  readonly adapter: MultiScaleAdapter;
  readonly prompts: Prompts | null;
  readonly lv: ModuleDict<LanguageToVision>;
  readonly heads: ModuleDict<FpnHead>;
  readonly settings: z.output<typeof options>;
  #stage: 'adapt' | 'finetune' = 'adapt';
  readonly #tokens = new Map<LvTask, Tensor>();

  /**
   * @param backbone becomes a trunk (what only classification needs leaves); strides 4, 8, 16, 32
   * @param text CLIP's text tower; null leaves the language out
   * @throws RangeError for a trunk of other levels, or sizes that do not fit together
   */
  constructor(backbone: Backbone, text: ClipTextTransformer | null, given: LvAdapterOptions) {
    super();
    this.name = `lv_adapter on ${backbone.name}`;
    this.settings = parseOptions(options, given, 'lv_adapter');
    const { channels, heads, promptLength, headChannels, tasks, stage } = this.settings;
    const strides = backbone.featureLevels.map((level) => level.stride);
    if (strides.join() !== STRIDES.join()) {
      throw new RangeError(
        `${this.name}: levels of strides ${STRIDES.join(', ')} are expected, ${backbone.name} has ${strides.join(', ')}`,
      );
    }
    // A name has at least one token between the start and the end of its text.
    const longest = (text?.options.contextLength ?? Infinity) - 3;
    if (promptLength > longest) {
      throw new RangeError(
        `${this.name}: prompts of ${promptLength} vectors leave no room for class names in the text tower's context of ${longest + 3}; take at most ${longest}`,
      );
    }
    const names = LV_TASKS.filter((task) => tasks[task] !== undefined);
    const language = text
      ? names.map((task) => [task, new LanguageToVision(channels, text.options.embedDim, heads)])
      : [];
    const levels = STRIDES.map(() => channels);
    const labeling = names
      .filter((task) => task !== 'det')
      .map((task) => [
        task,
        new FpnHead({ inChannels: levels, channels: headChannels, numClasses: tasks[task] ?? 0, dropout: 0 }),
      ]);
    this.backbone = backbone.toTrunk();
    this.text_encoder = text;
    const inChannels = backbone.featureLevels.map((level) => level.channels);
    this.adapter = new MultiScaleAdapter(inChannels, channels);
    this.prompts = text && new Prompts(names, promptLength, text.options.width);
    this.lv = new ModuleDict(Object.fromEntries(language) as Record<string, LanguageToVision>);
    this.heads = new ModuleDict(Object.fromEntries(labeling) as Record<string, FpnHead>);
    this.stage = stage;
  }

  /** Which parts learn; changing it freezes and thaws the image tower. The text tower never learns. */
  get stage(): 'adapt' | 'finetune' {
    return this.#stage;
  }

  set stage(stage: 'adapt' | 'finetune') {
    this.#stage = stage;
    this.backbone.requiresGrad_(stage === 'finetune');
    this.text_encoder?.freeze();
    this.train(this.training);
  }

  /** While adapting, the frozen towers stay in evaluation mode: their running statistics do not move. */
  override train(mode = true): this {
    super.train(mode);
    if (this.#stage === 'adapt') this.backbone.eval();
    this.text_encoder?.eval();
    return this;
  }

  /** The text tower is no head, and no adapter trains it. */
  override isUntouchable(name: string): boolean {
    return name === 'text_encoder' || name.startsWith('text_encoder.');
  }

  override isInClassifier(name: string): boolean {
    return super.isInClassifier(name) && !this.isUntouchable(name);
  }

  /**
   * The class names of the tasks as tokens [K, n], which the text tower reads in every pass.
   *
   * @throws RangeError for a task that the model does not have, another number of classes, or names too long for the tower
   */
  setClasses(tokens: Readonly<Partial<Record<LvTask, Tensor>>>): this {
    for (const [task, ids] of Object.entries(tokens) as [LvTask, Tensor][]) {
      const expected = this.settings.tasks[task];
      if (expected === undefined) throw new RangeError(`${this.name}: there is no task '${task}' here`);
      if (ids.ndim !== 2 || ids.shape[0] !== expected) {
        throw new RangeError(
          `${this.name}: task '${task}' has ${expected} classes, and the tokens are [${ids.shape.join(', ')}]`,
        );
      }
      const room = (this.text_encoder?.options.contextLength ?? Infinity) - this.settings.promptLength;
      if ((ids.shape[1] ?? 0) > room) {
        throw new RangeError(
          `${this.name}: names of ${ids.shape[1] ?? 0} tokens do not fit beside ${this.settings.promptLength} prompts; tokenize with a contextLength of at most ${room}`,
        );
      }
      this.#tokens.set(task, keep(ids));
    }
    return this;
  }

  /** Embeddings [K, D] of a task's classes. @throws Error before `setClasses` */
  encodeClasses(task: LvTask, ctx: Context = new Context()): Tensor {
    const ids = this.#tokens.get(task);
    if (!ids || !this.text_encoder || !this.prompts) {
      throw new Error(`${this.name}: the classes of task '${task}' are not known; call setClasses first`);
    }
    const prompts = this.prompts.of(task);
    return encodeWithContexts(this.text_encoder, ids.to(prompts.device), prompts, ctx);
  }

  /** Images [B, 3, H, W] to what every task finds. @throws Error before `setClasses` */
  outputs(images: Tensor, ctx: Context = new Context()): LvOutputs {
    const pyramid = this.adapter.fuse(this.backbone.forwardIntermediates(images, ctx), ctx);
    const logits: Partial<Record<LvTask, Tensor>> = {};
    for (const [task, head] of this.heads) {
      const levels = this.#withLanguage(task as LvTask, pyramid, ctx);
      logits[task as LvTask] = resize(head.segment(levels, ctx), sizeOf(images));
    }
    const detects = this.settings.tasks.det !== undefined;
    return { logits, detection: detects ? this.#withLanguage('det', pyramid, ctx) : [] };
  }

  /** The pyramid as a task sees it: with the context of its classes, if there is language. */
  #withLanguage(task: LvTask, pyramid: readonly Tensor[], ctx: Context): Tensor[] {
    const language = this.lv.get(task);
    if (!language) return [...pyramid];
    const text = this.encodeClasses(task, ctx);
    return pyramid.map((map) => map.add(language.context(map, text, ctx)));
  }

  /**
   * Images to the logits [B, K, H, W] of the first task that labels pixels; `outputs` gives all.
   *
   * @throws TypeError when there is only detection
   */
  forward(images: Tensor, ctx: Context = new Context()): Tensor {
    const { logits } = this.outputs(images, ctx);
    const first = logits.sem ?? logits.driv;
    if (!first) throw new TypeError(`${this.name} labels no pixels; read outputs(images).detection`);
    return first;
  }

  /** The loss of each task whose labels [B, H, W] are given (255 does not count), and their sum. */
  losses(
    { logits }: LvOutputs,
    labels: Readonly<Partial<Record<'sem' | 'driv', Tensor>>>,
  ): { readonly perTask: Readonly<Partial<Record<'sem' | 'driv', Tensor>>>; readonly total: Tensor } {
    const perTask: Partial<Record<'sem' | 'driv', Tensor>> = {};
    for (const task of ['sem', 'driv'] as const) {
      const [map, ids] = [logits[task], labels[task]];
      if (map && ids) perTask[task] = pixelCrossEntropy(map, ids);
    }
    const [first, ...rest] = Object.values(perTask);
    if (!first) throw new RangeError(`${this.name}: labels for at least one of its tasks are needed`);
    return { perTask, total: rest.reduce((sum, loss) => sum.add(loss), first) };
  }

  /** From files whose text tower has OpenAI's names, as DenseCLIP's have; the image tower's are those of its family. */
  override convertStateDict(state: ReadonlyMap<string, Tensor>): Map<string, Tensor> {
    return fromOfficial(state, this.backbone);
  }

  /** @throws TypeError always: the number of classes goes by the task; build a new model */
  resetClassifier(): never {
    throw new TypeError(`${this.name} has a head for each task; build one with other classes`);
  }
}

const STRIDES = [4, 8, 16, 32] as const;
