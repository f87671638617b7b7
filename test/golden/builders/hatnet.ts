/** HAT-Net, its attention and its MLP. */
import { HatAttention, HatBlock, InvertedResidual } from '../../../lib/models/hatnet_blocks.js';
import { type Backbone, createCustomModel } from '../../../lib/models/index.js';
import type { ActivationName } from '../../../lib/nn/index.js';
import { bare, type Built, type Builder, Config, UnknownCase } from '../builder.js';
import type { CountsRow, GoldenCase } from '../case.js';
import { countBackbone } from './backbone_counts.js';
import { isPyramid, pyramid } from './pyramid.js';
import { plain, published } from './timm_backbones.js';

const activation = (config: Config): ActivationName => config.get('act', 'SiLU').toLowerCase() as ActivationName;

const MAKERS: Readonly<Record<string, (config: Config) => Built>> = {
  HATAttention: (config) =>
    bare(
      new HatAttention({
        dim: config.get('dim'),
        headDim: config.get('head_dim'),
        window: config.get('grid_size', 1),
        pool: config.get('ds_ratio', 1),
        drop: config.get('drop', 0),
      }),
    ),
  HATInvertedResidual: (config) =>
    bare(
      new InvertedResidual({
        inChannels: config.get('in_dim'),
        hidden: config.get(config.has('hidden_dim') ? 'hidden_dim' : 'in_dim'),
        outChannels: config.get(config.has('out_dim') ? 'out_dim' : 'in_dim'),
        kernelSize: config.get('kernel_size', 3),
        activation: activation(config),
        drop: config.get('drop', 0),
      }),
    ),
  HATBlock: (config) => {
    const dim = config.get<number>('dim');
    return bare(
      new HatBlock({
        dim,
        headDim: config.get('head_dim'),
        window: config.get('grid_size', 1),
        pool: config.get('ds_ratio', 1),
        hidden: Math.floor(dim * config.get<number>('expansion', 4)),
        kernelSize: config.get('kernel_size', 3),
        activation: activation(config),
        drop: config.get('drop', 0),
        dropPath: config.get('drop_path', 0),
        stage: 0,
        depth: 0,
      }),
    );
  },
};

function network(config: Config): Backbone {
  // Arguments of the official class that it does not listen to.
  config.ignore('img_size', 'in_chans');
  const given = (key: string, option: string): Record<string, unknown> =>
    config.has(key) ? { [option]: config.get(key) } : {};
  return createCustomModel('hatnet', {
    ...given('dims', 'dims'),
    ...given('head_dim', 'headDim'),
    ...given('expansions', 'expansions'),
    ...given('grid_sizes', 'windows'),
    ...given('ds_ratios', 'pools'),
    ...given('depths', 'depths'),
    ...given('kernel_sizes', 'kernelSizes'),
    numClasses: config.get<number | null>('num_classes', 1000) ?? 0,
    dropRate: config.get('drop_rate', 0),
    dropPathRate: config.get('drop_path_rate', 0),
    activation: activation(config),
  });
}

function build(golden: GoldenCase): Built {
  const config = new Config(golden.config);
  const name = config.get<string>(config.has('module') ? 'module' : 'model');
  const whole = (): Built =>
    isPyramid(name, config) ? pyramid(network(config), config, golden) : plain(network(config));
  const built = /^HAT_?Net/.test(name) ? whole() : MAKERS[name]?.(config);
  if (!built) throw new UnknownCase(`no builder knows '${name}' of hatnet`);
  config.done();
  return built;
}

const count = (row: CountsRow): Record<string, number> =>
  countBackbone(published(row.model.replace('HAT_Net', 'hatnet'), row.num_classes ?? 1000), row);

export const hatnet: Builder = { system: 'hatnet', build, count };
