/** ST-Adapter: the bare adapter, CLIP's image transformer on clips, frame indices, and the views of a decoded video. */
import { type Adapter, graft, StAdapter } from '../../../lib/adapters/index.js';
import type { KeyMap } from '../../../lib/checkpoint/index.js';
import { clipViews, testFrames } from '../../../lib/data/index.js';
import { type Backbone, createCustomModel, openaiVisionTransformer } from '../../../lib/models/index.js';
import { Context, type Size3 } from '../../../lib/nn/index.js';
import { averageViews } from '../../../lib/systems/index.js';
import { countMacs, empty, noGrad, scope, tensor } from '../../../lib/tensor/index.js';
import { type Built, type Builder, Config, entriesOf, soleInput, UnknownCase } from '../builder.js';
import { configText, type CountsRow, type GoldenCase } from '../case.js';
import { adapted, countAdapted } from './adapted.js';

function bareAdapter(config: Config): Built {
  const module = new StAdapter(
    config.get('in_channels'),
    config.get('adapter_channels'),
    config.get<Size3>('kernel_size'),
  );
  config.ignore('batch');
  const grid = config.get<[number, number]>('grid');
  const frames = config.get<number>('num_frames');
  const prefixTokens = config.get('prefix_tokens', 1);
  return {
    module,
    state: entriesOf(module),
    run: (inputs) => {
      const x = soleInput(inputs);
      const ctx = Object.assign(new Context(), { grid, frames, prefixTokens });
      return { y: x.add(module.run(x, ctx)) };
    },
  };
}

/** The classifier is `fc` there, and there is no projection. */
const names: KeyMap = [{ kind: 'rename', from: 'fc.{leaf}', to: 'head.{leaf}' }, ...openaiVisionTransformer];

interface Sizes {
  readonly width: number;
  readonly patch: number;
  readonly resolution: number;
  readonly layers: number;
  readonly heads: number;
  readonly classes: number;
  readonly dropout?: number;
}

function tower({ width, patch, resolution, layers, heads, classes, dropout = 0.5 }: Sizes): Backbone {
  return createCustomModel('clip_vit', {
    imgSize: resolution,
    patchSize: patch,
    embedDim: width,
    depth: layers,
    numHeads: heads,
    numClasses: classes,
    dropRate: dropout,
  });
}

function whereOf(preAttention: boolean, preMlp: boolean): 'both' | 'attention' | 'mlp' | null {
  if (preAttention) return preMlp ? 'both' : 'attention';
  return preMlp ? 'mlp' : null;
}

function vit(config: Config): Built {
  const layers = config.get<number>('layers');
  const model = tower({
    resolution: config.get('input_resolution'),
    patch: config.get('patch_size'),
    width: config.get('width'),
    layers,
    heads: config.get('heads'),
    classes: config.get('num_classes'),
    dropout: config.get('dropout', 0.5),
  });
  config.ignore('batch', 'num_frames');
  const where = whereOf(config.get('adapter_pre_attn', false), config.get('adapter_pre_mlp', false));
  const adapters = config.get('adapter_layers', layers);
  const options = {
    hidden: config.get('adapter_width', 384),
    kernel: config.get('adapter_kernel_size', [3, 1, 1]),
    layers: adapters,
  };
  const views = config.get('views_per_video', 0);
  const isPlain = where === null || adapters === 0;
  const adapter = isPlain ? graft(model, 'linear_probe') : graft(model, 'st_adapter', { ...options, where });
  return adapted(model, adapter, { keyMap: names }, (inputs) => {
    const logits = model.run(soleInput(inputs));
    return views > 0 ? { logits, scores: averageViews(logits, views) } : { logits };
  });
}

interface IndexCase {
  readonly video_length: number;
  readonly num_frames: number;
  readonly sampling_rate: number;
  readonly num_temporal_views: number;
}

const frameIndices = (config: Config): Built => {
  const cases = config.get<IndexCase[]>('cases');
  return {
    state: new Map(),
    run: () =>
      Object.fromEntries(
        cases.map(
          ({ video_length: length, num_frames: frames, sampling_rate: stride, num_temporal_views: views }, i) => {
            const rows = testFrames(length, { frames, stride }, views);
            return [`indices_${i}`, tensor(rows, { dtype: 'int64' })];
          },
        ),
      ),
  };
};

function videoViews(config: Config): Built {
  config.expect('interpolation', 'bicubic');
  const options = {
    frames: config.get<number>('num_frames'),
    stride: config.get<number>('sampling_rate'),
    size: config.get<number>('spatial_size'),
    spatialViews: config.get<1 | 3>('num_spatial_views'),
    temporalViews: config.get<number>('num_temporal_views'),
    mean: config.get<number[]>('mean'),
    std: config.get<number[]>('std'),
  };
  return { state: new Map(), run: (inputs) => ({ views: clipViews(soleInput(inputs), options) }) };
}

function build(golden: GoldenCase): Built {
  const config = new Config(golden.config).ignore('module');
  const kinds: readonly (readonly [key: string, make: (config: Config) => Built])[] = [
    ['cases', frameIndices],
    ['num_spatial_views', videoViews],
    ['adapter_channels', bareAdapter],
    ['input_resolution', vit],
  ];
  const make = kinds.find(([key]) => config.has(key))?.[1];
  if (!make) throw new UnknownCase(`no builder knows what st_adapter's case '${golden.case}' is of`);
  const built = make(config);
  config.done();
  return built;
}

const CLIP = {
  B: { width: 768, resolution: 224, layers: 12, heads: 12 },
  L: { width: 1024, resolution: 224, layers: 24, heads: 16 },
};

/** Rows say their configuration in words: `..., adapters before every MLP, kernel 3x1x1, channels 384`. */
function count(row: CountsRow): Record<string, number> {
  const text = `${row.model}, ${configText(row)}`;
  const kernel = /kernel (\d+)x(\d+)x(\d+)/.exec(text)?.slice(1).map(Number);
  const hidden = /channels (\d+)/.exec(text)?.[1];
  const patch = /(?:patch|[BL]\/)(\d+)/.exec(text)?.[1];
  const sizes = /large|ViT-L/.test(text) ? CLIP.L : /base|ViT-B/.test(text) ? CLIP.B : null;
  if (!kernel || !hidden || !patch || !sizes) {
    throw new UnknownCase(`no builder knows the configuration '${text}' of st_adapter`);
  }
  const where = whereOf(/before every attention/.test(text), /before (?:every MLP|the MLPs)|and every MLP/.test(text));
  const model = tower({ ...sizes, patch: Number(patch), classes: row.num_classes ?? 0 });
  const adapter: Adapter = graft(model, 'st_adapter', { hidden: Number(hidden), kernel, where });
  const clip = empty([1, 3, 8, 224, 224], { device: 'meta' });
  const macs = noGrad(() => scope(() => countMacs(() => model.eval().run(clip)).macs));
  return { ...countAdapted(model, adapter), macs };
}

export const stAdapter: Builder = { system: 'st_adapter', build, count };
