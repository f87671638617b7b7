/**
 * Setting an adapter into a model, in phases: find the sites, build every part, and only then touch the model. Whatever
 * fails before the last phase leaves the model as it was.
 */
import type { z } from 'zod';
import { BatchNorm2d, Linear, Conv2d, type Module, type Parameter, type Site } from '../../nn/index.js';
import { type Host, parseOptions } from '../../models/index.js';
import { getRngState, keep, manualSeed, scope, setRngState, withDefaults } from '../../tensor/index.js';
import { Adapter, type HeadChoice } from './adapter.js';
import { misfit, replace, scaleParameter, type Composition } from './compose.js';
import type { Graft } from './grafts.js';
import { Head, headOptions } from './head.js';
import { AdapterHost, type Overlay } from './host.js';
import type { BackboneParameter, Method, Rule, Surroundings } from './method.js';
import { nothingMatched, selectSites } from './select.js';
import { warn } from './warn.js';

/** How an adapter is set in; what does not depend on the method. */
export interface GraftOptions {
  /** Name in the model. Default `default`. */
  readonly name?: string;
  /**
   * `{ classes }`: the adapter brings a new classifier of its own; `train` (default): the backbone's classifier is
   * trained, its own values coming back when the adapter leaves; `frozen`: it stays as it is.
   */
  readonly head?: HeadChoice;
  /** Seed of the initial values; the generator is put back afterwards. Default: whatever comes next from it. */
  readonly seed?: number;
  /** `only` (default): the new adapter is the only active one; `also`: beside those active now; `no`: not yet. */
  readonly activate?: 'only' | 'also' | 'no';
}

const HEAD_RULE: Rule = {
  id: 'head',
  at: { role: 'classifier' },
  compose: replace(),
  form: () => {
    throw new Error('the head is built by the engine');
  },
};

/** Sets `method` into `model`. See `graft` in `lib/adapters/registry.ts` for the public form. */
export function graftMethod<S extends z.ZodObject>(
  model: Host,
  method: Method<S>,
  options: unknown,
  settings: GraftOptions = {},
): Adapter {
  const { name = 'default', head = 'train', seed, activate = 'only' } = settings;
  const host = AdapterHost.of<Adapter>(model);
  if (host.adapters.has(name)) {
    throw new RangeError(`the model has an adapter '${name}' already; remove it or choose another name`);
  }
  const parsed = parseOptions(method.options, options ?? {}, method.id);

  // Find: every rule must mean something here.
  const sites = model.sites();
  const rules = method.rules(parsed, sites);
  const wanted: { rule: Rule; site: Site }[] = [];
  for (const rule of rules) {
    const found = selectSites(rule, sites);
    if (found.length === 0 && rule.optional !== true) throw nothingMatched(method.id, rule, model.name, sites);
    for (const site of found) wanted.push({ rule, site });
  }
  requireOwnPlaces(method.id, wanted);

  const parts = (shared: Map<string, Module>): Graft[] => {
    const built = wanted.map(({ rule, site }) => {
      const beside = wanted.filter((other) => other.rule === rule).map((other) => other.site);
      return build(method.id, name, rule, site, { sites: beside, all: sites }, shared);
    });
    if (typeof head === 'object') {
      const own = method.headInit ? { init: method.headInit, ...head } : head;
      built.push(buildHead(method.id, name, sites, model.name, own));
    }
    return built;
  };
  rehearse(model, () => parts(new Map()));

  const shared = new Map<string, Module>();
  // Build: forms, head and the adapter's own values of backbone tensors, nothing of which the model sees yet.
  const { grafts, overlays } = seeded(seed, () =>
    likeModel(model, () => ({ grafts: parts(shared), overlays: makeOverlays(model, method.trains?.(parsed), head) })),
  );
  if (grafts.length === 0 && !overlays.some(({ trains }) => trains)) {
    throw new RangeError(`${method.id}: nothing would be trained; choose a head other than 'frozen'`);
  }
  for (const part of [...grafts.map(({ form }) => form), ...shared.values()]) part.train(model.training);
  warnAboutSize(method.id, grafts);

  // Set in.
  const adapter = new Adapter({ model, host, name, method, options: parsed, head, grafts, shared, overlays });
  host.add(adapter);
  if (activate !== 'no') {
    try {
      host.activate(activate === 'only' ? [adapter] : [...host.active, adapter]);
    } catch (error) {
      host.remove(adapter);
      throw error;
    }
  }
  return adapter;
}

/** @throws RangeError when two rules of one id meet at a site: their tensors would have the same names */
function requireOwnPlaces(method: string, wanted: readonly { readonly rule: Rule; readonly site: Site }[]): void {
  const taken = new Set<string>();
  for (const { rule, site } of wanted) {
    const place = `${site.path}.${rule.id}`;
    if (taken.has(place)) {
      throw new RangeError(
        `${method}: two rules '${rule.id}' mean ${site.path}, and it takes one; leave it out of one of them (except)`,
      );
    }
    taken.add(place);
  }
}

function seeded<T>(seed: number | undefined, make: () => T): T {
  if (seed === undefined) return make();
  const state = getRngState();
  try {
    manualSeed(seed);
    return make();
  } finally {
    setRngState(state);
  }
}

/**
 * Builds everything once on the meta device, which has shapes and no memory: what does not fit, at the last site or in the
 * head, is refused before anything is allocated.
 *
 * @throws RangeError that a form throws; whatever else goes wrong there may be the device's doing and is left to the build
 */
function rehearse(model: Host, make: () => unknown): void {
  if (model.parameters()[0]?.device === 'meta') return;
  scope(() => {
    const state = getRngState();
    try {
      withDefaults({ device: 'meta' }, make);
    } catch (error) {
      if (error instanceof RangeError) throw error;
    } finally {
      setRngState(state);
    }
  });
}

/** New parts are made where the model is and in its dtype. */
function likeModel<T>(model: Module, make: () => T): T {
  const [first] = model.parameters();
  return first ? withDefaults({ device: first.device, dtype: first.dtype }, make) : make();
}

function build(
  method: string,
  adapter: string,
  rule: Rule,
  site: Site,
  around: Omit<Surroundings, 'shared'>,
  parts: Map<string, Module>,
): Graft {
  let form: Module;
  const used = new Set<Module>();
  const shared = <M extends Module>(key: string, make: () => M): M => {
    const part = parts.get(key) ?? make();
    parts.set(key, part);
    used.add(part);
    return part as M;
  };
  try {
    form = rule.form(site, { ...around, shared });
  } catch (error) {
    if (error instanceof RangeError)
      throw new RangeError(`${method} at ${site.path}: ${error.message}`, { cause: error });
    throw error;
  }
  const problem = misfit(rule.compose, form, site);
  if (problem !== null) throw new RangeError(`${method}: rule '${rule.id}' cannot stand at ${site.path}: ${problem}`);
  return newGraft(adapter, site, rule.id, rule.compose, form, [...used]);
}

function newGraft(
  adapter: string,
  site: Site,
  rule: string,
  composition: Composition,
  form: Module,
  shared: readonly Module[] = [],
): Graft {
  const scale = scaleParameter(composition, site);
  return { adapter, site, rule, composition, form, scale, shared, strength: 1, place: null, merged: false };
}

function buildHead(
  method: string,
  adapter: string,
  sites: readonly Site[],
  model: string,
  options: Exclude<HeadChoice, string>,
): Graft {
  const { classes } = options;
  if (!Number.isInteger(classes) || classes < 1) {
    throw new RangeError(`${method}: head.classes must be a positive integer, got ${classes}`);
  }
  parseOptions(headOptions, options, `${method}: head`);
  const [site] = selectSites(HEAD_RULE, sites);
  if (!site) throw nothingMatched(method, HEAD_RULE, model, sites);
  return newGraft(adapter, site, HEAD_RULE.id, HEAD_RULE.compose, new Head(site.in, options));
}

/** The adapter's own copies of backbone parameters that it trains and of running statistics that training may move. */
function makeOverlays(
  model: Host,
  trains: ((parameter: BackboneParameter) => boolean) | undefined,
  head: HeadChoice,
): Overlay[] {
  const overlays: Overlay[] = [];
  // A parameter that stands under several names, as tied embeddings do, has one value.
  const seen = new Set<Parameter>();
  for (const [path, module] of model.namedModules()) {
    if (model.isUntouchable(path)) continue;
    const prefix = path === '' ? '' : `${path}.`;
    const own = new Set<unknown>(Object.values(module));
    for (const [leaf, parameter] of module.namedParameters()) {
      if (!own.has(parameter) || seen.has(parameter)) continue;
      seen.add(parameter);
      const name = prefix + leaf;
      const wanted = model.isInClassifier(name) ? head === 'train' : trains?.({ name, parameter, module }) === true;
      if (wanted) overlays.push({ name, target: parameter, trains: true, value: keep(parameter.detach().clone()) });
    }
    if (!(module instanceof BatchNorm2d)) continue;
    for (const [leaf, buffer] of module.namedBuffers()) {
      overlays.push({ name: prefix + leaf, target: buffer, trains: false, value: keep(buffer.detach().clone()) });
    }
  }
  return overlays;
}

/** Number of weights of the layer or stretch that a site stands for, or null where it computes nothing by itself. */
function layerSize({ module, in: channels, out, kernel, groups = 1 }: Site): number | null {
  if (module instanceof Linear || module instanceof Conv2d) return module.weight.numel();
  return kernel ? (out * channels * kernel[0] * kernel[1]) / groups : null;
}

function warnAboutSize(method: string, grafts: readonly Graft[]): void {
  const larger = grafts.filter(({ site, form, rule, composition }) => {
    const size = layerSize(site);
    if (size === null || rule === HEAD_RULE.id || composition.kind === 'affine') return false;
    return form.parameters().reduce((sum, p) => sum + p.numel(), 0) > size;
  });
  const [first] = larger;
  if (!first) return;
  const rest = larger.length > 1 ? ` and ${larger.length - 1} other sites` : '';
  warn(
    'GRAFT_LARGER_THAN_LAYER',
    `${method}: the graft at ${first.site.path}${rest} has more parameters than the layer that it adapts; a smaller rank or width would do`,
  );
}
