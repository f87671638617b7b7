/** SETR with progressive upsampling. Zheng et al., CVPR 2021, arXiv 2012.15840; as MMSegmentation's `SETRUPHead`. */
import { Context, LayerNorm2d, ModuleList, Sequential } from '../nn/index.js';
import type { Tensor } from '../tensor/index.js';
import { ConvModule, Upsample } from './conv_module.js';
import { levelAt, SegmentationHead, type SegmentationHeadOptions } from './segmentation_head.js';

/** What a SETR-PUP head can be told. */
export interface SetrUpHeadOptions extends Omit<SegmentationHeadOptions, 'channels'> {
  /** Channels of the level that is read. */
  readonly inChannels: number;
  /** Which level; negative counts from the coarsest. Default -1. */
  readonly inIndex?: number;
  /** Default 256. */
  readonly channels?: number;
  /** Default 4; SETR-PUP's auxiliary heads have 1, enlarged 4 times. */
  readonly numConvs?: number;
  /** Default 2. */
  readonly upScale?: number;
  /** Default 3. */
  readonly kernelSize?: number;
  /** Of the norm over the channels of each position. Default 1e-6. */
  readonly normEps?: number;
}

/**
 * A norm over the channels of each position, then convolutions, each of which is followed by an enlargement. Dropout:
 * default 0. The classifier starts as any convolution.
 */
export class SetrUpHead extends SegmentationHead {
  readonly norm: LayerNorm2d;
  readonly up_convs: ModuleList<Sequential>;
  readonly #inIndex: number;

  constructor(options: SetrUpHeadOptions) {
    const { inChannels, inIndex = -1, channels = 256, numConvs = 4, upScale = 2, kernelSize = 3 } = options;
    const { normEps = 1e-6, norm = {}, dropout = 0 } = options;
    super({ ...options, channels, dropout });
    this.#inIndex = inIndex;
    this.norm = new LayerNorm2d(inChannels, { eps: normEps });
    this.up_convs = new ModuleList(
      Array.from({ length: numConvs }, (_, i) => {
        const conv = new ConvModule(i === 0 ? inChannels : channels, channels, { kernelSize, norm });
        return new Sequential(conv, new Upsample(upScale, this.alignCorners));
      }),
    );
  }

  protected override initClassifier(): void {
    // MMSegmentation leaves it as it is made.
  }

  segment(levels: readonly Tensor[], ctx: Context = new Context()): Tensor {
    let y = this.norm.run(levelAt(levels, this.#inIndex, 'SetrUpHead'), ctx);
    for (const part of this.up_convs) y = part.run(y, ctx);
    return this.classify(y, ctx);
  }
}
