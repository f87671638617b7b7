/** Semantic FPN. Kirillov et al., CVPR 2019, arXiv 1901.02446; as MMSegmentation's `FPNHead`. */
import { Context, type Module, ModuleList, Sequential } from '../nn/index.js';
import type { Tensor } from '../tensor/index.js';
import { ConvModule, resize, sizeOf, Upsample } from './conv_module.js';
import { levelAt, SegmentationHead, type SegmentationHeadOptions } from './segmentation_head.js';

/** What a semantic FPN head can be told. */
export interface FpnHeadOptions extends Omit<SegmentationHeadOptions, 'channels'> {
  /** Channels of each level that is read, finest first. */
  readonly inChannels: readonly number[];
  /** Which levels these are. Default: the first ones, in order. */
  readonly inIndex?: readonly number[];
  /** Pixels of the image per pixel of each level. Default 4, 8, 16, 32. */
  readonly featureStrides?: readonly number[];
  /** Default 128. */
  readonly channels?: number;
}

/**
 * Each level is convolved and doubled in size until it has the resolution of the first; their sum is classified. Sizes
 * are doubled as they are, so that maps that are not exact halves need the resize before the sum.
 */
export class FpnHead extends SegmentationHead {
  readonly scale_heads: ModuleList<Sequential>;
  readonly #inIndex: readonly number[];

  /** @throws RangeError when the lists differ in length or the first stride is not the smallest */
  constructor(options: FpnHeadOptions) {
    const { inChannels, featureStrides: strides = [4, 8, 16, 32], channels = 128, norm = {} } = options;
    const inIndex = options.inIndex ?? inChannels.map((_, i) => i);
    const [finest = 1] = strides;
    if (inChannels.length === 0 || inIndex.length !== inChannels.length || strides.length !== inChannels.length) {
      throw new RangeError(
        `FpnHead: ${inChannels.length} channel counts, ${inIndex.length} levels and ${strides.length} strides; they must be as many`,
      );
    }
    if (finest !== Math.min(...strides))
      throw new RangeError(`FpnHead: the first stride must be the smallest, got ${strides.join(', ')}`);
    super({ ...options, channels });
    this.#inIndex = inIndex;
    this.scale_heads = new ModuleList(
      strides.map((stride, i) => {
        const length = Math.max(1, Math.trunc(Math.log2(stride) - Math.log2(finest)));
        const parts: Module[] = [];
        for (let k = 0; k < length; k++) {
          const from = k === 0 ? (inChannels[i] ?? 0) : channels;
          parts.push(new ConvModule(from, channels, { kernelSize: 3, norm }));
          if (stride !== finest) parts.push(new Upsample(2, this.alignCorners));
        }
        return new Sequential(...parts);
      }),
    );
  }

  segment(levels: readonly Tensor[], ctx: Context = new Context()): Tensor {
    const maps = this.#inIndex.map((index, i) => this.scale_heads.at(i).run(levelAt(levels, index, 'FpnHead'), ctx));
    const size = sizeOf(maps[0] as Tensor);
    const sum = maps.reduce((total, map) => total.add(resize(map, size, this.alignCorners)));
    return this.classify(sum, ctx);
  }
}
