/** Networks of images that read clips, and the adapter that mixes their frames. */
import { describe, expect, test } from 'vitest';
import { graft } from '../../lib/adapters/index.js';
import { createCustomModel, type Backbone } from '../../lib/models/index.js';
import { loadState } from '../../lib/models/load.js';
import { Context, DepthwiseConv3d, type Size3 } from '../../lib/nn/index.js';
import { averageViews } from '../../lib/systems/index.js';
import { aten, manualSeed, noGrad, randn, scope, tensor, type Tensor } from '../../lib/tensor/index.js';
import { randomize, tinyModels } from './tiny.js';

const largest = (a: Tensor, b: Tensor): number => scope(() => Number(a.sub(b).abs().max().item()));
const output = (model: Backbone, x: Tensor): Tensor => noGrad(() => scope(() => model.eval().run(x)));
const tinyClip = (): Backbone => {
  manualSeed(5);
  return randomize(
    createCustomModel('clip_vit', {
      imgSize: 12,
      patchSize: 4,
      embedDim: 16,
      depth: 2,
      numHeads: 2,
      numClasses: 4,
    }),
  );
};

describe.each(tinyModels)('clips through $name', ({ make, sizes, channels = 3 }) => {
  test('one frame is an image, and equal frames change nothing', () => {
    manualSeed(3);
    const model = randomize(make());
    const images = randn([2, channels, ...(sizes[0] ?? [])]);
    const plain = output(model, images);
    expect(output(model, images.unsqueeze(2)).equal(plain)).toBe(true);
    const still = images.unsqueeze(2).expand([-1, -1, 3, -1, -1]);
    expect(largest(output(model, still), plain)).toBeLessThan(1e-5 * (1 + Number(plain.abs().max().item())));
  });
});

test('the class tokens are averaged before the last norm', () => {
  const model = tinyClip();
  const clip = randn([1, 3, 2, 12, 12]);
  const tokens = noGrad(() => {
    const frames = [0, 1].map((i) => {
      const ctx = new Context();
      // What leaves the blocks is what the norm would read.
      const last = model.getModule('blocks').run((model as unknown as Embedding).embed(clip.select(2, i), ctx), ctx);
      return last.select(1, 0);
    });
    const mean = aten.stack(frames).mean([0]);
    return model.getModule('head').run(model.getModule('norm').run(mean));
  });
  expect(largest(output(model, clip), tokens)).toBeLessThan(1e-5);
});

interface Embedding {
  embed(x: Tensor, ctx: Context): Tensor;
}

test('without an adapter the order of the frames does not matter, with one it does', () => {
  const model = tinyClip();
  const clip = randn([1, 3, 3, 12, 12]);
  const turned = clip.flip([2]);
  expect(largest(output(model, clip), output(model, turned))).toBeLessThan(1e-5);
  const adapter = graft(model, 'st_adapter', { hidden: 6 });
  noGrad(() => {
    for (const p of adapter.parameters()) p.add_(randn(p.shape), { alpha: 0.3 });
  });
  expect(largest(output(model, clip), output(model, turned))).toBeGreaterThan(1e-3);
});

test('each clip of a batch can use its own adapter', () => {
  const model = tinyClip();
  const clips = randn([2, 3, 4, 12, 12]);
  const alone = ['a', 'b'].map((name, i) => {
    const adapter = graft(model, 'st_adapter', { where: 'both' }, { name, seed: i });
    noGrad(() => {
      for (const p of adapter.parameters()) p.add_(randn(p.shape), { alpha: 0.2 });
    });
    return output(model, clips.narrow(0, i, 1));
  });
  const together = noGrad(() => scope(() => model.forward(clips, { adapters: ['a', 'b'] })));
  alone.forEach((y, i) => expect(largest(together.narrow(0, i, 1), y)).toBeLessThan(1e-5));
});

test('an empty clip is refused', () => {
  const model = tinyClip();
  expect(() => model.run(randn([1, 3, 0, 12, 12]))).toThrow(/clips have no frames: .*1, 3, 0, 12, 12/);
});

test.each<[Size3]>([[[3, 1, 1]], [[1, 3, 5]], [[3, 5, 3]], [[1, 1, 1]]])('depth-wise convolution with %j', (kernel) => {
  const layer = new DepthwiseConv3d(4, kernel);
  const x = randn([2, 4, 5, 6, 3]);
  const padding = kernel.map((side) => (side - 1) / 2);
  const expected = aten.conv3d(x, layer.weight, layer.bias, [1, 1, 1], padding, [1, 1, 1], 4);
  expect(largest(layer.run(x), expected)).toBeLessThan(1e-6);
});

test('a kernel without a center is refused', () => {
  expect(() => new DepthwiseConv3d(4, [2, 1, 1])).toThrow(/three odd numbers, got \[2, 1, 1\]/);
  expect(() => graft(tinyClip(), 'st_adapter', { kernel: [3, 2, 1] })).toThrow(/must be odd/);
  expect(() => graft(tinyClip(), 'st_adapter', { layers: 99 })).toThrow(
    /layers must be at most \d+, as many as there are blocks/,
  );
});

test('a batch that is not made of whole clips is refused', () => {
  const model = tinyClip();
  graft(model, 'st_adapter');
  const ctx = Object.assign(new Context(), { frames: 2 });
  expect(() => model.forwardFeatures(randn([3, 3, 12, 12]), ctx)).toThrow(/3 images does not divide into clips of 2/);
});

test.each(['train', { classes: 4 }] as const)('official checkpoints hold the adapters and fc (head %j)', (head) => {
  const model = tinyClip();
  const adapter = graft(model, 'st_adapter', { where: 'both' }, { head });
  const state = adapter.officialState();
  const names = [...state.keys()];
  expect(names).toContain('transformer.resblocks.1.adapter_pre_attn.conv.weight');
  expect(names).toContain('fc.weight');
  expect(names.length).toBe(2 * 2 * 6 + 2);
  const other = graft(tinyClip(), 'st_adapter', { where: 'both' }, { head, seed: 9 });
  const given = new Map(Array.from(state, ([name, t]) => [name, t.add(0.1)]));
  other.loadOfficialState(given);
  for (const [name, t] of other.officialState()) expect(t.equal(given.get(name) as Tensor), name).toBe(true);
});

test('a tower for clips takes the weights of CLIP, without the projection', () => {
  const size = { imgSize: 12, patchSize: 4, embedDim: 16, depth: 2, numHeads: 2 };
  const clip = randomize(createCustomModel('clip_vit', { ...size, projDim: 6 }));
  const model = tinyClip();
  loadState(model, clip.stateDict(), { classifier: 'drop' });
  expect(
    model
      .getModule('norm')
      .parameters()[0]
      ?.equal(clip.getModule('norm').parameters()[0] as Tensor),
  ).toBe(true);
});

test('scores are the mean over the views of a video', () => {
  const logits = tensor([
    [0, 0],
    [Math.log(3), 0],
  ]);
  const scores = averageViews(logits, 2);
  expect(scores.shape).toEqual([1, 2]);
  expect(Number(scores.select(1, 0).item())).toBeCloseTo(0.625, 6);
  expect(() => averageViews(logits, 3)).toThrow(/2 rows of logits do not divide into videos of 3 views/);
});
