/** Videos classified by networks of images: the scores of several views of a video make one. */
import { functional } from '../nn/index.js';
import type { Tensor } from '../tensor/index.js';

/**
 * Logits [V n, K] of the views of n videos, those of a video one after the other, to scores [n, K]: the mean over the views
 * of the softmax.
 *
 * @throws RangeError when the rows do not divide into videos of `views` views
 */
export function averageViews(logits: Tensor, views: number): Tensor {
  const [rows = 0] = logits.shape;
  if (!Number.isInteger(views) || views < 1 || rows % views !== 0) {
    throw new RangeError(`${rows} rows of logits do not divide into videos of ${views} views`);
  }
  return functional
    .softmax(logits)
    .unflatten(0, [rows / views, views])
    .mean([1]);
}
