/** Methods on text models: the life of an adapter there, mixed batches, and forms that must agree with each other. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { graft, loadAdapter, LokrConv, LokrLinear, type Adapter } from '../../lib/adapters/index.js';
import type { TextInputs, TextModel } from '../../lib/models/index.js';
import { Conv2d, functional } from '../../lib/nn/index.js';
import { aten, keep, manualSeed, noGrad, randn, scope, tensor, type Tensor } from '../../lib/tensor/index.js';
import { AdamW } from '../../lib/train/optim.js';
import { randomizeText, textInputs, tinyTexts } from '../models/text_tiny.js';

interface Row {
  readonly method: string;
  readonly options?: Record<string, unknown>;
  readonly identityAtStart: boolean;
  readonly merges?: boolean;
}

const rows: readonly Row[] = [
  { method: 'full', identityAtStart: true },
  { method: 'bitfit', identityAtStart: true },
  { method: 'lora', options: { rank: 2 }, identityAtStart: true, merges: true },
  {
    method: 'lora',
    options: { rank: 2, init: 'bert', at: { role: ['fc1', 'fc2'] } },
    identityAtStart: false,
    merges: true,
  },
  {
    method: 'krona',
    options: { trainLayerNorm: true, at: { role: ['q', 'k', 'v', 'o'] } },
    identityAtStart: true,
    merges: true,
  },
  { method: 'krona_b', options: { scale: 3 }, identityAtStart: true },
  { method: 'krona_b_res', identityAtStart: false },
  { method: 'lokr', options: { rank: 1 }, identityAtStart: true, merges: true },
  { method: 'adapter', options: { design: 'houlsby', width: 3 }, identityAtStart: false },
  { method: 'adapter', options: { design: 'pfeiffer', width: 3, mlp: { start: 'lora' } }, identityAtStart: true },
  { method: 'adapter', options: { width: 3, attention: { scale: 'learned' } }, identityAtStart: true },
  { method: 'adapter', options: { design: 'multi_head_parallel', width: 4, reparametrize: 5 }, identityAtStart: false },
  { method: 'prefix', options: { length: 3, reparametrize: 4 }, identityAtStart: false },
  { method: 'prefix', options: { length: 3, composition: 'gated', query: 'normed' }, identityAtStart: false },
  { method: 'mam', options: { length: 2, width: 4 }, identityAtStart: false },
  { method: 'prompt_tuning', options: { length: 3 }, identityAtStart: false },
];

const output = (model: TextModel, inputs: TextInputs): Tensor =>
  noGrad(() => scope(() => model.outputs(inputs).logits));

const difference = (a: Tensor, b: Tensor): number =>
  scope(() => Number(a.sub(b).norm().item()) / Number(b.norm().item()));

/** Steps on one batch; returns the losses before and after. */
function train(model: TextModel, adapter: Adapter, inputs: TextInputs): { before: number; after: number } {
  const optimizer = new AdamW(adapter.parameters(), { lr: 3e-3, weightDecay: 0 });
  const loss = (): Tensor => {
    const { logits } = model.outputs(inputs);
    const flat = logits.reshape([-1, logits.shape.at(-1) ?? 1]);
    const labels = tensor(
      Array.from({ length: flat.shape[0] ?? 0 }, (_, i) => i % 5),
      { dtype: 'int64' },
    );
    return functional.crossEntropy(flat, labels);
  };
  const measure = (): number => noGrad(() => scope(() => Number(loss().item())));
  const before = measure();
  for (let step = 0; step < 3; step++) {
    scope(() => {
      optimizer.zeroGrad();
      loss().backward();
      optimizer.step();
    });
  }
  return { before, after: measure() };
}

describe.each(rows)('$method $options', ({ method, options = {}, identityAtStart, merges = false }) => {
  test.each(tinyTexts)('lives a whole life on $name', ({ make }) => {
    manualSeed(7);
    const model = randomizeText(make());
    const inputs = textInputs(model);
    const before = new Map(model.namedState().map(([key, t]) => [key, keep(t.detach().clone())]));
    const plain = output(model, inputs);

    const adapter = graft(model, method, options, { seed: 3 });
    expect(output(model, inputs).equal(plain)).toBe(identityAtStart);
    const loss = train(model, adapter, inputs);
    expect(loss.after).toBeLessThan(loss.before);
    const trained = output(model, inputs);

    const path = join(mkdtempSync(join(tmpdir(), 'torchgraft-text-')), 'adapter');
    adapter.save(path);
    adapter.disable();
    expect(output(model, inputs).equal(plain)).toBe(true);
    for (const [key, t] of model.namedState()) expect(before.get(key)?.equal(t), key).toBe(true);
    adapter.enable();
    if (merges) {
      adapter.merge();
      expect(difference(output(model, inputs), trained)).toBeLessThan(1e-5);
      adapter.unmerge();
      expect(output(model, inputs).equal(trained)).toBe(true);
    }
    adapter.remove();
    loadAdapter(model, path);
    expect(output(model, inputs).equal(trained)).toBe(true);
    rmSync(path, { recursive: true });
  });
});

describe('mixed batches of text', () => {
  const sample = (inputs: TextInputs, row: number): TextInputs =>
    Object.fromEntries(
      Object.entries(inputs).map(([name, t]) => [name, (t as Tensor).narrow(0, row, 1)]),
    ) as unknown as TextInputs;

  test.each(tinyTexts)('on $name each sample has its adapter, mask and decoder ids', ({ make }) => {
    manualSeed(8);
    const model = randomizeText(make());
    const inputs = textInputs(model);
    for (const [i, name] of ['a', 'b'].entries()) {
      const adapter = graft(model, 'lora', { rank: 2, init: 'bert' }, { name, head: 'frozen', seed: i });
      noGrad(() => adapter.parameters().forEach((p) => p.mul_(20)));
    }
    // A third with its own values of backbone tensors shares no pass with the others.
    const own = graft(model, 'krona', { trainLayerNorm: true }, { name: 'own', head: 'frozen' });
    noGrad(() => own.parameters().forEach((p) => p.add_(0.1)));
    for (const adapters of [
      ['a', 'b'],
      [null, 'a'],
      ['own', 'b'],
    ]) {
      const mixed = noGrad(() => model.outputs(inputs, { adapters }));
      for (const [row, adapter] of adapters.entries()) {
        const alone = noGrad(() => model.outputs(sample(inputs, row), { adapters: [adapter] }));
        expect(difference(mixed.logits.narrow(0, row, 1), alone.logits)).toBeLessThan(1e-5);
        expect(difference(mixed.encoder.narrow(0, row, 1), alone.encoder)).toBeLessThan(1e-5);
      }
      expect(difference(mixed.logits.narrow(0, 0, 1), mixed.logits.narrow(0, 1, 1))).toBeGreaterThan(1e-3);
    }
  });
});

describe('forms that must agree', () => {
  test('a gated second attention is the prefix before the keys', () => {
    manualSeed(9);
    // T5 scales no scores, so that `scaled: false` changes nothing but the way of computing.
    const [, ...others] = tinyTexts;
    const model = randomizeText((tinyTexts[0] ?? others[0])?.make() as TextModel);
    const inputs = textInputs(model);
    const joint = graft(model, 'prefix', { length: 3, composition: 'gated' }, { name: 'joint' });
    const second = graft(model, 'prefix', { length: 3, composition: 'gated', scaled: false }, { name: 'second' });
    const target = new Map(second.namedParameters());
    noGrad(() => {
      for (const [name, value] of joint.namedParameters()) {
        value.mul_(30);
        const [, owner = '', what = ''] = /^(.*)\.(?:keys|values)\.prefix_(key|value)\.weight$/.exec(name) ?? [];
        (target.get(`${owner}.core.prefix.${what}`) as Tensor).copy_(value);
      }
    });
    joint.activate();
    const expected = output(model, inputs);
    second.activate();
    expect(difference(output(model, inputs), expected)).toBeLessThan(1e-5);
    joint.disable();
    second.disable();
    expect(difference(output(model, inputs), expected)).toBeGreaterThan(1e-3);
  });

  test('a prefix before the keys refuses what only a second attention can do', () => {
    const model = tinyTexts[2]?.make() as TextModel;
    expect(() => graft(model, 'prefix', { nonlinearity: 'relu' })).toThrow(/'gated' or 'add'/);
  });

  test.each([
    { rank: 2, decomposeBoth: false, decomposeFactor: -1, effectiveConv: false, groups: 1 },
    { rank: 1, decomposeBoth: true, decomposeFactor: 2, effectiveConv: true, groups: 1 },
    { rank: 1, decomposeBoth: true, decomposeFactor: 4, effectiveConv: false, groups: 2 },
    { rank: 9, decomposeBoth: true, decomposeFactor: 5, effectiveConv: true, groups: 1 },
  ])(
    'LoKr of a convolution is the convolution with its increment: $rank $decomposeFactor $groups',
    ({ groups, ...o }) => {
      const geometry = { kernelSize: [3, 2] as const, stride: [2, 1] as const, padding: [1, 0] as const };
      const layer = new Conv2d(8, 12, { ...geometry, groups });
      const form = new LokrConv(layer, 12, o);
      noGrad(() => form.parameters().forEach((p) => p.normal_(0, 1)));
      const x = randn([2, 8, 7, 6]);
      const expected = aten.conv2d(x, form.delta(), null, [2, 1], [1, 0], [1, 1], groups);
      expect(form.delta().shape).toEqual(layer.weight.shape);
      expect(difference(form.run(x), expected)).toBeLessThan(1e-5);
      const linear = new LokrLinear(12, 10, o);
      noGrad(() => linear.parameters().forEach((p) => p.normal_(0, 1)));
      const row = randn([4, 12]);
      expect(difference(linear.run(row), row.matmul(linear.delta().t()))).toBeLessThan(1e-5);
    },
  );

  test('factors that do not make the matrix are refused before anything is built', () => {
    const model = tinyTexts[2]?.make() as TextModel;
    expect(() => graft(model, 'krona', { a: [3, 4], b: [4, 4] })).toThrow(/rows must multiply to 16/);
    expect(() => graft(model, 'krona', { at: { role: 'norm' } })).toThrow(/needs a linear layer/);
    expect(model.parameters().every((p) => p.requiresGrad)).toBe(true);
  });
});
