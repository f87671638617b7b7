/** Clips through networks of images: the frames are folded into the batch, and read together before the classifier. */
import type { Context } from '../nn/index.js';
import type { Tensor } from '../tensor/index.js';

/**
 * Clips [B, C, T, H, W] as a batch of images [B T, C, H, W], the frames of a clip one after the other; says T to the
 * context.
 *
 * @throws RangeError for clips without frames
 */
export function foldClips(clips: Tensor, ctx: Context): Tensor {
  const [, , frames = 0] = clips.shape;
  if (frames === 0) throw new RangeError(`clips have no frames: their shape is [${clips.shape.join(', ')}]`);
  ctx.frames = frames;
  return clips.transpose(1, 2).flatten(0, 1);
}

/**
 * Mean over the frames of each clip, [B T, ...] to [B, ...] for T = `ctx.frames`; from here on the context stands for one
 * frame. Images (T = 1) pass.
 */
export function meanOverFrames(x: Tensor, ctx: Context): Tensor {
  const { frames } = ctx;
  if (frames === 1) return x;
  ctx.frames = 1;
  return x.unflatten(0, [-1, frames]).mean([1]);
}
