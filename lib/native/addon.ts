import { native as loaded } from './load.js';
import type { Handle, NativeAddon, NativeClasses, NativeFunction } from './types.js';

let TensorClass: NativeClasses['Tensor'] | undefined;

/** What an operator answers with is a tensor's number (making its object here beats making it in the addon), or final. */
function finish(result: unknown): unknown {
  return typeof result === 'number' && TensorClass !== undefined ? (new TensorClass(result) satisfies Handle) : result;
}

/** `call` with its arguments as they came; the cases spare usual calls an array. Trailing undefined counts as absent. */
function functionOf(call: NativeFunction): NativeFunction {
  return function (a, b, c, d, ...rest) {
    if (rest.length > 0) return finish(call(a, b, c, d, ...rest));
    if (d !== undefined) return finish(call(a, b, c, d));
    if (c !== undefined) return finish(call(a, b, c));
    return finish(b === undefined ? call(a) : call(a, b));
  };
}

/** As `functionOf`, with the receiver as first argument. */
function methodOf(call: NativeFunction): NativeFunction {
  return function (this: unknown, a, b, c, ...rest) {
    if (rest.length > 0) return finish(call(this, a, b, c, ...rest));
    if (c !== undefined) return finish(call(this, a, b, c));
    if (b !== undefined) return finish(call(this, a, b));
    return finish(a === undefined ? call(this) : call(this, a));
  };
}

/** The loaded addon. Everything above `lib/native/` reaches LibTorch through this object only. */
export const native: NativeAddon = {
  ...loaded,
  setup(classes) {
    TensorClass = classes.Tensor;
    loaded.setup(classes);
  },
  operator(name, overload, method) {
    const found = loaded.operator(name, overload);
    if (found === undefined) return undefined;
    if (found.numbers) return method ? methodOf(found) : functionOf(found);
    if (!method) return found;
    return function (this: unknown, ...args) {
      return found(this, ...args);
    };
  },
};
