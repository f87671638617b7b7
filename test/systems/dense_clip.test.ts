/** DenseCLIP for segmentation: what language does, what stays frozen, and that it learns. */
import { describe, expect, test } from 'vitest';
import { graft } from '../../lib/adapters/index.js';
import { type Fpn, FpnHead } from '../../lib/heads/index.js';
import { type ClipTextTransformer } from '../../lib/models/index.js';
import { Context, functional } from '../../lib/nn/index.js';
import {
  ADE20K_CLASSES,
  COCO_CLASSES,
  denseClipGroups,
  DenseAttentionPool2d,
  DenseClip,
} from '../../lib/systems/index.js';
import { full, manualSeed, noGrad, randn, scope, type Tensor } from '../../lib/tensor/index.js';
import { AdamW } from '../../lib/train/optim.js';
import {
  tokenizer,
  classes,
  resnet,
  vit,
  common,
  build,
  images,
  labels,
  number,
  distance,
  pass,
} from './dense_clip.js';

describe('guidance', () => {
  test('scores are the cosines of pixels and classes; at the start the classes are what the text says', () => {
    const model = build().eval();
    const { logits, scores, text: refined } = pass(model);
    expect(logits.shape).toEqual([2, 3, 64, 32]);
    const t = noGrad(() => model.language?.encodeClasses() as Tensor);
    expect(t.shape).toEqual([3, 6]);
    expect(distance(refined, t.unsqueeze(0))).toBeLessThan(2e-3);
    expect(distance(refined, t.unsqueeze(0))).toBeGreaterThan(0);
    const { embedding } = noGrad(() => model.backbone.encode(images));
    expect(embedding.map.shape).toEqual([2, 6, 2, 1]);
    const pixel = embedding.map.select(0, 1).select(1, 1).select(1, 0);
    const one = refined.select(0, 1).select(0, 2);
    const cosine = number(pixel.mul(one).sum()) / (number(pixel.norm()) * number(one.norm()));
    expect(number(scores.select(0, 1).select(0, 2).select(0, 1).select(0, 0))).toBeCloseTo(cosine, 5);
  });

  test('without a context decoder the text is not refined, and without contexts it is what CLIP says', () => {
    const model = build(resnet, { contextDecoder: null, contexts: 0 }).eval();
    const { text: refined } = pass(model);
    const tower = model.text_encoder as ClipTextTransformer;
    const t = noGrad(() => tower.run(tokenizer.tokenize(classes, { contextLength: 5 })));
    expect(distance(refined, t.unsqueeze(0))).toBeLessThan(1e-6);
    expect(model.namedParameters().some(([name]) => /gamma|context_decoder/.test(name))).toBe(false);
  });

  test('the decode head may get the embeddings before the levels; auxiliary heads do not', () => {
    const seen: (readonly number[])[][] = [];
    class Watching extends FpnHead {
      override segment(levels: readonly Tensor[], ctx?: Context): Tensor {
        seen.push(levels.map((level) => level.shape));
        return super.segment(levels.slice(-4), ctx);
      }
    }
    const head = (): Watching => new Watching({ numClasses: 3, inChannels: [8, 8, 8, 8], channels: 4 });
    const { backbone, text_encoder: tower, neck } = build();
    const model = new DenseClip({
      numClasses: 3,
      contextDecoder: common.contextDecoder,
      backbone,
      text: tower,
      neck: neck as Fpn,
      decodeHead: head(),
      auxiliaryHead: head(),
      embeddingsToHead: true,
    });
    model.language?.setClasses(classes, tokenizer);
    expect(Object.keys(model.losses(images, labels).losses)).toEqual([
      'decode.loss_seg',
      'aux.loss_seg',
      'aux_identity.loss_seg',
    ]);
    const maps = [16, 8, 4, 2].map((rows) => [2, 8, rows, rows / 2]);
    expect(seen).toEqual([[[2, 3, 6], ...maps], maps]);
  });

  test('what is remembered serves until contexts or classes change, and never where a graph is needed', () => {
    const model = build().eval();
    const language = model.language as NonNullable<DenseClip['language']>;
    const before = noGrad(() => language.remember().encodeClasses());
    expect(noGrad(() => language.encodeClasses())).toBe(before);
    expect(language.encodeClasses().requiresGrad).toBe(true);
    noGrad(() => model.contexts?.mul_(2));
    const after = noGrad(() => language.encodeClasses());
    expect(distance(after, before)).toBeGreaterThan(1e-4);
    noGrad(() => language.remember());
    language.setClasses(['tree', 'sky', 'road'], tokenizer);
    expect(distance(noGrad(() => language.encodeClasses()).select(0, 1), after.select(0, 0))).toBeLessThan(1e-6);
    expect(language.classNames).toEqual(['tree', 'sky', 'road']);
  });
});

describe('encoders', () => {
  test.each([16, 8])('a transformer with patches of %i has levels of strides 4 to 32', (patch) => {
    const model = build(vit(patch)).eval();
    const { levels, embedding } = noGrad(() => model.backbone.encode(images));
    expect(levels.map((level) => level.shape.slice(1))).toEqual([
      [12, 16, 8],
      [12, 8, 4],
      [12, 4, 2],
      [12, 2, 1],
    ]);
    expect(embedding.map.shape).toEqual([2, 6, 64 / patch, 32 / patch]);
    expect(model.scoreLevel).toBe(patch === 16 ? 2 : 1);
    expect(pass(model).logits.shape).toEqual([2, 3, 64, 32]);
  });

  test('a residual network of other stages has scores at the stride of its last', () => {
    const model = build({ ...resnet, visual: { layers: [1, 1], width: 8, outputDim: 6 } }).eval();
    const { logits, scores } = pass(model);
    expect([logits.shape, scores.shape]).toEqual([
      [2, 3, 64, 32],
      [2, 3, 8, 4],
    ]);
    expect(model.backbone.getModule('attnpool').parameters()[0]?.shape).toEqual([65, 64]);
  });

  test('the class token enters twice', () => {
    const { backbone } = build(vit());
    if (!('cls_token' in backbone)) throw new Error('a transformer is expected');
    const [tokens, doubled] = noGrad(() => {
      const before = backbone.embed(images, new Context());
      // Without its own position, twice the class token is left of it.
      backbone.pos_embed.narrow(1, 0, 1).zero_();
      const norm = backbone.norm_pre as NonNullable<typeof backbone.norm_pre>;
      return [before, norm.run((backbone.cls_token as Tensor).mul(2)).squeeze()];
    });
    const after = noGrad(() => backbone.embed(images, new Context()));
    expect(distance(after.select(1, 0), doubled.unsqueeze(0))).toBeLessThan(1e-6);
    expect(distance(tokens.narrow(1, 1, 8), after.narrow(1, 1, 8))).toBe(0);
  });

  test('cropped positions are the corner of the grid; resized ones reach any size', () => {
    const x = randn([1, 8, 2, 3]);
    const [crop, resize] = (['crop', 'resize'] as const).map((positions) => {
      manualSeed(1);
      return new DenseAttentionPool2d([4, 4], 8, 2, 5, positions);
    }) as [DenseAttentionPool2d, DenseAttentionPool2d];
    const corner = new DenseAttentionPool2d([2, 3], 8, 2, 5, 'crop');
    noGrad(() => {
      const stored = crop.positional_embedding;
      const grid = stored.narrow(0, 1, 16).unflatten(0, [4, 4]).narrow(0, 0, 2).narrow(1, 0, 3).flatten(0, 1);
      corner.positional_embedding.narrow(0, 0, 1).copy_(stored.narrow(0, 0, 1));
      corner.positional_embedding.narrow(0, 1, 6).copy_(grid);
      for (const part of ['q_proj', 'k_proj', 'v_proj', 'c_proj'] as const) {
        corner[part].loadStateDict(crop[part].stateDict());
      }
      expect(distance(crop.dense(x).map, corner.dense(x).map)).toBeLessThan(1e-6);
      expect(distance(crop.dense(x).map, resize.dense(x).map)).toBeGreaterThan(1e-3);
      expect(resize.dense(randn([1, 8, 6, 5])).map.shape).toEqual([1, 5, 6, 5]);
      expect(() => crop.dense(randn([1, 8, 5, 2]))).toThrow(/map of 5 x 2 does not lie in the positions of 4 x 4/);
      // The pooled vector is the plain pool's.
      expect(distance(crop.dense(x).global, crop.run(x))).toBeLessThan(1e-6);
    });
  });
});

describe('losses', () => {
  test('the scores have a loss of their own, over all pixels, those that do not count being 0', () => {
    const model = build().eval();
    const some = labels.clone();
    some.narrow(1, 0, 32).fill_(255);
    const { losses, loss } = model.losses(images, some.unsqueeze(1));
    const { scores } = pass(model);
    const logits = functional.interpolate(scores.div(0.07), { size: [64, 32] });
    const counted = functional.crossEntropy(logits, some, { ignoreIndex: 255, reduction: 'sum' });
    const own = losses['aux_identity.loss_seg'] as Tensor;
    expect(number(own)).toBeCloseTo((0.4 * number(counted)) / (2 * 64 * 32), 5);
    expect(number(loss)).toBeCloseTo(number(own) + number(losses['decode.loss_seg'] as Tensor), 5);
    const nothing = model.losses(images, full([2, 64, 32], 255, { dtype: 'int64' }));
    expect(number(nothing.loss)).toBe(0);
  });

  test('without it, or without language, the head is alone', () => {
    expect(Object.keys(build(resnet, { scoreWeight: 0 }).losses(images, labels).losses)).toEqual(['decode.loss_seg']);
    const baseline = build(resnet, { language: false });
    expect(Object.keys(baseline.losses(images, labels).losses)).toEqual(['decode.loss_seg']);
    expect(baseline.namedParameters().some(([name]) => /attnpool|text|context|gamma/.test(name))).toBe(false);
  });

  test('training lowers them, for both encoders; the text tower stays', () => {
    for (const sizes of [resnet, vit()]) {
      const model = build(sizes).train();
      const frozen = (model.text_encoder as ClipTextTransformer).parameters();
      const before = frozen.map((p) => p.detach().clone());
      const optimizer = new AdamW(denseClipGroups(model, { lr: 5e-3 }));
      const loss = (): Tensor => model.losses(images, labels).loss;
      const start = number(noGrad(loss));
      for (let step = 0; step < 6; step++) {
        scope(() => {
          optimizer.zeroGrad();
          loss().backward();
          optimizer.step();
        });
      }
      expect(number(noGrad(loss))).toBeLessThan(start);
      expect(model.contexts?.grad && number(model.contexts.grad.abs().sum())).toBeGreaterThan(0);
      frozen.forEach((p, i) => expect(p.grad === null && p.equal(before[i] as Tensor)).toBe(true));
    }
  });
});

describe('what is trained', () => {
  test('three groups: the image tower at a tenth, norms without decay, the rest; no text tower', () => {
    const model = build();
    const groups = denseClipGroups(model, { lr: 2e-4, weightDecay: 1e-2 });
    expect(groups.map(({ lr, weightDecay }) => [lr, weightDecay])).toEqual([
      [2e-5, 1e-2],
      [2e-4, 0],
      [2e-4, 1e-2],
    ]);
    const [tower, norms, rest] = groups.map((group) => new Set(group.params));
    for (const [name, p] of model.namedParameters()) {
      const expected = name.startsWith('backbone.') ? tower : /\.norm\d\./.test(name) ? norms : rest;
      const isText = name.startsWith('text_encoder.');
      expect(p.requiresGrad, name).toBe(!isText);
      for (const group of [tower, norms, rest]) expect(group?.has(p), name).toBe(!isText && group === expected);
    }
  });

  test('beside an adapter in the image tower: the adapter, and everything but the towers; levels are resized anew', () => {
    const model = build(vit());
    const adapter = graft(model, 'lora', { rank: 2 }, { head: 'train' });
    const part = (name: string): string => /^backbone\.fpn\d|^[^.]*/.exec(name)?.[0] ?? '';
    const trained = new Set(model.namedParameters().flatMap(([name, p]) => (p.requiresGrad ? [part(name)] : [])));
    const resizers = ['backbone.fpn1', 'backbone.fpn2', 'backbone.fpn3', 'backbone.fpn4'];
    const withWeights = resizers.filter((path) => model.getModule(path).parameters().length > 0);
    expect(trained).toEqual(new Set(['contexts', 'gamma', 'context_decoder', 'neck', 'decode_head', ...withWeights]));
    const before = noGrad(() => model.eval().run(images));
    model.losses(images, labels).loss.backward();
    expect(adapter.parameters().some((p) => p.grad !== null && number(p.grad.abs().sum()) > 0)).toBe(true);
    adapter.remove();
    expect(
      distance(
        noGrad(() => model.run(images)),
        before,
      ),
    ).toBe(0);
  });
});

describe('inference', () => {
  test('windows are averaged where they overlap; every window is a pass of its own', () => {
    const model = build().eval();
    const large = randn([1, 3, 64, 96]);
    const slid = noGrad(() => model.logits(large, { crop: 64, stride: 32 }));
    const [left, right] = [0, 32].map((x) => pass(model, large.narrow(3, x, 64)).logits) as [Tensor, Tensor];
    expect(distance(slid.narrow(3, 0, 32), left.narrow(3, 0, 32))).toBeLessThan(1e-5);
    expect(distance(slid.narrow(3, 64, 32), right.narrow(3, 32, 32))).toBeLessThan(1e-5);
    const middle = left
      .narrow(3, 32, 32)
      .add(right.narrow(3, 0, 32))
      .div(2);
    expect(distance(slid.narrow(3, 32, 32), middle)).toBeLessThan(1e-5);
  });

  test('predict slides over what is larger, changes no mode and makes no graph', () => {
    const model = build().train();
    model.backbone.eval();
    const statistics = model.namedBuffers().map(([, b]) => b.clone());
    const found = model.predict(randn([1, 3, 64, 100]));
    expect([found.shape, found.dtype, found.requiresGrad]).toEqual([[1, 64, 100], 'int64', false]);
    expect([model.training, model.backbone.training, model.decode_head.training]).toEqual([true, false, true]);
    model.namedBuffers().forEach(([name, b], i) => expect(b.equal(statistics[i] as Tensor), name).toBe(true));
    const small = model.predict(images);
    expect(small.equal(pass(model.eval()).logits.argmax(1))).toBe(true);
  });
});

test('ADE20K has 150 classes and COCO 80, all short enough', () => {
  expect([ADE20K_CLASSES.length, COCO_CLASSES.length]).toEqual([150, 80]);
  expect(new Set(COCO_CLASSES).size).toBe(80);
  expect(
    [...ADE20K_CLASSES, ...COCO_CLASSES].every((name) => name.trim() === name && name.split(' ').length <= 3),
  ).toBe(true);
});
