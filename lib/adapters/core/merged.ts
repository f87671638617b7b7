/** A model whose adapter has been merged, in one file that needs nothing else. */
import { CheckpointError, readSafetensors, writeSafetensors, writeTorchFile } from '../../checkpoint/index.js';
import {
  createModel,
  exportState,
  importState,
  type Backbone,
  type Host,
  type ModelOptions,
  type NameFormat,
} from '../../models/index.js';
import { Conv2d, Linear, Parameter } from '../../nn/index.js';
import { zerosLike, type Tensor } from '../../tensor/index.js';

/** What a merged file says about its model, beside the weights. */
export interface MergedInfo {
  /** One name per output, in order. */
  readonly classNames: readonly string[];
  /** How images are prepared, as a list of transforms for a `Pipeline`; JSON. */
  readonly transforms: readonly unknown[];
  /** What is needed to build the model again where it is more than a backbone of the registry: any JSON value. */
  readonly task?: unknown;
}

/** A model read from a merged file. */
export interface MergedModel extends MergedInfo {
  /** In eval mode. */
  readonly model: Backbone;
}

/** A merged file, whose weights wait for a model. */
export interface MergedFile extends MergedInfo {
  /** Name of the model that was saved. */
  readonly model: string;
  /** What it was created with, beyond its name. */
  readonly options: ModelOptions;
  /**
   * Copies the weights into a model that is built as the saved one was; layers that merging gave a bias get one.
   *
   * @returns the model, in eval mode
   * @throws Error when names or shapes differ
   */
  readonly fill: <M extends Host>(model: M) => M;
}

/** How `saveMerged` writes. */
export interface SaveMergedOptions {
  /** `torch` writes a file for Python's `torch.load`, which `loadMerged` does not read. Default `safetensors`. */
  readonly format?: 'safetensors' | 'torch';
  /** Whose names the tensors get, see `exportState`. Default `own`. */
  readonly names?: NameFormat;
}

/** The entry of the safetensors header that rebuilds the model. */
const KEY = 'torchgraft';

interface Header extends MergedInfo {
  readonly model: string;
  /** What the model was created with, beyond its name. */
  readonly options?: ModelOptions;
  /** Whose names the tensors bear. */
  readonly names?: NameFormat;
}

/**
 * Writes a model, its class names and its preprocessing to one file. A safetensors file is what `loadMerged`,
 * `torchgraft predict` and `torchgraft evaluate` read.
 *
 * @param model after `adapter.merge()`: a registered backbone; or with `task`, a model around one
 * @throws RangeError for names that the model has not, see `exportState`; models with a task have their own only
 */
export function saveMerged(
  path: string,
  model: Host,
  { classNames, transforms, task }: MergedInfo,
  { format = 'safetensors', names = 'own' }: SaveMergedOptions = {},
): void {
  if (task !== undefined && names !== 'own')
    throw new RangeError(`${model.name} has no names but its own; write the weights without other ones ('${names}')`);
  const { name, options } = model;
  const header: Header = { model: name, options, classNames, transforms, names, ...(task !== undefined && { task }) };
  const state = exportState(model, names);
  const text = JSON.stringify(header);
  if (format === 'torch') writeTorchFile(path, { state_dict: state, [KEY]: text });
  else writeSafetensors(path, state, { format: 'pt', [KEY]: text });
}

/**
 * Reads a classifier that `saveMerged` or `torchgraft merge` has written.
 *
 * ```ts
 * const { model, classNames, transforms } = loadMerged('pets.safetensors');
 * ```
 *
 * @throws CheckpointError when the file is another one, or holds a model for another task
 */
export function loadMerged(path: string): MergedModel {
  const { model: name, options, classNames, transforms, task, fill } = readMerged(path);
  if (task !== undefined)
    throw new CheckpointError(
      path,
      `${name} does not classify: build it as it was trained (its task is ${JSON.stringify(task)}) and call readMerged(path).fill(model)`,
    );
  return { model: fill(createModel(name, { ...options, numClasses: classNames.length })), classNames, transforms };
}

/**
 * Reads what a merged file of any task says, and its weights, for a model that the caller builds.
 *
 * @throws CheckpointError when the file is another one
 */
export function readMerged(path: string): MergedFile {
  const { tensors: written, metadata } = readSafetensors(path);
  const text = metadata[KEY];
  if (text === undefined) {
    throw new CheckpointError(
      path,
      `no merged model, but ${written.size} tensors alone: 'torchgraft merge' writes one from an adapter folder; loadWeights reads weights`,
    );
  }
  const { options = {}, names = 'own', ...rest } = JSON.parse(text) as Header;
  const fill = <M extends Host>(model: M): M => {
    const tensors = names === 'own' ? written : importState(model, written);
    addBiases(model, tensors);
    model.loadStateDict(tensors);
    model.eval();
    return model;
  };
  return { ...rest, options, fill };
}

/** Merging may have given layers a bias that the published architecture lacks: they get the place for it. */
function addBiases(model: Host, tensors: ReadonlyMap<string, Tensor>): void {
  for (const [path, module] of model.namedModules()) {
    const bias = tensors.get(`${path}.bias`);
    if (bias !== undefined && (module instanceof Conv2d || module instanceof Linear) && !module.bias) {
      module.bias = new Parameter(zerosLike(bias), false);
    }
  }
}
