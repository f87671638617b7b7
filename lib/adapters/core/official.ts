/** An adapter's tensors under the names of its method's official checkpoints. */
import { noGrad, type Tensor } from '../../tensor/index.js';
import type { Adapter } from './adapter.js';
import type { OfficialPart } from './method.js';

/** Every tensor of grafts and shared parts, with what its official name depends on. */
function* parts(adapter: Adapter): Generator<[OfficialPart, Tensor]> {
  for (const { site, rule, form, scale } of adapter.grafts) {
    const path = site.path.replace(/\[.*\]$/, '');
    if (scale) yield [{ path, site, rule, leaf: 'scale' }, scale];
    for (const [leaf, tensor] of form.namedState()) yield [{ path, site, rule, leaf }, tensor];
  }
  for (const [rule, part] of adapter.shared) {
    for (const [leaf, tensor] of part.namedState()) yield [{ path: '', rule, leaf }, tensor];
  }
}

/** Official name to the adapter's own tensor; parameters of the backbone and its classifier keep the model's names. */
function named(adapter: Adapter): Map<string, Tensor> {
  const { method, options, model } = adapter;
  const names = new Map<string, Tensor>();
  const classifier = method.officialHead ?? model.classifier ?? '';
  const hasNorm = (adapter.headModule?.norm ?? null) !== null;
  for (const [part, tensor] of parts(adapter)) {
    const own = part.path === '' ? `${part.rule}.${part.leaf}` : `${part.path}.${part.rule}.${part.leaf}`;
    // A norm before the classifier makes it a sequence of two in official checkpoints (MAE's, AdaptFormer's).
    const leaf = part.leaf.replace(/^norm\./, '0.').replace(/^linear\./, hasNorm ? '1.' : '');
    const head = `${classifier}.${leaf}`;
    const name = part.rule === 'head' ? head : method.officialName ? method.officialName(part, options) : own;
    if (name !== null) names.set(name, tensor);
  }
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

/** See `Adapter.loadOfficialState`. */
export function loadOfficialState(adapter: Adapter, state: ReadonlyMap<string, Tensor>): void {
  const targets = named(adapter);
  const problems = Array.from(targets, ([name, target]) => {
    const given = state.get(name);
    if (!given) return `missing ${name}`;
    const same = given.shape.join() === target.shape.join();
    return same ? null : `${name} is [${given.shape.join(', ')}], expected [${target.shape.join(', ')}]`;
  }).filter((problem) => problem !== null);
  if (problems.length > 0) {
    const rest = problems.length > 8 ? `; and ${problems.length - 8} more` : '';
    throw new Error(
      `the checkpoint does not hold adapter '${adapter.name}' (${adapter.method.id}): ${problems.slice(0, 8).join('; ')}${rest}`,
    );
  }
  noGrad(() => {
    for (const [name, target] of targets) target.copy_(state.get(name) as Tensor);
  });
  adapter.headModule?.markTrained();
}
