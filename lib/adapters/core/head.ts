/** The classifier that an adapter brings along: a graft that replaces the backbone's own. */
import { type Context, Dropout, init, Linear, Module } from '../../nn/index.js';
import { call, isGradEnabled, type Tensor } from '../../tensor/index.js';
import { warn } from './warn.js';

/** A new classifier for an adapter. */
export interface HeadOptions {
  /** Number of classes. */
  readonly classes: number;
  /** Dropout before the linear layer. Default 0. */
  readonly dropout?: number;
  /**
   * `default`: PyTorch's start of a linear layer; `trunc_normal`: standard deviation 0.02, bias 0; `zero`; `prior`:
   * standard deviation sqrt(2 / classes), and a bias at which every class has the probability 0.01. Default: the method's.
   */
  readonly init?: 'default' | 'trunc_normal' | 'zero' | 'prior';
}

/** How many times a tensor has been changed in place. */
function version(tensor: Tensor): number {
  return Number(call('aten::_version', tensor));
}

/** Dropout, then a linear layer: [B, C] to [B, classes]. */
export class Head extends Module {
  readonly drop: Dropout;
  readonly linear: Linear;
  #startVersion: number;
  #warned = false;

  constructor(inFeatures: number, { classes, dropout = 0, init: start = 'default' }: HeadOptions) {
    super();
    this.drop = new Dropout(dropout);
    this.linear = new Linear(inFeatures, classes);
    if (start === 'trunc_normal') init.truncNormal_(this.linear.weight, { std: 0.02 });
    if (start === 'zero') init.zeros_(this.linear.weight);
    if (start === 'prior') init.normal_(this.linear.weight, 0, Math.sqrt(2 / classes));
    if (start !== 'default' && this.linear.bias)
      init.constant_(this.linear.bias, start === 'prior' ? -Math.log(99) : 0);
    this.#startVersion = version(this.linear.weight);
  }

  /** Says that the weights are no longer the random ones, whatever their version counter says. */
  markTrained(): void {
    this.#startVersion = -1;
  }

  forward(x: Tensor, ctx: Context): Tensor {
    this.#warnIfUntrained();
    return this.linear.run(this.drop.run(x, ctx), ctx);
  }

  #warnIfUntrained(): void {
    // A pass that records gradients in training mode is training; LibTorch's fused optimizers leave versions alone.
    if (this.training && isGradEnabled()) this.markTrained();
    if (this.#warned || this.training || isGradEnabled()) return;
    if (version(this.linear.weight) !== this.#startVersion) return;
    this.#warned = true;
    warn('UNTRAINED_HEAD', 'the head was never trained: its predictions are random. Train the adapter, or load one.');
  }
}
