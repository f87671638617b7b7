/** Scale-and-shift tuning on vision transformers: whole models and single blocks, and their folded weights. */
import { graft, type Adapter } from '../../../lib/adapters/index.js';
import type { Backbone } from '../../../lib/models/index.js';
import { Parameter } from '../../../lib/nn/index.js';
import { empty } from '../../../lib/tensor/index.js';
import { type Built, type Builder, Config, entriesOf, soleInput, UnknownCase } from '../builder.js';
import type { CountsRow, GoldenCase } from '../case.js';
import { adapted, blockName, countAdapted, type Naming, runBlock, singleBlock } from './adapted.js';
import { plain, published, vitOf } from './timm_backbones.js';

const blockNaming: Naming = { backbone: blockName, graft: blockName };

function isBlock(config: Config): boolean {
  config.expect('backbone', 'vit').expect('tuning_mode', 'ssf').expect('act', 'gelu(erf)').expect('module', 'Block');
  return config.has('module');
}

function block(config: Config): Backbone {
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
  const single = isBlock(config);
  const model = single ? block(config) : vitOf(config);
  config.done();
  const adapter = graft(model, 'ssf', {}, { head: single ? 'frozen' : 'train' });
  return single ? adapted(model, adapter, blockNaming, runBlock(model)) : adapted(model, adapter);
}

/** The plain model; a pair that is left over follows the final features. */
function buildMerged(golden: GoldenCase, names: ReadonlySet<string>): Built {
  // Folding creates the bias that a layer lacked.
  const single = isBlock(new Config(golden.config));
  const bias = names.has(single ? 'attn.qkv.bias' : 'blocks.0.attn.qkv.bias');
  const config = new Config({ ...golden.config, qkv_bias: bias });
  if (single) {
    const model = block(config);
    return { module: model, state: entriesOf(model, blockName), run: runBlock(model) };
  }
  const model = vitOf(config);
  if (!names.has('ssf_scale_1')) return plain(model);
  const scale = new Parameter(empty([model.numFeatures]));
  const shift = new Parameter(empty([model.numFeatures]));
  return {
    module: model,
    state: new Map([...entriesOf(model), ['ssf_scale_1', { tensor: scale }], ['ssf_shift_1', { tensor: shift }]]),
    run: (inputs) => ({ y: model.forwardHead(model.forwardFeatures(soleInput(inputs)).mul(scale).add(shift)) }),
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

function ssfOn(name: string, classes: number): [Backbone, Adapter] {
  const model = published(name, classes);
  return [model, graft(model, 'ssf')];
}

function count(row: CountsRow): ReturnType<NonNullable<Builder['count']>> {
  const config = new Config(typeof row.config === 'string' ? {} : row.config).expect('tuning_mode', 'ssf');
  const name = row.model.replace(/_in21k$/, '');
  if (!config.has('per_task_trainable')) return countAdapted(...ssfOn(name, row.num_classes ?? 1000));
  const tasks = Object.keys(config.get<Record<string, number>>('per_task_trainable'));
  const counts = tasks.map((task) => {
    const classes = VTAB[task];
    if (classes === undefined) throw new UnknownCase(`'${task}' is no task of VTAB-1k`);
    return [task, countAdapted(...ssfOn(name, classes))] as const;
  });
  return {
    trainable_without_head: counts[0]?.[1]['trainable_without_head'] ?? NaN,
    per_task_trainable: Object.fromEntries(
      counts.map(([task, figures]) => [task, figures['trainable_parameters'] ?? NaN]),
    ),
  };
}

export const ssf: Builder = { system: 'ssf', build, buildMerged, count };
