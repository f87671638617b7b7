/** Conv-Adapter: its modules, and its official classifiers with every method and scheme. */
import { type Adapter, ConvAdapter, ConvAdapterDesign1, graft, LinearAdapter } from '../../../lib/adapters/index.js';
import type { KeyMap } from '../../../lib/checkpoint/index.js';
import { createCustomModel, OFFICIAL_CONVNEXT_NAMES, ResNet, type Backbone } from '../../../lib/models/index.js';
import type { Module } from '../../../lib/nn/index.js';
import { type Built, type Builder, Config, entriesOf, type Entry, soleInput, UnknownCase } from '../builder.js';
import type { CountsRow, GoldenCase } from '../case.js';
import { adapted, countAdapted } from './adapted.js';
import { convnextBlockOptions, convnextOf } from './convnext.js';
import { asSwin, microsoftNames, swinOf, withMicrosoftBuffers } from './swin.js';
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

/** A backbone of the official code. */
interface HostCase {
  readonly model: (config: Config) => Backbone;
  /** From the names of the official code to the model's; the classifier is `head.linear` there. */
  readonly keyMap: (model: Backbone) => KeyMap;
  /** Whether a new norm is set in after the last stage. */
  readonly finalNorm?: boolean;
  /** Adds what the checkpoints hold besides. */
  readonly complete?: (built: Built, model: Backbone) => Built;
}

const HOSTS: Readonly<Record<string, HostCase>> = {
  resnet: {
    model: (config) =>
      createCustomModel('resnet', {
        block: 'bottleneck',
        layers: config.expect('expansion', 4).get('layers'),
        channels: config.get('planes'),
        strides: config.get('strides'),
        stemChannels: config.get('stem_width'),
        numClasses: config.get('num_classes'),
        dropRate: config.get('head_dropout', 0.2),
      }),
    keyMap: () => [{ kind: 'rename', from: 'head.linear.{leaf}', to: 'fc.{leaf}' }],
    finalNorm: true,
  },
  convnext: {
    model: (config) => convnextOf(config, { dropRate: config.get('head_dropout', 0.2) }),
    keyMap: () => [{ kind: 'rename', from: 'head.linear.{leaf}', to: 'head.{leaf}' }, ...OFFICIAL_CONVNEXT_NAMES],
  },
  swin: {
    model: (config) => swinOf(config, 'microsoft'),
    keyMap: (model) => microsoftNames(asSwin(model), 'head.linear'),
    complete: (built, model) => withMicrosoftBuffers(built, asSwin(model)),
  },
};

/** The host of a case, which calls it such as `resnet (torchvision layout, bottleneck)`. */
function hostOf(backbone: string): HostCase {
  const [name = ''] = backbone.split(' ');
  const host = Object.hasOwn(HOSTS, name) ? HOSTS[name] : undefined;
  if (!host) throw new UnknownCase(`no builder knows the backbone '${backbone}' of conv_adapter`);
  return host;
}

function adapt(model: Backbone, config: Config, finalNorm: boolean): Adapter {
  const method = config.get<string>('method');
  const scheme = config.get<string | null>('scheme', null) ?? 'conv_par';
  const reduction = config.get<number | null>('adapt_size', null) ?? 8;
  const promptSize = config.get<number | null>('prompt_size', null) ?? 10;
  const imageSize = config.get('image_size', 224);
  return graft(model, 'conv_adapter', { variant: method, finalNorm, scheme, reduction, promptSize, imageSize });
}

/** The first of these keys that the config has, as a number; a list of one counts. */
function numberAt(config: Config, ...keys: string[]): number {
  const [key = keys.join(' or ')] = keys.filter((name) => config.has(name));
  const value = config.get<number | number[]>(key);
  return Array.isArray(value) ? (value[0] ?? NaN) : value;
}

/** ConvNeXt's scheme cases: a bare chain of equal blocks, called `0.`, `1.`, ... */
function chain(config: Config): Built {
  const model = createCustomModel('convnext', {
    ...convnextBlockOptions(config),
    depths: [numberAt(config, 'depth', 'depths', 'blocks', 'num_blocks')],
    dims: [numberAt(config, 'dim', 'dims')],
    numClasses: 0,
  });
  const adapter = adapt(model, config, false);
  const built = adapted(model, adapter, { keyMap: OFFICIAL_CONVNEXT_NAMES });
  const state = [...built.state].flatMap(([name, entry]): [string, Entry][] => {
    const [, own] = /^stages\.0\.(.+)$/.exec(name) ?? [];
    return own === undefined ? [] : [[own, entry]];
  });
  const run: Built['run'] = (inputs) => ({ y: model.getModule('stages.0.blocks').run(soleInput(inputs)) });
  return { ...built, state: new Map(state), run };
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
  const backbone = config.ignore('head').get<string>('backbone');
  const isChain = backbone.startsWith('convnext') && !config.has('num_classes');
  const built = isChain ? chain(config) : classifier(hostOf(backbone), config);
  config.done();
  return built;
}

function classifier(host: HostCase, config: Config): Built {
  const model = host.model(config);
  const adapter = adapt(model, config, host.finalNorm ?? false);
  const built = adapted(model, adapter, { keyMap: host.keyMap(model) });
  return host.complete?.(built, model) ?? built;
}

function count(row: CountsRow): Record<string, number> {
  const config = new Config(typeof row.config === 'string' ? {} : row.config).ignore('note');
  const model = published(row.model, row.num_classes ?? 1000);
  const adapter = adapt(model, config, model instanceof ResNet);
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
