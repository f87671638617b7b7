/** T5: whole models, and the biases of relative positions. */
import {
  createCustomTextModel,
  createTextModel,
  listTextModels,
  relativeBias,
  type TextModel,
} from '../../../lib/models/index.js';
import { Embedding } from '../../../lib/nn/index.js';
import type { Tensor } from '../../../lib/tensor/index.js';
import { type Built, type Builder, Config, entriesOf, type Entry, UnknownCase } from '../builder.js';
import type { CountsRow, GoldenCase } from '../case.js';

/** transformers' T5 configuration to our options. */
export function t5Of(config: Config): TextModel {
  config.expect('decoder_start_token_id', 0).expect('is_gated_act', true, false);
  // transformers writes these, too; none changes a pass.
  config.ignore('pad_token_id', 'eos_token_id', 'is_encoder_decoder', 'use_cache', 'model_type', 'dense_act_fn');
  config.ignore('initializer_factor', 'classifier_dropout', 'n_positions');
  const depth = config.get<number>('num_layers');
  const tied = config.get('tie_word_embeddings', true);
  const kind = config.get<string>('feed_forward_proj', 'relu');
  if (kind !== 'relu' && kind !== 'gated-gelu') throw new UnknownCase(`T5 has no feed-forward layer '${kind}'`);
  return createCustomTextModel('t5', {
    vocabulary: config.get('vocab_size'),
    dim: config.get('d_model'),
    headDim: config.get('d_kv'),
    hidden: config.get('d_ff'),
    depth,
    decoderDepth: config.get('num_decoder_layers', depth),
    numHeads: config.get('num_heads'),
    feedForward: kind === 'relu' ? 'relu' : 'gated_gelu',
    tied,
    scaleOutputs: config.get('scale_decoder_outputs', tied),
    buckets: config.get('relative_attention_num_buckets', 32),
    maxDistance: config.get('relative_attention_max_distance', 128),
    normEps: config.get('layer_norm_epsilon', 1e-6),
    dropRate: config.get('dropout_rate', 0),
  });
}

/** A text model's tensors; a parameter that stands under several names counts as trained under the first only. */
export function textEntries(model: TextModel, rename: (name: string) => string = (name) => name): Map<string, Entry> {
  const seen = new Set<Tensor>();
  const entries = Array.from(entriesOf(model), ([name, { tensor }]): [string, Entry] => {
    const again = seen.has(tensor);
    seen.add(tensor);
    return [rename(name), { tensor: again ? tensor.detach() : tensor }];
  });
  return new Map(entries);
}

/** The inputs of a case under our names. */
export function textRun(model: TextModel): Built['run'] {
  return (inputs) => {
    const known = new Map([
      ['input_ids', 'inputIds'],
      ['attention_mask', 'attentionMask'],
      ['decoder_input_ids', 'decoderInputIds'],
      ['decoder_attention_mask', 'decoderAttentionMask'],
    ]);
    const named = Array.from(inputs, ([name, tensor]) => {
      const ours = known.get(name);
      if (ours === undefined) throw new UnknownCase(`a text model reads no '${name}'`);
      return [ours, tensor] as const;
    });
    const { inputIds, ...rest } = Object.fromEntries(named);
    if (!inputIds) throw new UnknownCase('the case has no input_ids');
    const { logits, encoder, decoder } = model.outputs({ inputIds, ...rest });
    // Models without a decoder give their logits as y.
    return decoder ? { logits, encoder, decoder } : { y: logits, logits, encoder };
  };
}

function bias(config: Config): Built {
  config.expect('op', 'relative_position_bias').ignore('buckets_first_row', 'buckets_last_row');
  const options = {
    bidirectional: config.get<boolean>('bidirectional'),
    buckets: config.get<number>('num_buckets'),
    maxDistance: config.get<number>('max_distance'),
  };
  const table = new Embedding(options.buckets, config.get('num_heads'));
  const queries = config.get<number>('query_length');
  const keys = config.get<number>('key_length');
  return {
    module: table,
    state: new Map([['relative_attention_bias.weight', { tensor: table.weight }]]),
    run: () => ({ y: relativeBias(table, queries, keys, options) }),
  };
}

function build(golden: GoldenCase): Built {
  const config = new Config(golden.config);
  if (config.has('op')) {
    const built = bias(config);
    config.done();
    return built;
  }
  const model = t5Of(config);
  config.done();
  return { module: model, state: textEntries(model), run: textRun(model) };
}

/**
 * A published text model from a row, whose names have hyphens and dots and perhaps an owner; every size that the row
 * states must agree.
 */
export function publishedText(row: Pick<CountsRow, 'model'>, options: Record<string, unknown> = {}): TextModel {
  const plain = row.model.toLowerCase().replace(/^.*\//, '').replace(/[-. ]/g, '_');
  const name = plain.replace(/^v1_1_/, 't5_v1_1_');
  if (!listTextModels().includes(name)) throw new UnknownCase(`no text model is called '${row.model}'`);
  return createTextModel(name, options);
}

function count(row: CountsRow): Record<string, number> {
  const model = publishedText(row);
  const sizes = typeof row.config === 'string' ? null : new Config({ ...row.config });
  const total = (m: TextModel): number => m.parameters().reduce((sum, p) => sum + p.numel(), 0);
  if (sizes && total(t5Of(sizes)) !== total(model)) throw new UnknownCase(`${row.model} has other sizes than the row`);
  const own = model.getModule('lm_head').parameters()[0];
  const isTied = own === model.getModule('shared').parameters()[0];
  return {
    total_parameters: total(model),
    trainable_parameters: total(model),
    trainable_without_head: total(model) - (isTied ? 0 : (own?.numel() ?? 0)),
  };
}

export const t5: Builder = { system: 't5', build, count };
