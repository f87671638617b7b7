import { expect, test } from 'vitest';
import { BatchNorm2d } from '../../lib/nn/index.js';
import { randn } from '../../lib/tensor/index.js';

test('BatchNorm2d refuses to learn from one value per channel, whose variance does not exist', () => {
  const norm = new BatchNorm2d(3);
  expect(() => norm.run(randn([1, 3, 1, 1]))).toThrow(/more than one value per channel, and the map is \[1, 3, 1, 1\]/);
  expect(norm.running_var?.tolist()).toEqual([1, 1, 1]);
  expect(Number(norm.num_batches_tracked?.item())).toBe(0);
  expect(
    norm
      .run(randn([2, 3, 1, 1]))
      .isfinite()
      .all()
      .item(),
  ).toBe(true);
  expect(
    norm
      .eval()
      .run(randn([1, 3, 1, 1]))
      .isfinite()
      .all()
      .item(),
  ).toBe(true);
  expect(() => new BatchNorm2d(3, { trackRunningStats: false }).eval().run(randn([1, 3, 1, 1]))).toThrow(/one value/);
});
