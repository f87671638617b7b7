/** Quantized adapters and their compact files: the bare layer, whole models, and the published files. */
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import {
  type Adapter,
  compactLayout,
  type CompactPart,
  type CompactSettings,
  type CompactSizes,
  decodeCompact,
  encodeCompact,
  graft,
} from '../../../lib/adapters/index.js';
import { readSafetensors } from '../../../lib/checkpoint/index.js';
import type { Backbone } from '../../../lib/models/index.js';
import { codebook, Context, type QuantizedBits, QuantizedLinear } from '../../../lib/nn/index.js';
import { noGrad, type Tensor, zeros } from '../../../lib/tensor/index.js';
import { type Built, bare, type Config, soleInput, Unavailable, UnknownCase } from '../builder.js';
import type { GoldenCase } from '../case.js';
import { adapted, blockName, type Naming } from './adapted.js';
import { vitOf } from './timm_backbones.js';

/** A code that the config states must be the one that we compute. */
function checkCode(config: Config, bits: number): void {
  if (!config.has('code')) return;
  const stated = config.get<number[] | Record<string, number[]>>('code');
  const codes = Array.isArray(stated) ? { [bits]: stated } : stated;
  for (const [width, values] of Object.entries(codes)) {
    const ours = codebook(Number(width)).values;
    // After 500 rounds the last bits depend on who computes the normal distribution and its inverse.
    if (ours.length !== values.length || values.some((value, i) => Math.abs(value - (ours[i] ?? NaN)) > 1e-6)) {
      throw new UnknownCase(
        `the code of ${width} bits is [${ours.join(', ')}] here, the config says [${values.join(', ')}]`,
      );
    }
  }
}

/** A bare quantized layer. */
export function quantizedLayer(config: Config): Built {
  const bits = config.expect('bias', false).get<QuantizedBits>('bits');
  checkCode(config, bits);
  return bare(new QuantizedLinear(config.get('in_features'), config.get('out_features'), { bits }));
}

/** `adaptformer`, `lora` or `lora_qv`, `*-bihead`, as PETL-ViT has them: without biases, quantized or not. */
function settingsOf(config: Config): Omit<CompactSettings, 'bit' | 'backbone' | 'dataset'> {
  const name = config.get<string>('method').replace(/_(nobias|qv)\b/, '');
  return {
    method: name as CompactSettings['method'],
    dim: config.get(config.has('bottleneck') ? 'bottleneck' : 'dim'),
    scale: config.get('scale', 1),
    num_class: config.get(config.has('num_classes') ? 'num_classes' : 'num_class', 1),
  };
}

/** Sets an adapter of PETL-ViT into a model. */
function graftSmall(
  model: Backbone,
  { method, dim, scale }: Pick<CompactSettings, 'method' | 'dim' | 'scale'>,
  form: { bits: number; dropout: number },
  head: Parameters<typeof graft>[3],
): Adapter {
  return method.startsWith('lora')
    ? graft(
        model,
        'lora',
        { rank: dim, alpha: scale * dim, dropoutAt: 'rank', at: { role: ['q', 'v'] }, ...form },
        head,
      )
    : graft(model, 'adaptformer', { hidden: dim, scale, bias: false, ...form }, head);
}

/** A block or a model with an adapter of PETL-ViT; a case with adapter.bin also checks the file. */
export function smallAdapter(golden: GoldenCase, config: Config, model: Backbone, single: boolean): Built {
  const settings = settingsOf(config);
  const bits = config.get<QuantizedBits | 32>('bits', 32);
  const headBits = config.get<QuantizedBits | 32>('head_bits', settings.method.endsWith('-bihead') ? 1 : 32);
  const form = { bits, dropout: config.get('dropout', 0) };
  checkCode(config, bits);
  const own = headBits === 32 ? 'train' : { classes: settings.num_class, bits: headBits };
  const adapter = graftSmall(model, settings, form, { head: single ? 'frozen' : own });
  const { headModule } = adapter;
  const naming: Naming = single
    ? { backbone: blockName, graft: blockName }
    : { backbone: (name) => (headModule && name.startsWith('head.') ? null : name) };
  const run: Built['run'] = single
    ? (inputs) => ({ y: model.getModule('blocks.0').run(soleInput(inputs), new Context()) })
    : (inputs) => ({ y: model.run(soleInput(inputs)) });
  const built = adapted(model, adapter, naming, run);
  const state = new Map(built.state);
  if (headModule) state.set('head.weight', { tensor: headModule.linear.weight });
  const whole = { ...built, state };
  const file = join(golden.folder, 'adapter.bin');
  if (bits === 32 || single || !existsSync(file)) return whole;
  const method =
    `${settings.method.replace(/-bihead$/, '')}${headBits === 32 ? '' : '-bihead'}` as CompactSettings['method'];
  const layout = compactLayout({ ...settings, method, bit: bits, backbone: '', dataset: '' }, sizesOf(config));
  const decoded = decodeCompact(readFileSync(file), layout);
  return withFile(whole, {
    golden,
    adapter,
    layout,
    decoded,
    unquantized: () => unquantized(config, adapter, settings, decoded),
  });
}

const sizesOf = (config: Config): CompactSizes => ({ width: config.get('embed_dim'), depth: config.get('depth') });

/** The case's backbone, as it is now, with the decoded weights in ordinary layers. */
function unquantized(
  config: Config,
  { model }: Adapter,
  settings: ReturnType<typeof settingsOf>,
  decoded: ReadonlyMap<string, Tensor>,
): Backbone {
  const plain = vitOf(config);
  const { num_class: classes } = settings;
  plain.loadStateDict(model.stateDict());
  const adapter = graftSmall(plain, settings, { bits: 32, dropout: 0 }, { head: { classes } });
  adapter.loadOfficialState(new Map([['head.bias', zeros([classes])], ...decoded]));
  return plain.eval();
}

/** Prefixes every name. */
const named = (prefix: string, tensors: ReadonlyMap<string, Tensor>): [string, Tensor][] =>
  Array.from(tensors, ([name, tensor]) => [`${prefix} ${name}`, tensor]);

/** `built` with what its files give: ours written and read, the golden one read, and the model with what was read. */
function withFile(
  built: Built,
  {
    golden: { folder },
    adapter,
    layout,
    decoded,
    unquantized: plain,
  }: {
    golden: GoldenCase;
    adapter: Adapter;
    layout: readonly CompactPart[];
    decoded: ReadonlyMap<string, Tensor>;
    unquantized: () => Backbone;
  },
): Built {
  const y = readSafetensors(join(folder, 'io.safetensors')).tensors.get('output.y');
  if (!y) throw new UnknownCase('a case with adapter.bin needs the output y');
  return {
    ...built,
    expected: new Map([
      ...named('adapter.bin', decoded),
      ...named('decoded', readSafetensors(join(folder, 'decoded.safetensors')).tensors),
      ['y of the decoded weights', y],
    ]),
    run: (inputs) => ({
      ...built.run(inputs),
      ...Object.fromEntries([
        ...named('adapter.bin', decodeCompact(encodeCompact(adapter.officialState(), layout), layout)),
        ...named('decoded', decoded),
      ]),
      'y of the decoded weights': noGrad(() => plain().run(soleInput(inputs))),
    }),
  };
}

/** Published files lie beside their cases, or with the cases beside the repository; they are no part of it. */
function officialFile({ folder, system, case: name, files }: GoldenCase): string {
  const file = files?.official ?? '';
  const places = [join(folder, file), join('..', 'shared', 'golden', system, name, file)];
  const path = places.find((place) => existsSync(place));
  if (path === undefined) throw new Unavailable(`needs ${file}, a published file that is not here`);
  return path;
}

/** A published file: what is read from it must be what the official code reads. */
export function publishedFile(golden: GoldenCase, config: Config): Built {
  config.ignore('backbone', 'dataset', 'bits');
  const bit = config.get<QuantizedBits>('bit');
  const settings = { ...settingsOf(config), bit, backbone: '', dataset: '' };
  config.expect('head_bits', settings.method.endsWith('-bihead') ? 1 : 32);
  const layout = compactLayout(settings, sizesOf(config));
  const bytes = readFileSync(officialFile(golden));
  return {
    state: new Map(),
    expected: readSafetensors(join(golden.folder, golden.files?.expected ?? '')).tensors,
    run: () => Object.fromEntries(decodeCompact(bytes, layout)),
  };
}
