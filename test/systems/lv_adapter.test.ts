/** LV-Adapter: its stages, its start, what it refuses, and that it learns. */
import { describe, expect, test } from 'vitest';
import { graft } from '../../lib/adapters/index.js';
import { ClipTextTransformer, clipTextOptions, createCustomModel } from '../../lib/models/index.js';
import { loadState } from '../../lib/models/load.js';
import { BatchNorm2d } from '../../lib/nn/index.js';
import { BDD100K_CLASSES, encodeWithContexts, LvAdapter, type LvAdapterOptions } from '../../lib/systems/index.js';
import { manualSeed, noGrad, randint, randn, scope, tensor, type Tensor } from '../../lib/tensor/index.js';
import { AdamW } from '../../lib/train/optim.js';

const trunk = () =>
  createCustomModel('clip_resnet', { layers: [1, 1, 1, 1], width: 4, heads: 2, outputDim: 6, imgSize: 32 });
const tower = (contextLength = 7): ClipTextTransformer =>
  new ClipTextTransformer(
    clipTextOptions.parse({ contextLength, vocabSize: 20, width: 8, heads: 2, layers: 1, embedDim: 6 }),
  );
const sizes = { channels: 8, heads: 2, promptLength: 3, headChannels: 4 };
const tokens = (classes: number): Tensor => tensor(Array.from({ length: classes }, (_, k) => [18, k, 19, 0]), { dtype: 'int64' }); // prettier-ignore

function build(options: Partial<LvAdapterOptions> = {}, language = true): LvAdapter {
  manualSeed(6);
  const given = { ...sizes, tasks: { sem: 4, driv: 3, det: 2 }, ...options };
  const model = new LvAdapter(trunk(), language ? tower() : null, given);
  const known = language ? { sem: tokens(4), driv: tokens(3), det: tokens(2) } : {};
  return model.setClasses(known);
}

const images = randn([2, 3, 64, 32]);
const names = (model: LvAdapter, wanted: boolean): Set<string> =>
  new Set(
    model.namedParameters().flatMap(([name, p]) => (p.requiresGrad === wanted ? [name.split('.')[0] ?? ''] : [])),
  );

describe('stages', () => {
  test('adapting trains everything but the towers, whose statistics stand still', () => {
    const model = build().train();
    expect(names(model, true)).toEqual(new Set(['adapter', 'prompts', 'lv', 'heads']));
    expect(names(model, false)).toEqual(new Set(['backbone', 'text_encoder']));
    const norms = model.namedModules().filter(([, module]) => module instanceof BatchNorm2d);
    for (const [path, { training }] of norms) expect(training, path).toBe(path.startsWith('heads.'));
    const before = model.backbone.namedBuffers().map(([, b]) => b.clone());
    model.outputs(images);
    expect(model.backbone.namedBuffers().every(([, b], i) => b.equal(before[i] as Tensor))).toBe(true);
  });

  test('finetuning trains the image tower too, never the text tower', () => {
    const model = build({ stage: 'finetune' }).train();
    expect(names(model, false)).toEqual(new Set(['text_encoder']));
    expect(model.backbone.getModule('bn1').training).toBe(true);
    model.stage = 'adapt';
    expect(names(model, false)).toEqual(new Set(['backbone', 'text_encoder']));
    expect(model.backbone.getModule('bn1').training).toBe(false);
  });
});

test('the language branch starts as nothing', () => {
  const model = build().eval();
  const plain = build({}, false).eval();
  loadState(plain, new Map([...model.stateDict()].filter(([name]) => !/^(text_encoder|prompts|lv)\./.test(name))));
  const [a, b] = noGrad(() => [model.outputs(images), plain.outputs(images)] as const);
  expect(a.logits.sem?.equal(b.logits.sem as Tensor)).toBe(true);
  a.detection.forEach((map, i) => expect(map.equal(b.detection[i] as Tensor)).toBe(true));
  expect(a.logits.driv?.shape).toEqual([2, 3, 64, 32]);
  expect(a.detection.map((map) => map.shape.slice(2))).toEqual([
    [16, 8],
    [8, 4],
    [4, 2],
    [2, 1],
  ]);
});

test('adapting lowers the loss of all tasks; beside an adapter in the trunk too', () => {
  const labels = { sem: randint(0, 4, [2, 64, 32]), driv: randint(0, 3, [2, 64, 32]) };
  for (const adapted of [false, true]) {
    const model = build().train();
    const parameters = adapted ? graft(model, 'bitfit').parameters() : model.parameters().filter((p) => p.requiresGrad);
    expect(parameters.some((p) => model.text_encoder?.parameters().includes(p))).toBe(false);
    const optimizer = new AdamW(parameters, { lr: 1e-2 });
    const loss = (): Tensor => model.losses(model.outputs(images), labels).total;
    const start = Number(noGrad(loss).item());
    for (let step = 0; step < 6; step++) {
      scope(() => {
        optimizer.zeroGrad();
        loss().backward();
        optimizer.step();
      });
    }
    expect(Number(noGrad(loss).item())).toBeLessThan(start);
  }
});

test('contexts of a batch give embeddings for each image', () => {
  const text = tower();
  const contexts = randn([2, 3, 8]);
  const both = noGrad(() => encodeWithContexts(text, tokens(4), contexts));
  expect(both.shape).toEqual([2, 4, 6]);
  [0, 1].forEach((i) => {
    const alone = noGrad(() => encodeWithContexts(text, tokens(4), contexts.narrow(0, i, 1)));
    expect(Number(both.select(0, i).sub(alone).abs().max().item())).toBeLessThan(1e-5);
  });
  expect(() => encodeWithContexts(tower(6), tokens(4), contexts)).toThrow(/4 tokens and 3 learned vectors .* of 6/);
});

test('says what does not fit', () => {
  expect(() => build().setClasses({ sem: tokens(3) })).toThrow(/'sem' has 4 classes, and the tokens are \[3, 4\]/);
  expect(() => build({ tasks: { sem: 4 } }, false).setClasses({ det: tokens(2) })).toThrow(/there is no task 'det'/);
  const unknowing = new LvAdapter(trunk(), tower(), { ...sizes, tasks: { sem: 4 } });
  expect(() => unknowing.run(images)).toThrow(/classes of task 'sem' are not known; call setClasses/);
  expect(() => build({ tasks: { det: 2 } }, false).run(images)).toThrow(/labels no pixels/);
  expect(() => build({ heads: 3 })).toThrow(/8 channels do not divide into 3 heads/);
  expect(() => build({ tasks: {} })).toThrow(/must name a task/);
  expect(() => build({ promptLength: 30 })).toThrow(/prompts of 30 vectors leave no room .* take at most \d+/);
  const long = tensor(
    Array.from({ length: 4 }, () => [18, ...Array<number>(40).fill(1), 19]),
    { dtype: 'int64' },
  );
  expect(() => build().setClasses({ sem: long })).toThrow(/names of 42 tokens do not fit beside 3 prompts/);
  const vit = createCustomModel('vit', { imgSize: 8, patchSize: 4, embedDim: 8, depth: 1, numHeads: 2 });
  expect(() => new LvAdapter(vit, null, { tasks: { sem: 2 } })).toThrow(/strides 4, 8, 16, 32 are expected, vit has 4/);
  const model = build({}, false);
  expect(() => model.losses(model.outputs(images), {})).toThrow(/labels for at least one/);
});

test('loads what it saves', () => {
  const [model, other] = [build(), build()];
  noGrad(() => {
    for (const p of other.parameters()) p.add_(1);
  });
  loadState(other, model.stateDict());
  for (const [name, t] of other.namedState()) expect(t.equal(model.stateDict().get(name) as Tensor), name).toBe(true);
});

test('BDD100K has 19, 3 and 10 classes', () => {
  expect(Object.values(BDD100K_CLASSES).map((list) => list.length)).toEqual([19, 3, 10]);
});
