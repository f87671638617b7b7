import type { Tensor } from '../tensor/index.js';
import type { Context } from './context.js';
import type { Module } from './module.js';
import type { Parameter } from './parameter.js';

/**
 * What sits in a module's `grafts` slot: everything that adapters have set beside that module. `lib/adapters/core`
 * implements it; this layer only calls it, so that no module knows any method.
 */
export interface GraftSet {
  /** The module's output with its grafts applied. Calls `module.forward(x, ctx)` where the composition needs f(x). */
  apply(module: Module, x: Tensor, ctx: Context): Tensor;
  /** The parameters of all grafts here that can take part in `apply` now. Activation checkpointing must know them. */
  parameters(): Iterable<Parameter>;
  /** The modules that the grafts consist of: `train`, `eval` and `to` of the backbone reach them through this. */
  modules(): Iterable<Module>;
}
