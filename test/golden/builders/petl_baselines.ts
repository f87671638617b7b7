/** The standard methods of the ViT papers: linear probe, BitFit, LoRA, AdaptFormer, adapters, NOAH, quantized adapters. */
import { graft, type Adapter } from '../../../lib/adapters/index.js';
import type { Backbone } from '../../../lib/models/index.js';
import { type Built, type Builder, Config, entriesOf, type Entry, UnknownCase } from '../builder.js';
import { configText, type CountsRow, type GoldenCase } from '../case.js';
import { activationNamed } from './activations.js';
import { adapted, blockName, countAdapted, headEntries, type Naming, runBlock, singleBlock } from './adapted.js';
import { publishedFile, quantizedLayer, smallAdapter } from './compact.js';
import { plain, published, publishedName, vitOf } from './timm_backbones.js';

const blockNaming: Naming = { backbone: blockName, graft: blockName };

/** A method that a case names, set into its backbone. */
type Build = (golden: GoldenCase, config: Config, model: Backbone, single: boolean) => Built;

/** A method whose tensors need no more than their official names. */
const simple =
  (id: string, optionsOf: (config: Config) => Record<string, unknown>): Build =>
  (_, config, model, single) => {
    const adapter = graft(model, id, optionsOf(config), { head: single ? 'frozen' : 'train' });
    return single ? adapted(model, adapter, blockNaming, runBlock(model)) : adapted(model, adapter);
  };

/** AdaptFormer's official transformer has q, k and v apart, and no module around the two layers of the MLP. */
const adaptFormerNames = (name: string): string | null =>
  /attn\.qkv\./.test(name) ? null : name.replace(/\bmlp\.(fc[12])\b/, '$1');

/** Rows of the fused projection, in timm's order. */
const PROJECTIONS = ['q_proj', 'k_proj', 'v_proj'];

function splitProjections(model: Backbone, rename: (name: string) => string | null): [string, Entry][] {
  return model.namedState().flatMap(([name, tensor]): [string, Entry][] => {
    if (!name.includes('attn.qkv.')) return [];
    const rows = (tensor.shape[0] ?? 0) / 3;
    return PROJECTIONS.flatMap((part, i): [string, Entry][] => {
      const official = rename(name.replace('qkv', part));
      return official === null ? [] : [[official, { tensor, view: (t) => t.narrow(0, i * rows, rows) }]];
    });
  });
}

/**
 * The official head norms over the batch, without affine parameters, before its linear layer; the names of its tensors
 * say whether a case has it.
 */
function normedHead(golden: GoldenCase, config: Config): { classes: number; norm: 'batch'; normEps: number } | null {
  const normEps = config.ignore('head').get('head_norm_eps', 1e-6);
  if (!golden.trainable?.includes('head.1.weight')) return null;
  return { classes: config.get('num_classes'), norm: 'batch', normEps };
}

/** The official AdaptFormer; PETL-ViT's form has no such scale. */
function adaptFormer(golden: GoldenCase, config: Config, model: Backbone, single: boolean): Built {
  const scale = config.get<string | number>('adapter_scalar', '0.1');
  config.expect('adapter_layernorm_eps', 1e-5);
  const head = normedHead(golden, config);
  const adapter = graft(
    model,
    'adaptformer',
    {
      hidden: config.get('bottleneck'),
      scale: scale === 'learnable_scalar' ? 'learned' : Number(scale),
      norm: config.get<string | null>('adapter_layernorm_option', 'none') ?? 'none',
      placement: config.get('ffn_option', 'parallel'),
      dropout: config.get('dropout', 0.1),
    },
    { head: head ?? (single ? 'frozen' : 'train') },
  );
  const inBlock = single ? blockName : (name: string): string => name;
  const backbone = (name: string): string | null => {
    const own = adaptFormerNames(name);
    return own === null || (head && name.startsWith('head.')) ? null : inBlock(own);
  };
  const built = adapted(model, adapter, { backbone, graft: inBlock }, single ? runBlock(model) : undefined);
  const headName = (leaf: string): string => `head.${leaf.replace('norm', '0').replace('linear', '1')}`;
  const parts = [...splitProjections(model, inBlock), ...headEntries(adapter, headName)];
  return { ...built, state: new Map([...built.state, ...parts]) };
}

/** Bottlenecks behind attention and MLP, or behind the MLP alone, before stochastic depth, and their names in the cases. */
const placed =
  (places: { attention: boolean }, rename: (official: string) => string): Build =>
  (_, config, model, single) => {
    const reduction = config.get<number | null>('reduction_factor', null);
    const dim = model.numFeatures;
    const reduced = reduction === null ? undefined : Math.floor(dim / reduction);
    const width = config.get<number>('bottleneck', reduced);
    if (reduced !== undefined && width !== reduced) {
      throw new UnknownCase(`a reduction of ${reduction} of ${dim} does not give a bottleneck of ${width}`);
    }
    const place = {
      insertion: 'sequential',
      norm: 'none',
      start: 'normal',
      activation: activationNamed(config.get('activation', 'gelu(erf)')),
      dropout: config.get('dropout', 0),
    };
    const options = { design: 'houlsby', width, attention: places.attention ? place : null, mlp: place };
    const adapter = graft(model, 'adapter', options, { head: single ? 'frozen' : 'train' });
    const naming = { graft: (name: string) => (single ? blockName(rename(name)) : rename(name)) };
    return single
      ? adapted(model, adapter, { ...blockNaming, ...naming }, runBlock(model))
      : adapted(model, adapter, naming);
  };

const houlsby = placed({ attention: true }, (name) =>
  name
    .replace(/(?:attn\.)?ef_(attn|ffn)_adapter\./, (_, part) => `adapter_${part === 'attn' ? 'attn' : 'mlp'}.`)
    .replace(/_proj\b/, ''),
);

const pfeiffer = placed({ attention: false }, (name) =>
  name.replace(/ef_ffn_adapter\.(down|up)_proj\b/, 'adapter_$1sample'),
);

/** NOAH: a sub-network of a supernet, with the root prompts that its checkpoints hold. */
const noah = simple('noah', (config) => {
  config.expect('adapter_activation', 'quick_gelu(1.702)');
  const dropout = config.get<Partial<Record<'lora' | 'prompt' | 'adapter', number>>>('dropout', {});
  const largest = {
    prompts: config.get('super_prompt_dim', 0),
    lora: config.get('super_lora_dim', 0),
    adapters: config.get('super_adapter_dim', 0),
  };
  return {
    largest,
    rootPrompts: true,
    prompts: config.get('prompt_dims', 0),
    lora: config.get('lora_dims', 0),
    adapters: config.get('adapter_dims', 0),
    promptDropout: dropout.prompt ?? 0.1,
    loraDropout: dropout.lora ?? 0.1,
    adapterDropout: dropout.adapter ?? 0.1,
  };
});

const small: Build = (golden, config, model, single) => smallAdapter(golden, config, model, single);

const methods: Readonly<Record<string, Build>> = {
  linear: simple('linear_probe', () => ({})),
  linear_probe: simple('linear_probe', () => ({})),
  bitfit: simple('bitfit', () => ({})),
  bias: simple('bitfit', () => ({})),
  full: simple('full', () => ({})),
  lora: small,
  lora_qv: small,
  'lora-bihead': small,
  adaptformer: (golden, config, model, single) =>
    config.has('adapter_scalar') || config.has('ffn_option')
      ? adaptFormer(golden, config, model, single)
      : smallAdapter(golden, config, model, single),
  adapter_houlsby: houlsby,
  adapter_pfeiffer: pfeiffer,
  adaptformer_nobias: small,
  noah,
  'adaptformer-bihead': small,
};

/** The backbone of a case: a whole model where the config gives an image size, else one block. */
function backboneOf(config: Config): { model: Backbone; single: boolean } {
  config.ignore('timm_version').expect('backbone', 'vit');
  const single = !config.has('img_size');
  // Without effect in evaluation; a case in training mode has none.
  if (single) config.expect('drop_rate', 0).ignore('drop_path', 'drop_path_rate');
  return { model: single ? singleBlock(config, { dim: 'embed_dim', eps: 'norm_eps' }) : vitOf(config), single };
}

function build(golden: GoldenCase): Built {
  const config = new Config(golden.config);
  const built = make(golden, config);
  config.done();
  return built;
}

function make(golden: GoldenCase, config: Config): Built {
  if (golden.files) return publishedFile(golden, config);
  if (config.has('module')) return quantizedLayer(config.expect('module', 'qlinear'));
  const name = config.get<string>('method');
  const method = Object.hasOwn(methods, name) ? methods[name] : undefined;
  if (!method) throw new UnknownCase(`no builder knows the method '${name}' of petl_baselines`);
  const { model, single } = backboneOf(config);
  return method(golden, config, model, single);
}

function buildMerged(golden: GoldenCase): Built {
  const { model, single } = backboneOf(new Config(golden.config));
  return single ? { module: model, state: entriesOf(model, blockName), run: runBlock(model) } : plain(model);
}

/** Rows name the backbone as `ViT-B/16` and say the method in words. */
function count(row: CountsRow): Record<string, number> {
  const text = configText(row);
  const name = publishedName(row.model);
  const lora = /^LoRA (?:q,(k,)?v )?r=(\d+)/.exec(text);
  const adapt = (method: string, options = {}): Record<string, number> => {
    const model: Backbone = published(name, row.num_classes ?? 1000);
    const adapter: Adapter = graft(model, method, options);
    return countAdapted(model, adapter);
  };
  if (/^linear probe/i.test(text)) return adapt('linear_probe');
  if (/^full\b/i.test(text)) return adapt('full');
  if (/^bitfit/i.test(text)) return adapt('bitfit');
  // One pair of factors over the whole fused projection when k is adapted as well.
  if (lora) return adapt('lora', { rank: Number(lora[2]), at: lora[1] ? { name: 'qkv' } : { role: ['q', 'v'] } });
  const hidden = Number(/\bh=(\d+)/.exec(text)?.[1] ?? /^AdaptFormer-(\d+)/.exec(text)?.[1]);
  if (text.startsWith('AdaptFormer')) return adapt('adaptformer', { hidden, bias: !/without biases/.test(text) });
  const placement = /^Adapter, (Pfeiffer|Houlsby) placement/.exec(text)?.[1];
  if (placement !== undefined) {
    const place = { insertion: 'sequential', norm: 'none' };
    const attention = placement === 'Houlsby' ? place : null;
    return adapt('adapter', { design: 'houlsby', width: hidden, attention, mlp: place });
  }
  if (/^Adapter h=\d+ after the MLP/.test(text)) return adapt('noah', { prompts: 0, lora: 0, adapters: hidden });
  throw new UnknownCase(`no builder knows the configuration '${text}' of petl_baselines`);
}

export const petlBaselines: Builder = { system: 'petl_baselines', build, buildMerged, count };
