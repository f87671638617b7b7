/** Which methods can be set into which backbones, found out by trying: nothing about it is written down anywhere. */
import { createModel } from '../models/index.js';
import { scope, withDefaults } from '../tensor/index.js';
import { findMethod, graft } from './registry.js';

/** One method on one backbone. */
export interface MatrixCell {
  readonly method: string;
  readonly model: string;
  readonly possible: boolean;
  /** Why not, in one line; null where it is possible. */
  readonly reason: string | null;
  /** Trained parameters, a classifier for 10 classes included; null where it is not possible. */
  readonly trainable: number | null;
}

/** A new head makes methods possible on backbones that come without a classifier. */
const CLASSES = 10;

/** The first line of a message, without the list that may follow it, and in the same words for every backbone. */
function firstLine(error: RangeError): string {
  const [line = ''] = error.message.split('\n');
  const text = line.replace(/[.:]?( Its sites are:?)?$/, '').trim();
  return text.replace(/, and no site of \S+ is that$/, ', and the backbone has no such site');
}

/**
 * Tries every method on every backbone, with the methods' default options and on the meta device, where nothing takes
 * memory.
 *
 * @param methods ids, as `listMethods()` gives them
 * @param models names, as `listModels()` gives them
 * @throws RangeError for a name that nothing has
 *
 * ```ts
 * const cells = compatibility(listMethods(), ['resnet50', 'vit_small_patch16_224']);
 * ```
 */
export function compatibility(methods: readonly string[], models: readonly string[]): MatrixCell[] {
  const found = methods.map(findMethod);
  return models.flatMap((model) =>
    scope(() => {
      const backbone = withDefaults({ device: 'meta' }, () => createModel(model));
      return found.map((method): MatrixCell => {
        try {
          const adapter = graft(backbone, method, {}, { head: { classes: CLASSES } });
          const { trainable } = adapter.summary();
          adapter.remove();
          return { method: method.id, model, possible: true, reason: null, trainable };
        } catch (error) {
          if (!(error instanceof RangeError)) throw error;
          return { method: method.id, model, possible: false, reason: firstLine(error), trainable: null };
        }
      });
    }),
  );
}
