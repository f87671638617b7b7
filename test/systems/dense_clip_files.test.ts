/** DenseCLIP for segmentation: what loads, and what is refused. */
import { describe, expect, test } from 'vitest';
import { createCustomClip, loadState, type Clip } from '../../lib/models/index.js';
import { functional } from '../../lib/nn/index.js';
import { createDenseClip, type DenseClipSizes } from '../../lib/systems/index.js';
import { noGrad, tensor, type Tensor } from '../../lib/tensor/index.js';
import { tokenizer, classes, text, resnet, vit, common, build, images, distance } from './dense_clip.js';

describe('files', () => {
  const clipOf = (kind: 'vit' | 'resnet', outputDim = 6): Clip =>
    createCustomClip({
      visualKind: kind,
      visual:
        kind === 'vit'
          ? { imgSize: 32, patchSize: 16, embedDim: 12, depth: 4, numHeads: 2, projDim: outputDim }
          : { imgSize: 96, layers: [1, 1, 1, 1], width: 2, heads: 1, outputDim },
      text: { ...text, contextLength: 20, vocabSize: tokenizer.vocabSize, embedDim: outputDim },
    });

  test.each(['vit', 'resnet'] as const)('takes the towers of a CLIP with a %s in any names', (kind) => {
    const clip = clipOf(kind);
    for (const format of ['own', 'openai'] as const) {
      const model = build(kind === 'vit' ? vit() : resnet);
      const contexts = model.contexts?.clone() as Tensor;
      model.loadClip(format === 'own' ? clip.stateDict() : clip.officialState(format));
      expect(model.contexts?.equal(contexts)).toBe(true);
      const own = model.stateDict();
      const positions = own.get('text_encoder.positional_embedding') as Tensor;
      expect(positions.equal(clip.text.positional_embedding.narrow(0, 0, 13))).toBe(true);
      for (const path of ['layer4.0.conv2.weight', 'blocks.3.attn.qkv.weight', 'attnpool.c_proj.weight']) {
        const theirs = clip.stateDict().get(`visual.${path}`);
        if (theirs) expect(own.get(`backbone.${path}`)?.equal(theirs), path).toBe(true);
      }
      // Bilinear from 2 x 2 or 3 x 3; the first position is kept.
      const [name, rows] = kind === 'vit' ? ['pos_embed', 17] : ['attnpool.positional_embedding', 5];
      const [made, given] = [own.get(`backbone.${name}`), clip.stateDict().get(`visual.${name}`)].map((t) =>
        t?.reshape([-1, t.shape.at(-1) ?? 0]),
      ) as [Tensor, Tensor];
      expect(made.shape[0]).toBe(rows);
      expect(made.select(0, 0).equal(given.select(0, 0))).toBe(true);
      const side = Math.sqrt((given.shape[0] ?? 1) - 1);
      const map = given
        .narrow(0, 1, side ** 2)
        .t()
        .reshape([1, -1, side, side]);
      const size = Math.sqrt(rows - 1);
      const resized = functional
        .interpolate(map, { size: [size, size] })
        .flatten(2)
        .squeeze(0)
        .t();
      expect(distance(made.narrow(0, 1, rows - 1), resized)).toBeLessThan(1e-6);
    }
  });

  test('another CLIP, or no CLIP, is refused and nothing changes', () => {
    const model = build();
    const before = model.stateDict().get('backbone.conv1.weight')?.clone() as Tensor;
    expect(() => model.loadClip(clipOf('resnet', 8).stateDict())).toThrow(/does not fit/);
    expect(() => model.loadClip(model.stateDict())).toThrow(/does not hold a CLIP/);
    expect(model.stateDict().get('backbone.conv1.weight')?.equal(before)).toBe(true);
  });

  test('a baseline takes the image tower only', () => {
    const clip = clipOf('vit');
    const model = build(vit(), { language: false });
    model.loadClip(clip.officialState('openai'));
    const weight = model.stateDict().get('backbone.patch_embed.proj.weight');
    expect(weight?.equal(clip.visual.getModule('patch_embed.proj').parameters()[0] as Tensor)).toBe(true);
  });

  test.each([resnet, vit(), vit(8)])('loads what it saves, in official names and its own', (sizes) => {
    const model = build(sizes);
    const official = model.officialState();
    expect([...official.keys()]).toContain('text_encoder.text_projection');
    for (const state of [official, model.stateDict()]) {
      const other = build(sizes);
      noGrad(() => {
        for (const p of other.parameters()) p.add_(1);
      });
      loadState(other, state);
      const own = model.stateDict();
      for (const [name, t] of other.namedState()) expect(t.equal(own.get(name) as Tensor), name).toBe(true);
    }
  });
});

describe('what does not fit is said', () => {
  test('names and classes', () => {
    expect(() => build(resnet, { classes: ['sky', 'road', 'tree sky road tree'] })).toThrow(
      /6 tokens long and the context 5/,
    );
    const model = build();
    expect(() => model.language?.setClasses(['sky'], tokenizer)).toThrow(/built for 3 classes and was given 1/);
    expect(() => model.language?.setClasses(tensor([[1, 2], [1, 2], [1, 2]], { dtype: 'int64' }))).toThrow(/must be \[3, 5\], got \[3, 2\]/); // prettier-ignore
    const { tokenizer: _, ...unknowing } = common;
    expect(() => createDenseClip(resnet, unknowing).run(images)).toThrow(
      /classes are not known; call language.setClasses/,
    );
    expect(() => model.resetClassifier()).toThrow(/build a new model/);
  });

  test('sizes', () => {
    expect(() => createDenseClip('RN5O', common)).toThrow(/no DenseCLIP 'RN5O'; did you mean RN50/);
    expect(() => createDenseClip(resnet, { classes })).toThrow(/need inputResolution/);
    expect(() => build(resnet, { contextDecoder: { width: 6, heads: 4 } })).toThrow(/6 does not divide into 4 heads/);
    expect(() => build(vit(4))).toThrow(/patches of 16 or 8, not of 4/);
    const taps = { ...vit(), visual: { ...vit().visual, outIndices: [0, 2, 1, 3] } };
    expect(() => build(taps as DenseClipSizes)).toThrow(/four of the blocks 0 to 3 in rising order, got 0, 2, 1, 3/);
    expect(() => createDenseClip(resnet, { ...common, temperature: 1 } as never)).toThrow(
      /unknown option 'temperature'/,
    );
  });
});
