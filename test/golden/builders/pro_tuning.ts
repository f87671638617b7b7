/** Pro-tuning: the bare prompt block, and networks with blocks between their stages. */
import { graft, PromptBlock, type PromptBlockOptions } from '../../../lib/adapters/index.js';
import { type Backbone, createCustomModel } from '../../../lib/models/index.js';
import { Context } from '../../../lib/nn/index.js';
import { type Built, type Builder, Config, entriesOf, soleInput, UnknownCase } from '../builder.js';
import type { CountsRow, GoldenCase } from '../case.js';
import { adapted, countAdapted, type Naming } from './adapted.js';
import { convnextOf } from './convnext.js';
import { swinOf } from './swin.js';
import { published, vitOf } from './timm_backbones.js';

function blockOf(config: Config): Omit<PromptBlockOptions, 'layout'> {
  return {
    groups: config.get('groups', 4),
    kernel: config.get('kernel_size', 5),
    seRatio: config.get('se_ratio', 16),
    se: config.get('se', 'multiply'),
  };
}

/** torchvision's ResNet, whose stem may have any width. */
function resnet(config: Config, block: string): Backbone {
  return createCustomModel('resnet', {
    block,
    layers: config.get('layers'),
    channels: config.get('planes'),
    stemChannels: config.get('stem_width', 64),
    numClasses: config.get('num_classes'),
    inChans: config.get('in_chans', 3),
    bnEps: config.get('bn_eps', 1e-5),
  });
}

/** The host is said in words: `resnet (torchvision layout, bottleneck)`. */
function backboneOf(config: Config): Backbone {
  const text = config.get<string>('backbone');
  if (text.startsWith('resnet')) return resnet(config, text.includes('basic') ? 'basic' : 'bottleneck');
  if (text.startsWith('vit')) return vitOf(config);
  if (text.startsWith('swin')) return swinOf(config);
  if (text.startsWith('convnext')) return convnextOf(config.without('kernel_size'));
  throw new UnknownCase(`no builder knows the backbone '${text}'`);
}

const naming: Naming = { backbone: (name) => `backbone.${name}` };

function build(golden: GoldenCase): Built {
  const config = new Config(golden.config);
  if (config.has('module')) {
    config.expect('module', 'ProBlock');
    const module = new PromptBlock(config.get('channels'), blockOf(config));
    config.done();
    // The bare block with its residual: y = x + beta p(x).
    const run: Built['run'] = (inputs) => {
      const x = soleInput(inputs);
      return { y: x.add(module.run(x, new Context())) };
    };
    return { module, state: entriesOf(module), run };
  }
  const model = backboneOf(config);
  const options = {
    ...blockOf(config),
    positions: config.get<string[] | null>('positions', null) ?? undefined,
    stages: config.get('stages', 4),
  };
  config.done();
  return adapted(model, graft(model, 'pro_tuning', options), naming);
}

function count(row: CountsRow): Record<string, number> {
  const config = new Config(typeof row.config === 'string' ? {} : row.config).ignore('widths');
  const options = { ...blockOf(config), positions: config.get<string[] | null>('positions', null) ?? undefined };
  config.done();
  const model = published(row.model, row.num_classes ?? 1000);
  return countAdapted(model, graft(model, 'pro_tuning', options));
}

export const proTuning: Builder = { system: 'pro_tuning', build, count };
