/** Representation separation: what its losses leave out, what it refuses, and that it learns. */
import { expect, test } from 'vitest';
import { graft, SEGMENTATION_LABELS } from '../../lib/adapters/index.js';
import { createCustomModel, type Backbone } from '../../lib/models/index.js';
import { Context, functional } from '../../lib/nn/index.js';
import { RepresentationSeparation } from '../../lib/systems/index.js';
import { full, manualSeed, noGrad, randint, randn, scope, type Tensor } from '../../lib/tensor/index.js';
import { AdamW } from '../../lib/train/optim.js';

const vit = (depth = 4): Backbone =>
  createCustomModel('vit', { imgSize: 16, patchSize: 4, embedDim: 12, depth, numHeads: 2, numClasses: 1 });
const build = (): RepresentationSeparation => {
  manualSeed(2);
  return new RepresentationSeparation(vit(), { classes: 3, width: 8 });
};
const number = (x: Tensor): number => Number(x.item());

test('gives logits at the size of the images', () => {
  const logits = noGrad(() =>
    build()
      .eval()
      .run(randn([2, 3, 16, 16])),
  );
  expect(logits.shape).toEqual([2, 3, 16, 16]);
});

test('with labels, the auxiliary losses go to the context; with the pixels they are the total', () => {
  const model = build();
  const images = randn([2, 3, 16, 16]);
  const labels = randint(0, 3, [2, 16, 16], { dtype: 'int64' });
  const ctx = new Context({ inputs: { [SEGMENTATION_LABELS]: labels } });
  const logits = model.run(images, ctx);
  expect(ctx.losses.length).toBe(2);
  const sum = ctx.losses.reduce((a, b) => a.add(b), functional.pixelCrossEntropy(logits, labels));
  const { total } = model.losses(model.maps(images), labels);
  expect(number(sum)).toBeCloseTo(number(total), 5);
});

test('pixels that do not count change nothing, and classes that are not there have no region loss', () => {
  const model = build();
  const maps = noGrad(() => model.maps(randn([1, 3, 16, 16])));
  const labels = full([1, 16, 16], 1, { dtype: 'int64' });
  const { region } = model.losses(maps, labels);
  const ones = functional.crossEntropy(maps.regionLogits.select(1, 1), full([1], 1, { dtype: 'int64' }));
  expect(number(region)).toBeCloseTo(number(ones), 5);
  const nothing = model.losses(maps, full([1, 16, 16], 255, { dtype: 'int64' }));
  for (const loss of [nothing.seg, nothing.attention, nothing.region]) expect(number(loss)).toBe(0);
});

test('learns, all of it, or beside an adapter in a frozen backbone', () => {
  const images = randn([2, 3, 16, 16]);
  const labels = images.select(1, 0).gt(0).to('int64');
  for (const adapted of [false, true]) {
    const model = build();
    const adapter = adapted ? graft(model, 'lora', { rank: 2 }) : null;
    const parameters = adapter?.parameters() ?? model.parameters();
    const frozen = model.backbone.getModule('patch_embed.proj').parameters();
    const before = frozen.map((p) => p.detach().clone());
    const optimizer = new AdamW(parameters, { lr: 5e-3 });
    const loss = (): Tensor => model.losses(model.maps(images), labels).total;
    const start = number(noGrad(loss));
    for (let step = 0; step < 8; step++) {
      scope(() => {
        optimizer.zeroGrad();
        loss().backward();
        optimizer.step();
      });
    }
    expect(number(noGrad(loss))).toBeLessThan(start - 0.02);
    expect(frozen.every((p, i) => p.equal(before[i] as Tensor))).toBe(adapted);
    // Beside an adapter the parts around the backbone are its head.
    expect(parameters.includes(model.dca.query)).toBe(true);
  }
});

test('refuses blocks that do not divide, stages of several widths, even neighborhoods, other classes', () => {
  expect(() => new RepresentationSeparation(vit(3), { classes: 3 })).toThrow(
    /3 levels cannot be cut into 4 equal groups/,
  );
  const resnet = createCustomModel('resnet', { block: 'basic', layers: [1, 1], channels: [8, 16], numClasses: 1 });
  expect(() => new RepresentationSeparation(resnet, { classes: 3, taps: 2 })).toThrow(/one width, and .* have 8, 16/);
  expect(() => new RepresentationSeparation(vit(), { classes: 3, kernel: 2 })).toThrow(/has no center/);
  expect(() => build().resetClassifier()).toThrow(TypeError);
  expect(() => build().pathway.fuse([])).toThrow(/two pathways for 4 maps were given 0/);
});
