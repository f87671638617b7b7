/** Factor-tuning: what golden cases do not show. */
import { beforeEach, describe, expect, test } from 'vitest';
import { type Adapter, type DeltaForm, FactTensorTrain, FactTucker, graft } from '../../lib/adapters/index.js';
import { type Backbone, createCustomModel } from '../../lib/models/index.js';
import { Context, Linear } from '../../lib/nn/index.js';
import { manualSeed, noGrad, randn, type Tensor, tensor } from '../../lib/tensor/index.js';
import { randomize } from '../models/tiny.js';

beforeEach(() => manualSeed(2));

const vit = (more = {}): Backbone => {
  const options = { imgSize: 16, patchSize: 4, embedDim: 24, depth: 2, numHeads: 3, numClasses: 5, ...more };
  return randomize(createCustomModel('vit', options)).eval();
};
const swin = (): Backbone => {
  const options = { imgSize: 32, embedDim: 12, depths: [2, 1], numHeads: [2, 3], windowSize: 4, numClasses: 5 };
  return randomize(createCustomModel('swin', options)).eval();
};

function fill(adapter: Adapter): Adapter {
  noGrad(() => {
    for (const p of adapter.parameters()) p.copy_(randn(p.shape).mul(0.3));
  });
  return adapter;
}

const far = (a: Tensor, b: Tensor): number => Number(a.sub(b).norm().item()) / Number(b.norm().item());

const isIncrement = (form: object): form is FactTensorTrain | FactTucker =>
  form instanceof FactTensorTrain || form instanceof FactTucker;

describe.each(['tt', 'tk'])('%s', (variant) => {
  test('computes an increment the same beside the layer, into its output, with it at once, and as a matrix', () => {
    const adapter = fill(graft(vit({ mlpRatio: 2 }), 'fact', { variant, rank: 5 }, { head: 'frozen' }));
    expect(adapter.grafts).toHaveLength(8);
    for (const { form, site } of adapter.grafts) {
      const layer = site.module;
      if (!isIncrement(form) || !(layer instanceof Linear)) throw new Error('no increment of a linear layer');
      const ctx = new Context();
      const x = randn([2, 7, site.in]);
      const base = randn([2, 7, site.out]);
      const increment = x.matmul(form.delta().t());
      expect(far(form.run(x, ctx), increment)).toBeLessThan(1e-5);
      expect(far(form.addTo(base, x, 0.5, ctx), base.add(increment.mul(0.5)))).toBeLessThan(1e-5);
      const atOnce = form.applyWith(layer, x, 0.5) as Tensor;
      expect(far(atOnce, layer.forward(x).add(increment.mul(0.5)))).toBeLessThan(1e-5);
    }
  });

  test('has one pair of outer factors for the network, and one per stage where widths differ', () => {
    const names = (model: Backbone): string[] =>
      [...graft(model, 'fact', { variant, rank: 3 }).officialState().keys()].filter((name) => name.startsWith('FacT'));
    const core = variant === 'tk' ? ['FacTp', 'FacTc'] : [];
    expect(new Set(names(vit()))).toEqual(new Set(['FacTu.weight', 'FacTv.weight', ...core]));
    expect(new Set(names(swin()))).toEqual(
      new Set(['FacTu.0.weight', 'FacTu.1.weight', 'FacTv.0.weight', 'FacTv.1.weight', ...core]),
    );
  });

  test('merges on Swin', () => {
    const model = swin();
    const x = randn([2, 3, 32, 32]);
    const adapter = fill(graft(model, 'fact', { variant, rank: 3, scale: 2 }));
    const before = noGrad(() => model.run(x));
    adapter.merge();
    expect(
      far(
        noGrad(() => model.run(x)),
        before,
      ),
    ).toBeLessThan(1e-5);
  });

  test('wrong sizes are refused, saying what would fit', () => {
    expect(() => graft(vit(), 'fact', { variant, rank: 25 })).toThrow(/rank 25 exceeds the width of 24 .* at most 24/);
    expect(() => graft(vit({ mlpRatio: 2.5 }), 'fact', { variant })).toThrow(
      /blocks\.0\.mlp\.fc1 from 24 to 60 features is not cut into slices of 24 by 24.* one of the two must be 24, the other a multiple/,
    );
    const only = graft(vit({ mlpRatio: 2.5 }), 'fact', { variant, at: { role: 'linear', path: '**.attn.*' } });
    expect(only.grafts.map(({ site }) => site.path)).toEqual(
      [0, 1].flatMap((i) => [`blocks.${i}.attn.qkv`, `blocks.${i}.attn.proj`]),
    );
  });
});

test('a piece of the Tucker form in an MLP mixes all its slices, as the official code has it', () => {
  const adapter = fill(graft(vit(), 'fact', { variant: 'tk', rank: 3 }));
  const [p, c] = ['p', 'c'].map(
    (leaf) =>
      adapter.shared
        .get('core')
        ?.namedParameters()
        .find(([n]) => n === leaf)?.[1],
  );
  const factors = adapter.shared.get('factors');
  const [u, v] = ['u.weight', 'v.weight'].map((leaf) => factors?.namedParameters().find(([n]) => n === leaf)?.[1]);
  if (!p || !c || !u || !v) throw new Error('a factor is missing');
  const t = c.matmul(p).detach();
  const entry = (a: number, b: number, n: number): number => Number(t.index(a, b, n).item());
  const of = (path: string): DeltaForm => adapter.grafts.find(({ site }) => site.path === path)?.form as DeltaForm;
  const block = 1;
  for (let j = 0; j < 4; j++) {
    // M[c, a] = T[a, floor(f / 4), 12 i + 4 + f mod 4] with f = j r + c.
    const core = Array.from({ length: 3 }, (_, row) =>
      Array.from({ length: 3 }, (_, a) =>
        entry(a, Math.floor((3 * j + row) / 4), 12 * block + 4 + ((3 * j + row) % 4)),
      ),
    );
    const expected = v.detach().mm(tensor(core)).mm(u.detach());
    expect(
      far(
        of('blocks.1.mlp.fc1')
          .delta()
          .narrow(0, 24 * j, 24),
        expected,
      ),
    ).toBeLessThan(1e-5);
  }
});
