/** UPerNet. Xiao et al., ECCV 2018, arXiv 1807.10221; as MMSegmentation's `UPerHead`. */
import { type GatedOptions, GnConvModule } from '../models/index.js';
import { AdaptiveAvgPool2d, Context, ModuleList, Sequential } from '../nn/index.js';
import { aten, type Tensor } from '../tensor/index.js';
import { ConvModule, type HeadNormOptions, resize, sizeOf } from './conv_module.js';
import { levelAt, SegmentationHead, type SegmentationHeadOptions } from './segmentation_head.js';

/** What a UPerNet head can be told. */
export interface UPerHeadOptions extends Omit<SegmentationHeadOptions, 'channels'> {
  /** Channels of each level that is read, finest first. */
  readonly inChannels: readonly number[];
  /** Which levels these are. Default: the first ones, in order. */
  readonly inIndex?: readonly number[];
  /** Default 512. */
  readonly channels?: number;
  /** Sides of the grids that the coarsest level is averaged into. Default 1, 2, 3, 6. */
  readonly poolScales?: readonly number[];
  /**
   * Sizes of a recursive gated convolution in place of the one that fuses the levels, as HorNet has it (Rao et al.,
   * NeurIPS 2022, arXiv 2207.14284); {} for the published order 2 and kernel 7. Default: null, a 3x3 convolution.
   */
  readonly gated?: GatedOptions | null;
}

/**
 * Pyramid pooling on the coarsest level, a feature pyramid over the others, and all levels together at the finest
 * resolution: levels to logits at the size of the first one.
 */
export class UPerHead extends SegmentationHead {
  /** Mean over s x s cells and a 1x1 convolution each. */
  readonly psp_modules: ModuleList<Sequential>;
  readonly bottleneck: ConvModule;
  readonly lateral_convs: ModuleList<ConvModule>;
  readonly fpn_convs: ModuleList<ConvModule>;
  readonly fpn_bottleneck: ConvModule | GnConvModule;
  readonly #inIndex: readonly number[];

  /** @throws RangeError when there are no levels, or not as many indices */
  constructor(options: UPerHeadOptions) {
    const { inChannels, channels = 512, poolScales = [1, 2, 3, 6], norm = {}, gated = null } = options;
    const inIndex = options.inIndex ?? inChannels.map((_, i) => i);
    if (inChannels.length === 0 || inIndex.length !== inChannels.length) {
      throw new RangeError(
        `UPerHead: ${inChannels.length} channel counts for ${inIndex.length} levels; give one for each, and at least one`,
      );
    }
    super({ ...options, channels });
    this.#inIndex = inIndex;
    const [last = 0] = inChannels.slice(-1);
    const conv = (from: number, kernelSize: number): ConvModule => module(from, channels, kernelSize, norm);
    this.psp_modules = new ModuleList(poolScales.map((s) => new Sequential(new AdaptiveAvgPool2d(s), conv(last, 1))));
    this.bottleneck = conv(last + poolScales.length * channels, 3);
    this.lateral_convs = new ModuleList(inChannels.slice(0, -1).map((c) => conv(c, 1)));
    this.fpn_convs = new ModuleList(inChannels.slice(0, -1).map(() => conv(channels, 3)));
    const all = inChannels.length * channels;
    this.fpn_bottleneck = gated ? new GnConvModule(all, channels, { ...gated, norm, act: 'relu' }) : conv(all, 3);
  }

  segment(levels: readonly Tensor[], ctx: Context = new Context()): Tensor {
    const maps = this.#inIndex.map((index) => levelAt(levels, index, 'UPerHead'));
    const coarsest = maps.at(-1) as Tensor;
    const laterals = maps.slice(0, -1).map((map, i) => this.lateral_convs.at(i).run(map, ctx));
    laterals.push(this.poolPyramid(coarsest, ctx));
    for (let i = laterals.length - 1; i > 0; i--) {
      const [fine, coarse] = [laterals[i - 1], laterals[i]] as [Tensor, Tensor];
      laterals[i - 1] = fine.add(resize(coarse, sizeOf(fine), this.alignCorners));
    }
    const size = sizeOf(laterals[0] as Tensor);
    const outs = laterals.map((map, i) => {
      const out = i < this.fpn_convs.length ? this.fpn_convs.at(i).run(map, ctx) : map;
      return resize(out, size, this.alignCorners);
    });
    return this.classify(this.fpn_bottleneck.run(aten.cat(outs, 1), ctx), ctx);
  }

  private poolPyramid(x: Tensor, ctx: Context): Tensor {
    const pooled = [...this.psp_modules].map((part) => resize(part.run(x, ctx), sizeOf(x), this.alignCorners));
    return this.bottleneck.run(aten.cat([x, ...pooled], 1), ctx);
  }
}

function module(from: number, to: number, kernelSize: number, norm: HeadNormOptions): ConvModule {
  return new ConvModule(from, to, { kernelSize, norm });
}
