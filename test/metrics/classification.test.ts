import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  accuracy,
  ClassificationMeter,
  confusionMatrix,
  perClassAccuracy,
  topKAccuracy,
} from '../../lib/metrics/index.js';
import { memory, scope, tensor, type Tensor } from '../../lib/tensor/index.js';
import { settledMemory } from '../support/settled_memory.js';

const ints = (values: number[]): Tensor => tensor(values, { dtype: 'int64' });

describe('accuracy and confusion matrix', () => {
  it('count by hand', () => {
    expect(accuracy([0, 1, 2, 2], [0, 1, 1, 2])).toBe(0.75);
    expect(accuracy(ints([1, 1]), [1, 0])).toBe(0.5);
    const matrix = confusionMatrix([0, 1, 2, 2], ints([0, 1, 1, 2]), 4);
    expect(matrix).toEqual([[1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0]]); // prettier-ignore
    expect(perClassAccuracy(matrix)).toEqual([1, 0.5, 1, null]);
  });

  it('refuse what makes no sense', () => {
    expect(() => accuracy([0], [0, 1])).toThrow(/as many predictions as labels.*1 and 2/);
    expect(() => accuracy([], [])).toThrow(RangeError);
    expect(() => accuracy([0.5], [0])).toThrow(TypeError);
    expect(() => confusionMatrix([3], [0], 3)).toThrow(/class 3 is outside of 3 classes/);
    expect(() => confusionMatrix([0], [-1], 3)).toThrow(TypeError);
  });
});

describe('topKAccuracy', () => {
  it('counts by hand', () => {
    const logits = tensor([[0.1, 0.9, 0.5], [3, 2, 1], [0, -1, -2]]); // prettier-ignore
    const labels = ints([2, 2, 0]);
    expect(topKAccuracy(logits, labels, 1)).toBeCloseTo(1 / 3);
    expect(topKAccuracy(logits, labels, 2)).toBeCloseTo(2 / 3);
    expect(topKAccuracy(logits, labels, 3)).toBe(1);
    expect(topKAccuracy(logits, labels, 5)).toBe(1);
    expect(() => topKAccuracy(logits, labels, 0)).toThrow(/k must be/);
    expect(() => topKAccuracy(logits, ints([0]), 1)).toThrow(/\[3, 3\] and \[1\]/);
  });
});

describe('ClassificationMeter', () => {
  const batches = fc.array(
    fc.array(fc.tuple(fc.nat(4), fc.array(fc.integer({ min: -1000, max: 1000 }), { minLength: 5, maxLength: 5 })), {
      minLength: 1,
      maxLength: 6,
    }),
    { minLength: 1, maxLength: 5 },
  );

  it('agrees with plain counting over batches of any size', () => {
    fc.assert(
      fc.property(batches, (data) => {
        const meter = new ClassificationMeter(5, { topK: [3] });
        // A tie has no right order: distinct logits.
        const rows = data.map((batch) =>
          batch.map(([label, logits]) => ({ label, logits: logits.map((l, i) => l + i / 10) })),
        );
        for (const batch of rows) {
          const logits = tensor(batch.map((row) => row.logits));
          scope(() => {
            meter.update(logits, ints(batch.map((row) => row.label)));
          });
        }
        const all = rows.flat();
        const ranks = all.map(({ label, logits }) => logits.filter((l) => l > logits[label]!).length);
        const result = meter.result();
        expect(result.samples).toBe(all.length);
        expect(result.accuracy).toBeCloseTo(ranks.filter((r) => r < 1).length / all.length);
        expect(result.topK[3]).toBeCloseTo(ranks.filter((r) => r < 3).length / all.length);
        const predicted = all.map(({ logits }) => logits.indexOf(Math.max(...logits)));
        const confusion = confusionMatrix(predicted, all.map((row) => row.label), 5); // prettier-ignore
        expect(result.confusion).toEqual(confusion);
        expect(result.perClass).toEqual(perClassAccuracy(confusion));
        const known = perClassAccuracy(confusion).filter((v) => v !== null);
        expect(result.balancedAccuracy).toBeCloseTo(known.reduce((a, b) => a + b, 0) / known.length);
      }),
      { numRuns: 40 },
    );
  });

  it('keeps two tensors, and none after reset', () => {
    const before = settledMemory().tensors;
    const meter = new ClassificationMeter(2);
    scope(() => {
      for (let i = 0; i < 20; i++) meter.update(tensor([[1, 2], [2, 1]]), ints([1, 1])); // prettier-ignore
    });
    expect(memory().tensors).toBe(before + 2);
    expect(meter.result()).toMatchObject({ samples: 40, accuracy: 0.5, perClass: [null, 0.5] });
    meter.reset();
    expect(memory().tensors).toBe(before);
    expect(() => meter.result()).toThrow(/call update first/);
  });

  it('refuses other numbers of classes', () => {
    const meter = new ClassificationMeter(3);
    expect(() => meter.update(tensor([[1, 2]]), ints([0]))).toThrow(/3 classes, got 2/);
    expect(() => new ClassificationMeter(0)).toThrow(RangeError);
  });
});
