/** Which grafts can be folded into frozen weights, and why the others cannot. */
import { BatchNorm2d, Conv2d, GroupNorm, LayerNorm, Linear, type Module } from '../../nn/index.js';
import type { Adapter } from './adapter.js';
import { isAffineForm, isDeltaForm } from './compose.js';
import { Grafts, type Graft } from './grafts.js';
import { Head } from './head.js';

/** A layer that is y = (weight ...) + bias per output channel. */
export type Affine = Linear | Conv2d | BatchNorm2d | LayerNorm | GroupNorm;

/** Whether a layer can take up increments or affine maps. */
export function isAffineLayer(module: Module): module is Affine {
  return [Linear, Conv2d, BatchNorm2d, LayerNorm, GroupNorm].some((kind) => module instanceof kind);
}

/** Why a graft cannot be folded into its site whatever else is there, or null when it can. */
function obstacle(graft: Graft, adapter: Adapter): string | null {
  const { composition, form, site } = graft;
  const layer = site.module;
  const name = layer.constructor.name;
  switch (composition.kind) {
    case 'replace':
      return form instanceof Head ? form.obstacle : 'it replaces a computation';
    case 'delta':
      return isDeltaForm(form) ? null : 'it states no weight increment';
    case 'affine':
      if (!isAffineForm(form)) return 'it states no affine map';
      if (foldsForward(graft)) return readerOf(adapter) ? null : 'there is no classifier to fold it into';
      if (!isAffineLayer(layer)) return `what precedes it is a ${name}, not an affine layer`;
      return layer.weight ? null : `the ${name} before it has no weights`;
    default:
      return `a ${composition.kind} ${form.constructor.name} is not a change of weights`;
  }
}

/** Whether a graft folds into the classifier, which alone reads the mean of the site's features, for want of a layer before it. */
export function foldsForward({ composition, form, site }: Graft): boolean {
  const isMap = composition.kind === 'affine' && isAffineForm(form) && !site.slice;
  return isMap && site.reader === 'classifier' && !isAffineLayer(site.module);
}

/** The linear layer that is, or will be, the model's classifier. */
function readerOf({ headModule, model }: Adapter): Linear | null {
  const classifier = headModule?.linear ?? (model.classifier === null ? null : model.getModule(model.classifier));
  return classifier instanceof Linear ? classifier : null;
}

/** Whether two grafts of one layer touch the same outputs. */
function overlap({ site: { slice: a } }: Graft, { site: { slice: b } }: Graft): boolean {
  return !a || !b || (a.start < b.start + b.length && b.start < a.start + a.length);
}

/** Whether a graft does the same in the weights of its layer as behind `other`, which goes on computing beside it. */
function commutes({ composition: { kind } }: Graft, other: Graft): boolean {
  const { kind: beside } = other.composition;
  // What enters a layer is the same for its weights and for all that is added to it.
  return beside === 'before' || (kind === 'delta' && (beside === 'delta' || beside === 'parallel'));
}

/** One of the grafts that `stay` whose effect would be another once `graft` is in the weights, or undefined. */
function inTheWay(graft: Graft, adapter: Adapter, stays: (other: Graft) => boolean): Graft | undefined {
  const computing = ({ grafts }: Module): readonly Graft[] => (grafts instanceof Grafts ? grafts.active : []);
  const here = computing(graft.site.module);
  const [before, after] = [here.slice(0, here.indexOf(graft)), here.slice(here.indexOf(graft) + 1)];
  if (foldsForward(graft)) {
    // It moves behind everything up to the classifier.
    const behind = ['features', 'pre_logits', 'classifier'];
    const readers = adapter.model.sites().filter(({ roles }) => roles.some((role) => behind.includes(role)));
    const passed = after.filter(({ composition }) => composition.kind !== 'before');
    return [...passed, ...readers.flatMap(({ module }) => computing(module))].find(stays);
  }
  const replacing = here.filter(({ composition }) => composition.kind === 'replace');
  const changed = before.filter((other) => overlap(graft, other) && !commutes(graft, other));
  return [...replacing, ...changed].find(stays);
}

/** The grafts of an adapter that cannot be folded into the weights as the model stands, each with the reason. */
export function obstacles(adapter: Adapter): Map<Graft, string> {
  const reasons = new Map<Graft, string>();
  for (const graft of adapter.grafts) {
    const reason = obstacle(graft, adapter);
    if (reason !== null) reasons.set(graft, reason);
  }
  // A graft that stays may keep others from being folded, which then stay too.
  for (let found = -1; found < reasons.size;) {
    found = reasons.size;
    for (const graft of adapter.grafts) {
      if (reasons.has(graft) || graft.composition.kind === 'replace') continue;
      const other = inTheWay(graft, adapter, (g) => g.adapter !== adapter.name || reasons.has(g));
      if (!other) continue;
      const name = `${other.form.constructor.name} at ${other.site.path}`;
      const reason =
        other.adapter === adapter.name
          ? `the ${name} of this adapter stays and would compute something else`
          : `the ${name} of adapter '${other.adapter}' would compute something else; merge or disable that adapter first`;
      reasons.set(graft, reason);
    }
  }
  return reasons;
}
