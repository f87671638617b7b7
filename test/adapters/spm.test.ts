/** Prompt-matched segmentation: where its parts sit, and what they tell besides features. */
import { expect, test } from 'vitest';
import { graft, SEGMENTATION_LABELS } from '../../lib/adapters/index.js';
import { createCustomModel, type Backbone } from '../../lib/models/index.js';
import { Context, functional } from '../../lib/nn/index.js';
import { aten, full, manualSeed, noGrad, randint, randn, type Tensor } from '../../lib/tensor/index.js';
import { randomize } from '../models/tiny.js';

const swin = (): Backbone => {
  manualSeed(4);
  const model = createCustomModel('swin', {
    imgSize: 32,
    embedDim: 8,
    depths: [2, 2, 1],
    numHeads: [2, 2, 4],
    windowSize: 4,
    numClasses: 3,
  });
  return randomize(model).toTrunk().eval();
};

test('on Swin the matchers stand before the patches are merged, and start as nothing', () => {
  const model = swin();
  const x = randn([2, 3, 32, 32]);
  const before = noGrad(() => model.forwardIntermediates(x));
  const adapter = graft(model, 'spm', { classes: 5, width: 4 });
  expect(adapter.grafts.map(({ site }) => site.path)).toEqual(['layers.0', 'layers.1']);
  const ctx = new Context();
  const after = noGrad(() => model.forwardIntermediates(x, ctx));
  after.forEach((map, i) => expect(map.equal(before[i] as Tensor)).toBe(true));
  expect(Array.from(ctx.aux, ([name, map]) => [name, map.shape])).toEqual([
    ['spm.0.0', [2, 5, 8, 8]],
    ['spm.0.1', [2, 5, 8, 8]],
    ['spm.1.0', [2, 5, 4, 4]],
    ['spm.1.1', [2, 5, 4, 4]],
  ]);
});

test('labels make the interim loss: its weight times the mean over positions and iterations', () => {
  const model = swin();
  graft(model, 'spm', { classes: 5, width: 4, iterations: 3, lossWeight: 0.3 });
  const labels = randint(0, 5, [2, 32, 32], { dtype: 'int64' });
  const ctx = new Context({ inputs: { [SEGMENTATION_LABELS]: labels } });
  model.forwardIntermediates(randn([2, 3, 32, 32]), ctx);
  expect(ctx.losses.length).toBe(6);
  const expected = aten.stack([...ctx.aux.values()].map((map) => functional.pixelCrossEntropy(map, labels))).mean();
  const found = ctx.losses.reduce((sum, loss) => sum.add(loss));
  expect(Number(found.item())).toBeCloseTo(0.3 * Number(expected.item()), 5);
});

test('without labels, or without a weight, there is no loss', () => {
  const model = swin();
  const x = randn([1, 3, 32, 32]);
  const adapter = graft(model, 'spm', { classes: 5, width: 4 });
  const plain = new Context();
  model.forwardIntermediates(x, plain);
  expect(plain.losses).toEqual([]);
  adapter.remove();
  graft(model, 'spm', { classes: 5, width: 4, lossWeight: 0 });
  const labels = full([1, 32, 32], 1, { dtype: 'int64' });
  const weightless = new Context({ inputs: { [SEGMENTATION_LABELS]: labels } });
  model.forwardIntermediates(x, weightless);
  expect(weightless.losses).toEqual([]);
});

test('blocks that do not divide into the stages are refused', () => {
  const model = createCustomModel('vit', { imgSize: 8, patchSize: 4, embedDim: 8, depth: 3, numHeads: 2 });
  expect(() => graft(model, 'spm')).toThrow(/spm: 3 blocks cannot be cut into 4 equal stages/);
});
