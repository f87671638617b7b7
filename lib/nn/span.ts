import type { Tensor } from '../tensor/index.js';
import type { Context } from './context.js';
import { Module } from './module.js';

/**
 * A stretch of its parent's computation, made a module only so that a graft can sit on it: for example `norm2 + mlp` of
 * a transformer block. It owns no parameters and so never appears in a state dict, but it has a path.
 *
 * ```ts
 * this.branch = site(new Span((x, ctx) => this.mlp.run(this.norm2.run(x, ctx), ctx)), { role: 'mlp', in: c, out: c, layout: 'tokens' });
 * ```
 */
export class Span extends Module {
  readonly #compute: (x: Tensor, ctx: Context) => Tensor;

  constructor(compute: (x: Tensor, ctx: Context) => Tensor) {
    super();
    this.#compute = compute;
  }

  forward(x: Tensor, ctx: Context): Tensor {
    return this.#compute(x, ctx);
  }
}
