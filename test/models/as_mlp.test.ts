import { expect, test } from 'vitest';
import { shiftChannels } from '../../lib/models/as_mlp.js';
import { createCustomModel, createModel } from '../../lib/models/index.js';
import { randn, type Tensor, withDefaults, zeros } from '../../lib/tensor/index.js';

/** Pixel by pixel: channel c of group k comes from k - floor(count / 2) pixels before. */
function shiftedByHand(x: Tensor, count: number, dim: 2 | 3): Tensor {
  const [, channels = 0, rows = 0, columns = 0] = x.shape;
  const size = Math.ceil(channels / count);
  const out = zeros(x.shape);
  for (let c = 0; c < channels; c++) {
    const by = Math.floor(c / size) - Math.floor(count / 2);
    for (let i = 0; i < rows; i++) {
      for (let j = 0; j < columns; j++) {
        const [from, to] = dim === 2 ? [i - by, j] : [i, j - by];
        if (from < 0 || to < 0 || from >= rows || to >= columns) continue;
        out.select(1, c).select(1, i).select(1, j).copy_(x.select(1, c).select(1, from).select(1, to));
      }
    }
  }
  return out;
}

test.each([
  [5, 14],
  [5, 7],
  [3, 8],
  [4, 8],
  [1, 3],
  // Two channels make two groups of one, though five are asked for.
  [5, 2],
])('%i groups of %i channels are shifted along rows and columns', (count, channels) => {
  const x = randn([2, channels, 4, 3]);
  for (const dim of [2, 3] as const) {
    expect(shiftChannels(x, count, dim).equal(shiftedByHand(x, count, dim))).toBe(true);
  }
});

test('maps must be even where they are halved', () => {
  const model = createCustomModel('as_mlp', { embedDim: 8, depths: [1, 1], numClasses: 3 });
  expect(model.run(randn([1, 3, 24, 40])).shape).toEqual([1, 3]);
  expect(() => model.run(zeros([1, 3, 28, 32]))).toThrow(/7 x 8 is odd/);
});

test('has the parameters of the published base model', () => {
  const model = withDefaults({ device: 'meta' }, () =>
    createModel('asmlp_base_patch4_shift5_224', { numClasses: 100 }),
  );
  expect(model.parameters().reduce((sum, p) => sum + p.numel(), 0)).toBe(86_830_308);
});
