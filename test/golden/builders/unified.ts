/** The unified view's family on BART, mBART, RoBERTa and T5. */
import { graft } from '../../../lib/adapters/index.js';
import { createCustomTextModel, type TextModel } from '../../../lib/models/index.js';
import { Parameter } from '../../../lib/nn/index.js';
import { empty, type Tensor } from '../../../lib/tensor/index.js';
import { type Built, type Builder, Config, type Entry, UnknownCase } from '../builder.js';
import type { CountsRow, GoldenCase } from '../case.js';
import { activationNamed } from './activations.js';
import { t5Of, textEntries, textRun } from './t5.js';
import { adapterLayers, loraLinear, prefixModule } from './unified_layers.js';
import { adapterEntries, scaleOf, wrapped } from './unified_names.js';

type Kind = 'bart' | 'mbart' | 'roberta';

/** transformers' configuration of a backbone to ours. */
function backboneOf(kind: Kind, config: Config, classes?: number | null): TextModel {
  // transformers writes these, too; none changes a pass.
  config.ignore('use_cache', 'bos_token_id', 'eos_token_id', 'decoder_start_token_id', 'forced_eos_token_id');
  config.ignore('is_encoder_decoder', 'model_type', 'init_std', 'initializer_range', 'num_hidden_layers');
  const pad = config.get('pad_token_id', 1);
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
      activation: activationNamed(config.get('hidden_act', 'gelu')),
      pad,
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
    activation: activationNamed(config.get('activation_function', 'gelu')),
    pad,
    scaleEmbedding: config.get('scale_embedding', false),
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
  return {
    insertion: tune.get('ffn_option'),
    width: tune.get('ffn_bn'),
    scale: scaleOf(tune.get('ffn_adapter_scalar')),
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
  else if (mlp === 'bitfit' && attention !== 'bitfit') steps.push({ method: 'bitfit', options: {} });
  else if (!['none', 'bitfit'].includes(mlp) && !place) throw new UnknownCase(`no builder knows the ffn_mode '${mlp}'`);
  if (beside || place) {
    steps.push({ method: 'adapter', options: { design: 'houlsby', attention: beside, mlp: place } });
  }
  return steps;
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
  const options = {
    length: config.get('prefix_length'),
    width: config.get('ffn_bn'),
    scale: scaleOf(config.get('ffn_adapter_scalar')),
    norm: config.get('ffn_adapter_layernorm_option', 'none'),
  };
  const adapter = graft(model, 'mam', options, { head: 'frozen' });
  return {
    module: model,
    state: new Map([...textEntries(model), ...adapterEntries(adapter, (name) => name)]),
    run: textRun(model),
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
