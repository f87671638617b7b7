/**
 * What `evaluate`, `predict` and `merge` work on: a model rebuilt from an adapter folder and its backbone's weights, or a
 * classifier from one merged checkpoint.
 */
import { existsSync, statSync } from 'node:fs';
import { join } from 'node:path';
import type { Adapter } from '../adapters/index.js';
import type { TransformInput } from '../data/index.js';
import type { Backbone, Host, ModelOptions } from '../models/index.js';
import type { Device } from '../tensor/index.js';
import type { ComputeOptions } from './arguments.js';
import { UsageError } from './output.js';
import { storedLanguage } from './task_language.js';
import { modelFor, readsMaps } from './task_model.js';
import { parseStoredTask, type StoredTask, type TaskSpec } from './task_spec.js';

/** A model that is ready to be used, with everything around it. */
export interface Trained {
  readonly model: Host;
  /** Null for a merged checkpoint. */
  readonly adapter: Adapter | null;
  readonly classNames: readonly string[];
  /** Preparation of images, ready for `Pipeline`. */
  readonly transforms: TransformInput[];
  /** What it was trained for. */
  readonly spec: TaskSpec;
  /** The same with all that is needed to build the model again; null for classifiers. */
  readonly stored: StoredTask | null;
}

/** Sets threads and checks the device. */
export async function prepareCompute(o: ComputeOptions): Promise<Device> {
  const { cudaDeviceCount, setNumThreads } = await import('../tensor/index.js');
  if (o.threads !== undefined) setNumThreads(o.threads);
  const device = o.device ?? 'cpu';
  if (!/^(cpu|cuda(:\d+)?)$/.test(device))
    throw new UsageError(`--device: expected cpu, cuda or cuda:N, got '${device}'`);
  const index = device === 'cpu' ? -1 : Number(device.split(':')[1] ?? 0);
  if (index >= cudaDeviceCount())
    throw new UsageError(
      `--device ${device}: there are ${cudaDeviceCount()} CUDA devices here ('torchgraft doctor' says why)`,
    );
  return device as Device;
}

/** Builds a backbone for images of a given size and loads its weights, without their classifier; weights null: random ones. */
export async function openBackbone(
  name: string,
  weights: string | null,
  o: {
    readonly imageSize?: number | readonly [number, number];
    readonly classes: number;
    readonly options?: ModelOptions;
    /** Without what only classification needs, as heads that read maps want it. */
    readonly isTrunk?: boolean;
  },
): Promise<Backbone> {
  const { createModel, loadWeights } = await import('../models/index.js');
  const imgSize = typeof o.imageSize === 'object' ? ([...o.imageSize] as [number, number]) : o.imageSize;
  const model = createModel(name, {
    ...o.options,
    numClasses: o.classes,
    ...(imgSize === undefined ? {} : { imgSize }),
  });
  if (o.isTrunk === true) model.toTrunk();
  if (weights !== null) loadWeights(model, weights, { classifier: 'drop' });
  return model;
}

/** Opens an adapter folder (which needs the backbone's weights) or a merged checkpoint (which does not). */
export async function openTrained(target: string, weights: string | undefined, device: Device): Promise<Trained> {
  if (!existsSync(target)) throw new UsageError(`there is no adapter folder or merged checkpoint ${target}`);
  const trained = statSync(target).isDirectory()
    ? await openAdapter(target, weights)
    : await openMerged(target, weights);
  trained.model.to({ device });
  trained.model.eval();
  return trained;
}

async function openAdapter(folder: string, weights: string | undefined): Promise<Trained> {
  const { loadAdapter, readAdapterFolder } = await import('../adapters/index.js');
  const read = readAdapterFolder(folder);
  const { config, classNames } = read;
  const task = config.task === undefined ? null : parseStoredTask(config.task, folder);
  const spec: TaskSpec = task?.spec ?? { kind: 'classify' };
  const { name, options = {} } = task?.backbone ?? config.backbone;
  const inner = existsSync(join(folder, BACKBONE_FILE)) ? join(folder, BACKBONE_FILE) : undefined;
  const file = weights ?? inner;
  if (file === undefined)
    throw new UsageError(`the adapter in ${folder} sits on ${name}: give that backbone's weights with --weights FILE`);
  if (classNames === null) throw new Error(`the adapter in ${folder} was saved without class names`);
  const transforms = checkTransforms(read.preprocessing, folder);
  const classes = classNames.length;
  const isTrunk = readsMaps(spec);
  // The options of a task's backbone are complete; classifiers are rebuilt for the size of their images.
  const size = task === null ? inputSize(transforms) : {};
  const backbone = await openBackbone(name, file, { options, classes, isTrunk, ...size });
  const language = await storedLanguage(task?.language, folder, file);
  const model = await modelFor(spec, backbone, classNames, language);
  return { model, adapter: loadAdapter(model, read), classNames, transforms, spec, stored: task };
}

/** The backbone of an adapter that was trained on random weights lies in the adapter folder. */
export const BACKBONE_FILE = 'backbone.safetensors';

async function openMerged(path: string, weights: string | undefined): Promise<Trained> {
  const { loadMerged, readMerged } = await import('../adapters/index.js');
  if (weights !== undefined)
    throw new UsageError(`${path} is a merged checkpoint and holds its weights; leave out --weights`);
  const file = readMerged(path);
  const { classNames } = file;
  const rest = { adapter: null, classNames, transforms: [...file.transforms] as TransformInput[] };
  if (file.task === undefined)
    return { ...rest, model: loadMerged(path).model, spec: { kind: 'classify' }, stored: null };
  const stored = parseStoredTask(file.task, path);
  const { spec, backbone, language = null } = stored;
  const own = await openBackbone(backbone.name, null, {
    ...{ options: backbone.options, classes: classNames.length, isTrunk: readsMaps(spec) },
  });
  const model = await modelFor(spec, own, classNames, language && { ...language, tower: null });
  return { ...rest, model: file.fill(model), spec, stored };
}

function checkTransforms(value: unknown, folder: string): TransformInput[] {
  if (!Array.isArray(value)) throw new Error(`the adapter in ${folder} was saved without its preprocessing`);
  return value as TransformInput[];
}

/** The size of the network's input, from the last step that fixes it. */
export function inputSize(transforms: readonly TransformInput[]): { imageSize?: [number, number] } {
  for (const step of [...transforms].reverse()) {
    if (!('size' in step)) continue;
    const { size } = step;
    return { imageSize: typeof size === 'number' ? [size, size] : [size[0], size[1]] };
  }
  return {};
}
