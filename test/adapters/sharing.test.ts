/** Many adapters on one backbone: batches that mix them, exchanging values in place, shared parts. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { z } from 'zod';
import {
  adaptersOf,
  averageAdapters,
  defineMethod,
  delta,
  graft,
  loadAdapter,
  readAdapterFolder,
  type Adapter,
} from '../../lib/adapters/index.js';
import { createCustomModel, createModel, type Backbone } from '../../lib/models/index.js';
import { Dropout, Linear, Module, trainingMode, type Context } from '../../lib/nn/index.js';
import { aten, manualSeed, noGrad, ones, randn, scope, type Tensor } from '../../lib/tensor/index.js';
import { randomize } from '../models/tiny.js';
import { settledMemory } from '../support/settled_memory.js';

const vitOptions = { imgSize: 16, patchSize: 4, embedDim: 24, depth: 2, numHeads: 3, numClasses: 5 };
const makeVit = (): Backbone => randomize(createCustomModel('vit', vitOptions)).eval();
const makeCnn = (): Backbone => randomize(createModel('cifar_resnet20', { channels: [4, 8, 12] })).eval();
const largest = (t: Tensor): number => Number(t.abs().max().item());
const distance = (a: Tensor, b: Tensor): number => largest(a.sub(b)) / largest(b);

/** Gives every parameter of an adapter values of its own. */
function shake(adapter: Adapter, scale = 0.3): Adapter {
  noGrad(() => {
    for (const parameter of adapter.parameters()) parameter.add_(aten.randnLike(parameter), { alpha: scale });
  });
  return adapter;
}

let path = '';
beforeEach(() => {
  manualSeed(0);
  path = mkdtempSync(join(tmpdir(), 'torchgraft-sharing-'));
});
afterEach(() => {
  rmSync(path, { recursive: true, force: true });
});

/** What every sample gets when its adapter runs alone. */
function separately(
  model: Backbone,
  adapters: readonly Adapter[],
  names: readonly (string | null)[],
  x: Tensor,
): Tensor {
  return noGrad(() =>
    aten.stack(
      names.map((name, i) => {
        for (const adapter of adapters) adapter.disable();
        adapters.find((adapter) => adapter.name === name)?.enable();
        return model.run(x.narrow(0, i, 1)).select(0, 0);
      }),
    ),
  );
}

describe('a mixed batch equals separate passes', () => {
  const cases: [string, () => Backbone, [string, Record<string, unknown>][], number[]][] = [
    [
      'lora of two ranks, ssf',
      makeVit,
      [
        ['lora', { rank: 2 }],
        ['lora', { rank: 4 }],
        ['ssf', {}],
      ],
      [3, 16, 16],
    ],
    [
      'convolutions',
      makeCnn,
      [
        ['conv_adapter', { reduction: 2 }],
        ['lora', { rank: 2 }],
      ],
      [3, 32, 32],
    ],
    [
      'adapters that train the backbone beside others',
      makeVit,
      [
        ['bitfit', {}],
        ['ssf', {}],
        ['lora', {}],
      ],
      [3, 16, 16],
    ],
  ];
  test.each(cases)('%s', (_, make, methods, shape) => {
    const model = make();
    const adapters = methods.map(([method, options], i) =>
      shake(graft(model, method, options, { name: `a${i}`, head: { classes: 3 } })),
    );
    const names = Array.from({ length: 7 }, (_v, i) => `a${(i * 5) % adapters.length}`);
    const x = randn([names.length, ...shape]);
    const expected = separately(model, adapters, names, x);
    const mixed = noGrad(() => model.forward(x, { adapters: names }));
    expect(distance(mixed, expected)).toBeLessThan(1e-5);
    // The adapters that are active otherwise do not matter, and stay so.
    adapters[0]?.activate();
    expect(
      distance(
        noGrad(() => model.forward(x, { adapters: names })),
        expected,
      ),
    ).toBeLessThan(1e-5);
    expect(adapters.map((adapter) => adapter.isActive)).toEqual(adapters.map((_a, i) => i === 0));
  });

  test('null stands for the backbone alone', () => {
    const model = makeVit();
    const x = randn([3, 3, 16, 16]);
    const plain = noGrad(() => model.run(x));
    const adapter = shake(graft(model, 'lora', { rank: 2 }, { name: 'a' }));
    const mixed = noGrad(() => model.forward(x, { adapters: [null, 'a', null] }));
    expect(largest(mixed.select(0, 0).sub(plain.select(0, 0)))).toBeLessThan(1e-6);
    expect(largest(mixed.sub(separately(model, [adapter], [null, 'a', null], x)))).toBeLessThan(1e-5);
    expect(largest(mixed.select(0, 1).sub(plain.select(0, 1)))).toBeGreaterThan(1e-3);
  });

  test('every adapter receives the gradient of its own samples', () => {
    const model = makeVit();
    const adapters = ['a', 'b'].map((name) => shake(graft(model, 'lora', { rank: 2 }, { name, head: 'frozen' })));
    const x = randn([4, 3, 16, 16]);
    model
      .forward(x, { adapters: ['a', 'b', 'b', 'a'] })
      .square()
      .sum()
      .backward();
    const mixed = adapters.map((adapter) => adapter.parameters().map((p) => p.grad?.clone()));
    for (const [i, adapter] of adapters.entries()) {
      for (const parameter of adapter.parameters()) parameter.grad = null;
      adapter.activate();
      const rows = i === 0 ? [0, 3] : [1, 2];
      model
        .run(aten.stack(rows.map((row) => x.select(0, row))))
        .square()
        .sum()
        .backward();
      adapter.parameters().forEach((parameter, j) => {
        const grad = parameter.grad as Tensor;
        expect(largest(grad.sub(mixed[i]?.[j] as Tensor))).toBeLessThan(1e-4 * Math.max(1, largest(grad)));
      });
    }
  });

  test('wrong names, wrong counts and heads of different sizes are refused', () => {
    const model = makeVit();
    graft(model, 'lora', {}, { name: 'a', head: { classes: 3 } });
    graft(model, 'lora', {}, { name: 'b', head: { classes: 4 } });
    const x = randn([2, 3, 16, 16]);
    const mixed = (adapters: (string | null)[]) => () => noGrad(() => model.forward(x, { adapters }));
    expect(mixed(['a', 'c'])).toThrow(/no adapter 'c'; there are 'a', 'b'/);
    expect(mixed(['a'])).toThrow(/1 names for a batch of 2/);
    expect(mixed(['a', 'b'])).toThrow(/features of one shape.* 3 and 4; .*heads of different sizes, need a pass each/);
    graft(model, 'bitfit', {}, { name: 'c', head: { classes: 3 } });
    expect(() => model.forward(x, { adapters: ['a', 'c'] })).toThrow(/cannot be trained in one batch/);
  });
});

describe('swap', () => {
  test('takes over another adapter in place, again and again, without growth', () => {
    const model = makeVit();
    const x = randn([2, 3, 16, 16]);
    const outputs = ['a', 'b'].map((name) => {
      const adapter = shake(graft(model, 'lora', { rank: 2 }, { name, head: { classes: 3 } }));
      const y = noGrad(() => model.run(x));
      adapter.save(join(path, name));
      adapter.remove();
      return y;
    });
    const adapter = loadAdapter(model, join(path, 'a'));
    const parameters = adapter.parameters();
    const folders = ['a', 'b'].map((name) => readAdapterFolder(join(path, name)));
    const before = settledMemory().tensors;
    for (let i = 0; i < 10_000; i++) scope(() => adapter.swap(folders[i % 2] as (typeof folders)[number]));
    expect(settledMemory().tensors).toBeLessThanOrEqual(before);
    expect(adapter.parameters()).toEqual(parameters);
    expect(noGrad(() => model.run(x)).equal(outputs[1] as Tensor)).toBe(true);
    expect(noGrad(() => adapter.swap(join(path, 'a')) && model.run(x)).equal(outputs[0] as Tensor)).toBe(true);
  });

  test('brings moved statistics along, and puts the backbone back where the folder has none', () => {
    const model = makeCnn();
    const x = randn([4, 3, 32, 32]);
    const still = graft(model, 'conv_adapter', { reduction: 2 }, { name: 'still' });
    still.save(join(path, 'still'));
    const first = noGrad(() => model.run(x));
    still.remove();
    const moved = graft(model, 'conv_adapter', { reduction: 2 }, { name: 'moved' });
    trainingMode(model, { bnStats: 'update' });
    noGrad(() => model.run(x));
    model.eval();
    moved.save(join(path, 'moved'));
    const second = noGrad(() => model.run(x));
    moved.swap(join(path, 'still'));
    expect(noGrad(() => model.run(x)).equal(first)).toBe(true);
    moved.swap(join(path, 'moved'));
    expect(noGrad(() => model.run(x)).equal(second)).toBe(true);
  });

  test('refuses an adapter of another kind, naming the difference', () => {
    const model = makeVit();
    const adapter = graft(model, 'lora', { rank: 2 }, { name: 'a' });
    adapter.save(join(path, 'a'));
    const other = graft(model, 'lora', { rank: 3 }, { name: 'b' });
    expect(() => other.swap(join(path, 'a'))).toThrow(/its options is .*"rank":2.* and here it is .*"rank":3/);
    expect(() => graft(model, 'ssf', {}, { name: 'c' }).swap(join(path, 'a'))).toThrow(/its method is "lora"/);
  });
});

describe('the mean of adapters', () => {
  test('is theirs, statistics included, and takes one forward pass', () => {
    const model = makeCnn();
    const make = (name: string): Adapter =>
      shake(graft(model, 'conv_adapter', { reduction: 2, variant: 'conv_adapt_bias' }, { name, head: { classes: 3 } }));
    const [a, b] = [make('a'), make('b')];
    trainingMode(model, { bnStats: 'update' });
    noGrad(() => model.run(randn([4, 3, 32, 32])));
    model.eval();
    const statistic = a.overlays.findIndex(({ name }) => name === 'layer1.0.bn1.running_mean');
    const soup = averageAdapters(model, { a: 1, b: 3 }, 'soup');
    expect(soup.isActive).toBe(true);
    const expected = a.namedParameters().map(([name], i) => {
      const value = (adapter: Adapter): Tensor => {
        const overlay = adapter.overlays.find((o) => `backbone.${o.name}` === name);
        return overlay ? adapter.valueOf(overlay) : (adapter.parameters()[i] as Tensor);
      };
      return value(a).mul(0.25).add(value(b).mul(0.75));
    });
    soup.parameters().forEach((p, i) => expect(largest(p.detach().sub(expected[i] as Tensor))).toBeLessThan(1e-6));
    const of = (adapter: Adapter): Tensor =>
      adapter.valueOf(adapter.overlays[statistic] as Adapter['overlays'][number]);
    expect(largest(of(soup).sub(of(a).mul(0.25).add(of(b).mul(0.75))))).toBeLessThan(1e-6);
  });

  test('is refused for adapters of different kinds, unknown names and odd weights', () => {
    const model = makeVit();
    graft(model, 'lora', { rank: 2 }, { name: 'a' });
    graft(model, 'lora', { rank: 3 }, { name: 'b' });
    expect(() => averageAdapters(model, { a: 1, b: 1 }, 'soup')).toThrow(/different kinds/);
    expect(() => averageAdapters(model, { a: 1, c: 1 }, 'soup')).toThrow(/no adapter 'c'/);
    expect(() => averageAdapters(model, { a: 0 }, 'soup')).toThrow(/'a' has 0/);
    expect(() => averageAdapters(model, {}, 'soup')).toThrow(/none are given/);
    expect(adaptersOf(model).size).toBe(2);
  });
});

/** D = U V with one V for all sites. */
class HalfShared extends Module {
  readonly up: Linear;
  readonly drop = new Dropout(0);
  readonly #down: Linear;

  constructor(out: number, down: Linear) {
    super();
    this.up = new Linear(down.outFeatures, out, { bias: false });
    this.#down = down;
  }

  forward(x: Tensor, ctx: Context): Tensor {
    return this.up.run(this.#down.run(x, ctx), ctx);
  }

  delta(): Tensor {
    return this.up.weight.mm(this.#down.weight);
  }
}

const sharedDown = defineMethod({
  id: 'shared_down',
  summary: 'increments with one down-projection',
  paper: 'none',
  options: z.strictObject({ rank: z.int().positive().default(2) }),
  rules: ({ rank }) => [
    {
      id: 'delta',
      at: { name: ['qkv', 'fc1'] },
      compose: delta(1),
      form: (site, around) =>
        new HalfShared(
          site.out,
          around.shared('down', () => new Linear(around.sites[0]?.in ?? 0, rank, { bias: false })),
        ),
    },
  ],
});

describe('parts that grafts share', () => {
  test('are one module, counted, trained, merged and moved once', () => {
    const model = makeVit();
    const adapter = graft(model, sharedDown, {}, { head: 'frozen' });
    expect(adapter.namedParameters().map(([name]) => name)).toEqual([
      'blocks.0.attn.qkv.delta.up.weight',
      'blocks.0.mlp.fc1.delta.up.weight',
      'blocks.1.attn.qkv.delta.up.weight',
      'blocks.1.mlp.fc1.delta.up.weight',
      'shared.down.weight',
    ]);
    expect(adapter.summary().grafts).toBe(2 * (72 + 96) * 2 + 2 * 24);
    const x = randn([2, 3, 16, 16]);
    model.run(x).sum().backward();
    expect(adapter.parameters().every((p) => p.grad !== null)).toBe(true);
    expect(adapter.merge({ probe: x }).outputChange?.absolute).toBeLessThan(1e-5);
    adapter.unmerge();
    const [, part] = [...adapter.shared][0] as [string, Module];
    model.to({ dtype: 'float64' });
    expect(part.parameters()[0]?.dtype).toBe('float64');
    model.train();
    expect(part.training).toBe(true);
  });

  test('share their gradient under activation checkpointing', () => {
    const model = makeVit();
    const adapter = graft(model, sharedDown, {}, { head: 'frozen' });
    const x = randn([2, 3, 16, 16]);
    const gradients = [false, true].map((checkpointing) => {
      for (const parameter of adapter.parameters()) parameter.grad = null;
      model.setCheckpointing(checkpointing);
      model.run(x).square().sum().backward();
      return adapter.parameters().map((p) => (p.grad as Tensor).clone());
    });
    gradients[0]?.forEach((grad, i) => {
      expect(largest(grad.sub(gradients[1]?.[i] as Tensor))).toBeLessThan(1e-4 * Math.max(1, largest(grad)));
    });
  });
});

describe('official names', () => {
  test('go out and come back, and a file that lacks some changes nothing', () => {
    const model = makeVit();
    const adapter = shake(graft(model, 'lora', { rank: 2 }, { head: { classes: 3 } }));
    const state = adapter.officialState();
    expect([...state.keys()].slice(0, 3)).toEqual([
      'blocks.0.attn.lora_q.adapter_down.weight',
      'blocks.0.attn.lora_q.adapter_up.weight',
      'blocks.0.attn.lora_v.adapter_down.weight',
    ]);
    expect([...state.keys()].slice(-2)).toEqual(['head.weight', 'head.bias']);
    const other = graft(model, 'lora', { rank: 2 }, { name: 'other', head: { classes: 3 } });
    const copy = new Map(Array.from(state, ([name, t]) => [name, t.clone()]));
    other.loadOfficialState(new Map([...copy, ['cls_token', ones([1])]]));
    const x = randn([2, 3, 16, 16]);
    const y = noGrad(() => model.run(x));
    adapter.activate();
    expect(noGrad(() => model.run(x)).equal(y)).toBe(true);
    copy.delete('head.bias');
    expect(() => other.loadOfficialState(copy)).toThrow(/missing \(1\): head\.bias/);
  });
});
