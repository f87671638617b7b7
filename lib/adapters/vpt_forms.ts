/** The places at which visual prompts enter a network; `vpt.ts` decides which of them a model gets. */
import { type Context, Conv2d, Dropout, init, Linear, Module, Parameter } from '../nn/index.js';
import { aten, empty, noGrad, tensor, type Tensor } from '../tensor/index.js';
import { IMAGENET_MEAN, IMAGENET_STD, PREFIX_ACROSS_BATCH } from '../models/index.js';
import { SharedPart } from './core/index.js';

/** Prompts start uniform in ±sqrt(6 / (3 p_h p_w + width)) for patches of p_h x p_w. */
export function promptBound(patch: readonly [number, number], width: number): number {
  return Math.sqrt(6 / (3 * patch[0] * patch[1] + width));
}

/** Rows of prompts [rows, count, width], one row for each place where they enter. */
export class PromptTable extends SharedPart {
  readonly embeddings: Parameter;

  constructor(rows: number, count: number, width: number, bound: number) {
    super();
    this.embeddings = new Parameter(empty([rows, count, width]));
    init.uniform_(this.embeddings, -bound, bound);
  }
}

/** W p + b, the widening that all prompts of a model share. */
export class PromptProjection extends Module {
  readonly proj: Linear;

  constructor(width: number, dim: number) {
    super();
    this.proj = new Linear(width, dim);
    init.normal_(this.proj.weight, 0, Math.sqrt(2 / dim));
  }

  forward(x: Tensor, ctx: Context): Tensor {
    return this.proj.run(x, ctx);
  }
}

/** One row of a table as it enters a batch: projected, expanded, dropped out. */
export class Prompts extends Module {
  readonly drop: Dropout;
  readonly #table: PromptTable;
  readonly #row: number;
  readonly #projection: PromptProjection | null;

  constructor(table: PromptTable, row: number, options: { projection: PromptProjection | null; dropout: number }) {
    super();
    this.drop = new Dropout(options.dropout);
    this.#table = table;
    this.#row = row;
    this.#projection = options.projection;
  }

  get count(): number {
    return this.#table.embeddings.shape[1] ?? 0;
  }

  /** [B, count, D] for the batch of `x`. */
  forward(x: Tensor, ctx: Context): Tensor {
    const row = this.#table.embeddings.narrow(0, this.#row, 1);
    const prompts = this.#projection ? this.#projection.run(row, ctx) : row;
    // Expanded before dropout, so that every sample has a mask of its own.
    return this.drop.run(prompts.expand([x.shape[0] ?? 0, -1, -1]), ctx);
  }
}

/** [prefix; tokens] to [prefix; prompts; tokens]; the prompts belong to the prefix from here on. */
export class InsertPrompts extends Module {
  /** @param acrossBatch deal the prompts to windows as the official code does; see PREFIX_ACROSS_BATCH */
  constructor(
    readonly prompts: Module & { readonly count: number },
    private readonly acrossBatch = false,
  ) {
    super();
  }

  forward(x: Tensor, ctx: Context): Tensor {
    if (this.acrossBatch) ctx.state.set(PREFIX_ACROSS_BATCH, true);
    const at = ctx.prefixTokens;
    const prompts = this.prompts.run(x, ctx);
    ctx.prefixTokens = at + this.prompts.count;
    return aten.cat([x.narrow(1, 0, at), prompts, x.narrow(1, at, (x.shape[1] ?? 0) - at)], 1);
  }
}

/** Prompts in place of those that stand last in the prefix. */
export class ReplacePrompts extends Module {
  /** @param first there are no prompts yet: as the official code does, the first patches make room for these */
  constructor(
    readonly prompts: Prompts,
    private readonly first = false,
  ) {
    super();
  }

  forward(x: Tensor, ctx: Context): Tensor {
    const { count } = this.prompts;
    if (this.first) ctx.prefixTokens += count;
    const after = ctx.prefixTokens;
    const prompts = this.prompts.run(x, ctx);
    return aten.cat([x.narrow(1, 0, after - count), prompts, x.narrow(1, after, (x.shape[1] ?? 0) - after)], 1);
  }
}

/** Takes the prompts out again. */
export class RemovePrompts extends Module {
  constructor(private readonly count: number) {
    super();
  }

  forward(x: Tensor, ctx: Context): Tensor {
    const after = ctx.prefixTokens;
    ctx.prefixTokens = after - this.count;
    return aten.cat([x.narrow(1, 0, after - this.count), x.narrow(1, after, (x.shape[1] ?? 0) - after)], 1);
  }
}

/** Prompts added to the tokens that are there: one each, or one for all. */
export class AddPrompts extends Module {
  constructor(readonly prompts: Prompts) {
    super();
  }

  forward(x: Tensor, ctx: Context): Tensor {
    const prompts = this.prompts.run(x, ctx);
    const [, count = 1] = prompts.shape;
    if (count !== 1 && count !== x.shape[1]) {
      throw new RangeError(
        `vpt: ${count} prompts are added to ${x.shape[1] ?? 0} tokens; images must have the size that the model was built for`,
      );
    }
    return x.add(prompts);
  }
}

/** Pixels, normalized as the images are: (u - mean) / std per channel of ImageNet. */
function normalized(pixels: Tensor): Tensor {
  const like = (values: readonly number[]): Tensor =>
    tensor([...values], { dtype: pixels.dtype, device: pixels.device }).view([1, 3, 1, 1]);
  return pixels.sub(like(IMAGENET_MEAN)).div(like(IMAGENET_STD));
}

/** How the pixels of a prompt start, and whether they are normalized on their way in. */
export type PixelStart = 'uniform' | 'gaussian' | 'bounded';

function startPixels(parameter: Parameter, start: PixelStart, bound: number): Parameter {
  if (start === 'gaussian') init.normal_(parameter);
  else init.uniform_(parameter, start === 'uniform' ? 0 : -bound, start === 'uniform' ? 1 : bound);
  return parameter;
}

/** A strip of pixels [1, 3, p, p * count] that the frozen patch embedding turns into `count` tokens. */
export class PixelPrompts extends Module {
  readonly embeddings: Parameter;
  readonly #embed: Conv2d;

  constructor(
    readonly count: number,
    embed: Conv2d,
    private readonly start: PixelStart,
    bound: number,
  ) {
    super();
    const [ph, pw] = embed.kernelSize;
    this.embeddings = startPixels(new Parameter(empty([1, embed.inChannels, ph, pw * count])), start, bound);
    this.#embed = embed;
  }

  forward(x: Tensor, ctx: Context): Tensor {
    const pixels = this.start === 'uniform' ? normalized(this.embeddings) : this.embeddings;
    const tokens = this.#embed.run(pixels, ctx).flatten(2).transpose(1, 2);
    return tokens.expand([x.shape[0] ?? 0, -1, -1]);
  }
}

/** A frame of learned pixels, `width` wide, around images of `size`: [B, 3, H, W] to [B, 3, H + 2 width, W + 2 width]. */
export class FramePrompt extends Module {
  readonly tb: Parameter;
  readonly lr: Parameter;

  constructor(
    readonly size: readonly [number, number],
    readonly width: number,
    private readonly start: Exclude<PixelStart, 'bounded'>,
  ) {
    super();
    const [height, across] = size;
    this.tb = startPixels(new Parameter(empty([1, 3, 2 * width, across + 2 * width])), start, 0);
    this.lr = startPixels(new Parameter(empty([1, 3, height, 2 * width])), start, 0);
  }

  forward(x: Tensor): Tensor {
    const [batch = 0, channels, height, across] = x.shape;
    if (channels !== 3 || height !== this.size[0] || across !== this.size[1]) {
      throw new RangeError(
        `the frame of prompts is for RGB images of ${this.size.join(' x ')}, given [${x.shape.join(', ')}]`,
      );
    }
    const spread = (pixels: Parameter): Tensor =>
      (this.start === 'uniform' ? normalized(pixels) : pixels).expand([batch, -1, -1, -1]);
    const [lr, tb, w] = [spread(this.lr), spread(this.tb), this.width];
    const row = aten.cat([lr.narrow(3, 0, w), x, lr.narrow(3, w, w)], 3);
    return aten.cat([tb.narrow(2, 0, w), row, tb.narrow(2, w, w)], 2);
  }
}

/** Mean of ImageNet's channel means and of its deviations, for channels that are no color. */
const GRAY = { mean: 0.449, std: 0.226 };

/**
 * Learned image channels, the same for all images, behind the colors, and the first convolution anew with as many more
 * inputs; it is trained, and starts with the pretrained weights on the colors.
 */
export class ChannelPrompt extends Module {
  readonly embeddings: Parameter;
  readonly conv: Conv2d;

  /** @param start `bounded` on transformers; `uniform` (normalized on its way in) or `gaussian` on convolutional networks */
  constructor(
    size: readonly [number, number],
    count: number,
    pretrained: Conv2d,
    private readonly start: PixelStart,
    bound: number,
  ) {
    super();
    const { inChannels, outChannels, kernelSize, stride, padding } = pretrained;
    this.embeddings = startPixels(new Parameter(empty([1, count, size[0], size[1]])), start, bound);
    this.conv = new Conv2d(inChannels + count, outChannels, {
      kernelSize,
      stride,
      padding,
      bias: pretrained.bias !== null,
    });
    if (start === 'bounded') init.uniform_(this.conv.weight, -bound, bound);
    else init.xavierUniform_(this.conv.weight);
    noGrad(() => {
      this.conv.weight.narrow(1, 0, inChannels).copy_(pretrained.weight);
      if (pretrained.bias && this.conv.bias) this.conv.bias.copy_(pretrained.bias);
    });
  }

  forward(x: Tensor, ctx: Context): Tensor {
    const [batch = 0, , height, width] = x.shape;
    const [, , rows, columns] = this.embeddings.shape;
    if (height !== rows || width !== columns) {
      throw new RangeError(`the prompt channels are ${rows} x ${columns}, and the images ${height} x ${width}`);
    }
    const channels = this.start === 'uniform' ? this.embeddings.sub(GRAY.mean).div(GRAY.std) : this.embeddings;
    return this.conv.run(aten.cat([x, channels.expand([batch, -1, -1, -1])], 1), ctx);
  }
}

/**
 * What the head reads, the class token aside: patches, prompts (the last `count` of the prefix; 0 where there are
 * none), or both.
 */
export class PromptPool extends Module {
  constructor(
    private readonly over: 'img' | 'prompt' | 'imgprompt',
    private readonly count: number,
  ) {
    super();
  }

  forward(x: Tensor, ctx: Context): Tensor {
    const after = ctx.prefixTokens;
    const length = x.shape[1] ?? 0;
    const first = this.over === 'img' ? after : after - this.count;
    const last = this.over === 'prompt' ? after : length;
    return x.narrow(1, first, last - first).mean([1]);
  }
}
