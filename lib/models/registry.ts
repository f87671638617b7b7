/** Backbones by name. A new family is one import and one entry of `families`. */
import type { z } from 'zod';
import { scope, withDefaults } from '../tensor/index.js';
import type { Backbone, Preprocessing } from './backbone.js';
import { cifarResnet } from './cifar_resnet.js';
import { clipResnet } from './clip_resnet.js';
import { clipVit } from './clip_vit.js';
import type { Family } from './family.js';
import { gGhostRegnet } from './g_ghost_regnet.js';
import { ghostResnet } from './ghost_resnet.js';
import { ghostnet } from './ghostnet.js';
import { parseOptions, suggestion } from './options.js';
import { resnet } from './resnet.js';
import { swin } from './swin_variants.js';
import { vit } from './vit_variants.js';

const families = [
  resnet,
  cifarResnet,
  vit,
  clipVit,
  clipResnet,
  ghostnet,
  ghostResnet,
  gGhostRegnet,
  swin,
] as unknown as readonly Family[];

/** Options of `createModel`; which ones there are depends on the family (`modelInfo(name).options`). */
export interface ModelOptions {
  /** Classes of the classifier; 0 leaves it out. */
  numClasses?: number;
  /** Side of the images, or [height, width]. */
  imgSize?: number | [height: number, width: number];
  /** Channels of the images. */
  inChans?: number;
  [option: string]: unknown;
}

/** What is known about a model without building its weights. */
export interface ModelInfo {
  readonly name: string;
  readonly family: string;
  readonly paper: string;
  /** Every option with its value for this model. */
  readonly options: Readonly<Record<string, unknown>>;
  readonly config: Preprocessing;
  readonly classifier: string;
  readonly numFeatures: number;
  /** Number of parameters, classifier included. */
  readonly parameters: number;
}

function find(name: string): { family: Family; variant: Partial<z.input<Family['options']>> } {
  for (const family of families) {
    const variant = Object.hasOwn(family.variants, name) ? family.variants[name] : undefined;
    if (variant !== undefined) return { family, variant };
  }
  throw new RangeError(`there is no model '${name}'${suggestion(name, listModels())}; listModels() names all`);
}

/**
 * Builds a backbone with fresh weights.
 *
 * @param name such as `resnet50` or `vit_small_patch16_224`; see `listModels()`
 * @param options what differs from the published model
 * @throws RangeError for an unknown name (with the nearest ones) or sizes that do not fit together; TypeError for an
 *   unknown or wrong option
 *
 * ```ts
 * const model = createModel('vit_small_patch16_224', { numClasses: 10, imgSize: 96 });
 * ```
 */
export function createModel(name: string, options: ModelOptions = {}): Backbone {
  const { family, variant } = find(name);
  const model = build(family, name, parseOptions(family.options, { ...variant, ...options }, name));
  model.options = options;
  return model;
}

/**
 * Builds a member of a family that nobody has published, from a full set of options.
 *
 * @param family `resnet`, `cifar_resnet` or `vit`
 * @param name what the model calls itself. Default: the family
 * @throws RangeError for an unknown family; TypeError for unknown, wrong or missing options
 */
export function createCustomModel(family: string, options: ModelOptions, name = family): Backbone {
  const found = families.find(({ id }) => id === family);
  if (found === undefined) throw new RangeError(unknownFamily(family));
  return build(found, name, parseOptions(found.options, options, name));
}

/**
 * In a scope, because the tensors that parameters are made from share their elements: uncollected, they would keep the
 * old ones alive when the model is moved or loaded.
 */
function build(family: Family, name: string, options: Parameters<Family['create']>[1]): Backbone {
  return scope(() => family.create(name, options));
}

function unknownFamily(family: string): string {
  return `there is no model family '${family}'; there are ${families.map(({ id }) => id).join(', ')}`;
}

/** Names of all backbones, or of one family, in the order of the families. @throws RangeError for an unknown family */
export function listModels(family?: string): string[] {
  const chosen = family === undefined ? families : families.filter(({ id }) => id === family);
  if (family !== undefined && chosen.length === 0) throw new RangeError(unknownFamily(family));
  return chosen.flatMap(({ variants }) => Object.keys(variants));
}

/** Facts about a model, with the given options; it is built on the meta device, so no memory is used. */
export function modelInfo(name: string, options: ModelOptions = {}): ModelInfo {
  const { family, variant } = find(name);
  const resolved = parseOptions(family.options, { ...variant, ...options }, name);
  const model = withDefaults({ device: 'meta' }, () => family.create(name, resolved));
  return {
    name,
    family: family.id,
    paper: family.paper,
    options: resolved,
    config: model.config,
    classifier: model.classifier,
    numFeatures: model.numFeatures,
    parameters: model.parameters().reduce((sum, parameter) => sum + parameter.numel(), 0),
  };
}
