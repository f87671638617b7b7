/** ConvNeXt under the names of the official code and of timm: blocks, classifiers, isotropic models. */
import type { KeyMap } from '../../../lib/checkpoint/index.js';
import {
  createCustomModel,
  OFFICIAL_CONVNEXT_NAMES,
  OFFICIAL_ISOTROPIC_NAMES,
  TIMM_CONV_MLP,
  type Backbone,
} from '../../../lib/models/index.js';
import { Context } from '../../../lib/nn/index.js';
import { type Built, type Builder, Config, entriesThrough, type Entry, soleInput, UnknownCase } from '../builder.js';
import type { CountsRow, GoldenCase } from '../case.js';
import { countBackbone } from './backbone_counts.js';
import { isPyramid, pyramid } from './pyramid.js';
import { plain, published } from './timm_backbones.js';

/** The first of several spellings of a key that the config has. */
function either(config: Config, ...keys: string[]): string {
  return keys.find((key) => config.has(key)) ?? (keys[0] as string);
}

/** Arguments that blocks and networks share. */
export function convnextBlockOptions(config: Config): Record<string, unknown> {
  config.expect('act', 'gelu(erf)');
  return {
    kernelSize: config.get('kernel_size', 7),
    mlpRatio: config.get('mlp_ratio', 4),
    normEps: config.get(either(config, 'norm_eps', 'layer_norm_eps'), 1e-6),
    layerScale: config.get<number | null>(either(config, 'layer_scale_init_value', 'ls_init_value'), 1e-6),
    dropPathRate: config.get(either(config, 'drop_path_rate', 'drop_path'), 0),
  };
}

/** ConvNeXt with the arguments of the official code, of timm, or of the codes of adaptation methods. */
export function convnextOf(config: Config, more: Record<string, unknown> = {}): Backbone {
  config.ignore('conv_mlp').expect('downsample_norm_variance', 'biased', 'unbiased');
  return createCustomModel('convnext', {
    ...convnextBlockOptions(config),
    depths: config.get('depths'),
    dims: config.get('dims'),
    patchSize: config.get('patch_size', 4),
    inChans: config.get('in_chans', 3),
    numClasses: config.get<number | null>('num_classes', 1000) ?? 0,
    headNormFirst: config.get('head_norm_first', false),
    headInitScale: config.get('head_init_scale', 1),
    dropRate: config.get(either(config, 'drop_rate', 'head_dropout'), 0),
    unbiasedDownsampleNorm: config.get<string>('downsample_norm_variance', 'biased') === 'unbiased',
    ...more,
  });
}

function isotropicOf(config: Config): Backbone {
  return createCustomModel('convnext', {
    ...convnextBlockOptions(config),
    depths: [config.get('depth')],
    dims: [config.get('dim')],
    patchSize: config.get('patch', 16),
    stemNorm: false,
    inChans: config.get('in_chans', 3),
    numClasses: config.get('num_classes'),
    headInitScale: config.get('head_init_scale', 1),
  });
}

/** A block alone, out of the smallest network around it. */
function block(config: Config, keyMap: KeyMap): Built {
  const options = { ...convnextBlockOptions(config), depths: [1], dims: [config.get<number>('dim')], numClasses: 0 };
  const model = createCustomModel('convnext', options);
  const own = Array.from(entriesThrough(model, keyMap)).flatMap(([name, entry]): [string, Entry][] => {
    const [, leaf] = /^stages\.0\.(?:blocks\.)?0\.(.+)$/.exec(name) ?? [];
    return leaf === undefined ? [] : [[leaf, entry]];
  });
  return {
    module: model,
    state: new Map(own),
    run: (inputs) => ({ y: model.getModule('stages.0.blocks.0').run(soleInput(inputs), new Context()) }),
  };
}

const whole = (model: Backbone, keyMap: KeyMap): Built => ({ ...plain(model), state: entriesThrough(model, keyMap) });

function build(golden: GoldenCase): Built {
  const config = new Config(golden.config);
  config.expect('naming', 'official', 'timm');
  const module = config.get<string>('module');
  const names = config.get<string>('naming', 'official') === 'timm' ? [] : OFFICIAL_CONVNEXT_NAMES;
  const keyMap = config.get('conv_mlp', false) ? [...names, ...TIMM_CONV_MLP] : names;
  const makers: Readonly<Record<string, () => Built>> = {
    Block: () => block(config, keyMap),
    ConvNeXtBlock: () => block(config, keyMap),
    ConvNeXtIsotropic: () => whole(isotropicOf(config), OFFICIAL_ISOTROPIC_NAMES),
  };
  const network = (): Built => {
    if (!isPyramid(module, config)) return whole(convnextOf(config), keyMap);
    const model = convnextOf(config, { featureNorms: true, numClasses: 0 });
    return pyramid(model, config, golden, entriesThrough(model.toTrunk(), keyMap));
  };
  const built = module.startsWith('ConvNeXt') && !(module in makers) ? network() : makers[module]?.();
  if (!built) throw new UnknownCase(`no builder knows the module '${module}' of convnext`);
  config.done();
  return built;
}

/** Rows name models as the papers do, or `timm convnext_atto`. */
function count(row: CountsRow): Record<string, number> {
  return countBackbone(published(row.model.replace(/^timm /, ''), row.num_classes ?? 1000), row);
}

export const convnext: Builder = { system: 'convnext', build, count };
