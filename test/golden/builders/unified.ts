/** The unified view's family on BART, mBART, RoBERTa and T5, and its bare layers. */
import { Bottleneck, graft, PrefixMlp, type Adapter, type BottleneckStart } from '../../../lib/adapters/index.js';
import { createCustomTextModel, type TextModel } from '../../../lib/models/index.js';
import { Context, Linear, ModuleDict, Parameter } from '../../../lib/nn/index.js';
import { aten, empty, type Tensor } from '../../../lib/tensor/index.js';
import { type Built, type Builder, Config, type Entry, soleInput, UnknownCase } from '../builder.js';
import type { CountsRow, GoldenCase } from '../case.js';
import { graftEntries, sharedEntries } from './adapted.js';
import { layerHost } from './layer_host.js';
import { t5Of, textEntries, textRun } from './t5.js';

type Kind = 'bart' | 'mbart' | 'roberta';

/** transformers' configuration of a backbone to ours. */
function backboneOf(kind: Kind, config: Config, classes?: number | null): TextModel {
  config.ignore('use_cache', 'pad_token_id');
  if (kind === 'roberta') {
    return createCustomTextModel('roberta', {
      vocabulary: config.get('vocab_size'),
      dim: config.get('hidden_size'),
      depth: config.get('num_hidden_layers'),
      numHeads: config.get('num_attention_heads'),
      hidden: config.get('intermediate_size'),
      positions: config.get('max_position_embeddings'),
      tokenTypes: config.get('type_vocab_size', 1),
      numClasses: classes ?? config.get('num_labels', 2),
      normEps: config.get('layer_norm_eps', 1e-5),
      activation: config.get('hidden_act', 'gelu'),
      dropRate: config.get('hidden_dropout_prob', 0),
      attnDropRate: config.get('attention_probs_dropout_prob', 0),
    });
  }
  return createCustomTextModel(kind, {
    vocabulary: config.get('vocab_size'),
    dim: config.get('d_model'),
    depth: config.get('encoder_layers'),
    decoderDepth: config.get('decoder_layers'),
    numHeads: config.get('encoder_attention_heads'),
    decoderHeads: config.get('decoder_attention_heads'),
    hidden: config.get('encoder_ffn_dim'),
    decoderHidden: config.get('decoder_ffn_dim'),
    positions: config.get('max_position_embeddings'),
    activation: config.get('activation_function', 'gelu'),
    scaleEmbedding: config.get('scale_embedding', kind === 'mbart'),
    dropRate: config.get('dropout', 0),
    attnDropRate: config.get('attention_dropout', 0),
    actDropRate: config.get('activation_dropout', 0),
  });
}

/** A method to set in, and its options. */
interface Step {
  readonly method: string;
  readonly options: Record<string, unknown>;
}

const SCALAR = 'learnable_scalar';

function loraStep(tune: Config, rank: number, roles: readonly string[]): Step {
  const options = {
    rank,
    alpha: tune.get('lora_alpha'),
    dropout: tune.get('lora_dropout', 0),
    init: tune.get('lora_init', 'lora'),
    at: { role: roles },
  };
  return { method: 'lora', options };
}

/** The prefix of `attn_mode` prefix and prefix_nomlp. */
function prefixOptions(tune: Config, kind: Kind): Record<string, unknown> {
  const option = tune.get<string>('attn_option');
  const base = {
    length: tune.get('attn_bn'),
    reparametrize: tune.get<string>('attn_mode') === 'prefix' ? tune.get('mid_dim') : null,
    dropout: tune.get('prefix_dropout', 0),
  };
  if (option === 'concat') return base;
  if (kind === 'roberta') throw new UnknownCase(`the released RoBERTa does not run with '${option}'`);
  const composition = tune.get<string>('attn_composition') === 'gate_add' ? 'gated' : 'add';
  // mBART's ReLU form asks with the plain, scaled queries; its norm stays unused.
  const query = {
    cross_attn_noln: 'plain',
    cross_attn: 'normed',
    cross_attn_relu: kind === 'bart' ? 'normed' : 'plain',
  }[option];
  if (query === undefined) throw new UnknownCase(`no builder knows the attn_option '${option}'`);
  const isRelu = option === 'cross_attn_relu';
  const nonlinearity = isRelu ? 'relu' : 'softmax';
  return { ...base, composition, query, nonlinearity, scaled: !(isRelu && kind === 'bart') };
}

/** The adapter of `ffn_mode` adapter. */
function mlpPlace(tune: Config): Record<string, unknown> {
  const scalar = tune.get<string | number>('ffn_adapter_scalar');
  return {
    insertion: tune.get('ffn_option'),
    width: tune.get('ffn_bn'),
    scale: scalar === SCALAR ? 'learned' : Number(scalar),
    norm: tune.get('ffn_adapter_layernorm_option'),
    start: tune.get('ffn_adapter_init_option'),
  };
}

/** What a `tune` sets in: one method where ours is the same mix, else one for attention and one for the MLPs. */
function stepsOf(tune: Config, kind: Kind): Step[] {
  tune.ignore('unfreeze_params', 'attn_composition', 'attn_option', 'ffn_option', 'mid_dim', 'attn_bn', 'ffn_bn');
  tune.ignore('ffn_adapter_layernorm_option', 'ffn_adapter_init_option', 'ffn_adapter_scalar', 'prefix_dropout');
  tune.ignore('lora_alpha', 'lora_dropout', 'lora_init').expect('load_path', '');
  const attention = tune.get<string>('attn_mode');
  const mlp = tune.get<string>('ffn_mode');
  const isPrefix = attention === 'prefix' || attention === 'prefix_nomlp';
  const place = mlp === 'adapter' ? mlpPlace(tune) : null;
  if (place?.['insertion'] === 'pfeiffer' && kind === 'bart')
    throw new UnknownCase('the released BART has no pfeiffer adapter');
  // Adapters of attention are built one way, whatever the options for those of the MLP say.
  const beside =
    attention === 'adapter'
      ? { insertion: tune.get('attn_option'), width: tune.get('attn_bn'), scale: 1, norm: 'in', start: 'bert' }
      : null;
  if (isPrefix && tune.get('attn_option') === 'concat' && place?.['insertion'] === 'parallel') {
    const { insertion: _, ...rest } = place;
    return [{ method: 'mam', options: { ...prefixOptions(tune, kind), ...rest } }];
  }
  const steps: Step[] = [];
  if (isPrefix) steps.push({ method: 'prefix', options: prefixOptions(tune, kind) });
  else if (attention === 'lora') steps.push(loraStep(tune, tune.get('attn_bn'), ['q', 'v']));
  else if (attention === 'bitfit') steps.push({ method: 'bitfit', options: {} });
  else if (attention === 'prompt_tuning')
    steps.push({ method: 'prompt_tuning', options: { length: tune.get('attn_bn') } });
  else if (attention !== 'none' && !beside) throw new UnknownCase(`no builder knows the attn_mode '${attention}'`);
  if (mlp === 'lora') steps.push(loraStep(tune, tune.get('ffn_bn'), ['fc1', 'fc2']));
  else if (mlp !== 'none' && !place) throw new UnknownCase(`no builder knows the ffn_mode '${mlp}'`);
  if (beside || place) {
    steps.push({ method: 'adapter', options: { design: 'houlsby', attention: beside, mlp: place } });
  }
  return steps;
}

/** Official name of a graft's tensor in the released wrapper. */
function wrapped(official: string): string {
  const name = official.replace(/\.lora\.down\.weight$/, '.ef_lora_A').replace(/\.lora\.up\.weight$/, '.ef_lora_B');
  const isPrompt = /^(wte|control_trans|(encoder_attn|decoder_self_attn|decoder_cross_attn)_(key|value)\.)/.test(name);
  return `${isPrompt ? 'prompt_model' : 'pretrained_model'}.${name}`;
}

function adapterEntries(adapter: Adapter, rename: (official: string) => string): [string, Entry][] {
  const naming = { graft: rename };
  return [...adapter.grafts.flatMap((g) => graftEntries(adapter, g, naming)), ...sharedEntries(adapter, naming)];
}

const ROBERTA_FFN = /^(pretrained_model\.roberta\.encoder\.layer\.\d+)(\.ef_ffn_adapter\..*)$/;

/** Tensors that the released code makes and never uses; a checkpoint holds them and its optimizer knows them. */
function unusedParts(kind: Kind, tune: Config, used: ReadonlyMap<string, Entry>): Map<string, Entry> {
  const unused = new Map<string, Entry>();
  const twin = (name: string, { tensor }: Entry): void => {
    unused.set(name, { tensor: new Parameter(empty(tensor.shape)) });
  };
  for (const [name, entry] of used) {
    if (kind !== 'roberta') continue;
    // A second adapter in each output, and the sets for attentions that RoBERTa lacks.
    const parts = ROBERTA_FFN.exec(name);
    if (parts && tune.get('ffn_option') === 'parallel') twin(`${parts[1] ?? ''}.output${parts[2] ?? ''}`, entry);
    for (const suffix of ['2', '_enc']) {
      if (/^prompt_model\.(wte|control_trans)\./.test(name))
        twin(name.replace(/wte|control_trans/, `$&${suffix}`), entry);
    }
    for (const place of ['encoder_attn', 'decoder_cross_attn']) {
      if (name.includes('.decoder_self_attn_')) twin(name.replace('decoder_self_attn', place), entry);
    }
  }
  const isRelu = tune.get<string>('attn_mode').startsWith('prefix') && tune.get('attn_option') === 'cross_attn_relu';
  for (const [name, { tensor }] of kind === 'mbart' && isRelu ? used : []) {
    const [, attention] = /^(.*_attn)\.q_proj\.bias$/.exec(name) ?? [];
    if (attention === undefined) continue;
    for (const leaf of ['weight', 'bias']) twin(`${attention}.ef_transform_layer_norm.${leaf}`, { tensor });
  }
  return unused;
}

/** A backbone with everything that a `tune` sets in, under the released names. */
function tuned(kind: Kind, model: TextModel, tune: Config): Map<string, Entry> {
  const steps = stepsOf(tune, kind);
  const adapters = steps.map(({ method, options }, i) =>
    graft(model, method, options, { name: `${method}_${i}`, head: 'frozen', activate: i === 0 ? 'only' : 'also' }),
  );
  if (steps.length === 0) model.freeze();
  if (kind === 'roberta' && steps.some(({ method }) => method === 'bitfit')) {
    // The released filter goes by names only and takes the classifier's biases too.
    for (const [name, parameter] of model.namedParameters()) {
      if (model.isInClassifier(name) && name.includes('bias')) parameter.requiresGrad = true;
    }
  }
  const entries = new Map([
    ...textEntries(model, (name) => `pretrained_model.${name}`),
    ...adapters.flatMap((adapter) => adapterEntries(adapter, wrapped)),
  ]);
  return new Map([...entries, ...unusedParts(kind, tune, entries)]);
}

function kindOf(name: string): Kind {
  if (name === 'bart' || name === 'mbart' || name === 'roberta') return name;
  throw new UnknownCase(`no builder knows the backbone '${name}' of unified`);
}

function wholeModel(config: Config, golden: GoldenCase): Built {
  const kind = kindOf(config.get('backbone'));
  const sizes = new Config(config.get<Record<string, unknown>>('backbone_config'));
  const tune = new Config(config.get<Record<string, unknown>>('tune'));
  const model = backboneOf(kind, sizes);
  const state = tuned(kind, model, tune);
  sizes.done();
  tune.done();
  const trained = new Set(golden.trainable);
  for (const [name, { tensor }] of state) {
    // A key's bias moves all scores of a query alike: its gradient is zero, and the BitFit case leaves it out.
    if (/\.(k_proj|key)\.bias$/.test(name) && !trained.has(name)) state.set(name, { tensor: tensor.detach() });
  }
  return { module: model, state, run: textRun(model) };
}

function t5Mam(config: Config): Built {
  const sizes = new Config(config.get<Record<string, unknown>>('backbone'));
  const model = t5Of(sizes);
  sizes.done();
  config.expect('ffn_option', 'parallel');
  const scalar = config.get<number | string>('ffn_adapter_scalar');
  const options = {
    length: config.get('prefix_length'),
    width: config.get('ffn_bn'),
    scale: scalar === SCALAR ? 'learned' : Number(scalar),
    norm: config.get('ffn_adapter_layernorm_option', 'none'),
  };
  const adapter = graft(model, 'mam', options, { head: 'frozen' });
  return {
    module: model,
    state: new Map([...textEntries(model), ...adapterEntries(adapter, (name) => name)]),
    run: textRun(model),
  };
}

interface LayerConfig {
  readonly bottleneck: number;
  readonly init: BottleneckStart;
  readonly scalar: string;
  readonly layernorm: 'in' | 'out' | 'none';
  readonly add_residual: boolean;
  readonly external_residual?: boolean;
}

const LEAVES: Readonly<Record<string, string>> = {
  down: 'down_proj',
  up: 'up_proj',
  norm: 'adapter_layer_norm_before',
};

function adapterLayers(config: Config): Built {
  const dim = config.get<number>('d_model');
  const activation = config.get<'relu'>('activation', 'relu');
  const layers = Object.entries(config.get<Record<string, LayerConfig>>('layers'));
  const made = layers.map(([name, { bottleneck, init, scalar, layernorm }]) => {
    const scale = scalar === SCALAR ? 'learned' : Number(scalar);
    return [
      name,
      new Bottleneck(dim, dim, { width: bottleneck, start: init, scale, norm: layernorm, activation }),
    ] as const;
  });
  const module = new ModuleDict(Object.fromEntries(made));
  const state = module.namedState().map(([name, tensor]): [string, Entry] => {
    const [layer = '', part = '', ...rest] = name.split('.');
    return [[layer, LEAVES[part] ?? part, ...rest].join('.'), { tensor }];
  });
  return {
    module,
    state: new Map(state),
    run: (inputs) => {
      const x = inputs.get('x');
      if (!x) throw new UnknownCase('the case has no input x');
      const outputs = layers.map(([name, layer], i) => {
        const y = made[i]?.[1].run(x) as Tensor;
        const residual = layer.external_residual ? inputs.get('residual') : x;
        if (layer.add_residual && !residual) throw new UnknownCase('the case has no input residual');
        return [name, layer.add_residual && residual ? y.add(residual) : y] as const;
      });
      return Object.fromEntries(outputs);
    },
  };
}

/** Places of the prefix module: their names in outputs, in the MLPs and in the lists of direct prefixes. */
const PLACES = [
  ['encoder', '_enc', 'encoder_attn'],
  ['self', '', 'decoder_self_attn'],
  ['encoder_decoder', '2', 'decoder_cross_attn'],
] as const;

function prefixModule(config: Config): Built {
  const batch = config.get<number>('batch');
  const layers = config.get<number>('layers');
  const heads = config.get<number>('heads');
  const width = config.get<number>('d_model');
  const length = config.get<number>('attn_bn');
  const isDirect = config.get<string>('attn_mode') === 'prefix_nomlp';
  const hidden = config.get('mid_dim', 800);
  const dropout = config.get('prefix_dropout', 0);
  const state = new Map<string, Entry>();
  /** [layers, B heads, l, d] of each place. */
  const outputs = new Map<string, () => Tensor>();
  const repeated = (t: Tensor): Tensor =>
    t
      .unsqueeze(1)
      .expand([-1, batch, -1, -1, -1])
      .reshape([layers, batch * heads, length, width / heads]);
  const parts = new ModuleDict<PrefixMlp>();
  for (const [place, suffix, list] of PLACES) {
    if (isDirect) {
      for (const what of ['key', 'value']) {
        const rows = Array.from({ length: layers }, () => new Parameter(empty([length, width])));
        rows.forEach((tensor, i) => state.set(`prompt_model.${list}_${what}.${i}.weight`, { tensor }));
        const split = (): Tensor =>
          aten.stack(rows.map((row) => row.view([length, heads, width / heads]).transpose(0, 1)));
        outputs.set(`${place}.${what}`, () => repeated(split()));
      }
      continue;
    }
    const mlp = new PrefixMlp({ length, layers, heads, width, hidden, dropout });
    parts.set(place, mlp);
    for (const [leaf, tensor] of mlp.namedState()) {
      const name = leaf
        .replace(/^embedding/, `wte${suffix}`)
        .replace(/^hidden/, `control_trans${suffix}.0`)
        .replace(/^out/, `control_trans${suffix}.2`);
      state.set(`prompt_model.${name}`, { tensor });
    }
    for (const what of ['key', 'value'] as const) {
      outputs.set(`${place}.${what}`, () => {
        const ctx = new Context();
        return repeated(aten.stack(Array.from({ length: layers }, (_, i) => mlp.slot(i, what, ctx))));
      });
    }
  }
  return {
    module: parts,
    state,
    run: () => Object.fromEntries(Array.from(outputs, ([name, make]) => [name, make()])),
  };
}

function loraLinear(config: Config): Built {
  const layer = new Linear(config.get('in_features'), config.get('out_features'), { bias: config.get('bias', true) });
  const rank = config.get<number>('r');
  const alpha = config.get<number>('lora_alpha');
  config.ignore('scaling');
  const host = layerHost(layer);
  const dropout = config.get('lora_dropout', 0);
  const adapter = graft(host, 'lora', { rank, alpha, dropout, at: { role: 'layer' } }, { head: 'frozen' });
  const naming = (official: string): string => wrapped(official).replace(/^pretrained_model\.layer/, 'linear');
  const state = new Map(adapterEntries(adapter, naming));
  state.set('linear.weight', { tensor: layer.weight });
  if (layer.bias) state.set('linear.bias', { tensor: layer.bias });
  const [down, up] = ['linear.ef_lora_A', 'linear.ef_lora_B'].map((name) => state.get(name)?.tensor);
  return {
    module: host,
    state,
    run: (inputs) => ({
      y: host.run(soleInput(inputs)),
      ...(down && up && { merged_weight: layer.weight.add(up.mm(down), { alpha: alpha / rank }) }),
    }),
  };
}

function build(golden: GoldenCase): Built {
  const config = new Config(golden.config);
  const op = config.get<string>('op');
  const make = {
    model: () => wholeModel(config, golden),
    t5_mam: () => t5Mam(config),
    adapter_layers: () => adapterLayers(config),
    prefix: () => prefixModule(config),
    lora_linear: () => loraLinear(config),
  }[op];
  if (!make) throw new UnknownCase(`no builder knows the op '${op}' of unified`);
  const built = make();
  config.done();
  return built;
}

function count(row: CountsRow): Record<string, number> {
  const config = new Config(typeof row.config === 'string' ? {} : row.config).ignore('method');
  const kind = kindOf((row.model.split('-')[0] ?? '').toLowerCase());
  const sizes = new Config(config.get<Record<string, unknown>>('backbone'));
  const tune = new Config(config.get<Record<string, unknown>>('tune'));
  const model = backboneOf(kind, sizes, row.num_classes);
  const backbone = model.parameters().reduce((sum, parameter) => sum + parameter.numel(), 0);
  const entries = [...tuned(kind, model, tune).values()].map(({ tensor }) => tensor);
  const parameters = entries.filter((tensor) => tensor instanceof Parameter);
  const size = (tensors: readonly Tensor[]): number => tensors.reduce((sum, tensor) => sum + tensor.numel(), 0);
  const trainable = size(parameters.filter((parameter) => parameter.requiresGrad));
  return {
    total_parameters: size(parameters),
    trainable_parameters: trainable,
    trainable_without_head: trainable,
    backbone_parameters: backbone,
  };
}

export const unified: Builder = { system: 'unified', build, count };
