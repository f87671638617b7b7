/** Class names through CLIP's text tower, with learned vectors among the words. */
import { type ClipTextTransformer, endOfText } from '../models/index.js';
import { Context } from '../nn/index.js';
import { aten, type Tensor } from '../tensor/index.js';

/**
 * Embeddings [K, D] of K class names, not normalized, from the sequences [first token, contexts, the other tokens]: read
 * where the text ends.
 *
 * @param ids tokens [K, n] of the names, the first of each the start of the text
 * @param contexts learned vectors [1, M, d], the same for all classes; for [B, M, d] the result is [B, K, D]
 * @throws RangeError when n + M is longer than the tower's context
 */
export function encodeWithContexts(
  tower: ClipTextTransformer,
  ids: Tensor,
  contexts: Tensor,
  ctx: Context = new Context(),
): Tensor {
  const [classes = 0, length = 0] = ids.shape;
  const [batch = 0, added = 0, width = 0] = contexts.shape;
  const { contextLength } = tower.options;
  if (length + added > contextLength) {
    throw new RangeError(
      `${length} tokens and ${added} learned vectors do not fit the text tower's context of ${contextLength}`,
    );
  }
  const words = tower.token_embedding.run(ids, ctx).unsqueeze(0).expand([batch, -1, -1, -1]);
  const between = contexts.unsqueeze(1).expand([-1, classes, -1, -1]).to(words.dtype);
  const sequence = aten
    .cat([words.narrow(2, 0, 1), between, words.narrow(2, 1, length - 1)], 2)
    .reshape([batch * classes, length + added, width]);
  const ends = endOfText(ids).add(added).repeat([batch]);
  const embeddings = tower.readOut(tower.transform(sequence, ctx), ends, ctx);
  return batch === 1 ? embeddings : embeddings.unflatten(0, [batch, classes]);
}
