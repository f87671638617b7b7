import { native } from '../native/addon.js';
import { Tensor } from '../tensor/index.js';

/** Makes `target`, fresh from its constructor, own the data of `source`, outside every scope and outside its graph. */
function own(target: Tensor, source: Tensor): void {
  const detached = source.detach();
  native.adopt(target, detached);
  detached.dispose();
  native.keep(target);
}

/**
 * A tensor that a module learns. It shares the storage of the tensor that it is made from, is a leaf of the graph and
 * is never freed by a scope. `Module.to` and `loadStateDict` change its data, not its identity, so optimizers may hold it.
 */
export class Parameter extends Tensor {
  /**
   * @param data initial values; detached from its graph, not copied
   * @param requiresGrad false for a frozen parameter
   * @throws TorchError when gradients are asked of a dtype that has none (integers, bool)
   */
  constructor(data: Tensor, requiresGrad = true) {
    super();
    own(this, data);
    if (requiresGrad) this.requiresGrad = true;
  }
}

/** How a buffer takes part in the state dict. */
export interface BufferOptions {
  /** False keeps the buffer out of the state dict; it still follows `Module.to`. Default true. */
  persistent?: boolean;
  /** True lets strict loading pass when a checkpoint lacks this buffer, as old checkpoints lack `num_batches_tracked`. Default false. */
  optional?: boolean;
}

/** A tensor that belongs to a module's state but is not learned, such as running statistics. Never freed by a scope. */
export class Buffer extends Tensor {
  readonly persistent: boolean;
  readonly optional: boolean;

  constructor(data: Tensor, { persistent = true, optional = false }: BufferOptions = {}) {
    super();
    own(this, data);
    this.persistent = persistent;
    this.optional = optional;
  }
}
