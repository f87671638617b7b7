/** Arguments for an operator that fit its schema in type and seldom in anything else. */
import * as lib from '../../lib/index.js';
import type { DType } from '../../lib/index.js';
import { anything, someTensor, type Named } from './hostile.js';
import type { Draw } from './random.js';
import type { Operator } from './targets.js';

const dtypes: readonly DType[] = lib.dtypes;
const wildInts: readonly (number | bigint)[] = [
  -1, -2, -7, 100, -(2 ** 31), 2 ** 36, 2 ** 40, Number.MAX_SAFE_INTEGER, 2n ** 63n - 1n, -(2n ** 63n), 2n ** 62n,
]; // prettier-ignore
const strings = [
  '',
  'mean',
  'sum',
  'none',
  'reflect',
  'constant',
  'linear',
  'ij',
  'fro',
  'nuc',
  'right',
  'amax',
  'a,a->a',
  'i...j',
  '\0',
];
const layouts = ['strided', 'sparse_coo', 'sparse_csr', 'sparse_bsc', 'mkldnn'];
const formats = ['contiguous_format', 'channels_last', 'channels_last_3d', 'preserve_format'];

const named = (value: unknown): Named => ({
  value,
  text: typeof value === 'bigint' ? `${value}n` : typeof value === 'number' ? String(value) : JSON.stringify(value),
});

const integer = (draw: Draw): number | bigint =>
  draw.chance(0.15) ? draw.of(wildInts) : draw.of([0, 1, 1, 2, 2, 3, 4]);
const real = (draw: Draw): number =>
  draw.chance(0.3) ? draw.of([NaN, Infinity, -Infinity, 1e30, -1e30, 5e-324, -1]) : draw.of([0, 0.1, 0.5, 1, 2]);

function ofType(draw: Draw, type: string, like: { shape: number[]; dtype: DType }): Named {
  if (draw.chance(0.04)) return anything(draw);
  const optional = type.endsWith('?');
  if (optional && draw.chance(0.35)) return named(null);
  const plain = optional ? type.slice(0, -1) : type;
  if (/^Optional\[/.test(plain)) return draw.chance(0.3) ? named(null) : ofType(draw, plain.slice(9, -1), like);
  const list = /^(?:List\[)?(\w+\??)(?:\[(\d*)\]|\])$/.exec(plain);
  if (list) {
    const [, element = '', length] = list;
    if (/^(Sym)?[Ii]nt$/.test(element)) {
      const count = length && draw.chance(0.7) ? Number(length) : draw.below(5);
      if (draw.chance(0.15)) return named([...like.shape]);
      const items = Array.from({ length: count }, () => integer(draw));
      return { value: items, text: `[${items.map((i) => named(i).text).join(', ')}]` };
    }
    const items = draw.list(4, () => ofType(draw, element, like));
    return { value: items.map((i) => i.value), text: `[${items.map((i) => i.text).join('; ')}]` };
  }
  switch (plain) {
    case 'Tensor':
      return someTensor(draw, like);
    case 'int':
    case 'SymInt':
      return named(integer(draw));
    case 'float':
    case 'SymFloat':
      return named(real(draw));
    case 'Scalar':
    case 'number':
      return named(draw.chance(0.5) ? integer(draw) : real(draw));
    case 'bool':
      return named(draw.chance(0.5));
    case 'str':
      return named(draw.of(strings));
    case 'ScalarType':
      return named(draw.of(dtypes));
    case 'Layout':
      return named(draw.of(layouts));
    case 'MemoryFormat':
      return named(draw.of(formats));
    case 'Device':
      return named(draw.of(['cpu', 'cpu', 'meta', 'cuda', 'mps', 'xla']));
    default:
      return optional ? named(null) : anything(draw);
  }
}

/** Positional arguments, and keyword-only ones in a last object. */
export function argumentsFor(draw: Draw, operator: Operator): { args: unknown[]; text: string } {
  const like = { shape: draw.of([[2, 3], [2, 3, 4], [1, 4, 6, 6], [4], [], [0], [3, 3], [1, 2, 3, 4, 5]]), dtype: draw.of(['float32', 'float32', 'float64', 'int64', 'bool', 'complex64', 'bfloat16'] as DType[]) }; // prettier-ignore
  const args: unknown[] = [];
  const texts: string[] = [];
  const options: Record<string, unknown> = {};
  let count = 0;
  for (const { name, type, kwargOnly } of operator.arguments) {
    if (kwargOnly && draw.chance(0.5) && /\?$|Optional/.test(type)) continue;
    const { value, text } = ofType(draw, type, like);
    if (kwargOnly) {
      options[name] = value;
      count++;
      texts.push(`${name}: ${text}`);
    } else {
      args.push(value);
      texts.push(text);
    }
  }
  if (count > 0) args.push(options);
  return { args, text: texts.join(', ') };
}
