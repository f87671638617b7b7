/** What sits beside one module: the grafts of all adapters, those that are active in front. */
import type { Context, GraftSet, Module, Parameter, Site } from '../../nn/index.js';
import type { Tensor } from '../../tensor/index.js';
import { runWithGrafts, type Composition, type Part } from './compose.js';
import { runMixed } from './mixed.js';

/** One form at one site, belonging to one adapter. */
export interface Graft extends Part {
  /** Name of the adapter. */
  readonly adapter: string;
  readonly site: Site;
  readonly rule: string;
  readonly composition: Composition;
  readonly form: Module;
  readonly scale: Parameter | null;
  /** Parts of the adapter that the form shares with others. */
  readonly shared: readonly Module[];
  /** Factor of the graft's effect; see `Adapter.strength`. */
  strength: number;
  /**
   * Place of its adapter among the active ones, which is the order in which grafts compute; null while it is not active.
   * Changed only by the host, which then calls `refresh`.
   */
  place: number | null;
  /** Whether merging has folded it into the site's weights: it stays known but computes nothing. */
  merged: boolean;
}

/** The grafts beside one module. */
export class Grafts implements GraftSet {
  #all: readonly Graft[] = [];
  #active: readonly Graft[] = [];

  get isEmpty(): boolean {
    return this.#all.length === 0;
  }

  /** Sets a graft in, above those that are there. */
  add(graft: Graft): void {
    this.#all = [...this.#all, graft];
    this.refresh();
  }

  /** Takes a graft out. */
  remove(graft: Graft): void {
    this.#all = this.#all.filter((other) => other !== graft);
    this.refresh();
  }

  /** The grafts that compute now, in their order. */
  get active(): readonly Graft[] {
    return this.#active;
  }

  /** Takes notice of changed `place` and `merged` fields. */
  refresh(): void {
    const computing = this.#all.filter(({ place, merged }) => place !== null && !merged);
    this.#active = computing.sort((a, b) => (a.place ?? 0) - (b.place ?? 0));
  }

  apply(module: Module, x: Tensor, ctx: Context): Tensor {
    if (ctx.adapters) return runMixed(module, this.#all, x, ctx);
    return this.#active.length === 0 ? module.forward(x, ctx) : runWithGrafts(module, this.#active, x, ctx);
  }

  *parameters(): Iterable<Parameter> {
    for (const graft of this.#active) {
      yield* graft.form.parameters();
      for (const part of graft.shared) yield* part.parameters();
      if (graft.scale) yield graft.scale;
    }
  }

  *modules(): Iterable<Module> {
    for (const graft of this.#all) yield* [graft.form, ...graft.shared];
  }
}
