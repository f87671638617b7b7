/** What the heads are made of: convolution, norm and ReLU under mmseg's names, and resizing. */
import { BatchNorm2d, type Context, Conv2d, convNormAct, functional, init, Module } from '../nn/index.js';
import type { Tensor } from '../tensor/index.js';

/** Epsilon and momentum of the BatchNorms of a head. */
export interface HeadNormOptions {
  /** Default 1e-5. */
  readonly eps?: number;
  /** Default 0.1. */
  readonly momentum?: number;
}

/** What a `ConvModule` may be told. */
export interface ConvModuleOptions {
  /** Odd. Default 1. */
  readonly kernelSize?: number;
  /** Default 1. */
  readonly stride?: number;
  /** The BatchNorm that follows; null for none, and then the convolution has a bias. Default: with its defaults. */
  readonly norm?: HeadNormOptions | null;
  /** Default `relu`. */
  readonly act?: 'relu' | 'none';
}

/**
 * Convolution (k x k, padding (k - 1) / 2, without a bias when a norm follows) [, BatchNorm][, ReLU]: [B, in, H, W] to
 * [B, out, H, W]. Names `conv`, `bn` are mmseg's. Convolutions start Kaiming-normal over fan-out with ReLU's gain.
 */
export class ConvModule extends Module {
  readonly conv: Conv2d;
  readonly bn: BatchNorm2d | null;
  readonly #act: 'relu' | 'none';

  /** @throws RangeError for an even kernel, which would change the size */
  constructor(inChannels: number, outChannels: number, options: ConvModuleOptions = {}) {
    super();
    const { kernelSize = 1, stride = 1, norm = {}, act = 'relu' } = options;
    if (kernelSize % 2 !== 1) throw new RangeError(`ConvModule: the kernel must be odd, got ${kernelSize}`);
    const padding = (kernelSize - 1) / 2;
    this.conv = new Conv2d(inChannels, outChannels, { kernelSize, stride, padding, bias: norm === null });
    this.bn = norm && new BatchNorm2d(outChannels, norm);
    this.#act = act;
    init.kaimingNormal_(this.conv.weight, { mode: 'fan_out', nonlinearity: 'relu' });
    if (this.conv.bias) init.zeros_(this.conv.bias);
  }

  forward(x: Tensor, ctx: Context): Tensor {
    if (this.bn) return convNormAct(this.conv, this.bn, x, ctx, { act: this.#act });
    const y = this.conv.run(x, ctx);
    return this.#act === 'relu' ? y.relu() : y;
  }
}

/** Height and width of a map. */
export function sizeOf(map: Tensor): readonly [height: number, width: number] {
  const [height = 0, width = 0] = map.shape.slice(-2);
  return [height, width];
}

/** Maps [B, C, H, W] at another size, bilinearly; those that have it are returned as they are. */
export function resize(x: Tensor, size: readonly [number, number], alignCorners = false): Tensor {
  const [height, width] = sizeOf(x);
  if (height === size[0] && width === size[1]) return x;
  return functional.interpolate(x, { size, alignCorners });
}

/** Bilinear enlargement by a whole factor; it has no parameters. */
export class Upsample extends Module {
  readonly #factor: number;
  readonly #alignCorners: boolean;

  constructor(factor: number, alignCorners = false) {
    super();
    this.#factor = factor;
    this.#alignCorners = alignCorners;
  }

  forward(x: Tensor): Tensor {
    const [height, width] = sizeOf(x);
    return resize(x, [height * this.#factor, width * this.#factor], this.#alignCorners);
  }
}
