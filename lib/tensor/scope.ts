import { native } from '../native/index.js';
import type { Handle } from '../native/index.js';
import { assertTensor, runSync } from './check.js';
import type { Tensor } from './tensor.js';

/** Collects the tensors that a value holds: itself, or inside arrays, plain objects, Maps and Sets. */
function tensorsIn(value: unknown, found: Handle[], seen: Set<object>): void {
  if (typeof value !== 'object' || value === null || seen.has(value)) return;
  if (native.isTensor(value)) {
    found.push(value);
    return;
  }
  if (ArrayBuffer.isView(value)) return;
  seen.add(value);
  if (Array.isArray(value) || value instanceof Set) {
    for (const item of value as Iterable<unknown>) tensorsIn(item, found, seen);
  } else if (value instanceof Map) {
    for (const [key, item] of value as Map<unknown, unknown>) {
      tensorsIn(key, found, seen);
      tensorsIn(item, found, seen);
    }
  } else {
    const prototype: unknown = Object.getPrototypeOf(value);
    if (prototype !== Object.prototype && prototype !== null) return;
    for (const { value: item } of Object.values(Object.getOwnPropertyDescriptors(value))) tensorsIn(item, found, seen);
  }
}

/**
 * Runs `fn` and frees every tensor made meanwhile, except those in what it returns (a tensor, or tensors inside arrays,
 * plain objects, Maps and Sets) and those given to `keep`. Scopes nest: survivors belong to the enclosing one. When
 * `fn` throws, everything made is freed.
 *
 * @throws TypeError if `fn` is asynchronous
 * @example const loss = scope(() => model.run(x).sub(y).square().mean())
 */
export function scope<R>(fn: () => R): R {
  const token = native.scopeOpen();
  const survivors: Handle[] = [];
  try {
    const result = runSync('scope', fn);
    tensorsIn(result, survivors, new Set());
    return result;
  } catch (error) {
    survivors.length = 0;
    throw error;
  } finally {
    native.scopeClose(token, survivors);
  }
}

/**
 * Takes a tensor out of every scope: from now on only `dispose` or the collector frees it. Returns the same tensor.
 * @throws TypeError for a freed tensor
 */
export function keep<T extends Tensor>(tensor: T): T {
  native.keep(assertTensor(tensor, 'keep', 'tensor'));
  if (native.isFreed(tensor)) throw new TypeError('keep: the tensor was freed; keep it before its scope closes');
  return tensor;
}

/**
 * Live tensors that JavaScript holds, and the bytes of their storages (a storage that several tensors share counts
 * once; a meta tensor has none). Tensors that only the autograd graph holds are not counted.
 */
export function memory(): { tensors: number; bytes: number } {
  native.sweep();
  return native.memory();
}
