/** Factor-tuning: whole vision transformers, and single sub-layers with the shared factors beside them. */
import { z } from 'zod';
import { defineMethod, fact as method, factRule, type FactOptions, graft } from '../../../lib/adapters/index.js';
import { createCustomModel, type Backbone } from '../../../lib/models/index.js';
import { Context } from '../../../lib/nn/index.js';
import { type Built, type Builder, Config, soleInput, UnknownCase } from '../builder.js';
import { configText, type CountsRow, type GoldenCase } from '../case.js';
import { adapted, blockName, countAdapted } from './adapted.js';
import { plain, published, publishedName, vitOf } from './timm_backbones.js';

function optionsOf(config: Config): Omit<FactOptions, 'at'> {
  return {
    variant: config.get('variant'),
    rank: config.get('rank'),
    scale: config.get('scale', 1),
    dropout: config.get('dropout', 0.1),
  };
}

/** One attention or MLP: that of a vision transformer of one block, whose grafts sit there only. */
function subLayer(config: Config): Built {
  const module = config.get<string>('module');
  if (module !== 'fact_attn' && module !== 'fact_mlp') throw new UnknownCase(`no builder knows the module '${module}'`);
  const part = module === 'fact_attn' ? 'attn' : 'mlp';
  const count = config.get<number | null>('num_slices', null);
  const first = config.get<number | null>('slice_index', null);
  const model = createCustomModel('vit', {
    ...{ imgSize: 1, patchSize: 1, numClasses: 1, depth: 1 },
    embedDim: config.get('embed_dim'),
    // An MLP's case has no heads.
    numHeads: config.get<number | null>('num_heads', null) ?? 1,
    mlpRatio: config.get('mlp_ratio', 4),
    qkvBias: config.get('qkv_bias', true),
  });
  const columns = count === null ? {} : { columns: { count, first: first ?? 0 } };
  const rule = factRule({ ...optionsOf(config), at: { role: 'linear', path: `blocks.0.${part}.*` }, ...columns });
  config.done();
  const { id, summary, paper, officialName } = method;
  const defaults = method.options.parse({});
  const single = defineMethod({
    ...{ id, summary, paper },
    options: z.strictObject({}),
    rules: () => [rule],
    officialName: (part) => officialName?.(part, defaults) ?? null,
  });
  const adapter = graft(model, single, {}, { head: 'frozen' });
  const name = (key: string): string | null => {
    const inBlock = key.startsWith('FacT') ? key : blockName(key);
    return inBlock?.startsWith('FacT') || inBlock?.startsWith(`${part}.`) ? inBlock : null;
  };
  return adapted(model, adapter, { backbone: name, graft: name }, (inputs) => ({
    y: model.getModule(`blocks.0.${part}`).run(soleInput(inputs), new Context()),
  }));
}

function backboneOf(config: Config): Backbone {
  return vitOf(config.ignore('timm_version').expect('backbone', 'vit').expect('pre_logits', false));
}

function build(golden: GoldenCase): Built {
  const config = new Config(golden.config);
  if (config.has('module')) return subLayer(config);
  const model = backboneOf(config);
  const options = optionsOf(config);
  config.done();
  return adapted(model, graft(model, method, { ...options }));
}

const buildMerged = (golden: GoldenCase): Built => plain(backboneOf(new Config(golden.config)));

/** Rows say `FacT-TT r=4`. */
function count(row: CountsRow): Record<string, number> {
  const [, variant = '', rank = ''] = /^FacT-(TT|TK) r=(\d+)/.exec(configText(row)) ?? [];
  if (variant === '') throw new UnknownCase(`no builder knows the configuration '${configText(row)}' of fact`);
  const model = published(publishedName(row.model), row.num_classes ?? 1000);
  const adapter = graft(model, method, { variant: variant.toLowerCase(), rank: Number(rank) });
  // The official code applies U anew for q, k and v, and the cores to every token.
  return { ...countAdapted(model, adapter), macs_limit: 1 };
}

export const fact: Builder = { system: 'fact', build, buildMerged, count };
