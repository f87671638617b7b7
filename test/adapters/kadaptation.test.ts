/** Kronecker adaptation and what came with it: sums of Kronecker products, PEViT's reshape, random subspaces. */
import { describe, expect, it, test } from 'vitest';
import {
  compacter,
  graft,
  KroneckerFactors,
  kroneckerLowRank,
  kroneckerMatrix,
  kroneckerProduct,
  KroneckerRule,
  layersOf,
  sizeOf,
  type Adapter,
} from '../../lib/adapters/index.js';
import { type Backbone, createCustomModel, createModel } from '../../lib/models/index.js';
import {
  aten,
  countMacs,
  empty,
  manualSeed,
  noGrad,
  randn,
  scope,
  type Tensor,
  withDefaults,
} from '../../lib/tensor/index.js';
import { randomize } from '../models/tiny.js';

const error = (a: Tensor, b: Tensor): number => Number(a.sub(b).norm().item()) / Number(b.norm().item());

function clip(): Backbone {
  manualSeed(7);
  const sizes = { imgSize: 16, patchSize: 4, embedDim: 24, depth: 2, numHeads: 3, projDim: 10, numClasses: 5 };
  return randomize(createCustomModel('clip_vit', sizes)).eval();
}

/** Random values for everything that an adapter trains. */
function shake(adapter: Adapter, size = 0.3): Adapter {
  noGrad(() => {
    for (const parameter of adapter.parameters()) parameter.copy_(randn(parameter.shape).mul(size));
  });
  return adapter;
}

describe('sums of Kronecker products', () => {
  it.each([
    ['full', 4, 24, 12, 2],
    ['factored', 4, 24, 12, 2],
    // Ranks at which the matrix itself is cheaper.
    ['full', 12, 24, 24, 1],
    ['factored', 6, 12, 12, 2],
    ['full', 1, 5, 7, 1],
  ] as const)('%s rule, n = %d, %d to %d, rank %d', (kind, n, inFeatures, outFeatures, rank) => {
    manualSeed(3);
    const rule = new KroneckerRule(n, { kind, range: 1 });
    const factors = new KroneckerFactors(inFeatures, outFeatures, { n, rank, start: 'both' });
    const matrices = rule.matrices();
    const expected = Array.from({ length: n }, (_, i) =>
      aten.kron(matrices.select(0, i), factors.left.select(0, i).mm(factors.right.select(0, i))),
    ).reduce((sum, term) => sum.add(term));
    expect(error(kroneckerMatrix(rule, factors), expected)).toBeLessThan(1e-6);
    const x = randn([2, 3, inFeatures]);
    expect(error(kroneckerProduct(x, rule, factors), x.matmul(expected))).toBeLessThan(1e-5);
    const low = kroneckerLowRank(rule, factors);
    if (low) expect(error(low.up.mm(low.down), expected.t())).toBeLessThan(1e-5);
  });

  it('starts every slice by itself', () => {
    const { left, right } = new KroneckerFactors(64, 64, { n: 4, rank: 1, start: 'xavier' });
    const bound = Math.SQRT2 * Math.sqrt(6 / 17);
    for (let i = 0; i < 4; i++) {
      const most = Number(left.select(0, i).abs().max().item());
      expect(most).toBeLessThanOrEqual(bound);
      expect(most).toBeGreaterThan(0.6 * bound);
    }
    expect(Number(right.abs().max().item())).toBe(0);
  });

  it('says which numbers of matrices would divide the widths', () => {
    expect(() => new KroneckerFactors(24, 36, { n: 5, rank: 1, start: 'zero' })).toThrow(/1, 2, 3, 4, 6, 12 would do/);
  });

  it('costs less than the matrices would', () => {
    const macs = (method: string, options: Record<string, unknown>): number =>
      withDefaults({ device: 'meta' }, () => {
        const model = createModel('vit_base_patch32_clip_quickgelu_224').eval();
        if (method !== '') graft(model, method, options);
        return noGrad(() => countMacs(() => model.run(empty([1, 3, 224, 224]))).macs);
      });
    const plain = macs('', {});
    const dense = 12 * 2 * 50 * 768 * 768;
    const factored = macs('kadaptation', { variant: 'official' }) - plain;
    const full = macs('kadaptation', { rule: 'full' }) - plain;
    expect(factored).toBeGreaterThan(0);
    expect(factored).toBeLessThan(dense / 6);
    expect(full).toBeLessThan(dense / 6);
    expect(macs('compacter', {}) - plain).toBeLessThan((12 * 2 * 50 * 768 * 64) / 2);
  });
});

describe('the released code', () => {
  const outputs = (model: Backbone, x: Tensor): Tensor => noGrad(() => model.run(x));
  const x = (): Tensor => randn([3, 3, 16, 16]);

  it.each([
    ['kadaptation', { variant: 'official', phmDim: 4 }, true],
    ['pevit_lora', { rank: 2 }, true],
    ['kadaptation', { phmDim: 4, bias: true }, false],
  ] as const)('%s %j mixes samples: %s', (method, options, mixes) => {
    const model = clip();
    shake(graft(model, method, options), 0.1);
    const images = x();
    const before = outputs(model, images);
    const changed = images.clone();
    noGrad(() => changed.select(0, 2).mul_(-1));
    const after = outputs(model, changed);
    expect(after.select(0, 2).equal(before.select(0, 2))).toBe(false);
    expect(error(after.narrow(0, 0, 2), before.narrow(0, 0, 2)) > 1e-4).toBe(mixes);
  });

  function gradients(options: Record<string, unknown>): Map<string, number> {
    const model = clip();
    const adapter = graft(model, 'kadaptation', { phmDim: 4, ...options }, { seed: 1 });
    scope(() => model.run(x()).square().sum().backward());
    const named = adapter.namedParameters().filter(([name]) => !name.startsWith('backbone.'));
    return new Map(named.map(([name, { grad }]) => [name, grad === null ? 0 : Number(grad.abs().max().item())]));
  }

  it('starts where only b can learn; the recommended start does not', () => {
    const official = [...gradients({ variant: 'official' })].filter(([, size]) => size > 0).map(([name]) => name);
    expect(official).toEqual(['shared.blocks.0.attn.b', 'shared.blocks.1.attn.b']);
    const paper = [...gradients({})].filter(([, size]) => size > 0).map(([name]) => name);
    expect(paper).toEqual(
      expect.arrayContaining(['blocks.0.attn.qkv[q].q.factors.right', 'blocks.1.attn.qkv[v].v.factors.right']),
    );
    const started = gradients({ variant: 'official', start: 'xavier' });
    expect(started.get('shared.blocks.0.attn.q.right')).toBeGreaterThan(0);
  });

  it("uses the query's factors for the values", () => {
    const model = clip();
    const adapter = shake(graft(model, 'kadaptation', { variant: 'official', phmDim: 4 }), 0.1);
    const unused = adapter.namedParameters().filter(([name]) => /attn\.v\.(left|right)$/.test(name));
    expect(unused).toHaveLength(4);
    scope(() => model.run(x()).square().sum().backward());
    for (const [, parameter] of unused) expect(parameter.grad).toBeNull();
  });

  it('drops elements of the summed matrix, in training only', () => {
    const model = clip();
    shake(graft(model, 'kadaptation', { variant: 'official', phmDim: 4 }), 0.1);
    const images = x();
    expect(outputs(model, images).equal(outputs(model, images))).toBe(true);
    model.train();
    expect(outputs(model, images).equal(outputs(model, images))).toBe(false);
  });

  it('gives its tensors the names of its files, and takes them back', () => {
    for (const [method, options] of [
      ['kadaptation', { variant: 'official', phmDim: 4 }],
      ['kadaptation', { phmDim: 4, rule: 'full', bias: true }],
      ['compacter', { hidden: 8 }],
      ['pevit_lora', { rank: 2 }],
    ] as const) {
      const adapter = shake(graft(clip(), method, options));
      const state = new Map([...adapter.officialState()].map(([name, t]) => [name, t.clone()]));
      for (const name of state.keys()) expect(name).toMatch(/^(backbone\.visual\.transformer\.|head\.)/);
      const model = clip();
      const images = x();
      const other = graft(model, method, options, { seed: 5 });
      other.loadOfficialState(state);
      const expected = noGrad(() => adapter.model.run(images));
      expect(outputs(model, images).equal(expected)).toBe(true);
    }
  });

  it('reads the head of its files, and refuses what they hold twice with different numbers', () => {
    const head = { classes: 7, norm: 'batch' } as const;
    const own = graft(clip(), 'kadaptation', { variant: 'official', phmDim: 4 }, { head });
    const state = new Map([...shake(own).officialState()].map(([name, t]) => [name, t.clone()]));
    for (const name of ['layers.0.weight', 'layers.0.bias', 'channel_bn.running_mean'])
      expect([...state.keys()]).toContain(name);
    const rule = 'backbone.visual.transformer.phm_rule1_left';
    const copy = 'backbone.visual.transformer.resblocks.1.attn.phm_rule1_left';
    state.set(copy, (state.get(rule) as Tensor).clone());
    own.loadOfficialState(state);
    state.set(copy, (state.get(rule) as Tensor).add(1));
    expect(() => own.loadOfficialState(state)).toThrow(/phm_rule1_left once more as .*resblocks\.1\.attn/);

    const bottleneck = graft(clip(), 'compacter', { hidden: 8 });
    const file = new Map(bottleneck.officialState());
    const norm = 'backbone.visual.transformer.resblocks.0.compacter.adapter_norm_before.weight';
    const again = 'backbone.visual.transformer.resblocks.0.compacter.adapter_down.0.weight';
    file.set(again, file.get(norm) as Tensor);
    bottleneck.loadOfficialState(file);
    file.set(again, (file.get(norm) as Tensor).add(1));
    expect(() => bottleneck.loadOfficialState(file)).toThrow(/adapter_down\.0\.weight, with other numbers/);
  });

  it('has one rule for all layers of Compacter, which stays as it was drawn', () => {
    const { trainRule } = compacter.options.parse({});
    expect(trainRule).toBe(false);
    const adapter = graft(clip(), 'compacter', { hidden: 8 });
    expect(adapter.namedParameters().some(([name]) => name.includes('phm_rule'))).toBe(false);
    expect(adapter.namedBuffers().map(([name]) => name)).toEqual(['shared.phm_rule.full']);
    const trained = graft(clip(), 'compacter', { hidden: 8, trainRule: true });
    expect(trained.summary().grafts).toBe(adapter.summary().grafts + 4 ** 3);
  });
});

describe('random subspaces', () => {
  it('count every weight and bias of a submodule, in the order of its layers', () => {
    const model = clip();
    const layers = layersOf(model.sites(), { submodule: 'attention', depth: 1 });
    expect(layers.map(({ path }) => path)).toEqual(['blocks.1.attn.qkv', 'blocks.1.attn.proj']);
    expect(sizeOf(layers)).toBe(24 * 72 + 72 + 24 * 24 + 24);
    expect(layersOf(model.sites(), { submodule: 'mlp' })).toHaveLength(4);
    expect(layersOf(model.sites(), { submodule: 'norm' })).toEqual([]);
  });

  it('move exactly those weights by P θ', () => {
    const model = clip();
    const before = new Map(model.namedState().map(([name, t]) => [name, t.detach().clone()]));
    const options = { dimension: 30, submodule: 'mlp', depth: 0 };
    const adapter = shake(graft(model, 'intrinsic_subspace', options, { head: 'frozen' }));
    expect(adapter.summary().trainable).toBe(30);
    adapter.merge();
    const moved = model.namedState().filter(([name, t]) => before.get(name)?.equal(t) !== true);
    expect(moved.map(([name]) => name)).toEqual(
      ['fc1.weight', 'fc1.bias', 'fc2.weight', 'fc2.bias'].map((leaf) => `blocks.0.mlp.${leaf}`),
    );
  });

  test('refuse what is not there or too large', () => {
    const model = clip();
    expect(() => graft(model, 'intrinsic_subspace', { submodule: 'norm' })).toThrow(/no site of clip_vit is that/);
    const options = { dimension: 3000, submodule: 'attention', depth: 0 };
    expect(() => graft(model, 'intrinsic_subspace', options)).toThrow(/dimension of 1 to 2400, not 3000/);
    expect(model.parameters().every((p) => p.requiresGrad)).toBe(true);
  });
});
