/** DenseCLIP: its parts alone, and whole, for segmentation and as the body of a detector. */
import type { DenseModel } from '../../../lib/heads/index.js';
import {
  type DetectionTarget,
  type EncoderDecoderOptions,
  FasterRcnn,
  Fpn,
  type FpnOptions,
  RetinaNet,
  type SegmentationHead,
} from '../../../lib/heads/index.js';
import { sizeOf } from '../../../lib/heads/conv_module.js';
import { clipTextOptions, ClipTextTransformer, openaiTextTransformer } from '../../../lib/models/index.js';
import { Context, Conv2d, ConvTranspose2d, type Module } from '../../../lib/nn/index.js';
import {
  boxScoreLoss,
  ContextDecoder,
  type ContextDecoderOptions,
  createDenseClip,
  createDenseClipDetector,
  DenseAttentionPool2d,
  DenseClip,
  type DenseClipEncoder,
  denseClipEncoder,
  denseClipKeyMap,
  DenseClipPyramid,
  encodeWithContexts,
  type PoolPositions,
  SCORE_MAP,
  TEXT_EMBEDDINGS,
} from '../../../lib/systems/index.js';
import { tensor, type Tensor } from '../../../lib/tensor/index.js';
import { type Built, type Builder, Config, entriesOf, entriesThrough, soleInput, UnknownCase } from '../builder.js';
import type { CountsRow, GoldenCase } from '../case.js';
import { vocabulary } from './clip.js';
import { extraLevels, headOf } from './dense_segmentation.js';

type Values = Readonly<Record<string, unknown>>;
type Inputs = Parameters<Built['run']>[0];

function input(inputs: Inputs, ...names: string[]): Tensor {
  const found = names.map((name) => inputs.get(name)).find((t) => t !== undefined);
  if (!found) throw new UnknownCase(`the case has no input '${names.join("' or '")}'`);
  return found;
}

/** Reads a config inside another one, completely. */
function within<T>(values: Values, read: (config: Config) => T): T {
  const config = new Config(values);
  const made = read(config);
  config.done();
  return made;
}

// ---- parts ----------------------------------------------------------------------------------------------------------

function attentionPool(config: Config): Built {
  const side = config.get<number>('spacial_dim');
  const channels = config.get<number>('embed_dim');
  const outDim = config.get<number | null>('output_dim', null) ?? channels;
  const positions = config.get<PoolPositions>('positions', 'resize');
  const pool = new DenseAttentionPool2d([side, side], channels, config.get('num_heads', 32), outDim, positions);
  return { module: pool, state: entriesOf(pool), run: (inputs) => ({ ...pool.dense(soleInput(inputs)) }) };
}

function decoderOptions(config: Config): ContextDecoderOptions {
  // What the official class accepts and does not read.
  config.ignore('type', 'visual_dim', 'outdim', 'style', 'context_length');
  return {
    width: config.get('transformer_width', 256),
    heads: config.get('transformer_heads', 4),
    layers: config.get('transformer_layers', 3),
    dropout: config.get('dropout', 0.1),
  };
}

function contextDecoder(config: Config): Built {
  const dim = config.get<number>('visual_dim');
  const module = new ContextDecoder(dim, decoderOptions(config));
  const run: Built['run'] = (inputs) => ({ y: module.refine(input(inputs, 'text'), input(inputs, 'visual')) });
  return { module, state: entriesOf(module), run };
}

function textTower(config: Config): ClipTextTransformer {
  config.ignore('type', 'style', 'out_dim');
  const sizes = {
    contextLength: config.get('context_length', 13),
    vocabSize: config.get('vocab_size', 49408),
    width: config.get('transformer_width', 512),
    heads: config.get('transformer_heads', 8),
    layers: config.get('transformer_layers', 12),
    embedDim: config.get('embed_dim'),
  };
  return new ClipTextTransformer(clipTextOptions.parse(sizes));
}

function textEncoder(config: Config): Built {
  const module = textTower(config);
  const run: Built['run'] = (inputs) => {
    const contexts = input(inputs, 'context', 'contexts');
    const y = encodeWithContexts(module, input(inputs, 'text', 'texts'), contexts);
    return { y: contexts.shape[0] === 1 ? y.unsqueeze(0) : y };
  };
  return { module, state: entriesThrough(module, openaiTextTransformer), run };
}

/** Positions of CLIP's towers at the size of ours, when they are loaded. */
function positionsOnLoad(config: Config): Built {
  const resolution = config.get<number>('input_resolution');
  const patch = config.get('patch_size', 32);
  config.expect('new_grid', Math.floor(resolution / patch)).ignore('old_grid', 'type');
  const run: Built['run'] = (inputs) => {
    const stored = input(inputs, 'positional_embedding');
    const [, width = 0] = stored.shape;
    const pool = (): DenseAttentionPool2d => {
      const side = Math.floor(resolution / patch);
      return new DenseAttentionPool2d([side, side], width, 1, width);
    };
    if (patch === 32) return { positional_embedding: pool().fitPositions(stored) };
    const visual = { patchSize: patch, width, layers: 4, heads: 1, outputDim: 1, outIndices: [0, 1, 2, 3] };
    const state = denseClipEncoder(visual, resolution).convertStateDict(
      new Map([
        ['class_embedding', stored.select(0, 0)],
        ['positional_embedding', stored],
      ]),
    );
    return { positional_embedding: (state.get('pos_embed') as Tensor).squeeze(0) };
  };
  return { state: new Map(), run };
}

function tokenizing({ config: values, folder }: GoldenCase): Built {
  return within(values, (config) => {
    const names = config.get<string[]>('class_names');
    const contextLength = config.get<number>('context_length');
    const tokenizer = vocabulary(folder);
    return { state: new Map(), run: () => ({ tokens: tokenizer.tokenize(names, { contextLength }) }) };
  });
}

// ---- whole ----------------------------------------------------------------------------------------------------------

function encoder(values: Values, positions: PoolPositions): DenseClipEncoder {
  return within(values, (config) => {
    const type = config.get<string>('type');
    config
      .expect('norm_eval', false)
      .expect('frozen_stages', -1)
      .expect('stem_norm', 'BN')
      .ignore('style', 'pretrained');
    const resolution = config.get('input_resolution', 224);
    const outputDim = config.get('output_dim', 512);
    const given = config.get<PoolPositions>('positions', positions);
    if (/^CLIPResNet/.test(type)) {
      const layers = config.get<number[]>('layers');
      return denseClipEncoder({ layers, width: config.get('width', 64), outputDim }, resolution, given);
    }
    if (!/^CLIPVisionTransformer/.test(type)) throw new UnknownCase(`no builder knows the backbone '${type}'`);
    config.expect('get_embeddings', true, false);
    return denseClipEncoder(
      {
        patchSize: config.get('patch_size', 16),
        width: config.get('width', 768),
        layers: config.get('layers', 12),
        heads: config.get('heads', 12),
        dropPathRate: config.get('drop_path_rate', 0),
        outIndices: config.get('out_indices', [3, 5, 7, 11]),
        outputDim,
      },
      resolution,
    );
  });
}

function neckOptions(values: Values): FpnOptions {
  return within(values, (config) => {
    config
      .expect('type', 'FPN')
      .expect('norm_cfg', null)
      .expect('act_cfg', null)
      .expect('end_level', -1)
      .expect('relu_before_extra_convs', false);
    return {
      inChannels: config.get('in_channels'),
      outChannels: config.get('out_channels', 256),
      numOuts: config.get('num_outs'),
      startLevel: config.get('start_level', 0),
      extra: extraLevels(config.get('add_extra_convs', false)),
    };
  });
}

function head(values: Values): SegmentationHead {
  const { type, ...rest } = values;
  return within({ head: type, ...rest }, headOf);
}

interface Language {
  readonly numClasses: number;
  readonly textTokens: number;
  readonly contexts: number;
  readonly contextDecoder: ContextDecoderOptions | null;
  readonly tau: number;
}

/** The keys that both forms share. */
function language(config: Config, text: ClipTextTransformer | null): Language {
  config
    .ignore('kind', 'type', 'clip_head', 'class_names', 'pretrained', 'train_cfg')
    .expect('context_feature', 'attention');
  const { contextLength, width, embedDim } = text?.options ?? {};
  if (text) config.expect('token_embed_dim', width).expect('text_dim', embedDim);
  else config.ignore('token_embed_dim', 'text_dim');
  const textTokens = config.get('text_tokens', config.get('context_length', 5));
  const decoder = config.get<Values | null>('context_decoder', null);
  return {
    // A baseline may leave it to its head.
    numClasses: config.get('num_classes', config.get<Values>('decode_head', {})['num_classes'] as number | undefined),
    textTokens,
    contexts: config.get('learnable_contexts', (contextLength ?? 0) - textTokens),
    contextDecoder: decoder && within(decoder, decoderOptions),
    tau: config.get('tau', 0.07),
  };
}

function textOf(config: Config): ClipTextTransformer | null {
  const values = config.get<Values | null>('text_encoder', null);
  return values && within(values, textTower);
}

function segmenter(config: Config): DenseClip {
  const text = textOf(config);
  const neck = config.get<Values | null>('neck', null);
  const auxiliary = config.get<Values | Values[] | null>('auxiliary_head', null);
  const identity = config.get<Values | null>('identity_head', null);
  const backbone = encoder(config.get('backbone'), 'resize');
  const heads: Omit<EncoderDecoderOptions, 'backbone'> = {
    decodeHead: head(config.get('decode_head')),
    ...(neck && { neck: new Fpn(neckOptions(neck)) }),
    ...(auxiliary && { auxiliaryHead: Array.isArray(auxiliary) ? auxiliary.map(head) : head(auxiliary) }),
  };
  return new DenseClip({
    ...language(config, text),
    ...heads,
    backbone,
    text,
    scoreLevel: config.get('score_concat_index', 3),
    embeddingsToHead: config.get('text_head', false),
    scoreLoss:
      identity &&
      within(identity, (c) => {
        c.ignore('type', 'in_channels', 'channels', 'num_classes', 'dropout_ratio');
        return { weight: c.get('loss_weight', 0.4), ignoreIndex: c.get('ignore_index', 255) };
      }),
  });
}

interface Windows {
  readonly crop: [number, number];
  readonly stride: [number, number];
}

function windowsOf(values: Values | null): Windows | null {
  if (values === null) return null;
  return within(values, (config) => {
    if (config.get<string>('mode') === 'whole') return null;
    return { crop: config.get('crop_size'), stride: config.get('stride') };
  });
}

function segmentation(config: Config): Built {
  const model = segmenter(config);
  const windows = windowsOf(config.get<Values | null>('test_cfg', null));
  const run: Built['run'] = (inputs) => {
    const texts = inputs.get('texts');
    if (texts) model.language?.setClasses(texts);
    const images = input(inputs, 'img', 'image');
    const labels = inputs.get('gt') ?? inputs.get('label');
    const ctx = new Context();
    if (labels) {
      const { losses, loss } = model.losses(images, labels, ctx);
      const { 'decode.loss_seg': decode, 'aux_identity.loss_seg': identity, ...more } = losses;
      const auxiliary = Object.entries(more).map(([name, t]) => [`loss_${name.replace('.loss_seg', '')}`, t] as const);
      return {
        loss_decode: decode as Tensor,
        ...(identity && { loss_identity: identity }),
        ...Object.fromEntries(auxiliary),
        loss_total: loss,
      };
    }
    const logits = model.run(images, ctx);
    return {
      logits,
      ...Object.fromEntries([...ctx.aux].filter(([name]) => name === SCORE_MAP || name === TEXT_EMBEDDINGS)),
      ...(windows && { slide_logits: model.logits(images, windows) }),
    };
  };
  return { module: model, state: entriesThrough(model, denseClipKeyMap(model.backbone)), run };
}

function targetsOf(config: Config): DetectionTarget[] {
  const boxes = config.get<number[][][]>('boxes', []);
  const labels = config.get<number[][]>('labels', []);
  return boxes.map((rows, i) => ({
    boxes: tensor(rows.flat(), { dtype: 'float32' }).reshape([rows.length, 4]),
    labels: tensor([...(labels[i] ?? [])], { dtype: 'int64' }),
  }));
}

function detection(config: Config): Built {
  const text = textOf(config);
  if (!text) throw new UnknownCase('a detector without a text encoder');
  const { inChannels, ...neck } = neckOptions(config.get('neck'));
  const backbone = encoder(config.get('backbone'), 'crop');
  const scoreLevel = config.get('score_concat_index', backbone.featureLevels.length - 1);
  const model = new DenseClipPyramid({ ...language(config, text), backbone, text, neck, scoreLevel });
  const widths = backbone.featureLevels.map(
    ({ channels }, i) => channels + (i === scoreLevel ? model.language.settings.numClasses : 0),
  );
  if (widths.join() !== inChannels.join())
    throw new UnknownCase(`the neck reads ${inChannels.join()}, given ${widths.join()}`);
  const targets = targetsOf(config);
  const run: Built['run'] = (inputs) => {
    model.language.setClasses(input(inputs, 'texts'));
    const images = input(inputs, 'img', 'image');
    const { levels, scores, text: embeddings } = model.guided(images);
    const logits = model.scoreLogits(scores, sizeOf(images));
    return {
      ...Object.fromEntries(levels.map((map, i) => [`p${i}`, map])),
      score_map: scores,
      score_map_upsampled: logits,
      text_embeddings: embeddings,
      ...(targets.length > 0 && { loss_seg: boxScoreLoss(logits, targets) }),
    };
  };
  return { module: model, state: entriesThrough(model, denseClipKeyMap(backbone)), run };
}

function build(golden: GoldenCase): Built {
  const config = new Config(golden.config);
  if (config.has('class_names') && !config.has('backbone')) return tokenizing(golden);
  const make = ((): ((c: Config) => Built) => {
    if (config.has('decode_head')) return segmentation;
    if (config.has('backbone')) return detection;
    if (config.has('spacial_dim')) return attentionPool;
    if (config.has('visual_dim')) return contextDecoder;
    if (config.has('old_grid')) return positionsOnLoad;
    if (config.has('vocab_size')) return textEncoder;
    throw new UnknownCase('the config is that of no part of DenseCLIP');
  })();
  const built = make(config);
  config.done();
  return built;
}

// ---- published sizes ------------------------------------------------------------------------------------------------

const sizeOfAll = (module: Module): number => module.parameters().reduce((sum, p) => sum + p.numel(), 0);

/** MMDetection's mask head and box regression, which the detectors here do not have: what they add to a Faster R-CNN. */
function maskBranch(numClasses: number, boxPredictor: Module): number {
  const convs = Array.from({ length: 4 }, () => new Conv2d(256, 256, { kernelSize: 3, padding: 1 }));
  const last = [
    new ConvTranspose2d(256, 256, { kernelSize: 2, stride: 2 }),
    new Conv2d(256, numClasses, { kernelSize: 1 }),
  ];
  // No box offsets for the background: four rows fewer.
  const perRow = sizeOfAll(boxPredictor.getModule('bbox_pred')) / (4 * (numClasses + 1));
  return [...convs, ...last].reduce((sum, layer) => sum + sizeOfAll(layer), 0) - 4 * perRow;
}

function count(row: CountsRow): Record<string, number> {
  const [, kind = '', size = ''] = /^(DenseCLIP|CLIP) (RN50|RN101|ViT-B\/16)/.exec(row.model) ?? [];
  if (size === '') throw new UnknownCase(`no builder knows '${row.model}'`);
  const classes = Array.from({ length: row.num_classes ?? 150 }, (_, i) => `class ${i}`);
  const isMask = /Mask R-CNN/.test(row.model);
  const isDetector = isMask || /RetinaNet/.test(row.model);
  const model: DenseModel = isDetector
    ? createDenseClipDetector(size, { classes, head: isMask ? 'faster_rcnn' : 'retinanet' })
    : createDenseClip(size, { classes, language: kind === 'DenseCLIP' });
  const extra = isMask ? maskBranch(classes.length, model.getModule('roi_heads.box_predictor')) : 0;
  const named = model.namedParameters();
  const sum = (list: typeof named): number => list.reduce((total, [, p]) => total + p.numel(), 0);
  const trained = named.filter(([, p]) => p.requiresGrad);
  const heads =
    model instanceof RetinaNet ? 'head.' : model instanceof FasterRcnn ? /^(rpn|roi_heads)\./ : 'decode_head.';
  const isHead = (name: string): boolean => (typeof heads === 'string' ? name.startsWith(heads) : heads.test(name));
  return {
    total_parameters: sum(named) + extra,
    trainable_parameters: sum(trained) + extra,
    trainable_without_head: sum(trained.filter(([name]) => !isHead(name))),
  };
}

export const denseClip: Builder = { system: 'dense_clip', build, count };
