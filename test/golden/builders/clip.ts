/** CLIP: both towers, their parts alone, the tokenizer, and the preparation of images. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { imageFromTensor, Pipeline, transforms } from '../../../lib/data/index.js';
import {
  AttentionPool2d,
  type Backbone,
  type Clip,
  clipBlock,
  ClipBottleneck,
  clipKeyMap,
  ClipTokenizer,
  createClip,
  createCustomClip,
  createCustomModel,
  listClips,
} from '../../../lib/models/index.js';
import { Context, type Module, Sequential } from '../../../lib/nn/index.js';
import { type Tensor, tensor } from '../../../lib/tensor/index.js';
import {
  type Built,
  type Builder,
  Config,
  entriesOf,
  entriesThrough,
  type Entry,
  soleInput,
  Unavailable,
  UnknownCase,
} from '../builder.js';
import type { CountsRow, GoldenCase } from '../case.js';
import { countBackbone } from './backbone_counts.js';

/** OpenAI's names of a tower alone or of a block, to ours: the whole archive's, which they are a part of. */
function entriesOfTower(tower: Module): Map<string, Entry> {
  const whole = clipKeyMap('openai', 'vit');
  const alone = whole.map(
    (rule) => JSON.parse(JSON.stringify(rule).replaceAll('visual.', '')) as (typeof whole)[number],
  );
  return entriesThrough(
    tower,
    alone.filter((rule) => !JSON.stringify(rule).includes('text')),
  );
}

interface VisionConfig {
  readonly kind: string;
  readonly layers: number | number[];
  readonly width: number;
  readonly heads: number;
  readonly patch_size: number | null;
}

function visualOptions(vision: VisionConfig, imgSize: number, outputDim: number | null): Record<string, unknown> {
  const { kind, layers, width, heads, patch_size: patchSize } = vision;
  if (kind === 'VisionTransformer')
    return { imgSize, patchSize, embedDim: width, depth: layers, numHeads: heads, projDim: outputDim };
  if (kind === 'ModifiedResNet') return { imgSize, layers, width, heads, outputDim };
  throw new UnknownCase(`no builder knows the image tower '${kind}' of clip`);
}

/** OpenAI's arguments of CLIP to our options. */
function clipOf(config: Config): { clip: Clip; kind: 'vit' | 'resnet' } {
  const vision = config.get<VisionConfig>('vision');
  const embedDim = config.get<number>('embed_dim');
  const kind = vision.kind === 'VisionTransformer' ? 'vit' : 'resnet';
  const clip = createCustomClip({
    visualKind: kind,
    visual: visualOptions(vision, config.get('image_resolution'), embedDim),
    text: {
      contextLength: config.get('context_length'),
      vocabSize: config.get('vocab_size'),
      width: config.get('transformer_width'),
      heads: config.get('transformer_heads'),
      layers: config.get('transformer_layers'),
      embedDim,
    },
  });
  return { clip, kind };
}

function whole(config: Config): Built {
  const { clip, kind } = clipOf(config);
  return {
    module: clip,
    state: entriesThrough(clip, clipKeyMap('openai', kind)),
    run: (inputs) => {
      const { image, text } = Object.fromEntries(inputs);
      const imageFeatures = image && clip.encodeImage(image);
      const textFeatures = text && clip.encodeText(text);
      const both = imageFeatures && textFeatures && clip.similarity(imageFeatures, textFeatures);
      return {
        ...(imageFeatures && { image_features: imageFeatures }),
        ...(textFeatures && { text_features: textFeatures }),
        ...(both && { logits_per_image: both.perImage, logits_per_text: both.perText }),
      };
    },
  };
}

/** A module of its own, run on the one input. */
const alone = (module: Module, state: Map<string, Entry>, order?: (x: Tensor) => Tensor): Built => ({
  module,
  state,
  run: (inputs) => {
    const x = soleInput(inputs);
    return { y: order ? order(module.run(order(x), new Context())) : module.run(x, new Context()) };
  },
});

/** Parts of OpenAI's model file by the names of their classes. */
const parts: Readonly<Record<string, (config: Config) => Built>> = {
  CLIP: whole,
  VisionTransformer: (config) => {
    const tower = createCustomModel('clip_vit', {
      imgSize: config.get<number>('input_resolution'),
      patchSize: config.get('patch_size'),
      embedDim: config.get('width'),
      depth: config.get('layers'),
      numHeads: config.get('heads'),
      projDim: optional(config, 'output_dim'),
    });
    return alone(tower, entriesOfTower(tower));
  },
  ModifiedResNet: (config) => {
    const tower = modifiedResNet(config, {});
    return alone(tower, entriesOf(tower));
  },
  AttentionPool2d: (config) => {
    const channels = config.get<number>('embed_dim');
    const side = config.get<number>('spacial_dim');
    const out = Number(optional(config, 'output_dim') ?? channels);
    const pool = new AttentionPool2d([side, side], channels, config.get('num_heads'), out);
    return alone(pool, entriesOf(pool));
  },
  Bottleneck: (config) => {
    const sizes = { inChannels: config.get<number>('inplanes'), planes: config.get<number>('planes') };
    const block = new ClipBottleneck({ ...sizes, stride: config.get('stride', 1), stage: 0, depth: 0 });
    return alone(block, entriesOf(block));
  },
  ResidualAttentionBlock: (config) => {
    const sizes = { width: config.get<number>('d_model'), heads: config.get<number>('n_head') };
    const block = clipBlock({ ...sizes, causal: isCausal(config) });
    return alone(block, entriesOfBlocks([block], 'transformer.resblocks.0.'), lengthFirst);
  },
  Transformer: (config) => {
    const sizes = { width: config.get<number>('width'), heads: config.get<number>('heads') };
    const causal = isCausal(config);
    const blocks = Array.from({ length: config.get<number>('layers') }, () => clipBlock({ ...sizes, causal }));
    return alone(new Sequential(...blocks), entriesOfBlocks(blocks, 'transformer.'), lengthFirst);
  },
};

/** Entries of some blocks under the names that they have as the first of a tower, without `prefix`. */
function entriesOfBlocks(blocks: readonly Module[], prefix: string): Map<string, Entry> {
  const namedState = () =>
    blocks.flatMap((block, i) => block.namedState().map(([name, t]) => [`blocks.${i}.${name}`, t] as const));
  const entries = entriesOfTower({ namedState } as unknown as Module);
  return new Map(Array.from(entries, ([name, entry]) => [name.slice(prefix.length), entry]));
}

/** @throws UnknownCase for a mask that is neither absent nor causal */
function isCausal(config: Config): boolean {
  const mask = optional(config, 'attn_mask');
  if (mask !== null && !String(mask).startsWith('causal')) throw new UnknownCase(`no builder knows the mask '${mask}'`);
  return mask !== null;
}

/** Length first, as the official blocks have it, or back. */
const lengthFirst = (x: Tensor): Tensor => x.transpose(0, 1);

/** A value that may be null or absent. */
function optional(config: Config, key: string): string | number | null {
  return config.get<string | number | null>(key, null);
}

/** OpenAI's arguments of ModifiedResNet to our options. */
export function modifiedResNet(config: Config, more: Record<string, unknown>): Backbone {
  return createCustomModel('clip_resnet', {
    layers: config.get('layers'),
    width: config.get('width', 64),
    outputDim: config.get('output_dim'),
    heads: config.get('heads'),
    imgSize: config.get<number>('input_resolution', 224),
    ...more,
  });
}

/** The class that a case is of: as its source says, else as its arguments show. */
function partOf({ source, config }: GoldenCase): string {
  const stated = [config['module'], config['kind'], source?.entry?.split(':').at(-1)].find(
    (name) => typeof name === 'string' && Object.hasOwn(parts, name),
  );
  if (typeof stated === 'string') return stated;
  const shown = { vision: 'CLIP', spacial_dim: 'AttentionPool2d', d_model: 'ResidualAttentionBlock' };
  return Object.entries(shown).find(([key]) => key in config)?.[1] ?? 'unnamed';
}

const VOCABULARY = 'bpe_simple_vocab_16e6.txt.gz';

/** OpenAI's vocabulary, which is not part of this repository: beside the cases, or beside the repository. */
export function vocabulary(folder: string): ClipTokenizer {
  const beside = fileURLToPath(new URL('../../../../shared/data/clip', import.meta.url));
  const places = [
    process.env['CLIP_VOCABULARY'],
    join(folder, '../../../data/clip', VOCABULARY),
    join(beside, VOCABULARY),
  ];
  const path = places.find((place) => place !== undefined && existsSync(place));
  if (path === undefined) {
    throw new Unavailable(`needs ${VOCABULARY}, which is not here; name it in the variable CLIP_VOCABULARY`);
  }
  return ClipTokenizer.fromFile(path);
}

/** Rows of ids of one length, padded. */
function padded(rows: readonly (readonly number[])[], width: number): Tensor {
  const values = rows.flatMap((row) => Array.from({ length: width }, (_, i) => row[i] ?? -1));
  return tensor(values, { dtype: 'int32' }).reshape([rows.length, width]);
}

function tokenizing({ config: values, folder, outputs }: GoldenCase): Built {
  const config = new Config(values).ignore('vocabulary', 'after_ftfy');
  const texts = config.get<string[]>('texts');
  const tokenizer = config.has('merges') ? new ClipTokenizer(config.get('merges')) : vocabulary(folder);
  config.expect('vocab_size', tokenizer.vocabSize);
  const contextLength = config.get('context_length', 77);
  const truncate = config.get('truncate', false);
  config.done();
  // Shapes stand alone or with their dtype.
  const width = Number((outputs?.['ids']?.flat() ?? [])[1] ?? 0);
  return {
    state: new Map(),
    run: () => ({
      ...(outputs?.['tokens'] && { tokens: tokenizer.tokenize(texts, { contextLength, truncate }) }),
      ...(width && {
        ids: padded(
          texts.map((text) => tokenizer.encode(text)),
          width,
        ),
      }),
    }),
  };
}

function preparing({ config: values }: GoldenCase): Built {
  const config = new Config(values);
  const side = config.get<number>('n_px');
  const pipeline = new Pipeline(
    transforms.compose(
      transforms.resize(side, { interpolation: 'bicubic' }),
      transforms.centerCrop(side),
      transforms.toFloat(),
      transforms.normalize(config.get('mean'), config.get('std')),
    ),
  );
  config.done();
  return {
    state: new Map(),
    run: (inputs) => {
      const image = imageFromTensor(soleInput(inputs).permute([2, 0, 1]));
      return { y: pipeline.collate([pipeline.apply(image)]).squeeze(0) };
    },
  };
}

function build(golden: GoldenCase): Built {
  if ('texts' in golden.config) return tokenizing(golden);
  if ('n_px' in golden.config) return preparing(golden);
  const part = partOf(golden);
  const make = Object.hasOwn(parts, part) ? parts[part] : undefined;
  if (!make) throw new UnknownCase(`no builder knows the part '${part}' of clip`);
  const config = new Config(golden.config).ignore('module', 'kind');
  const built = make(config);
  config.done();
  return built;
}

function count(row: CountsRow): Record<string, number> {
  if (!listClips().includes(row.model)) throw new UnknownCase(`no CLIP is called '${row.model}'`);
  const clip = createClip(row.model);
  const size = (module: Module): number => module.parameters().reduce((sum, p) => sum + p.numel(), 0);
  const [total, visual] = [size(clip), size(clip.visual)];
  const { macs = 0 } = countBackbone(clip.visual, { ...row, image_size: clip.visual.config.inputSize[1] });
  return {
    macs,
    total_parameters: total,
    trainable_parameters: total,
    visual_parameters: visual,
    text_parameters: total - visual - 1,
  };
}

export const clip: Builder = { system: 'clip', build, count };
