/** The two ways of deformable convolution v3: fused, and composed of ATen operators. */
import { describe, expect, test } from 'vitest';
import { composedDcnv3, dcnv3, type Dcnv3Options } from '../../lib/nn/index.js';
import { grad, manualSeed, rand, randn, type Tensor, withDefaults, zeros } from '../../lib/tensor/index.js';

interface Case {
  readonly name: string;
  readonly x: readonly [height: number, width: number, channels: number];
  readonly out: readonly [height: number, width: number];
  readonly points: number;
  readonly options: Dcnv3Options;
  /** Offsets lie within plus and minus that. */
  readonly reach?: number;
}

const cases: Case[] = [
  { name: '3x3', x: [6, 7, 6], out: [6, 7], points: 9, options: { padding: 1, groups: 2 } },
  { name: 'stride', x: [7, 6, 4], out: [4, 3], points: 9, options: { padding: 1, stride: 2, offsetScale: 2 } },
  { name: 'oblong', x: [8, 9, 6], out: [3, 5], points: 15, options: { kernel: [3, 5], stride: [2, 1], groups: 3 } },
  {
    name: 'even',
    x: [5, 5, 4],
    out: [4, 4],
    points: 4,
    options: { kernel: 2, dilation: 3, padding: 1, offsetScale: 0.5 },
  },
  { name: 'no center', x: [5, 6, 4], out: [5, 6], points: 8, options: { padding: 1, removeCenter: true, groups: 2 } },
  { name: 'far', x: [5, 6, 4], out: [5, 6], points: 9, options: { padding: 1, groups: 2 }, reach: 12 },
  { name: 'integer positions', x: [5, 6, 4], out: [5, 6], points: 9, options: { padding: 1, groups: 2 }, reach: 0 },
];

function tensors({ x, out, points, options: { groups = 1 }, reach = 1.5 }: Case): [Tensor, Tensor, Tensor] {
  manualSeed(5);
  const kind = { dtype: 'float64', requiresGrad: true } as const;
  const offset = rand([2, ...out, groups * points * 2], { dtype: 'float64' })
    .sub(0.5)
    .mul(2 * reach);
  return [randn([2, ...x], kind), offset.requiresGrad_(), randn([2, ...out, groups * points], kind)];
}

describe.each(cases)('dcnv3, $name', (c) => {
  test('gives the same output and gradients fused and composed', () => {
    const [x, offset, mask] = tensors(c);
    const [a, b] = [dcnv3(x, offset, mask, c.options), composedDcnv3(x, offset, mask, c.options)];
    expect(a.shape).toEqual([2, ...c.out, c.x[2]]);
    expect(Number(a.norm().item())).toBeGreaterThan(0);
    expect(a.allclose(b, 1e-10, 1e-10)).toBe(true);
    const cotangent = randn(a.shape, { dtype: 'float64' });
    const [one, other] = [a, b].map((y) => grad(y, [x, offset, mask], { gradOutputs: cotangent }));
    one?.forEach((gradient, i) => {
      expect(gradient?.allclose(other?.[i] as Tensor, 1e-9, 1e-10)).toBe(true);
    });
  });
});

describe('dcnv3', () => {
  test('sums in float32 and answers in the dtype of its input', () => {
    const [x, offset, mask] = tensors(cases[0] as Case);
    const half = dcnv3(x.to('bfloat16'), offset, mask, { padding: 1, groups: 2 });
    expect(half.dtype).toBe('bfloat16');
    const exact = dcnv3(x, offset, mask, { padding: 1, groups: 2 });
    expect(Number(half.to('float64').sub(exact).norm().item()) / Number(exact.norm().item())).toBeLessThan(0.01);
  });

  test('has shapes on the meta device', () => {
    withDefaults({ device: 'meta' }, () => {
      const y = dcnv3(zeros([2, 5, 6, 4]), zeros([2, 5, 6, 36]), zeros([2, 5, 6, 18]), { padding: 1, groups: 2 });
      expect(y.shape).toEqual([2, 5, 6, 4]);
    });
  });

  test('refuses what does not fit, saying what would', () => {
    const x = zeros([1, 5, 5, 4]);
    expect(() => dcnv3(x, zeros([1, 5, 5, 18]), zeros([1, 5, 5, 8]), { padding: 1 })).toThrow(
      /mask must be \[1, 5, 5, 9\], got \[1, 5, 5, 8\]/,
    );
    expect(() => dcnv3(x, zeros([1]), zeros([1]), { groups: 3 })).toThrow(/4 channels do not divide into 3 groups/);
    expect(() => dcnv3(x, zeros([1]), zeros([1]), { kernel: 2, removeCenter: true })).toThrow(/odd size, got 2 x 2/);
    expect(() => dcnv3(zeros([1, 5, 5]), zeros([1]), zeros([1]))).toThrow(/must be \[N, H, W, C\]/);
    expect(() => dcnv3(x, zeros([1]), zeros([1]), { stride: 0 })).toThrow(/positive integers/);
  });
});
