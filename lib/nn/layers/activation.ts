import { aten, type Tensor } from '../../tensor/index.js';
import { Module } from '../module.js';

/** max(x, 0). */
export class ReLU extends Module {
  readonly inplace: boolean;

  /** @param options `inplace: true` overwrites the input, which saves memory where nothing else reads it. Default false. */
  constructor({ inplace = false }: { inplace?: boolean } = {}) {
    super();
    this.inplace = inplace;
  }

  forward(x: Tensor): Tensor {
    return this.inplace ? aten.relu_(x) : aten.relu(x);
  }

  override extraRepr(): string {
    return this.inplace ? 'inplace=True' : '';
  }
}

/** min(max(x, 0), 6). */
export class ReLU6 extends Module {
  forward(x: Tensor): Tensor {
    return aten.hardtanh(x, 0, 6);
  }
}

/** x Φ(x), with the error function or its tanh approximation. Hendrycks & Gimpel 2016. */
export class GELU extends Module {
  readonly approximate: 'none' | 'tanh';

  /** @param options `approximate`: default `none` */
  constructor({ approximate = 'none' }: { approximate?: 'none' | 'tanh' } = {}) {
    super();
    if (approximate !== 'none' && approximate !== 'tanh') {
      throw new TypeError(`GELU: approximate must be 'none' or 'tanh', got ${String(approximate)}`);
    }
    this.approximate = approximate;
  }

  forward(x: Tensor): Tensor {
    return this.approximate === 'none' ? aten.gelu(x) : aten.gelu(x, { approximate: 'tanh' });
  }

  override extraRepr(): string {
    return `approximate='${this.approximate}'`;
  }
}

/** x sigmoid(1.702 x), the approximation of GELU that CLIP uses. */
export class QuickGELU extends Module {
  forward(x: Tensor): Tensor {
    return aten.mul(x, aten.sigmoid(aten.mul(x, 1.702)));
  }
}

/** x sigmoid(x). */
export class SiLU extends Module {
  forward(x: Tensor): Tensor {
    return aten.silu(x);
  }
}

/** 1 / (1 + exp(-x)). */
export class Sigmoid extends Module {
  forward(x: Tensor): Tensor {
    return aten.sigmoid(x);
  }
}

/** Hyperbolic tangent. */
export class Tanh extends Module {
  forward(x: Tensor): Tensor {
    return aten.tanh(x);
  }
}

const BY_NAME = {
  relu: () => new ReLU(),
  gelu: () => new GELU(),
  gelu_tanh: () => new GELU({ approximate: 'tanh' }),
  quick_gelu: () => new QuickGELU(),
  silu: () => new SiLU(),
  tanh: () => new Tanh(),
} as const satisfies Record<string, () => Module>;

/** Names that `activationLayer` knows. */
export type ActivationName = keyof typeof BY_NAME;

/** Those names, for options: `z.enum(ACTIVATIONS)`. */
export const ACTIVATIONS = Object.keys(BY_NAME) as [ActivationName, ...ActivationName[]];

/** The activation of that name. @throws RangeError for an unknown one; the message lists those there are */
export function activationLayer(name: string): Module {
  if (!Object.hasOwn(BY_NAME, name)) {
    throw new RangeError(`there is no activation '${name}'; there are ${ACTIVATIONS.join(', ')}`);
  }
  return BY_NAME[name as ActivationName]();
}
