import { describe, expect, test } from 'vitest';
import { compoundLoss, createCustomModel, pixelsOf, RevCol } from '../../lib/models/index.js';
import { type Context, type GraftSet, Linear, Parameter } from '../../lib/nn/index.js';
import { full, manualSeed, memory, noGrad, randn, scope, tensor, type Tensor } from '../../lib/tensor/index.js';
import { randomize } from './tiny.js';
import { settledMemory } from '../support/settled_memory.js';

const tiny = { channels: [4, 6, 8, 10], layers: [1, 1, 2, 1], numClasses: 5 };

/** Random weights; factors away from 0, so that inverting is well conditioned. */
function build(options: Record<string, unknown> = {}, alpha: number | null = 0.6): RevCol {
  manualSeed(3);
  const model = randomize(createCustomModel('revcol', { ...tiny, columns: 6, ...options }));
  if (!(model instanceof RevCol)) throw new Error('the family revcol makes no RevCol');
  const factors = model.namedParameters().filter(([name]) => name.includes('alpha'));
  noGrad(() => {
    for (const [i, [, factor]] of factors.entries()) {
      if (alpha !== null) factor.copy_(full(factor.shape, i % 3 === 0 ? -alpha : alpha));
    }
  });
  return model.to({ dtype: 'float64' });
}

/** Outputs and gradients of one step, the same random numbers each time. */
function step(model: RevCol, reversible: boolean, trainsInput = true): Map<string, Tensor | null> {
  model.reversible = reversible;
  manualSeed(11);
  const x = randn([2, 3, 64, 32], { dtype: 'float64' }).to(model.parameters()[0]?.dtype ?? 'float64');
  if (trainsInput) x.requiresGrad_();
  const { logits, images } = model.supervised(x);
  const terms = [...logits, ...images].map((y, i) =>
    y
      .square()
      .sum()
      .mul(i + 1),
  );
  terms.reduce((a, b) => a.add(b)).backward();
  const grads = model.namedParameters().map(([name, p]): [string, Tensor | null] => [name, p.grad]);
  for (const p of model.parameters()) p.grad = null;
  return new Map([...grads, ...logits.map((y, i): [string, Tensor] => [`logits ${i}`, y]), ['input', x.grad]]);
}

function expectSame(model: RevCol, tolerance: number, trainsInput = true): Map<string, Tensor | null> {
  const plain = step(model, false, trainsInput);
  const again = step(model, true, trainsInput);
  for (const [name, expected] of plain) {
    const found = again.get(name) ?? null;
    if (expected === null || found === null) {
      expect([name, found]).toEqual([name, expected]);
      continue;
    }
    const error = Number(found.sub(expected).norm().item()) / Math.max(1e-3, Number(expected.norm().item()));
    expect([name, error < tolerance]).toEqual([name, true]);
  }
  return again;
}

describe('reversible columns', () => {
  test('give the outputs and gradients of recorded ones', () => {
    const found = expectSame(build().eval(), 1e-9);
    expect([...found.values()].every((gradient) => gradient !== null)).toBe(true);
  });

  test('repeat the random numbers of the first pass', () => {
    const model = build({ dropPathRate: 0.5 }).train();
    expectSame(model, 1e-9);
    // Without stochastic depth the numbers are others: it was at work.
    const [dropped, whole] = [step(model, true), step(model.eval(), true)];
    expect(dropped.get('logits 0')?.equal(whole.get('logits 0') as Tensor)).toBe(false);
  });

  test('hand gradients to inner columns under intermediate supervision', () => {
    expectSame(build({ columns: 8, supervised: true }).eval(), 1e-9);
  });

  test('connect the finest level with the coarsest in the huge form', () => {
    expectSame(build({ huge: true }).eval(), 1e-9);
  });

  test('train with stem and factors frozen, and record nothing in front of what is trained', () => {
    const model = build().eval();
    model.freeze();
    for (const name of ['subnet3.level1', 'subnet5.level3']) model.getModule(name).requiresGrad_();
    const found = expectSame(model, 1e-9, false);
    const trained = [...found].filter(([name, gradient]) => name.startsWith('subnet') && gradient !== null);
    expect(new Set(trained.map(([name]) => name.split('.').slice(0, 2).join('.')))).toEqual(
      new Set(['subnet3.level1', 'subnet5.level3']),
    );
  });

  test('keep the levels where a factor cannot be inverted', () => {
    const model = build().eval();
    noGrad(() => {
      const factor = model.getModule('subnet3').namedParameters()[1]?.[1];
      factor?.copy_(full(factor.shape, 0));
      const small = model.getModule('subnet2').namedParameters()[0]?.[1];
      small?.copy_(full(small.shape, 1e-12));
    });
    expectSame(model, 1e-9);
  });

  test('recompute float32 levels closely over 16 columns', () => {
    expectSame(build({ columns: 16 }, 0.5).to({ dtype: 'float32' }).eval(), 1e-4);
  });

  test('train a graft inside a column', () => {
    const model = build().eval();
    model.freeze();
    const extra = new Linear(8, 8).to({ dtype: 'float64' });
    const watched = model.getModule('subnet2.level2.blocks.0.mlp');
    const graft: GraftSet = {
      apply: (module, x, ctx: Context) => module.forward(x, ctx).add(extra.run(x, ctx)),
      parameters: () => extra.parameters(),
      modules: () => [extra],
    };
    watched.grafts = graft;
    const gradients = [false, true].map((reversible) => {
      step(model, reversible, false);
      model.reversible = reversible;
      manualSeed(5);
      model
        .run(randn([1, 3, 32, 32], { dtype: 'float64' }))
        .sum()
        .backward();
      const found = extra.weight.grad?.clone();
      extra.zeroGrad();
      return found as Tensor;
    });
    expect(Number((gradients[0] as Tensor).norm().item())).toBeGreaterThan(0);
    expect((gradients[0] as Tensor).allclose(gradients[1] as Tensor, 1e-8)).toBe(true);
  });

  test('record everything where a graft carries tensors through the context', () => {
    const model = build().eval();
    const memoryOf = new Parameter(full([1], 0.5, { dtype: 'float64' }));
    const graft: GraftSet = {
      apply: (module, x, ctx) => {
        const before = ctx.state.get(memoryOf) as Tensor | undefined;
        const y = module.forward(x, ctx).mul(memoryOf);
        const carried = before ? y.add(before.mean()) : y;
        ctx.state.set(memoryOf, carried);
        return carried;
      },
      parameters: () => [memoryOf],
      modules: () => [],
    };
    for (const t of [1, 4]) model.getModule(`subnet${t}.level3.blocks.0.mlp`).grafts = graft;
    expectSame(model, 1e-12);
  });

  test('hold memory that does not grow with the number of columns', () => {
    const held = [4, 12].map((columns) => {
      const model = build({ columns }).eval();
      model.reversible = true;
      const x = randn([1, 3, 64, 64], { dtype: 'float64' });
      const before = settledMemory();
      const y = scope(() => model.run(x));
      const after = memory();
      y.sum().backward();
      return {
        tensors: after.tensors - before.tensors - model.parameters().length,
        bytes: after.bytes - before.bytes,
      };
    });
    expect(held[1]?.bytes).toBe(held[0]?.bytes);
  });
});

describe('RevCol', () => {
  test('brings stored factors to at least 1e-3, keeping signs and exact zeros', () => {
    const model = build({ columns: 1 }, null).eval();
    const alpha = model.getModule('subnet0').namedParameters()[0]?.[1] as Parameter;
    noGrad(() => alpha.copy_(tensor([4e-4, -3e-4, -0.6, 0], { dtype: 'float64' }).view([1, 4, 1, 1])));
    noGrad(() => model.run(randn([1, 3, 32, 32], { dtype: 'float64' })));
    expect(alpha.flatten().tolist()).toEqual([1e-3, -1e-3, -0.6, 0]);
  });

  test('refuses image sizes that do not halve three times, and columns that do not divide by four', () => {
    expect(() => build().run(randn([1, 3, 48, 32], { dtype: 'float64' }))).toThrow(/sides must be multiples of 32/);
    expect(() => build({ supervised: true })).toThrow(/multiple of 4 columns, given 6/);
  });

  test('decodes images of the size of the input, with many classes too', () => {
    const model = build({ columns: 4, supervised: true, numClasses: 1001 }).eval();
    const x = randn([1, 3, 32, 64], { dtype: 'float64' });
    const { logits, images } = model.supervised(x);
    expect(logits.map((y) => y.shape)).toEqual(Array(4).fill([1, 1001]));
    expect(images.map((y) => y.shape)).toEqual(Array(3).fill([1, 3, 32, 64]));
    const target = { labels: tensor([7], { dtype: 'int64' }), pixels: pixelsOf(x, model.config) };
    const { loss, parts } = compoundLoss({ logits, images }, target);
    expect(parts).toHaveLength(4);
    expect(Number(loss.item())).toBeGreaterThan(0);
    expect(() => compoundLoss({ logits, images: images.slice(1) }, target)).toThrow(/4 logits and 2 images/);
  });
});
