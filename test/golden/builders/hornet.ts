/** HorNet, its isotropic form, the gated convolution and HorFPN. */
import { HorFpn, GnConvModule } from '../../../lib/models/horfpn.js';
import { type GatedFilter, GnConv } from '../../../lib/models/hornet_blocks.js';
import { type Backbone, createCustomModel } from '../../../lib/models/index.js';
import { Context, type Module } from '../../../lib/nn/index.js';
import type { Tensor } from '../../../lib/tensor/index.js';
import { bare, type Built, type Builder, Config, entriesOf, UnknownCase } from '../builder.js';
import type { CountsRow, GoldenCase } from '../case.js';
import { countBackbone } from './backbone_counts.js';
import { isPyramid, pyramid } from './pyramid.js';
import { plain, published } from './timm_backbones.js';

type Values = Readonly<Record<string, unknown>>;

/** `filter` (or `type` in the pyramid) with the size that goes with it. */
function filterOf(config: Config, key: 'filter' | 'type', kernel: number): GatedFilter {
  const kind = config.get<string>(key, key === 'type' ? 'gnconv' : 'dwconv7x7');
  if (kind === 'dwconv7x7' || kind === 'gnconv' || kind === '7x7') {
    config.ignore('h', 'w');
    return kernel;
  }
  if (kind !== 'global_local' && kind !== 'gngf' && kind !== 'GF')
    throw new UnknownCase(`the config's ${key} is '${kind}'`);
  // A network's filters have a size of their own; in the pyramid the width follows from the height.
  const h = config.get('h', key === 'type' ? 32 : 14);
  return [h, config.get('w', key === 'type' ? Math.floor(h / 2) + 1 : 8)];
}

/** A filter as counts.json writes it. */
const listed = (filter: unknown): GatedFilter => (filter === '7x7' ? 7 : (filter as GatedFilter));

function gated(values: Values): { order: number; s: number; filter: GatedFilter } {
  const config = new Config(values);
  const of = { order: config.get('order', 5), s: config.get('s', 1), filter: filterOf(config, 'filter', 7) };
  config.done();
  return of;
}

function network(config: Config, featureNorms: boolean): Backbone {
  const stages = config.get<Values[]>('gnconv').map(gated);
  const baseDim = config.get<number>('base_dim');
  config.expect(
    'dims',
    config.get<number[]>('depths').map((_, i) => baseDim * 2 ** i),
  );
  return createCustomModel('hornet', {
    depths: config.get('depths'),
    baseDim,
    orders: stages.map(({ order }) => order),
    scales: stages.map(({ s }) => s),
    filters: stages.map(({ filter }) => filter),
    featureNorms,
    numClasses: config.get<number | null>('num_classes') ?? 0,
    ...common(config),
  });
}

function common(config: Config): Values {
  return {
    inChans: config.get('in_chans', 3),
    layerScale: config.get('layer_scale_init_value', 1e-6),
    dropPathRate: config.get('drop_path_rate', 0),
    mlpRatio: config.get('mlp_ratio', 4),
    normEps: config.get('norm_eps', 1e-6),
  };
}

function isotropic(config: Config): Backbone {
  return createCustomModel('hornet_isotropic', {
    dim: config.get('dim'),
    depth: config.get('depth'),
    patchSize: config.get('patch', 16),
    order: config.get('order', 5),
    scale: config.get('s', 1),
    filter: filterOf(config, 'filter', 7),
    numClasses: config.get<number | null>('num_classes') ?? 0,
    ...common(config),
  });
}

/** Levels of an output or input by name: c2, c3, ... or p2, p3, ... */
const named = (letter: string, maps: readonly Tensor[]): Record<string, Tensor> =>
  Object.fromEntries(maps.map((map, i) => [`${letter}${i + 2}`, map]));

function gnConvOf(config: Config): Module {
  const dim = config.get<number>('dim');
  const filter = filterOf(config, 'filter', 7);
  return new GnConv({ inChannels: dim, order: config.get('order', 5), scale: config.get('s', 1), filter });
}

/** Kernel and last convolution have defaults of their own in detection's pyramid and in segmentation's module. */
function gnModuleOptions(
  config: Config,
  { kernel, projOut }: { kernel: number; projOut: boolean },
): NonNullable<ConstructorParameters<typeof GnConvModule>[2]> {
  return {
    order: config.get('order', 2),
    filter: filterOf(config, 'type', config.get('kernel_size', kernel)),
    dimRatio: config.get('dim_ratio', 1),
    projOut: config.get('proj_out', projOut),
  };
}

function gnModule(config: Config): Module {
  const norm = config.get<string | null>('norm', null);
  const act = config.get<string | null>('act', null);
  if (norm !== null && !/^(BatchNorm( eps 1e-0?5)?|BN)$/.test(norm))
    throw new UnknownCase(`the config's norm is '${norm}'`);
  if (act !== null && act.toLowerCase() !== 'relu') throw new UnknownCase(`the config's act is '${act}'`);
  return new GnConvModule(config.get('in_channels'), config.get('out_channels'), {
    ...gnModuleOptions(config, { kernel: 3, projOut: false }),
    norm: norm === null ? null : {},
    act: act === null ? 'none' : 'relu',
  });
}

function fpn(config: Config): HorFpn {
  config.expect('upsample', 'nearest').expect('norm_cfg', null).expect('act_cfg', null);
  const cell = new Config(config.get<Values>('gn_conv_cfg', {}));
  const neck = new HorFpn({
    inChannels: config.get('in_channels'),
    outChannels: config.get('out_channels', 256),
    numOuts: config.get('num_outs'),
    gated: gnModuleOptions(cell, { kernel: 7, projOut: true }),
  });
  cell.done();
  return neck;
}

function neckOf(config: Config): Built {
  const neck = fpn(config);
  const run: Built['run'] = (inputs) =>
    named(
      'p',
      neck.fuse(
        [...inputs].sort(byName).map(([, map]) => map),
        new Context(),
      ),
    );
  return { module: neck, state: entriesOf(neck), run };
}

const byName = ([a]: [string, Tensor], [b]: [string, Tensor]): number => (a < b ? -1 : 1);

function build(golden: GoldenCase): Built {
  const config = new Config(golden.config);
  const name = config.get<string>('module');
  const make = (): Built => {
    if (name === 'gnconv') return bare(gnConvOf(config));
    if (name === 'GNConvModule') return bare(gnModule(config));
    if (name === 'GNFPN') return neckOf(config);
    if (/iso/i.test(name)) return plain(isotropic(config));
    if (name.startsWith('HorNet') && isPyramid(name, config)) return pyramid(network(config, true), config, golden);
    if (name === 'HorNet') return plain(network(config, false));
    throw new UnknownCase(`no builder knows '${name}' of hornet`);
  };
  const built = make();
  config.done();
  return built;
}

function count(row: CountsRow): Record<string, number> {
  const { model, config: given, num_classes: classes } = row;
  const values = typeof given === 'string' ? {} : given;
  const numClasses = classes ?? 1000;
  if (model.startsWith('HorFPN')) {
    const type = values['type'] as string;
    const { order, ...rest } = values as { order: number };
    const cfg = { order, type, kernel_size: 7, proj_out: true };
    const sizes = Object.fromEntries(Object.entries(rest).filter(([key]) => key !== 'type'));
    const neck = fpn(new Config({ ...sizes, gn_conv_cfg: cfg }));
    const total = neck.parameters().reduce((sum, parameter) => sum + parameter.numel(), 0);
    return { total_parameters: total, trainable_parameters: total, trainable_without_head: total };
  }
  if (/iso/i.test(model) && 'dim' in values) {
    return countBackbone(isotropic(new Config({ ...values, num_classes: numClasses })), row);
  }
  const config = new Config(values);
  if (!config.has('base_dim')) return countBackbone(published(model, numClasses), row);
  const filters = config.get<unknown[]>('filters').map(listed);
  return countBackbone(
    createCustomModel('hornet', {
      depths: config.get('depths'),
      baseDim: config.get('base_dim'),
      orders: config.get('orders'),
      scales: filters.map(() => config.get('s', 1)),
      filters,
      layerScale: config.get('layer_scale_init_value', 1e-6),
      numClasses,
    }),
    row,
  );
}

export const hornet: Builder = { system: 'hornet', build, count };
