/**
 * Classifiers that start from texts: with the embeddings of the classes' names as weights, a head over CLIP's image
 * features is CLIP's own zero-shot classifier. Radford et al., ICML 2021, arXiv 2103.00020, section 3.1.
 */
import { functional } from '../nn/index.js';
import { noGrad, scope, type Tensor } from '../tensor/index.js';
import type { Adapter } from './core/index.js';

/**
 * One vector per class from those of its prompts: each of length 1, averaged over the prompts, of length 1 again.
 *
 * @param prompts embeddings [classes, prompts, e] of every class's name in every template, of any length
 * @returns [classes, e]
 */
export function classEmbeddings(prompts: Tensor): Tensor {
  if (prompts.ndim !== 3) {
    throw new RangeError(`classEmbeddings: expected [classes, prompts, e], got shape [${prompts.shape.join(', ')}]`);
  }
  return scope(() => functional.normalize(functional.normalize(prompts, { dim: -1 }).mean([1]), { dim: -1 }));
}

/** What `startHead` may be told besides. */
export interface StartHeadOptions {
  /**
   * A projection [e, C] that the head takes over: the weights become `weight` times it, for an image tower that was built
   * without its own (`projDim: null`).
   */
  readonly projection?: Tensor;
}

/**
 * Sets the weights of the head that an adapter brings, and its bias, if it has one, to 0.
 *
 * ```ts
 * const clip = createClip('ViT-B/32');
 * const prompts = aten.stack(names.map((name) => clip.encodeText(tokenizer.tokenize(templates.map((t) => t(name))))));
 * const adapter = graft(clip.visual, 'kadaptation', {}, { head: { classes: names.length, norm: 'batch' } });
 * startHead(adapter, classEmbeddings(prompts));
 * ```
 *
 * @param weight [classes, C]; with a projection [classes, e]
 * @throws RangeError when the adapter brings no head or the shapes do not fit; nothing has changed then
 */
export function startHead(adapter: Adapter, weight: Tensor, { projection }: StartHeadOptions = {}): void {
  const head = adapter.headModule;
  if (!head) {
    throw new RangeError(
      `startHead: adapter '${adapter.name}' brings no head of its own; graft it with { head: { classes } }`,
    );
  }
  const { linear } = head;
  noGrad(() => {
    scope(() => {
      const given = `weight [${weight.shape.join(', ')}]`;
      const product = projection ? `${given} times projection [${projection.shape.join(', ')}]` : given;
      if (projection && (weight.ndim !== 2 || projection.ndim !== 2 || weight.shape[1] !== projection.shape[0]))
        throw new RangeError(`startHead: ${product} is no product of matrices`);
      const start = projection ? weight.to(projection.dtype).mm(projection) : weight;
      if (start.shape.join() !== linear.weight.shape.join()) {
        throw new RangeError(
          `startHead: ${product} does not fit the head, which has [${linear.weight.shape.join(', ')}]`,
        );
      }
      linear.weight.copy_(start);
      linear.bias?.zero_();
    });
  });
  head.markTrained();
}
