/** Adapters that are active together: the order in which they compute, merging one beside the others, unmerging, weighting. */
import { beforeEach, describe, expect, test } from 'vitest';
import { z } from 'zod';
import { affine, defineMethod, graft, replace, sequential, type Adapter } from '../../lib/adapters/index.js';
import { createCustomModel, createModel, type Backbone } from '../../lib/models/index.js';
import { Linear, Module } from '../../lib/nn/index.js';
import { aten, manualSeed, noGrad, randn, type Tensor } from '../../lib/tensor/index.js';
import { randomize } from '../models/tiny.js';

const makeCnn = (): Backbone => randomize(createModel('cifar_resnet20', { channels: [4, 8, 12] })).eval();
const makeConvNeXt = (): Backbone =>
  randomize(
    createCustomModel('convnext', { depths: [1, 1], dims: [8, 12], numClasses: 5, headNormFirst: 'twice' }),
  ).eval();
const image = (): Tensor => randn([2, 3, 32, 32]);
const run = (model: Backbone, x: Tensor): Tensor => noGrad(() => model.run(x));
const largest = (t: Tensor): number => Number(t.abs().max().item());
const distance = (a: Tensor, b: Tensor): number => largest(a.sub(b)) / largest(b);

/** Gives every parameter of an adapter values of its own. */
function shake(adapter: Adapter): Adapter {
  noGrad(() => {
    for (const parameter of adapter.parameters()) parameter.add_(aten.randnLike(parameter), { alpha: 0.3 });
  });
  return adapter;
}

/** Sets in an adapter without a head, with values of its own; it becomes active beside the others. */
function add(
  model: Backbone,
  method: Parameters<typeof graft>[1],
  options: Record<string, unknown>,
  name: string,
): Adapter {
  return shake(graft(model, method, options, { name, head: 'frozen', activate: 'also' }));
}

beforeEach(() => manualSeed(0));

describe('adapters that are active together', () => {
  test('compute in the order in which they became active', () => {
    const model = makeCnn();
    const x = image();
    const at = { role: 'conv' };
    const [scale, increment] = [add(model, 'ssf', {}, 'scale'), add(model, 'lora', { rank: 2, at }, 'increment')];
    const scaledFirst = run(model, x);
    increment.activate();
    scale.enable();
    const scaledLast = run(model, x);
    expect(distance(scaledFirst, scaledLast)).toBeGreaterThan(1e-3);
    scale.activate();
    increment.enable();
    expect(run(model, x).equal(scaledFirst)).toBe(true);
  });

  test('are merged in that order, and unmerged in the reverse one, to the last bit', () => {
    const model = makeCnn();
    const x = image();
    const plain = run(model, x);
    const at = { role: 'conv' };
    const [scale, increment] = [add(model, 'ssf', {}, 'scale'), add(model, 'lora', { rank: 2, at }, 'increment')];
    const both = run(model, x);
    expect(() => increment.merge()).toThrow(/of adapter 'scale' would compute something else; merge or disable/);
    scale.merge();
    expect(distance(run(model, x), both)).toBeLessThan(1e-5);
    increment.merge();
    expect(distance(run(model, x), both)).toBeLessThan(1e-5);
    expect(() => scale.unmerge()).toThrow(/'increment' was merged after 'scale'; call unmerge\(\) on that one first/);
    expect(() => {
      scale.remove();
    }).toThrow(/'increment' was merged after/);
    increment.unmerge();
    scale.unmerge();
    expect(run(model, x).equal(both)).toBe(true);
    increment.remove();
    scale.remove();
    expect(run(model, x).equal(plain)).toBe(true);
  });

  test('may be merged in any order where the one does not see the other', () => {
    const model = makeCnn();
    const x = image();
    const at = { role: 'conv' };
    const [one, two] = [add(model, 'lora', { rank: 2, at }, 'one'), add(model, 'lora', { rank: 1, at }, 'two')];
    const both = run(model, x);
    two.merge();
    expect(distance(run(model, x), both)).toBeLessThan(1e-5);
    one.merge();
    expect(distance(run(model, x), both)).toBeLessThan(1e-5);
  });

  test('a map that folds into the classifier waits for what reads the features before', () => {
    const model = makeConvNeXt();
    const x = image();
    const scale = add(model, 'ssf', {}, 'scale');
    const head = graft(model, 'linear_probe', {}, { name: 'head', head: { classes: 3 }, activate: 'also' });
    expect(() => scale.merge()).toThrow(/the Head at head\.fc of adapter 'head' would compute something else/);
    head.disable();
    const alone = run(model, x);
    scale.merge();
    expect(distance(run(model, x), alone)).toBeLessThan(1e-5);
  });
});

describe('a merged adapter', () => {
  test('stays when another is activated, which may bring a head of its own', () => {
    const model = makeCnn();
    const x = image();
    const first = shake(graft(model, 'lora', { rank: 2 }, { name: 'first', head: { classes: 3 } }));
    const features = run(model, x);
    first.merge();
    const second = graft(model, 'linear_probe', {}, { name: 'second', head: { classes: 4, init: 'zero' } });
    expect(first.isActive).toBe(true);
    expect(largest(run(model, x))).toBe(0);
    expect(() => first.unmerge()).toThrow(/'second' and 'first'|'first' and 'second'/);
    second.remove();
    expect(distance(run(model, x), features)).toBeLessThan(1e-5);
    first.unmerge();
    expect(run(model, x).equal(features)).toBe(true);
  });
});

describe('partial merging', () => {
  class Double extends Module {
    forward(x: Tensor): Tensor {
      return x.mul(2);
    }
  }
  class Own extends Module {
    readonly linear: Linear;
    constructor(inFeatures: number, outFeatures: number) {
      super();
      this.linear = new Linear(inFeatures, outFeatures);
    }
    forward(x: Tensor): Tensor {
      return this.linear.run(x);
    }
  }
  class Factor extends Own {
    factorAndSummand(): { factor: Tensor; summand: null } {
      const [factor] = this.linear.weight.detach().unbind(0);
      return { factor: factor as Tensor, summand: null };
    }
  }

  const at = { role: 'classifier' };
  const method = (first: 'double' | 'replace') =>
    defineMethod({
      id: 'mix',
      summary: 'a part that cannot be folded, and a factor behind it',
      paper: 'none',
      options: z.strictObject({}),
      rules: () => [
        first === 'double'
          ? { id: 'first', at, compose: sequential(), form: () => new Double() }
          : { id: 'first', at, compose: replace(), form: (site) => new Own(site.in, site.out) },
        { id: 'factor', at, compose: affine(), form: (site) => new Factor(site.out, 1) },
      ],
    });

  test.each(['double', 'replace'] as const)('leaves what stands behind a part that stays: %s', (first) => {
    const model = makeCnn();
    const adapter = add(model, method(first), {}, 'mix');
    const x = image();
    const before = run(model, x);
    const report = adapter.merge({ partial: true, probe: x });
    expect(report.leftover.map(({ site }) => site)).toEqual(['linear', 'linear']);
    expect(report.leftover[1]?.reason).toMatch(/of this adapter stays and would compute something else/);
    expect(run(model, x).equal(before)).toBe(true);
  });
});

test('one site takes one rule of an id, whose tensors have its name', () => {
  const model = makeCnn();
  const overlapping = { at: { role: 'conv', stage: 1 }, also: [{ at: { path: 'layer2.1.conv*' }, rank: 1, alpha: 1 }] };
  expect(() => graft(model, 'lora', { rank: 2, ...overlapping })).toThrow(
    /lora: two rules 'lora' mean layer2\.1\.conv1, and it takes one/,
  );
  const apart = { ...overlapping, at: { ...overlapping.at, except: 'layer2.1.conv*' } };
  expect(graft(model, 'lora', { rank: 2, ...apart }).grafts.length).toBeGreaterThan(4);
});

describe('strength', () => {
  test('scales an increment, and merging keeps it', () => {
    const model = makeCnn();
    const x = image();
    const adapter = shake(graft(model, 'lora', { rank: 2, alpha: 2 }, { head: 'frozen' }));
    const full = run(model, x);
    const same = graft(model, 'lora', { rank: 2, alpha: 4 }, { name: 'twice', head: 'frozen' });
    noGrad(() => {
      adapter.parameters().forEach((p, i) => same.parameters()[i]?.copy_(p));
    });
    const twice = run(model, x);
    expect(distance(twice, full)).toBeGreaterThan(1e-3);
    adapter.activate();
    adapter.strength = 2;
    expect(distance(run(model, x), twice)).toBeLessThan(1e-5);
    expect(adapter.merge({ probe: x }).outputChange?.relative).toBeLessThan(1e-5);
    adapter.unmerge();
    adapter.strength = 1;
    expect(run(model, x).equal(full)).toBe(true);
  });

  test.each([
    ['ssf', {}],
    ['lora', { rank: 2 }],
    ['conv_adapter', { reduction: 2 }],
  ])('0 is the backbone, for %s', (method, options) => {
    const model = makeCnn();
    const x = image();
    const plain = run(model, x);
    const adapter = shake(graft(model, method, options, { head: 'frozen' }));
    expect(largest(run(model, x).sub(plain))).toBeGreaterThan(1e-4);
    adapter.strength = 0;
    expect(largest(run(model, x).sub(plain))).toBeLessThan(1e-5);
  });

  test('is refused where a graft is there or not, and for numbers that are none', () => {
    const model = makeCnn();
    const prompt = graft(model, 'conv_adapter', { variant: 'prompt', promptSize: 2, imageSize: 32 });
    expect(() => (prompt.strength = 0.5)).toThrow(/cannot be weighted: its graft at input/);
    const lora = graft(model, 'lora', { rank: 2 }, { name: 'b' });
    expect(() => (lora.strength = NaN)).toThrow(/finite/);
  });
});
