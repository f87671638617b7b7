import { type Context, Dropout, type Identity, LayerNorm, type Linear, Module, site } from '../nn/index.js';
import type { Tensor } from '../tensor/index.js';
import { classifierSite, identitySite } from './blocks.js';

/**
 * What follows the pool where timm nests it under `head`: [norm,] dropout and the classifier `fc`. A vector [B, C] to
 * logits [B, classes], or to itself when there are no classes.
 */
export class ClassifierHead extends Module {
  readonly norm: LayerNorm | null;
  /** The vector that enters the classifier. */
  readonly pre_logits: Identity;
  readonly drop: Dropout;
  fc: Linear | Identity;

  /** @param options.normEps epsilon of the norm; null (default) for none. @param options.drop default 0 */
  constructor(
    readonly inFeatures: number,
    numClasses: number,
    { drop = 0, normEps = null }: { drop?: number; normEps?: number | null } = {},
  ) {
    super();
    this.norm =
      normEps === null
        ? null
        : site(new LayerNorm(inFeatures, { eps: normEps }), { role: 'head_norm', layout: 'vector' });
    this.pre_logits = identitySite('pre_logits', inFeatures, 'vector');
    this.drop = new Dropout(drop);
    this.fc = classifierSite(inFeatures, numClasses);
  }

  forward(x: Tensor, ctx: Context): Tensor {
    const vector = this.pre_logits.run(this.norm ? this.norm.run(x, ctx) : x, ctx);
    return this.fc.run(this.drop.run(vector, ctx), ctx);
  }
}
