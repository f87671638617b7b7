/** Pyramids and detectors of the dense-head cases, on the small body that the cases describe. */
import {
  AnchorGenerator,
  type BoxHeadOptions,
  type ConvNormChoice,
  type DetectionTarget,
  type Detector,
  type DetectorOptions,
  FasterRcnn,
  type FeatureSource,
  FeaturePyramid,
  type PyramidExtra,
  type PyramidOptions,
  RetinaNet,
} from '../../../lib/heads/index.js';
import { BatchNorm2d, type Context, Conv2d, convNormAct, Module } from '../../../lib/nn/index.js';
import type { Tensor } from '../../../lib/tensor/index.js';
import { type Built, Config, type Entry, entriesOf, UnknownCase } from '../builder.js';

type Values = Readonly<Record<string, unknown>>;

/** The norm that a text names. */
function normOf(text: string | null): ConvNormChoice {
  if (text === null || /^none$/i.test(text)) return 'none';
  const groups = /GroupNorm\D*(\d+)/.exec(text)?.[1];
  if (groups !== undefined) return { groups: Number(groups) };
  if (/BatchNorm/.test(text)) return 'batch';
  throw new UnknownCase(`no builder knows the norm '${text}'`);
}

/** How a text describes the levels beyond those that enter; `input` says what p6 reads, where it stands apart. */
function extraOf(text: string | null, input: string): PyramidExtra | null {
  if (text === null || /^none$/i.test(text)) return null;
  if (/max-?pool/i.test(text)) return 'pool';
  if (!/p6p7/i.test(text)) throw new UnknownCase(`no builder knows the extra levels '${text}'`);
  if (/C5/.test(input)) return 'p6p7_from_input';
  if (/P5/.test(input)) return 'p6p7_from_output';
  throw new UnknownCase(`no builder knows what p6 reads in '${input}'`);
}

/** Several pyramids over the same levels, each described in words. */
class Pyramids extends Module {
  constructor(readonly parts: readonly (readonly [string, FeaturePyramid])[]) {
    super();
    for (const [name, pyramid] of parts) Object.assign(this, { [name]: pyramid });
  }

  forward(): Tensor {
    throw new TypeError('several pyramids');
  }
}

export function pyramids(config: Config): Built {
  const common = {
    inChannels: config.get<number[]>('in_channels_list'),
    outChannels: config.get<number>('out_channels'),
  };
  const described = config.get<Record<string, string>>('modules');
  config.ignore('sizes').done();
  const model = new Pyramids(
    Object.entries(described).map(([name, text]) => {
      const norm = /BatchNorm|GroupNorm\(\d+\)/.exec(text)?.[0] ?? null;
      const extra = /no extra|without extra/.test(text) ? null : extraOf(text, text);
      return [name, new FeaturePyramid({ ...common, extra, norm: normOf(norm) })] as const;
    }),
  );
  const run: Built['run'] = (inputs) => {
    const maps = [...inputs].sort(([a], [b]) => Number(a) - Number(b)).map(([, map]) => map);
    const outs = model.parts.flatMap(([name, pyramid]) =>
      pyramid.fuse(maps).map((map, i) => [`${name}.${pyramid.levelNames[i] ?? ''}`, map] as const),
    );
    return Object.fromEntries(outs);
  };
  return { module: model, state: entriesOf(model), run };
}

/** One stage of the body: convolution of stride 2, constant norm, ReLU. */
class Stage extends Module {
  readonly conv: Conv2d;
  readonly bn: BatchNorm2d;

  constructor(from: number, to: number, makeNorm: (channels: number) => BatchNorm2d) {
    super();
    this.conv = halving(from, to);
    this.bn = makeNorm(to);
  }

  forward(x: Tensor, ctx: Context): Tensor {
    return convNormAct(this.conv, this.bn, x, ctx);
  }
}

function halving(from: number, to: number): Conv2d {
  return new Conv2d(from, to, { kernelSize: 3, stride: 2, padding: 1, bias: false });
}

/** `conv1`, `bn1`, `layer1` to `layer4`, whose outputs are C2 to C5. */
class TinyBody extends Module implements FeatureSource {
  readonly featureLevels: readonly { readonly channels: number }[];
  readonly conv1: Conv2d;
  readonly bn1: BatchNorm2d;
  readonly #stages: readonly Stage[];

  constructor([stem = 0, ...widths]: readonly number[], makeNorm: (channels: number) => BatchNorm2d) {
    super();
    this.conv1 = halving(3, stem);
    this.bn1 = makeNorm(stem);
    this.featureLevels = widths.map((channels) => ({ channels }));
    this.#stages = widths.map((to, i) => new Stage(i === 0 ? stem : (widths[i - 1] ?? 0), to, makeNorm));
    this.#stages.forEach((stage, i) => Object.assign(this, { [`layer${i + 1}`]: stage }));
  }

  forwardIntermediates(x: Tensor, ctx: Context): Tensor[] {
    const maps: Tensor[] = [];
    let y = convNormAct(this.conv1, this.bn1, x, ctx);
    for (const stage of this.#stages) maps.push((y = stage.run(y, ctx)));
    return maps;
  }

  forward(): Tensor {
    throw new TypeError('the body has many outputs');
  }
}

function bodyOf(config: Config): TinyBody {
  const text = config.get<string>('backbone');
  if (!/^body: conv1 Conv2d/.test(text)) throw new UnknownCase(`no builder knows the backbone '${text}'`);
  const isFrozen = /FrozenBatchNorm2d/.test(text);
  const eps = Number(/eps\s+([\d.e-]+)/.exec(text)?.[1] ?? 1e-5);
  return new TinyBody(config.get('body_widths'), (channels) => {
    const norm = new BatchNorm2d(channels, { eps });
    return isFrozen ? norm.makeConstant() : norm;
  });
}

function pyramidOf(config: Config, body: TinyBody): PyramidOptions & { levels: number[] } {
  const fpn = new Config(config.get<Values>('fpn'));
  const inChannels = fpn.get<number[]>('in_channels');
  const count = body.featureLevels.length;
  const options = {
    inChannels,
    levels: Array.from({ length: inChannels.length }, (_, i) => count - inChannels.length + i),
    outChannels: fpn.get<number>('out_channels'),
    extra: extraOf(fpn.get<string | null>('extra'), fpn.get<string>('p6_input', 'P5')),
    norm: normOf(fpn.get<string | null>('norm', null) ?? null),
  };
  fpn.done();
  return options;
}

function detectorOptions(config: Config): DetectorOptions {
  const body = bodyOf(config);
  const { inChannels: _, ...pyramid } = pyramidOf(config, body);
  return {
    body,
    pyramid,
    input: {
      minSize: config.get('min_size'),
      maxSize: config.get('max_size'),
      mean: config.get('image_mean'),
      std: config.get('image_std'),
      sizeDivisible: config.get('size_divisible', 32),
    },
  };
}

const anchorsOf = (config: Config): AnchorGenerator =>
  new AnchorGenerator(config.get('anchor_sizes'), config.get('aspect_ratios'));

/** A value under the first of several names that is there. */
function either<T>(config: Config, names: readonly string[], fallback: T): T {
  const name = names.find((key) => config.has(key));
  return name === undefined ? fallback : config.get<T>(name);
}

function boxHeadOf(values: Values): BoxHeadOptions {
  const config = new Config(values);
  const kind = config.get<string>('kind');
  const options = ((): BoxHeadOptions => {
    if (/TwoMLP/.test(kind)) return { kind: 'mlp', width: config.get('representation_size') };
    if (!/ConvFC/.test(kind)) throw new UnknownCase(`no builder knows the box head '${kind}'`);
    const width = either<number | number[]>(config, ['fc_layers', 'fc', 'linear_layers', 'representation_size'], 1024);
    return {
      kind: 'conv',
      convs: either(config, ['conv_layers', 'convs', 'conv_channels'], [256, 256, 256, 256]),
      linears: typeof width === 'number' ? [width] : width,
      norm: normOf(either<string | null>(config, ['norm', 'norm_layer'], 'BatchNorm2d')),
    };
  })();
  config.done();
  return options;
}

function fasterRcnn(config: Config): Detector {
  const pool = new Config(config.get<Values>('roi_pool'));
  const size = (name: string, train: number, test: number) => ({
    train: config.get(`${name}_train`, train),
    test: config.get(`${name}_test`, test),
  });
  const detector = new FasterRcnn({
    ...detectorOptions(config),
    numClasses: config.get('num_classes'),
    anchors: anchorsOf(config),
    rpn: {
      convDepth: config.get('rpn_conv_depth', 1),
      foregroundIou: config.get('rpn_fg_iou_thresh', 0.7),
      backgroundIou: config.get('rpn_bg_iou_thresh', 0.3),
      batchSize: config.get('rpn_batch_size_per_image', 256),
      positiveFraction: config.get('rpn_positive_fraction', 0.5),
      preNmsTop: size('rpn_pre_nms_top_n', 2000, 1000),
      postNmsTop: size('rpn_post_nms_top_n', 2000, 1000),
      nmsThreshold: config.get('rpn_nms_thresh', 0.7),
      scoreThreshold: config.get('rpn_score_thresh', 0),
    },
    pooledLevels: pool.get<string[]>('featmap_names').map(Number),
    pool: {
      outputSize: pool.get('output_size'),
      samplingRatio: pool.get('sampling_ratio', 2),
      canonicalScale: pool.get('canonical_scale', 224),
      canonicalLevel: pool.get('canonical_level', 4),
    },
    boxHead: boxHeadOf(config.get('box_head')),
    foregroundIou: config.get('box_fg_iou_thresh', 0.5),
    backgroundIou: config.get('box_bg_iou_thresh', 0.5),
    batchSize: config.get('box_batch_size_per_image', 512),
    positiveFraction: config.get('box_positive_fraction', 0.25),
    boxWeights: config.get('bbox_reg_weights', [10, 10, 5, 5]),
    scoreThreshold: config.get('box_score_thresh', 0.05),
    nmsThreshold: config.get('box_nms_thresh', 0.5),
    detectionsPerImage: config.get('box_detections_per_img', 100),
  });
  pool.done();
  return detector;
}

function retinaNet(config: Config): Detector {
  const loss = config.get<string>('regression_loss', 'l1');
  if (loss !== 'l1' && loss !== 'giou') throw new UnknownCase(`no builder knows the box loss '${loss}'`);
  return new RetinaNet({
    ...detectorOptions(config),
    numClasses: config.get('num_classes'),
    anchors: anchorsOf(config),
    headNorm: normOf(config.get<string | null>('head_norm', null) ?? null),
    boxLoss: loss,
    foregroundIou: config.get('fg_iou_thresh', 0.5),
    backgroundIou: config.get('bg_iou_thresh', 0.4),
    focalAlpha: config.get('focal_alpha', 0.25),
    focalGamma: config.get('focal_gamma', 2),
    scoreThreshold: config.get('score_thresh', 0.05),
    nmsThreshold: config.get('nms_thresh', 0.5),
    detectionsPerImage: config.get('detections_per_img', 300),
    topCandidates: config.get('topk_candidates', 1000),
  });
}

/** Losses when the case gives boxes, else what is found. */
export function detector(config: Config, { isTraining }: { isTraining: boolean }): Built {
  const model = config.has('roi_pool') ? fasterRcnn(config) : retinaNet(config);
  config.done();
  const run: Built['run'] = (inputs) => {
    const listed = (name: string): Tensor[] => {
      const list: Tensor[] = [];
      for (let i = 0, one = inputs.get(`${name}_0`); one; one = inputs.get(`${name}_${++i}`)) list.push(one);
      return list;
    };
    const images = listed('image');
    if (!isTraining) {
      const found = model.detect(images);
      return Object.fromEntries(
        found.flatMap((one, i) => Object.entries(one).map(([key, value]) => [`${key}_${i}`, value as Tensor])),
      );
    }
    const [boxes, labels] = [listed('boxes'), listed('labels')];
    const targets = images.map((_, i): DetectionTarget => ({ boxes: boxes[i] as Tensor, labels: labels[i] as Tensor }));
    const losses = Object.entries(model.losses(images, targets));
    return Object.fromEntries(losses.map(([name, loss]) => [name, loss.reshape([1])]));
  };
  const state: Map<string, Entry> = entriesOf(model);
  return { module: model, state, run };
}
