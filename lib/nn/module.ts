import type { Tensor } from '../tensor/index.js';
import { noGrad, scope, type DType, type Device, type MemoryFormat } from '../tensor/index.js';
import { Context } from './context.js';
import type { GraftSet } from './graft.js';
import { Buffer, Parameter } from './parameter.js';
import type { SiteDefaults, SiteTag } from './site.js';
import { loadInto, type LoadOptions, type LoadReport, type StateSource } from './state.js';

/** Where and how `Module.to` puts the tensors of a module. */
export interface ModuleToOptions {
  /** For floating-point tensors only; counters keep their dtype. */
  dtype?: DType;
  device?: Device;
  /** `channels_last` changes tensors of 4 dimensions, `channels_last_3d` of 5; the rest stay as they are. */
  memoryFormat?: MemoryFormat;
}

const FLOATING: ReadonlySet<string> = new Set(['float16', 'bfloat16', 'float32', 'float64', 'complex64', 'complex128']);
const DIMS_OF_FORMAT: Readonly<Record<string, number>> = { channels_last: 4, channels_last_3d: 5 };

function joined(prefix: string, name: string): string {
  return prefix === '' ? name : `${prefix}.${name}`;
}

/**
 * Part of a network: parameters, buffers and child modules as plain properties, and `forward`.
 *
 * The property tree is the state dict: own properties that hold a `Parameter`, `Buffer` or `Module` are found by
 * themselves, in the order in which the properties were created (with class fields: the order of their declarations).
 * Names and order are PyTorch's: a module's own parameters, its buffers, then its children. Modules call each other
 * through `run`, never `forward`, because `run` is where grafts are heard.
 *
 * ```ts
 * class Mlp extends Module {
 *   readonly fc1: Linear;
 *   readonly fc2: Linear;
 *   constructor(c: number) { super(); this.fc1 = new Linear(c, 4 * c); this.fc2 = new Linear(4 * c, c); }
 *   forward(x: Tensor, ctx: Context) { return this.fc2.run(this.fc1.run(x, ctx).relu(), ctx); }
 * }
 * ```
 */
export abstract class Module {
  /** Whether dropout drops and batch norm uses the batch; change it with `train()` and `eval()`. */
  training = true;
  /** Whether `runBlock` recomputes this module's activations in the backward pass; change it with `setCheckpointing()`. */
  checkpointing = false;
  /** Adapters beside this module. Only the adapter engine assigns it. */
  grafts: GraftSet | undefined = undefined;
  /** What this place is to adapters; set by `site()`. */
  siteTag: SiteTag | undefined = undefined;

  /** Computes the output. Called by `run` only. */
  abstract forward(x: Tensor, ctx: Context): Tensor;

  /** Runs the module with its grafts, if it has any. This is how modules, and users, call a module. */
  run(x: Tensor, ctx: Context = new Context()): Tensor {
    return this.grafts ? this.grafts.apply(this, x, ctx) : this.forward(x, ctx);
  }

  /** What this layer can say about itself as a site. */
  siteDefaults(): SiteDefaults {
    return {};
  }

  // ---- the tree -------------------------------------------------------------------------------------------------

  /** Child modules by name. Containers add their members. */
  namedChildren(): [string, Module][] {
    return Object.entries(this).filter((entry): entry is [string, Module] => entry[1] instanceof Module);
  }

  /** This module (path '') and all modules below it, parents first; a module that stands at two paths is listed once. */
  namedModules(): [string, Module][] {
    const found = new Map<Module, string>();
    const visit = (module: Module, path: string): void => {
      if (found.has(module)) return;
      found.set(module, path);
      for (const [name, child] of module.namedChildren()) visit(child, joined(path, name));
    };
    visit(this, '');
    return Array.from(found, ([module, path]) => [path, module]);
  }

  /** The module at a path such as `layer1.0.conv1`; '' is this module. @throws RangeError that lists the names there are */
  getModule(path: string): Module {
    if (path === '') return this;
    let found: Module | undefined;
    let walked = '';
    for (const name of path.split('.')) {
      const module: Module = found ?? this;
      const children = module.namedChildren();
      const next = children.find(([key]) => key === name)?.[1];
      if (next === undefined) {
        const names = children.map(([key]) => key).join(', ') || 'no children';
        throw new RangeError(`no module '${path}': '${walked}' (${module.constructor.name}) has ${names}`);
      }
      found = next;
      walked = joined(walked, name);
    }
    return found ?? this;
  }

  /** Parameters by path, in state-dict order; one that is shared is listed once, at its first path. */
  namedParameters(): [string, Parameter][] {
    return this.#unique((value): value is Parameter => value instanceof Parameter);
  }

  /** All parameters, each once. */
  parameters(): Parameter[] {
    return this.namedParameters().map(([, parameter]) => parameter);
  }

  /** Buffers by path, persistent or not, each once. */
  namedBuffers(): [string, Buffer][] {
    return this.#unique((value): value is Buffer => value instanceof Buffer);
  }

  #unique<T extends Parameter | Buffer>(wanted: (value: unknown) => value is T): [string, T][] {
    const found = new Map<T, string>();
    for (const [path, module] of this.namedModules()) {
      for (const [name, value] of Object.entries(module)) {
        if (wanted(value) && !found.has(value)) found.set(value, joined(path, name));
      }
    }
    return Array.from(found, ([value, path]) => [path, value]);
  }

  // ---- state ----------------------------------------------------------------------------------------------------

  /** Every name of the state dict with its own tensor; shared tensors under each of their names, as in PyTorch. */
  namedState(): [string, Parameter | Buffer][] {
    const entries: [string, Parameter | Buffer][] = [];
    const visit = (module: Module, path: string): void => {
      const own = Object.entries(module);
      for (const [name, value] of own) if (value instanceof Parameter) entries.push([joined(path, name), value]);
      for (const [name, value] of own) {
        if (value instanceof Buffer && value.persistent) entries.push([joined(path, name), value]);
      }
      for (const [name, child] of module.namedChildren()) visit(child, joined(path, name));
    };
    visit(this, '');
    return entries;
  }

  /**
   * Parameters and persistent buffers by name, in PyTorch's order. The tensors share storage with the module and are
   * detached from the graph; clone what must outlive the next optimizer step.
   */
  stateDict(): Map<string, Tensor> {
    return new Map(this.namedState().map(([name, value]) => [name, value.detach()]));
  }

  /**
   * Copies the tensors of `state` into the module, in place, converting dtype and device. All names and shapes are
   * checked before anything changes.
   *
   * @param options.strict true (default): any missing, unexpected or wrongly shaped name is an Error that lists them;
   *   false: what fits is loaded and the rest is reported
   * @param options.assign true: take over the given tensors (converted only if dtype or device differ) instead of
   *   copying, so that memory-mapped weights stay mapped. Default false.
   */
  loadStateDict(state: StateSource, options: LoadOptions = {}): LoadReport {
    return loadInto(this.namedState(), state, options, this.constructor.name);
  }

  // ---- modes ----------------------------------------------------------------------------------------------------

  /** Training mode for this module, all below it and their grafts. */
  train(mode = true): this {
    for (const module of this.#withGrafts()) module.training = mode;
    return this;
  }

  /** Evaluation mode: `train(false)`. */
  eval(): this {
    return this.train(false);
  }

  /** Switches activation checkpointing for every block that a backbone runs through `runBlock`. */
  setCheckpointing(enabled = true): this {
    for (const [, module] of this.namedModules()) module.checkpointing = enabled;
    return this;
  }

  /** Says for every parameter whether it is trained. Grafts are not touched. */
  requiresGrad_(flag = true): this {
    for (const parameter of this.parameters()) parameter.requiresGrad = flag;
    return this;
  }

  /** `requiresGrad_(false)`. */
  freeze(): this {
    return this.requiresGrad_(false);
  }

  /** Drops the gradients of all parameters. */
  zeroGrad(): void {
    for (const parameter of this.parameters()) parameter.grad = null;
  }

  /**
   * Moves or converts all parameters and buffers, and those of grafts, in place. Parameter objects stay the same, their
   * gradients are converted with them.
   */
  to(options: ModuleToOptions): this {
    const done = new Set<Tensor>();
    noGrad(() => {
      for (const module of this.#withGrafts()) {
        for (const value of Object.values(module)) {
          if (!(value instanceof Parameter || value instanceof Buffer) || done.has(value)) continue;
          done.add(value);
          // A scope each: the tensors on the way hold the old elements, and two whole networks would be in memory.
          scope(() => {
            moveTensor(value, options);
          });
        }
      }
    });
    return this;
  }

  /** Calls `fn` on every module below and then on this one, children first. */
  apply(fn: (module: Module) => void): this {
    for (const [, child] of this.namedChildren()) child.apply(fn);
    fn(this);
    return this;
  }

  /** The modules of this tree, then those of the grafts that sit on them. */
  *#withGrafts(): Generator<Module> {
    const modules = this.namedModules();
    for (const [, module] of modules) yield module;
    for (const [, module] of modules) {
      for (const graft of module.grafts?.modules() ?? []) for (const [, part] of graft.namedModules()) yield part;
    }
  }

  // ---- printing -------------------------------------------------------------------------------------------------

  /** What stands in the parentheses of a leaf, in PyTorch's spelling. */
  extraRepr(): string {
    return '';
  }

  /** The tree as PyTorch prints it. */
  toString(): string {
    const lines = this.namedChildren().map(([name, child]) => `(${name}): ${indent(child.toString())}`);
    const extra = this.extraRepr();
    if (lines.length === 0) return `${this.constructor.name}(${extra})`;
    return `${this.constructor.name}(\n${[...(extra === '' ? [] : [extra]), ...lines].map((line) => `  ${line}`).join('\n')}\n)`;
  }

  /** Makes console.log print the tree. */
  [Symbol.for('nodejs.util.inspect.custom')](): string {
    return this.toString();
  }
}

/** Indents every line but the first by two spaces. */
export function indent(text: string): string {
  return text.replaceAll('\n', '\n  ');
}

function moveTensor(value: Tensor, { dtype, device, memoryFormat }: ModuleToOptions): void {
  const convert = (source: Tensor): Tensor =>
    source.detach().to({
      ...(dtype !== undefined && FLOATING.has(source.dtype) && { dtype }),
      ...(device !== undefined && { device }),
      ...(memoryFormat !== undefined &&
        (DIMS_OF_FORMAT[memoryFormat] ?? source.ndim) === source.ndim && { memoryFormat }),
    });
  const grad = value.grad;
  value.setData(convert(value));
  if (grad !== null) value.grad = convert(grad);
}
