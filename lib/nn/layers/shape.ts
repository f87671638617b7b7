import { aten, full, type Tensor } from '../../tensor/index.js';
import { Module } from '../module.js';
import { Parameter } from '../parameter.js';
import { positiveInteger } from './check.js';

/** Passes its input on. With a site tag: a place where the backbone computes nothing but a graft may. */
export class Identity extends Module {
  forward(x: Tensor): Tensor {
    return x;
  }
}

/** Joins the dimensions `startDim` to `endDim`. Defaults 1 and -1: all but the batch. */
export class Flatten extends Module {
  readonly startDim: number;
  readonly endDim: number;

  constructor(startDim = 1, endDim = -1) {
    super();
    this.startDim = startDim;
    this.endDim = endDim;
  }

  forward(x: Tensor): Tensor {
    return aten.flatten(x, this.startDim, this.endDim);
  }

  override extraRepr(): string {
    return `start_dim=${this.startDim}, end_dim=${this.endDim}`;
  }
}

/** y = gamma * x with a learned factor per channel (last dimension). Touvron et al. 2021, arXiv 2103.17239, equation 4. */
export class LayerScale extends Module {
  gamma: Parameter;

  /** @param options `init`: start of every factor. Default 1e-5. */
  constructor(dim: number, { init = 1e-5 }: { init?: number } = {}) {
    super();
    this.gamma = new Parameter(full([positiveInteger(dim, 'LayerScale', 'dim')], init));
  }

  forward(x: Tensor): Tensor {
    return aten.mul(x, this.gamma);
  }
}
