/** Plain backbones: ResNet, VisionTransformer, and the resampling of position embeddings. */
import {
  type Backbone,
  createCustomModel,
  createModel,
  listModels,
  resamplePosEmbed,
  timmBitNames,
} from '../../../lib/models/index.js';
import { Parameter } from '../../../lib/nn/index.js';
import { empty } from '../../../lib/tensor/index.js';
import { type Built, type Builder, Config, entriesOf, entriesThrough, soleInput, UnknownCase } from '../builder.js';
import type { CountsRow, GoldenCase } from '../case.js';
import { swinOf } from './swin.js';

/** timm's ResNet arguments to our options. */
export function resnetOf(config: Config): Backbone {
  config
    .expect('output_stride', 32)
    .expect('block_reduce_first', 1)
    .expect('down_kernel_size', 1)
    .expect('zero_init_last', true, false);
  return createCustomModel('resnet', {
    block: config.get('block'),
    layers: config.get('layers'),
    channels: config.get('channels'),
    numClasses: config.get('num_classes'),
    inChans: config.get('in_chans', 3),
    stemType: config.get('stem_type', ''),
    // timm uses the width for deep stems only; a plain stem always has 64 channels.
    stemWidth: config.get('stem_width', 64),
    avgDown: config.get('avg_down', false),
    cardinality: config.get('cardinality', 1),
    baseWidth: config.get('base_width', 64),
    bnEps: config.get('bn_eps', 1e-5),
    bnMomentum: config.get('bn_momentum', 0.1),
    globalPool: config.get('global_pool', 'avg'),
    dropRate: config.get('drop_rate', 0),
    dropPathRate: config.get('drop_path_rate', 0),
  });
}

/** timm's VisionTransformer arguments to our options. */
export function vitOf(config: Config): Backbone {
  config.expect('qk_norm', false).expect('proj_bias', true).expect('final_norm', true).expect('pos_embed', 'learn');
  return createCustomModel('vit', {
    imgSize: config.get('img_size'),
    patchSize: config.get('patch_size'),
    inChans: config.get('in_chans', 3),
    embedDim: config.get('embed_dim'),
    depth: config.get('depth'),
    numHeads: config.get('num_heads'),
    mlpRatio: config.get('mlp_ratio', 4),
    qkvBias: config.get('qkv_bias', true),
    numClasses: config.get('num_classes'),
    classToken: config.get('class_token', true),
    globalPool: config.get('global_pool', 'token'),
    fcNorm: config.get<boolean | null>('fc_norm', null),
    normEps: config.get(config.has('layer_norm_eps') ? 'layer_norm_eps' : 'norm_eps', 1e-6),
    preNorm: config.get('pre_norm', false),
    patchNorm: config.get('patch_norm', false),
    initValues: config.get<number | null>('init_values', null),
    regTokens: config.get('reg_tokens', 0),
    noEmbedClass: config.get('no_embed_class', false),
    dynamicImgSize: config.get('dynamic_img_size', false),
    dropRate: config.get('drop_rate', 0),
    dropPathRate: config.get(config.has('drop_path') ? 'drop_path' : 'drop_path_rate', 0),
  });
}

/** A whole backbone under its own names. */
export function plain(model: Backbone): Built {
  return { module: model, state: entriesOf(model), run: (inputs) => ({ y: model.run(soleInput(inputs)) }) };
}

/** timm's ResNetV2 arguments, in BiT's form, to our options. */
export function resnetv2Of(config: Config): Backbone {
  config.expect('preact', true).expect('stem_type', 'fixed', 'fixed_std').expect('bottle_ratio', 0.25).ignore('head');
  const [, eps = ''] = /eps (\S+)/.exec(config.get('conv', 'StdConv2d eps 1e-8')) ?? [];
  const [, groups = ''] = /(\d+) groups/.exec(config.get('norm', 'GroupNorm 32 groups')) ?? [];
  return createCustomModel('resnetv2', {
    layers: config.get('layers'),
    channels: config.get('channels', [256, 512, 1024, 2048]),
    widthFactor: config.get('width_factor', 1),
    stemChannels: config.get('stem_chs', 64),
    numClasses: config.get('num_classes'),
    inChans: config.get('in_chans', 3),
    normGroups: Number(groups),
    weightEps: Number(eps),
    globalPool: config.get('global_pool', 'avg'),
    dropRate: config.get('drop_rate', 0),
    dropPathRate: config.get('drop_path_rate', 0),
  });
}

/** A BiT network under timm's names, where the classifier is a convolution. */
const bit = (model: Backbone): Built => ({ ...plain(model), state: entriesThrough(model, timmBitNames) });

function resampling(config: Config): Built {
  const [rows, columns] = config.get<[number, number]>('old_grid');
  const prefixTokens = config.get('num_prefix_tokens', 1);
  const grids = config.get<[number, number][]>('new_grids');
  const interpolation = config.get<'bicubic' | 'bilinear'>('interpolation', 'bicubic');
  const antialias = config.get('antialias', true);
  const channels = config.get('embed_dim', 0);
  const posEmbed = new Parameter(empty([1, prefixTokens + rows * columns, channels]));
  const options = { oldGrid: [rows, columns], prefixTokens, interpolation, antialias } as const;
  return {
    state: new Map([['pos_embed', { tensor: posEmbed }]]),
    run: () =>
      Object.fromEntries(grids.map((grid) => [`to_${grid.join('x')}`, resamplePosEmbed(posEmbed, grid, options)])),
  };
}

function build(golden: GoldenCase): Built {
  // The width of the embeddings stands in the outputs' shapes only.
  const channels = Object.values(golden.outputs ?? {})[0]?.at(-1);
  const config = new Config(golden.config);
  const module = config.get<string>('module');
  const make = {
    ResNet: () => plain(resnetOf(config)),
    VisionTransformer: () => plain(vitOf(config)),
    SwinTransformer: () => plain(swinOf(config)),
    ResNetV2: () => bit(resnetv2Of(config)),
  }[module];
  if (make === undefined && module !== 'resample_abs_pos_embed')
    throw new UnknownCase(`no builder knows the module '${module}' of timm_backbones`);
  const built = make ? make() : resampling(new Config({ ...golden.config, embed_dim: channels }));
  if (make) config.done();
  return built;
}

const SIZES: Readonly<Record<string, string>> = { T: 'tiny', S: 'small', B: 'base', L: 'large', H: 'huge' };

/** timm's name of a model that a row calls as papers do: `ViT-B/16`, `Swin-B patch4 window7 224`. Others stay. */
export function publishedName(text: string): string {
  const [, size = '', patch = ''] = /^ViT-([TSBLH])\/(\d+)/.exec(text) ?? [];
  if (patch !== '') return `vit_${SIZES[size] ?? size}_patch${patch}_224`;
  const [, swin = '', rest = ''] = /^Swin-([TSBL])\b ?(.*)$/.exec(text) ?? [];
  return swin === '' ? text : `swin_${SIZES[swin] ?? swin}_${(rest || 'patch4 window7 224').replaceAll(' ', '_')}`;
}

/** A published model, or UnknownCase when the registry has none of that name. */
export function published(name: string, numClasses: number, options: Record<string, unknown> = {}): Backbone {
  if (!listModels().includes(name)) throw new UnknownCase(`no model is called '${name}'`);
  return createModel(name, { ...options, numClasses });
}

/** Numbers of elements: of all parameters, of the trained ones, and of those outside the classifier. */
export function countParameters(
  model: Backbone,
): Record<'total_parameters' | 'trainable_parameters' | 'trainable_without_head', number> {
  const counts = { total_parameters: 0, trainable_parameters: 0, trainable_without_head: 0 };
  for (const [name, parameter] of model.namedParameters()) {
    const size = parameter.numel();
    counts.total_parameters += size;
    if (!parameter.requiresGrad) continue;
    counts.trainable_parameters += size;
    if (!name.startsWith(`${model.classifier}.`)) counts.trainable_without_head += size;
  }
  return counts;
}

const count = (row: CountsRow): Record<string, number> =>
  countParameters(published(row.model, row.num_classes ?? 1000));

export const timmBackbones: Builder = { system: 'timm_backbones', build, count };
