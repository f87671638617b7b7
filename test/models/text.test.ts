/** Text models: what masks hide, what is refused, how files are read. */
import { describe, expect, test } from 'vitest';
import {
  createCustomTextModel,
  createTextModel,
  listTextModels,
  loadState,
  relativeBuckets,
  shiftRight,
  textModelInfo,
} from '../../lib/models/index.js';
import { aten, manualSeed, noGrad, scope, tensor, type Tensor, zeros } from '../../lib/tensor/index.js';
import { randomizeText, textInputs, tinyTexts } from './text_tiny.js';

const difference = (a: Tensor, b: Tensor): number => scope(() => Number(a.sub(b).abs().max().item()));

describe.each(tinyTexts)('$name', ({ name, make }) => {
  const isRoberta = name === 'roberta';

  test('publishes every role that methods ask for', () => {
    const roles = new Set(
      make()
        .sites()
        .flatMap((site) => site.roles),
    );
    const wanted = 'tokens block attention mlp attention_path mlp_path attention_branch mlp_branch linear norm';
    for (const role of `${wanted} keys values heads joined_heads q k v features`.split(' '))
      expect(roles).toContain(role);
    expect(roles.has('classifier')).toBe(isRoberta);
    const blocks = make()
      .sites()
      .filter(({ roles: own }) => own.includes('block'));
    expect(blocks.map(({ depth }) => depth)).toEqual(blocks.map((_, i) => i));
  });

  test('gives the same for a sequence with and without padding behind it', () => {
    manualSeed(1);
    const model = randomizeText(make());
    const inputs = textInputs(model);
    const second = (t: Tensor, columns?: number): Tensor => t.narrow(0, 1, 1).narrow(1, 0, columns ?? t.shape[1] ?? 0);
    const { inputIds, attentionMask, decoderInputIds } = inputs;
    const whole = noGrad(() => model.outputs(inputs));
    const short = noGrad(() =>
      model.outputs({
        inputIds: second(inputIds, 4),
        ...(decoderInputIds && { decoderInputIds: second(decoderInputIds) }),
      }),
    );
    expect(difference(whole.logits.narrow(0, 1, 1), short.logits)).toBeLessThan(1e-5);
    const open = noGrad(() => model.outputs({ ...inputs, attentionMask: attentionMask?.mul(0).add(1) as Tensor }));
    expect(difference(whole.logits, open.logits)).toBeGreaterThan(1e-4);
  });

  test.skipIf(isRoberta)('decodes each position from itself and those before it', () => {
    manualSeed(2);
    const model = randomizeText(make());
    const inputs = textInputs(model);
    const ids = inputs.decoderInputIds as Tensor;
    const changed = aten.cat([ids.narrow(1, 0, 3), ids.narrow(1, 3, 2).sub(1)], 1);
    const one = noGrad(() => model.outputs(inputs).logits);
    const other = noGrad(() => model.outputs({ ...inputs, decoderInputIds: changed }).logits);
    expect(difference(one.narrow(1, 0, 3), other.narrow(1, 0, 3))).toBe(0);
    expect(difference(one.narrow(1, 3, 2), other.narrow(1, 3, 2))).toBeGreaterThan(1e-4);
  });

  test('hides what the decoder mask hides, and survives rows that see nothing', () => {
    manualSeed(3);
    const model = randomizeText(make());
    const inputs = textInputs(model);
    if (!model.hasDecoder) {
      expect(() => model.outputs({ ...inputs, decoderInputIds: inputs.inputIds })).toThrow(
        /reads no 'decoderInputIds'/,
      );
      return;
    }
    const mask = tensor([[0, 1, 1, 1, 1], [1, 1, 0, 1, 1]], { dtype: 'int64' }); // prettier-ignore
    const masked = noGrad(() => model.outputs({ ...inputs, decoderAttentionMask: mask }).logits);
    expect(masked.isfinite().all().item()).toBe(true);
    const plain = noGrad(() => model.outputs(inputs).logits);
    expect(difference(masked.narrow(0, 1, 1).narrow(1, 0, 2), plain.narrow(0, 1, 1).narrow(1, 0, 2))).toBeLessThan(
      1e-5,
    );
    expect(difference(masked.narrow(0, 1, 1).narrow(1, 3, 2), plain.narrow(0, 1, 1).narrow(1, 3, 2))).toBeGreaterThan(
      1e-4,
    );
  });

  test('refuses inputs that do not fit', () => {
    const model = make();
    const inputs = textInputs(model);
    const { inputIds, attentionMask } = inputs;
    expect(() => model.outputs({ ...inputs, inputIds: inputIds.to('float32') })).toThrow(TypeError);
    expect(() => model.outputs({ ...inputs, inputIds: inputIds.narrow(1, 0, 0) })).toThrow(/must be \[B, N\]/);
    expect(() => model.outputs({ ...inputs, attentionMask: (attentionMask as Tensor).narrow(1, 0, 3) })).toThrow(
      /mask/,
    );
    expect(() => model.forward(inputIds, { inputs: { typo: inputIds } })).toThrow(/reads no 'typo'/);
    if (model.hasDecoder) expect(() => model.forward(inputIds)).toThrow(/needs decoderInputIds/);
    if (!name.startsWith('t5')) {
      const long = zeros([1, 30], { dtype: 'int64' });
      const rest = model.hasDecoder ? { decoderInputIds: long } : {};
      expect(() => model.outputs({ inputIds: long, ...rest })).toThrow(/at most/);
    }
  });

  test('checkpointing changes no gradient', () => {
    manualSeed(4);
    const model = randomizeText(make());
    const inputs = textInputs(model);
    const gradients = (checkpointing: boolean): Tensor[] => {
      model.setCheckpointing(checkpointing).zeroGrad();
      scope(() => model.outputs(inputs).logits.square().sum().backward());
      return model.parameters().map((p) => p.grad?.clone() ?? zeros([1]));
    };
    const expected = gradients(false);
    const sizes = expected.map((g) => Number(g.norm().item()));
    gradients(true).forEach((g, i) => {
      expect(difference(g, expected[i] as Tensor)).toBeLessThan(1e-4 * Math.max(...sizes));
    });
  });

  test('reads files that hold shared tables once, under any of their names', () => {
    manualSeed(5);
    const model = randomizeText(make());
    const inputs = textInputs(model);
    const state = new Map(model.stateDict());
    for (const alias of ['encoder.embed_tokens.weight', 'model.shared.weight', 'model.decoder.embed_tokens.weight'])
      state.delete(alias);
    if (isRoberta) state.set('lm_head.bias', zeros([30]));
    const other = make().eval();
    loadState(other, state);
    expect(other.outputs(inputs).logits.equal(model.outputs(inputs).logits)).toBe(true);
  });
});

describe('names and figures', () => {
  test.each([
    ['t5_small', 60_506_624],
    ['t5_base', 222_903_552],
    ['t5_large', 737_668_096],
    ['t5_v1_1_small', 76_961_152],
    ['t5_v1_1_base', 247_577_856],
    ['t5_v1_1_large', 783_150_080],
    ['bart_large', 406_291_456],
    ['roberta_base', 124_647_170],
  ])('%s has %d parameters', (name, parameters) => {
    expect(textModelInfo(name).parameters).toBe(parameters);
  });

  test('unknown names are answered with the nearest', () => {
    expect(listTextModels('mbart')).toEqual(['mbart_large_cc25', 'mbart_large_50']);
    expect(() => createTextModel('t5_smal')).toThrow(/did you mean t5_small/);
    expect(() => createTextModel('roberta_base', { dims: 3 })).toThrow(/unknown option 'dims'/);
    expect(() => createCustomTextModel('bart', { dim: 10, depth: 1, numHeads: 3, hidden: 4 })).toThrow(
      /does not divide/,
    );
  });

  test('a classifier can be exchanged, a vocabulary cannot', () => {
    const model = createCustomTextModel('roberta', { dim: 8, depth: 1, numHeads: 2, hidden: 8, vocabulary: 9 });
    const before = model.getModule('classifier');
    model.resetClassifier(7);
    const ids = tensor([[2, 3]], { dtype: 'int64' });
    expect(model.outputs({ inputIds: ids }).logits.shape).toEqual([1, 7]);
    model.restoreClassifier(before);
    expect(model.outputs({ inputIds: ids }).logits.shape).toEqual([1, 2]);
    model.resetClassifier(0);
    expect(model.outputs({ inputIds: ids }).logits.shape).toEqual([1, 8]);
    const t5 = tinyTexts[0]?.make();
    expect(() => t5?.resetClassifier(3)).toThrow(/no classifier/);
  });
});

test('labels become decoder inputs by a shift', () => {
  const labels = tensor([[5, 6, -100], [7, -100, -100]], { dtype: 'int64' }); // prettier-ignore
  expect(shiftRight(labels).tolist()).toEqual([[0, 5, 6], [0, 7, 0]]); // prettier-ignore
  expect(shiftRight(labels, { start: 2, pad: 1 }).tolist()).toEqual([[2, 5, 6], [2, 7, 1]]); // prettier-ignore
});

test('far positions share buckets, and the sides are told apart', () => {
  const both = relativeBuckets(3, 3, { bidirectional: true, buckets: 32, maxDistance: 128 }, 'cpu');
  expect(both.tolist()).toEqual([[0, 17, 18], [1, 0, 17], [2, 1, 0]]); // prettier-ignore
  const causal = relativeBuckets(400, 1, { bidirectional: false, buckets: 32, maxDistance: 128 }, 'cpu').flatten();
  expect([0, 1, 15, 16, 127, 399].map((i) => Number(causal.select(0, i).item()))).toEqual([0, 1, 15, 16, 31, 31]);
});
