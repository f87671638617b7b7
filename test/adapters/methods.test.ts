/** Every method on every tiny backbone that can carry it: what all adapters must do, whatever they compute. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, describe, expect, test } from 'vitest';
import { graft, listMethods, loadAdapter, matches, type Adapter } from '../../lib/adapters/index.js';
import type { Backbone } from '../../lib/models/index.js';
import { functional, type Site } from '../../lib/nn/index.js';
import { keep, manualSeed, noGrad, randn, scope, tensor, type Tensor } from '../../lib/tensor/index.js';
import { AdamW } from '../../lib/train/optim.js';
import { randomize, tinyModels } from '../models/tiny.js';
import { cases } from './method_cases.js';

const folders: string[] = [];
const folder = (): string => {
  const path = mkdtempSync(join(tmpdir(), 'torchgraft-adapter-'));
  folders.push(path);
  return join(path, 'adapter');
};
afterEach(() => {
  for (const path of folders.splice(0)) rmSync(path, { recursive: true, force: true });
});

const bits = (model: Backbone): Map<string, Tensor> =>
  new Map(model.namedState().map(([name, t]) => [name, keep(t.detach().clone())]));
const same = (model: Backbone, before: Map<string, Tensor>): string[] =>
  model.namedState().flatMap(([name, t]) => (before.get(name)?.equal(t) === true ? [] : [name]));

const relativeError = (a: Tensor, b: Tensor): number =>
  scope(() => Number(a.sub(b).norm().item()) / Math.max(Number(b.norm().item()), 1e-12));

const trainsScores = (adapter: Adapter): boolean =>
  adapter.namedParameters().some(([name]) => name.endsWith('relative_position_bias_table'));

const output = (model: Backbone, x: Tensor): Tensor => noGrad(() => scope(() => model.eval().run(x)));

/** Three steps on one batch, dropout and stochastic depth off; returns the losses before and after. */
function train(model: Backbone, adapter: Adapter, x: Tensor): { before: number; after: number } {
  model.eval();
  const labels = tensor([0, 2], { dtype: 'int64' });
  const optimizer = new AdamW(adapter.parameters(), { lr: 5e-3, weightDecay: 0 });
  const loss = (): Tensor => functional.crossEntropy(model.run(x), labels);
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

test('every registered method has a row', () => {
  expect(new Set(cases.map(({ method }) => method))).toEqual(new Set(listMethods()));
});

describe.each(cases)('$method $options', ({ method, options = {}, identityAtStart, merges, needs }) => {
  describe.each(tinyModels)('on $name', ({ name, make, sizes, channels = 3 }) => {
    const build = (): { model: Backbone; x: Tensor } => {
      manualSeed(7);
      const model = randomize(make()).eval();
      return { model, x: randn([2, channels, ...(sizes[0] ?? [])]) };
    };

    const carries = (sites: readonly Site[]): boolean =>
      typeof needs === 'function'
        ? needs(sites)
        : !needs || sites.some((site) => [needs].flat().some((query) => matches(query, site)));
    if (!carries(make().sites())) {
      test('is refused, and the message lists the sites there are', () => {
        const { model } = build();
        const before = bits(model);
        expect(() => graft(model, method, options)).toThrow(
          typeof needs === 'function' ? RangeError : /Its sites are:\n {2}\w+: /,
        );
        expect(same(model, before)).toEqual([]);
        expect(model.parameters().every((p) => p.requiresGrad)).toBe(true);
      });
      return;
    }

    test('lives a whole life', () => {
      const { model, x } = build();
      const before = bits(model);
      const plain = output(model, x);

      // In.
      const adapter = graft(model, method, options, { name: 'a', seed: 3 });
      const start = output(model, x);
      expect(start.isfinite().all().item()).toBe(true);
      expect(start.equal(plain)).toBe(identityAtStart);

      // Trained: the loss falls, every trainable tensor has a gradient, nothing else moves.
      const loss = train(model, adapter, x);
      expect(loss.after).toBeLessThan(loss.before);
      const trainable = new Set(adapter.parameters());
      for (const p of model.parameters()) if (!trainable.has(p)) expect(p.requiresGrad).toBe(false);
      const trained = output(model, x);
      expect(trained.equal(start)).toBe(false);

      // Out and in again.
      adapter.disable();
      expect(output(model, x).equal(plain)).toBe(true);
      expect(same(model, before)).toEqual([]);
      adapter.enable();
      expect(output(model, x).equal(trained)).toBe(true);

      // On disk and back, into a fresh backbone with the same weights: bit for bit.
      const path = folder();
      adapter.save(path, { classNames: ['a', 'b', 'c', 'd', 'e'], preprocessing: [{ kind: 'resize', size: 32 }] });
      const other = build().model;
      const loaded = loadAdapter(other, path);
      expect(output(other, x).equal(trained)).toBe(true);
      expect(loaded.summary().trainable).toBe(adapter.summary().trainable);

      // Merged and unmerged.
      if (merges) {
        const report = adapter.merge({ probe: x, partial: true });
        expect(relativeError(output(model, x), trained)).toBeLessThan(1e-5);
        expect(report.outputChange?.relative).toBeLessThan(1e-5);
        expect(report.target).toContain('in place');
        adapter.unmerge();
        expect(output(model, x).equal(trained)).toBe(true);
      } else {
        expect(() => adapter.merge()).toThrow(/cannot be merged: at .*partial/s);
        expect(output(model, x).equal(trained)).toBe(true);
      }

      // Gone.
      adapter.remove();
      expect(output(model, x).equal(plain)).toBe(true);
      expect(same(model, before)).toEqual([]);
      expect(model.namedModules().every(([, module]) => module.grafts === undefined)).toBe(true);
      expect(model.parameters().every((p) => p.requiresGrad)).toBe(true);
      expect(() => adapter.enable()).toThrow(/removed/);
    });

    test('serves a batch together with another adapter of its kind', () => {
      const { model, x } = build();
      const names = ['a', 'b'];
      const alone = names.map((name, i) => {
        const adapter = graft(model, method, options, { name, seed: i });
        noGrad(() => {
          for (const p of adapter.parameters()) p.add_(randn(p.shape), { alpha: 0.05 });
        });
        return output(model, x.narrow(0, i, 1));
      });
      const together = noGrad(() => scope(() => model.forward(x, { adapters: names })));
      alone.forEach((y, i) => expect(relativeError(together.narrow(0, i, 1), y)).toBeLessThan(1e-5));
    });

    test('checkpointing of activations changes no gradient', () => {
      const { model, x } = build();
      const adapter = graft(model, method, options, { seed: 3 });
      const gradients = (checkpointing: boolean): (Tensor | null)[] => {
        model.eval().setCheckpointing(checkpointing);
        model.zeroGrad();
        for (const p of adapter.parameters()) p.grad = null;
        scope(() => model.run(x).square().sum().backward());
        return adapter.parameters().map((p) => p.grad?.clone() ?? null);
      };
      const expected = gradients(false);
      const found = gradients(true);
      adapter.namedParameters().forEach(([parameter], i) => {
        const [one, other] = [expected[i] ?? null, found[i] ?? null];
        // What several blocks share is summed in another order; attention takes another kernel where a graph is recorded
        // and what is added to its scores is trained. All columns of RevCol read the stem.
        const isRounded = parameter.startsWith('shared.') || trainsScores(adapter) || name.startsWith('revcol');
        const agree =
          isRounded && one !== null && other !== null
            ? relativeError(other, one) < 1e-5
            : one === other || one?.equal(other as Tensor) === true;
        expect(agree, parameter).toBe(true);
      });
    });
  });
});
