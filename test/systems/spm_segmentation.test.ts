/** Prompt-matched segmentation from end to end: a frozen backbone, prompt matchers, a head, and the interim loss. */
import { expect, test } from 'vitest';
import { graft, SEGMENTATION_LABELS } from '../../lib/adapters/index.js';
import { EncoderDecoder, FpnHead } from '../../lib/heads/index.js';
import { createCustomModel } from '../../lib/models/index.js';
import { Context } from '../../lib/nn/index.js';
import { manualSeed, noGrad, randn, scope, type Tensor } from '../../lib/tensor/index.js';
import { AdamW } from '../../lib/train/optim.js';
import { randomize } from '../models/tiny.js';

function build(): EncoderDecoder {
  manualSeed(8);
  const channels = [8, 10, 12, 14];
  const resnet = createCustomModel('resnet', {
    block: 'basic',
    layers: [1, 1, 1, 1],
    channels,
    stemChannels: 8,
    numClasses: 2,
    zeroInitLast: false,
  });
  const decodeHead = new FpnHead({ inChannels: channels, channels: 6, numClasses: 3, dropout: 0 });
  return new EncoderDecoder({ backbone: randomize(resnet).toTrunk(), decodeHead, average: 'valid' });
}

test('trains matchers and head beside a frozen backbone, with the interim loss', () => {
  const model = build();
  const adapter = graft(model, 'spm', { classes: 3, width: 4 });
  expect(adapter.grafts.map(({ site }) => site.path)).toEqual([
    'backbone.layer1',
    'backbone.layer2',
    'backbone.layer3',
  ]);
  const images = randn([2, 3, 32, 48]);
  const labels = images.select(1, 0).gt(0).to('int64').add(images.select(1, 1).gt(1));
  const before = model.backbone.namedState().map(([, t]) => t.detach().clone());
  const optimizer = new AdamW(adapter.parameters(), { lr: 1e-2 });
  model.train();
  model.backbone.eval();
  const losses = (): { main: Tensor; all: Tensor } => {
    const ctx = new Context({ inputs: { [SEGMENTATION_LABELS]: labels } });
    const { loss: main } = model.losses(images, labels, ctx);
    expect(ctx.losses.length).toBe(6);
    return { main, all: ctx.losses.reduce((sum, loss) => sum.add(loss), main) };
  };
  const measure = (): number[] => noGrad(() => scope(() => Object.values(losses()).map((t) => Number(t.item()))));
  const [main = 0, all = 0] = measure();
  for (let step = 0; step < 10; step++) {
    scope(() => {
      optimizer.zeroGrad();
      losses().all.backward();
      optimizer.step();
    });
  }
  const [mainAfter = 0, allAfter = 0] = measure();
  expect(mainAfter).toBeLessThan(main);
  // The interim maps learn too: their part of the sum falls by itself.
  expect(allAfter - mainAfter).toBeLessThan(all - main);
  expect(model.backbone.namedState().every(([, t], i) => t.equal(before[i] as Tensor))).toBe(true);
  expect(adapter.parameters().every((p) => p.grad !== null)).toBe(true);
});
