import { describe, expect, it } from 'vitest';
import { constant, cosine, step, type Schedule } from '../../lib/train/schedule.js';

const factors = (schedule: Schedule, steps: number): number[] => Array.from({ length: steps }, (_, s) => schedule(s));

describe('constant', () => {
  it('warms up linearly and reaches full rate at the last warm-up step', () => {
    expect(factors(constant({ warmup: 4 }), 6)).toEqual([0.25, 0.5, 0.75, 1, 1, 1]);
  });

  it('is 1 without warm-up', () => {
    expect(factors(constant(), 3)).toEqual([1, 1, 1]);
  });
});

describe('step', () => {
  it('multiplies at each of the given steps, counted from the start of the run', () => {
    const expected = [0.5, 1, 1, 0.1, 0.1, 0.1 ** 2, 0.1 ** 2];
    factors(step({ warmup: 2, at: [3, 5] }), 7).forEach((f, i) => expect(f).toBeCloseTo(expected[i] ?? NaN, 12));
  });

  it('takes the steps in any order and another factor', () => {
    expect(factors(step({ at: [4, 2], factor: 0.5 }), 6)).toEqual([1, 1, 0.5, 0.5, 0.25, 0.25]);
  });
});

describe('cosine', () => {
  it('goes from 1 to 0 over the steps after the warm-up', () => {
    const schedule = cosine({ warmup: 2, total: 6 });
    const expected = [0.5, 1, 1, (1 + Math.SQRT1_2) / 2, 0.5, (1 - Math.SQRT1_2) / 2, 0, 0];
    factors(schedule, 8).forEach((f, i) => expect(f).toBeCloseTo(expected[i] ?? NaN, 12));
  });

  it('ends at the floor and stays there', () => {
    const schedule = cosine({ total: 10, floor: 0.2 });
    expect(schedule(0)).toBe(1);
    expect(schedule(5)).toBeCloseTo(0.6, 12);
    expect(schedule(10)).toBeCloseTo(0.2, 12);
    expect(schedule(50)).toBeCloseTo(0.2, 12);
  });

  it('never increases after the warm-up', () => {
    const all = factors(cosine({ warmup: 7, total: 100 }), 100).slice(6);
    all.forEach((f, i) => expect(f).toBeLessThanOrEqual(all[i - 1] ?? 1));
  });
});

describe('wrong options', () => {
  it('are refused by name', () => {
    expect(() => cosine({ total: 10, warmUp: 3 } as never)).toThrow(/unknown option 'warmUp'; did you mean warmup/);
    expect(() => cosine({ total: 3, warmup: 5 })).toThrow(/warmup 5 is longer/);
    expect(() => cosine({ total: 0 })).toThrow(/total/);
    expect(() => step({ at: [1.5] })).toThrow(/at/);
    expect(() => constant({ warmup: -1 })).toThrow(/warmup/);
  });
});
