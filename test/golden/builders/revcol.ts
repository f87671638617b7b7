/** RevCol, one column of it, and its compound loss. */
import { createCustomModel } from '../../../lib/models/index.js';
import { RevCol } from '../../../lib/models/revcol.js';
import { Column, type Levels } from '../../../lib/models/revcol_blocks.js';
import { compoundLoss } from '../../../lib/models/revcol_loss.js';
import { runColumns } from '../../../lib/models/revcol_reversible.js';
import { Context } from '../../../lib/nn/index.js';
import type { Tensor } from '../../../lib/tensor/index.js';
import { type Built, type Builder, Config, entriesOf, soleInput, UnknownCase } from '../builder.js';
import type { CountsRow, GoldenCase } from '../case.js';
import { countBackbone } from './backbone_counts.js';
import { isPyramid, pyramid } from './pyramid.js';

const numbered = (name: string, tensors: readonly Tensor[]): Record<string, Tensor> =>
  Object.fromEntries(tensors.map((tensor, i) => [`${name}${i}`, tensor]));

const isHuge = (config: Config): boolean => /huge/i.test(config.get<string>('module', '')) || config.get('huge', false);

function column(config: Config): Built {
  config.expect('norm_eps', 1e-6);
  const first = config.get('first_col', false);
  const module = new Column({
    channels: config.get('channels'),
    layers: config.get('layers'),
    kernel: config.get('kernel_size', 3),
    expansion: config.get('expansion', 4),
    layerScale: 1e-6,
    alpha: 0.5,
    first,
    huge: isHuge(config),
  });
  const reversible = config.get('save_memory', false);
  const run: Built['run'] = (inputs) => {
    const named = (name: string): Tensor => {
      const found = inputs.get(name);
      if (!found) throw new UnknownCase(`the case has no input '${name}'`);
      return found;
    };
    const start = first ? null : ([0, 1, 2, 3].map((i) => named(`c${i}`)) as unknown as Levels);
    return numbered('c', runColumns([module], named('x'), new Context(), { start, reversible }).levels);
  };
  return { module, state: entriesOf(module), run };
}

function network(config: Config): RevCol {
  config.expect('norm_eps', 1e-6);
  const model = createCustomModel('revcol', {
    channels: config.get('channels'),
    layers: config.get('layers'),
    columns: config.get('num_subnet'),
    kernelSize: config.get('kernel_size', 3),
    expansion: config.get('expansion', 4),
    huge: isHuge(config),
    supervised: config.get('inter_supv', false),
    reversible: config.get('save_memory', false),
    numClasses: config.get('num_classes', 1000),
    headInitScale: config.get<number | null>('head_init_scale', null),
    dropPathRate: config.get('drop_path', 0),
  });
  if (!(model instanceof RevCol)) throw new UnknownCase('the family revcol makes no RevCol');
  return model;
}

function whole(config: Config): Built {
  const model = network(config);
  const run: Built['run'] = (inputs) => {
    const { logits, images } = model.supervised(soleInput(inputs));
    return { ...numbered('cls', logits), ...numbered('img', images) };
  };
  return { module: model, state: entriesOf(model), run };
}

function loss(config: Config): Built {
  config.expect('reconstruction', 'BCE with logits, mean');
  const criterion = config.get('criterion', 'label smoothing 0.1 cross entropy');
  const labelSmoothing = Number(/label smoothing ([\d.]+)/.exec(criterion)?.[1] ?? 0);
  const factors = { imageFactor: config.get('f_coefficient', 4), classFactor: config.get('c_coefficient', 0.8) };
  const run: Built['run'] = (inputs) => {
    const all = (prefix: string): Tensor[] =>
      [...inputs].filter(([name]) => new RegExp(`^${prefix}\\d$`).test(name)).map(([, tensor]) => tensor);
    const labels = inputs.get('target') ?? inputs.get('soft_target');
    const pixels = inputs.get('image');
    if (!labels || !pixels) throw new UnknownCase('the case lacks a target or an image');
    const target = { labels, pixels };
    const { loss: total, parts } = compoundLoss({ logits: all('cls'), images: all('img') }, target, {
      ...factors,
      labelSmoothing,
    });
    return {
      loss: total.view([1]),
      ...numbered(
        'part',
        parts.map((part) => part.view([1])),
      ),
    };
  };
  return { state: new Map(), run };
}

function build(golden: GoldenCase): Built {
  const config = new Config(golden.config);
  const name = config.get<string>('module');
  const make = (): Built => {
    if (name.startsWith('SubNet')) return column(config);
    if (name.startsWith('FullNet') || name.startsWith('RevCol'))
      return isPyramid(name, config) ? pyramid(network(config), config, golden) : whole(config);
    if (name === 'compound_loss') return loss(config);
    throw new UnknownCase(`no builder knows '${name}' of revcol`);
  };
  const built = make();
  config.done();
  return built;
}

/** Without the heads: what is neither classifier nor decoder. */
function count(row: CountsRow): Record<string, number> {
  const { model: name, config: values, num_classes: classes } = row;
  const config = { ...(typeof values === 'string' ? {} : values), num_classes: classes ?? 1000 };
  const model = network(new Config({ ...config, huge: name.includes('huge') }));
  const heads = model.namedParameters().filter(([path]) => /^(cls|cls_blocks|decoder_blocks)\./.test(path));
  const counts = countBackbone(model, row, (x) => model.supervised(x));
  const headSize = heads.reduce((sum, [, parameter]) => sum + parameter.numel(), 0);
  return { ...counts, trainable_without_head: Number(counts['trainable_parameters']) - headSize };
}

export const revcol: Builder = { system: 'revcol', build, count };
