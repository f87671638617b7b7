/** BatchNorm in states that layers.test.ts does not have: constant, and with too little to learn from. */
import { expect, it } from 'vitest';
import { BatchNorm2d, Context, Conv2d, convNormAct } from '../../lib/nn/index.js';
import { manualSeed, rand, randn, type Tensor } from '../../lib/tensor/index.js';

it('a constant BatchNorm is the same function in both modes, with buffers only', () => {
  manualSeed(0);
  const norm = new BatchNorm2d(3);
  norm.running_mean?.copy_(randn([3]));
  norm.running_var?.copy_(rand([3]).add(0.5));
  const x = randn([2, 3, 4, 4]);
  const before = norm.eval().run(x);
  norm.makeConstant().train();
  expect(norm.run(x).allclose(before)).toBe(true);
  expect(norm.parameters()).toEqual([]);
  expect([...norm.stateDict().keys()]).toEqual(['weight', 'bias', 'running_mean', 'running_var']);
  const statistics = norm.running_mean?.clone();
  norm.run(x);
  expect(norm.running_mean?.equal(statistics!)).toBe(true);
  // The fused step of convolution and norm takes it in training mode, too.
  const conv = new Conv2d(3, 3, { kernelSize: 3, padding: 1, bias: false });
  const composed = norm.run(conv.run(x)).relu();
  expect(convNormAct(conv, norm, x, new Context()).allclose(composed, 1e-5, 1e-6)).toBe(true);
  expect(norm.makeConstant({ eps: 0 }).eps).toBe(0);
  expect(() => new BatchNorm2d(2, { trackRunningStats: false }).makeConstant()).toThrow(/without running statistics/);
});

it('BatchNorm2d refuses to learn from one value per channel, whose variance does not exist', () => {
  const norm = new BatchNorm2d(3);
  expect(() => norm.run(randn([1, 3, 1, 1]))).toThrow(/more than one value per channel, and the map is \[1, 3, 1, 1\]/);
  expect(norm.running_var?.tolist()).toEqual([1, 1, 1]);
  expect(Number(norm.num_batches_tracked?.item())).toBe(0);
  const isFinite = (x: Tensor): boolean => x.isfinite().all().item() === true;
  expect(isFinite(norm.run(randn([2, 3, 1, 1])))).toBe(true);
  expect(isFinite(norm.eval().run(randn([1, 3, 1, 1])))).toBe(true);
  expect(() => new BatchNorm2d(3, { trackRunningStats: false }).eval().run(randn([1, 3, 1, 1]))).toThrow(/one value/);
});
