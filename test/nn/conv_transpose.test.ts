/** ConvTranspose2d: the adjoint of the convolution with the same weight, its start, and what it says of itself. */
import { expect, test } from 'vitest';
import { Conv2d, ConvTranspose2d } from '../../lib/nn/index.js';
import { manualSeed, noGrad, randn, zeros } from '../../lib/tensor/index.js';

test.each([
  [2, 2],
  [3, 1],
  [
    [3, 2],
    [2, 1],
  ],
] as const)('kernel %j, stride %j: <conv x, y> = <x, transposed y>', (kernelSize, stride) => {
  manualSeed(3);
  const up = new ConvTranspose2d(4, 3, { kernelSize, stride, bias: false });
  const down = new Conv2d(3, 4, { kernelSize, stride, bias: false });
  noGrad(() => {
    // Both weights are [wide, narrow, kh, kw].
    down.weight.copy_(up.weight);
    const y = randn([2, 4, 5, 3]);
    const grown = up.run(y);
    const x = randn(grown.shape);
    const [left, right] = [down.run(x).mul(y).sum(), x.mul(grown).sum()].map((t) => Number(t.item()));
    expect(left).toBeCloseTo(right ?? NaN, 3);
  });
});

test('adds its bias to every pixel, and starts within the bounds of its fan-in', () => {
  manualSeed(4);
  const layer = new ConvTranspose2d(4, 8, { kernelSize: 2, stride: 2 });
  const bound = 1 / Math.sqrt(8 * 4);
  for (const t of layer.parameters()) expect(Number(t.abs().max().item())).toBeLessThanOrEqual(bound);
  const y = noGrad(() => layer.run(zeros([1, 4, 2, 3])));
  expect(y.shape).toEqual([1, 8, 4, 6]);
  expect(y.equal(noGrad(() => (layer.bias as NonNullable<typeof layer.bias>).view([1, -1, 1, 1]).expandAs(y)))).toBe(
    true,
  );
  expect(String(layer)).toBe('ConvTranspose2d(4, 8, kernel_size=(2, 2), stride=(2, 2))');
});

test('refuses sizes that are none', () => {
  expect(() => new ConvTranspose2d(0, 3, { kernelSize: 2 })).toThrow(/inChannels/);
  expect(() => new ConvTranspose2d(3, 3, { kernelSize: 0 })).toThrow(/kernelSize/);
});
