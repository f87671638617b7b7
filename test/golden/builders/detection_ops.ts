/** The bare functions of detection, and the metrics of dense tasks. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import {
  AnchorGenerator,
  BoxCoder,
  clipBoxes,
  DetectionInput,
  giouLoss,
  isLarge,
  matchBoxes,
  roiLevels,
  RoiPool,
  sigmoidFocalLoss,
} from '../../../lib/heads/index.js';
import {
  type CocoDetection,
  type CocoGroundTruth,
  evaluateCoco,
  SegmentationMeter,
} from '../../../lib/metrics/index.js';
import { boxIou, nms, roiAlign } from '../../../lib/nn/index.js';
import { aten, slice, tensor, type Tensor } from '../../../lib/tensor/index.js';
import { type Built, Config, UnknownCase } from '../builder.js';

type Values = Readonly<Record<string, unknown>>;
type Size = [number, number];
type Outputs = Record<string, Tensor>;

const stateless = new Map();

/** Reads a nested object, every key of which must be known. */
function nested<T>(config: Config, key: string, read: (inner: Config) => T): T {
  const inner = new Config(config.get<Values>(key));
  const value = read(inner);
  inner.done();
  return value;
}

const integers = (values: number[], shape = [values.length]): Tensor => tensor(values, { dtype: 'int64' }).view(shape);

function anchorOutputs(name: string, generator: AnchorGenerator, image: Size, grids: Size[], expected: Rows): Outputs {
  const all = aten.cat(generator.grid(image, grids, { dtype: 'float32', device: 'cpu' }));
  const cells = generator.sizes.map((_, i) => [`${name}_cell_anchors_${i}`, generator.cellAnchors(i)] as const);
  const rows = expected(`${name}_anchor_rows`);
  return {
    ...Object.fromEntries(cells),
    [`${name}_anchor_rows`]: rows,
    [`${name}_anchors_at_rows`]: all.indexSelect(0, rows),
    [`${name}_anchor_count`]: integers([all.shape[0] ?? 0]),
    [`${name}_anchor_sum`]: all.to('float64').sum([0]),
  };
}

/** Rows of the anchors that a case samples, from the case itself. */
type Rows = (name: string) => Tensor;

/** Prefix and threshold of an output such as `nms_0.5`. */
function thresholds(names: readonly string[], pattern: RegExp): (readonly [name: string, values: number[]])[] {
  return names.flatMap((name) => {
    const found = pattern.exec(name);
    return found ? [[name, found.slice(1).map(Number)] as const] : [];
  });
}

/** Which matcher an output's name means: RPN and RetinaNet also match at low quality. */
function matchOutputs(names: readonly string[], iou: Tensor): Outputs {
  const found = names.flatMap((name) => {
    const [, kind, high, low] = /^match_(\w+?)_([\d.]+)_([\d.]+)$/.exec(name) ?? [];
    if (kind === undefined) return [];
    const options = { high: Number(high), low: Number(low), lowQuality: kind !== 'roi' };
    return [[name, matchBoxes(iou, options)] as const];
  });
  return Object.fromEntries(found);
}

export function detectionOps(config: Config, names: readonly string[], expected: Rows): Built {
  const generator = (key: string): AnchorGenerator =>
    nested(config, key, (inner) => new AnchorGenerator(inner.get('sizes'), inner.get('aspect_ratios')));
  const generators = ['frcnn', 'retina'].map((key) => [key, generator(key)] as const);
  const image = config.get<Size>('padded_image');
  const grids = config.get<Size[]>('grids');
  const input = nested(
    config,
    'transform',
    (inner) =>
      new DetectionInput({
        minSize: inner.get('min_size'),
        maxSize: inner.get('max_size'),
        mean: inner.get('image_mean'),
        std: inner.get('image_std'),
        sizeDivisible: inner.get('size_divisible', 32),
      }),
  );
  const boxes = config.get<number[][][]>('transform_boxes');
  const [rowStep, columnStep] = (/::(\d+), ::(\d+)/.exec(config.get('batch_sample')) ?? []).slice(1).map(Number);
  const roi = nested(config, 'roi', (inner) => ({
    outputSize: inner.get<Size>('output_size'),
    scales: [inner.get<number>('spatial_scale')],
  }));
  const variants = Object.entries(config.get<Record<string, Values>>('roi_variants')).map(([name, values]) => {
    const inner = new Config(values);
    const options = { samplingRatio: inner.get<number>('sampling_ratio'), aligned: inner.get<boolean>('aligned') };
    inner.done();
    return [name, options] as const;
  });
  const multi = nested(config, 'msroi', (inner) => ({
    outputSize: inner.get<number>('output_size'),
    samplingRatio: inner.get<number>('sampling_ratio'),
    canonicalScale: inner.get<number>('canonical_scale'),
    canonicalLevel: inner.get<number>('canonical_level'),
    scales: inner.get<number[]>('scales'),
  }));
  const levels = nested(config, 'level_224', (inner) => ({
    canonicalScale: inner.get<number>('canonical_scale'),
    canonicalLevel: inner.get<number>('canonical_level'),
    scales: inner.get<number[]>('scales'),
  }));
  const clipSize = config.get<Size>('clip_size');
  const focal = nested(config, 'focal', (inner) => ({
    alpha: inner.expect('reduction', 'sum').get<number>('alpha'),
    gamma: inner.get<number>('gamma'),
  }));
  config
    .expect('bbox_xform_clip', Math.log(1000 / 16))
    .ignore('giou_loss_each', 'keep_small_1')
    .done();

  const run: Built['run'] = (inputs) => {
    const get = (name: string): Tensor => {
      const found = inputs.get(name);
      if (!found) throw new UnknownCase(`the case has no input '${name}'`);
      return found;
    };
    const [gt, proposals] = [get('gt'), get('proposals')];
    const wide = new BoxCoder([10, 10, 5, 5]);
    const decoded = wide.decode(get('codes'), proposals);
    const clipped = clipBoxes(decoded, clipSize).reshape([-1, 4]);
    const iou = boxIou(get('match_gt'), get('match_pred'));
    const [nmsBoxes, scores, ids] = [get('nms_boxes'), get('nms_scores'), get('nms_ids')];
    const batch = input.prepare(
      [get('image_0'), get('image_1')],
      boxes.map((list) => ({ boxes: tensor(list), labels: integers(list.map(() => 1)) })),
    );
    const maps = [0, 1, 2, 3].map((i) => get(`msroi_f${i}`));
    const msBoxes = get('msroi_boxes');
    const pool = new RoiPool(multi);
    // The tallest map times its scale is the height that gives the case's resolutions.
    const height = (maps[0]?.shape[2] ?? 0) / (multi.scales[0] ?? 1);
    return {
      ...Object.fromEntries(
        generators.flatMap(([name, one]) => Object.entries(anchorOutputs(name, one, image, grids, expected))),
      ),
      encoded_w1: new BoxCoder().encode(gt, proposals),
      encoded_w10: wide.encode(gt, proposals),
      decoded_w10: decoded.flatten(1),
      clipped_w10: clipped,
      keep_small_1: isLarge(clipped, 1).nonzero().squeeze(1),
      iou,
      ...matchOutputs(names, iou),
      ...Object.fromEntries(
        thresholds(names, /^nms_([\d.]+)$/).map(([name, [limit = 0]]) => [name, nms(nmsBoxes, scores, limit)]),
      ),
      ...Object.fromEntries(
        thresholds(names, /^batched_nms_([\d.]+)$/).map(([name, [limit = 0]]) => [
          name,
          nms(nmsBoxes, scores, limit, ids),
        ]),
      ),
      ...Object.fromEntries(
        variants.map(([name, options]) => [name, roiAlign([get('roi_feature')], get('rois'), { ...roi, ...options })]),
      ),
      msroi: pool.pool(maps, [msBoxes], [[height, 1]]),
      msroi_level: roiLevels(msBoxes, multi.scales, multi),
      level_224: roiLevels(get('level_boxes'), levels.scales, levels),
      focal_sum: sigmoidFocalLoss(get('focal_logits'), get('focal_targets'), focal).sum().reshape([1]),
      giou_loss_each: giouLoss(gt, proposals),
      image_sizes: integers(batch.sizes.flat(), [batch.sizes.length, 2]),
      batch_shape: integers(batch.images.shape),
      batch_sample: batch.images.index('...', slice(null, null, rowStep), slice(null, null, columnStep)),
      ...Object.fromEntries(batch.targets.map((target, i) => [`resized_box_${i}`, target.boxes])),
    };
  };
  let feature: Tensor | undefined;
  let regions: Tensor | undefined;
  const gradientOf: Built['gradientOf'] = (name, cotangents) => {
    const options = variants.find(([variant]) => variant === name)?.[1];
    const cotangent = cotangents.get('roi');
    if (!options || !cotangent || !feature || !regions) return undefined;
    const leaf = feature.clone().requiresGrad_();
    roiAlign([leaf], regions, { ...roi, ...options }).backward(cotangent);
    return leaf.grad ?? undefined;
  };
  const runAndHold: Built['run'] = (inputs) => {
    [feature, regions] = [inputs.get('roi_feature'), inputs.get('rois')];
    return run(inputs);
  };
  return { state: stateless, run: runAndHold, gradientOf };
}

export function meanIou(config: Config): Built {
  const classes = config.get<number>('num_classes');
  const remap = config.get<Record<string, number> | null>('label_map', null);
  const options = {
    ignoreIndex: config.get('ignore_index', 255),
    reduceZeroLabel: config.get('reduce_zero_label', false),
    ...(remap && { remap }),
  };
  const count = config.get<number>('images');
  config.done();
  const run: Built['run'] = (inputs) => {
    const meter = new SegmentationMeter(classes, options);
    for (let i = 0; i < count; i++) {
      meter.update(inputs.get(`pred_${i}`) as Tensor, inputs.get(`label_${i}`) as Tensor);
    }
    const result = meter.result();
    const doubles = (values: readonly number[]): Tensor => tensor([...values], { dtype: 'float64' });
    return {
      area_intersect: integers([...result.areas.intersect]),
      area_union: integers([...result.areas.union]),
      area_pred: integers([...result.areas.predicted]),
      area_label: integers([...result.areas.labeled]),
      class_iou: doubles(result.iou),
      class_acc: doubles(result.acc),
      class_dice: doubles(result.dice),
      summary: doubles([result.aAcc, result.mIoU, result.mAcc, result.mDice]),
    };
  };
  return { state: stateless, run };
}

export function cocoAp(config: Config, folder: string): Built {
  const read = (key: string): unknown => JSON.parse(readFileSync(join(folder, config.get<string>(key)), 'utf8'));
  const truth = read('ground_truth') as CocoGroundTruth;
  const detections = read('detections') as CocoDetection[];
  config.expect('iou_type', 'bbox');
  const options = {
    iouThresholds: config.get<number[]>('iou_thresholds'),
    recallPoints: config.get<number>('recall_points'),
    maxDets: config.get<number[]>('max_dets'),
    areaRanges: config.get<Record<string, [number, number]>>('area_ranges'),
  };
  config.done();
  const run: Built['run'] = () => {
    const result = evaluateCoco(truth, detections, options);
    const [t, k, a] = [options.iouThresholds.length, result.categoryIds.length, Object.keys(options.areaRanges).length];
    const doubles = (values: Float64Array | readonly number[], shape: number[]): Tensor =>
      tensor(Float64Array.from(values), { shape });
    return {
      stats: doubles(result.stats, [result.stats.length]),
      [`precision_maxdet${options.maxDets.at(-1) ?? ''}`]: doubles(result.precision, [t, options.recallPoints, k, a]),
      recall: doubles(result.recall, [t, k, a, options.maxDets.length]),
      category_ids: integers([...result.categoryIds]),
      ap_per_category: doubles(result.apPerCategory, [k]),
    };
  };
  return { state: stateless, run };
}
