/** Deformable convolution v3 against a reference that follows its formula point by point. */
import { beforeEach, describe, expect, test } from 'vitest';
import {
  call,
  full,
  grad,
  manualSeed,
  ones,
  rand,
  randn,
  TorchError,
  zeros,
  type Tensor,
} from '../../lib/tensor/index.js';
import { gradcheck, relativeError } from '../support/gradcheck.js';

interface Case {
  readonly size: readonly [number, number];
  readonly groups: number;
  readonly depth: number;
  readonly kernel: readonly [number, number];
  readonly stride?: readonly [number, number];
  readonly padding?: readonly [number, number];
  readonly dilation?: readonly [number, number];
  readonly scale?: number;
  readonly removeCenter?: boolean;
}

const cases: Case[] = [
  { size: [5, 6], groups: 2, depth: 3, kernel: [3, 3], padding: [1, 1] },
  { size: [6, 5], groups: 1, depth: 17, kernel: [3, 3], padding: [1, 1], stride: [2, 2], scale: 2 },
  { size: [6, 7], groups: 3, depth: 2, kernel: [3, 5], padding: [1, 2], stride: [2, 1] },
  { size: [5, 5], groups: 2, depth: 4, kernel: [2, 2], padding: [1, 0], scale: 0.5 },
  { size: [7, 7], groups: 1, depth: 2, kernel: [3, 3], padding: [2, 2], dilation: [2, 2], removeCenter: true },
];

function geometry(c: Case): unknown[] {
  const { kernel, stride = [1, 1], padding = [0, 0], dilation = [1, 1], groups, scale = 1, removeCenter = false } = c;
  return [kernel, stride, padding, dilation, groups, scale, removeCenter];
}

function outputSize(c: Case, axis: 0 | 1): number {
  const { size, kernel, stride = [1, 1], padding = [0, 0], dilation = [1, 1] } = c;
  return Math.floor((size[axis] + 2 * padding[axis] - (dilation[axis] * (kernel[axis] - 1) + 1)) / stride[axis]) + 1;
}

function make(c: Case, dtype: 'float32' | 'float64', reach = 3): [Tensor, Tensor, Tensor] {
  const points = c.groups * (c.kernel[0] * c.kernel[1] - (c.removeCenter ? 1 : 0));
  const out = [2, outputSize(c, 0), outputSize(c, 1)];
  return [
    randn([2, ...c.size, c.groups * c.depth], { dtype, requiresGrad: true }),
    rand([...out, 2 * points], { dtype })
      .sub(0.5)
      .mul(2 * reach)
      .requiresGrad_(),
    randn([...out, points], { dtype, requiresGrad: true }),
  ];
}

/** The formula on plain numbers. */
function reference(c: Case, tensors: readonly Tensor[]): number[] {
  const [x = [], offset = [], mask = []] = tensors.map((t) => Array.from(t.detach().to('float64').data(), Number));
  const { size, groups, depth, kernel, stride = [1, 1], padding = [0, 0], dilation = [1, 1], scale = 1 } = c;
  const [height, width] = size;
  const channels = groups * depth;
  const center = [0, 1].map((a) => Math.floor(((dilation[a] as number) * ((kernel[a] as number) - 1)) / 2)) as [
    number,
    number,
  ];
  const points: [number, number][] = [];
  for (let i = 0; i < kernel[1]; i++) {
    for (let j = 0; j < kernel[0]; j++) {
      const isCenter = i === Math.floor(kernel[1] / 2) && j === Math.floor(kernel[0] / 2);
      if (!(c.removeCenter && isCenter)) points.push([i, j]);
    }
  }
  const pixel = (n: number, y: number, px: number, channel: number): number =>
    y < 0 || px < 0 || y >= height || px >= width
      ? 0
      : (x[((n * height + y) * width + px) * channels + channel] as number);
  const out: number[] = [];
  const [rows, columns] = [outputSize(c, 0), outputSize(c, 1)];
  for (let n = 0; n < 2; n++)
    for (let y = 0; y < rows; y++)
      for (let xo = 0; xo < columns; xo++)
        for (let g = 0; g < groups; g++)
          for (let ch = 0; ch < depth; ch++) {
            let sum = 0;
            points.forEach(([i, j], p) => {
              const at = (((n * rows + y) * columns + xo) * groups + g) * points.length + p;
              const px =
                xo * stride[1] -
                padding[1] +
                center[1] +
                scale * (i * dilation[1] - center[1] + (offset[2 * at] as number));
              const py =
                y * stride[0] -
                padding[0] +
                center[0] +
                scale * (j * dilation[0] - center[0] + (offset[2 * at + 1] as number));
              const [y0, x0] = [Math.floor(py), Math.floor(px)];
              const [ly, lx] = [py - y0, px - x0];
              const channel = g * depth + ch;
              const value =
                (1 - ly) * ((1 - lx) * pixel(n, y0, x0, channel) + lx * pixel(n, y0, x0 + 1, channel)) +
                ly * ((1 - lx) * pixel(n, y0 + 1, x0, channel) + lx * pixel(n, y0 + 1, x0 + 1, channel));
              sum += (mask[at] as number) * value;
            });
            out.push(sum);
          }
  return out;
}

beforeEach(() => {
  manualSeed(0);
});

describe('torchgraft::dcnv3', () => {
  test.each(cases)('computes the formula: %j', (c) => {
    for (const dtype of ['float32', 'float64'] as const) {
      const tensors = make(c, dtype);
      const y = call('torchgraft::dcnv3', ...tensors, ...geometry(c));
      const expected = reference(c, tensors);
      const ours = Array.from(y.detach().to('float64').data(), Number);
      const error = Math.hypot(...ours.map((v, i) => v - (expected[i] as number))) / Math.hypot(...expected);
      expect(error).toBeLessThan(dtype === 'float32' ? 2e-6 : 1e-13);
      expect(y.gradFn).toMatch(/Dcnv3/);
    }
  });

  test.each(cases)('passes gradcheck: %j', (c) => {
    const tensors = make(c, 'float64', 1.3);
    gradcheck((...inputs) => call('torchgraft::dcnv3', ...inputs, ...geometry(c)), tensors);
  });

  test('gives each gradient without the others, and the same', () => {
    const c = cases[0] as Case;
    const tensors = make(c, 'float64');
    const all = grad([call('torchgraft::dcnv3', ...tensors, ...geometry(c)).sum()], tensors);
    tensors.forEach((wanted, i) => {
      const inputs = tensors.map((t) => (t === wanted ? t : t.detach()));
      const [only] = grad([call('torchgraft::dcnv3', ...inputs, ...geometry(c)).sum()], [wanted]);
      expect(relativeError(only as Tensor, all[i] as Tensor)).toBeLessThan(1e-14);
    });
  });

  test('samples that are far away, or nowhere, read nothing and receive nothing', () => {
    const c = cases[0] as Case;
    const [x, offset, mask] = make(c, 'float32');
    for (const value of [1e30, -1e30, NaN, Infinity]) {
      const away = full(offset.shape, value).requiresGrad_();
      const y = call('torchgraft::dcnv3', x, away, mask, ...geometry(c));
      expect(y.detach().equal(zeros(y.shape))).toBe(true);
      const gradients = grad([y.sum()], [x, away, mask]);
      for (const g of gradients) expect((g as Tensor).equal(zeros((g as Tensor).shape))).toBe(true);
    }
  });

  test('refuses what does not fit, saying what would', () => {
    const c = cases[0] as Case;
    const [x, offset, mask] = make(c, 'float32').map((t) => t.detach()) as [Tensor, Tensor, Tensor];
    const run =
      (...args: unknown[]) =>
      () =>
        call('torchgraft::dcnv3', ...args);
    expect(run(x, mask, mask, ...geometry(c))).toThrow(/offset must be \[2, 5, 6, 36\], got/);
    expect(run(x, offset, ones([1]), ...geometry(c))).toThrow(/mask must be/);
    expect(run(x, offset, mask, ...geometry({ ...c, groups: 5 }))).toThrow(/6 channels do not divide into 5 groups/);
    expect(run(x, offset, mask, [3, 3], [0, 1], [1, 1], [1, 1], 2)).toThrow(
      /stride must be two integers of at least 1/,
    );
    expect(run(x, offset, mask, [2, 2], [1, 1], [1, 1], [1, 1], 2, 1, true)).toThrow(
      /remove_center needs a square kernel/,
    );
    expect(run(x.to('float16'), offset.to('float16'), mask.to('float16'), ...geometry(c))).toThrow(TorchError);
    expect(run(x, offset.to('float64'), mask, ...geometry(c))).toThrow(/dtype and device of x/);
  });
});
