/** Pretrained weights from a file into a backbone. */
import { readCheckpoint, stateDictOf } from '../checkpoint/index.js';
import { compareState, describeReport, type LoadReport } from '../nn/index.js';
import { scope, type Tensor, withDefaults } from '../tensor/index.js';
import type { Backbone } from './backbone.js';
import { importState } from './formats.js';
import type { Host } from './host.js';
import { createModel, type ModelOptions } from './registry.js';

/** How a file may differ from the model. */
export interface WeightsOptions {
  /** true (default): every name must be there and fit; false: load what fits and report the rest. */
  readonly strict?: boolean;
  /** What becomes of the file's classifier: it must fit ('strict', the default), or is left out ('drop'). */
  readonly classifier?: 'strict' | 'drop';
}

/** What was loaded and what was not. */
export interface WeightsReport extends LoadReport {
  /** Number of tensors that were loaded. */
  readonly loaded: number;
  /** Names of the file's classifier tensors that were left out on request; the model keeps its own. */
  readonly dropped: string[];
  /** Names whose tensors were resampled to this model's image size. */
  readonly resampled: string[];
}

/**
 * Loads pretrained weights: safetensors (sharded ones by their index), PyTorch files or `.npz`, in timm's, torchvision's,
 * transformers' or the family's published names,
 * with or without `state_dict` wrappers and `module.` prefixes. Position embeddings are resampled to the model's image
 * size. Nothing changes unless everything that must fit does.
 *
 * @throws Error with a short list of missing, unexpected and wrongly shaped names when the file does not fit
 *
 * ```ts
 * const model = createModel('resnet50', { numClasses: 10 });
 * loadWeights(model, 'resnet50.safetensors', { classifier: 'drop' });
 * ```
 */
export function loadWeights(model: Host, path: string, options: WeightsOptions = {}): WeightsReport {
  return loadState(model, stateDictOf(readCheckpoint(path)), options, path);
}

/**
 * Builds a backbone with the weights of a file, which is recognized by its names; see `loadWeights` for the formats.
 *
 * @param name such as `resnet50`; see `listModels()`
 * @param options what differs from the published model. Without `numClasses` the model has as many classes as the
 *   file's classifier, and none when the file has none; with another number, the classifier is a fresh one
 * @throws RangeError for an unknown name, with the nearest ones; TypeError for an unknown or wrong option; Error with a
 *   short list of missing, unexpected and wrongly shaped names when the file does not fit
 *
 * ```ts
 * const model = loadModel('convnext_tiny', 'convnext_tiny_22k_224.pth'); // 21841 classes
 * const own = loadModel('convnext_tiny', 'convnext_tiny_22k_224.pth', { numClasses: 10 });
 * ```
 */
export function loadModel(name: string, path: string, options: ModelOptions = {}, how: WeightsOptions = {}): Backbone {
  const shape = withDefaults({ device: 'meta' }, () => createModel(name, options));
  const state = stateDictOf(readCheckpoint(path));
  const stored = scope(() => importState(shape, state).get(`${shape.classifier}.weight`)?.shape[0] ?? 0);
  const model = createModel(name, { ...options, numClasses: options.numClasses ?? stored });
  const isOther = options.numClasses !== undefined && options.numClasses !== stored;
  loadState(model, state, isOther ? { classifier: 'drop', ...how } : how, path);
  return model;
}

/** `loadWeights` from a state dict in memory; `origin` names it in errors. */
export function loadState(
  model: Host,
  state: ReadonlyMap<string, Tensor>,
  { strict = true, classifier = 'strict' }: WeightsOptions = {},
  origin = 'the state dict',
): WeightsReport {
  const converted = importState(model, state);
  const resampled = [...converted].filter(([name, tensor]) => differs(state.get(name), tensor)).map(([name]) => name);
  for (const name of [...converted.keys()]) if (model.hasGivenUp(name)) converted.delete(name);
  const isClassifier = (name: string): boolean => model.isInClassifier(name);
  const dropped = classifier === 'drop' ? [...converted.keys()].filter(isClassifier) : [];
  for (const name of dropped) converted.delete(name);
  const own = [...model.stateDict()].filter(([name]) => classifier === 'drop' && isClassifier(name));
  for (const [name, tensor] of own) converted.set(name, tensor);

  const check = compareState(model.namedState(), converted);
  if (strict && describeReport(check) !== '') throw new Error(explain(model, check, origin));
  model.loadStateDict(converted, { strict: false });
  const refused = check.unexpected.length + check.mismatched.length;
  return { ...check, loaded: converted.size - own.length - refused, dropped, resampled };
}

function differs(before: Tensor | undefined, after: Tensor): boolean {
  return before !== undefined && before !== after && before.shape.join() !== after.shape.join();
}

function explain(model: Host, report: LoadReport, origin: string): string {
  const names = [...report.missing, ...report.unexpected, ...report.mismatched.map(({ name }) => name)];
  const onlyClassifier = names.every((name) => model.isInClassifier(name));
  const total = model.namedState().length;
  const hint = onlyClassifier
    ? `Only the classifier differs: pass { classifier: 'drop' } to keep the model's own.`
    : report.missing.length > total / 2
      ? 'Hardly a name fits: this file seems to belong to another model.'
      : 'Pass { strict: false } to load what fits.';
  return `${origin} does not fit ${model.name}; nothing was loaded.${describeReport(report)}\n  ${hint}`;
}
