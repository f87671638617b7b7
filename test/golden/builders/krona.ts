/** KronA on bare layers and on T5; LoKr on bare layers. */
import { graft, type Adapter } from '../../../lib/adapters/index.js';
import { Conv2d, Linear, type Module } from '../../../lib/nn/index.js';
import { type Built, type Builder, Config, type Entry, soleInput, UnknownCase } from '../builder.js';
import type { CountsRow, GoldenCase } from '../case.js';
import { countAdapted, graftEntries } from './adapted.js';
import { layerHost } from './layer_host.js';
import { publishedText, t5Of, textEntries, textRun } from './t5.js';

/** A bare layer with an adapter, its increment, and its weight with the increment. */
function bare(
  layer: Linear | Conv2d,
  method: string,
  options: Record<string, unknown>,
  names: { layer: string; graft: (official: string) => string },
): Built {
  const host = layerHost(layer);
  const adapter = graft(host, method, { ...options, at: { role: 'layer' } }, { head: 'frozen' });
  const [only] = adapter.grafts;
  if (!only || !('delta' in only.form) || only.composition.kind !== 'delta')
    throw new Error('a bare layer has one increment');
  const { scale } = only.composition;
  const form = only.form as Module & { delta(): ReturnType<Linear['forward']> };
  const state = new Map<string, Entry>([[`${names.layer}.weight`, { tensor: layer.weight }]]);
  if (layer.bias) state.set(`${names.layer}.bias`, { tensor: layer.bias });
  for (const [name, entry] of graftEntries(adapter, only, { graft: names.graft })) state.set(name, entry);
  return {
    module: host,
    state,
    run: (inputs) => {
      const increment = form.delta().mul(scale);
      return { y: host.run(soleInput(inputs)), delta_weight: increment, merged_weight: layer.weight.add(increment) };
    },
  };
}

function kronaLayer(config: Config): Built {
  config.expect('op', 'linear').expect('variant', 'krona');
  const layer = new Linear(config.get('in_features'), config.get('out_features'), { bias: config.get('bias', true) });
  const options = { a: config.get('a'), b: config.get('b'), scale: config.get('scale', 1) };
  return bare(layer, 'krona', options, { layer: 'linear', graft: (name) => name.replace(/^layer/, 'linear') });
}

function lokrLayer(config: Config): Built {
  const base = new Config(config.get<Record<string, unknown>>('base'));
  const type = base.get<string>('type');
  const bias = base.get('bias', true);
  const layer =
    type === 'linear'
      ? new Linear(base.get('in_features'), base.get('out_features'), { bias })
      : new Conv2d(base.get('in_channels'), base.get('out_channels'), {
          kernelSize: base.get('kernel_size'),
          stride: base.get('stride', 1),
          padding: base.get('padding', 0),
          dilation: base.get('dilation', 1),
          groups: base.get('groups', 1),
          bias,
        });
  base.done();
  const rank = config.get<number>('r', 8);
  const alpha = config.get<number>('alpha', 8);
  config.expect('scaling', alpha / rank);
  const options = {
    rank,
    alpha,
    decomposeBoth: config.get('decompose_both', false),
    decomposeFactor: config.get('decompose_factor', -1),
    effectiveConv: config.get('use_effective_conv2d', false),
  };
  return bare(layer, 'lokr', options, { layer: 'layer.base_layer', graft: (name) => name });
}

const METHODS: Readonly<Record<string, string>> = { krona: 'krona', krona_b: 'krona_b', krona_b_res: 'krona_b_res' };

/** Options of a variant on T5. */
function method(config: Config): { id: string; options: Record<string, unknown> } {
  const variant = config.get<string>('variant');
  const id = METHODS[variant];
  if (id === undefined) throw new UnknownCase(`no builder knows the variant '${variant}' of krona`);
  const targets = config.get<string[]>('targets');
  const isBeside = id !== 'krona';
  // Cases hold the trained value.
  config.ignore('residual_scale_init');
  if (isBeside !== (targets.join() === 'feed-forward'))
    throw new UnknownCase(`${variant} does not go on ${targets.join(', ')}`);
  const options = {
    a: config.get('a'),
    b: config.get('b'),
    scale: config.get('scale', 1),
    trainLayerNorm: config.get('train_layer_norm', false),
    ...(isBeside ? {} : { at: { role: targets } }),
  };
  return { id, options };
}

function build(golden: GoldenCase): Built {
  const config = new Config(golden.config);
  const isLokr = config.get<string>('variant') === 'lokr';
  if (isLokr || config.has('op')) {
    const built = isLokr ? lokrLayer(config) : kronaLayer(config);
    config.done();
    return built;
  }
  const sizes = new Config(config.get<Record<string, unknown>>('backbone'));
  const model = t5Of(sizes);
  sizes.done();
  const { id, options } = method(config);
  config.done();
  const adapter = graft(model, id, options, { head: 'frozen' });
  const own = adapter.grafts.flatMap((g) => graftEntries(adapter, g, {}));
  return { module: model, state: new Map([...textEntries(model), ...own]), run: textRun(model) };
}

function count(row: CountsRow): Record<string, number> {
  const config = new Config(typeof row.config === 'string' ? {} : row.config);
  const { id, options } = method(config);
  config.done();
  const model = publishedText(row);
  const adapter: Adapter = graft(model, id, options, { head: 'frozen' });
  return countAdapted(model, adapter);
}

export const krona: Builder = { system: 'krona', build, count };
