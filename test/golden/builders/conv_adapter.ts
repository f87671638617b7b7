/** Conv-Adapter: its modules, and its official classifiers with every method and scheme. */
import { type Adapter, ConvAdapter, ConvAdapterDesign1, graft, LinearAdapter } from '../../../lib/adapters/index.js';
import type { KeyMap } from '../../../lib/checkpoint/index.js';
import {
  bitBodyNames,
  bitUnitPath,
  ClipResNet,
  createCustomModel,
  OFFICIAL_CONVNEXT_NAMES,
  ResNet,
  ResNetV2,
  type Backbone,
} from '../../../lib/models/index.js';
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
  /** Whether the official code accepts the method `prompt` here and then sets nothing in. */
  readonly withoutPrompt?: boolean;
  /** From the names that the method gives its tensors to those on this host. Default: the same. */
  readonly graft?: (official: string) => string;
  /** Adds what the checkpoints hold besides. */
  readonly complete?: (built: Built, model: Backbone) => Built;
}

interface BitStage {
  readonly units: number;
  readonly cmid: number;
  readonly cout: number;
  readonly stride: number;
}

/** What the official BiT has otherwise than timm's. */
const BIT = { weightEps: 1e-10, projection: 'needed' } as const;

/** The classifier, which all official models have as `head.linear`. */
const headNames = (own: string): KeyMap => [{ kind: 'rename', from: 'head.linear.{leaf}', to: `${own}.{leaf}` }];

function headOptions(config: Config): { numClasses: number; dropRate: number } {
  return { numClasses: config.get('num_classes'), dropRate: config.get('head_dropout', 0.2) };
}

function layersOf(model: Backbone): readonly number[] {
  return model instanceof ResNetV2 ? model.layers : [];
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
  resnetv2: {
    model: (config) => {
      const stages = config.get<BitStage[]>('stages');
      const each = (key: keyof BitStage): number[] => stages.map((stage) => stage[key]);
      return createCustomModel('resnetv2', {
        layers: each('units'),
        channels: each('cout'),
        midChannels: each('cmid'),
        strides: each('stride'),
        stemChannels: config.get('stem_width'),
        ...BIT,
        ...headOptions(config),
      });
    },
    keyMap: (model) => [...bitBodyNames(layersOf(model)), ...headNames('head.fc')],
    graft: (official) => official.replace(/^stages\.\d+\.blocks\.\d+/, bitUnitPath),
  },
  clip: {
    model: (config) =>
      createCustomModel('clip_resnet', {
        layers: config.get('layers'),
        width: config.get('width'),
        outputDim: config.get('output_dim'),
        heads: config.get('heads'),
        imgSize: config.get<number>('input_resolution'),
        downsampleBias: true,
        ...headOptions(config),
      }),
    keyMap: () => headNames('head'),
  },
  efficientnetv2: {
    model: (config) =>
      createCustomModel('efficientnet_v2', {
        stages: config.get<string[][]>('arch'),
        stemChannels: config.get('stem_size'),
        headChannels: config.get('num_features'),
        ...headOptions(config),
      }),
    keyMap: () => headNames('classifier'),
    withoutPrompt: true,
  },
  swin: {
    model: (config) => swinOf(config, 'microsoft'),
    keyMap: (model) => microsoftNames(asSwin(model), 'head.linear'),
    withoutPrompt: true,
    complete: (built, model) => withMicrosoftBuffers(built, asSwin(model)),
  },
};

/** The host of a case, which calls it such as `resnet (torchvision layout, bottleneck)`. */
function hostOf(backbone: string): HostCase {
  const [name = ''] = backbone.toLowerCase().split(/[^a-z0-9]/);
  const host = Object.hasOwn(HOSTS, name) ? HOSTS[name] : undefined;
  if (!host) throw new UnknownCase(`no builder knows the backbone '${backbone}' of conv_adapter`);
  return host;
}

function adapt(
  model: Backbone,
  config: Config,
  { finalNorm = false, withoutPrompt = false }: Partial<HostCase>,
): Adapter {
  const given = config.get<string>('method');
  // What is trained then is what `linear` trains.
  const method = given === 'prompt' && withoutPrompt ? 'linear' : given;
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
  const adapter = adapt(model, config, {});
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
  const isChain = /^convnext/i.test(backbone) && (config.get<number | null>('num_classes', null) ?? 0) === 0;
  const built = isChain ? chain(config) : classifier(hostOf(backbone), config);
  config.done();
  return built;
}

function classifier(host: HostCase, config: Config): Built {
  const model = host.model(config);
  const adapter = adapt(model, config, host);
  const built = adapted(model, adapter, { keyMap: host.keyMap(model), ...(host.graft && { graft: host.graft }) });
  return host.complete?.(built, model) ?? built;
}

/** Models that the official code calls otherwise, or has in another form. */
const PUBLISHED: Readonly<Record<string, readonly [name: string, options: Record<string, unknown>]>> = {
  resnet50_bit_m: ['resnetv2_50x1_bit', BIT],
  // The official code builds the triple width under this name.
  resnet101_bit_m: ['resnetv2_50x3_bit', BIT],
  resnet50_clip: ['resnet50_clip', { downsampleBias: true }],
  resnet101_clip: ['resnet101_clip', { downsampleBias: true }],
  resnet50x4_clip: ['resnet50x4_clip', { downsampleBias: true }],
  tf_efficientnetv2_s: ['tf_efficientnetv2_s', { imgSize: 224 }],
  tf_efficientnetv2_m: ['tf_efficientnetv2_m', { imgSize: 224 }],
  tf_efficientnetv2_l: ['tf_efficientnetv2_l', { imgSize: 224 }],
};

function count(row: CountsRow): Record<string, number> {
  const config = new Config(typeof row.config === 'string' ? {} : row.config).ignore('note');
  // The same networks from other checkpoints.
  const plainName = row.model.replace(/_(in|im|imagenet)?(21k|22k)$|_(sup|mocov3|moco_v3|moco|swsl|ssl)$/, '');
  const [name, options] = PUBLISHED[row.model] ?? PUBLISHED[plainName] ?? [plainName, {}];
  const model = published(name, row.num_classes ?? 1000, options);
  const withoutPrompt = /^(swin|tf_efficientnet)/.test(name);
  const adapter = adapt(model, config, { finalNorm: model instanceof ResNet, withoutPrompt });
  config.done();
  const { plain_backbone_parameters: plain = NaN, ...figures } = countAdapted(model, adapter);
  const head = model.getModule(model.classifier).parameters();
  const ofRule = (...rules: string[]): number =>
    sum(adapter.grafts.filter(({ rule }) => rules.includes(rule)).flatMap(({ form }) => form.parameters()));
  return {
    ...figures,
    // The measured code lets every token of CLIP's attention pool ask, ours only the one whose answer is read.
    ...(model instanceof ClipResNet && { macs_limit: 1 }),
    tuning_module_parameters: ofRule('adapter', 'prompt'),
    backbone_parameters: plain - sum(head) + ofRule('norm'),
  };
}

const sum = (parameters: readonly { numel(): number }[]): number =>
  parameters.reduce((total, p) => total + p.numel(), 0);

export const convAdapter: Builder = { system: 'conv_adapter', build, count };
