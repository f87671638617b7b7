/** Conv-Adapter: its modules, and its official ResNet classifiers with every method and scheme. */
import { type Adapter, ConvAdapter, ConvAdapterDesign1, graft, LinearAdapter } from '../../../lib/adapters/index.js';
import { createCustomModel, type Backbone } from '../../../lib/models/index.js';
import type { Module } from '../../../lib/nn/index.js';
import { type Built, type Builder, Config, entriesOf, soleInput, UnknownCase } from '../builder.js';
import type { CountsRow, GoldenCase } from '../case.js';
import { adapted, countAdapted, type Naming } from './adapted.js';
import { published } from './timm_backbones.js';

const square = (side: number): [number, number] => [side, side];

/** The bare modules of the official file. */
const modules: Readonly<Record<string, (config: Config) => Module>> = {
  ConvAdapter: (config) => {
    config.expect('dilation', 1).expect('groups', config.get('width'));
    return new ConvAdapter(convolution(config));
  },
  ConvAdapterDesign1: (config) => {
    config.expect('norm', 'batchnorm').expect('dilation', 1);
    return new ConvAdapterDesign1({
      ...convolution(config),
      groups: config.get('groups', 1),
      scale: config.get('adapt_scale', 1),
    });
  },
  LinearAdapter: (config) => {
    config.ignore('layout');
    return new LinearAdapter(
      config.get('inplanes'),
      config.get('outplanes'),
      config.get('width'),
      config.get('act', 'relu'),
    );
  },
};

function convolution(config: Config): ConstructorParameters<typeof ConvAdapter>[0] {
  return {
    inChannels: config.get('inplanes'),
    outChannels: config.get('outplanes'),
    width: config.get('width'),
    kernel: square(config.get('kernel_size')),
    stride: square(config.get('stride', 1)),
    padding: square(config.get('padding', 0)),
    activation: config.get('act', 'relu'),
  };
}

function adaptResNet(model: Backbone, config: Config): Adapter {
  const method = config.get<string>('method');
  const scheme = config.get<string | null>('scheme', null) ?? 'conv_par';
  const reduction = config.get<number | null>('adapt_size', null) ?? 8;
  const promptSize = config.get<number | null>('prompt_size', null) ?? 10;
  const imageSize = config.get('image_size', 224);
  return graft(model, 'conv_adapter', { variant: method, finalNorm: true, scheme, reduction, promptSize, imageSize });
}

const naming: Naming = {
  backbone: (name) => name.replace(/^fc\./, 'head.linear.'),
};

function resnet(config: Config): Built {
  config.ignore('head').expect('expansion', 4);
  const model = createCustomModel('resnet', {
    block: 'bottleneck',
    layers: config.get('layers'),
    channels: config.get('planes'),
    strides: config.get('strides'),
    stemChannels: config.get('stem_width'),
    numClasses: config.get('num_classes'),
    dropRate: config.get('head_dropout', 0.2),
  });
  const adapter = adaptResNet(model, config);
  config.done();
  return adapted(model, adapter, naming);
}

function build({ config: values }: GoldenCase): Built {
  const config = new Config(values);
  if (config.has('module')) {
    const name = config.get<string>('module');
    const make = Object.hasOwn(modules, name) ? modules[name] : undefined;
    if (!make) throw new UnknownCase(`no builder knows the module '${name}' of conv_adapter`);
    const module = make(config);
    config.done();
    return { module, state: entriesOf(module), run: (inputs) => ({ y: module.run(soleInput(inputs)) }) };
  }
  const backbone = config.get<string>('backbone');
  if (!backbone.startsWith('resnet '))
    throw new UnknownCase(`no builder knows the backbone '${backbone}' of conv_adapter`);
  return resnet(config);
}

function count(row: CountsRow): Record<string, number> {
  const config = new Config(typeof row.config === 'string' ? {} : row.config).ignore('note');
  const model = published(row.model, row.num_classes ?? 1000);
  const adapter = adaptResNet(model, config);
  config.done();
  const { plain_backbone_parameters: plain = NaN, ...figures } = countAdapted(model, adapter);
  const head = model.getModule(model.classifier).parameters();
  const ofRule = (...rules: string[]): number =>
    sum(adapter.grafts.filter(({ rule }) => rules.includes(rule)).flatMap(({ form }) => form.parameters()));
  return {
    ...figures,
    tuning_module_parameters: ofRule('adapter', 'prompt'),
    backbone_parameters: plain - sum(head) + ofRule('norm'),
  };
}

const sum = (parameters: readonly { numel(): number }[]): number =>
  parameters.reduce((total, p) => total + p.numel(), 0);

export const convAdapter: Builder = { system: 'conv_adapter', build, count };
