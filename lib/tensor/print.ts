/** Tensors as text, character for character as PyTorch prints them with its default settings. */
import { native } from '../native/index.js';
import { numelOf } from './check.js';
import { dtypeInfo } from './dtype.js';
import type { DType } from './dtype.js';
import { noGrad } from './gradmode.js';
import { aten } from './ops.js';
import { scope } from './scope.js';
import type { Tensor } from './tensor.js';

const PRECISION = 4;
/** Tensors with more elements show only the first and last ones of each dimension. */
const THRESHOLD = 1000;
const EDGE_ITEMS = 3;
const LINE_WIDTH = 80;

const PREFIX = 'tensor(';

/** `x` with so many decimals, exact halves rounded to even as C does (toFixed rounds them up). */
function fixed(x: number, decimals: number): string {
  if (!Number.isFinite(x)) return nonFinite(x);
  const sign = x < 0 || Object.is(x, -0) ? '-' : '';
  const magnitude = Math.abs(x);
  const scaled = magnitude * 10 ** decimals;
  // Only a multiple of 2^-(decimals + 1) can lie halfway, and then `scaled` is exact.
  const halfway = Number.isInteger(magnitude * 2 ** (decimals + 1)) && scaled - Math.floor(scaled) === 0.5;
  if (!halfway) return sign + magnitude.toFixed(decimals);
  const even = Math.floor(scaled) % 2 === 0 ? Math.floor(scaled) : Math.ceil(scaled);
  return sign + (even / 10 ** decimals).toFixed(decimals);
}

/** `x` in scientific notation with at least two digits of exponent, exact halves rounded to even. */
function scientific(x: number): string {
  if (!Number.isFinite(x)) return nonFinite(x);
  let text = Math.abs(x).toExponential(PRECISION);
  const long = Math.abs(x).toExponential(100);
  const digits = 2 + PRECISION;
  if (/^50*e/.test(long.slice(digits)) && Number(long[digits - 1]) % 2 === 0) {
    text = long.slice(0, digits) + long.slice(long.indexOf('e'));
  }
  const [mantissa, exponent] = text.split('e') as [string, string];
  const sign = x < 0 || Object.is(x, -0) ? '-' : '';
  return `${sign}${mantissa}e${exponent[0]}${exponent.slice(1).padStart(2, '0')}`;
}

function nonFinite(x: number): string {
  return Number.isNaN(x) ? 'nan' : x < 0 ? '-inf' : 'inf';
}

/** How all elements of one tensor are written: a common notation, and the width that they are padded to. */
interface Style {
  readonly width: number;
  write(value: number | bigint): string;
}

function widest(texts: Iterable<string>): number {
  let width = 1;
  for (const text of texts) width = Math.max(width, text.length);
  return width;
}

function floatStyle(values: readonly number[]): Style {
  const telling = values.filter((v) => Number.isFinite(v) && v !== 0);
  const magnitudes = telling.map(Math.abs);
  const largest = magnitudes.reduce((a, b) => Math.max(a, b), 0);
  const smallest = magnitudes.reduce((a, b) => Math.min(a, b), Infinity);
  const whole = telling.every(Number.isInteger);
  const exponential = telling.length > 0 && (largest / smallest > 1000 || largest > 1e8 || smallest < 1e-4);
  const write = (v: number): string => {
    if (exponential) return scientific(v);
    if (!whole) return fixed(v, PRECISION);
    return Number.isFinite(v) ? `${fixed(v, 0)}.` : nonFinite(v);
  };
  return { width: widest(telling.map(write)), write: (v) => write(Number(v)) };
}

function integerStyle(values: readonly (number | bigint)[], dtype: DType): Style {
  const write = (v: number | bigint): string => (dtype === 'bool' ? (v ? 'True' : 'False') : String(v));
  return { width: widest(values.map(write)), write };
}

/** Elements of `x` in row-major order as padded texts, complex ones joined from two styles; and their width. */
function elementTexts(x: Tensor): { texts: string[]; width: number } {
  const { kind } = dtypeInfo(x.dtype);
  const pad = (text: string, width: number) => text.padStart(width);
  if (kind === 'complex') {
    const pairs = Array.from(x.data() as Float64Array);
    const real = pairs.filter((_, i) => i % 2 === 0);
    const imaginary = pairs.filter((_, i) => i % 2 === 1);
    const [re, im] = [floatStyle(real), floatStyle(imaginary)];
    const texts = real.map((value, i) => {
      const second = im.write(imaginary[i] as number);
      const plus = second.startsWith('-') ? '' : '+';
      return `${pad(re.write(value), re.width)}${plus}${second}j`;
    });
    return { texts, width: re.width + im.width + 1 };
  }
  if (kind === 'float') {
    const values = Array.from((x.dtype === 'float64' ? x : x.to('float32')).data() as Float64Array);
    const style = floatStyle(values);
    return { texts: values.map((v) => pad(style.write(v), style.width)), width: style.width };
  }
  const values = Array.from(x.data() as ArrayLike<number | bigint>);
  const style = integerStyle(values, x.dtype);
  return { texts: values.map((v) => pad(style.write(v), style.width)), width: style.width };
}

/** The part of a large tensor that is shown: first and last items of every dimension. */
function edges(x: Tensor): Tensor {
  let result = x;
  for (const [dim, size] of x.shape.entries()) {
    if (size > 2 * EDGE_ITEMS) {
      const last = size - EDGE_ITEMS;
      result = aten.cat([result.slice(dim, 0, EDGE_ITEMS), result.slice(dim, last, size)], dim);
    }
  }
  return result;
}

/** Brackets around texts; `cut[d]` says that dimension d has been shortened to its edges. */
function bracket(texts: readonly string[], shape: readonly number[], cut: readonly boolean[], width: number): string {
  const build = (depth: number, offset: number, indent: number): string => {
    const size = shape[depth] as number;
    const stride = numelOf(shape.slice(depth + 1));
    if (depth === shape.length - 1) {
      const row = texts.slice(offset, offset + size);
      if (cut[depth]) row.splice(EDGE_ITEMS, 0, ' ...');
      const perLine = Math.max(1, Math.floor((LINE_WIDTH - indent) / (width + 2)));
      const lines: string[] = [];
      for (let i = 0; i < row.length; i += perLine) lines.push(row.slice(i, i + perLine).join(', '));
      return `[${lines.join(`,\n${' '.repeat(indent + 1)}`)}]`;
    }
    const parts = Array.from({ length: size }, (_, i) => build(depth + 1, offset + i * stride, indent + 1));
    if (cut[depth]) parts.splice(EDGE_ITEMS, 0, '...');
    const separator = `,${'\n'.repeat(shape.length - depth - 1)}${' '.repeat(indent + 1)}`;
    return `[${parts.join(separator)}]`;
  };
  return shape.length === 0 ? (texts[0] as string) : build(0, 0, PREFIX.length);
}

function contents(x: Tensor): string {
  const large = x.numel() > THRESHOLD;
  const cut = x.shape.map((size) => large && size > 2 * EDGE_ITEMS);
  const shown = large ? edges(x) : x;
  const { texts, width } = elementTexts(shown);
  return bracket(texts, shown.shape, cut, width);
}

/** What follows the elements: whatever a reader could not tell from them. */
function suffixes(x: Tensor): string[] {
  const { dtype, device, shape } = x;
  const meta = device === 'meta';
  const unseen = meta || x.numel() === 0;
  const result: string[] = [];
  if (device !== 'cpu') result.push(`device='${device}'`);
  if (meta || (unseen && shape.length !== 1)) {
    result.push(`size=(${shape.join(', ')}${shape.length === 1 ? ',' : ''})`);
  }
  const evident = unseen ? ['float32'] : ['float32', 'complex64', 'int64', 'bool'];
  if (!evident.includes(dtype)) result.push(`dtype=torch.${dtype}`);
  if (x.gradFn !== null) result.push(`grad_fn=<${x.gradFn}>`);
  else if (x.requiresGrad) result.push('requires_grad=True');
  return result;
}

/** The tensor as PyTorch prints it. */
export function format(x: Tensor): string {
  const inside = noGrad(() =>
    scope(() => (native.device(x) === 'meta' ? '...' : native.numel(x) === 0 ? '[]' : contents(x.detach()))),
  );
  let text = PREFIX + inside;
  let column = text.length - text.lastIndexOf('\n') + 1;
  for (const suffix of suffixes(x)) {
    if (column + suffix.length + 2 > LINE_WIDTH) {
      text += `,\n${' '.repeat(PREFIX.length)}${suffix}`;
      column = PREFIX.length + suffix.length;
    } else {
      text += `, ${suffix}`;
      column += suffix.length + 2;
    }
  }
  return `${text})`;
}
