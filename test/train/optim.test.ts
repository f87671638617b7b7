import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { Linear, Parameter, Sequential } from '../../lib/nn/index.js';
import { manualSeed, memory, randn, scope, tensor, zeros, type Tensor } from '../../lib/tensor/index.js';
import { Adam, AdamW, clipGradNorm, SGD, weightDecayGroups, type OptimizerState } from '../../lib/train/optim.js';
import { settledMemory } from '../support/settled_memory.js';

type Matrix = number[][];

interface Golden {
  w: Matrix;
  b: number[];
  x: Matrix;
  y: Matrix;
  cases: { name: 'SGD' | 'Adam' | 'AdamW'; options: Record<string, unknown>; w: Matrix; b: number[] }[];
  clip: { grads: [Matrix, number[]]; max: number; norm: number; clipped: [Matrix, number[]] };
}

// Made by make_optim.py beside this file.
const golden = JSON.parse(readFileSync(new URL('./optim.json', import.meta.url), 'utf8')) as Golden;
const classes = { SGD, Adam, AdamW };

function largestDifference(a: Tensor, b: Tensor): number {
  return Number(a.sub(b).abs().max().item());
}

function lossOf(w: Tensor, b: Tensor): Tensor {
  return tensor(golden.x).matmul(w).add(b).tanh().sub(tensor(golden.y)).square().mean();
}

function camelCased({ weight_decay, ...rest }: Record<string, unknown>): Record<string, unknown> {
  return weight_decay === undefined ? rest : { ...rest, weightDecay: weight_decay };
}

describe('twenty steps', () => {
  for (const { name, options, w: wantedW, b: wantedB } of golden.cases) {
    it(`of ${name} ${JSON.stringify(options)} equal PyTorch's`, () => {
      const w = new Parameter(tensor(golden.w));
      const b = new Parameter(tensor(golden.b));
      const half = { params: [b], lr: Number(options['lr']) / 2, weightDecay: 0 };
      const optimizer = new classes[name]([{ params: [w] }, half], camelCased(options));
      for (let step = 0; step < 20; step++) {
        optimizer.zeroGrad();
        lossOf(w, step >= 5 ? b : b.detach()).backward();
        optimizer.step();
      }
      expect(largestDifference(w.detach(), tensor(wantedW))).toBeLessThan(1e-6);
      expect(largestDifference(b.detach(), tensor(wantedB))).toBeLessThan(1e-6);
    });
  }
});

describe('state', () => {
  const makers = {
    SGD: (params: Parameter[]) => new SGD(params, { lr: 0.05, momentum: 0.9, dampening: 0.1 }),
    Adam: (params: Parameter[]) => new Adam(params, { lr: 0.02 }),
    AdamW: (params: Parameter[]) => new AdamW(params, { lr: 0.02, betas: [0.8, 0.99] }),
  };

  for (const [name, make] of Object.entries(makers)) {
    it(`of ${name} resumes bit for bit through a copy`, () => {
      const run = (w: Parameter, b: Parameter, optimizer: SGD | Adam | AdamW, from: number, to: number): void => {
        for (let step = from; step < to; step++) {
          optimizer.zeroGrad();
          lossOf(w, step >= 5 ? b : b.detach()).backward();
          optimizer.step();
        }
      };
      for (const cut of [0, 3, 8]) {
        const w = new Parameter(tensor(golden.w));
        const b = new Parameter(tensor(golden.b));
        const optimizer = make([w, b]);
        run(w, b, optimizer, 0, cut);
        const { kind, groups, tensors } = optimizer.stateDict();
        const saved: OptimizerState = {
          kind,
          groups: JSON.parse(JSON.stringify(groups)) as OptimizerState['groups'],
          tensors: new Map(Array.from(tensors, ([key, value]) => [key, value.clone()])),
        };
        const w2 = new Parameter(w.detach().clone());
        const b2 = new Parameter(b.detach().clone());
        run(w, b, optimizer, cut, 12);

        const resumed = make([w2, b2]);
        resumed.loadStateDict(saved);
        run(w2, b2, resumed, cut, 12);
        expect(w2.equal(w)).toBe(true);
        expect(b2.equal(b)).toBe(true);
      }
    });
  }

  it("restores options and uses PyTorch's names", () => {
    const w = new Parameter(zeros([2]));
    const optimizer = new AdamW([w], { lr: 0.5 });
    w.grad = tensor([1, 2]);
    optimizer.step();
    expect([...optimizer.stateDict().tensors.keys()]).toEqual(['0.exp_avg', '0.exp_avg_sq', '0.step']);
    optimizer.groups[0]!.lr = 0.25;
    const other = new AdamW([new Parameter(zeros([2]))]);
    other.loadStateDict(optimizer.stateDict());
    expect(other.groups[0]!.lr).toBe(0.25);
    expect(other.stateDict().tensors.get('0.step')?.item()).toBe(1);
  });

  it('that does not fit is refused and changes nothing', () => {
    const w = new Parameter(zeros([2]));
    const optimizer = new Adam([w], { lr: 0.5 });
    w.grad = tensor([1, 2]);
    optimizer.step();
    const state = optimizer.stateDict();
    expect(() => new SGD([w]).loadStateDict(state)).toThrow(/kind 'adam', expected 'sgd'/);
    expect(() => new Adam([w, new Parameter(zeros([1]))]).loadStateDict(state)).toThrow(
      /groups of \[1\] parameters, expected \[2\]/,
    );
    const other = new Adam([new Parameter(zeros([3]))], { lr: 0.1 });
    expect(() => other.loadStateDict(state)).toThrow(/'0.exp_avg' has shape \[2\], expected shape \[3\]/);
    expect(other.groups[0]!.lr).toBe(0.1);
    expect(other.stateDict().tensors.size).toBe(0);
    const strange = { ...state, tensors: new Map([...state.tensors, ['0.max_exp_avg_sq', zeros([2])]]) };
    expect(() => new Adam([w]).loadStateDict(strange)).toThrow(/do not belong here: 0.max_exp_avg_sq/);
  });
});

describe('parameters', () => {
  it('without a gradient stay, frozen ones start when they are unfrozen', () => {
    const [a, b] = [new Parameter(zeros([2])), new Parameter(zeros([2]), false)];
    const optimizer = new Adam([a, b], { lr: 0.1 });
    a.grad = tensor([1, -1]);
    optimizer.step();
    expect([...optimizer.stateDict().tensors.keys()].every((name) => name.startsWith('0.'))).toBe(true);
    b.requiresGrad = true;
    b.grad = tensor([1, 1]);
    optimizer.step();
    expect(Number(b.data()[0])).toBeCloseTo(-0.1, 6);
    expect(optimizer.stateDict().tensors.get('1.step')?.item()).toBe(1);
    expect(optimizer.stateDict().tensors.get('0.step')?.item()).toBe(2);
  });

  it('of several dtypes can share a group', () => {
    const [a, b] = [new Parameter(zeros([2])), new Parameter(zeros([3], { dtype: 'float64' }))];
    const optimizer = new AdamW([a, b], { lr: 0.1 });
    a.grad = tensor([1, 1]);
    b.grad = tensor([1, 1, 1], { dtype: 'float64' });
    optimizer.step();
    expect(Number(a.data()[0])).toBeCloseTo(-0.1, 6);
    expect(Number(b.data()[0])).toBeCloseTo(-0.1, 6);
  });

  it('lose their gradients by zeroGrad, or keep zeros', () => {
    const w = new Parameter(zeros([2]));
    const optimizer = new SGD([w], { lr: 1 });
    w.grad = tensor([1, 2]);
    optimizer.zeroGrad({ setToNone: false });
    expect(w.grad?.tolist()).toEqual([0, 0]);
    optimizer.zeroGrad();
    expect(w.grad).toBeNull();
  });

  it('keep their state when scopes close around the steps, at constant memory', () => {
    const w = new Parameter(randn([8, 8]));
    const optimizer = new AdamW([w], { lr: 0.01 });
    const step = (): void =>
      scope(() => {
        optimizer.zeroGrad();
        w.square().sum().backward();
        optimizer.step();
      });
    for (let i = 0; i < 5; i++) step();
    const before = settledMemory();
    for (let i = 0; i < 50; i++) step();
    expect(memory()).toEqual(before);
  });
});

describe('wrong use', () => {
  const w = new Parameter(zeros([2]));

  it('of options names the nearest', () => {
    expect(() => new AdamW([w], { weight_decay: 1 } as never)).toThrow(
      /AdamW: unknown option 'weight_decay'; did you mean weightDecay/,
    );
    expect(() => new SGD([{ params: [w], learningRate: 1 } as never])).toThrow(
      /SGD: group 0: unknown option 'learningRate'/,
    );
    expect(() => new Adam([w], { lr: -1 })).toThrow(/lr/);
    expect(() => new Adam([w], { lr: NaN })).toThrow(/lr/);
    expect(() => new Adam([w], { betas: [1, 0.9] })).toThrow(/betas/);
    expect(() => new SGD([w], { nesterov: true })).toThrow(/nesterov needs momentum/);
  });

  it('of parameters says which', () => {
    expect(() => new SGD([])).toThrow(/no parameters/);
    expect(() => new SGD([w, w])).toThrow(/parameter 1 of group 0 appears twice/);
    expect(() => new SGD([{ params: [w] }, { params: [w] }])).toThrow(/parameter 0 of group 1 appears twice/);
    expect(() => new SGD([w.mul(2)])).toThrow(/only leaves/);
    expect(() => new SGD([{ params: [1 as never] }])).toThrow(/parameter 0 of group 0 is not a tensor/);
    expect(() => new SGD([w, { params: [w] }] as never)).toThrow(/do not mix/);
  });
});

describe('clipGradNorm', () => {
  it("equals PyTorch's", () => {
    const params = golden.clip.grads.map((g) => {
      const p = new Parameter(tensor(g).mul(0));
      p.grad = tensor(g);
      return p;
    });
    expect(clipGradNorm(params, golden.clip.max).item()).toBeCloseTo(golden.clip.norm, 5);
    params.forEach((p, i) =>
      expect(largestDifference(p.grad!, tensor(golden.clip.clipped[i] as Matrix))).toBeLessThan(1e-6),
    );
  });

  it('leaves small gradients alone and passes over missing ones', () => {
    const [p, q] = [new Parameter(zeros([2])), new Parameter(zeros([2]))];
    p.grad = tensor([0.3, 0.4]);
    expect(clipGradNorm([p, q], 1).item()).toBeCloseTo(0.5, 6);
    expect(p.grad.tolist()).toEqual(tensor([0.3, 0.4]).tolist());
    expect(clipGradNorm([q], 1).item()).toBe(0);
  });
});

describe('weightDecayGroups', () => {
  it('spares vectors, named exceptions and frozen parameters', () => {
    manualSeed(0);
    const model = new Sequential(new Linear(3, 4), new Linear(4, 2), new Linear(2, 2));
    model.getModule('2').freeze();
    const [decayed, plain] = weightDecayGroups(model, 0.1, { noDecay: (name) => name.startsWith('1.') });
    expect(decayed?.weightDecay).toBe(0.1);
    expect(decayed?.params.length).toBe(1);
    expect(decayed?.params[0]).toBe(model.namedParameters()[0]?.[1]);
    expect(plain?.weightDecay).toBe(0);
    expect(plain?.params.length).toBe(3);
    expect(weightDecayGroups([['x', new Parameter(zeros([1]))]], 0.1).length).toBe(1);
  });
});
