/** Visual prompts: options that only the method's own comparisons use, options that cannot be, images with a remainder. */
import { describe, expect, test } from 'vitest';
import { graft, startPromptsFromClassTokens } from '../../lib/adapters/index.js';
import { type Backbone, createCustomModel } from '../../lib/models/index.js';
import { functional } from '../../lib/nn/index.js';
import { manualSeed, noGrad, ones, randn, zeros, type Tensor } from '../../lib/tensor/index.js';
import { randomize } from '../models/tiny.js';

function vit(options: Record<string, unknown> = {}): Backbone {
  manualSeed(5);
  const sizes = { imgSize: 16, patchSize: 4, embedDim: 12, depth: 3, numHeads: 3, numClasses: 4 };
  return randomize(createCustomModel('vit', { ...sizes, ...options })).eval();
}

const resnet = (): Backbone =>
  createCustomModel('resnet', { block: 'basic', layers: [1, 1], channels: [4, 8], stemChannels: 4, imgSize: 32 });

const error = (a: Tensor, b: Tensor): number => Number(a.sub(b).norm().item()) / Number(b.norm().item());

describe('prompts that are not trained', () => {
  test('leave the head alone to be trained, and are saved all the same', () => {
    const model = vit();
    const adapter = graft(model, 'vpt', { tokens: 2, deep: true, project: 5, frozen: true });
    const trained = adapter.namedParameters().filter(([, { requiresGrad }]) => requiresGrad);
    expect(trained.map(([name]) => name)).toEqual(['backbone.head.weight', 'backbone.head.bias']);
    expect(adapter.summary()).toMatchObject({ grafts: 3 * 2 * 5 + 12 * 6, trainable: 12 * 4 + 4 });
    expect(adapter.namedParameters().map(([name]) => name)).toContain('shared.deep.embeddings');
  });

  test.each(['pad', 'below', 'prepend_pixel'])('also at location %s', (location) => {
    const adapter = graft(vit(), 'vpt', { tokens: 2, location, frozen: true });
    expect(adapter.summary().trainable).toBe(12 * 4 + 4);
  });
});

describe('options that cannot be', () => {
  const refused: [options: Record<string, unknown>, why: RegExp][] = [
    [{ location: 'pad', deep: true }, /deep is for prompts of the width of tokens, not for location pad/],
    [{ location: 'prepend_pixel', project: 4 }, /project is for .* take prepend, add or add_1/],
    [{ location: 'below', dropout: 0.1 }, /dropout is for/],
    [{ initiation: 'gaussian' }, /initiation gaussian is for pad and below/],
    [{ deepLayers: 2 }, /deepLayers is for deep prompts; give deep: true/],
    [{ reverse: true }, /reverse is for deep prompts/],
    [{ deep: true, reverse: true }, /reverse needs deepLayers/],
    [{ deep: true, noExpand: true }, /noExpand needs deepLayers/],
    [{ deep: true, deepLayers: 4 }, /deepLayers is 4, and the model has 3 blocks; at most 3/],
    [{ deep: true, deepLayers: 2, reverse: true, location: 'add' }, /reverse is for prompts that stand among/],
    [{ pool: 'prompt', location: 'add' }, /finds no prompts among the tokens at the end/],
    [{ pool: 'prompt', deep: true, deepLayers: 2, noExpand: true }, /finds no prompts/],
    [{ location: 'pad', tokens: 8 }, /a frame of 8 leaves nothing of 16 x 16/],
  ];
  test.each(refused)('%j', (options, why) => {
    const model = vit();
    expect(() => graft(model, 'vpt', options)).toThrow(why);
    expect(() => graft(model, 'vpt', options)).toThrow(RangeError);
    expect(model.parameters().every(({ requiresGrad }) => requiresGrad)).toBe(true);
  });

  test('an option for every token is refused where blocks differ in their number', () => {
    const sizes = { imgSize: 16, patchSize: 2, embedDim: 6, depths: [1, 1], numHeads: [1, 2], windowSize: 4 };
    const swin = createCustomModel('swin', sizes);
    expect(() => graft(swin, 'vpt', { location: 'add', deep: true })).toThrow(/take add_1 or prepend/);
    expect(() => graft(swin, 'vpt', { project: 4 })).toThrow(/one projection cannot serve blocks of 6, 12 channels/);
  });

  test('a network without tokens is answered with its sites', () => {
    expect(() => graft(resnet(), 'vpt', {})).toThrow(/asks for \{"role":"tokens"\}.* Its sites are:/s);
    expect(() => graft(resnet(), 'vpt', { location: 'prepend_pixel' })).toThrow(RangeError);
  });
});

describe('what the head reads', () => {
  const read = (side: number, options: Record<string, unknown>): Tensor => {
    const model = vit();
    graft(model, 'vpt', options, { seed: 3, head: 'frozen' });
    return noGrad(() => model.run(ones([1, 3, side, side])));
  };

  const withoutPrompts: [side: number, options: Record<string, unknown>][] = [
    [16, { location: 'add' }],
    [12, { location: 'pad', tokens: 2 }],
    [16, { location: 'below', tokens: 2, imageSize: [16, 16] }],
    [16, { deep: true, deepLayers: 2, noExpand: true }],
  ];
  test.each(withoutPrompts)('is the patches where no prompts are left beside them: %i, %j', (side, options) => {
    const both = read(side, { ...options, pool: 'imgprompt' });
    expect(both.equal(read(side, { ...options, pool: 'img' }))).toBe(true);
    expect(both.equal(read(side, options))).toBe(false);
  });
});

test('prompts start from gathered class tokens', () => {
  const model = vit();
  const adapter = graft(model, 'vpt', { tokens: 2, deep: true });
  const data = randn([2, 4, 12]);
  const rows = (): Tensor[] =>
    ['prompts', 'deep'].map((name) => adapter.shared.get(name)?.parameters()[0] as Tensor).map((t) => t.detach());
  const expected = {
    final_cls: [[3], [3, 3]],
    cls_nolastl: [[0], [1, 2]],
    cls_nofirstl: [[1], [2, 3]],
  } as const;
  for (const [which, tables] of Object.entries(expected)) {
    startPromptsFromClassTokens(adapter, data, which as keyof typeof expected);
    rows().forEach((table, i) => {
      tables[i]?.forEach((layer, row) => {
        expect(table.select(0, row).equal(data.select(1, layer)), `${which} ${i} ${row}`).toBe(true);
      });
    });
  }
});

describe('official checkpoints', () => {
  test.each(['enc.transformer.', 'enc.', ''])(
    "hold the prompts behind '%s' and the head as head.last_layer",
    (prefix) => {
      const options = { tokens: 2, deep: true, project: 5 };
      const adapter = graft(vit(), 'vpt', options);
      const names = [...adapter.officialState().keys()];
      expect(names.sort()).toEqual([
        'deep_prompt_embeddings',
        'head.last_layer.bias',
        'head.last_layer.weight',
        'prompt_embeddings',
        'prompt_proj.bias',
        'prompt_proj.weight',
      ]);
      const file = new Map(
        Array.from(adapter.officialState(), ([name, t]) => [name.startsWith('head') ? name : prefix + name, t.add(1)]),
      );
      file.set('enc.transformer.encoder.layer.0.attn.out.weight', zeros([12, 12]));
      adapter.loadOfficialState(file);
      const [expected, found] = [
        file.get(`${prefix}prompt_proj.weight`),
        adapter.officialState().get('prompt_proj.weight'),
      ];
      expect(found?.equal(expected as Tensor)).toBe(true);
      file.delete(`${prefix}prompt_proj.bias`);
      expect(() => adapter.loadOfficialState(file)).toThrow(/missing.*prompt_proj\.bias/s);
    },
  );
});

describe('images that do not divide into patches', () => {
  test('lose what is behind the last whole patch, in a model built for their size', () => {
    const model = vit({ imgSize: [18, 23] });
    const x = randn([2, 3, 18, 23]);
    const y = noGrad(() => model.run(x));
    const clean = x.clone();
    clean.narrow(2, 16, 2).copy_(zeros([2, 3, 2, 23]));
    clean.narrow(3, 20, 3).copy_(zeros([2, 3, 18, 3]));
    expect(noGrad(() => model.run(clean)).equal(y)).toBe(true);
    expect(() => vit({ dynamicImgSize: true }).run(randn([1, 3, 18, 20]))).toThrow(/does not divide into patches/);
  });
});

test('a norm on the patches stands before class token and positions', () => {
  const model = vit({ patchNorm: true });
  const embed = model.getModule('patch_embed');
  const x = randn([2, 3, 16, 16]);
  const { proj, norm } = embed as unknown as Record<
    'proj' | 'norm',
    { weight: Tensor; bias: Tensor; run(x: Tensor): Tensor }
  >;
  const tokens = noGrad(() => proj.run(x).flatten(2).transpose(1, 2));
  const expected = functional.layerNorm(tokens, [12], norm.weight, norm.bias, 1e-6);
  expect(
    error(
      noGrad(() => embed.run(x)),
      expected,
    ),
  ).toBeLessThan(1e-6);
  const pairs = graft(model, 'ssf').officialState();
  expect([...pairs.keys()].filter((name) => name.startsWith('patch_embed'))).toEqual([
    'patch_embed.ssf_scale_1',
    'patch_embed.ssf_shift_1',
    'patch_embed.ssf_scale_2',
    'patch_embed.ssf_shift_2',
  ]);
});
