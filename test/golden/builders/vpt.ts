/** Visual prompt tuning on vision transformers, MAE's among them, Swin, ResNet and ConvNeXt. */
import { graft, type Adapter, type HeadChoice } from '../../../lib/adapters/index.js';
import type { KeyMap } from '../../../lib/checkpoint/index.js';
import { createCustomModel, OFFICIAL_CONVNEXT_NAMES, type Backbone } from '../../../lib/models/index.js';
import { Context, type GraftSet, type Module, Parameter } from '../../../lib/nn/index.js';
import { empty, type Tensor } from '../../../lib/tensor/index.js';
import { type Built, type Builder, Config, type Entry, soleInput, UnknownCase } from '../builder.js';
import type { CountsRow, GoldenCase } from '../case.js';
import { adapted, countAdapted, headEntries } from './adapted.js';
import { convnextOf } from './convnext.js';
import { microsoftNames, swinOf, withMicrosoftBuffers } from './swin.js';
import { published } from './timm_backbones.js';

const LOCATIONS: Readonly<Record<string, string>> = {
  prepend: 'prepend',
  add: 'add',
  'add-1': 'add_1',
  'prepend-pixel': 'prepend_pixel',
  'prepend-pixel-gaussian': 'prepend_pixel_gaussian',
  'prepend-pixel-imgnettransform': 'prepend_pixel_normalized',
  pad: 'pad',
  below: 'below',
};

/** What `transfer_type` trains besides the prompts, or instead of them. */
const TRANSFER: Readonly<Record<string, { also?: string; frozen?: boolean }>> = {
  prompt: {},
  'prompt+bias': { also: 'bias' },
  'cls+prompt': { also: 'cls' },
  'prompt-noupdate': { frozen: true },
};

function known<T>(table: Readonly<Record<string, T>>, key: string): T {
  const value = Object.hasOwn(table, key) ? table[key] : undefined;
  if (value === undefined) throw new UnknownCase(`vpt knows ${Object.keys(table).join(', ')}, not '${key}'`);
  return value;
}

/** The section `prompt` of the official configuration as our options. */
function promptOptions(config: Config, pools: Readonly<Record<string, string>>): Record<string, unknown> {
  const prompt = new Config(config.get('prompt'));
  const layers = prompt.get<number | null>('NUM_DEEP_LAYERS', null);
  const location = known(LOCATIONS, prompt.get('LOCATION', 'prepend'));
  const isGaussian = prompt.get<string>('INITIATION', 'random') === 'gaussian';
  const deep = {
    deep: true,
    ...(layers !== null && { deepLayers: layers }),
    reverse: prompt.get('REVERSE_DEEP', false),
    deepShared: prompt.get('DEEP_SHARED', false),
    noExpand: prompt.get('FORWARD_DEEP_NOEXPAND', false) && layers !== null,
  };
  const ofTokens = {
    ...(prompt.get<boolean>('DEEP', false) && deep),
    project: Math.max(0, prompt.get('PROJECT', -1)),
    dropout: prompt.get('DROPOUT', 0),
  };
  // The official code has settings for all locations, and each heeds its own.
  const isToken = ['prepend', 'add', 'add_1'].includes(location);
  const options = {
    tokens: prompt.get('NUM_TOKENS', 5),
    location,
    ...(isToken && ofTokens),
    ...(['pad', 'below'].includes(location) && isGaussian && { initiation: 'gaussian' }),
    pool: known(pools, prompt.get('VIT_POOL_TYPE', 'original')),
    ...known(TRANSFER, config.get('transfer_type', 'prompt')),
  };
  prompt.done();
  return options;
}

const POOLS = { original: 'original', img_pool: 'img', prompt_pool: 'prompt', imgprompt_pool: 'imgprompt' };
/** MAE's own average includes the prompts. */
const MAE_POOLS = { ...POOLS, original: 'imgprompt' };

const QKV = ['query', 'key', 'value'];
const VIT_NAMES: readonly (readonly [RegExp, string])[] = [
  [/^cls_token$/, 'embeddings.cls_token'],
  [/^pos_embed$/, 'embeddings.position_embeddings'],
  [/^patch_embed\.proj\./, 'embeddings.patch_embeddings.'],
  [/^blocks\.(\d+)\.norm1\./, 'encoder.layer.$1.attention_norm.'],
  [/^blocks\.(\d+)\.norm2\./, 'encoder.layer.$1.ffn_norm.'],
  [/^blocks\.(\d+)\.attn\.proj\./, 'encoder.layer.$1.attn.out.'],
  [/^blocks\.(\d+)\.mlp\./, 'encoder.layer.$1.ffn.'],
  [/^norm\./, 'encoder.encoder_norm.'],
];

/** The official transformer's name of one of our ViT's tensors; `qkv` keeps its own, for `splitQkv`. */
function vitName(name: string): string {
  if (name.startsWith('head.')) return name.replace('head.', 'head.last_layer.');
  const [pattern, to] = VIT_NAMES.find(([known_]) => known_.test(name)) ?? [/^/, ''];
  return `enc.transformer.${name.replace(pattern, to)}`;
}

/** Three entries for each fused projection. */
function splitQkv(state: ReadonlyMap<string, Entry>): Map<string, Entry> {
  return new Map(
    [...state].flatMap(([name, entry]): [string, Entry][] => {
      const match = /^enc\.transformer\.blocks\.(\d+)\.attn\.qkv\.(\w+)$/.exec(name);
      if (!match) return [[name, entry]];
      const width = (entry.tensor.shape[0] ?? 0) / 3;
      return QKV.map((part, i) => [
        `enc.transformer.encoder.layer.${match[1] ?? ''}.attn.${part}.${match[2] ?? ''}`,
        { tensor: entry.tensor, view: (t: Tensor) => t.narrow(0, i * width, width) },
      ]);
    }),
  );
}

/** What enters a module during a pass of the model. */
function inputOf(model: Backbone, path: string, x: Tensor): Tensor {
  const module = model.getModule(path);
  const seen: Tensor[] = [];
  const { grafts } = module;
  const watch: GraftSet = {
    apply: (own: Module, input: Tensor, ctx: Context) => {
      seen.push(input);
      return grafts ? grafts.apply(own, input, ctx) : own.forward(input, ctx);
    },
    parameters: () => [],
    modules: () => [],
  };
  module.grafts = watch;
  model.run(x);
  module.grafts = grafts;
  return seen[0] as Tensor;
}

/** The model of a case with its prompts; the bare cases know no head. */
type Host = (config: Config, head: HeadChoice) => { model: Backbone; adapter: Adapter; built: Built };

const pairOf = (size: number | [number, number]): [number, number] => (typeof size === 'number' ? [size, size] : size);

function transformer(config: Config, head: HeadChoice, names: 'official' | 'mae' | 'moco'): ReturnType<Host> {
  const mae = names === 'mae';
  const timm = names !== 'official';
  const options = promptOptions(config, mae ? MAE_POOLS : POOLS);
  const size = pairOf(config.get('img_size'));
  const frame = options.location === 'pad' ? 2 * Number(options.tokens) : 0;
  config.ignore('head').expect('act', 'gelu(erf)').expect('qkv_bias', true);
  const dim = config.get<number>(timm ? 'embed_dim' : 'hidden_size');
  const model = createCustomModel('vit', {
    imgSize: [size[0] + frame, size[1] + frame],
    patchSize: config.get('patch_size'),
    embedDim: dim,
    depth: config.get(timm ? 'depth' : 'num_layers'),
    numHeads: config.get('num_heads'),
    mlpRatio: timm ? config.get('mlp_ratio') : config.get<number>('mlp_dim') / dim,
    normEps: config.get('layer_norm_eps'),
    numClasses: config.get('num_classes'),
    globalPool: mae ? 'avg' : 'token',
    projDropRate: config.get('dropout_rate', 0),
    posDropRate: config.get('dropout_rate', 0),
    attnDropRate: config.get('attention_dropout_rate', 0),
  });
  const adapter = graft(model, 'vpt', options, { head });
  if (timm) {
    const backbone = (name: string): string =>
      name.startsWith('head.') ? name.replace('head.', 'head.last_layer.') : `enc.${name}`;
    return { model, adapter, built: adapted(model, adapter, { backbone, graft: (name) => `enc.${name}` }) };
  }
  const below = options.location === 'below';
  const naming = {
    backbone: (name: string) => (below && name.startsWith('patch_embed.') ? null : vitName(name)),
    graft: (name: string) => `enc.transformer.${name.replace('conv1.', 'embeddings.patch_embeddings.')}`,
  };
  const built = adapted(model, adapter, naming);
  return { model, adapter, built: { ...built, state: splitQkv(built.state) } };
}

function resnet(config: Config, head: HeadChoice): ReturnType<Host> {
  const imageSize = pairOf(config.get('crop_size'));
  const options: Record<string, unknown> = { ...promptOptions(config, POOLS), imageSize };
  config.expect('expansion', 1, 4);
  const model = createCustomModel('resnet', {
    block: config.get('block'),
    layers: config.get('layers'),
    channels: config.get('planes'),
    stemChannels: config.get('stem_width'),
    bnEps: config.get('bn_eps', 1e-5),
    numClasses: config.get('num_classes'),
  });
  const adapter = graft(model, 'vpt', options, { head });
  const below = options.location === 'below';
  const naming = {
    backbone: (name: string) => {
      if (name.startsWith('fc.')) return name.replace('fc.', 'head.last_layer.');
      return below && /^(conv1|bn1)\./.test(name) ? null : `frozen_layers.${name}`;
    },
    graft: (name: string) => (name.startsWith('prompt_') ? name : `prompt_layers.${name}`),
  };
  return { model, adapter, built: adapted(model, adapter, naming) };
}

/** Parameters that the official Swin holds for nothing: a projection, and a table of the first stage without rows. */
function unusedParts(options: Record<string, unknown>, dim: number, blocks: number): [string, Entry][] {
  const { project = 0, deep = false, tokens } = options as { project?: number; deep?: boolean; tokens: number };
  const parameter = (...shape: number[]): Entry => ({ tensor: new Parameter(empty(shape)) });
  return [
    ...(project > 0
      ? ([
          ['enc.prompt_proj.weight', parameter(dim, project)],
          ['enc.prompt_proj.bias', parameter(dim)],
        ] as [string, Entry][])
      : []),
    ...(deep && blocks === 1
      ? ([['enc.deep_prompt_embeddings_0', parameter(0, tokens, dim)]] as [string, Entry][])
      : []),
  ];
}

function swin(config: Config, head: HeadChoice): ReturnType<Host> {
  const coupling = config.get<string>('batch_coupling', 'official');
  const given = promptOptions(config, POOLS);
  // The official code has the projection here, and never applies it.
  const options = { ...given, project: 0, batchCoupling: coupling };
  const model = swinOf(config, 'microsoft');
  const adapter = graft(model, 'vpt', options, { head });
  const keyMap: KeyMap = [
    ...['layers', 'patch_embed', 'norm'].map(
      (part) => ({ kind: 'rename', from: `enc.${part}.{rest...}`, to: `${part}.{rest...}` }) as const,
    ),
    { kind: 'rename', from: 'enc.absolute_pos_embed', to: 'absolute_pos_embed' },
    ...microsoftNames(model, 'head.last_layer'),
  ];
  const whole = adapted(model, adapter, { keyMap, graft: (name) => `enc.${name}` });
  const unused = unusedParts(given, model.patch_embed.proj.outChannels, config.get<number[]>('depths')[0] ?? 0);
  const built = { ...whole, state: new Map([...whole.state, ...unused]) };
  return { model, adapter, built: withMicrosoftBuffers(built, model, (name) => `enc.${name}`) };
}

/** The official code splits a ConvNeXt into numbered attributes. */
const SPLIT_CONVNEXT: KeyMap = [
  ...['1', '2', '3', '4'].flatMap((number, i) => [
    {
      kind: 'rename',
      from: `frozen_layers.downsample_layer${number}.{rest...}`,
      to: `downsample_layers.${i}.{rest...}`,
    } as const,
    { kind: 'rename', from: `frozen_layers.stage${number}.{rest...}`, to: `stages.${i}.{rest...}` } as const,
  ]),
  { kind: 'rename', from: 'head.last_layer.{leaf}', to: 'head.{leaf}' },
  ...OFFICIAL_CONVNEXT_NAMES,
];

function convnext(config: Config, head: HeadChoice): ReturnType<Host> {
  const imageSize = pairOf(config.get('crop_size'));
  const model = convnextOf(config);
  const adapter = graft(model, 'vpt', { ...promptOptions(config, POOLS), imageSize }, { head });
  return { model, adapter, built: adapted(model, adapter, { keyMap: SPLIT_CONVNEXT }) };
}

/** By the first pattern that a case's backbone fits: `vit_moco`, or the official code's `mocov3_vitb`, `imagenet_sup_rn50`. */
const HOSTS: readonly (readonly [name: RegExp, host: Host])[] = [
  [/resnet|rn\d/, resnet],
  [/moco/, (config, head) => transformer(config, head, 'moco')],
  [/mae/, (config, head) => transformer(config, head, 'mae')],
  [/^vit$/, (config, head) => transformer(config, head, 'official')],
  [/^swin$/, swin],
  [/^convnext$/, convnext],
];

/** A head with hidden layers stands in the place of the model's own. */
const headName = (leaf: string): string => `head.${leaf.replace(/^linear\./, 'last_layer.')}`;

function build({ config: values }: GoldenCase): Built {
  const config = new Config(values);
  const name = config.get<string>('backbone');
  const host = HOSTS.find(([pattern]) => pattern.test(name))?.[1];
  if (!host) throw new UnknownCase(`no builder knows the backbone '${name}' of vpt`);
  const output = config.get<string | null>('output', null);
  const hidden = config.get('MLP_NUM', 0);
  const deepHead: HeadChoice = hidden > 0 ? { classes: config.get('num_classes'), hidden } : 'train';
  const { model, adapter, built } = host(config, output === null ? deepHead : 'frozen');
  config.done();
  if (output === null) return { ...built, state: new Map([...built.state, ...headEntries(adapter, headName)]) };
  if (output.startsWith('padded image')) {
    const form = adapter.grafts[0]?.form;
    if (!form) throw new UnknownCase('the padded image is asked for, and no prompt makes one');
    return { ...built, run: (inputs) => ({ y: form.run(soleInput(inputs), new Context()) }) };
  }
  if (output.startsWith('token sequence')) {
    return { ...built, run: (inputs) => ({ y: inputOf(model, 'blocks.0', soleInput(inputs)) }) };
  }
  throw new UnknownCase(`no builder gives the output '${output}' of vpt`);
}

const VIT_SIZES: Readonly<Record<string, string>> = { t: 'tiny', s: 'small', b: 'base', l: 'large', h: 'huge' };
const CONV_SIZES: Readonly<Record<string, string>> = { t: 'tiny', s: 'small', b: 'base', l: 'large', xl: 'xlarge' };

/** Official model names of the rows, such as `sup_vitb16_imagenet21k`, `mocov3_vitb`, `Swin-B (...)`, to ours. */
function rowModel(model: string): string {
  const find = (pattern: RegExp): string[] => (pattern.exec(model) ?? []).slice(1).map((part) => part.toLowerCase());
  const [vit, patch = '16'] = find(/vit[ -]?([tsblh])(?![a-z])\/?(\d+|)/i);
  if (vit) return `vit_${VIT_SIZES[vit] ?? vit}_patch${patch || '16'}_224`;
  const [swin] = find(/^swin[-_]?([tsbl])(?=$|[^a-z]|imagenet)/i);
  if (swin) return `swin_${VIT_SIZES[swin] ?? swin}_patch4_window${/384/.test(model) ? '12_384' : '7_224'}`;
  const [convnext_] = find(/^convnext[-_]?(tiny|small|base|large|xlarge|xl|[tsbl])(?![a-z])/i);
  if (convnext_) return `convnext_${CONV_SIZES[convnext_] ?? convnext_}`;
  const [depth] = find(/(?:^resnet-?|_rn)(\d+)/i);
  if (depth) return `resnet${depth}`;
  throw new UnknownCase(`no builder knows the model '${model}' of vpt`);
}

function count(row: CountsRow): Record<string, number> {
  const config = new Config(typeof row.config === 'string' ? {} : row.config);
  config.ignore('task', 'prompt_length_source');
  const variant = config.get<string>('variant');
  const location = LOCATIONS[variant] ?? 'prepend';
  const project = Math.max(0, config.get('project', -1));
  const tokens = config.get<number>('num_tokens');
  const crop = config.get<number | null>('crop_size', null);
  config.done();
  const model = published(rowModel(row.model), row.num_classes ?? 1000);
  const [, height, width] = model.config.inputSize;
  const imageSize = ['pad', 'below'].includes(location) && { imageSize: [crop ?? height, crop ?? width] };
  const adapter = graft(model, 'vpt', { tokens, project, location, deep: variant === 'deep', ...imageSize });
  return countAdapted(model, adapter);
}

export const vpt: Builder = { system: 'vpt', build, count };
