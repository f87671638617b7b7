/** C-GhostNet, Ghost-ResNet, G-Ghost-RegNet and their modules. */
import { GGhostStage } from '../../../lib/models/g_ghost_regnet.js';
import { GhostConv } from '../../../lib/models/ghost_resnet.js';
import { GhostBottleneck, GhostModule } from '../../../lib/models/ghostnet.js';
import { type Backbone, createCustomModel, createModel } from '../../../lib/models/index.js';
import { Context } from '../../../lib/nn/index.js';
import type { Tensor } from '../../../lib/tensor/index.js';
import { bare, type Built, type Builder, Config, entriesOf, soleInput, UnknownCase } from '../builder.js';
import type { CountsRow, GoldenCase } from '../case.js';
import { countBackbone } from './backbone_counts.js';
import { plain, published } from './timm_backbones.js';

function ghostModule(config: Config): Built {
  const module = new GhostModule(config.get('inp'), config.get('oup'), {
    kernelSize: config.get('kernel_size', 1),
    ratio: config.get('ratio', 2),
    cheapKernel: config.get('dw_size', 3),
    stride: config.get('stride', 1),
    relu: config.get('relu', true),
  });
  return bare(module);
}

function ghostBottleneck(config: Config): Built {
  const module = new GhostBottleneck({
    inChannels: config.get('in_chs'),
    midChannels: config.get('mid_chs'),
    outChannels: config.get('out_chs'),
    kernelSize: config.get('dw_kernel_size', 3),
    stride: config.get('stride', 1),
    seRatio: config.get('se_ratio', 0),
  });
  return bare(module);
}

function ghostConv(config: Config): Built {
  // `bias` is an argument of the official module that its convolutions do not listen to.
  config.ignore('bias');
  const module = new GhostConv(config.get('in_channels'), config.get('out_channels'), {
    kernelSize: config.get('kernel_size'),
    cheapKernel: config.get('dw_size', 3),
    ratio: config.get('ratio', 4),
    stride: config.get('stride', 1),
    padding: config.get('padding', 0),
  });
  return bare(module);
}

function gGhostStage(config: Config): Built {
  const stage = new GGhostStage({
    inChannels: config.get('inplanes'),
    planes: config.get('planes'),
    groupWidth: config.get('group_width'),
    blocks: config.get('blocks'),
    stride: config.get('stride', 1),
    cheapRatio: config.get('cheap_ratio', 0.5),
  });
  config.expect('raw_planes', stage.rawPlanes).expect('cheap_planes', stage.cheapPlanes);
  config.expect('groups_base', stage.base.conv2.groups);
  config.expect('groups_inner', stage.layers.getModule('0.conv2').siteTag?.groups);
  return bare(stage);
}

function ghostNet(config: Config): Backbone {
  config.expect('cfgs_columns', ['k', 'exp', 'out', 'se_ratio', 'stride']);
  return createCustomModel('ghostnet', {
    ...(config.has('cfgs') && { stages: config.get('cfgs') }),
    width: config.get('width', 1),
    numClasses: config.get('num_classes', 1000),
    dropRate: config.get('dropout', 0.2),
  });
}

/** Cases of the whole network enter behind the stem, whose tensors are then in the file in vain. */
function ghostResnet(config: Config): Built {
  const enter = config.get<string>('enter', 'image');
  const model = createCustomModel('ghost_resnet', {
    layers: config.get('layers'),
    ...(config.has('stage_planes') && { channels: config.get('stage_planes') }),
    stemChannels: config.get('stem_width', 64),
    numClasses: config.get('num_classes', 1000),
    ratio: config.get('s', 4),
    cheapKernel: config.get('d', 3),
  });
  if (enter === 'image') return plain(model);
  if (!enter.startsWith('after the stem max-pool')) throw new UnknownCase(`the config enters '${enter}'`);
  for (const path of ['conv1', 'bn1']) model.getModule(path).freeze();
  const run = (inputs: ReadonlyMap<string, Tensor>): Record<string, Tensor> => {
    const ctx = new Context();
    const parts = model.namedChildren().filter(([name]) => name.startsWith('layer'));
    const features = parts.reduce((y, [, stage]) => stage.run(y, ctx), soleInput(inputs));
    return { y: model.forwardHead(features, ctx) };
  };
  return { module: model, state: entriesOf(model), run };
}

function gGhostRegnet(config: Config): Backbone {
  return createCustomModel('g_ghost_regnet', {
    layers: config.get('layers'),
    widths: config.get('widths'),
    groupWidth: config.get('group_width'),
    numClasses: config.get('num_classes', 1000),
    dropRate: config.get('dropout', 0.2),
    cheapRatio: config.get('cheap_ratio', 0.5),
  });
}

const MAKERS: Readonly<Record<string, (config: Config) => Built>> = {
  CGhostModule: ghostModule,
  CGhostBottleneck: ghostBottleneck,
  GhostResNetModule: ghostConv,
  GGhostStage: gGhostStage,
  CGhostNet: (config) => plain(ghostNet(config)),
  GhostResNet: ghostResnet,
  GGhostRegNet: (config) => plain(gGhostRegnet(config)),
};

function build(golden: GoldenCase): Built {
  const config = new Config(golden.config);
  const name = config.get<string>(config.has('module') ? 'module' : 'model');
  const make = MAKERS[name];
  if (!make) throw new UnknownCase(`no builder knows '${name}' of ghostnet`);
  const built = make(config);
  config.done();
  return { ...built, run: (inputs) => ({ ...built.run(inputs), ...statistics(built) }) };
}

/** Buffers as outputs: cases in training mode compare them after the pass. */
function statistics({ module }: Built): Record<string, Tensor> {
  return Object.fromEntries((module?.namedBuffers() ?? []).map(([name, buffer]) => [`after.${name}`, buffer]));
}

function count(row: CountsRow): Record<string, number> {
  const { model, config: values, num_classes: numClasses } = row;
  const config = new Config(typeof values === 'string' ? {} : values);
  const classes = { numClasses: numClasses ?? 1000 };
  if (model === 'c_ghostnet')
    return countBackbone(createCustomModel('ghostnet', { width: config.get('width', 1), ...classes }), row);
  if (model === 'ghost_resnet50') {
    const options = { ratio: config.get<number>('s', 4), cheapKernel: config.get<number>('d', 3), ...classes };
    return countBackbone(createModel('ghost_resnet50', options), row);
  }
  return countBackbone(published(model, classes.numClasses), row);
}

export const ghostnet: Builder = { system: 'ghostnet', build, count };
