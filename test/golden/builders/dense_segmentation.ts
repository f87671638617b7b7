/** Segmentation heads, necks, losses and sliding windows of the dense-head cases. */
import type { SegmentationHead } from '../../../lib/heads/index.js';
import {
  EncoderDecoder,
  type FeatureSource,
  FcnHead,
  Fpn,
  FpnHead,
  type Neck,
  probabilities,
  Segmenter,
  SetrUpHead,
  UPerHead,
} from '../../../lib/heads/index.js';
import { Context, Conv2d, functional, Module, ReLU, Sequential } from '../../../lib/nn/index.js';
import type { Tensor } from '../../../lib/tensor/index.js';
import { type Built, Config, entriesOf, soleInput, UnknownCase } from '../builder.js';

type Values = Readonly<Record<string, unknown>>;

/** What every mmseg head is told. */
function common(config: Config, defaultDropout: number) {
  const norm = {
    eps: config.get('bn_eps', 1e-5),
    momentum: config.get('bn_momentum', 0.1),
  };
  config
    .expect('norm', 'BN', 'SyncBN')
    .expect('act', 'ReLU')
    .ignore('ignore_index', 'feature_sizes', 'input_size', 'loss_decode');
  return {
    numClasses: config.get<number>('num_classes'),
    dropout: config.get('dropout_ratio', defaultDropout),
    alignCorners: config.get('align_corners', false),
    lossWeight: config.get('loss_weight', 1),
    norm,
  };
}

/** The one level that a head reads. */
const only = (value: number | number[]): number => (typeof value === 'number' ? value : (value[0] ?? 0));

/** A head by its class in mmseg. */
export function headOf(config: Config): SegmentationHead {
  const kind = config.get<string>('head');
  if (kind === 'UPerHead') {
    return new UPerHead({
      ...common(config, 0.1),
      inChannels: config.get('in_channels'),
      ...(config.has('in_index') && { inIndex: config.get<number[]>('in_index') }),
      channels: config.get('channels', 512),
      poolScales: config.get('pool_scales', [1, 2, 3, 6]),
    });
  }
  if (kind === 'FCNHead') {
    return new FcnHead({
      ...common(config, 0.1),
      inChannels: only(config.get('in_channels')),
      inIndex: only(config.get('in_index', -1)),
      channels: config.get('channels', 256),
      numConvs: config.get('num_convs', 2),
      kernelSize: config.get('kernel_size', 3),
      concatInput: config.get('concat_input', true),
    });
  }
  if (kind === 'FPNHead') {
    return new FpnHead({
      ...common(config, 0.1),
      inChannels: config.get('in_channels'),
      ...(config.has('in_index') && { inIndex: config.get<number[]>('in_index') }),
      featureStrides: config.get('feature_strides', [4, 8, 16, 32]),
      channels: config.get('channels', 128),
    });
  }
  if (kind === 'SETRUPHead') {
    return new SetrUpHead({
      ...common(config.expect('input_norm', 'LayerNorm'), 0),
      inChannels: only(config.get('in_channels')),
      inIndex: only(config.get('in_index', -1)),
      channels: config.get('channels', 256),
      numConvs: config.get('num_convs', 1),
      upScale: config.get('up_scale', 4),
      kernelSize: config.get('kernel_size', 3),
      normEps: config.get('input_norm_eps', 1e-6),
    });
  }
  throw new UnknownCase(`no builder knows the head '${kind}'`);
}

const EXTRA: Readonly<Record<string, 'pool' | 'on_input' | 'on_lateral' | 'on_output'>> = {
  false: 'pool',
  true: 'on_input',
  on_input: 'on_input',
  on_lateral: 'on_lateral',
  on_output: 'on_output',
};

/** mmseg's `add_extra_convs` of a pyramid. */
export function extraLevels(value: unknown): 'pool' | 'on_input' | 'on_lateral' | 'on_output' {
  const extra = EXTRA[String(value)];
  if (!extra) throw new UnknownCase('the neck adds its extra levels in a way that nobody knows');
  return extra;
}

function neckOf(config: Config): Fpn | null {
  if (!config.has('neck')) return null;
  config
    .expect('neck', 'FPN')
    .expect('neck_norm', null)
    .expect('neck_act', null)
    .expect('neck_relu_before_extra_convs', false)
    .expect('neck_end_level', -1);
  const extra = extraLevels(config.get<unknown>('neck_add_extra_convs', false));
  return new Fpn({
    inChannels: config.get('neck_in_channels'),
    outChannels: config.get('neck_out_channels'),
    numOuts: config.get('neck_num_outs'),
    startLevel: config.get('neck_start_level', 0),
    extra,
  });
}

/** Inputs f0, f1, ... as levels; a case gives only those that are read. */
function levelsOf(inputs: ReadonlyMap<string, Tensor>): Tensor[] {
  const levels: Tensor[] = [];
  for (const [name, map] of inputs) {
    const index = /^f(\d+)$/.exec(name)?.[1];
    if (index !== undefined) levels[Number(index)] = map;
  }
  return levels;
}

/** A head, with its neck if it has one: levels to logits. */
export function segmentationHead(config: Config): Built {
  const neck = neckOf(config);
  const head = headOf(config);
  config.done();
  if (!neck) {
    return { module: head, state: entriesOf(head), run: (inputs) => ({ y: head.segment(levelsOf(inputs)) }) };
  }
  const model = assembled(new Given(), head, { neck });
  const run: Built['run'] = (inputs) => {
    const ctx = new Context();
    return { y: head.segment(neck.fuse(levelsOf(inputs), ctx), ctx) };
  };
  return { module: model, state: entriesOf(model), run };
}

/** Stands for a backbone where a case gives the feature maps. */
class Given extends Module implements FeatureSource {
  readonly featureLevels = [];

  forward(x: Tensor): Tensor {
    return x;
  }

  forwardIntermediates(x: Tensor): Tensor[] {
    return [x];
  }
}

interface Parts {
  readonly neck?: Neck;
  readonly auxiliaryHead?: SegmentationHead | SegmentationHead[];
  readonly ignoreIndex?: number;
  readonly average?: 'all' | 'valid';
}

function assembled(backbone: FeatureSource, decodeHead: SegmentationHead, parts: Parts = {}): EncoderDecoder {
  return new EncoderDecoder({ backbone, decodeHead, ...parts });
}

/** A head inside another case's config; settings of the whole reach it. */
function nestedHead(values: Values, outer: Values = {}): SegmentationHead {
  const config = new Config({ ...outer, ...values });
  const head = headOf(config);
  config.done();
  return head;
}

/** Heads with their losses, on given levels. */
export function losses(config: Config): Built {
  const outer = { bn_momentum: config.get('bn_momentum', 0.1) };
  const auxiliary = config.get<Values | Values[] | null>('auxiliary_head', null);
  const list = auxiliary === null ? [] : Array.isArray(auxiliary) ? auxiliary : [auxiliary];
  const heads = list.map((values) => nestedHead(values, outer));
  const neck = neckOf(config);
  const model = assembled(new Given(), nestedHead(config.get('decode_head'), outer), {
    ...(neck && { neck }),
    ...(heads.length > 0 && { auxiliaryHead: Array.isArray(auxiliary) ? heads : (heads[0] as SegmentationHead) }),
    ignoreIndex: config.get('ignore_index', 255),
    average: config.get('avg_non_ignore', false) ? 'valid' : 'all',
  });
  config.done();
  const run: Built['run'] = (inputs) => {
    const maps = levelsOf(inputs);
    const ctx = new Context();
    const label = inputs.get('label');
    if (!label) throw new UnknownCase('the case has no label');
    const { losses: parts, loss } = model.lossesOf(model.neck ? model.neck.fuse(maps, ctx) : maps, label, ctx);
    const shaped = Object.entries({ ...parts, loss }).map(([name, value]) => [name, value.reshape([1])] as const);
    return Object.fromEntries(shaped);
  };
  return { module: model, state: entriesOf(model), run };
}

/** The small backbone that some cases describe: convolutions and ReLUs in a row, whose last map is the only level. */
class TinyBackbone extends Sequential implements FeatureSource {
  readonly featureLevels = [];

  forwardIntermediates(x: Tensor, ctx: Context): Tensor[] {
    return [this.run(x, ctx)];
  }
}

function tinyBackbone(text: string): TinyBackbone {
  const layers = [...text.matchAll(/ReLU|Conv2d\((\d+),\s*(\d+),\s*(\d+)([^)]*)\)/g)].map(
    ([whole, from, to, kernel, rest = '']) => {
      if (whole === 'ReLU') return new ReLU();
      const number = (name: RegExp, fallback: number): number => Number(name.exec(rest)?.[1] ?? fallback);
      return new Conv2d(Number(from), Number(to), {
        kernelSize: Number(kernel),
        stride: number(/stride\s*=?\s*(\d+)/, 1),
        padding: number(/pad\w*\s*=?\s*(\d+)/, 0),
        bias: !/no bias/.test(rest),
      });
    },
  );
  if (layers.length === 0) throw new UnknownCase(`no builder knows the backbone '${text}'`);
  return new TinyBackbone(...layers);
}

/** A whole model, run window by window (or whole), at the size of the original image. */
export function sliding(config: Config): Built {
  const head = nestedHead(config.get('head'));
  const model = assembled(tinyBackbone(config.get('backbone')), head);
  const originalSize = config.get<[number, number]>('ori_shape');
  const flipped = config.get('flip', false);
  config.expect('flip_direction', 'horizontal').ignore('image_size').expect('mode', 'slide', 'whole');
  const isWhole = config.get<string>('mode', 'slide') === 'whole';
  const windows = isWhole
    ? undefined
    : { crop: config.get<[number, number]>('crop_size'), stride: config.get<[number, number]>('stride') };
  config.done();
  const run: Built['run'] = (inputs) => {
    const raw = model.logits(soleInput(inputs), windows);
    const { alignCorners } = head;
    return {
      logits: functional.interpolate(raw, { size: originalSize, alignCorners }),
      probabilities: probabilities(raw, { originalSize, flipped, alignCorners }),
    };
  };
  return { module: model, state: entriesOf(model), run };
}

/** Segmenter, image to logits. */
export function segmenter(config: Config): Built {
  const encoder = new Config(config.get<Values>('encoder'));
  const decoder = new Config(config.get<Values>('decoder'));
  config.ignore('input_size');
  const inner = encoder.get<number>('d_model');
  const distilled = encoder.get('distilled', false);
  const name = decoder.get<string>('name');
  if (name !== 'mask_transformer' && name !== 'linear') throw new UnknownCase(`no builder knows the decoder '${name}'`);
  // Rates of the cases in training mode must be 0; in the others they say nothing.
  decoder
    .expect('d_encoder', inner)
    .expect('n_cls', config.get('n_cls'))
    .expect('patch_size', encoder.get('patch_size'));
  encoder.expect('channels', 3);
  const model = new Segmenter({
    encoder: {
      imgSize: encoder.get('image_size'),
      patchSize: encoder.get('patch_size'),
      embedDim: inner,
      depth: encoder.get('n_layers'),
      numHeads: encoder.get('n_heads'),
      mlpRatio: encoder.get('d_ff', 4 * inner) / inner,
      dropRate: encoder.get('dropout', 0),
      dropPathRate: encoder.get('drop_path_rate', 0),
      distilled,
      numClasses: encoder.get('n_cls', 0),
      normEps: encoder.get('layer_norm_eps', 1e-5),
    },
    decoder: name === 'linear' ? 'linear' : maskDecoder(decoder, inner),
    numClasses: config.get('n_cls'),
  });
  if (name === 'linear')
    decoder.ignore('n_layers', 'n_heads', 'd_model', 'd_ff', 'layer_norm_eps', 'dropout', 'drop_path_rate');
  const window = config.get<number>('window_size', 0);
  const stride = config.get<number>('window_stride', window);
  for (const part of [encoder, decoder, config]) part.done();
  const official = (own: string): string => own.replace('encoder.reg_token', 'encoder.dist_token');
  const run: Built['run'] = (inputs) => {
    const image = soleInput(inputs);
    return { y: model.run(image), ...(window > 0 && { slide_logits: model.slide(image, window, stride) }) };
  };
  return { module: model, state: entriesOf(model, official), run };
}

function maskDecoder(config: Config, width: number) {
  const dim = config.get<number>('d_model', width);
  return {
    dim,
    depth: config.get<number>('n_layers', 2),
    numHeads: config.get<number>('n_heads'),
    hidden: config.get<number>('d_ff', 4 * dim),
    dropRate: config.get<number>('dropout', 0.1),
    dropPathRate: config.get<number>('drop_path_rate', 0),
    normEps: config.get<number>('layer_norm_eps', 1e-5),
  };
}
