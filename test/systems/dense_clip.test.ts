/** DenseCLIP for segmentation: what language does, what stays frozen, what loads, what is refused, and that it learns. */
import { describe, expect, test } from 'vitest';
import { graft } from '../../lib/adapters/index.js';
import { type Fpn, FpnHead } from '../../lib/heads/index.js';
import {
  ClipTokenizer,
  createCustomClip,
  loadState,
  type Clip,
  type ClipTextTransformer,
} from '../../lib/models/index.js';
import { BatchNorm2d, Context, functional } from '../../lib/nn/index.js';
import {
  ADE20K_CLASSES,
  COCO_CLASSES,
  createDenseClip,
  denseClipGroups,
  DenseAttentionPool2d,
  type CreateDenseClipOptions,
  DenseClip,
  type DenseClipSizes,
  SCORE_MAP,
  TEXT_EMBEDDINGS,
} from '../../lib/systems/index.js';
import { full, manualSeed, noGrad, randint, randn, scope, tensor, type Tensor } from '../../lib/tensor/index.js';
import { AdamW } from '../../lib/train/optim.js';

const tokenizer = new ClipTokenizer(['s k', 'sk y</w>', 'r o', 'ro a', 'roa d</w>', 't r', 'tr e', 'tre e</w>']);
const classes = ['sky', 'road', 'tree'];
const text = { width: 8, heads: 2, layers: 1 };
const resnet: DenseClipSizes = { visual: { layers: [1, 1, 1, 1], width: 2, outputDim: 6 }, text };
const vit = (patchSize = 16): DenseClipSizes => ({
  visual: { patchSize, width: 12, layers: 4, heads: 2, outputDim: 6, outIndices: [0, 1, 2, 3] },
  text,
});
const common = {
  classes,
  tokenizer,
  inputResolution: 64,
  contextDecoder: { width: 8, heads: 2, layers: 1 },
  channels: 8,
};

function build(sizes: DenseClipSizes = resnet, options: Partial<CreateDenseClipOptions> = {}): DenseClip {
  manualSeed(9);
  const model = createDenseClip(sizes, { ...common, ...options });
  // The last norm of each block starts at 0 and would hide the block.
  noGrad(() => model.apply((part) => part instanceof BatchNorm2d && part.weight?.fill_(1)));
  return model;
}
const images = randn([2, 3, 64, 32]);
const labels = randint(0, 3, [2, 64, 32], { dtype: 'int64' });
const number = (x: Tensor): number => Number(x.item());
const distance = (a: Tensor, b: Tensor): number => number(a.sub(b).abs().max());

function pass(model: DenseClip, x: Tensor = images) {
  const ctx = new Context();
  const logits = noGrad(() => model.run(x, ctx));
  return { logits, scores: ctx.aux.get(SCORE_MAP) as Tensor, text: ctx.aux.get(TEXT_EMBEDDINGS) as Tensor };
}

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

test('ADE20K has 150 classes and COCO 80, all short enough', () => {
  expect([ADE20K_CLASSES.length, COCO_CLASSES.length]).toEqual([150, 80]);
  expect(new Set(COCO_CLASSES).size).toBe(80);
  expect(
    [...ADE20K_CLASSES, ...COCO_CLASSES].every((name) => name.trim() === name && name.split(' ').length <= 3),
  ).toBe(true);
});
