/**
 * ST-Adapter. Pan, Lin, Zhu, Shao & Li, NeurIPS 2022, arXiv 2206.13559; linziyi96/st-adapter, commit b914b38. The paper's
 * formula has a nonlinearity after the convolution, the code has none, and the code is what this follows.
 */
import { z } from 'zod';
import { type Context, DepthwiseConv3d, init, Linear, Module, type Size3 } from '../nn/index.js';
import { aten, type Tensor } from '../tensor/index.js';
import { defineMethod, type Rule, sequential } from './core/index.js';
import { overPatches } from './patch_map.js';

/**
 * fc2(K * fc1 x) with a depth-wise convolution over [frames, rows, columns], for tokens [B T, N, C] whose patches stand as
 * the context says, T = `ctx.frames`. Tokens that are no patches get nothing. Nothing is nonlinear. Starts as nothing: the
 * convolution and the biases are 0.
 */
export class StAdapter extends Module {
  readonly fc1: Linear;
  readonly conv: DepthwiseConv3d;
  readonly fc2: Linear;

  /** @throws RangeError for a kernel without a center */
  constructor(channels: number, hidden: number, kernel: Size3) {
    super();
    this.fc1 = new Linear(channels, hidden);
    this.conv = new DepthwiseConv3d(hidden, kernel);
    this.fc2 = new Linear(hidden, channels);
    for (const tensor of [this.conv.weight, this.conv.bias, this.fc1.bias, this.fc2.bias]) {
      if (tensor) init.zeros_(tensor);
    }
  }

  forward(x: Tensor, ctx: Context): Tensor {
    return overPatches(x, ctx, 'tokens', {
      onMap: (map) => this.#mix(map.permute([0, 2, 3, 1]), ctx).permute([0, 3, 1, 2]),
      onRest: (tokens) => aten.zerosLike(tokens),
    });
  }

  /** Patches [B T, h, w, C] to what is added to them. */
  #mix(patches: Tensor, ctx: Context): Tensor {
    const { frames } = ctx;
    const [images = 0] = patches.shape;
    if (images % frames !== 0) {
      throw new RangeError(`a batch of ${images} images does not divide into clips of ${frames} frames`);
    }
    const clips = this.fc1.run(patches, ctx).unflatten(0, [images / frames, frames]);
    const mixed = this.conv.run(clips.permute([0, 4, 1, 2, 3]), ctx).permute([0, 2, 3, 4, 1]);
    return this.fc2.run(mixed.flatten(0, 1), ctx);
  }
}

const odd = z
  .int()
  .positive()
  .refine((side) => side % 2 === 1, 'must be odd');

/** Rule id, also the official name, and the place: on the stream, so that the skip carries it too. */
const PLACES = {
  attention: { id: 'adapter_pre_attn', role: 'attention_stream' },
  mlp: { id: 'adapter_pre_mlp', role: 'mlp_stream' },
} as const;
const WHERE = { both: ['attention', 'mlp'], attention: ['attention'], mlp: ['mlp'] } as const;

/**
 * ST-Adapter: the only mixing in time of a network of images that reads clips [B, C, T, H, W]. With `where` mlp it is
 * the paper's 12x384 on ViT-B/16, with both 24x384. The one before the last block's MLP changes no class token any more;
 * it is kept, since the checkpoints have it. Starts as the backbone.
 */
export const stAdapter = defineMethod({
  id: 'st_adapter',
  summary: 'depth-wise convolutions over space and time, for clips',
  paper: 'Pan et al., ST-Adapter: Parameter-Efficient Image-to-Video Transfer Learning, NeurIPS 2022, arXiv 2206.13559',
  options: z.strictObject({
    /** Width of the bottleneck. Default: half of the channels. */
    hidden: z.int().positive().optional(),
    /** Extents in time, height and width; odd. */
    kernel: z.tuple([odd, odd, odd]).default([3, 1, 1]),
    /** Before attention, before the MLP, or both. */
    where: z.enum(['both', 'attention', 'mlp']).default('mlp'),
    /** How many blocks have adapters, counted from the last. Default: all. */
    layers: z.int().positive().optional(),
  }),
  rules: ({ hidden, kernel, where, layers }, sites) => {
    const blocks = sites.filter(({ roles }) => roles.includes('block')).length;
    if (layers !== undefined && layers > blocks && blocks > 0) {
      throw new RangeError(`st_adapter: layers must be at most ${blocks}, as many as there are blocks; got ${layers}`);
    }
    return WHERE[where].map((place): Rule => {
      const { id, role } = PLACES[place];
      return {
        id,
        at: { role, ...(layers !== undefined && { depth: { from: -layers } }) },
        compose: sequential(),
        form: ({ in: channels }) => new StAdapter(channels, hidden ?? Math.max(1, Math.floor(channels / 2)), kernel),
      };
    });
  },
  headInit: 'trunc_normal',
  learningRate: 1e-3,
  officialHead: 'fc',
  officialName: ({ site, rule, leaf }) => `transformer.resblocks.${site?.depth ?? 0}.${rule}.${leaf}`,
});
