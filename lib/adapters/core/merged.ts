/** A classifier whose adapter has been merged, in one file that needs nothing else. */
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
}

/** A model read from a merged file. */
export interface MergedModel extends MergedInfo {
  /** In eval mode. */
  readonly model: Backbone;
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
 * @param model a registered backbone, after `adapter.merge()`
 * @throws RangeError for names that the model has not, see `exportState`
 */
export function saveMerged(
  path: string,
  model: Host,
  { classNames, transforms }: MergedInfo,
  { format = 'safetensors', names = 'own' }: SaveMergedOptions = {},
): void {
  const header: Header = { model: model.name, options: model.options, classNames, transforms, names };
  const state = exportState(model, names);
  const text = JSON.stringify(header);
  if (format === 'torch') writeTorchFile(path, { state_dict: state, [KEY]: text });
  else writeSafetensors(path, state, { format: 'pt', [KEY]: text });
}

/**
 * Reads a file that `saveMerged` or `torchgraft merge` has written.
 *
 * ```ts
 * const { model, classNames, transforms } = loadMerged('pets.safetensors');
 * ```
 *
 * @throws CheckpointError when the file is another one
 */
export function loadMerged(path: string): MergedModel {
  const { tensors: written, metadata } = readSafetensors(path);
  const text = metadata[KEY];
  if (text === undefined) {
    throw new CheckpointError(
      path,
      `no merged model, but ${written.size} tensors alone: 'torchgraft merge' writes one from an adapter folder; loadWeights reads weights`,
    );
  }
  const { model: name, options = {}, classNames, transforms, names = 'own' } = JSON.parse(text) as Header;
  const model = createModel(name, { ...options, numClasses: classNames.length });
  const tensors = names === 'own' ? written : importState(model, written);
  addBiases(model, tensors);
  model.loadStateDict(tensors);
  return { model: model.eval(), classNames, transforms };
}

/** Merging may have given layers a bias that the published architecture lacks: they get the place for it. */
function addBiases(model: Backbone, tensors: ReadonlyMap<string, Tensor>): void {
  for (const [path, module] of model.namedModules()) {
    const bias = tensors.get(`${path}.bias`);
    if (bias !== undefined && (module instanceof Conv2d || module instanceof Linear) && !module.bias) {
      module.bias = new Parameter(zerosLike(bias), false);
    }
  }
}
