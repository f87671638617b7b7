/**
 * Folding an adapter into frozen weights. One place for all methods: a method states its increment or its affine map,
 * and the arithmetic here is float64 whatever the dtype of the model.
 */
import { type Buffer, Linear, type Module, modulePath, Parameter } from '../../nn/index.js';
import { keep, noGrad, scope, type Tensor, zeros } from '../../tensor/index.js';
import type { Adapter } from './adapter.js';
import { affineOf, isAffineForm, isDeltaForm } from './compose.js';
import { type Affine, foldsForward, isAffineLayer, obstacles } from './foldable.js';
import { Grafts, type Graft } from './grafts.js';
import { Head } from './head.js';

/** See `Adapter.merge`. */
export interface MergeOptions {
  readonly probe?: Tensor;
  /** What the output for the probe is. Default: `model.run(probe)`. */
  readonly output?: (probe: Tensor) => Tensor;
  readonly partial?: boolean;
}

/** What merging did. */
export interface MergeReport {
  /** The object that holds the merged weights: always the model that was adapted, changed in place. */
  readonly target: string;
  /** Modules whose weights changed. */
  readonly merged: readonly string[];
  /** Modules that had no bias and now have one. */
  readonly biasesCreated: readonly string[];
  /** Grafts that stay beside the model, with the reason; empty unless `partial`. */
  readonly leftover: readonly { readonly site: string; readonly reason: string }[];
  /** Largest change of the output on the probe: absolute, and relative to the largest output. Null without a probe. */
  readonly outputChange: { readonly absolute: number; readonly relative: number } | null;
}

/** What `unmerge` needs. */
export interface MergeRecord {
  readonly grafts: readonly Graft[];
  readonly weights: readonly { readonly module: Affine; readonly weight: Tensor; readonly bias: Tensor | null }[];
  readonly classifier: Module | null;
}

/** Weight and bias of one layer while they are being changed, in float64. */
interface Draft {
  readonly module: Affine;
  readonly path: string;
  weight: Tensor;
  bias: Tensor | null;
}

/** See `Adapter.merge`. */
export function mergeAdapter(adapter: Adapter, options: MergeOptions): { record: MergeRecord; report: MergeReport } {
  const reasons = obstacles(adapter);
  const problems = Array.from(reasons, ([{ site }, reason]) => ({ site: site.path, reason }));
  if (problems.length > 0 && options.partial !== true) {
    const [first] = problems;
    throw new RangeError(
      `adapter '${adapter.name}' (${adapter.method.id}) cannot be merged: at ${first?.site} ${first?.reason}` +
        (problems.length > 1 ? ` (and ${problems.length - 1} more)` : '') +
        '. Keep it as an adapter folder, or pass partial: true to fold what can be folded.',
    );
  }
  const grafts = adapter.grafts.filter((graft) => !reasons.has(graft));
  const before = options.probe ? probeOutput(adapter, options.probe, options.output) : null;

  const drafts = noGrad(() => scope(() => foldAll(grafts)));
  const weights = drafts.map(({ module }) => ({
    module,
    weight: keep(noGrad(() => weightOf(module).detach().clone())),
    bias: copyOf(module.bias),
  }));
  const biasesCreated = drafts.filter((d) => d.bias && !d.module.bias).map((d) => d.path);
  for (const draft of drafts) install(draft);
  const classifier = mergeHead(adapter, grafts);
  const readers = foldReaders(adapter, grafts.filter(foldsForward));
  for (const graft of grafts) setMerged(graft, true);

  const merged = drafts.map(({ path }) => path);
  if (classifier && adapter.model.classifier !== null) merged.push(adapter.model.classifier);
  const after = options.probe ? probeOutput(adapter, options.probe, options.output) : null;
  return {
    // In reverse: a layer that changed twice gets its first values.
    record: { grafts, weights: [...readers, ...weights], classifier },
    report: {
      target: `the model ${adapter.model.name} itself, in place`,
      merged,
      biasesCreated,
      leftover: problems,
      outputChange: before && after ? outputChange(before, after) : null,
    },
  };
}

/** The weight of a layer that `obstacle` has found to have one. */
function weightOf({ weight }: Affine): Parameter | Buffer {
  if (weight) return weight;
  throw new Error('a norm without weights cannot take up an affine map');
}

function copyOf(tensor: Tensor | null): Tensor | null {
  return tensor && keep(noGrad(() => tensor.detach().clone()));
}

/** See `Adapter.unmerge`. */
export function unmergeAdapter(adapter: Adapter, record: MergeRecord): void {
  noGrad(() => {
    for (const { module, weight, bias } of record.weights) {
      weightOf(module).setData(weight);
      if (bias === null) module.bias = null;
      else module.bias?.setData(bias);
    }
  });
  for (const graft of record.grafts) setMerged(graft, false);
  if (record.classifier) adapter.model.restoreClassifier(record.classifier);
}

function foldAll(grafts: readonly Graft[]): Draft[] {
  const drafts = new Map<Module, Draft>();
  for (const graft of grafts) {
    const { module } = graft.site;
    if (graft.composition.kind === 'replace' || !isAffineLayer(module)) continue;
    let draft = drafts.get(module);
    if (!draft) {
      const weight = weightOf(module).detach().to('float64').clone();
      const bias = module.bias ? module.bias.detach().to('float64').clone() : null;
      draft = { module, path: modulePath(graft.site), weight, bias };
      drafts.set(module, draft);
    }
    fold(graft, draft);
  }
  return [...drafts.values()];
}

/** Folds affine maps of features into the classifier that reads their mean: W diag(a), b + W s. Returns what it was. */
function foldReaders(adapter: Adapter, grafts: readonly Graft[]): MergeRecord['weights'] {
  const { model } = adapter;
  if (grafts.length === 0 || model.classifier === null) return [];
  const module = model.getModule(model.classifier);
  if (!(module instanceof Linear)) return [];
  const before = noGrad(() => ({
    module,
    weight: keep(module.weight.detach().clone()),
    bias: module.bias ? keep(module.bias.detach().clone()) : null,
  }));
  noGrad(() => {
    scope(() => {
      const draft: Draft = { module, path: model.classifier ?? '', weight: before.weight.to('float64'), bias: null };
      let bias =
        before.bias?.to('float64') ?? zeros([module.outFeatures], { dtype: 'float64', device: before.weight.device });
      // The last map is the first that the classifier undoes.
      for (const graft of [...grafts].reverse()) {
        const { factor, summand } = inDouble([graft.form, ...graft.shared], () => affineOf(graft));
        if (summand) bias = bias.add(draft.weight.mv(summand.to('float64')));
        if (factor) draft.weight = draft.weight.mul(factor.to('float64'));
      }
      install({ ...draft, bias });
    });
  });
  return [before];
}

/** Changes the draft by one graft, in the order in which grafts compute. */
function fold(graft: Graft, draft: Draft): void {
  const { composition, form, site, strength, shared } = graft;
  const { start, length } = site.slice ?? { start: 0, length: site.out };
  const rows = (t: Tensor): Tensor => t.narrow(0, start, length);
  if (composition.kind === 'delta' && isDeltaForm(form)) {
    rows(draft.weight).add_(inDouble([form, ...shared], () => form.delta()).mul(composition.scale * strength));
  } else if (composition.kind === 'affine' && isAffineForm(form)) {
    const { factor, summand } = inDouble([form, ...shared], () => affineOf(graft));
    if (factor) {
      const double = factor.detach().to('float64');
      rows(draft.weight).mul_(double.view([-1, ...Array<number>(draft.weight.ndim - 1).fill(1)]));
      if (draft.bias) rows(draft.bias).mul_(double);
    }
    if (summand) {
      draft.bias ??= zeros([draft.weight.shape[0] ?? 0], { dtype: 'float64', device: draft.weight.device });
      rows(draft.bias).add_(summand.detach().to('float64'));
    }
  }
}

/** Evaluates `compute` with the parts' parameters in float64. */
function inDouble<T>(parts: readonly Module[], compute: () => T): T {
  const held = parts.flatMap((part) => part.parameters()).map((parameter) => [parameter, parameter.detach()] as const);
  try {
    for (const [parameter, value] of held) parameter.setData(value.to('float64'));
    return compute();
  } finally {
    for (const [parameter, value] of held) parameter.setData(value);
  }
}

/** Gives the layer its new values in its own dtype; a layer without a bias gets one where needed. */
function install({ module, weight, bias }: Draft): void {
  noGrad(() => {
    const target = weightOf(module);
    target.setData(weight.to(target.dtype));
    if (!bias) return;
    if (module.bias) module.bias.setData(bias.to(target.dtype));
    else module.bias = new Parameter(bias.to(target.dtype), false);
  });
}

/** Makes the adapter's head the model's classifier; returns the one that it replaces. */
function mergeHead(adapter: Adapter, grafts: readonly Graft[]): Module | null {
  const head = grafts.find(({ form }) => form instanceof Head)?.form;
  const { model } = adapter;
  if (!(head instanceof Head) || model.classifier === null) return null;
  const replaced = model.getModule(model.classifier);
  const { grafts: beside } = replaced;
  model.resetClassifier(head.linear.outFeatures);
  const classifier = model.getModule(model.classifier);
  scope(() => {
    classifier.loadStateDict(head.asLinear());
  });
  classifier.freeze();
  classifier.grafts = beside;
  return replaced;
}

function setMerged(graft: Graft, merged: boolean): void {
  graft.merged = merged;
  const beside = graft.site.module.grafts;
  if (beside instanceof Grafts) beside.refresh();
}

/** Output for the probe in evaluation mode, on float64. */
function probeOutput(adapter: Adapter, probe: Tensor, output?: MergeOptions['output']): Tensor {
  const { model } = adapter;
  const training = model.training;
  model.eval();
  try {
    return noGrad(() => scope(() => (output ? output(probe) : model.run(probe)).to('float64')));
  } finally {
    model.train(training);
  }
}

function outputChange(before: Tensor, after: Tensor): { absolute: number; relative: number } {
  return scope(() => {
    const absolute = Number(after.sub(before).abs().max().item());
    const largest = Number(before.abs().max().item());
    return { absolute, relative: largest === 0 ? absolute : absolute / largest };
  });
}
