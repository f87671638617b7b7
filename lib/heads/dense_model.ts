/** What models for dense tasks have in common: a backbone that adapters are set into, and parts of their own. */
import { Host } from '../models/index.js';
import type { Context, Module, Site } from '../nn/index.js';
import type { Tensor } from '../tensor/index.js';

/** Where maps come from: every backbone of the registry, or anything alike. */
export interface FeatureSource extends Module {
  /** The levels of `forwardIntermediates`, finest first. */
  readonly featureLevels: readonly { readonly channels: number }[];
  /** The maps of the levels, finest first. */
  forwardIntermediates(x: Tensor, ctx?: Context): Tensor[];
}

/**
 * A backbone with neck and heads around it. Adapters are set into the backbone only; everything else counts as the head:
 * `graft(model, method, options, { head: 'train' })` trains and stores it.
 */
export abstract class DenseModel extends Host {
  readonly classifier = null;
  /** Path of the backbone. */
  protected abstract readonly backbonePath: string;

  override isInClassifier(name: string): boolean {
    const path = this.backbonePath;
    return name !== '' && !isBelow(name, path) && !isBelow(path, name);
  }

  override sites(): Site[] {
    return super.sites().filter(({ path }) => isBelow(path, this.backbonePath));
  }
}

function isBelow(name: string, path: string): boolean {
  return name === path || name.startsWith(`${path}.`);
}
