/** Every method on every tiny backbone that can carry it: what all adapters must do, whatever they compute. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, describe, expect, test } from 'vitest';
import {
  graft,
  layersOf,
  loadAdapter,
  listMethods,
  matches,
  type Adapter,
  type SiteQuery,
} from '../../lib/adapters/index.js';
import type { Backbone } from '../../lib/models/index.js';
import { Conv2d, functional, Linear, type Site } from '../../lib/nn/index.js';
import { keep, manualSeed, noGrad, randn, scope, tensor, type Tensor } from '../../lib/tensor/index.js';
import { AdamW } from '../../lib/train/optim.js';
import { randomize, tinyModels } from '../models/tiny.js';

/** A method with options that suit tiny widths, and what it promises. */
interface Row {
  readonly method: string;
  readonly options?: Record<string, unknown>;
  readonly identityAtStart: boolean;
  readonly merges: boolean;
  /** What a backbone must have; one without such a site refuses the method. Default: nothing. */
  readonly needs?: SiteQuery | readonly SiteQuery[] | ((sites: readonly Site[]) => boolean);
}

/** All blocks see one sequence of tokens. */
const sequence = (sites: readonly Site[]): boolean =>
  sites.some(({ roles, layout }) => roles.includes('block') && layout === 'tokens') &&
  !sites.some(({ roles }) => roles.includes('stage'));
const linears = { role: 'linear', inBlock: true };
/** Queries of attention come from a linear layer, not from a convolution. */
const linearQueries = (sites: readonly Site[]): boolean =>
  sites.some(({ roles, module }) => roles.includes('q') && module instanceof Linear);
/** Increments cannot be told apart from weights that are standardized whenever they are used (BiT). */
const takesIncrements = ({ module }: Site): boolean => module instanceof Linear || module instanceof Conv2d;
/** What low-rank increments go onto by default: queries, and spatial convolutions. */
const plainLayers = (sites: readonly Site[]): boolean =>
  sites.some(
    (site) =>
      matches({ role: 'q' }, site) ||
      (matches({ role: 'conv', inBlock: true, minKernel: 2 }, site) && takesIncrements(site)),
  );

const rows: readonly Row[] = [
  { method: 'linear_probe', identityAtStart: true, merges: true },
  { method: 'full', identityAtStart: true, merges: true },
  { method: 'bitfit', identityAtStart: true, merges: true },
  {
    method: 'lora',
    options: { rank: 2, alpha: 6 },
    identityAtStart: true,
    merges: true,
    needs: plainLayers,
  },
  {
    method: 'lora',
    options: { rank: 2, at: { role: ['linear', 'conv'] } },
    identityAtStart: true,
    merges: true,
    needs: (sites) => sites.filter((site) => matches({ role: ['linear', 'conv'] }, site)).every(takesIncrements),
  },
  { method: 'ssf', identityAtStart: false, merges: true },
  { method: 'ssf', options: { init: 'identity' }, identityAtStart: true, merges: true },
  {
    method: 'conv_adapter',
    options: { reduction: 4 },
    identityAtStart: false,
    merges: false,
    needs: { role: 'spatial' },
  },
  ...['conv_par', 'conv_seq', 'res_par', 'res_seq'].map((scheme) => ({
    method: 'conv_adapter',
    options: { reduction: 4, scheme, init: 'zero' },
    identityAtStart: true,
    merges: false,
    needs: { role: scheme.startsWith('conv') ? 'spatial' : 'residual' },
  })),
  { method: 'convpass', options: { hidden: 3 }, identityAtStart: true, merges: false, needs: { role: 'mlp_path' } },
  {
    method: 'convpass',
    options: { hidden: 4, where: 'attention', start: 'identity', scale: 10, kernel: 5 },
    identityAtStart: true,
    merges: false,
    needs: { role: 'attention_path' },
  },
  { method: 'fact', options: { rank: 3 }, identityAtStart: true, merges: true, needs: linears },
  {
    method: 'fact',
    options: { variant: 'tk', rank: 5, scale: 10 },
    identityAtStart: true,
    merges: true,
    needs: linears,
  },
  {
    method: 'lora',
    options: { rank: 2, bits: 2, at: linears },
    identityAtStart: false,
    merges: true,
    needs: linears,
  },
  ...[
    { hidden: 5 },
    { hidden: 4, scale: 'learned', norm: 'in', placement: 'sequential' },
    { hidden: 3, scale: 10, norm: 'out', bias: false },
  ].map((options) => ({
    method: 'adaptformer',
    options,
    identityAtStart: true,
    merges: false,
    needs: { role: 'mlp_branch' },
  })),
  {
    method: 'adaptformer',
    options: { hidden: 4, bits: 1 },
    identityAtStart: false,
    merges: false,
    needs: { role: 'mlp_branch' },
  },
  {
    method: 'noah',
    options: { prompts: [2, 3], lora: [3, 1], adapters: [0, 4] },
    identityAtStart: false,
    merges: false,
    needs: sequence,
  },
  {
    method: 'noah',
    options: { prompts: 0, lora: 3, adapters: 2, init: 'zero' },
    identityAtStart: true,
    merges: false,
    needs: sequence,
  },
  ...['multiply', 'gate_only'].map((se) => ({
    method: 'pro_tuning',
    options: { groups: 2, kernel: 3, seRatio: 4, stages: 2, se },
    identityAtStart: true,
    merges: false,
  })),
  { method: 'vpt', options: { tokens: 2 }, identityAtStart: false, merges: false, needs: { role: 'tokens' } },
  {
    method: 'vpt',
    options: { tokens: 3, deep: true, project: 5 },
    identityAtStart: false,
    merges: false,
    // One projection widens the prompts of all blocks.
    needs: (sites) =>
      sites.some(({ roles }) => roles.includes('tokens')) &&
      new Set(sites.filter(({ roles }) => roles.includes('block')).map((site) => site.in)).size === 1,
  },
  { method: 'kadaptation', options: { phmDim: 4 }, identityAtStart: true, merges: true, needs: { role: 'q' } },
  {
    method: 'kadaptation',
    options: { phmDim: 4, rank: 2, rule: 'full', bias: true },
    identityAtStart: true,
    merges: true,
    needs: { role: 'q' },
  },
  {
    method: 'kadaptation',
    options: { phmDim: 4, variant: 'official', start: 'xavier' },
    identityAtStart: true,
    merges: false,
    needs: { role: 'q' },
  },
  { method: 'pevit_lora', options: { rank: 2 }, identityAtStart: true, merges: false, needs: { role: 'q' } },
  {
    method: 'compacter',
    options: { hidden: 8, trainRule: true },
    identityAtStart: false,
    merges: false,
    needs: { role: 'mlp' },
  },
  {
    method: 'intrinsic_subspace',
    options: { dimension: 40 },
    identityAtStart: true,
    merges: true,
    needs: (sites) => layersOf(sites, { submodule: 'block' }).length > 0,
  },
  {
    method: 'intrinsic_subspace',
    options: { dimension: 7, submodule: 'attention', depth: { from: -1 } },
    identityAtStart: true,
    merges: true,
    needs: { role: 'attention' },
  },
  {
    method: 'krona',
    options: { scale: 2, trainLayerNorm: true },
    identityAtStart: true,
    merges: true,
    needs: linearQueries,
  },
  { method: 'krona_b', identityAtStart: true, merges: false, needs: { role: 'mlp' } },
  {
    method: 'krona_b_res',
    options: { residualScaleInit: 0.5 },
    identityAtStart: false,
    merges: false,
    needs: { role: 'mlp' },
  },
  ...[{ rank: 2 }, { rank: 1, alpha: 3, decomposeBoth: true, decomposeFactor: 2, effectiveConv: true }].map(
    (options) => ({
      method: 'lokr',
      options,
      identityAtStart: true,
      merges: true,
      needs: plainLayers,
    }),
  ),
  { method: 'adapter', options: { width: 4 }, identityAtStart: true, merges: false, needs: { role: 'mlp_branch' } },
  {
    method: 'adapter',
    options: { design: 'houlsby', width: 4, mlp: { norm: 'out', scale: 'learned' } },
    identityAtStart: false,
    merges: false,
    needs: { role: 'attention' },
  },
  {
    method: 'adapter',
    options: { design: 'pfeiffer', width: 4 },
    identityAtStart: false,
    merges: false,
    needs: { role: 'block' },
  },
  {
    method: 'adapter',
    options: { design: 'multi_head_parallel', width: 3, attention: { width: 2, start: 'xavier' } },
    identityAtStart: false,
    merges: false,
    needs: { role: 'joined_heads' },
  },
  { method: 'prefix', options: { length: 3 }, identityAtStart: false, merges: false, needs: { role: 'keys' } },
  {
    method: 'prefix',
    options: { length: 3, reparametrize: 5, composition: 'add' },
    identityAtStart: false,
    merges: false,
    needs: { role: 'heads' },
  },
  {
    method: 'mam',
    options: { length: 2, width: 4, reparametrize: 5, scale: 2 },
    identityAtStart: false,
    merges: false,
    needs: { role: 'keys' },
  },
  { method: 'prompt_tuning', options: { length: 3 }, identityAtStart: false, merges: false, needs: { role: 'tokens' } },
  {
    method: 'st_adapter',
    options: { hidden: 4, kernel: [3, 3, 3], where: 'both' },
    identityAtStart: true,
    merges: false,
    needs: { role: 'mlp_stream' },
  },
  { method: 'st_adapter', options: { layers: 1 }, identityAtStart: true, merges: false, needs: { role: 'mlp_stream' } },
  { method: 'spm', options: { classes: 3, width: 4, stages: 2 }, identityAtStart: true, merges: false },
  ...['conv_adapt_norm', 'conv_adapt_bias'].map((variant) => ({
    method: 'conv_adapter',
    options: { reduction: 4, variant, finalNorm: true },
    identityAtStart: false,
    merges: false,
    needs: { role: 'spatial' },
  })),
];

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
  expect(new Set(rows.map(({ method }) => method))).toEqual(new Set(listMethods()));
});

describe.each(rows)('$method $options', ({ method, options = {}, identityAtStart, merges, needs }) => {
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
