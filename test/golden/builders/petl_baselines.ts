/** The standard methods of the ViT papers that this project has: linear probe, BitFit, LoRA. */
import { graft, type Adapter } from '../../../lib/adapters/index.js';
import type { Backbone } from '../../../lib/models/index.js';
import { type Built, type Builder, Config, entriesOf, UnknownCase } from '../builder.js';
import { configText, type CountsRow, type GoldenCase } from '../case.js';
import { adapted, blockName, countAdapted, type Naming, runBlock, singleBlock } from './adapted.js';
import { plain, published, publishedName, vitOf } from './timm_backbones.js';

const blockNaming: Naming = { backbone: blockName, graft: blockName };

/** q and v of every attention; the scale multiplies directly, dropout acts between the factors. */
function loraQv(config: Config): Record<string, unknown> {
  const rank = config.get<number>('bottleneck');
  const alpha = config.get('scale', 1) * rank;
  return { rank, alpha, dropout: config.get('dropout', 0), dropoutAt: 'rank', at: { role: ['q', 'v'] } };
}

const methods: Readonly<Record<string, { id: string; options: (config: Config) => Record<string, unknown> }>> = {
  linear: { id: 'linear_probe', options: () => ({}) },
  linear_probe: { id: 'linear_probe', options: () => ({}) },
  bitfit: { id: 'bitfit', options: () => ({}) },
  lora_qv: { id: 'lora', options: loraQv },
};

/** The backbone of a case: a whole model where the config gives an image size, else one block. */
function backboneOf(config: Config): { model: Backbone; single: boolean } {
  config.ignore('timm_version').expect('backbone', 'vit').expect('bits', 32).expect('head_bits', 32);
  const single = !config.has('img_size');
  return { model: single ? singleBlock(config, { dim: 'embed_dim', eps: 'norm_eps' }) : vitOf(config), single };
}

function build(golden: GoldenCase): Built {
  const config = new Config(golden.config);
  const name = config.get<string>('method');
  const method = Object.hasOwn(methods, name) ? methods[name] : undefined;
  if (!method) throw new UnknownCase(`no builder knows the method '${name}' of petl_baselines`);
  const { model, single } = backboneOf(config);
  const options = method.options(config);
  config.done();
  const adapter = graft(model, method.id, options, { head: single ? 'frozen' : 'train' });
  return single ? adapted(model, adapter, blockNaming, runBlock(model)) : adapted(model, adapter);
}

function buildMerged(golden: GoldenCase): Built {
  const { model, single } = backboneOf(new Config(golden.config));
  return single ? { module: model, state: entriesOf(model, blockName), run: runBlock(model) } : plain(model);
}

/** Rows name the backbone as `ViT-B/16` and say the method in words. */
function count(row: CountsRow): Record<string, number> {
  const text = configText(row);
  const name = publishedName(row.model);
  const lora = /^LoRA q,(k,)?v r=(\d+)/.exec(text);
  const adapt = (method: string, options = {}): Record<string, number> => {
    const model: Backbone = published(name, row.num_classes ?? 1000);
    const adapter: Adapter = graft(model, method, options);
    return countAdapted(model, adapter);
  };
  if (/^linear probe/i.test(text)) return adapt('linear_probe');
  if (/^bitfit/i.test(text)) return adapt('bitfit');
  // One pair of factors over the whole fused projection when k is adapted as well.
  if (lora) return adapt('lora', { rank: Number(lora[2]), at: lora[1] ? { name: 'qkv' } : { role: ['q', 'v'] } });
  throw new UnknownCase(`no builder knows the configuration '${text}' of petl_baselines`);
}

export const petlBaselines: Builder = { system: 'petl_baselines', build, buildMerged, count };
