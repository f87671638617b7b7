/** The forms of Conv-Adapter (`conv_adapter.ts`). */
import {
  activationLayer,
  BatchNorm2d,
  type Context,
  Conv2d,
  functional,
  init,
  Linear,
  Module,
  Parameter,
} from '../nn/index.js';
import { aten, ones, randn, type Tensor, zeros } from '../tensor/index.js';
import { type AffineForm } from './core/index.js';
import { overPatches } from './patch_map.js';

/** How the convolutions of an adapter start; the official code gives adapters the start of their backbone's own. */
export type Start = 'fan_out' | 'fan_out_per_group' | 'trunc_normal' | 'default' | 'default_without_bias' | 'zero';

/** Shapes of a Conv-Adapter: those of the convolution that it stands beside. */
export interface ConvAdapterOptions {
  readonly inChannels: number;
  readonly outChannels: number;
  /** Channels of the bottleneck; inChannels must be divisible by it. */
  readonly width: number;
  readonly kernel: readonly [number, number];
  readonly stride?: readonly [number, number];
  readonly padding?: readonly [number, number];
  /** Default `relu`. */
  readonly activation?: string;
  /** Default `fan_out`. */
  readonly start?: Start;
}

/**
 * A(u) = se * conv2(act(conv1 u)): conv1 is k x k with `width` groups, conv2 is 1x1, `se` is a learned scale per output
 * channel that starts at 1. [B, in, H, W] to [B, out, H', W'].
 */
export class ConvAdapter extends Module {
  readonly se: Parameter;
  readonly conv1: Conv2d;
  readonly conv2: Conv2d;
  readonly act: Module;

  constructor(options: ConvAdapterOptions) {
    super();
    const { inChannels, outChannels, width, kernel, stride = [1, 1], padding = [0, 0] } = options;
    if (width < 1 || inChannels % width !== 0) {
      throw new RangeError(
        `${inChannels} channels do not divide into a bottleneck of ${width}; take a reduction that divides ${inChannels}`,
      );
    }
    this.se = new Parameter(ones([1, outChannels, 1, 1]));
    this.conv1 = new Conv2d(inChannels, width, { kernelSize: kernel, stride, padding, groups: width });
    this.conv2 = new Conv2d(width, outChannels, { kernelSize: 1 });
    this.act = activationLayer(options.activation ?? 'relu');
    startConvolutions([this.conv1, this.conv2], options.start ?? 'fan_out');
  }

  forward(u: Tensor, ctx: Context): Tensor {
    // se goes into the 1x1 convolution: the same numbers without a product, and a saved map, of full size.
    const { weight, bias } = this.conv2;
    const hidden = this.act.run(this.conv1.run(u, ctx), ctx);
    return functional.conv2d(hidden, weight.mul(this.se.view([-1, 1, 1, 1])), bias?.mul(this.se.flatten()) ?? null);
  }
}

function startConvolutions(convolutions: readonly Conv2d[], start: Start): void {
  if (start === 'default') return;
  for (const { weight, bias, outChannels, kernelSize, groups } of convolutions) {
    // Fan-out is that of the official code, which divides it by the groups for EfficientNet only.
    const fanOut = outChannels * kernelSize[0] * kernelSize[1];
    if (start === 'trunc_normal') init.truncNormal_(weight, { std: 0.02 });
    else if (start === 'fan_out_per_group') init.normal_(weight, 0, Math.sqrt(2 / Math.floor(fanOut / groups)));
    else if (start !== 'default_without_bias') init.normal_(weight, 0, Math.sqrt(2 / fanOut));
    if (bias) init.zeros_(bias);
  }
  const last = convolutions.at(-1);
  if (start === 'zero' && last) init.zeros_(last.weight);
}

/** A(x) = se * fc2(ReLU(fc1 x)) on vectors or tokens [..., in] to [..., out]. */
export class LinearAdapter extends Module {
  readonly se: Parameter;
  readonly fc1: Linear;
  readonly fc2: Linear;
  readonly act: Module;

  constructor(inFeatures: number, outFeatures: number, width: number, activation = 'relu') {
    super();
    this.se = new Parameter(ones([1, outFeatures]));
    this.fc1 = new Linear(inFeatures, width);
    this.fc2 = new Linear(width, outFeatures);
    this.act = activationLayer(activation);
  }

  forward(x: Tensor, ctx: Context): Tensor {
    return this.fc2.run(this.act.run(this.fc1.run(x, ctx), ctx), ctx).mul(this.se);
  }
}

/**
 * The earlier design that the official file keeps: 1x1, norm, act; k x k in `groups`, norm; 1x1, norm, act; times a
 * constant.
 */
export class ConvAdapterDesign1 extends Module {
  readonly conv1: Conv2d;
  readonly norm1: BatchNorm2d;
  readonly conv2: Conv2d;
  readonly norm2: BatchNorm2d;
  readonly conv3: Conv2d;
  readonly norm3: BatchNorm2d;
  readonly act: Module;

  constructor(options: ConvAdapterOptions & { readonly groups: number; readonly scale: number }) {
    super();
    const { inChannels, outChannels, width, kernel, stride = [1, 1], padding = [0, 0], groups } = options;
    this.conv1 = new Conv2d(inChannels, width, { kernelSize: 1 });
    this.norm1 = new BatchNorm2d(width);
    this.conv2 = new Conv2d(width, width, { kernelSize: kernel, stride, padding, groups });
    this.norm2 = new BatchNorm2d(width);
    this.conv3 = new Conv2d(width, outChannels, { kernelSize: 1 });
    this.norm3 = new BatchNorm2d(outChannels);
    this.act = activationLayer(options.activation ?? 'relu');
    this.#scale = options.scale;
  }

  readonly #scale: number;

  forward(u: Tensor, ctx: Context): Tensor {
    const a = this.act.run(this.norm1.run(this.conv1.run(u, ctx), ctx), ctx);
    const b = this.norm2.run(this.conv2.run(a, ctx), ctx);
    return this.act.run(this.norm3.run(this.conv3.run(b, ctx), ctx), ctx).mul(this.#scale);
  }
}

/** x + P: a learned border of `size` pixels on images of exactly `imageSize`, shared by the batch. */
export class PaddingPrompt extends Module {
  readonly pad_up: Parameter;
  readonly pad_down: Parameter;
  readonly pad_left: Parameter;
  readonly pad_right: Parameter;

  constructor(
    readonly imageSize: number,
    readonly size: number,
    channels = 3,
  ) {
    super();
    const inner = imageSize - 2 * size;
    if (size < 1 || inner < 1) {
      throw new RangeError(
        `a border of ${size} leaves nothing of a ${imageSize} pixel image; at most ${Math.floor((imageSize - 1) / 2)}`,
      );
    }
    const border = (height: number, width: number): Parameter => new Parameter(randn([1, channels, height, width]));
    this.pad_up = border(size, imageSize);
    this.pad_down = border(size, imageSize);
    this.pad_left = border(inner, size);
    this.pad_right = border(inner, size);
  }

  forward(x: Tensor): Tensor {
    const [, channels = 3, height, width] = x.shape;
    if (height !== this.imageSize || width !== this.imageSize) {
      throw new RangeError(
        `the padding prompt is for images of ${this.imageSize} x ${this.imageSize}, given ${height} x ${width}`,
      );
    }
    const inner = this.imageSize - 2 * this.size;
    const hole = zeros([1, channels, inner, inner], { device: x.device, dtype: this.pad_up.dtype });
    const middle = aten.cat([this.pad_left, hole, this.pad_right], 3);
    return x.add(aten.cat([this.pad_up, middle, this.pad_down], 2));
  }
}

/** A learned summand per channel that starts at 0: the bias that a convolution was built without. */
export class ChannelBias extends Module implements AffineForm {
  readonly bias: Parameter;

  constructor(channels: number) {
    super();
    this.bias = new Parameter(zeros([channels]));
  }

  /** As an affine map: y = x + bias. */
  factorAndSummand(): { factor: null; summand: Tensor } {
    return { factor: null, summand: this.bias };
  }

  forward(x: Tensor): Tensor {
    return x.add(this.bias);
  }
}

/** `ConvAdapter` over the patches of tokens [B, N, C]; it gives nothing to tokens that are no patches. */
export class TokenConvAdapter extends ConvAdapter {
  override forward(x: Tensor, ctx: Context): Tensor {
    return overPatches(x, ctx, 'tokens', {
      onMap: (map) => super.forward(map, ctx),
      onRest: (tokens) => tokens.newZeros([...tokens.shape.slice(0, 2), this.conv2.outChannels]),
    });
  }
}

/** `BatchNorm2d` of maps [B, C, H, W] and of tokens [B, N, C]. */
export class FeatureNorm extends BatchNorm2d {
  override forward(x: Tensor, ctx: Context): Tensor {
    if (x.ndim !== 3) return super.forward(x, ctx);
    return super.forward(x.transpose(1, 2).unsqueeze(-1), ctx).squeeze(-1).transpose(1, 2);
  }
}
