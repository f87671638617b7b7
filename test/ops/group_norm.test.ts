/** LibTorch's channels-last backward kernel of group normalization, which ours stands in front of. */
import { beforeEach, describe, expect, test } from 'vitest';
import {
  allowUncheckedOperators,
  aten,
  functional as F,
  grad,
  manualSeed,
  ones,
  randn,
  type Tensor,
  zeros,
} from '../../lib/index.js';
import { relativeError } from '../support/gradcheck.js';

beforeEach(() => {
  manualSeed(0);
});

const groups = 4;

/** Gradients of some of [input, scale, bias] of one group norm. */
function gradients(x: Tensor, wanted: readonly boolean[], outward: Tensor): Tensor[] {
  const inputs = [x.clone(), ones([x.shape[1]!]).add(0.5), zeros([x.shape[1]!])].map((t, i) =>
    t.detach().requiresGrad_(wanted[i] as boolean),
  );
  const y = F.groupNorm(inputs[0]!, groups, inputs[1], inputs[2]);
  return grad(
    [y],
    inputs.filter((_, i) => wanted[i]),
    { gradOutputs: [outward] },
  ) as Tensor[];
}

describe('group norm of channels-last maps', () => {
  const combinations = [1, 2, 3, 4, 5, 6, 7].map((bits) => [0, 1, 2].map((i) => (bits & (1 << i)) !== 0));
  test.each([8, 12, 64])(
    'has the gradients of the contiguous layout, whichever are asked for: %i channels',
    (channels) => {
      const x = randn([2, channels, 5, 3]);
      const outward = randn([2, channels, 5, 3]);
      const last = (t: Tensor) => t.contiguous({ memoryFormat: 'channels_last' });
      expect(last(x).isContiguous('channels_last')).toBe(true);
      for (const wanted of combinations) {
        const expected = gradients(x, wanted, outward);
        for (const direction of [outward, last(outward)]) {
          const got = gradients(last(x), wanted, direction);
          expect(got).toHaveLength(expected.length);
          got.forEach((g, i) => {
            expect(relativeError(g, expected[i]!)).toBeLessThan(1e-5);
          });
        }
      }
    },
  );

  test('the backward step, called by name, refuses sizes that are not those of its tensors', () => {
    const x = randn([2, 8, 3, 3]);
    const moments = zeros([2, groups]);
    allowUncheckedOperators();
    const call = (positions: number, channels: number) => () =>
      aten.nativeGroupNormBackward(x, x, moments, moments, null, 2, channels, positions, groups, [true, false, false]);
    expect(call(9, 8)).not.toThrow();
    expect(call(10, 8)).toThrow(/10 positions/);
    expect(call(9, 800)).toThrow(/must be \[2, 800/);
    allowUncheckedOperators(false);
  });
});
