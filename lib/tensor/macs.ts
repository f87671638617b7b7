import { native } from '../native/index.js';
import { runSync } from './check.js';

/**
 * Counts the multiply-accumulates of `fn` on this thread: those of convolutions and matrix products, attention's among
 * them; elementwise work, norms and transforms are not counted, as is the custom of the papers. On the meta device the
 * count is exact and costs no arithmetic.
 *
 * ```ts
 * const { macs } = countMacs(() => model.run(x));
 * ```
 */
export function countMacs<R>(fn: () => R): { readonly macs: number; readonly result: R } {
  const token = native.macsEnter();
  let result: R;
  try {
    result = runSync('countMacs', fn);
  } catch (error) {
    native.macsExit(token);
    throw error;
  }
  return { macs: native.macsExit(token), result };
}
