import { aten, empty, type Tensor } from '../../tensor/index.js';
import { Module } from '../module.js';
import { Parameter } from '../parameter.js';
import { positiveInteger } from './check.js';
import { resetWeightAndBias } from './linear.js';

/** Extents in time, height and width. */
export type Size3 = readonly [depth: number, height: number, width: number];

/**
 * Depth-wise convolution over clips with stride 1 and as many zeros around as keep the size: [B, C, T, H, W] to the same.
 * `weight` [C, 1, kt, kh, kw], `bias` [C]. A kernel that spans time alone, or the image alone, runs as a convolution in
 * two dimensions, for which LibTorch has the faster kernels.
 */
export class DepthwiseConv3d extends Module {
  readonly channels: number;
  readonly kernelSize: Size3;
  readonly weight: Parameter;
  readonly bias: Parameter;

  /** @throws RangeError for a kernel whose sides are not odd: it would have no center */
  constructor(channels: number, kernelSize: Size3) {
    super();
    this.channels = positiveInteger(channels, 'DepthwiseConv3d', 'channels');
    if (kernelSize.length !== 3 || !kernelSize.every((side) => Number.isInteger(side) && side > 0 && side % 2 === 1)) {
      throw new RangeError(`DepthwiseConv3d: kernelSize must be three odd numbers, got [${kernelSize.join(', ')}]`);
    }
    this.kernelSize = kernelSize;
    this.weight = new Parameter(empty([channels, 1, ...kernelSize]));
    this.bias = new Parameter(empty([channels]));
    resetWeightAndBias(this.weight, this.bias);
  }

  forward(x: Tensor): Tensor {
    const [kt, kh, kw] = this.kernelSize;
    const [batch = 0, channels = 0, frames = 0, height = 0, width = 0] = x.shape;
    const flat = (input: Tensor, weight: Tensor, padding: readonly [number, number]): Tensor =>
      aten.conv2d(input, weight, this.bias, [1, 1], padding, [1, 1], channels);
    if (kh === 1 && kw === 1) {
      const y = flat(x.flatten(3, 4), this.weight.flatten(3, 4), [(kt - 1) / 2, 0]);
      return y.unflatten(3, [height, width]);
    }
    if (kt === 1) {
      const images = x.transpose(1, 2).flatten(0, 1);
      const y = flat(images, this.weight.squeeze(2), [(kh - 1) / 2, (kw - 1) / 2]);
      return y.unflatten(0, [batch, frames]).transpose(1, 2);
    }
    const padding = this.kernelSize.map((side) => (side - 1) / 2);
    return aten.conv3d(x, this.weight, this.bias, [1, 1, 1], padding, [1, 1, 1], channels);
  }

  override extraRepr(): string {
    return `${this.channels}, kernel_size=(${this.kernelSize.join(', ')})`;
  }
}
