/** Segmentation heads, detectors, their functions and metrics. */
import { join } from 'node:path';
import { readSafetensors } from '../../../lib/checkpoint/index.js';
import { createDetector, Fpn, FpnHead, MaskDecoder, Segmenter } from '../../../lib/heads/index.js';
import type { Module } from '../../../lib/nn/index.js';
import type { Tensor } from '../../../lib/tensor/index.js';
import { type Built, type Builder, Config, UnknownCase } from '../builder.js';
import type { CountsRow, GoldenCase } from '../case.js';
import { detector, pyramids } from './dense_detection.js';
import { headOf, losses, segmentationHead, segmenter, sliding } from './dense_segmentation.js';
import { cocoAp, detectionOps, meanIou } from './detection_ops.js';

/** What a case computes shows in the keys of its config. */
function build(golden: GoldenCase): Built {
  const config = new Config(golden.config);
  if (config.has('decode_head')) return losses(config);
  if (config.has('ori_shape')) return sliding(config);
  if (config.has('encoder')) return segmenter(config);
  if (config.has('head')) return segmentationHead(config);
  if (config.has('body_widths')) return detector(config, { isTraining: golden.mode === 'train' });
  if (config.has('in_channels_list')) return pyramids(config);
  if (config.has('ground_truth')) return cocoAp(config, golden.folder);
  if (config.has('images')) return meanIou(config);
  if (config.has('roi_variants')) {
    const io = readSafetensors(join(golden.folder, 'io.safetensors')).tensors;
    const expected = (name: string): Tensor => {
      const rows = io.get(`output.${name}`);
      if (!rows) throw new UnknownCase(`the case has no output '${name}'`);
      return rows;
    };
    return detectionOps(config, Object.keys(golden.outputs ?? {}), expected);
  }
  throw new UnknownCase('the config is that of no head, detector, function or metric');
}

type Values = Readonly<Record<string, unknown>>;

function parts(row: CountsRow, values: Values): Module[] {
  const config = new Config(values);
  const numClasses = row.num_classes ?? 150;
  const { model } = row;
  const head = /^(?:UPer|FCN|SETRUP|FPN)Head/.exec(model)?.[0];
  if (head !== undefined) {
    const all = new Config({ ...values, head, num_classes: numClasses }).ignore('backbone');
    const part = headOf(all);
    all.done();
    return [part];
  }
  if (model.startsWith('FPN neck')) {
    const levels = config.get<number[]>('in_channels');
    const outChannels = config.get<number>('neck_out');
    const head = {
      numClasses,
      inChannels: levels.map(() => outChannels),
      channels: config.get<number>('head_channels'),
    };
    return [new Fpn({ inChannels: levels, outChannels }), new FpnHead(head)];
  }
  if (model.startsWith('Segmenter mask')) {
    const numHeads = config.get<number>('n_heads');
    return [
      new MaskDecoder({ numClasses, inChannels: config.get('d_model'), depth: config.get('n_layers'), numHeads }),
    ];
  }
  if (model.startsWith('Segmenter (encoder')) return [wholeSegmenter(config, numClasses, /linear/.test(model))];
  if (/^(fasterrcnn|retinanet)_/.test(model)) return [published(model, config, numClasses)];
  throw new UnknownCase(`no builder knows '${model}'`);
}

const VIT_WIDTHS: Readonly<Record<string, readonly [dim: number, heads: number, depth: number]>> = {
  T: [192, 3, 12],
  S: [384, 6, 12],
  B: [768, 12, 12],
  L: [1024, 16, 24],
};

function wholeSegmenter(config: Config, numClasses: number, isLinear: boolean): Segmenter {
  const name = config.get<string>('encoder');
  const [, size = '', patch] = /^ViT-(\w)\/(\d+)$/.exec(name) ?? [];
  const [embedDim, numHeads, depth] = VIT_WIDTHS[size] ?? [];
  if (embedDim === undefined || numHeads === undefined || depth === undefined)
    throw new UnknownCase(`no builder knows the encoder '${name}'`);
  const image = config.get<number>('image');
  const encoder = { embedDim, numHeads, depth, imgSize: image, patchSize: Number(patch), numClasses: 1000 };
  return new Segmenter({ encoder, numClasses, ...(isLinear && { decoder: 'linear' }) });
}

function published(model: string, config: Config, numClasses: number): Module {
  const norm = config.get<string>('backbone_norm');
  return createDetector(model, {
    numClasses,
    backboneNorm: /Frozen/.test(norm) ? 'frozen' : 'batch',
    trainableLayers: config.get('trainable_backbone_layers'),
  });
}

function count(row: CountsRow): Record<string, number> {
  const all = parts(row, typeof row.config === 'string' ? {} : row.config).flatMap((part) => part.namedParameters());
  const sum = (list: typeof all): number => list.reduce((total, [, parameter]) => total + parameter.numel(), 0);
  const trainable = all.filter(([, parameter]) => parameter.requiresGrad);
  return {
    total_parameters: sum(all),
    trainable_parameters: sum(trainable),
    // Here it means the body of a detector.
    trainable_without_head: sum(trainable.filter(([name]) => name.startsWith('backbone.body.'))),
  };
}

export const denseHeads: Builder = { system: 'dense_heads', build, count };
