/**
 * What adapters share on one model: which are there, which are active, and the backbone's own values of tensors that
 * adapters overlay. All changes of a model's adapters go through its host, so that the model can always be put back.
 */
import type { Buffer, Module, Parameter } from '../../nn/index.js';
import { keep, type Tensor } from '../../tensor/index.js';
import { Grafts, type Graft } from './grafts.js';
import { RootGrafts, type MixedHost } from './mixed.js';

/** A backbone tensor of which an adapter has its own value: a trained norm or bias, or running statistics that may move. */
export type Overlay = {
  /** As in the backbone's state dict. */
  readonly name: string;
  /** The adapter's value while it is not active; while it is, the target holds it. */
  value: Tensor;
} & ({ readonly trains: true; readonly target: Parameter } | { readonly trains: false; readonly target: Buffer });

/** What the host knows of an adapter. */
export interface Resident {
  readonly name: string;
  readonly isMerged: boolean;
  readonly grafts: readonly Graft[];
  readonly overlays: readonly Overlay[];
}

const hosts = new WeakMap<Module, AdapterHost>();

/** The adapters of one model. */
export class AdapterHost<A extends Resident = Resident> implements MixedHost {
  readonly #adapters = new Map<string, A>();
  #active: readonly A[] = [];
  readonly #merged: A[] = [];
  /** The backbone's own values of overlaid tensors, and which adapter's value stands there now. */
  readonly #originals = new Map<Parameter | Buffer, Tensor>();
  readonly #occupied = new Map<Parameter | Buffer, Overlay>();
  #requiredGrad: readonly (readonly [Parameter, boolean])[] = [];

  private constructor(readonly model: Module) {}

  /** The host of a model, made at the first call. */
  static of<A extends Resident>(model: Module): AdapterHost<A> {
    let host = hosts.get(model);
    if (!host) hosts.set(model, (host = new AdapterHost(model)));
    return host as unknown as AdapterHost<A>;
  }

  get adapters(): ReadonlyMap<string, A> {
    return this.#adapters;
  }

  get active(): readonly A[] {
    return this.#active;
  }

  /** Puts a new adapter's grafts in their places, inactive. The backbone is frozen from the first adapter on. */
  add(adapter: A): void {
    if (this.#adapters.size === 0) {
      this.#requiredGrad = this.model.parameters().map((p) => [p, p.requiresGrad] as const);
      this.model.freeze();
      // A root that is a site holds grafts of its own; then mixed batches are checked where their grafts are met.
      this.model.grafts ??= new RootGrafts(this);
    }
    this.#adapters.set(adapter.name, adapter);
    for (const graft of adapter.grafts) {
      const { module } = graft.site;
      const beside = module.grafts instanceof Grafts ? module.grafts : new Grafts();
      beside.add(graft);
      module.grafts = beside;
    }
  }

  /** Takes an adapter out: everything is as if it had never been there. */
  remove(adapter: A): void {
    this.activate(this.#active.filter((other) => other !== adapter));
    for (const graft of adapter.grafts) {
      const { module } = graft.site;
      if (!(module.grafts instanceof Grafts)) continue;
      module.grafts.remove(graft);
      if (module.grafts.isEmpty) module.grafts = undefined;
    }
    this.#adapters.delete(adapter.name);
    if (this.#adapters.size === 0) {
      for (const [parameter, required] of this.#requiredGrad) parameter.requiresGrad = required;
      this.#requiredGrad = [];
      if (this.model.grafts instanceof RootGrafts) this.model.grafts = undefined;
    }
  }

  /**
   * Makes exactly these adapters active, to compute in this order; merged ones, which are part of the weights, stay active
   * before them. Where several have their own value of a running statistic, the last that moved it wins; two that train
   * the same parameter cannot be active together.
   */
  activate(adapters: readonly A[]): void {
    const merged = this.#active.filter((adapter) => adapter.isMerged && !adapters.includes(adapter));
    const wanted = [...merged, ...adapters];
    this.#checkConflicts(wanted);
    for (const adapter of this.#active) this.#leave(adapter);
    this.#active = wanted;
    wanted.forEach((adapter, place) => this.#enter(adapter, place));
  }

  /** The merged adapters, the latest last. */
  get merged(): readonly A[] {
    return this.#merged;
  }

  /** Takes note that an adapter has been folded into the weights. */
  noteMerged(adapter: A): void {
    this.#merged.push(adapter);
  }

  /**
   * Takes note that an adapter is about to be taken out of the weights.
   *
   * @throws Error when another has been folded into them since, whose weights would be lost, or when two heads would then
   *   be active
   */
  noteUnmerged(adapter: A): void {
    const last = this.#merged.at(-1);
    if (last && last !== adapter) {
      throw new Error(`adapter '${last.name}' was merged after '${adapter.name}'; call unmerge() on that one first`);
    }
    requireOneHead(this.#active.filter((other) => !other.isMerged || other === adapter));
    this.#merged.pop();
  }

  #checkConflicts(adapters: readonly A[]): void {
    const trained = new Map<Parameter | Buffer, A>();
    for (const adapter of adapters) {
      for (const overlay of adapter.overlays) {
        if (!overlay.trains) continue;
        const other = trained.get(overlay.target);
        if (other) {
          throw new RangeError(
            `adapters '${other.name}' and '${adapter.name}' both train ${overlay.name} and cannot be active together`,
          );
        }
        trained.set(overlay.target, adapter);
      }
    }
    requireOneHead(adapters.filter(({ isMerged }) => !isMerged));
  }

  #enter(adapter: A, place: number): void {
    setPlace(adapter.grafts, place);
    for (const overlay of adapter.overlays) {
      const { target } = overlay;
      const held = this.#originals.get(target);
      if (!held) this.#originals.set(target, keep(target.detach()));
      // A running statistic that did not move must not undo what another active adapter brought.
      if (!overlay.trains && held && this.#occupied.has(target) && overlay.value.equal(held)) continue;
      this.#occupied.set(target, overlay);
      target.setData(overlay.value.to({ device: target.device, dtype: target.dtype }));
      if (overlay.trains) target.requiresGrad = true;
    }
  }

  #leave(adapter: A): void {
    setPlace(adapter.grafts, null);
    for (const overlay of adapter.overlays) {
      const { target } = overlay;
      if (this.#occupied.get(target) !== overlay) continue;
      overlay.value = keep(target.detach());
      const original = this.#originals.get(target);
      if (overlay.trains) {
        target.grad = null;
        target.requiresGrad = false;
      }
      if (original) target.setData(original.to({ device: target.device, dtype: target.dtype }));
      this.#originals.delete(target);
      this.#occupied.delete(target);
    }
  }

  // ---- mixed batches ----------------------------------------------------------------------------------------------

  check(names: readonly (string | null)[]): void {
    for (const name of new Set(names)) {
      if (name === null) continue;
      const adapter = this.#adapters.get(name);
      const there = [...this.#adapters.keys()].map((key) => `'${key}'`).join(', ');
      if (!adapter) throw new RangeError(`the model has no adapter '${name}'; there are ${there}, and null for none`);
      if (adapter.isMerged) {
        throw new RangeError(`adapter '${name}' is merged and cannot serve a mixed batch; call unmerge() first`);
      }
    }
  }

  backboneKey(name: string | null): string {
    const adapter = name === null ? undefined : this.#adapters.get(name);
    const own = adapter?.overlays.some(
      (overlay) => overlay.trains || !this.valueOf(overlay).equal(this.originalOf(overlay.target)),
    );
    return own === true ? `own/${name ?? ''}` : 'backbone';
  }

  under<T>(name: string | null, compute: () => T): T {
    const before = this.#active;
    const adapter = name === null ? undefined : this.#adapters.get(name);
    const wanted = adapter && this.backboneKey(name) !== 'backbone' ? [adapter] : [];
    if (before.every(({ overlays }) => overlays.length === 0) && wanted.length === 0) return compute();
    if (before.length === 1 && wanted.length === 1 && before[0] === wanted[0]) return compute();
    this.activate(wanted);
    try {
      return compute();
    } finally {
      this.activate(before);
    }
  }

  /** The adapter's present value of an overlaid tensor. */
  valueOf(overlay: Overlay): Tensor {
    return this.#occupied.get(overlay.target) === overlay ? overlay.target : overlay.value;
  }

  /** The backbone's own value of one of its tensors, whatever adapters have put there. */
  originalOf(tensor: Parameter | Buffer): Tensor {
    return this.#originals.get(tensor) ?? tensor;
  }
}

/** @throws RangeError when more than one of the adapters brings a head */
function requireOneHead(adapters: readonly Resident[]): void {
  const heads = adapters.filter(({ grafts }) => grafts.some(({ composition }) => composition.kind === 'replace'));
  if (heads.length < 2) return;
  throw new RangeError(
    `adapters ${heads.map(({ name }) => `'${name}'`).join(' and ')} each bring a head; one of them can be active at a time`,
  );
}

function setPlace(grafts: readonly Graft[], place: number | null): void {
  for (const graft of grafts) graft.place = place;
  for (const graft of grafts) if (graft.site.module.grafts instanceof Grafts) graft.site.module.grafts.refresh();
}
