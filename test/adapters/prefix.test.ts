/** Prefixes in the attentions of image backbones: their forms must agree with each other where they are the same function. */
import { describe, expect, test } from 'vitest';
import { graft } from '../../lib/adapters/index.js';
import { type Backbone, createCustomModel } from '../../lib/models/index.js';
import { manualSeed, noGrad, randn, scope, type Tensor } from '../../lib/tensor/index.js';

// Heads of width 1: their scores have the factor 1, with which `scaled: false` asks for the second attention of the
// same function as the first.
const hosts: readonly (readonly [string, () => Backbone])[] = [
  ['vit', () => createCustomModel('vit', { imgSize: 16, patchSize: 4, embedDim: 6, depth: 2, numHeads: 6 })],
  [
    'swin, with position biases, shifted windows and their masks',
    () =>
      createCustomModel('swin', {
        ...{ imgSize: [32, 16], patchSize: 2, embedDim: 4, depths: [2, 1], numHeads: [4, 8], windowSize: 4 },
        ...{ numClasses: 3 },
      }),
  ],
];

/** A host away from its start, in evaluation, and what it gives for two images. */
function perturbed(make: () => Backbone, seed: number): { model: Backbone; output: () => Tensor } {
  manualSeed(seed);
  const model = make().eval();
  noGrad(() => model.parameters().forEach((p) => p.add_(randn(p.shape).mul(0.2))));
  const x = randn([2, 3, ...(model.config.inputSize.slice(1) as [number, number])]);
  return { model, output: () => noGrad(() => model.run(x)) };
}

const difference = (a: Tensor, b: Tensor): number =>
  scope(() => Number(a.sub(b).norm().item()) / Number(b.norm().item()));

describe('a prefix joined by its gate', () => {
  test.each(hosts)('is the prefix before the other keys: %s', (_, make) => {
    const { model, output } = perturbed(make, 3);
    const plain = output();
    const first = graft(model, 'prefix', { length: 3 }, { name: 'first', head: 'frozen' });
    const second = graft(
      model,
      'prefix',
      { length: 3, composition: 'gated', scaled: false },
      { name: 'second', head: 'frozen' },
    );
    const target = new Map(second.namedParameters());
    noGrad(() => {
      for (const [name, value] of first.namedParameters()) {
        value.mul_(50);
        const [, owner = '', what = ''] = /^(.*)\.(?:keys|values)\.prefix_(key|value)\.weight$/.exec(name) ?? [];
        (target.get(`${owner}.core.prefix.${what}`) as Tensor).copy_(value);
      }
    });
    first.activate();
    const expected = output();
    expect(difference(expected, plain)).toBeGreaterThan(1e-2);
    second.activate();
    expect(difference(output(), expected)).toBeLessThan(1e-5);
  });

  test('is refused where the heads keep their keys to themselves', () => {
    const model = createCustomModel('hatnet', {
      ...{ dims: [8, 8, 16, 16], depths: [1, 1, 1, 1], headDim: 4, numClasses: 3 },
    });
    expect(() => graft(model, 'prefix', { composition: 'gated', scaled: false })).toThrow(/composition 'add' would do/);
  });
});

describe('the mix-and-match adapter on images', () => {
  test.each(hosts)('is a prefix and an AdaptFormer: %s', (_, make) => {
    const { model, output } = perturbed(make, 5);
    const frozen = { head: 'frozen', activate: 'no' } as const;
    const mam = graft(model, 'mam', { length: 2, width: 3, scale: 2 }, { name: 'mam', ...frozen });
    const prefix = graft(model, 'prefix', { length: 2 }, { name: 'prefix', ...frozen });
    const beside = graft(model, 'adaptformer', { hidden: 3, scale: 2 }, { name: 'beside', ...frozen });
    const own = new Map([...prefix.namedParameters(), ...beside.namedParameters()]);
    noGrad(() => {
      for (const [name, value] of mam.namedParameters()) {
        value.copy_(randn(value.shape));
        (own.get(name.replace('.ffn.', '.adaptmlp.')) as Tensor).copy_(value);
      }
    });
    expect(own.size).toBe(mam.namedParameters().length);
    mam.activate();
    const expected = output();
    prefix.activate();
    const alone = output();
    expect(difference(alone, expected)).toBeGreaterThan(1e-2);
    beside.enable();
    expect(difference(output(), expected)).toBeLessThan(1e-5);
  });
});
