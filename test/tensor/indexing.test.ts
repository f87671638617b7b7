import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { arange, slice, tensor, zeros } from '../../lib/tensor/index.js';
import type { Index, Tensor } from '../../lib/tensor/index.js';

const loose = (fn: unknown) => fn as (...args: unknown[]) => unknown;
const cube = () => arange(24).reshape([2, 3, 4]);
// prettier-ignore
const reference = [
  [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]],
  [[12, 13, 14, 15], [16, 17, 18, 19], [20, 21, 22, 23]],
];

describe('index', () => {
  test('positions remove dimensions, from the end when negative', () => {
    const x = cube();
    expect(x.index(1, 2, 3).item()).toBe(23);
    expect(x.index(-1).tolist()).toEqual(reference[1]);
    expect(x.index(0, -2).tolist()).toEqual(reference[0]?.[1]);
  });

  test('slices are views', () => {
    const x = cube();
    const view = x.index(slice(), slice(1), slice(0, 4, 2));
    expect(view.tolist()).toEqual(reference.map((m) => m.slice(1).map((r) => [r[0], r[2]])));
    view.fill_(-1);
    expect(x.index(1, 2).tolist()).toEqual([-1, 21, -1, 23]);
    expect(cube().index(slice(-1), '...', slice(-2, 100)).tolist()).toEqual([reference[1]?.map((r) => r.slice(2))]);
    expect(x.index(slice(5)).shape).toEqual([0, 3, 4]);
  });

  test("'...' and null", () => {
    const x = cube();
    expect(x.index('...', 0).tolist()).toEqual(reference.map((m) => m.map((r) => r[0])));
    expect(x.index(null, 0, '...', null).shape).toEqual([1, 3, 4, 1]);
    expect(x.index('...').shape).toEqual([2, 3, 4]);
    expect(x.index().equal(x)).toBe(true);
  });

  test('tensors and arrays of positions select and broadcast', () => {
    const x = cube();
    expect(x.index([1, 0, -1]).shape).toEqual([3, 3, 4]);
    expect(x.index([0, 1], [2, 0], [3, 3]).tolist()).toEqual([11, 15]);
    expect(x.index(slice(), [[0, 1], [2, 0]]).shape).toEqual([2, 2, 2, 4]); // prettier-ignore
    expect(x.index(tensor([1n])).tolist()).toEqual([reference[1]]);
    expect(x.index(0, [1, 2], slice(0, 1)).tolist()).toEqual([[4], [8]]);
    // Separated index tensors put their dimension first.
    expect(x.index([0, 1], slice(), [0, 1]).shape).toEqual([2, 3]);
    expect(x.index(tensor(1n), 0, 0).item()).toBe(12);
  });

  test('masks', () => {
    const x = cube();
    expect(x.index(x.gt(20)).tolist()).toEqual([21, 22, 23]);
    expect(x.index([true, false]).tolist()).toEqual([reference[0]]);
    const rows = tensor([[true, false, true], [false, false, true]]); // prettier-ignore
    expect(x.index(rows).tolist()).toEqual([reference[0]?.[0], reference[0]?.[2], reference[1]?.[2]]);
    expect(x.index(rows, 1).tolist()).toEqual([1, 9, 21]);
    expect(x.index(true).shape).toEqual([1, 2, 3, 4]);
    expect(x.index(false).shape).toEqual([0, 2, 3, 4]);
  });

  test('gradients flow back to the selected elements', () => {
    const x = zeros([3, 2], { requiresGrad: true });
    x.index([0, 0, 2], 1).sum().backward();
    expect(x.grad?.tolist()).toEqual([[0, 2], [0, 0], [0, 1]]); // prettier-ignore
  });

  test.each<[string, (x: Tensor) => unknown, ErrorConstructor, RegExp]>([
    ['negative steps', (x) => x.index(slice(null, null, -1)), RangeError, /step must be at least 1; got -1.*flip/],
    ['step 0', () => slice(0, 1, 0), RangeError, /step/],
    ['a fraction', (x) => x.index(0.5), RangeError, /index: position must be an integer; got 0\.5/],
    ['out of range', (x) => x.index(0, 3), RangeError, /position 3 is outside of dimension 0|3 elements/],
    ['too many', (x) => x.index(0, 0, 0, 0), RangeError, /4 indices for a tensor of 3 dimensions/],
    ['two ellipses', (x) => x.index('...', '...'), TypeError, /only once/],
    ['a string', (x) => loose(x.index.bind(x))('a'), TypeError, /index must be.*got 'a'/],
    ['undefined', (x) => loose(x.index.bind(x))(undefined), TypeError, /got undefined/],
    ['an object', (x) => loose(x.index.bind(x))({}), TypeError, /got an object/],
    ['fractions in a list', (x) => x.index([0.5]), RangeError, /position must be an integer/],
    ['positions outside in a list', (x) => x.index([7]), Error, /out of (range|bounds)/],
    ['ragged lists', (x) => x.index([[1], [1, 2]]), TypeError, /ragged/],
    ['a mask of another size', (x) => x.index([true, false, true]), Error, /mask/],
    ['slice of strings', () => loose(slice)('1'), TypeError, /slice: start must be an integer/],
  ])('%s: refused', (_, act, type, message) => {
    const x = cube();
    expect(() => act(x)).toThrow(type);
    expect(() => act(x)).toThrow(message);
  });
});

describe('setIndex_', () => {
  test('numbers, rows, broadcasting', () => {
    const x = zeros([2, 3]);
    expect(x.setIndex_([0, slice(1)], 5)).toBe(x);
    x.setIndex_([1], tensor([1, 2, 3]));
    expect(x.tolist()).toEqual([[0, 5, 5], [1, 2, 3]]); // prettier-ignore
    x.setIndex_(['...', 0], tensor([[7, 8]]));
    expect(x.tolist()).toEqual([[7, 5, 5], [8, 2, 3]]); // prettier-ignore
    x.setIndex_(
      [
        [0, 1],
        [2, 2],
      ],
      tensor([-1, -2]),
    );
    expect(x.index(slice(), 2).tolist()).toEqual([-1, -2]);
    x.setIndex_([x.lt(0)], 0);
    expect(x.index(slice(), 2).tolist()).toEqual([0, 0]);
    x.setIndex_([slice(), [0]], 1.5);
    expect(x.index(slice(), 0).tolist()).toEqual([1.5, 1.5]);
    x.setIndex_([], 2);
    expect(x.sum().item()).toBe(12);
  });

  test('values are converted to the dtype of the tensor', () => {
    const x = zeros([2], { dtype: 'int32' });
    x.setIndex_([[0]], tensor([3.7]));
    x.setIndex_([1], tensor(2.5));
    expect(x.tolist()).toEqual([3, 2]);
  });

  test('wrong values are refused', () => {
    const x = zeros([2, 3]);
    expect(() => loose(x.setIndex_.bind(x))([0], 'a')).toThrow(/setIndex_: value must be.*got 'a'/);
    expect(() => loose(x.setIndex_.bind(x))(0, 1)).toThrow(/indices must be an array/);
    expect(() => x.setIndex_([0], zeros([2]))).toThrow(/aten::copy_/);
    expect(() => x.setIndex_([5], 1)).toThrow(RangeError);
  });
});

// ---- against plain arrays --------------------------------------------------------------------------------------

type Rows = number[] | Rows[];

/** What `index` does with positions, slices, null and '...', on nested arrays. */
function plainIndex(data: Rows | number, ndim: number, indices: readonly Index[]): unknown {
  const [first, ...rest] = indices;
  if (indices.length === 0) return data;
  if (first === null) return [plainIndex(data, ndim, rest)];
  if (first === '...') {
    const left = ndim - rest.filter((i) => i !== null).length;
    const fill = Array.from({ length: left }, () => slice());
    return plainIndex(data, ndim, [...fill, ...rest]);
  }
  const rows = data as Rows[];
  if (typeof first === 'number') return plainIndex(rows.at(first) as Rows, ndim - 1, rest);
  const { start, end, step } = first as ReturnType<typeof slice>;
  return rows
    .slice(start ?? 0, end ?? undefined)
    .filter((_, i) => i % step === 0)
    .map((row) => plainIndex(row, ndim - 1, rest));
}

const shapes = fc.array(fc.integer({ min: 1, max: 4 }), { minLength: 1, maxLength: 4 });

const casesOf = shapes.chain((shape) => {
  const items = shape.map((size) =>
    fc.oneof(
      fc.integer({ min: -size, max: size - 1 }),
      fc
        .tuple(
          fc.option(fc.integer({ min: -size - 2, max: size + 2 })),
          fc.option(fc.integer({ min: -size - 2, max: size + 2 })),
          fc.integer({ min: 1, max: 3 }),
        )
        .map(([a, b, step]) => slice(a, b, step)),
    ),
  );
  return fc.record({
    shape: fc.constant(shape),
    items: fc.tuple(...items),
    taken: fc.integer({ min: 0, max: shape.length }),
    // Where to put null and '...', if at all.
    at: fc.option(fc.integer({ min: 0, max: shape.length })),
    dots: fc.boolean(),
  });
});

test('random positions and slices agree with nested arrays', () => {
  fc.assert(
    fc.property(casesOf, ({ shape, items, taken, at, dots }) => {
      const x = arange(shape.reduce((a, b) => a * b, 1)).reshape(shape);
      const indices: Index[] = (items as Index[]).slice(0, taken);
      if (at !== null) indices.splice(Math.min(at, indices.length), 0, null);
      if (dots) indices.push('...');
      expect(x.index(...indices).tolist()).toEqual(plainIndex(x.tolist() as Rows, shape.length, indices));
    }),
    { numRuns: 400 },
  );
});

test('random assignment touches exactly what index selects', () => {
  fc.assert(
    fc.property(casesOf, ({ shape, items, taken }) => {
      const n = shape.reduce((a, b) => a * b, 1);
      const x = arange(n).reshape(shape);
      const indices = (items as Index[]).slice(0, taken);
      const selected = new Set([x.index(...indices).tolist()].flat(9) as number[]);
      x.setIndex_(indices, -1);
      expect(x.flatten().tolist()).toEqual(Array.from({ length: n }, (_, i) => (selected.has(i) ? -1 : i)));
    }),
    { numRuns: 200 },
  );
});
