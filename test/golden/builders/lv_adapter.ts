/** LV-Adapter: the language-to-vision adapter alone, and the whole network at its stages. */
import {
  createCustomModel,
  ClipTextTransformer,
  openaiTextTransformer,
  clipTextOptions,
} from '../../../lib/models/index.js';
import { LanguageToVision, LvAdapter, type LvTask } from '../../../lib/systems/index.js';
import type { Tensor } from '../../../lib/tensor/index.js';
import { type Built, type Builder, Config, entriesOf, entriesThrough, type Entry, UnknownCase } from '../builder.js';
import type { CountsRow, GoldenCase } from '../case.js';

function language(config: Config): Built {
  const module = new LanguageToVision(config.get('channels'), config.get('text_dim'), config.get('heads'));
  const run: Built['run'] = (inputs) => {
    const [x, t] = [inputs.get('x'), inputs.get('t')];
    if (!x || !t) throw new UnknownCase('the case needs x and t');
    const context = module.context(x, t);
    return { y: x.add(context), context };
  };
  return { module, state: entriesOf(module), run };
}

interface TextConfig {
  readonly vocab_size: number;
  readonly transformer_width: number;
  readonly transformer_heads: number;
  readonly transformer_layers: number;
  readonly context_length?: number;
}

interface Sizes {
  readonly layers: number[];
  readonly width: number;
  readonly channels: number;
  readonly textDim: number;
  readonly heads: number;
  readonly tasks: Partial<Record<LvTask, number>>;
  readonly promptLength: number;
  readonly textTokens?: number;
  readonly text: TextConfig | null;
  readonly headChannels: number;
  readonly stage: 'adapt' | 'finetune';
}

function model(o: Sizes): LvAdapter {
  const trunk = createCustomModel('clip_resnet', { layers: o.layers, width: o.width, heads: 1, outputDim: 1 });
  const { text } = o;
  const contextLength = text?.context_length ?? (o.textTokens ?? 0) + o.promptLength;
  const tower =
    text &&
    new ClipTextTransformer(
      clipTextOptions.parse({
        contextLength,
        vocabSize: text.vocab_size,
        width: text.transformer_width,
        heads: text.transformer_heads,
        layers: text.transformer_layers,
        embedDim: o.textDim,
      }),
    );
  const { channels, heads, tasks, promptLength, headChannels, stage } = o;
  return new LvAdapter(trunk, tower, { channels, heads, tasks, promptLength, headChannels, stage });
}

/** The text tower under OpenAI's names; everything else under its own. */
function stateOf(whole: LvAdapter): Map<string, Entry> {
  const own = entriesOf(whole, (name) => (name.startsWith('text_encoder.') ? null : name));
  const text = whole.text_encoder ? entriesThrough(whole.text_encoder, openaiTextTransformer) : [];
  return new Map([...own, ...Array.from(text, ([name, entry]): [string, Entry] => [`text_encoder.${name}`, entry])]);
}

function network(config: Config, { outputs: declared = {} }: GoldenCase): Built {
  const text = config.get<TextConfig | null>('text_encoder', null);
  const whole = model({
    layers: config.get('backbone_layers'),
    width: config.get('backbone_width'),
    channels: config.get('channels'),
    textDim: config.get('text_dim', 1),
    heads: config.get('heads', 1),
    tasks: config.get('tasks'),
    promptLength: config.get('prompt_length', 1),
    textTokens: config.get('text_tokens', 0),
    text: config.get('language', true) ? text : null,
    headChannels: config.get('head_channels'),
    stage: config.get('stage', 'adapt'),
  });
  const run: Built['run'] = (inputs) => {
    const starting = (prefix: string): Record<string, Tensor> =>
      Object.fromEntries(
        [...inputs].filter(([name]) => name.startsWith(prefix)).map(([name, t]) => [name.slice(prefix.length), t]),
      );
    const image = inputs.get('img');
    if (!image) throw new UnknownCase('the case has no image');
    whole.setClasses(whole.text_encoder ? starting('tokens_') : {});
    const outputs = whole.outputs(image);
    const labels = starting('gt_');
    const found = {
      ...outputs.logits,
      ...Object.fromEntries(outputs.detection.map((map, i) => [`det_p${i + 2}`, map])),
    };
    if (Object.keys(labels).length === 0) return found;
    const { perTask, total } = whole.losses(outputs, labels);
    const losses = {
      ...Object.fromEntries(Object.entries(perTask).map(([task, t]) => [`loss_${task}`, t])),
      loss: total,
    };
    // Scalars are stored with or without a dimension.
    const asDeclared = (name: string, loss: Tensor): Tensor => (declared[name]?.length === 0 ? loss : loss.view([1]));
    return { ...found, ...Object.fromEntries(Object.entries(losses).map(([name, t]) => [name, asDeclared(name, t)])) };
  };
  return { module: whole, state: stateOf(whole), run };
}

function build(golden: GoldenCase): Built {
  const config = new Config(golden.config).ignore('module');
  const built = config.has('backbone_layers') ? network(config, golden) : language(config);
  config.done();
  return built;
}

const sizeOf = (tensors: readonly Tensor[]): number => tensors.reduce((sum, t) => sum + t.numel(), 0);

function count(row: CountsRow): Record<string, number> {
  const config = new Config(typeof row.config === 'string' ? {} : row.config);
  const whole = model({
    layers: config.get('layers'),
    width: config.get('width'),
    channels: config.get('c'),
    textDim: config.get('d'),
    heads: config.get('heads'),
    tasks: config.get('tasks'),
    promptLength: config.get('M'),
    text: config.get('text'),
    headChannels: config.get('head_channels'),
    stage: config.get('stage', 'adapt'),
  });
  config.done();
  const trained = sizeOf(whole.parameters().filter((p) => p.requiresGrad));
  return {
    total_parameters: sizeOf(whole.parameters()),
    trainable_parameters: trained,
    trainable_without_head: trained - sizeOf(whole.heads.parameters()),
  };
}

export const lvAdapter: Builder = { system: 'lv_adapter', build, count };
