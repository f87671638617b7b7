/** Backbones by name. A new family is one import and one entry of `families`. */
import { countMacs, empty, noGrad, scope } from '../tensor/index.js';
import type { Backbone, FeatureLevel, Preprocessing } from './backbone.js';
import { Catalog, parameterCount } from './catalog.js';
import { asMlp } from './as_mlp.js';
import { cifarResnet } from './cifar_resnet.js';
import { clipResnet } from './clip_resnet.js';
import { clipVit } from './clip_vit.js';
import { convnext } from './convnext_variants.js';
import { gGhostRegnet } from './g_ghost_regnet.js';
import { ghostResnet } from './ghost_resnet.js';
import { ghostnet } from './ghostnet.js';
import { hatnet } from './hatnet.js';
import { hornet, hornetIsotropic } from './hornet_variants.js';
import { efficientnetV2 } from './efficientnet_v2.js';
import { revcol } from './revcol.js';
import { internimage } from './internimage_variants.js';
import { resnet } from './resnet.js';
import { resnetv2 } from './resnetv2.js';
import { swin } from './swin_variants.js';
import { vit } from './vit_variants.js';

const catalog = new Catalog<Backbone>(
  [
    resnet,
    cifarResnet,
    vit,
    clipVit,
    clipResnet,
    resnetv2,
    efficientnetV2,
    ghostnet,
    ghostResnet,
    gGhostRegnet,
    swin,
    convnext,
    asMlp,
    hatnet,
    hornet,
    hornetIsotropic,
    revcol,
    internimage,
  ],
  'listModels()',
);

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
  /** Multiply-accumulates of one image of the input size: convolutions, linear layers, attention's products. */
  readonly macs: number;
  /** The levels of `forwardIntermediates`, coarsest last. */
  readonly features: readonly FeatureLevel[];
  /** Where published checkpoints come from, and the license of the code they come with. */
  readonly checkpoints: { readonly source: string; readonly license: string };
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
  return catalog.create(name, options);
}

/**
 * Builds a member of a family that nobody has published, from a full set of options.
 *
 * @param family such as `resnet` or `vit`; see `listFamilies()`
 * @param name what the model calls itself. Default: the family
 * @throws RangeError for an unknown family; TypeError for unknown, wrong or missing options
 */
export function createCustomModel(family: string, options: ModelOptions, name = family): Backbone {
  return catalog.createCustom(family, options, name);
}

/** Ids of all families. */
export function listFamilies(): string[] {
  return catalog.ids();
}

/** Names of all backbones, or of one family, in the order of the families. @throws RangeError for an unknown family */
export function listModels(family?: string): string[] {
  return catalog.list(family);
}

/** Facts about a model, with the given options; it is built on the meta device, so no memory is used. */
export function modelInfo(name: string, options: ModelOptions = {}): ModelInfo {
  const { family, options: resolved, model } = catalog.describe(name, options);
  const { config, classifier, numFeatures, featureLevels: features } = model;
  const { id, paper, checkpoints } = family;
  const counts = { parameters: parameterCount(model), macs: macsOf(model) };
  return {
    name,
    family: id,
    paper,
    checkpoints,
    options: resolved,
    config,
    classifier,
    numFeatures,
    ...counts,
    features,
  };
}

/** On the meta device, where the pass computes shapes only. */
function macsOf(model: Backbone): number {
  const image = empty([1, ...model.config.inputSize], { device: 'meta' });
  return noGrad(() => scope(() => countMacs(() => model.eval().run(image)).macs));
}
