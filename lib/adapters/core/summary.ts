/** Counting what an adapter trains. */
import type { Adapter } from './adapter.js';

/** Parameters of one graft. */
export interface SiteSummary {
  readonly site: string;
  readonly rule: string;
  readonly parameters: number;
}

/** Parameters of an adapter and of the model that it sits in. */
export interface AdapterSummary {
  readonly adapter: string;
  readonly method: string;
  readonly active: boolean;
  readonly merged: boolean;
  /** Parameters of the grafts; those of head and backbone that are trained; and the sum of what is trained. */
  readonly grafts: number;
  readonly head: number;
  readonly backbone: number;
  readonly trainable: number;
  /** Parameters of backbone and adapter together. What the adapter replaces, such as the classifier, is not counted. */
  readonly total: number;
  /** 100 * trainable / total. */
  readonly percent: number;
  readonly sites: readonly SiteSummary[];
}

const count = (tensors: Iterable<{ numel(): number }>): number => {
  let sum = 0;
  for (const tensor of tensors) sum += tensor.numel();
  return sum;
};

/** See `Adapter.summary`. */
export function summarize(adapter: Adapter): AdapterSummary {
  const sites = adapter.grafts.map((graft) => ({
    site: graft.site.path,
    rule: graft.rule,
    parameters: count(graft.form.parameters()) + (graft.scale?.numel() ?? 0),
  }));
  const trained = adapter.overlays.filter(({ trains }) => trains);
  const trainedHead = count(
    trained.filter(({ name }) => adapter.model.isInClassifier(name)).map(({ target }) => target),
  );
  const ownHead = sites.filter(({ rule }) => rule === 'head').reduce((sum, s) => sum + s.parameters, 0);
  const head = ownHead + trainedHead;
  const shared = count([...adapter.shared.values()].flatMap((part) => part.parameters()));
  const grafts = sites.reduce((sum, s) => sum + s.parameters, 0) - ownHead + shared;
  const backbone = count(trained.map(({ target }) => target)) - trainedHead;
  const replacing = adapter.grafts.filter(({ composition }) => composition.kind === 'replace');
  const replaced = count(replacing.flatMap(({ site }) => site.module.parameters()));
  const total = count(adapter.model.parameters()) - replaced + grafts + ownHead;
  const own = adapter.namedOwnParameters().map(([, parameter]) => parameter);
  const trainable = grafts + head + backbone - count(own.filter(({ requiresGrad }) => !requiresGrad));
  return {
    adapter: adapter.name,
    method: adapter.method.id,
    active: adapter.isActive,
    merged: adapter.isMerged,
    grafts,
    head,
    backbone,
    trainable,
    total,
    percent: (100 * trainable) / total,
    sites: sites.filter(({ parameters }) => parameters > 0),
  };
}
