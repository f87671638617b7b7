/** An adapter's tensors under the names of its method's official checkpoints. */
import { compareState, describeReport, modulePath } from '../../nn/index.js';
import { aten, noGrad, type Tensor } from '../../tensor/index.js';
import type { Adapter } from './adapter.js';
import type { OfficialPart } from './method.js';

/** Every tensor of grafts and shared parts, with what its official name depends on. */
function* parts(adapter: Adapter): Generator<[OfficialPart, Tensor]> {
  for (const { site, rule, form, scale } of adapter.grafts) {
    const path = modulePath(site);
    if (scale) yield [{ path, site, rule, leaf: 'scale' }, scale];
    for (const [leaf, tensor] of form.namedState()) yield [{ path, site, rule, leaf }, tensor];
  }
  for (const [rule, part] of adapter.shared) {
    for (const [leaf, tensor] of part.namedState()) yield [{ path: '', rule, leaf }, tensor];
  }
}

/** Name of the model's classifier in the official checkpoints, where one name stands for it. */
function classifierName({ method: { officialHead }, model }: Adapter): string {
  return typeof officialHead === 'string' ? officialHead : (model.classifier ?? '');
}

/** Official name of a tensor of the adapter's own head. */
function headName(adapter: Adapter, leaf: string): string {
  const { officialHead } = adapter.method;
  if (typeof officialHead === 'function') return officialHead(leaf);
  const classifier = classifierName(adapter);
  // VPT's hidden layers stand beside the last one: `head.projection` and `head.last_layer`.
  if (leaf.startsWith('projection.')) return `${classifier.split('.')[0] ?? ''}.${leaf}`;
  // A norm before the classifier makes it a sequence of two in official checkpoints (MAE's, AdaptFormer's).
  const linear = adapter.headModule?.norm ? '1.' : '';
  return `${classifier}.${leaf.replace(/^norm\./, '0.').replace(/^linear\./, linear)}`;
}

/** Official name of a tensor of a graft, a shared part or the head; null where the official checkpoints have none. */
function partName(adapter: Adapter, part: OfficialPart): string | null {
  const { path, rule, leaf } = part;
  if (rule === 'head') return headName(adapter, leaf);
  if (adapter.method.officialName) return adapter.method.officialName(part, adapter.options);
  return path === '' ? `${rule}.${leaf}` : `${path}.${rule}.${leaf}`;
}

/** Official name to the adapter's own tensor; parameters of the backbone and its classifier keep the model's names. */
function named(adapter: Adapter): Map<string, Tensor> {
  const { model } = adapter;
  const names = new Map<string, Tensor>();
  for (const [part, tensor] of parts(adapter)) {
    const name = partName(adapter, part);
    if (name !== null) names.set(name, tensor);
  }
  const classifier = classifierName(adapter);
  for (const overlay of adapter.overlays) {
    if (!overlay.trains) continue;
    const name = model.isInClassifier(overlay.name)
      ? overlay.name.replace(model.classifier ?? classifier, classifier)
      : overlay.name;
    names.set(name, adapter.valueOf(overlay));
  }
  return names;
}

/** See `Adapter.officialState`. */
export function officialState(adapter: Adapter): Map<string, Tensor> {
  return noGrad(() => new Map(Array.from(named(adapter), ([name, tensor]) => [name, tensor.detach()])));
}

/**
 * The state with those of `names` that it only has behind one common prefix, such as `module.`, also without it. Unchanged
 * where no prefix, or more than one, would do: the loader then says what is missing.
 */
function withoutPrefix(state: ReadonlyMap<string, Tensor>, names: readonly string[]): ReadonlyMap<string, Tensor> {
  const absent = names.filter((name) => !state.has(name));
  const [first] = absent;
  if (first === undefined) return state;
  const prefixes = [...state.keys()].flatMap((key) => (key.endsWith(`.${first}`) ? [key.slice(0, -first.length)] : []));
  const [prefix, second] = prefixes.filter((p) => absent.every((name) => state.has(p + name)));
  if (prefix === undefined || second !== undefined) return state;
  return new Map([...state, ...absent.map((name): [string, Tensor] => [name, state.get(prefix + name) as Tensor])]);
}

/** @throws Error when a checkpoint holds a tensor under two of its names with two values */
function requireEqualCopies({ method, name }: Adapter, state: ReadonlyMap<string, Tensor>, official: string): void {
  const pattern = method.officialCopies?.(official);
  const first = state.get(official);
  if (!pattern || !first) return;
  for (const [copy, tensor] of state) {
    if (!pattern.test(copy) || aten.equal(first.to(tensor.dtype), tensor)) continue;
    throw new Error(
      `the checkpoint holds ${official} once more as ${copy}, with other numbers; nothing was loaded into adapter ` +
        `'${name}' (${method.id}), which has one tensor for both. Load a checkpoint as it was saved`,
    );
  }
}

/** See `Adapter.loadOfficialState`. */
export function loadOfficialState(adapter: Adapter, given: ReadonlyMap<string, Tensor>): void {
  const targets = named(adapter);
  const state = withoutPrefix(given, [...targets.keys()]);
  // Such files also hold what is none of the adapter's: the backbone, an optimizer's state.
  const trouble = describeReport({ ...compareState(targets, state), unexpected: [] });
  if (trouble !== '') {
    throw new Error(
      `the checkpoint does not hold adapter '${adapter.name}' (${adapter.method.id}); nothing was loaded.${trouble}\n` +
        '  Give the method the options, and the head the classes, that the checkpoint was trained with.',
    );
  }
  noGrad(() => {
    for (const name of targets.keys()) requireEqualCopies(adapter, state, name);
    for (const [name, target] of targets) target.copy_(state.get(name) as Tensor);
  });
  adapter.headModule?.markTrained();
}
