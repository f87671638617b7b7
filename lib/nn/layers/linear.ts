import { aten, empty, operator, type Tensor } from '../../tensor/index.js';
import { fans, kaimingUniform_, normal_, uniform_ } from '../init.js';
import { Module } from '../module.js';
import { Parameter } from '../parameter.js';
import type { SiteDefaults } from '../site.js';
import { positiveInteger, pythonBool } from './check.js';

/** Kaiming-uniform weight with slope sqrt(5) and bias in ±1/sqrt(fanIn): PyTorch's start of Linear and convolutions. */
export function resetWeightAndBias(weight: Tensor, bias: Tensor | null): void {
  kaimingUniform_(weight, { a: Math.sqrt(5) });
  if (bias === null) return;
  const { fanIn } = fans(weight);
  const bound = fanIn > 0 ? 1 / Math.sqrt(fanIn) : 0;
  uniform_(bias, -bound, bound);
}

/** `aten::linear`, by faster products where the weight is frozen (csrc/ops/frozen_linear). */
const linear = operator('torchgraft::frozen_linear');

/** y = x Wᵀ + b over the last dimension: [..., in] to [..., out]. `weight` [out, in], `bias` [out] or null. */
export class Linear extends Module {
  readonly inFeatures: number;
  readonly outFeatures: number;
  weight: Parameter;
  bias: Parameter | null;

  /** @param options `bias`: default true */
  constructor(inFeatures: number, outFeatures: number, { bias = true }: { bias?: boolean } = {}) {
    super();
    this.inFeatures = positiveInteger(inFeatures, 'Linear', 'inFeatures');
    this.outFeatures = positiveInteger(outFeatures, 'Linear', 'outFeatures');
    this.weight = new Parameter(empty([outFeatures, inFeatures]));
    this.bias = bias ? new Parameter(empty([outFeatures])) : null;
    resetWeightAndBias(this.weight, this.bias);
  }

  /** What x is multiplied by: `weight`, unless the layer makes something else of it. */
  effectiveWeight(): Tensor {
    return this.weight;
  }

  forward(x: Tensor): Tensor {
    return this.forwardWith(x, this.effectiveWeight(), this.bias);
  }

  /** The layer with another weight and bias, by the same operator. */
  forwardWith(x: Tensor, weight: Tensor, bias: Tensor | null): Tensor {
    return linear(x, weight, bias) as Tensor;
  }

  override siteDefaults(): SiteDefaults {
    return { in: this.inFeatures, out: this.outFeatures, layout: 'tokens' };
  }

  override extraRepr(): string {
    return `in_features=${this.inFeatures}, out_features=${this.outFeatures}, bias=${pythonBool(this.bias !== null)}`;
  }
}

/** Rows of a table by index: int64 [...] to [..., dim]. `weight` [count, dim], standard normal at the start. */
export class Embedding extends Module {
  readonly count: number;
  readonly dim: number;
  readonly paddingIndex: number | null;
  weight: Parameter;

  /** @param options `paddingIndex`: a row that starts at zero and gets no gradient; default none */
  constructor(count: number, dim: number, { paddingIndex = null }: { paddingIndex?: number | null } = {}) {
    super();
    this.count = positiveInteger(count, 'Embedding', 'count');
    this.dim = positiveInteger(dim, 'Embedding', 'dim');
    if (paddingIndex !== null && !(Number.isInteger(paddingIndex) && paddingIndex >= -count && paddingIndex < count)) {
      throw new RangeError(`Embedding: paddingIndex must be an integer within the ${count} rows, got ${paddingIndex}`);
    }
    this.paddingIndex = paddingIndex !== null && paddingIndex < 0 ? paddingIndex + count : paddingIndex;
    this.weight = new Parameter(normal_(empty([count, dim])));
    if (this.paddingIndex !== null) this.weight.detach().select(0, this.paddingIndex).fill_(0);
  }

  forward(x: Tensor): Tensor {
    return aten.embedding(this.weight, x, this.paddingIndex ?? -1);
  }

  override extraRepr(): string {
    return `${this.count}, ${this.dim}${this.paddingIndex === null ? '' : `, padding_idx=${this.paddingIndex}`}`;
  }
}
