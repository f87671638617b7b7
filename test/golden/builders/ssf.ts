/** Scale-and-shift tuning: whole models and single blocks of vision transformers, and their folded weights. */
import { graft } from '../../../lib/adapters/index.js';
import { createCustomModel, SSF_CONVNEXT_NAMES, type Backbone } from '../../../lib/models/index.js';
import { Context, Parameter, scaleShift } from '../../../lib/nn/index.js';
import { empty, type Tensor } from '../../../lib/tensor/index.js';
import { type Built, type Builder, Config, entriesOf, entriesThrough, soleInput, UnknownCase } from '../builder.js';
import type { CountsRow, GoldenCase } from '../case.js';
import { adapted, blockName, countAdapted, type Naming, runBlock, singleBlock } from './adapted.js';
import { convnextOf } from './convnext.js';
import { asSwin, microsoftNames, swinOf, withMicrosoftBuffers } from './swin.js';
import { plain, published, vitOf } from './timm_backbones.js';

const blockNaming: Naming = { backbone: blockName, graft: blockName };

/** A backbone of the official code. */
interface HostCase {
  readonly model: (config: Config) => Backbone;
  readonly naming?: (model: Backbone) => Naming;
  /** Adds what the checkpoints hold besides. */
  readonly complete?: (built: Built, model: Backbone) => Built;
  /** A layer that folding gives a bias where it had none, and the key that says whether it has one. */
  readonly bias?: { readonly key: string; readonly name: string };
}

const HOSTS: Readonly<Record<string, HostCase>> = {
  vit: { model: vitOf, bias: { key: 'qkv_bias', name: 'blocks.0.attn.qkv.bias' } },
  swin: {
    model: (config) => swinOf(config.expect('ssf_on_patch_merging', false), 'microsoft'),
    naming: (model) => ({ keyMap: microsoftNames(asSwin(model)) }),
    complete: (built, model) => withMicrosoftBuffers(built, asSwin(model)),
    bias: { key: 'qkv_bias', name: 'layers.0.blocks.0.attn.qkv.bias' },
  },
  convnext: {
    // With the norm first, the official code runs it twice.
    model: (config) =>
      convnextOf(config.expect('ssf_on_downsample', false).expect('conv_mlp', false), {
        headNormFirst: config.get('head_norm_first', false) ? 'twice' : false,
      }),
    naming: () => ({ keyMap: SSF_CONVNEXT_NAMES }),
  },
  as_mlp: {
    model: asMlpOf,
    bias: { key: 'as_bias', name: 'layers.0.blocks.0.axial_shift.conv1.bias' },
  },
};

function asMlpOf(config: Config): Backbone {
  config
    .expect('norm', 'GroupNorm(1 group, eps 1e-5)')
    .expect('ssf_on_patch_embed', false)
    .expect('ssf_on_patch_merging', false);
  return createCustomModel('as_mlp', {
    imgSize: config.get('img_size'),
    patchSize: config.get('patch_size', 4),
    inChans: config.get('in_chans', 3),
    numClasses: config.get('num_classes'),
    embedDim: config.get('embed_dim'),
    depths: config.get('depths'),
    shiftSize: config.get('shift_size', 5),
    mlpRatio: config.get('mlp_ratio', 4),
    asBias: config.get('as_bias', true),
    patchNorm: config.get('patch_norm', true),
    dropRate: config.get('drop_rate', 0),
    dropPathRate: config.get('drop_path_rate', 0),
  });
}

function hostOf(config: Config): HostCase {
  const name = config.get<string>('backbone', 'vit');
  const host = Object.hasOwn(HOSTS, name) ? HOSTS[name] : undefined;
  if (!host) throw new UnknownCase(`no builder knows the backbone '${name}' of ssf`);
  return host;
}

/** What the official code calls its blocks. */
const BLOCK_CLASSES = ['Block', 'ConvNeXtBlock', 'AxialShiftedBlock'];

function isBlock(config: Config): boolean {
  config
    .expect('tuning_mode', 'ssf')
    .expect('act', 'gelu(erf)')
    .expect('module', ...BLOCK_CLASSES);
  return config.has('module');
}

/** Where the single block of a network stands that is built around it, and that network's width. */
interface BlockInNetwork {
  readonly path: string;
  readonly sizes: (dim: unknown) => Record<string, unknown>;
}

const BLOCKS: Readonly<Record<string, BlockInNetwork>> = {
  convnext: { path: 'stages.0.blocks.0', sizes: (dim) => ({ dims: [dim] }) },
  as_mlp: { path: 'layers.0.blocks.0', sizes: (dim) => ({ img_size: 8, embed_dim: dim }) },
};

/** A bare block of ConvNeXt or AS-MLP, out of the smallest network around it. */
function mapBlock(golden: GoldenCase, { path, sizes }: BlockInNetwork): Built {
  const { dim, ...rest } = golden.config;
  const config = new Config({ ...rest, num_classes: 1, depths: [1], ...sizes(dim) });
  isBlock(config);
  const host = hostOf(config);
  const model = host.model(config);
  config.done();
  const name = (full: string): string | null => (full.startsWith(`${path}.`) ? full.slice(path.length + 1) : null);
  return adapted(model, graft(model, 'ssf', {}, { head: 'frozen' }), { backbone: name, graft: name }, (inputs) => ({
    y: model.getModule(path).run(soleInput(inputs), new Context()),
  }));
}

function block(config: Config): Backbone {
  config.expect('backbone', 'vit');
  const model = singleBlock(config, { dim: 'dim', eps: 'layer_norm_eps' });
  return config.has('mlp_hidden') ? checkHidden(model, config.get('mlp_hidden')) : model;
}

function checkHidden(model: Backbone, hidden: number): Backbone {
  const width = model.getModule('blocks.0.mlp.fc1').siteTag?.out;
  if (width !== hidden)
    throw new UnknownCase(`mlp_ratio gives a hidden width of ${width ?? 0}, mlp_hidden is ${hidden}`);
  return model;
}

function build(golden: GoldenCase): Built {
  const config = new Config(golden.config);
  const host = hostOf(config);
  if (isBlock(config)) {
    const inNetwork = BLOCKS[config.get<string>('backbone', 'vit')];
    if (inNetwork) return mapBlock(golden, inNetwork);
    const model = block(config);
    config.done();
    return adapted(model, graft(model, 'ssf', {}, { head: 'frozen' }), blockNaming, runBlock(model));
  }
  const model = host.model(config);
  config.done();
  const built = adapted(model, graft(model, 'ssf'), host.naming?.(model));
  return host.complete?.(built, model) ?? built;
}

/** The plain model; a pair that is left over follows the final features. */
function buildMerged(golden: GoldenCase, names: ReadonlySet<string>): Built {
  const host = hostOf(new Config(golden.config));
  if (isBlock(new Config(golden.config))) {
    const model = block(new Config({ ...golden.config, qkv_bias: names.has('attn.qkv.bias') }));
    return { module: model, state: entriesOf(model, blockName), run: runBlock(model) };
  }
  // Folding creates the bias that a layer lacked.
  const { bias, naming, complete } = host;
  const model = host.model(new Config({ ...golden.config, ...(bias && { [bias.key]: names.has(bias.name) }) }));
  const keyMap = naming?.(model).keyMap;
  const alone = { ...plain(model), state: keyMap ? entriesThrough(model, keyMap) : entriesOf(model) };
  const whole = complete?.(alone, model) ?? alone;
  if (!names.has('ssf_scale_1')) return whole;
  const scale = new Parameter(empty([model.numFeatures]));
  const shift = new Parameter(empty([model.numFeatures]));
  const pair = (features: Tensor): Tensor => scaleShift(features, scale, shift, features.ndim === 4 ? 1 : -1);
  return {
    module: model,
    state: new Map([...whole.state, ['ssf_scale_1', { tensor: scale }], ['ssf_shift_1', { tensor: shift }]]),
    run: (inputs) => ({ y: model.forwardHead(pair(model.forwardFeatures(soleInput(inputs)))) }),
  };
}

/** Classes of the tasks of VTAB-1k. */
const VTAB: Readonly<Record<string, number>> = {
  cifar100: 100,
  caltech101: 102,
  dtd: 47,
  flowers102: 102,
  pets: 37,
  svhn: 10,
  sun397: 397,
  patch_camelyon: 2,
  eurosat: 10,
  resisc45: 45,
  diabetic_retinopathy: 5,
  clevr_count: 8,
  clevr_dist: 6,
  dmlab: 6,
  kitti: 4,
  dsprites_loc: 16,
  dsprites_ori: 16,
  smallnorb_azi: 18,
  smallnorb_ele: 9,
};

/** In the rows a head is all that is named `head.`, so that the pairs alone are without it. */
function countOn(name: string, classes: number): Record<string, number> {
  const model = published(name, classes);
  const adapter = graft(model, 'ssf');
  const pairs = adapter.grafts.flatMap(({ form }) => form.parameters());
  return { ...countAdapted(model, adapter), trainable_without_head: pairs.reduce((sum, p) => sum + p.numel(), 0) };
}

function count(row: CountsRow): ReturnType<NonNullable<Builder['count']>> {
  const config = new Config(typeof row.config === 'string' ? {} : row.config).expect('tuning_mode', 'ssf');
  // AS-MLP keeps the name that the official code of SSF gives it.
  const name = row.model
    .replace(/_(in21k|in22k|in22ft1k|22k|22kto1k)$/, '')
    .replace(/^convnext_(\w+?)_384$/, 'convnext_$1')
    .replace(/^as_(\w+)_patch4_window7_224\b.*$/, 'asmlp_$1_patch4_shift5_224');
  if (!config.has('per_task_trainable')) return countOn(name, row.num_classes ?? 1000);
  const tasks = Object.keys(config.get<Record<string, number>>('per_task_trainable'));
  const counts = tasks.map((task) => {
    const classes = VTAB[task];
    if (classes === undefined) throw new UnknownCase(`'${task}' is no task of VTAB-1k`);
    return [task, countOn(name, classes)] as const;
  });
  return {
    trainable_without_head: counts[0]?.[1]['trainable_without_head'] ?? NaN,
    per_task_trainable: Object.fromEntries(
      counts.map(([task, figures]) => [task, figures['trainable_parameters'] ?? NaN]),
    ),
  };
}

export const ssf: Builder = { system: 'ssf', build, buildMerged, count };
