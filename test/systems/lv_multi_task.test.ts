/** LV-Adapter with its detector: losses and findings of images of any sizes. */
import { describe, expect, test } from 'vitest';
import { graft } from '../../lib/adapters/index.js';
import { createCustomModel } from '../../lib/models/index.js';
import { Context } from '../../lib/nn/index.js';
import { LvMultiTask, type LvMultiTaskOptions } from '../../lib/systems/index.js';
import { full, manualSeed, noGrad, rand, randint, tensor, type Tensor } from '../../lib/tensor/index.js';

const SIDE = 64;
function build(options: Partial<LvMultiTaskOptions> = {}): LvMultiTask {
  manualSeed(4);
  const sizes = { block: 'basic', layers: [1, 1, 1, 1], channels: [8, 8, 8, 8], stemChannels: 8, numClasses: 2 };
  return new LvMultiTask(createCustomModel('resnet', sizes), null, {
    ...{ tasks: { sem: 3, driv: 2, det: 2 }, channels: 8, headChannels: 4, size: SIDE },
    ...options,
  });
}

const image = (height: number, width: number): Tensor => rand([3, height, width]);
const labels = (classes: number, height: number, width: number): Tensor =>
  randint(0, classes, [height, width], { dtype: 'int64' });
const number = (x: Tensor): number => Number(x.item());
const target = (label = 0) => ({
  boxes: tensor([[4, 6, 40, 50]]),
  labels: tensor([label], { dtype: 'int64' }),
});

describe('losses', () => {
  test('of masks are those of LvAdapter where no image is resized', () => {
    const model = build().eval();
    const images = [image(SIDE, SIDE), image(SIDE, SIDE)];
    const masks = { sem: images.map(() => labels(3, SIDE, SIDE)), driv: images.map(() => labels(2, SIDE, SIDE)) };
    const found = noGrad(() => model.taskLosses(images, { masks, targets: [target(), target(1)] }));
    expect(Object.keys(found)).toEqual(['sem', 'driv', 'classification', 'bbox_regression']);
    const { mean, std } = model.backbone.config;
    const channel = (values: readonly number[]): Tensor => tensor([...values]).view([1, 3, 1, 1]);
    const batch = images.map((one) => one.unsqueeze(0).sub(channel(mean)).div(channel(std)));
    batch.forEach((input, i) => {
      const own = noGrad(() => model.losses(model.outputs(input), { sem: masks.sem[i]!.unsqueeze(0) }).perTask.sem!);
      const alone = noGrad(() => model.taskLosses([images[i]!], { masks: { sem: [masks.sem[i]!] }, targets: null }));
      expect(Object.keys(alone)).toEqual(['sem']);
      expect(number(alone['sem']!)).toBeCloseTo(number(own), 5);
    });
  });

  test('resize masks along with their images, and do not count what is padded', () => {
    const model = build().eval();
    // Of twice the size, and of another shape: the second one is padded to the first one's 64 x 96.
    const images = [image(2 * SIDE, 3 * SIDE), image(SIDE, SIDE)];
    const ones = full([2 * SIDE, 3 * SIDE], 1, { dtype: 'int64' });
    const nothing = full([SIDE, SIDE], 255, { dtype: 'int64' });
    const both = noGrad(() => model.taskLosses(images, { masks: { sem: [ones, nothing] }, targets: null }));
    const first = noGrad(() => model.taskLosses([images[0]!], { masks: { sem: [ones] }, targets: null }));
    expect(number(both['sem']!)).toBeCloseTo(number(first['sem']!), 5);
  });

  test('refuse what is not annotated, and lists of other lengths', () => {
    const model = build();
    const images = [image(SIDE, SIDE)];
    expect(() => model.taskLosses(images, { masks: {}, targets: null })).toThrow(/labels for at least one/);
    expect(() => model.taskLosses(images, { masks: { sem: [] }, targets: null })).toThrow(
      /1 images and 0 masks of task 'sem'/,
    );
    expect(() => model.detector!.detect(images)).toThrow(/run by its taskLosses and findings/);
  });
});

describe.each(['retinanet', 'faster_rcnn'] as const)('with %s', (detector) => {
  test('finds classes of pixels and boxes in the pixels of the images', () => {
    const model = build({ detector }).eval();
    const images = [image(48, 80), image(100, 64)];
    const { logits, detections } = noGrad(() => model.findings(images, new Context()));
    expect(logits.sem!.map((map) => map.shape)).toEqual([
      [1, 3, 48, 80],
      [1, 3, 100, 64],
    ]);
    expect(logits.driv!.map((map) => map.shape[1])).toEqual([2, 2]);
    detections!.forEach(({ boxes, scores }, i) => {
      const [, height = 0, width = 0] = images[i]!.shape;
      expect(boxes.shape[0]).toBe(scores.shape[0]);
      if (boxes.shape[0] === 0) return;
      expect(number(boxes.select(1, 2).max())).toBeLessThanOrEqual(width);
      expect(number(boxes.select(1, 3).max())).toBeLessThanOrEqual(height);
    });
  });

  test('adapting trains all but the trunk; a head alone gives every part a gradient', () => {
    const model = build({ detector }).train();
    const adapter = graft(model, 'linear_probe', {}, { head: 'train' });
    const images = [image(SIDE, SIDE), image(SIDE, SIDE)];
    const masks = { sem: images.map(() => labels(3, SIDE, SIDE)), driv: images.map(() => labels(2, SIDE, SIDE)) };
    const first = detector === 'faster_rcnn' ? 1 : 0;
    const found = model.taskLosses(images, { masks, targets: [target(first), target(first)] });
    Object.values(found)
      .reduce((sum, loss) => sum.add(loss))
      .backward();
    expect(model.backbone.parameters().every((p) => p.grad === null)).toBe(true);
    const parts = new Set(adapter.namedParameters().map(([name]) => name.split('.')[1]));
    expect(parts).toEqual(new Set(['adapter', 'heads', 'detector']));
    const dead = adapter
      .namedParameters()
      .filter(([, p]) => p.grad === null)
      .map(([name]) => name);
    expect(dead).toEqual([]);
  });
});

test('without boxes there is no detector', () => {
  const model = build({ tasks: { sem: 2 } }).eval();
  expect(model.detector).toBeNull();
  expect(noGrad(() => model.findings([image(SIDE, SIDE)])).detections).toBeNull();
});
