/** Fully convolutional head. Long et al., CVPR 2015, arXiv 1411.4038; as MMSegmentation's `FCNHead`. */
import { Context, ModuleList } from '../nn/index.js';
import { aten, type Tensor } from '../tensor/index.js';
import { ConvModule } from './conv_module.js';
import { levelAt, SegmentationHead, type SegmentationHeadOptions } from './segmentation_head.js';

/** What an FCN head can be told. */
export interface FcnHeadOptions extends Omit<SegmentationHeadOptions, 'channels'> {
  /** Channels of the level that is read. */
  readonly inChannels: number;
  /** Which level; negative counts from the coarsest. Default -1. */
  readonly inIndex?: number;
  /** Default 256. */
  readonly channels?: number;
  /** Default 2; 0 leaves the map as it is, which must have `channels` channels then. */
  readonly numConvs?: number;
  /** Default 3. */
  readonly kernelSize?: number;
  /** Whether the input joins the result in one more convolution. Default true. */
  readonly concatInput?: boolean;
}

/** Convolutions over one level: mostly the auxiliary head beside another. */
export class FcnHead extends SegmentationHead {
  readonly convs: ModuleList<ConvModule>;
  readonly conv_cat: ConvModule | null;
  readonly #inIndex: number;

  /** @throws RangeError without convolutions when the widths differ */
  constructor(options: FcnHeadOptions) {
    const { inChannels, inIndex = -1, channels = 256, numConvs = 2, kernelSize = 3, concatInput = true } = options;
    const { norm = {} } = options;
    if (numConvs === 0 && inChannels !== channels) {
      throw new RangeError(`FcnHead: without convolutions ${inChannels} channels cannot become ${channels}`);
    }
    super({ ...options, channels });
    this.#inIndex = inIndex;
    this.convs = new ModuleList(
      Array.from(
        { length: numConvs },
        (_, i) => new ConvModule(i === 0 ? inChannels : channels, channels, { kernelSize, norm }),
      ),
    );
    this.conv_cat = concatInput ? new ConvModule(inChannels + channels, channels, { kernelSize, norm }) : null;
  }

  segment(levels: readonly Tensor[], ctx: Context = new Context()): Tensor {
    const x = levelAt(levels, this.#inIndex, 'FcnHead');
    let y = x;
    for (const conv of this.convs) y = conv.run(y, ctx);
    if (this.conv_cat) y = this.conv_cat.run(aten.cat([x, y], 1), ctx);
    return this.classify(y, ctx);
  }
}
