/** Values that nobody should pass, each with the text by which a report names it. */
import * as lib from '../../lib/index.js';
import type { DType, Tensor } from '../../lib/index.js';
import type { Draw } from './random.js';

/** A value and what it is. */
export interface Named {
  readonly text: string;
  readonly value: unknown;
}

/** What our hostile functions and getters throw; a call may let it through. */
export class Mischief extends Error {}

function fail(): never {
  throw new Mischief('thrown on purpose');
}

function cyclic(): unknown[] {
  const list: unknown[] = [1];
  list.push(list);
  return list;
}

function cyclicObject(): object {
  const o: Record<string, unknown> = { a: 1 };
  o['self'] = o;
  return o;
}

const throwingProxy = (target: object): object =>
  new Proxy(target, { get: fail, has: fail, ownKeys: fail, getPrototypeOf: fail, getOwnPropertyDescriptor: fail });

/** Makers, so that each use gets fresh objects. */
const plain: readonly (readonly [string, () => unknown])[] = [
  ['undefined', () => undefined],
  ['null', () => null],
  ['true', () => true],
  ['false', () => false],
  ['0', () => 0],
  ['-0', () => -0],
  ['1', () => 1],
  ['-1', () => -1],
  ['2.5', () => 2.5],
  ['NaN', () => NaN],
  ['Infinity', () => Infinity],
  ['-Infinity', () => -Infinity],
  ['1e30', () => 1e30],
  ['1e10', () => 1e10],
  ['2**36', () => 2 ** 36],
  ['-(2**31)-1', () => -(2 ** 31) - 1],
  ['2**53-1', () => Number.MAX_SAFE_INTEGER],
  ['-(2**53-1)', () => Number.MIN_SAFE_INTEGER],
  ['5e-324', () => 5e-324],
  ['1n', () => 1n],
  ['2n**63n-1n', () => 2n ** 63n - 1n],
  ['-(2n**63n)', () => -(2n ** 63n)],
  ['2n**64n', () => 2n ** 64n],
  ["''", () => ''],
  ["'x'", () => 'x'],
  ["'cpu'", () => 'cpu'],
  ["'cuda:99999999999999999999'", () => 'cuda:99999999999999999999'],
  ["'mps'", () => 'mps'],
  ["'float32'", () => 'float32'],
  ["'quint8'", () => 'quint8'],
  ["'\\0'", () => '\0'],
  ["'\\ud800'", () => '\ud800'],
  ["'__proto__'", () => '__proto__'],
  ["'constructor'", () => 'constructor'],
  ["'missing/file.pth'", () => 'missing/file.pth'],
  ["'.'", () => '.'],
  ["'y'.repeat(1e5)", () => 'y'.repeat(1e5)],
  ['Symbol()', () => Symbol('s')],
  ['Symbol.iterator', () => Symbol.iterator],
  ['{}', () => ({})],
  ['Object.create(null)', () => Object.create(null) as unknown],
  ['{unknown: 1}', () => ({ unknown: 1 })],
  ['{dtype: Symbol()}', () => ({ dtype: Symbol('d') })],
  ['{dtype: "int8"}', () => ({ dtype: 'int8' })],
  ['{device: "meta"}', () => ({ device: 'meta' })],
  ['{device: "cuda"}', () => ({ device: 'cuda' })],
  ['{length: -1}', () => ({ length: -1 })],
  ['{length: 2**53}', () => ({ length: 2 ** 53 })],
  ['{get dtype() {throw}}', () => Object.defineProperty({}, 'dtype', { get: fail, enumerable: true })],
  ['{get length() {throw}}', () => Object.defineProperty({}, 'length', { get: fail, enumerable: true })],
  ['{valueOf() {throw}}', () => ({ valueOf: fail, toString: fail, [Symbol.toPrimitive]: fail, toJSON: fail })],
  ['{then() {throw}}', () => ({ then: fail })],
  ['{[Symbol.iterator]() {throw}}', () => ({ [Symbol.iterator]: fail })],
  ['cyclic object', cyclicObject],
  ['throwing Proxy of {}', () => throwingProxy({})],
  ['throwing Proxy of []', () => throwingProxy([])],
  ['Proxy of []', () => new Proxy([1, 2], {})],
  ['revoked Proxy', () => { const { proxy, revoke } = Proxy.revocable([], {}); revoke(); return proxy; }], // prettier-ignore
  ['[]', () => []],
  ['[[]]', () => [[]]],
  ['[1, 2]', () => [1, 2]],
  ['[1, [2]]', () => [1, [2]]],
  ['[-1]', () => [-1]],
  ['[NaN]', () => [NaN]],
  ['[2**31, 2**31]', () => [2 ** 31, 2 ** 31]],
  ['[2**40]', () => [2 ** 40]],
  ['[2**53-1, 2**53-1]', () => [Number.MAX_SAFE_INTEGER, Number.MAX_SAFE_INTEGER]],
  ['[2n**62n]', () => [2n ** 62n]],
  ['[null]', () => [null]],
  ['[undefined]', () => [undefined]],
  ["['a']", () => ['a']],
  ['[Symbol()]', () => [Symbol('s')]],
  ['[{}]', () => [{}]],
  // Longer ones JavaScript itself walks through for minutes; see length.test.ts for what need not walk.
  ['new Array(1e5)', () => new Array<unknown>(1e5)],
  ['Array(200).fill(1)', () => Array<number>(200).fill(1)],
  ['[, 1]', () => { const list: number[] = []; list[1] = 1; return list; }], // prettier-ignore
  ['cyclic array', cyclic],
  ['cyclic array, direct', () => { const list: unknown[] = []; list.push(list); return list; }], // prettier-ignore
  ['array with throwing element', () => Object.defineProperty([1, 2], '0', { get: fail, enumerable: true })],
  ['new Map()', () => new Map()],
  ['new Map([[{}, 1]])', () => new Map([[{}, 1]])],
  ['new Set([1])', () => new Set([1])],
  ['new Date(NaN)', () => new Date(NaN)],
  ['/x/', () => /x/],
  ['new ArrayBuffer(8)', () => new ArrayBuffer(8)],
  ['new DataView', () => new DataView(new ArrayBuffer(8))],
  ['new SharedArrayBuffer view', () => new Float32Array(new SharedArrayBuffer(16))],
  ['new Float32Array(4)', () => new Float32Array(4)],
  ['new Float32Array(0)', () => new Float32Array(0)],
  ['new BigInt64Array(2)', () => new BigInt64Array(2)],
  ['new BigUint64Array(2)', () => new BigUint64Array(2)],
  ['new Uint8ClampedArray(2)', () => new Uint8ClampedArray(2)],
  ['detached Float32Array', () => { const a = new Float32Array(4); structuredClone(a, { transfer: [a.buffer] }); return a; }], // prettier-ignore
  ['() => undefined', () => () => undefined],
  ['() => 1', () => () => 1],
  ['(x) => x', () => (x: unknown) => x],
  ['() => {throw}', () => fail],
  ['async () => {}', () => async () => Promise.resolve()],
  ['async () => {throw}', () => async () => Promise.reject(new Mischief('rejected on purpose'))],
  ['function*', () => function* () { yield 1; }], // prettier-ignore
  ['class', () => class Odd extends Map {}],
  ['class that throws', () => class Odd extends Map { override readonly size = fail(); }], // prettier-ignore
  ['Promise', () => Promise.resolve(1)],
  ['new Proxy(function)', () => new Proxy(() => 1, { apply: fail, construct: fail })],
  ['globalThis', () => globalThis],
  ['new AbortController().signal', () => new AbortController().signal],
];

const dtypes: readonly DType[] = lib.dtypes;

function shapeOf(draw: Draw): number[] {
  if (draw.chance(0.3)) return draw.of([[2, 3], [2, 3, 4], [1, 3, 8, 8], [4]]);
  return draw.list(5, () => draw.of([0, 1, 1, 2, 3, 4, 7]));
}

/** A tensor of some dtype and kind, mostly valid. */
export function someTensor(draw: Draw, like?: { shape: number[]; dtype: DType }): Named {
  const shape = like && draw.chance(0.7) ? like.shape : shapeOf(draw);
  const dtype = like && draw.chance(0.8) ? like.dtype : draw.chance(0.5) ? 'float32' : draw.of(dtypes);
  const base = `${dtype} [${shape.join(', ')}]`;
  const device = draw.chance(0.06) ? 'meta' : 'cpu';
  const fresh = (): Tensor => {
    if (device === 'meta') return lib.zeros(shape, { dtype, device });
    if (lib.isFloatingPoint(dtype)) return lib.randn(shape, { dtype: 'float32' }).to(dtype);
    return dtype.startsWith('complex') ? lib.ones(shape, { dtype }) : lib.randint(0, 2, shape).to(dtype);
  };
  const kinds: readonly (readonly [number, string, () => unknown])[] = [
    [60, `${device} tensor ${base}`, fresh],
    [5, `leaf ${base}`, () => (lib.isFloatingPoint(dtype) ? fresh().requiresGrad_() : fresh())],
    [3, `computed ${base}`, () => (lib.isFloatingPoint(dtype) ? fresh().requiresGrad_().mul(2) : fresh())],
    [5, `transposed ${base}`, () => (shape.length > 1 ? fresh().transpose(0, -1) : fresh())],
    [4, `expanded ${base}`, () => lib.ones([1], { dtype }).expand(shape.length > 0 ? shape : [2])],
    [3, `strided ${base}`, () => (shape.length > 0 ? fresh().slice(0, 0, null, 2) : fresh())],
    [3, `${base} of wild values`, () => fresh().mul(1e30).to(dtype)],
    [2, `${base} of NaN`, () => (lib.isFloatingPoint(dtype) ? lib.full(shape, NaN, { dtype }) : fresh())],
    [3, `int64 [${shape.join(', ')}] of large indices`, () => lib.full(shape, draw.of([-1, 5, 2 ** 31, -(2 ** 40)]), { dtype: 'int64' })], // prettier-ignore
    [4, `freed ${base}`, () => { const t = fresh(); t.dispose(); return t; }], // prettier-ignore
    [2, `inference tensor ${base}`, () => lib.inferenceMode(fresh)],
    [2, `sparse ${base}`, () => (shape.length > 0 ? fresh().toSparse() : fresh())],
    [1, `csr ${base}`, () => lib.ones([2, 3]).toSparseCsr()],
    [1, 'new Tensor()', () => new lib.Tensor()],
    [1, 'Object.create(Tensor.prototype)', () => Object.create(lib.Tensor.prototype) as unknown],
    [1, `Proxy of tensor ${base}`, () => new Proxy(fresh(), {})],
    [1, `Parameter ${base}`, () => (lib.isFloatingPoint(dtype) ? new lib.Parameter(fresh()) : fresh())],
    [
      1,
      `quantized [${shape.join(', ')}]`,
      () => lib.aten.quantizePerTensor(lib.zeros(shape), 0.1, 0, 'quint8' as DType),
    ],
  ];
  let left = draw.below(kinds.reduce((sum, [weight]) => sum + weight, 0));
  for (const [weight, text, make] of kinds) {
    left -= weight;
    if (left >= 0) continue;
    try {
      return { text, value: make() };
    } catch {
      break; // LibTorch has no such tensor
    }
  }
  return { text: `cpu tensor ${base}`, value: lib.zeros(shape, { dtype }) };
}

/** How many values there are that are no tensors, and the one of a number. */
export const plainCount = plain.length;
export function plainValue(index: number): Named {
  const [text, make] = plain[index % plain.length]!;
  return { text, value: make() };
}

/** Anything at all. */
export function anything(draw: Draw): Named {
  if (draw.chance(0.2)) return someTensor(draw);
  if (draw.chance(0.05)) {
    const items = draw.list(3, () => someTensor(draw));
    return { text: `[${items.map((t) => t.text).join(', ')}]`, value: items.map((t) => t.value) };
  }
  const [text, make] = draw.of(plain);
  return { text, value: make() };
}
