/** One adapter in one model: what it consists of, whether it is active, and how it leaves. */
import type { Host } from '../../models/index.js';
import type { Module, Parameter } from '../../nn/index.js';
import type { Tensor } from '../../tensor/index.js';
import { isWeightable } from './compose.js';
import { readAdapterFolder, saveAdapter, swapAdapterState, type AdapterFolder, type SaveOptions } from './folder.js';
import type { Graft } from './grafts.js';
import { Head, type HeadOptions } from './head.js';
import type { AdapterHost, Overlay, Resident } from './host.js';
import { mergeAdapter, unmergeAdapter, type MergeOptions, type MergeRecord, type MergeReport } from './merge.js';
import type { Method } from './method.js';
import { loadOfficialState, officialState } from './official.js';
import { summarize, type AdapterSummary } from './summary.js';

/** See `GraftOptions.head`. */
export type HeadChoice = 'train' | 'frozen' | HeadOptions;

interface AdapterParts {
  readonly model: Host;
  readonly host: AdapterHost<Adapter>;
  readonly name: string;
  readonly method: Method;
  readonly options: Readonly<Record<string, unknown>>;
  readonly head: HeadChoice;
  readonly grafts: readonly Graft[];
  readonly shared: ReadonlyMap<string, Module>;
  readonly overlays: readonly Overlay[];
}

/**
 * An adapter that has been set into a model. Made by `graft` or `loadAdapter`.
 *
 * ```ts
 * const adapter = graft(model, 'conv_adapter', { reduction: 4 }, { name: 'signs', head: { classes: 10 } });
 * console.log(adapter.summary().percent);
 * adapter.disable(); // the backbone alone, bit for bit
 * ```
 */
export class Adapter implements Resident {
  readonly model: Host;
  readonly name: string;
  readonly method: Method;
  /** The method's options, defaults filled in. */
  readonly options: Readonly<Record<string, unknown>>;
  readonly head: HeadChoice;
  readonly grafts: readonly Graft[];
  /** Parts that several grafts use, by name. */
  readonly shared: ReadonlyMap<string, Module>;
  readonly overlays: readonly Overlay[];
  readonly #host: AdapterHost<Adapter>;
  #merge: MergeRecord | null = null;
  #removed = false;

  constructor(parts: AdapterParts) {
    this.model = parts.model;
    this.name = parts.name;
    this.method = parts.method;
    this.options = parts.options;
    this.head = parts.head;
    this.grafts = parts.grafts;
    this.shared = parts.shared;
    this.overlays = parts.overlays;
    this.#host = parts.host;
  }

  /** What training does to BatchNorm's running statistics unless the user says otherwise. */
  get bnStats(): 'frozen' | 'update' {
    return this.method.bnStats ?? 'frozen';
  }

  /** Whether the backbone's dropout and stochastic depth act in training. */
  get backboneMode(): 'train' | 'eval' {
    return this.method.backboneMode ?? 'train';
  }

  get isActive(): boolean {
    return this.#host.active.includes(this);
  }

  get isMerged(): boolean {
    return this.#merge !== null;
  }

  // ---- what it consists of --------------------------------------------------------------------------------------

  /**
   * The trainable parameters: `<site path>.<rule>.<parameter>` for grafts and head, `shared.<part>.<parameter>` for what
   * several grafts use, `backbone.<name>` for parameters of the backbone that the adapter trains.
   */
  namedParameters(): [string, Parameter][] {
    const named = this.namedOwnParameters();
    for (const overlay of this.overlays) {
      if (overlay.trains) named.push([`backbone.${overlay.name}`, overlay.target]);
    }
    return named;
  }

  /** Those of `namedParameters` that the adapter brings: of grafts and head, and of what several grafts use. */
  namedOwnParameters(): [string, Parameter][] {
    const named: [string, Parameter][] = [];
    for (const graft of this.grafts) {
      const prefix = graftPrefix(graft);
      if (graft.scale) named.push([`${prefix}.scale`, graft.scale]);
      for (const [leaf, parameter] of graft.form.namedParameters()) named.push([`${prefix}.${leaf}`, parameter]);
    }
    for (const [name, part] of this.shared) {
      for (const [leaf, parameter] of part.namedParameters()) named.push([`shared.${name}.${leaf}`, parameter]);
    }
    return named;
  }

  /** The trainable parameters. */
  parameters(): Parameter[] {
    return this.namedParameters().map(([, parameter]) => parameter);
  }

  /** Buffers of the grafts, such as the running statistics of a norm that the method adds. */
  namedBuffers(): [string, Tensor][] {
    const parts: [string, Module][] = [
      ...this.grafts.map((graft): [string, Module] => [graftPrefix(graft), graft.form]),
      ...Array.from(this.shared, ([name, part]): [string, Module] => [`shared.${name}`, part]),
    ];
    return parts.flatMap(([prefix, part]) =>
      part.namedBuffers().map(([leaf, buffer]): [string, Tensor] => [`${prefix}.${leaf}`, buffer]),
    );
  }

  /** The classifier that the adapter brings, or null. */
  get headModule(): Head | null {
    const form = this.grafts.find(({ rule, form }) => rule === 'head' && form instanceof Head)?.form;
    return form instanceof Head ? form : null;
  }

  /** The adapter's present value of an overlaid backbone tensor. */
  valueOf(overlay: Overlay): Tensor {
    return this.#host.valueOf(overlay);
  }

  /** The backbone's own value of one of its tensors. */
  originalOf(overlay: Overlay): Tensor {
    return this.#host.originalOf(overlay.target);
  }

  /** Parameters by group and by site, and their share of the model. */
  summary(): AdapterSummary {
    return summarize(this);
  }

  // ---- whether it is active -------------------------------------------------------------------------------------

  /** Makes this the only active adapter; merged ones stay, as part of the weights. */
  activate(): this {
    this.#mustLive();
    this.#host.activate([this]);
    return this;
  }

  /** Makes this active beside those that are. @throws RangeError when two would train the same parameter or bring a head each */
  enable(): this {
    this.#mustLive();
    if (!this.isActive) this.#host.activate([...this.#host.active, this]);
    return this;
  }

  /** Takes this out of forward passes; the model is what it was, bit for bit. */
  disable(): this {
    this.#mustLive();
    if (this.isMerged) throw new Error(`adapter '${this.name}' is merged; call unmerge() before disable()`);
    if (this.isActive) this.#host.activate(this.#host.active.filter((other) => other !== this));
    return this;
  }

  /** Takes the adapter out of the model for good; the model is what it was, bit for bit. @throws Error as `unmerge` */
  remove(): void {
    this.#mustLive();
    if (this.isMerged) this.unmerge();
    this.#host.remove(this);
    this.#removed = true;
  }

  #mustLive(): void {
    if (this.#removed) throw new Error(`adapter '${this.name}' has been removed from its model`);
  }

  /** Writes an adapter folder: everything that training changed, the method, and what `options` adds. */
  save(path: string, options: SaveOptions = {}): void {
    this.#mustLive();
    saveAdapter(this, path, options);
  }

  // ---- exchanging values ----------------------------------------------------------------------------------------

  /**
   * Takes over the values of another adapter of the same method, options and head, in place: nothing is rebuilt, no
   * object changes, an optimizer keeps its parameters. For a server that changes adapters between requests.
   *
   * @param folder path of an adapter folder, or what `readAdapterFolder` returned
   * @throws Error that names the difference when the folder's adapter is of another kind; nothing has changed then
   */
  swap(folder: string | AdapterFolder): this {
    this.#mustLive();
    if (this.isMerged) throw new Error(`adapter '${this.name}' is merged; call unmerge() before swap()`);
    swapAdapterState(this, typeof folder === 'string' ? readAdapterFolder(folder) : folder);
    return this;
  }

  /**
   * Factor of the adapter's effect on the features, 1 unless set: y = f(x) + strength s g(x), and an affine map is drawn
   * that far from the identity. Weighs adapters that are active together, and fades one in or out.
   *
   * @throws RangeError where a graft exchanges what enters or leaves its site and so cannot be weighted, or for a number
   *   that is not finite
   */
  get strength(): number {
    return this.grafts.find(({ rule }) => rule !== 'head')?.strength ?? 1;
  }

  set strength(factor: number) {
    this.#mustLive();
    if (this.isMerged) throw new Error(`adapter '${this.name}' is merged; call unmerge() before weighting it`);
    if (!Number.isFinite(factor)) throw new RangeError(`strength must be a finite number, got ${factor}`);
    const grafts = this.grafts.filter(({ rule }) => rule !== 'head');
    const fixed = grafts.find(({ composition }) => !isWeightable(composition));
    if (fixed && factor !== 1) {
      throw new RangeError(
        `adapter '${this.name}' cannot be weighted: its graft at ${fixed.site.path} is there or not (${fixed.composition.kind})`,
      );
    }
    for (const graft of grafts) graft.strength = factor;
  }

  // ---- official names -------------------------------------------------------------------------------------------

  /** What training changed, under the names of the method's official checkpoints, for those that these have. */
  officialState(): Map<string, Tensor> {
    return officialState(this);
  }

  /**
   * Loads the adapter's tensors from an official checkpoint; other names in it are the backbone's and are left alone.
   * Names that stand behind one common prefix in it, such as `module.` or VPT's `enc.transformer.`, are found.
   *
   * @throws Error that lists what is missing or has another shape; nothing has changed then
   */
  loadOfficialState(state: ReadonlyMap<string, Tensor>): this {
    this.#mustLive();
    loadOfficialState(this, state);
    return this;
  }

  // ---- merging --------------------------------------------------------------------------------------------------

  /**
   * Folds the adapter into the backbone's weights, in place, so that the model runs as a plain backbone. Computed in
   * float64 whatever the dtype.
   *
   * @param options.probe an input; the report then says by how much the output changed
   * @param options.output what the output for the probe is. Default: `model.run(probe)`
   * @param options.partial true: grafts that cannot be folded stay beside the model and are listed; default false: they
   *   are an error and nothing changes
   * @throws RangeError that names the grafts that cannot be folded, and why
   */
  merge(options: MergeOptions = {}): MergeReport {
    this.#mustLive();
    if (this.#merge) throw new Error(`adapter '${this.name}' is merged already`);
    if (!this.isActive) throw new Error(`adapter '${this.name}' is not active; call activate() before merge()`);
    const { record, report } = mergeAdapter(this, options);
    this.#merge = record;
    this.#host.noteMerged(this);
    return report;
  }

  /**
   * Undoes `merge`: the backbone's weights are what they were, bit for bit, and the grafts compute again.
   *
   * @throws Error when another adapter was merged after this one: the latest is the first to leave
   */
  unmerge(): this {
    if (!this.#merge) throw new Error(`adapter '${this.name}' is not merged`);
    this.#host.noteUnmerged(this);
    unmergeAdapter(this, this.#merge);
    this.#merge = null;
    return this;
  }
}

/** Where the parameters of a graft stand in the adapter's tree. */
function graftPrefix(graft: Graft): string {
  return `${graft.site.path}.${graft.rule}`;
}
