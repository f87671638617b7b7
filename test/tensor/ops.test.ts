import fc from 'fast-check';
import { describe, expect, expectTypeOf, test } from 'vitest';
import { arange, aten, call, ones, operator, tensor, Tensor, TorchError, zeros } from '../../lib/tensor/index.js';

// Calls that TypeScript would refuse.
const loose = (fn: unknown) => fn as (...args: unknown[]) => unknown;
const method = (receiver: unknown, name: keyof Tensor, ...args: unknown[]) =>
  loose(Reflect.get(Tensor.prototype, name)).apply(receiver, args);

describe('methods and functions', () => {
  const x = tensor([[1, 2], [3, 4]]); // prettier-ignore

  test('arithmetic broadcasts and promotes like PyTorch', () => {
    expect(x.add(tensor([10, 20])).tolist()).toEqual([[11, 22], [13, 24]]); // prettier-ignore
    expect(x.mul(2).sub(1).tolist()).toEqual([[1, 3], [5, 7]]); // prettier-ignore
    expect(x.add(x, { alpha: 10 }).index(0, 0).item()).toBe(11);
    expect(arange(3).div(2).dtype).toBe('float32');
    expect(arange(3).mul(2).dtype).toBe('int64');
    expect(arange(3).add(0.5).dtype).toBe('float32');
    expect(arange(3).add(ones([3], { dtype: 'float64' })).dtype).toBe('float64');
    expect(x.gt(2).dtype).toBe('bool');
    expect(tensor([7n]).remainder(4).item()).toBe(3);
    expect(x.addcmul(x, x, { value: 2 }).index(1, 1).item()).toBe(36);
  });

  test('reductions', () => {
    expect(x.sum().item()).toBe(10);
    expect(x.sum([0], true).tolist()).toEqual([[4, 6]]);
    expect(x.sum(1, false, { dtype: 'float64' }).dtype).toBe('float64');
    expect(x.mean().item()).toBe(2.5);
    expect(x.std([0], { correction: 0 }).tolist()).toEqual([1, 1]);
    expect(x.argmax().item()).toBe(3);
    expect(x.argmax(0).tolist()).toEqual([1, 1]);
    const [values, indices] = x.max(1);
    expect([values.tolist(), indices.tolist()]).toEqual([[2, 4], [1, 1]]); // prettier-ignore
    expect(x.all().item()).toBe(true);
    expect(x.norm(2, [1]).shape).toEqual([2]);
    expect(x.cumsum(0).tolist()).toEqual([[1, 2], [4, 6]]); // prettier-ignore
    expect(aten.sum(x, [1], true, { dtype: 'float64' }).tolist()).toEqual([[3], [7]]);
  });

  test('views share memory, reshape copies where it must', () => {
    const y = zeros([2, 3]);
    const view = y.view([3, 2]).t().unsqueeze(0);
    expect([view.shape, view.stride(), view.isContiguous()]).toEqual([[1, 2, 3], [2, 1, 2], false]);
    view.fill_(1);
    expect(y.sum().item()).toBe(6);
    expect(view.sharesStorage(y)).toBe(true);
    expect(y.t().reshape([6]).sharesStorage(y)).toBe(false);
    expect(y.expand([4, 2, 3]).shape).toEqual([4, 2, 3]);
    expect(() => y.t().view([6])).toThrow(/aten::view.*view size is not compatible/s);
    expect(y.permute([1, 0]).contiguous().stride()).toEqual([2, 1]);
    expect(y.split(1).map((t) => t.shape)).toEqual([[1, 3], [1, 3]]); // prettier-ignore
    expect(y.chunk(2, 1).length).toBe(2);
  });

  test('in-place operators return the same object', () => {
    const y = ones([2]);
    expect(y.add_(1)).toBe(y);
    expect(aten.mul_(y, 3)).toBe(y);
    const out = zeros([2]);
    expect(aten.add(y, y, { out })).toBe(out);
    expect(out.tolist()).toEqual([12, 12]);
  });

  test('lists, optional arguments, several results', () => {
    expect(aten.cat([x, x], 1).shape).toEqual([2, 4]);
    expect(aten.stack([x, x]).shape).toEqual([2, 2, 2]);
    expect(aten.einsum('ij,jk->ik', [x, x]).equal(x.mm(x))).toBe(true);
    const input = ones([1, 1, 4, 4]);
    expect(aten.conv2d(input, ones([2, 1, 3, 3]), null, [1, 1], 1).shape).toEqual([1, 2, 4, 4]);
    expect(aten.conv2d(input, ones([2, 1, 3, 3]), ones([2]), 2, [1, 1], [1, 1], 1).shape).toEqual([1, 2, 2, 2]);
    const [q, r] = aten.linalgQr(x);
    expect(q.mm(r).allclose(x, 1e-4, 1e-5)).toBe(true);
    expect(aten.layerNorm(x, [2], null, undefined, 1e-5).shape).toEqual([2, 2]);
    expect(aten.upsampleBilinear2d(input, [8, 8], false).shape).toEqual([1, 1, 8, 8]);
    expect(aten.topk(x.flatten(), 2)[0].tolist()).toEqual([4, 3]);
    expect(x.maskedFill(x.gt(2), 0).sum().item()).toBe(3);
    expect(x.where(x.gt(2), 0).sum().item()).toBe(7);
    expect(
      x
        .where(x.gt(2), zeros([2, 2]))
        .sum()
        .item(),
    ).toBe(7);
  });

  test('names: digits, underscores, capitals', () => {
    expect(aten.atleast1d(tensor(1)).shape).toEqual([1]);
    expect(tensor(1).atleast2d().shape).toEqual([1, 1]);
    expect(aten._softmax(x, 1, false).sum().item()).toBeCloseTo(2);
    expect(x.logSoftmax(1).exp().sum().item()).toBeCloseTo(2);
    expect(aten.fftFft(x).dtype).toBe('complex64');
  });

  test('an operator becomes a plain property at first use', () => {
    expect(Object.hasOwn(aten, 'cosh')).toBe(false);
    const { cosh } = aten;
    expect(Object.hasOwn(aten, 'cosh')).toBe(true);
    expect(aten.cosh).toBe(cosh);
    expect('cosh' in aten).toBe(true);
    const before = Object.getOwnPropertyDescriptor(Tensor.prototype, 'sinh');
    expect(before).toHaveProperty('get');
    expect(x.sinh().shape).toEqual([2, 2]);
    expect(Object.getOwnPropertyDescriptor(Tensor.prototype, 'sinh')?.value).toBeTypeOf('function');
    expect(Object.keys(x)).toEqual([]);
  });

  test('unknown names are undefined, so tensors and aten are no thenables', async () => {
    expect((aten as unknown as Record<string, unknown>).noSuchOperator).toBeUndefined();
    expect('noSuchOperator' in aten).toBe(false);
    expect(await Promise.resolve(x)).toBe(x);
    expect(await Promise.resolve(aten)).toBe(aten);
  });

  test('call by full name', () => {
    expect(call('aten::add.Tensor', x, x, { alpha: 2 }).index(0, 0).item()).toBe(3);
    expect(call('aten::add', x, 1).index(0, 0).item()).toBe(2);
    expect(call('aten::relu.', x).equal(x)).toBe(true);
    expect(call<[Tensor, Tensor]>('aten::max.dim', x, 0)[1].tolist()).toEqual([1, 1]);
    expect(operator('aten::relu')).toBe(operator('aten::relu'));
    expect(() => call('aten::nothing')).toThrow(/LibTorch has no operator 'aten::nothing'/);
    expect(() => call('add')).toThrow(/must look like 'aten::add'/);
    expect(() => call('aten::add.Nothing', x, x)).toThrow(TypeError);
    expect(() => loose(call)(5)).toThrow(TypeError);
  });

  test('the types say what the schemas say', () => {
    expectTypeOf(x.add(1)).toEqualTypeOf<Tensor>();
    expectTypeOf(x.add(x)).toEqualTypeOf<Tensor>();
    expectTypeOf(x.max(1)).toEqualTypeOf<[values: Tensor, indices: Tensor]>();
    expectTypeOf(x.equal(x)).toEqualTypeOf<boolean>();
    // @ts-expect-error a string is no tensor
    expect(() => x.add('a')).toThrow(TypeError);
    // @ts-expect-error there is no such option
    expect(() => x.add(x, { beta: 1 })).toThrow(TypeError);
  });
});

describe('wrong arguments', () => {
  const x = ones([2, 3]);

  test.each<[string, () => unknown, RegExp]>([
    ['nothing for a tensor', () => loose(aten.relu)(), /aten::relu.*self.*expected.*Tensor|aten::relu/],
    ['an object for a tensor', () => loose(aten.relu)({}), /aten::relu/],
    ['an array for a tensor', () => loose(aten.mm)(x, [1, 2]), /aten::mm/],
    ['a number in a list of tensors', () => loose(aten.cat)([x, 5]), /aten::cat.*Tensor/],
    ['no list', () => loose(aten.cat)(x), /aten::cat/],
    ['fraction for an integer', () => x.sum(0.5), /aten::sum/],
    ['NaN for an integer', () => x.select(NaN, 0), /aten::select/],
    ['string for a size', () => method(x, 'view', ['6']), /aten::view/],
    ['unknown dtype', () => method(x, 'softmax', 1, 'float31'), /aten::softmax/],
    ['too many arguments', () => method(x, 'relu', 1, 2, 3), /aten::relu/],
    ['an unknown option', () => method(x, 'clone', { nothing: 1 }), /aten::clone/],
    ['a foreign receiver', () => method({}, 'relu'), /aten::relu/],
    ['no receiver', () => method(undefined, 'relu'), /aten::relu/],
  ])('%s', (_, act, message) => {
    expect(act).toThrow(TypeError);
    expect(act).toThrow(message);
  });

  test('an empty Tensor says so wherever it is used', () => {
    const hollow = new Tensor();
    for (const use of [
      () => hollow.add(1),
      () => x.add(hollow),
      () => hollow.shape,
      () => hollow.item(),
      () => hollow.to('float64'),
      () => hollow.index(0),
      () => hollow.toString(),
      () => hollow.requiresGrad,
      () => hollow.backward(),
    ]) {
      expect(use).toThrow(TypeError);
    }
  });

  test('LibTorch’s refusals name operator, shapes and dtypes, and nothing of its insides', () => {
    let error: unknown;
    try {
      x.mm(x);
    } catch (e) {
      error = e;
    }
    expect(error).toBeInstanceOf(TorchError);
    const { message, operator: name, stack } = error as TorchError;
    expect(name).toBe('aten::mm');
    expect(message).toMatch(/^aten::mm: .*\(2x3 and 2x3\) \[self: float32 \[2, 3\], mat2: float32 \[2, 3\]\]$/);
    expect(stack).toContain('ops.test.ts');
    expect(message).not.toMatch(/Exception raised|frame #|registered at/);
  });

  test.each<[string, () => unknown]>([
    ['shapes that do not broadcast', () => x.add(ones([4]))],
    ['a dimension that is not there', () => x.sum(5)],
    ['a dtype without a kernel', () => tensor([1, 2]).bitwiseAnd(tensor([1, 2]))],
    [
      'a huge expansion made real',
      () =>
        ones([1])
          .expand([2 ** 50])
          .contiguous(),
    ],
    ['an index out of range', () => aten.embedding(x, tensor([9n]))],
    ['meta elements', () => zeros([1], { device: 'meta' }).item()],
    ['a missing device', () => zeros([1]).to('cuda:99')],
  ])('%s: TorchError', (_, act) => {
    expect(act).toThrow(TorchError);
  });
});

describe('Tensor members', () => {
  const x = arange(6).reshape([2, 3]);

  test('shape, size, stride, ndim, numel', () => {
    expect([x.shape, x.size(), x.size(-1), x.stride(0), x.stride(), x.ndim, x.dim(), x.numel()]).toEqual([
      [2, 3], [2, 3], 3, 3, [3, 1], 2, 2, 6,
    ]); // prettier-ignore
    expect(() => x.size(2)).toThrow(/size: dimension 2 is outside of a tensor of 2 dimensions/);
    expect(() => x.size(0.5)).toThrow(RangeError);
    expect(x.isContiguous()).toBe(true);
    expect(x.isCuda).toBe(false);
  });

  test('to', () => {
    expect(x.to('float64').dtype).toBe('float64');
    expect(x.to('meta').device).toBe('meta');
    expect(x.to(zeros([1], { dtype: 'int8' })).dtype).toBe('int8');
    expect(x.to({ dtype: 'bool' }).tolist()).toEqual([[false, true, true], [true, true, true]]); // prettier-ignore
    expect(x.to('int64').sharesStorage(x)).toBe(true);
    expect(x.to({ copy: true }).sharesStorage(x)).toBe(false);
    const map = ones([1, 2, 3, 4]).to({ memoryFormat: 'channels_last' });
    expect(map.isContiguous('channels_last')).toBe(true);
    expect(
      [x.float(), x.double(), x.half(), x.bfloat16(), x.int(), x.long(), x.bool(), x.cpu()].map((t) => t.dtype),
    ).toEqual(['float32', 'float64', 'float16', 'bfloat16', 'int32', 'int64', 'bool', 'int64']);
    expect(() => x.to('float31' as 'float32')).toThrow(/to: expected a dtype, a device.*'float31'/);
    expect(() => x.to({ dtyp: 'int8' } as object)).toThrow(/unknown option 'dtyp'/);
    expect(() => method(x, 'to', 5)).toThrow(TypeError);
    expect(() => x.to('cudax' as 'cuda')).toThrow(TypeError);
  });

  test('item', () => {
    expect(tensor(1.5).item()).toBe(1.5);
    expect(tensor(2n ** 60n).item()).toBe(2n ** 60n);
    expect(tensor(5n).item()).toBe(5);
    expect(tensor(true).item()).toBe(true);
    expect(tensor([[2]], { dtype: 'float16' }).item()).toBe(2);
    expect(() => x.item()).toThrow(TorchError);
  });

  test('setData replaces contents, dtype and shape', () => {
    const y = zeros([2]);
    expect(y.setData(ones([3], { dtype: 'float64' }))).toBe(y);
    expect([y.shape, y.dtype, y.tolist()]).toEqual([[3], 'float64', [1, 1, 1]]);
  });

  test('data is a copy', () => {
    const data = x.data() as BigInt64Array;
    data[0] = 99n;
    expect(x.index(0, 0).item()).toBe(0);
    expect(x.t().data()).toEqual(BigInt64Array.of(0n, 3n, 1n, 4n, 2n, 5n));
  });
});

// ---- against plain JavaScript ---------------------------------------------------------------------------------

const dims = fc.array(fc.integer({ min: 1, max: 3 }), { maxLength: 4 });

test('broadcasting agrees with its definition', () => {
  const pairs = fc.tuple(dims, dims, fc.integer({ min: 0, max: 15 }));
  fc.assert(
    fc.property(pairs, ([a, b, ones_]) => {
      // Make most pairs fit: b takes a's sizes from the right, with some replaced by 1.
      const fitting = b.map((size, i) => {
        const other = a[a.length - b.length + i];
        return other === undefined ? size : (ones_ >> i) & 1 ? 1 : other;
      });
      const numel = (s: number[]) => s.reduce((p, q) => p * q, 1);
      const x = arange(numel(a)).reshape(a);
      const y = arange(numel(fitting)).reshape(fitting).mul(100);
      const ndim = Math.max(a.length, fitting.length);
      const at = (s: number[], i: number) => s[s.length - ndim + i] ?? 1;
      const shape = Array.from({ length: ndim }, (_, i) => Math.max(at(a, i), at(fitting, i)));
      const z = x.add(y);
      expect(z.shape).toEqual(shape);
      const expected = Array.from({ length: numel(shape) }, (_, flat) => {
        const offset = (s: number[]) => {
          let [rest, result, stride] = [flat, 0, 1];
          for (let i = ndim - 1; i >= 0; i--) {
            const position = rest % (shape[i] as number);
            rest = Math.floor(rest / (shape[i] as number));
            if (at(s, i) > 1) result += position * stride;
            stride *= at(s, i);
          }
          return result;
        };
        return offset(a) + 100 * offset(fitting);
      });
      expect(z.flatten().tolist()).toEqual(expected);
    }),
    { numRuns: 300 },
  );
});

test('permute, reshape and back leave every element in its place', () => {
  fc.assert(
    fc.property(dims, fc.infiniteStream(fc.integer({ min: 0, max: 9 })), (shape, order) => {
      const keys = shape.map((_, i) => [order.next().value as number, i] as const);
      const permutation = keys.sort((p, q) => p[0] - q[0] || p[1] - q[1]).map(([, i]) => i);
      const x = arange(shape.reduce((p, q) => p * q, 1)).reshape(shape);
      const y = x.permute(permutation);
      expect(y.shape).toEqual(permutation.map((i) => shape[i]));
      const inverse = permutation.map((_, i) => permutation.indexOf(i));
      expect(y.contiguous().permute(inverse).equal(x)).toBe(true);
      expect(tensor(y.tolist() as number[], { dtype: 'int64' }).equal(y)).toBe(true);
    }),
    { numRuns: 200 },
  );
});
