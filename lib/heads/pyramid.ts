/**
 * Feature pyramid in torchvision's names (0.28.0, BSD-3). Lin et al., CVPR 2017, arXiv 1612.03144; P6 and P7: arXiv
 * 1708.02002.
 */
import {
  BatchNorm2d,
  Context,
  Conv2d,
  everySecond,
  GroupNorm,
  init,
  Module,
  ModuleList,
  requireLevels,
  Sequential,
  topDown,
} from '../nn/index.js';
import type { Tensor } from '../tensor/index.js';
import type { FeatureSource } from './dense_model.js';
import type { DetectionBatch } from './detection_input.js';
import type { Neck } from './fpn.js';

/** The norm after a convolution: none, BatchNorm, or GroupNorm with so many groups. */
export type ConvNormChoice = 'none' | 'batch' | { readonly groups: number };

/** A convolution under the name `0` and its norm, if any, under `1`; with a norm it has no bias. */
export function convAndNorm(conv: (bias: boolean) => Conv2d, norm: ConvNormChoice): Sequential {
  const layer = conv(norm === 'none');
  if (norm === 'none') return new Sequential(layer);
  const { outChannels } = layer;
  return new Sequential(
    layer,
    norm === 'batch' ? new BatchNorm2d(outChannels) : new GroupNorm(norm.groups, outChannels),
  );
}

/** How levels coarser than the backbone's are made. */
export type PyramidExtra =
  /** Every second pixel of the last output: Faster R-CNN. */
  | 'pool'
  /** p6 and p7 by convolutions of stride 2, from the last output: RetinaNet v1. */
  | 'p6p7_from_output'
  /** The same from the coarsest map of the backbone: RetinaNet v2. */
  | 'p6p7_from_input';

/** A neck that detectors can stand on. */
export interface PyramidNeck extends Neck {
  /** Names of the levels that leave, finest first. */
  readonly levelNames: readonly string[];
  /** Their width. */
  readonly outChannels: number;
}

/** What a detection pyramid can be told. */
export interface PyramidOptions {
  /** Channels of each level that enters, finest first. */
  readonly inChannels: readonly number[];
  /** Channels of each level that leaves. Default 256. */
  readonly outChannels?: number;
  /** null: as many levels leave as enter. Default `pool`. */
  readonly extra?: PyramidExtra | null;
  /** Default `none`. */
  readonly norm?: ConvNormChoice;
}

/** `p6` and `p7`: two convolutions of stride 2 with a ReLU between them. */
export class ExtraLevels extends Module {
  readonly p6: Conv2d;
  readonly p7: Conv2d;

  constructor(inChannels: number, outChannels: number) {
    super();
    this.p6 = new Conv2d(inChannels, outChannels, { kernelSize: 3, stride: 2, padding: 1 });
    this.p7 = new Conv2d(outChannels, outChannels, { kernelSize: 3, stride: 2, padding: 1 });
  }

  levels(x: Tensor, ctx: Context): [Tensor, Tensor] {
    const p6 = this.p6.run(x, ctx);
    return [p6, this.p7.run(p6.relu(), ctx)];
  }

  /** @throws TypeError always: it has two outputs; call `levels` */
  forward(): Tensor {
    throw new TypeError('the extra levels of a pyramid are two: call levels(x, ctx)');
  }
}

/**
 * 1x1 convolutions, the top-down sum by nearest pixels, a 3x3 convolution each, further levels. Starts Kaiming-uniform
 * (a = 1), biases 0.
 */
export class FeaturePyramid extends Module implements PyramidNeck {
  readonly inner_blocks: ModuleList<Sequential>;
  readonly layer_blocks: ModuleList<Sequential>;
  readonly extra_blocks: ExtraLevels | null;
  /** Names of the levels that leave, torchvision's: `0`, `1`, ..., then `pool` or `p6`, `p7`. */
  readonly levelNames: readonly string[];
  readonly outChannels: number;
  readonly #extra: PyramidExtra | null;

  /** @throws RangeError when no level enters */
  constructor({ inChannels, outChannels = 256, extra = 'pool', norm = 'none' }: PyramidOptions) {
    super();
    const last = inChannels.at(-1);
    if (last === undefined) throw new RangeError('FeaturePyramid: at least one level must enter');
    this.#extra = extra;
    this.outChannels = outChannels;
    this.inner_blocks = new ModuleList(
      inChannels.map((from) => convAndNorm((bias) => new Conv2d(from, outChannels, { kernelSize: 1, bias }), norm)),
    );
    this.layer_blocks = new ModuleList(
      inChannels.map(() =>
        convAndNorm((bias) => new Conv2d(outChannels, outChannels, { kernelSize: 3, padding: 1, bias }), norm),
      ),
    );
    const hasConvs = extra === 'p6p7_from_output' || extra === 'p6p7_from_input';
    this.extra_blocks = hasConvs
      ? new ExtraLevels(extra === 'p6p7_from_input' ? last : outChannels, outChannels)
      : null;
    const more = hasConvs ? ['p6', 'p7'] : extra === 'pool' ? ['pool'] : [];
    this.levelNames = [...inChannels.map((_, i) => String(i)), ...more];
    this.apply((module) => {
      if (!(module instanceof Conv2d)) return;
      init.kaimingUniform_(module.weight, { a: 1 });
      if (module.bias) init.zeros_(module.bias);
    });
  }

  /**
   * @param maps one [B, C_i, H_i, W_i] for each of `inChannels`, finest first
   * @returns one map of `outChannels` for each of `levelNames`
   * @throws RangeError for another number of maps
   */
  fuse(maps: readonly Tensor[], ctx: Context = new Context()): Tensor[] {
    requireLevels(maps, this.inner_blocks.length, 'FeaturePyramid');
    const sums = topDown(maps.map((map, i) => this.inner_blocks.at(i).run(map, ctx)));
    const outs = sums.map((map, i) => this.layer_blocks.at(i).run(map, ctx));
    const last = outs.at(-1) as Tensor;
    if (this.extra_blocks) {
      const source = this.#extra === 'p6p7_from_input' ? (maps.at(-1) as Tensor) : last;
      return [...outs, ...this.extra_blocks.levels(source, ctx)];
    }
    return this.#extra === 'pool' ? [...outs, everySecond(last)] : outs;
  }

  /** @throws TypeError always: a pyramid has many inputs; call `fuse` */
  forward(): Tensor {
    throw new TypeError('FeaturePyramid takes a list of maps: call fuse(maps, ctx)');
  }
}

/** Images to the levels of a pyramid: what detectors stand on. */
export abstract class PyramidSource extends Module {
  /** The network that adapters are set into. */
  abstract readonly body: FeatureSource;
  /** Where it is. */
  abstract readonly bodyPath: string;
  /** Names of the levels: those that the body has are numbers. */
  abstract readonly levelNames: readonly string[];
  /** Width of the levels. */
  abstract readonly outChannels: number;

  /** Images [B, 3, H, W] to the levels of the pyramid, finest first. */
  abstract maps(images: Tensor, ctx?: Context): Tensor[];

  /** Losses of its own, by name, after `maps` of the batch's images with the same context; labels are 0 to K - 1. */
  auxiliaryLosses(_batch: DetectionBatch, _ctx: Context): Readonly<Record<string, Tensor>> {
    return {};
  }

  /** Whether a name in it belongs to a part that is neither head nor adapted. */
  isUntouchable(_name: string): boolean {
    return false;
  }

  /** Whether a name in it belongs to a part of the body that is as new as the head, so that adapters train it. */
  isNew(_name: string): boolean {
    return false;
  }

  /** The detector's state dict from further formats to its own names. */
  convertStateDict(state: ReadonlyMap<string, Tensor>): Map<string, Tensor> {
    return new Map(state);
  }

  /** @throws TypeError always: it has many outputs; call `maps` */
  forward(): Tensor {
    throw new TypeError(`${this.constructor.name} has many outputs: call maps(images, ctx)`);
  }
}

/** What a backbone with a pyramid on it can be told. */
export interface PyramidBackboneOptions extends Omit<PyramidOptions, 'inChannels'> {
  /** Which of the body's levels enter the pyramid, finest first. Default: the four coarsest. */
  readonly levels?: readonly number[];
  /** Makes another pyramid for the channels of these levels, such as a `HorFpn`, in place of torchvision's and its options. */
  readonly neck?: (inChannels: readonly number[]) => PyramidNeck;
}

/** A network and the pyramid over some of its levels: `body.`, `fpn.`. */
export class PyramidBackbone extends PyramidSource {
  readonly body: FeatureSource;
  readonly bodyPath = 'body';
  readonly fpn: PyramidNeck;
  readonly #levels: readonly number[];

  /** @throws RangeError for a level that the body does not have */
  constructor(body: FeatureSource, options: PyramidBackboneOptions = {}) {
    super();
    const count = body.featureLevels.length;
    const { levels = Array.from({ length: count }, (_, i) => i).slice(-4), neck, ...rest } = options;
    const inChannels = levels.map((index) => {
      const level = body.featureLevels[index];
      if (!level) throw new RangeError(`PyramidBackbone: the body has ${count} levels, none of index ${index}`);
      return level.channels;
    });
    this.body = body;
    this.fpn = neck ? neck(inChannels) : new FeaturePyramid({ ...rest, inChannels });
    this.#levels = levels;
  }

  get levelNames(): readonly string[] {
    return this.fpn.levelNames;
  }

  get outChannels(): number {
    return this.fpn.outChannels;
  }

  maps(images: Tensor, ctx: Context = new Context()): Tensor[] {
    const all = this.body.forwardIntermediates(images, ctx);
    return this.fpn.fuse(
      this.#levels.map((index) => all[index] as Tensor),
      ctx,
    );
  }
}
