import { aten, type Tensor } from '../../tensor/index.js';
import { Module } from '../module.js';
import { probability, pythonFloat } from './check.js';

/** Sets each element to zero with probability p while training and scales the rest by 1 / (1 - p); else the identity. */
export class Dropout extends Module {
  readonly p: number;

  /** @param p default 0.5 */
  constructor(p = 0.5) {
    super();
    this.p = probability(p, 'Dropout');
  }

  forward(x: Tensor): Tensor {
    return this.training && this.p > 0 ? aten.dropout(x, this.p, true) : x;
  }

  override extraRepr(): string {
    return `p=${this.p}, inplace=False`;
  }
}

/** `Dropout` of whole channels of maps [B, C, H, W]. Tompson et al. 2015, arXiv 1411.4280. */
export class Dropout2d extends Dropout {
  override forward(x: Tensor): Tensor {
    return this.training && this.p > 0 ? aten.featureDropout(x, this.p, true) : x;
  }
}

/**
 * Stochastic depth: drops whole samples of a residual branch with probability p while training and scales the rest by
 * 1 / (1 - p); else the identity. Huang et al. 2016, arXiv 1603.09382.
 */
export class DropPath extends Module {
  readonly p: number;

  /** @param p default 0 */
  constructor(p = 0) {
    super();
    this.p = probability(p, 'DropPath');
  }

  forward(x: Tensor): Tensor {
    if (!this.training || this.p === 0) return x;
    const [batch = 1, ...rest] = x.shape;
    const kept = 1 - this.p;
    const mask = x.newEmpty([batch, ...rest.map(() => 1)]).bernoulli_(kept);
    return x.mul(kept > 0 ? mask.div_(kept) : mask);
  }

  override extraRepr(): string {
    return `drop_prob=${pythonFloat(Math.round(this.p * 1000) / 1000)}`;
  }
}
