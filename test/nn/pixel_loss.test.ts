import { describe, expect, test } from 'vitest';
import { functional } from '../../lib/nn/index.js';
import { full, randn, tensor, zeros } from '../../lib/tensor/index.js';

const { crossEntropy, interpolate, pixelCrossEntropy } = functional;

describe('cross entropy of pixels', () => {
  const labels = tensor([[[0, 255], [2, 1]]], { dtype: 'int64' }); // prettier-ignore
  const logits = randn([1, 3, 2, 2]);
  const each = crossEntropy(logits, labels, { ignoreIndex: 255, reduction: 'sum' });

  test('is the mean over the pixels that count, or over all', () => {
    expect(Number(pixelCrossEntropy(logits, labels).item())).toBeCloseTo(Number(each.item()) / 3, 5);
    expect(Number(pixelCrossEntropy(logits, labels, { average: 'all' }).item())).toBeCloseTo(
      Number(each.item()) / 4,
      5,
    );
  });

  test('resamples the logits, and takes labels of bytes', () => {
    const coarse = randn([1, 3, 1, 2]);
    const expected = crossEntropy(interpolate(coarse, { size: [2, 2] }), labels, { ignoreIndex: 255 });
    const found = pixelCrossEntropy(coarse, labels.to('uint8'));
    expect(Number(found.item())).toBeCloseTo(Number(expected.item()), 5);
  });

  test('is 0 where nothing counts', () => {
    expect(pixelCrossEntropy(logits, full([1, 2, 2], 255, { dtype: 'int64' })).item()).toBe(0);
  });

  test('refuses batches that differ', () => {
    const wrong = zeros([2, 2, 2], { dtype: 'int64' });
    expect(() => pixelCrossEntropy(logits, wrong)).toThrow(/got \[1, 3, 2, 2\] and \[2, 2, 2\]/);
  });
});
