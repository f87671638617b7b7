/** What every backbone is: a module with published sites, a feature part, a head, and a way to read its checkpoints. */
import { Context, type ContextOptions, Identity, type Site } from '../nn/index.js';
import type { Tensor } from '../tensor/index.js';
import { foldClips, meanOverFrames } from './clips.js';
import { Host } from './host.js';

/** How images must be prepared for a backbone. */
export interface Preprocessing {
  /** Channels, height, width. */
  readonly inputSize: readonly [channels: number, height: number, width: number];
  /** Per channel, for pixels in 0..1. */
  readonly mean: readonly [number, number, number];
  readonly std: readonly [number, number, number];
  readonly interpolation: 'bilinear' | 'bicubic';
  /** The center crop's share of the resized image's side in evaluation. */
  readonly cropPct: number;
}

/** Mean of ImageNet's pixels per channel, of images from 0 to 1. */
export const IMAGENET_MEAN = [0.485, 0.456, 0.406] as const;
/** Standard deviation of ImageNet's pixels per channel, of images from 0 to 1. */
export const IMAGENET_STD = [0.229, 0.224, 0.225] as const;
/** Mean, and deviation, that bring pixels from 0..1 to -1..1. */
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
export abstract class Backbone extends Host {
  readonly config: Preprocessing;
  /** Path of the classifier, such as `fc`. */
  abstract override readonly classifier: string;
  /** Width of the vector that enters the classifier. */
  abstract readonly numFeatures: number;
  /** The levels of `forwardIntermediates`. */
  abstract readonly featureLevels: readonly FeatureLevel[];

  constructor(config: Preprocessing) {
    super();
    this.config = config;
  }

  /** What the sides of images must be multiples of, for heads that pad them; 1 where any size will do. */
  get sizeMultiple(): number {
    return 1;
  }

  /** Parts that lie between the last feature level and the logits, by path; those with parameters leave with `toTrunk`. */
  protected get tail(): readonly string[] {
    return [this.classifier];
  }

  readonly #givenUp = new Set<string>();

  /**
   * Gives up what only classification needs: the classifier, and the norm or pool before it. What remains are the feature
   * levels, for heads that read maps (`forwardIntermediates`); files of the whole network still load.
   *
   * @throws Error when adapters are there already, which may sit on those parts
   */
  toTrunk(): this {
    if (this.grafts) throw new Error(`${this.name}: make it a trunk before adapters are set into it`);
    for (const path of this.tail) {
      const owner = this.getModule(path.split('.').slice(0, -1).join('.'));
      const child = owner.namedChildren().find(([name]) => name === path.split('.').at(-1))?.[1];
      const property = Object.entries(owner).find(([, value]) => value === child)?.[0];
      this.#givenUp.add(path);
      if (child && property && child.namedState().length > 0) Object.assign(owner, { [property]: new Identity() });
    }
    return this;
  }

  /** Whether `toTrunk` has been called. */
  get isTrunk(): boolean {
    return this.#givenUp.size > 0;
  }

  override hasGivenUp(name: string): boolean {
    return [...this.#givenUp].some((path) => name === path || name.startsWith(`${path}.`));
  }

  /** The image batch to final features: a map [B, C, H, W] or tokens [B, N, C]. */
  abstract forwardFeatures(x: Tensor, ctx?: Context): Tensor;

  /** Final features to logits [B, classes], or to the pooled vector [B, C] when there is no classifier. */
  abstract forwardHead(features: Tensor, ctx?: Context): Tensor;

  /** One map [B, C, h, w] for each entry of `featureLevels`, coarsest last. */
  abstract forwardIntermediates(x: Tensor, ctx?: Context): Tensor[];

  /**
   * Images [B, C, H, W] to logits [B, classes]; clips [B, C, T, H, W] too, whose frames are read together: the mean of
   * their features is what enters the head. With options instead of a context, a pass of its own:
   * `model.forward(x, { adapters: ['cats', 'cats', 'dogs'] })` says which adapter each sample uses.
   */
  forward(x: Tensor, ctx: Context | ContextOptions = {}): Tensor {
    if (!(ctx instanceof Context)) return this.run(x, new Context(ctx));
    if (this.isTrunk) throw new TypeError(`${this.name} is a trunk without logits; run forwardIntermediates`);
    const images = x.ndim === 5 ? foldClips(x, ctx) : x;
    return this.forwardHead(meanOverFrames(this.forwardFeatures(images, ctx), ctx), ctx);
  }

  /** As in `Host`; the image site also says its size. */
  override sites(): Site[] {
    const [, height, width] = this.config.inputSize;
    return super.sites().map((s) => (s.roles.includes('input') ? { size: [height, width] as const, ...s } : s));
  }
}
