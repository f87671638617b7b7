/** What every backbone is: a module with published sites, a feature part, a head, and a way to read its checkpoints. */
import { applyKeyMap, type KeyMap } from '../checkpoint/index.js';
import { Context, type ContextOptions, Module, type Site, sitesOf } from '../nn/index.js';
import type { Tensor } from '../tensor/index.js';

/** How images must be prepared for a backbone. */
export interface Preprocessing {
  /** Channels, height, width. */
  readonly inputSize: readonly [channels: number, height: number, width: number];
  /** Per channel, for pixels in 0..1. */
  readonly mean: readonly [number, number, number];
  readonly std: readonly [number, number, number];
  readonly interpolation: 'bilinear' | 'bicubic';
  /** The centre crop's share of the resized image's side in evaluation. */
  readonly cropPct: number;
}

export const IMAGENET_MEAN = [0.485, 0.456, 0.406] as const;
export const IMAGENET_STD = [0.229, 0.224, 0.225] as const;
export const HALF = [0.5, 0.5, 0.5] as const;

/** One level of the features that `forwardIntermediates` returns. */
export interface FeatureLevel {
  /** Path of the module whose output it is. */
  readonly path: string;
  readonly channels: number;
  /** How many input pixels lie between two neighbors of the map. */
  readonly stride: number;
}

/**
 * A pretrained network that grafts are set into. `forward` is `forwardHead(forwardFeatures(x))`; images are
 * [B, C, H, W] floats, normalized as `config` says.
 */
export abstract class Backbone extends Module {
  /** Name in the registry, such as `resnet50`. */
  abstract readonly name: string;
  readonly config: Preprocessing;
  /** What the model was created with, beyond its name. */
  options: Readonly<Record<string, unknown>> = {};
  /** Path of the classifier, such as `fc`. */
  abstract readonly classifier: string;
  /** Width of the vector that enters the classifier. */
  abstract readonly numFeatures: number;
  /** The levels of `forwardIntermediates`. */
  abstract readonly featureLevels: readonly FeatureLevel[];

  constructor(config: Preprocessing) {
    super();
    this.config = config;
  }

  /** The image batch to final features: a map [B, C, H, W] or tokens [B, N, C]. */
  abstract forwardFeatures(x: Tensor, ctx?: Context): Tensor;

  /** Final features to logits [B, classes], or to the pooled vector [B, C] when there is no classifier. */
  abstract forwardHead(features: Tensor, ctx?: Context): Tensor;

  /** One map [B, C, h, w] for each entry of `featureLevels`, coarsest last. */
  abstract forwardIntermediates(x: Tensor, ctx?: Context): Tensor[];

  /**
   * Replaces the classifier by a new one for `numClasses` classes, freshly initialized, on the device and in the dtype
   * of the old one; 0 removes it. Grafts on the old classifier are lost with it.
   */
  abstract resetClassifier(numClasses: number): void;

  /** From the names of this family's published files to this model's. Names that no rule matches stay as they are. */
  readonly keyMap: KeyMap = [];

  /** A published state dict in this model's names; families whose tensors depend on the image size also resample them. */
  convertStateDict(state: ReadonlyMap<string, Tensor>): Map<string, Tensor> {
    return applyKeyMap(this.keyMap, state).tensors;
  }

  /**
   * Images to logits. With options instead of a context, a pass of its own:
   * `model.forward(x, { adapters: ['cats', 'cats', 'dogs'] })` says which adapter each sample uses.
   */
  forward(x: Tensor, ctx: Context | ContextOptions = {}): Tensor {
    if (!(ctx instanceof Context)) return this.run(x, new Context(ctx));
    return this.forwardHead(this.forwardFeatures(x, ctx), ctx);
  }

  /** All places where grafts may sit, in the order of the modules; sites inside a block carry its stage and depth. */
  sites(): Site[] {
    const sites = sitesOf(this);
    const blocks = new Map(sites.filter((s) => s.path === s.block).map((s) => [s.path, s]));
    return sites.map((s) => {
      const block = s.block === null ? undefined : blocks.get(s.block);
      const { stage, depth } = block ?? {};
      return { ...(stage !== undefined && { stage }), ...(depth !== undefined && { depth }), ...s };
    });
  }

  /** Puts a new part of the model where the rest is: its device, dtype and mode. */
  protected like<M extends Module>(part: M): M {
    const [reference] = this.parameters();
    if (reference) part.to({ dtype: reference.dtype, device: reference.device });
    return part.train(this.training);
  }
}
