/** InternImage, its layer, its deformable convolution and the bare operator. */
import { type Backbone, createCustomModel } from '../../../lib/models/index.js';
import { DeformConv, InternLayer } from '../../../lib/models/internimage_blocks.js';
import { type ActivationName, Context, dcnv3, type Module } from '../../../lib/nn/index.js';
import type { Tensor } from '../../../lib/tensor/index.js';
import { type Built, type Builder, Config, entriesOf, soleInput, UnknownCase } from '../builder.js';
import type { CountsRow, GoldenCase } from '../case.js';
import { countBackbone } from './backbone_counts.js';
import { isPyramid, pyramid } from './pyramid.js';
import { plain } from './timm_backbones.js';

/** A number that may stand as text, or nothing. */
function numberOf(value: unknown): number | null {
  return value === null || value === 'None' || value === undefined ? null : Number(value);
}

const activation = (config: Config): ActivationName => config.get('act_layer', 'GELU').toLowerCase() as ActivationName;

function operator(config: Config): Built {
  // What the inputs show.
  config.ignore('group_channels', 'points', 'height_out', 'width_out', 'offsets', 'mask');
  const both = (name: string): [number, number] => [config.get(`${name}_h`), config.get(`${name}_w`)];
  const options = {
    kernel: both('kernel'),
    stride: both('stride'),
    padding: both('pad'),
    dilation: both('dilation'),
    groups: config.get<number>('group'),
    offsetScale: config.get<number>('offset_scale', 1),
    removeCenter: Boolean(config.get<boolean | number>('remove_center', false)),
  };
  const run: Built['run'] = (inputs) => {
    const [x, offset, mask] = ['input', 'offset', 'mask'].map((name) => inputs.get(name)) as [Tensor, Tensor, Tensor];
    return { y: dcnv3(x, offset, mask, options) };
  };
  return { state: new Map(), run };
}

function convolution(config: Config): Module {
  return new DeformConv({
    channels: config.get('channels'),
    groups: config.get('group'),
    kernelSize: config.get('kernel_size', 3),
    dwKernelSize: config.get<number | null>('dw_kernel_size', null),
    stride: config.get('stride', 1),
    padding: config.get('pad', 1),
    dilation: config.get('dilation', 1),
    offsetScale: config.get('offset_scale', 1),
    activation: activation(config),
    norm: config.get('norm_layer', 'LN'),
    centerFeatureScale: config.get('center_feature_scale', false),
    removeCenter: Boolean(config.get<boolean | number>('remove_center', false)),
  });
}

function layer(config: Config): Module {
  config.expect('core_op', 'DCNv3');
  return new InternLayer({
    channels: config.get('channels'),
    groups: config.get('groups'),
    mlpRatio: config.get('mlp_ratio', 4),
    drop: config.get('drop', 0),
    dropPath: config.get('drop_path', 0),
    activation: activation(config),
    norm: config.get('norm_layer', 'LN'),
    postNorm: config.get('post_norm', false),
    resPostNorm: config.get('res_post_norm', false),
    layerScale: numberOf(config.get<unknown>('layer_scale', null)),
    offsetScale: config.get('offset_scale', 1),
    dwKernelSize: config.get<number | null>('dw_kernel_size', null),
    centerFeatureScale: config.get('center_feature_scale', false),
    removeCenter: Boolean(config.get<boolean | number>('remove_center', false)),
    stage: 0,
    depth: 0,
  });
}

/** A module of maps whose case holds them with channels last. */
function channelsLast(module: Module): Built {
  const run: Built['run'] = (inputs) => {
    const map = soleInput(inputs).permute([0, 3, 1, 2]);
    return { y: module.run(map, new Context()).permute([0, 2, 3, 1]) };
  };
  return { module, state: entriesOf(module), run };
}

/** What the official code fixes and reduced cases state. */
function clipOf(config: Config): Record<string, number> | null {
  const sizes = new Config(config.get<Record<string, unknown>>('clip_sizes', {}));
  const clip = {
    embedDim: sizes.get('pretrain_embed_dim', 1024),
    stride: sizes.get('stride', 2),
    heads: sizes.get('attnpool_num_heads', 16),
    outDim: sizes.get('clip_embed_dim', 768),
  };
  sizes.done();
  return config.get('use_clip_projector', false) ? clip : null;
}

function network(config: Config): Backbone {
  config.expect('core_op', 'DCNv3').ignore('with_cp');
  const ids = config.get<number[] | null>('level2_post_norm_block_ids', null);
  return createCustomModel('internimage', {
    channels: config.get('channels'),
    depths: config.get('depths'),
    groups: config.get('groups'),
    numClasses: config.get('num_classes', 1000),
    mlpRatio: config.get('mlp_ratio', 4),
    dropRate: config.get('drop_rate', 0),
    dropPathRate: config.get('drop_path_rate', 0),
    activation: activation(config),
    norm: config.get('norm_layer', 'LN'),
    layerScale: numberOf(config.get<unknown>('layer_scale', null)),
    offsetScale: config.get('offset_scale', 1),
    postNorm: config.get('post_norm', false),
    resPostNorm: config.get('res_post_norm', false),
    clsScale: config.get('cls_scale', 1.5),
    dwKernelSize: config.get<number | null>('dw_kernel_size', null),
    level2PostNormIds: config.get('level2_post_norm', false) ? (ids ?? []) : null,
    centerFeatureScale: config.get('center_feature_scale', false),
    removeCenter: Boolean(config.get<boolean | number>('remove_center', false)),
    clip: clipOf(config),
  });
}

function build(golden: GoldenCase): Built {
  const config = new Config(golden.config);
  const kind = ['op', 'module', 'model'].find((key) => config.has(key));
  const name = kind === undefined ? '' : config.get<string>(kind);
  const make = (): Built => {
    if (name === 'dcnv3') return operator(config);
    if (name === 'DCNv3') return channelsLast(convolution(config));
    if (name === 'InternImageLayer') return channelsLast(layer(config));
    if (name.startsWith('InternImage'))
      return isPyramid(name, config) ? pyramid(network(config), config, golden) : plain(network(config));
    throw new UnknownCase(`no builder knows '${name}' of internimage`);
  };
  const built = make();
  config.done();
  if (name === 'InternImage' && golden.trainable) freezeOthers(built, new Set(golden.trainable));
  return built;
}

/** The reference froze some large convolutions, to store no gradients of their size; nothing but the list says which. */
function freezeOthers({ module }: Built, trained: ReadonlySet<string>): void {
  for (const [name, parameter] of module?.namedParameters() ?? []) {
    if (!trained.has(name) && parameter.ndim === 4) parameter.requiresGrad = false;
  }
}

function count(row: CountsRow): Record<string, number> {
  const { config: values, num_classes: classes } = row;
  const config = new Config({ ...(typeof values === 'string' ? {} : values), num_classes: classes ?? 1000 });
  return countBackbone(network(config), row);
}

export const internimage: Builder = { system: 'internimage', build, count };
