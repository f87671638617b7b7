import { inspect } from 'node:util';
import { describe, expect, it } from 'vitest';
import type { Context } from '../../lib/nn/index.js';
import {
  BatchNorm2d,
  Buffer,
  Conv2d,
  Dropout,
  Linear,
  Module,
  ModuleDict,
  ModuleList,
  Parameter,
  ReLU,
  Sequential,
  Span,
  type GraftSet,
} from '../../lib/nn/index.js';
import {
  arange,
  manualSeed,
  memory,
  ones,
  randn,
  scope,
  tensor,
  withDefaults,
  zeros,
  type Tensor,
} from '../../lib/tensor/index.js';
import { golden } from './golden.js';
import { settledMemory } from '../support/settled_memory.js';

class Block extends Module {
  readonly norm = new BatchNorm2d(4);
  readonly conv = new Conv2d(4, 4, { kernelSize: 1 });
  readonly gamma = new Parameter(ones([4]));
  readonly whole = new Span((x, ctx) => this.conv.run(this.norm.run(x, ctx), ctx));

  forward(x: Tensor, ctx: Context): Tensor {
    return this.whole.run(x, ctx);
  }
}

/** The tree that make_nn.py builds, with spans added. */
class Tree extends Module {
  readonly blocks = new ModuleList([new Block(), new Block(), new Block()]);
  readonly cls_token = new Parameter(zeros([1]));
  readonly table = new Buffer(arange(3));
  readonly scratch = new Buffer(arange(3), { persistent: false });
  readonly head = new Sequential(new Linear(4, 4), new ReLU(), new Linear(4, 2, { bias: false }));
  readonly tied = this.head.at(0);

  forward(x: Tensor, ctx: Context): Tensor {
    return this.head.run(x, ctx);
  }
}

const withoutSpans = (paths: string[]): string[] => paths.filter((path) => !path.endsWith('whole'));

describe('the property tree', () => {
  const tree = new Tree();

  it("gives PyTorch's names in PyTorch's order", () => {
    expect([...tree.stateDict().keys()]).toEqual(golden.tree.state);
    expect(tree.namedParameters().map(([name]) => name)).toEqual(golden.tree.parameters);
    expect(tree.namedBuffers().map(([name]) => name)).toEqual(golden.tree.buffers);
    expect(withoutSpans(tree.namedModules().map(([name]) => name))).toEqual(golden.tree.modules);
  });

  it('prints as PyTorch does', () => {
    const lines = String(tree)
      .split('\n')
      .filter((line) => !line.includes('Span'));
    expect(lines.join('\n')).toBe(golden.tree.repr);
    expect(inspect(tree)).toBe(String(tree));
  });

  it('finds modules by path and says what there is instead', () => {
    expect(tree.getModule('')).toBe(tree);
    expect(tree.getModule('blocks.1.norm')).toBe(tree.blocks.at(1).norm);
    expect(() => tree.getModule('blocks.7.norm')).toThrow(
      /no module 'blocks.7.norm': 'blocks' \(ModuleList\) has 0, 1, 2/,
    );
    expect(() => tree.getModule('tied.x')).toThrow(/'tied' \(Linear\) has no children/);
  });

  it('takes null for an absent parameter', () => {
    expect([...new Linear(2, 2, { bias: false }).stateDict().keys()]).toEqual(['weight']);
  });

  it('ends where modules form a cycle', () => {
    const a = new Sequential(new ReLU());
    a.push(a);
    expect(a.namedModules().map(([name]) => name)).toEqual(['', '0']);
  });
});

describe('containers', () => {
  it('run, index, iterate and name their members', () => {
    const sequence = new Sequential({ up: new Linear(2, 3), act: new ReLU() });
    expect([...sequence.stateDict().keys()]).toEqual(['up.weight', 'up.bias']);
    expect(sequence.run(ones([1, 2])).shape).toEqual([1, 3]);
    const list = new ModuleList([new Linear(1, 1)]);
    list.push(new Linear(2, 2));
    expect([...list].map((m) => m.inFeatures)).toEqual([1, 2]);
    expect(list.at(-1)).toBe([...list][1]);
    expect(() => list.at(2)).toThrow(/index 2 is outside the 2 members/);
    expect(() => list.run(ones([1]))).toThrow(/run its members/);
    const dict = new ModuleDict<Module>({ a: new ReLU() }).set('b', new Linear(1, 1));
    expect([...dict.stateDict().keys()]).toEqual(['b.weight', 'b.bias']);
    expect([...dict.keys()]).toEqual(['a', 'b']);
    expect(() => dict.set('a.b', new ReLU())).toThrow(/'a.b' cannot be a name/);
  });
});

describe('loadStateDict', () => {
  it('copies in place, converting the dtype', () => {
    const layer = new Linear(2, 1);
    const { weight } = layer;
    layer.loadStateDict({ weight: tensor([[1, 2]], { dtype: 'float64' }), bias: tensor([3], { dtype: 'int64' }) });
    expect(layer.weight).toBe(weight);
    expect(layer.weight.dtype).toBe('float32');
    expect(layer.run(ones([1, 2])).tolist()).toEqual([[6]]);
    expect(layer.weight.requiresGrad).toBe(true);
  });

  it('says all that does not fit and changes nothing', () => {
    const layer = new Sequential(new Linear(2, 1), new Linear(1, 1));
    const before = layer.getModule('0').stateDict().get('bias')!.tolist();
    const state = new Map([
      ['0.bias', tensor([7])],
      ['0.weight', zeros([1, 3])],
      ['1.weight', zeros([1, 1])],
      ['fc.weight', zeros([1])],
    ]);
    let message = '';
    try {
      layer.loadStateDict(state);
    } catch (error) {
      message = (error as Error).message;
    }
    expect(message).toMatch(/missing \(1\): 1.bias/);
    expect(message).toMatch(/unexpected \(1\): fc.weight/);
    expect(message).toMatch(/wrong shape \(1\): 0.weight \[1, 2\] given \[1, 3\]/);
    expect(layer.getModule('0').stateDict().get('bias')!.tolist()).toEqual(before);

    expect(layer.loadStateDict(state, { strict: false })).toEqual({
      missing: ['1.bias'],
      unexpected: ['fc.weight'],
      mismatched: [{ name: '0.weight', expected: [1, 2], found: [1, 3] }],
    });
    expect(layer.getModule('0').stateDict().get('bias')!.tolist()).toEqual([7]);
  });

  it('keeps a long list short', () => {
    const layer = new Sequential(...Array.from({ length: 20 }, () => new Linear(1, 1)));
    expect(() => layer.loadStateDict({})).toThrow(/missing \(40\): 0.weight, .*4.bias, \.\.\. \(30 more\)/);
  });

  it('does without the batch counter of old checkpoints', () => {
    const norm = new BatchNorm2d(2);
    const state = norm.stateDict();
    state.delete('num_batches_tracked');
    expect(norm.loadStateDict(state).missing).toEqual([]);
    state.delete('running_var');
    expect(() => norm.loadStateDict(state)).toThrow(/missing \(1\): running_var/);
  });

  it('can take over the given tensors', () => {
    const layer = new Linear(2, 1, { bias: false });
    const { weight } = layer;
    const given = tensor([[1, 2]]);
    layer.loadStateDict({ weight: given }, { assign: true });
    expect(layer.weight).toBe(weight);
    expect(layer.weight.sharesStorage(given)).toBe(true);
    expect(layer.weight.requiresGrad).toBe(true);
  });

  it('refuses to load into meta tensors', () => {
    const layer = withDefaults({ device: 'meta' }, () => new Linear(2, 1));
    expect(() => layer.loadStateDict(new Linear(2, 1).stateDict())).toThrow(
      /'weight' of Linear lies on the meta device/,
    );
  });
});

describe('to', () => {
  it('converts in place: same parameters, gradients and counters', () => {
    const model = new Sequential(new Conv2d(3, 4, { kernelSize: 1 }), new BatchNorm2d(4));
    model
      .run(randn([2, 3, 4, 4]))
      .square()
      .sum()
      .backward();
    const parameters = model.parameters();
    model.to({ dtype: 'float64' });
    expect(model.parameters().every((p, i) => p === parameters[i])).toBe(true);
    expect(parameters.every((p) => p.dtype === 'float64' && p.grad?.dtype === 'float64' && p.requiresGrad)).toBe(true);
    expect(model.stateDict().get('1.num_batches_tracked')?.dtype).toBe('int64');
    model.zeroGrad();
    model
      .run(randn([2, 3, 4, 4], { dtype: 'float64' }))
      .square()
      .sum()
      .backward();
    expect(parameters[0]?.grad?.dtype).toBe('float64');
  });

  it('lays out only tensors of four dimensions as channels_last', () => {
    const model = new Sequential(new Conv2d(3, 4, { kernelSize: 3 }), new Linear(4, 4)).to({
      memoryFormat: 'channels_last',
    });
    const [conv, bias, linear] = model.parameters();
    expect(conv?.stride()).toEqual([27, 1, 9, 3]);
    expect(bias?.stride()).toEqual([1]);
    expect(linear?.stride()).toEqual([4, 1]);
  });
});

describe('modes', () => {
  it('reach every module, and the grafts beside them', () => {
    const graft = new Linear(2, 2);
    const model = new Sequential(new Dropout(0.5), new Sequential(new Linear(2, 2)));
    const set: GraftSet = {
      apply: (m, x, ctx) => m.forward(x, ctx).add(1),
      parameters: () => graft.parameters(),
      modules: () => [graft],
    };
    model.getModule('1.0').grafts = set;
    model.eval();
    expect(model.namedModules().every(([, m]) => !m.training)).toBe(true);
    expect(graft.training).toBe(false);
    model.train().to({ dtype: 'float64' });
    expect(graft.training).toBe(true);
    expect(graft.weight.dtype).toBe('float64');
    model.freeze();
    expect(model.parameters().some((p) => p.requiresGrad)).toBe(false);
    expect(graft.weight.requiresGrad).toBe(true);
    model.requiresGrad_();
    expect(model.parameters().every((p) => p.requiresGrad)).toBe(true);
  });

  it('run goes through the grafts, and without them does not', () => {
    const layer = new Linear(2, 1);
    const x = ones([1, 2]);
    const plain = layer.run(x);
    layer.grafts = { apply: (m, input, ctx) => m.forward(input, ctx).mul(2), parameters: () => [], modules: () => [] };
    expect(layer.run(x).equal(plain.mul(2))).toBe(true);
    layer.grafts = undefined;
    expect(layer.run(x).equal(plain)).toBe(true);
  });

  it('apply visits children first', () => {
    const seen: string[] = [];
    new Sequential(new ReLU(), new Sequential(new Dropout())).apply((m) => seen.push(m.constructor.name));
    expect(seen).toEqual(['ReLU', 'Dropout', 'Sequential', 'Sequential']);
  });
});

describe('parameters', () => {
  it('are leaves that survive scopes and share what they were made from', () => {
    manualSeed(0);
    const source = zeros([2]);
    const layer = scope(() => {
      const inner = new Linear(2, 2);
      return { inner, shared: new Parameter(source) };
    });
    expect(layer.inner.weight.isFreed).toBe(false);
    expect(layer.inner.weight.isLeaf).toBe(true);
    source.fill_(3);
    expect(layer.shared.tolist()).toEqual([3, 3]);
    expect(layer.shared).toBeInstanceOf(Parameter);
    expect(new Parameter(zeros([1]), false).requiresGrad).toBe(false);
    expect(() => new Parameter(zeros([1], { dtype: 'int64' }))).toThrow(/only floating point/);
  });

  it('of a module made and used in scopes leave nothing behind', () => {
    const layer = new Linear(4, 4);
    const use = (): void =>
      scope(() =>
        layer
          .run(randn([2, 4]))
          .sum()
          .backward(),
      );
    use();
    const before = settledMemory();
    for (let i = 0; i < 20; i++) use();
    expect(memory()).toEqual(before);
  });
});
