import { native } from '../native/index.js';

/** A value in a few words, for error messages: what it is rather than all it holds. */
export function describe(value: unknown): string {
  if (value === null || value === undefined || typeof value === 'boolean') return String(value);
  if (typeof value === 'string') return `'${value.length > 60 ? `${value.slice(0, 57)}...` : value}'`;
  if (typeof value === 'number') return Object.is(value, -0) ? '-0' : String(value);
  if (typeof value === 'bigint') return `${value}n`;
  if (typeof value === 'function') return value.name ? `function ${value.name}` : 'a function';
  if (typeof value === 'symbol') return 'a symbol';
  if (Array.isArray(value)) {
    const shown = value
      .slice(0, 6)
      .map((v: unknown) => (typeof v === 'object' && v !== null ? shortName(v) : describe(v)));
    return `[${shown.join(', ')}${value.length > 6 ? ', ...' : ''}]`;
  }
  return shortName(value);
}

function shortName(value: object): string {
  if (native.isTensor(value)) {
    if (native.isFreed(value)) return 'a freed Tensor';
    return `Tensor ${native.dtype(value)} [${native.shape(value).join(', ')}]`;
  }
  if (ArrayBuffer.isView(value)) return `${value.constructor.name}(${value.byteLength} bytes)`;
  if (Array.isArray(value)) return 'an array';
  const prototype = Object.getPrototypeOf(value) as { constructor?: { name?: string } } | null;
  const name = prototype?.constructor?.name;
  return name && name !== 'Object' ? `a ${name}` : 'an object';
}
