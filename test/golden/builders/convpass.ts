/** Convolutional bypasses: the bare module, and vision transformers with them. */
import { type Adapter, ConvBypass, graft } from '../../../lib/adapters/index.js';
import { SwinTransformer } from '../../../lib/models/index.js';
import { Context } from '../../../lib/nn/index.js';
import { type Built, type Builder, Config, entriesOf, soleInput, UnknownCase } from '../builder.js';
import { configText, type CountsRow, type GoldenCase } from '../case.js';
import { adapted, countAdapted } from './adapted.js';
import { microsoftNames, swinOf, withMicrosoftBuffers } from './swin.js';
import { published, publishedName, vitOf } from './timm_backbones.js';

const WHERE: Readonly<Record<string, string>> = { convpass: 'both', convpass_attn: 'attention' };

/** The config's size, checks that it says of itself what we compute. */
function bypassOf(config: Config): { hidden: number; kernel: number; dropout: number } {
  const kernel = config.get('kernel_size', 3);
  config.expect('padding', (kernel - 1) / 2).expect('activation', 'quick_gelu(1.702)');
  return { hidden: config.get('bottleneck'), kernel, dropout: config.get('dropout', 0.1) };
}

/** The bare bypass, of maps without a class token where the config has no prefix tokens. */
function bypass(config: Config): Built {
  const module = new ConvBypass(config.get('embed_dim'), bypassOf(config));
  const grid = config.get<[number, number]>('grid');
  const prefixTokens = config.get('prefix_tokens', config.get<string>('module') === 'convpass_swin' ? 0 : 1);
  return {
    module,
    state: entriesOf(module, (name) => `adapter_${name}`),
    run: (inputs) => {
      const ctx = new Context();
      ctx.grid = grid;
      ctx.prefixTokens = prefixTokens;
      return { y: module.run(soleInput(inputs), ctx) };
    },
  };
}

function build(golden: GoldenCase): Built {
  const config = new Config(golden.config);
  if (config.has('module')) {
    config.expect('module', 'convpass_vit', 'convpass_swin');
    const built = bypass(config);
    config.done();
    return built;
  }
  const where = WHERE[config.get<string>('method')];
  if (where === undefined) throw new UnknownCase(`no builder knows the method '${config.get<string>('method')}'`);
  config.ignore('timm_version', 'grid').expect('backbone', 'vit', 'swin').expect('pre_logits', false);
  const model = config.get<string>('backbone', 'vit') === 'swin' ? swinOf(config, 'microsoft') : vitOf(config);
  const options = { ...bypassOf(config), scale: config.get('scale', 1), where };
  config.done();
  const adapter = graft(model, 'convpass', options);
  if (!(model instanceof SwinTransformer)) return adapted(model, adapter);
  return withMicrosoftBuffers(adapted(model, adapter, { keyMap: microsoftNames(model) }), model);
}

/** Rows name the backbone as `ViT-B/16` and say `convpass h=8`, or `convpass_attn h=8`. */
function count(row: CountsRow): Record<string, number> {
  const [, method = '', hidden = ''] = /^(\w+) h=(\d+)$/.exec(configText(row)) ?? [];
  const where = WHERE[method];
  if (where === undefined) throw new UnknownCase(`no builder knows the configuration '${configText(row)}' of convpass`);
  const model = published(publishedName(row.model), row.num_classes ?? 1000);
  const adapter: Adapter = graft(model, 'convpass', { hidden: Number(hidden), where });
  return countAdapted(model, adapter);
}

export const convpass: Builder = { system: 'convpass', build, count };
