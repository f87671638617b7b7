/** The unified view's bare layers: bottleneck adapters, prefixes, LoRA. */
import { Bottleneck, type BottleneckStart, graft, PrefixMlp } from '../../../lib/adapters/index.js';
import { Context, Linear, ModuleDict, Parameter } from '../../../lib/nn/index.js';
import { aten, empty, type Tensor } from '../../../lib/tensor/index.js';
import { type Built, type Config, type Entry, soleInput, UnknownCase } from '../builder.js';
import { activationNamed } from './activations.js';
import { layerHost } from './layer_host.js';
import { adapterEntries, scaleOf, wrapped } from './unified_names.js';

interface LayerConfig {
  readonly bottleneck: number;
  readonly init: BottleneckStart;
  readonly scalar: string | number;
  readonly layernorm: 'in' | 'out' | 'none';
  readonly add_residual: boolean;
  readonly external_residual?: boolean;
  readonly dropout?: number;
}

const LEAVES: Readonly<Record<string, string>> = {
  down: 'down_proj',
  up: 'up_proj',
  norm: 'adapter_layer_norm_before',
};

/** Bottleneck adapters side by side, each on the input and added as its own config says. */
export function adapterLayers(config: Config): Built {
  const dim = config.get<number>('d_model');
  const activation = activationNamed(config.get('activation', 'relu'));
  const layers = Object.entries(config.get<Record<string, LayerConfig>>('layers'));
  const made = layers.map(([name, { bottleneck, init, scalar, layernorm, dropout = 0 }]) => {
    const scale = scaleOf(scalar);
    return [
      name,
      new Bottleneck(dim, dim, { width: bottleneck, start: init, scale, norm: layernorm, activation, dropout }),
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

/** What the prefix module hands to every attention of every layer. */
export function prefixModule(config: Config): Built {
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

/** One linear layer with LoRA, and its merged weight. */
export function loraLinear(config: Config): Built {
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
