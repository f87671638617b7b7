/** Swin transformers of the golden cases: timm's arguments and Microsoft's, and the names of Microsoft's checkpoints. */
import type { KeyMap } from '../../../lib/checkpoint/index.js';
import { createCustomModel, microsoftSwinNames, SwinTransformer, type Backbone } from '../../../lib/models/index.js';
import { relativePositionIndex, type Extent } from '../../../lib/models/swin_windows.js';
import { SwinBlock } from '../../../lib/models/swin_blocks.js';
import type { Tensor } from '../../../lib/tensor/index.js';
import { type Built, type Config, type Entry, type Merged, UnknownCase } from '../builder.js';

/** Swin transformer with the arguments of timm; `windowRule` microsoft: with those of the codes built on Microsoft's. */
export function swinOf(config: Config, windowRule: 'timm' | 'microsoft' = 'timm'): SwinTransformer {
  config.expect('act', 'gelu(erf)');
  const always = config.get('always_partition', false);
  const model = asSwin(
    createCustomModel('swin', {
      imgSize: config.get(config.has('input_size') ? 'input_size' : 'img_size'),
      patchSize: config.get('patch_size', 4),
      inChans: config.get('in_chans', 3),
      numClasses: config.get('num_classes'),
      embedDim: config.get('embed_dim'),
      depths: config.get('depths'),
      numHeads: config.get('num_heads'),
      windowSize: windowSizes(config),
      windowRule: always ? 'always' : windowRule,
      mlpRatio: config.get('mlp_ratio', 4),
      qkvBias: config.get('qkv_bias', true),
      normEps: config.get(config.has('layer_norm_eps') ? 'layer_norm_eps' : 'norm_eps', 1e-5),
      patchNorm: config.get('patch_norm', true),
      ape: config.get('ape', false),
      dynamicImgSize: !config.get('strict_img_size', true),
      dropRate: config.get(config.has('head_dropout') ? 'head_dropout' : 'drop_rate', 0),
      dropPathRate: config.get(config.has('drop_path') ? 'drop_path' : 'drop_path_rate', 0),
    }),
  );
  checkWindows(model, config);
  return model;
}

/** As in timm, a pair is one window for all stages; a longer list has one for each. */
function windowSizes(config: Config): unknown {
  const size = config.get<number | number[]>('window_size');
  const isPair = Array.isArray(size) && size.length === 2;
  return isPair ? config.get<number[]>('depths').map(() => size) : size;
}

/** What a config says of maps, windows and shifts must be what the model does by itself. */
function checkWindows(model: SwinTransformer, config: Config): void {
  const { grid } = model.patch_embed;
  const stages = [...model.layers].map((_, i) => blocksOf(model, `layers.${i}.`).map(([, block]) => block));
  const maps = stages.map((_, i) => grid.map((side) => Math.floor(side / 2 ** i)));
  config.expect('resolutions', maps);
  for (const [key, of] of [
    ['shifts', 'shift'],
    ['shift_sizes', 'shift'],
    ['window_sizes', 'window'],
  ] as const) {
    const pairs = stages.map((list) => list.map(({ attn }) => attn.windows[of]));
    config.expect(
      key,
      pairs,
      ...(pairs.flat().every(([h, w]) => h === w) ? [pairs.map((s) => s.map(([h]) => h))] : []),
    );
  }
}

function blocksOf(model: Backbone, prefix = ''): [string, SwinBlock][] {
  const isBlock = (entry: [string, unknown]): entry is [string, SwinBlock] => entry[1] instanceof SwinBlock;
  return model
    .namedModules()
    .filter(isBlock)
    .filter(([path]) => path.startsWith(prefix));
}

/** Microsoft's names to ours; `head` is what the format calls the classifier. */
export function microsoftNames(model: SwinTransformer, head = 'head'): KeyMap {
  const renamed: KeyMap = head === 'head' ? [] : [{ kind: 'rename', from: `${head}.{leaf}`, to: 'head.{leaf}' }];
  return [...renamed, ...microsoftSwinNames(model.layers.length)];
}

/** The index and mask buffers that Microsoft's checkpoints hold besides the parameters, computed anew. */
export function microsoftBuffers(model: SwinTransformer): Map<string, Tensor> {
  const { grid } = model.patch_embed;
  const buffers = new Map<string, Tensor>();
  for (const [path, { attn }] of blocksOf(model)) {
    const { windows } = attn;
    const stage = Number(path.split('.')[1]);
    const map: Extent = [Math.floor(grid[0] / 2 ** stage), Math.floor(grid[1] / 2 ** stage)];
    const mask = windows.mask(map, 'cpu', 'float32');
    buffers.set(`${path}.attn.relative_position_index`, relativePositionIndex(windows.window));
    if (mask) buffers.set(`${path}.attn_mask`, mask.clone());
  }
  return buffers;
}

/** `built` with the buffers of Microsoft's checkpoints, each under the name that `rename` gives it. */
export function withMicrosoftBuffers(
  built: Built,
  model: SwinTransformer,
  rename: (name: string) => string = (name) => name,
): Built {
  const renamed = (): [string, Tensor][] => [...microsoftBuffers(model)].map(([name, t]) => [rename(name), t]);
  const entries = renamed().map(([name, tensor]): [string, Entry] => [name, { tensor }]);
  return {
    ...built,
    state: new Map([...built.state, ...entries]),
    // Computed again, because the golden ones have been copied into the entries.
    ...(built.merge && {
      merge: () => {
        const merged = (built.merge as () => Merged)();
        return { ...merged, state: new Map([...merged.state, ...renamed()]) };
      },
    }),
  };
}

/** @throws UnknownCase when a model is no Swin transformer */
export function asSwin(model: Backbone): SwinTransformer {
  if (model instanceof SwinTransformer) return model;
  throw new UnknownCase(`${model.name} is no Swin transformer`);
}
