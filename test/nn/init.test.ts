import { describe, expect, it } from 'vitest';
import { init, Parameter } from '../../lib/nn/index.js';
import { empty, manualSeed, zeros, type Tensor } from '../../lib/tensor/index.js';
import { expectClose, golden, stored } from './golden.js';

/** Initializer, shape, tolerance: uniform numbers are the same bits, the rest goes through functions of the processor. */
const cases: Record<string, [(t: Tensor) => Tensor, number[], number]> = {
  kaimingUniform: [(t) => init.kaimingUniform_(t), [6, 3, 2, 2], 0],
  kaimingUniformRelu: [(t) => init.kaimingUniform_(t, { nonlinearity: 'relu', mode: 'fan_out' }), [6, 3, 2, 2], 0],
  kaimingNormal: [(t) => init.kaimingNormal_(t, { mode: 'fan_out', nonlinearity: 'relu' }), [6, 3, 2, 2], 1e-6],
  xavierUniform: [(t) => init.xavierUniform_(t), [6, 3, 2, 2], 0],
  xavierNormal: [(t) => init.xavierNormal_(t, 2), [6, 3, 2, 2], 1e-6],
  normal: [(t) => init.normal_(t, 1, 0.5), [6, 3, 2, 2], 1e-6],
  truncInverse: [(t) => init.truncNormal_(t, { std: 0.8, a: -1, b: 0.7 }), [6, 3, 2, 2], 1e-6],
  truncRejection: [(t) => init.truncNormal_(t, { std: 0.8, a: -1, b: 0.7, sampler: 'rejection' }), [6, 3, 2, 2], 1e-6],
  truncTail: [(t) => init.truncNormal_(t, { a: 1.5, b: 3, sampler: 'rejection' }), [6, 3, 2, 2], 1e-6],
  orthogonal: [(t) => init.orthogonal_(t, 0.5), [5, 4], 1e-5],
  orthogonalWide: [(t) => init.orthogonal_(t), [3, 2, 3], 1e-5],
  dirac: [(t) => init.dirac_(t, 2), [4, 2, 3, 3], 0],
};

describe('initializers', () => {
  for (const [name, [fill, shape, tolerance]] of Object.entries(cases)) {
    it(`${name} gives PyTorch's numbers for the same seed`, () => {
      manualSeed(1);
      expectClose(fill(empty(shape)), stored(golden.init[name]), tolerance);
    });
  }

  it('fill parameters without a graph and return them', () => {
    const p = new Parameter(zeros([3, 3]));
    expect(init.ones_(p)).toBe(p);
    expect(p.isLeaf).toBe(true);
    expect(p.sum().item()).toBe(9);
    expect(init.eye_(p).sum().item()).toBe(3);
    expect(init.constant_(p, 2).sum().item()).toBe(18);
    expect(init.zeros_(p).sum().item()).toBe(0);
    expect(init.uniform_(p, 1, 2).min().item()).toBeGreaterThanOrEqual(1);
  });

  it('counts fans per group', () => {
    expect(init.fans(empty([8, 2, 3, 3]))).toEqual({ fanIn: 18, fanOut: 72 });
    expect(() => init.fans(empty([8]))).toThrow(/at least 2 dimensions, got shape \[8\]/);
  });

  it('knows the gains', () => {
    expect(init.calculateGain('tanh')).toBeCloseTo(5 / 3, 12);
    expect(init.calculateGain('leaky_relu', Math.sqrt(5))).toBeCloseTo(Math.sqrt(1 / 3), 12);
    expect(() => init.calculateGain('swish' as never)).toThrow(/unknown nonlinearity 'swish'/);
  });

  it('stay within the bounds of a truncation', () => {
    const t = init.truncNormal_(empty([10_000]), { std: 0.02 });
    expect(Number(t.std().item())).toBeCloseTo(0.02, 3);
    expect(Number(init.truncNormal_(t, { a: -0.5, b: 0.25 }).max().item())).toBeLessThanOrEqual(0.25);
    expect(() => init.truncNormal_(t, { std: 0 })).toThrow(/std > 0/);
  });
});
