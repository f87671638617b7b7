/** Heads that adapters bring: norms before the linear layer, starts from texts. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { classEmbeddings, graft, type HeadOptions, loadAdapter, startHead } from '../../lib/adapters/index.js';
import { type Backbone, createCustomModel } from '../../lib/models/index.js';
import { functional, trainingMode } from '../../lib/nn/index.js';
import { manualSeed, noGrad, randn, scope, type Tensor } from '../../lib/tensor/index.js';
import { randomize } from '../models/tiny.js';

const folder = mkdtempSync(join(tmpdir(), 'torchgraft-head-'));
afterAll(() => {
  rmSync(folder, { recursive: true, force: true });
});

const error = (a: Tensor, b: Tensor): number => Number(a.sub(b).norm().item()) / Number(b.norm().item());

function clip(projDim: number | null = 10): Backbone {
  manualSeed(7);
  const sizes = { imgSize: 16, patchSize: 4, embedDim: 24, depth: 1, numHeads: 3, projDim };
  return randomize(createCustomModel('clip_vit', sizes)).eval();
}

const images = (): Tensor => randn([6, 3, 16, 16]);

describe('a head with a norm', () => {
  it('uses the batch in training and what it has seen in evaluation, and keeps that on disk', () => {
    const model = clip();
    const x = images();
    const features = noGrad(() => model.run(x));
    const adapter = graft(model, 'linear_probe', {}, { head: { classes: 4, norm: 'batch', normEps: 1e-3 } });
    trainingMode(model, { backbone: 'eval' });
    const head = adapter.headModule;
    const linear = (z: Tensor): Tensor => functional.linear(z, head?.linear.weight as Tensor, head?.linear.bias);
    const mean = features.mean([0]);
    const variance = features.sub(mean).square().mean([0]);
    const normed = features.sub(mean).div(variance.add(1e-3).sqrt());
    expect(error(model.run(x), linear(normed))).toBeLessThan(1e-5);
    expect(error(head?.norm?.running_mean as Tensor, mean.mul(0.1))).toBeLessThan(1e-5);

    model.eval();
    const known = head?.norm?.running_var as Tensor;
    const fixed = features.sub(mean.mul(0.1)).div(known.add(1e-3).sqrt());
    const y = noGrad(() => model.run(x));
    expect(error(y, linear(fixed))).toBeLessThan(1e-5);

    adapter.save(join(folder, 'norm'));
    const other = clip();
    loadAdapter(other, join(folder, 'norm'));
    expect(noGrad(() => other.run(x)).equal(y)).toBe(true);
    expect([...adapter.officialState().keys()]).toEqual(
      expect.arrayContaining(['head.0.running_mean', 'head.0.running_var', 'head.1.weight', 'head.1.bias']),
    );
  });

  it('becomes one linear layer when it is merged', () => {
    const model = clip();
    const x = images();
    const adapter = graft(model, 'linear_probe', {}, { head: { classes: 4, norm: 'batch' } });
    trainingMode(model, { backbone: 'eval' });
    for (let i = 0; i < 20; i++) noGrad(() => scope(() => model.run(images())));
    const before = noGrad(() => model.eval().run(x));
    adapter.merge();
    expect(
      error(
        noGrad(() => model.run(x)),
        before,
      ),
    ).toBeLessThan(1e-5);
    adapter.unmerge();
    expect(noGrad(() => model.run(x)).equal(before)).toBe(true);
  });

  it('may bring features to one length, which cannot be merged', () => {
    const model = clip();
    const x = images();
    const features = noGrad(() => model.run(x));
    const adapter = graft(model, 'linear_probe', {}, { head: { classes: 4, normalize: true } });
    const lengths = features.square().sum([1], true).sqrt();
    const expected = noGrad(() => adapter.headModule?.linear.run(features.div(lengths)));
    const found = noGrad(() => model.run(x));
    expect(error(found, expected as Tensor)).toBeLessThan(1e-5);
    expect(() => adapter.merge()).toThrow(/brings features to one length/);
  });

  it('refuses a training batch of one, and options that it does not know', () => {
    const model = clip();
    graft(model, 'linear_probe', {}, { head: { classes: 4, norm: 'batch' } });
    trainingMode(model, { backbone: 'eval' });
    expect(() => model.run(images().narrow(0, 0, 1))).toThrow(/more than one image/);
    const head = { classes: 4, nrom: 'batch' } as HeadOptions;
    expect(() => graft(clip(), 'linear_probe', {}, { head })).toThrow(/unknown option 'nrom'; did you mean norm/);
  });
});

describe('a head that starts from texts', () => {
  const prompts = (): Tensor => randn([4, 3, 10]);

  it('has the average direction of the prompts of each class', () => {
    const each = prompts();
    const weights = classEmbeddings(each);
    expect(weights.shape).toEqual([4, 10]);
    const unit = (t: Tensor): Tensor => t.div(t.norm());
    const first = [0, 1, 2].map((i) => unit(each.select(0, 2).select(0, i))).reduce((a, b) => a.add(b));
    expect(error(weights.select(0, 2), unit(first))).toBeLessThan(1e-6);
    expect(() => classEmbeddings(randn([4, 10]))).toThrow(/expected \[classes, prompts, e\], got shape \[4, 10\]/);
  });

  it('classifies by the product with the features, also where it takes over the projection', () => {
    const weights = classEmbeddings(prompts());
    const model = clip();
    const x = images();
    const expected = noGrad(() => model.run(x)).mm(weights.t());
    startHead(graft(model, 'linear_probe', {}, { head: { classes: 4 } }), weights);
    expect(
      error(
        noGrad(() => model.run(x)),
        expected,
      ),
    ).toBeLessThan(1e-5);

    const { proj } = clip() as unknown as { proj: { weight: Tensor } };
    const state = clip().stateDict();
    state.delete('proj.weight');
    const without = clip(null);
    without.loadStateDict(state);
    const adapter = graft(without, 'linear_probe', {}, { head: { classes: 4 } });
    startHead(adapter, weights, { projection: proj.weight });
    expect(adapter.headModule?.linear.weight.shape).toEqual([4, 24]);
    expect(
      error(
        noGrad(() => without.run(x)),
        expected,
      ),
    ).toBeLessThan(1e-5);
  });

  it('must fit', () => {
    const adapter = graft(clip(), 'linear_probe', {}, { head: { classes: 4 } });
    expect(() => {
      startHead(adapter, randn([5, 10]));
    }).toThrow(/weight \[5, 10\] does not fit the head, which has \[4, 10\]/);
    expect(() => {
      startHead(adapter, randn([4, 10]), { projection: randn([24, 10]) });
    }).toThrow(/weight \[4, 10\] times projection \[24, 10\] is no product/);
    const frozen = graft(clip(), 'bitfit', {}, { head: 'frozen' });
    expect(() => {
      startHead(frozen, randn([4, 10]));
    }).toThrow(/brings no head of its own/);
  });
});

describe('a head with hidden layers', () => {
  const features = (model: Backbone, x: Tensor): Tensor => noGrad(() => model.run(x));

  it('equals its formula, is stored, and is no single linear layer', () => {
    const model = clip();
    const x = images();
    const z = features(model, x);
    const adapter = graft(model, 'vpt', { location: 'add_1' }, { head: { classes: 4, hidden: 2 } });
    const head = adapter.headModule;
    expect(head?.namedParameters().map(([name]) => name)).toEqual([
      ...[0, 4].flatMap((i) => [i, i + 2].flatMap((n) => [`projection.${n}.weight`, `projection.${n}.bias`])),
      'linear.weight',
      'linear.bias',
    ]);
    // Kaiming over fan-out: the start that goes with the prior.
    expect(Number(head?.getModule('projection.0').parameters()[0]?.std().item())).toBeCloseTo(Math.sqrt(2 / 10), 0.5);
    model.eval();
    const state = new Map(head?.namedState());
    const get = (name: string): Tensor => state.get(name) as Tensor;
    let expected = z;
    for (const i of [0, 4]) {
      expected = functional.linear(expected, get(`projection.${i}.weight`), get(`projection.${i}.bias`)).relu();
      expected = expected.div(Math.sqrt(1 + 1e-5));
    }
    expected = functional.linear(expected, get('linear.weight'), get('linear.bias'));
    expect(
      error(
        noGrad(() => head?.run(z) as Tensor),
        expected,
      ),
    ).toBeLessThan(1e-5);
    const probe = graft(clip(), 'linear_probe', {}, { head: { classes: 4, hidden: 1 } });
    expect(() => probe.merge()).toThrow(/hidden layers/);

    adapter.save(join(folder, 'hidden'));
    const y = noGrad(() => model.run(x));
    const other = clip();
    loadAdapter(other, join(folder, 'hidden'));
    expect(noGrad(() => other.run(x)).equal(y)).toBe(true);
    trainingMode(model, { backbone: 'eval' });
    expect(() => model.run(x.narrow(0, 0, 1))).toThrow(/more than one image/);
  });
});

describe('the start of a head', () => {
  it("is the method's own unless the caller says otherwise", () => {
    const start = (method: string, init?: HeadOptions['init']): { weight: Tensor; bias: Tensor } => {
      const sizes = { block: 'basic', layers: [1], channels: [64], stemChannels: 64 };
      const options = { classes: 100, ...(init && { init }) };
      const head = graft(createCustomModel('resnet', sizes), method, {}, { head: options, seed: 1 }).headModule;
      return { weight: head?.linear.weight as Tensor, bias: head?.linear.bias as Tensor };
    };
    const largest = (t: Tensor): number => Number(t.abs().max().item());
    const spread = (t: Tensor): number => Number(t.std().item());
    const conv = start('conv_adapter');
    expect(largest(conv.bias)).toBe(0);
    expect(largest(conv.weight)).toBeLessThanOrEqual(1 / 8);
    expect(largest(conv.weight)).toBeGreaterThan(0.12);
    const ssf = start('ssf');
    expect(largest(ssf.bias)).toBe(0);
    expect(Math.abs(spread(ssf.weight) - 0.02)).toBeLessThan(1e-3);
    const own = start('ssf', 'default');
    expect(largest(own.bias)).toBeGreaterThan(0.05);
    expect(Math.abs(spread(own.weight) - 1 / (8 * Math.sqrt(3)))).toBeLessThan(3e-3);
  });
});
