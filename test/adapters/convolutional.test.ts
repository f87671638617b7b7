/** Convolutional bypasses, and prompt blocks between stages: what golden cases do not show. */
import { beforeEach, describe, expect, test } from 'vitest';
import { type Adapter, ConvBypass, graft, PromptBlock } from '../../lib/adapters/index.js';
import { type Backbone, createCustomModel } from '../../lib/models/index.js';
import { Context, DropPath, functional, type Module } from '../../lib/nn/index.js';
import { aten, grad, manualSeed, noGrad, randn, type Tensor } from '../../lib/tensor/index.js';
import { randomize } from '../models/tiny.js';

beforeEach(() => manualSeed(11));

const vit = (more = {}): Backbone =>
  randomize(
    createCustomModel('vit', {
      imgSize: 16,
      patchSize: 4,
      embedDim: 24,
      depth: 4,
      numHeads: 3,
      numClasses: 5,
      ...more,
    }),
  ).eval();
const swin = (): Backbone =>
  randomize(
    createCustomModel('swin', {
      ...{ imgSize: 32, embedDim: 12, depths: [2, 2, 1], numHeads: [2, 3, 4], windowSize: 4, numClasses: 5 },
    }),
  ).eval();
const resnet = (): Backbone =>
  randomize(
    createCustomModel('resnet', { block: 'bottleneck', layers: [1, 1], channels: [8, 12], numClasses: 5 }),
  ).eval();
const convnext = (): Backbone =>
  randomize(createCustomModel('convnext', { depths: [1, 1, 1], dims: [8, 12, 16], numClasses: 5 })).eval();

const far = (a: Tensor, b: Tensor): number => Number(a.sub(b).norm().item()) / Number(b.norm().item());

function shuffled<M extends Module>(module: M): M {
  noGrad(() => {
    for (const p of module.parameters()) p.copy_(randn(p.shape));
  });
  return module;
}

type Bypass = InstanceType<typeof ConvBypass>;

/** The bypasses of one rule, block by block. */
function bypasses(adapter: Adapter, wanted: string): Bypass[] {
  return adapter.grafts.flatMap(({ rule, form }) => (rule === wanted && form instanceof ConvBypass ? [form] : []));
}

function gridContext(grid: [number, number], prefixTokens: number): Context {
  const ctx = new Context();
  ctx.grid = grid;
  ctx.prefixTokens = prefixTokens;
  return ctx;
}

describe('the convolutional bypass', () => {
  test('sees a token that is no patch as an image of one pixel, wherever it stands', () => {
    const bypass = shuffled(new ConvBypass(12, { hidden: 4, dropout: 0 }));
    const [front, patches, back] = [randn([2, 3, 12]), randn([2, 8, 12]), randn([2, 2, 12])];
    const whole = bypass.run(aten.cat([front, patches, back], 1), gridContext([2, 4], 3));
    const alone = bypass.run(patches, gridContext([2, 4], 0));
    expect(far(whole.narrow(1, 3, 8), alone)).toBeLessThan(1e-6);
    for (const [tokens, start] of [
      [front, 0],
      [back, 11],
    ] as const) {
      const length = tokens.shape[1] ?? 0;
      const pixels = bypass.run(tokens.reshape([2 * length, 1, 12]), gridContext([1, 1], 0)).reshape(tokens.shape);
      expect(far(whole.narrow(1, start, length), pixels)).toBeLessThan(1e-5);
    }
  });

  test('gives maps, grids and sequences the same numbers', () => {
    const make = (layout: string): ConvBypass => {
      manualSeed(3);
      return shuffled(new ConvBypass(12, { hidden: 4, dropout: 0, layout }));
    };
    const x = randn([2, 6, 12]);
    const expected = make('tokens').run(x, gridContext([2, 3], 0));
    const grid = make('tokens').run(x.reshape([2, 2, 3, 12]), new Context());
    const map = make('map').run(x.reshape([2, 2, 3, 12]).permute([0, 3, 1, 2]), new Context());
    expect(far(grid.reshape([2, 6, 12]), expected)).toBeLessThan(1e-6);
    expect(far(map.permute([0, 2, 3, 1]).reshape([2, 6, 12]), expected)).toBeLessThan(1e-5);
  });

  test('starts with the identity as its convolution, at any width', () => {
    const bypass = new ConvBypass(12, { hidden: 5, start: 'identity', kernel: 5 });
    const x = randn([1, 5, 4, 4]);
    expect(bypass.conv.run(x, new Context()).equal(x)).toBe(true);
  });

  test('draws a mask of its own, at the rate of its block', () => {
    const model = vit({ dropPathRate: 0.6 });
    const adapter = graft(model, 'convpass', { hidden: 4, dropout: 0 });
    const rates = (of: Adapter, wanted: string): number[] =>
      bypasses(of, wanted).map((bypass) => Number(bypass.drop_path.p.toFixed(6)));
    expect(rates(adapter, 'attn')).toEqual([0, 0.2, 0.4, 0.6]);
    expect(rates(adapter, 'mlp')).toEqual([0, 0.2, 0.4, 0.6]);
    expect(rates(graft(vit(), 'convpass', { dropPath: 0.3, where: 'attention' }), 'attn')).toEqual([0, 0.1, 0.2, 0.3]);

    // In training, samples whose bypass is dropped and samples whose block is dropped are not the same ones.
    const bypass = shuffled(bypasses(adapter, 'mlp').at(-1) as Bypass);
    const branch = model.getModule('blocks.3.drop_path2');
    expect(branch).toBeInstanceOf(DropPath);
    bypass.train();
    branch.train();
    const ctx = gridContext([4, 4], 1);
    const x = randn([64, 17, 24]);
    const kept = (y: Tensor): string => y.abs().sum([1, 2]).gt(0).to('int64').data().join('');
    const [one, other] = [kept(bypass.run(x, ctx)), kept(branch.run(x, ctx))];
    expect(one).toMatch(/0/);
    expect(one).toMatch(/1/);
    expect(one).not.toBe(other);
  });

  test('on Swin it sees the whole map of its stage, and its official names are the stages', () => {
    const model = swin();
    const adapter = graft(model, 'convpass', { hidden: 4 });
    noGrad(() => {
      for (const { form } of adapter.grafts) for (const p of form.parameters()) p.copy_(randn(p.shape));
    });
    expect([...adapter.officialState().keys()].slice(0, 3)).toEqual([
      'layers.0.blocks.0.adapter_attn.adapter_conv.weight',
      'layers.0.blocks.0.adapter_attn.adapter_conv.bias',
      'layers.0.blocks.0.adapter_attn.adapter_down.weight',
    ]);
    for (const rule of ['attn', 'mlp'])
      expect(bypasses(adapter, rule).map(({ up }) => up.outFeatures)).toEqual([12, 12, 24, 24, 48]);
    expect(
      noGrad(() => model.run(randn([2, 3, 32, 32])))
        .isfinite()
        .all()
        .item(),
    ).toBe(true);
  });

  test('wrong sizes are refused, saying what would fit', () => {
    expect(() => graft(vit(), 'convpass', { hidden: 25 })).toThrow(/wider than the 24 channels here; at most 24/);
    expect(() => graft(vit(), 'convpass', { kernel: 4 })).toThrow(/kernel of 4 has no center/);
    const bypass = new ConvBypass(12, { hidden: 4 });
    expect(() => bypass.run(randn([1, 5, 12]), new Context())).toThrow(/needs a grid of patches/);
    expect(() => bypass.run(randn([1, 5, 12]), gridContext([2, 3], 0))).toThrow(/a grid of 2 x 3 after 0 other tokens/);
  });
});

describe('prompt blocks', () => {
  test('equal their formula, and leave tokens that are no patches alone', () => {
    const block = shuffled(new PromptBlock(8, { groups: 2, kernel: 3, seRatio: 4, layout: 'tokens' }));
    const x = randn([2, 7, 8]);
    const map = x.narrow(1, 1, 6).reshape([2, 2, 3, 8]).permute([0, 3, 1, 2]);
    const [w0, b0, w1, b1, w2, b2, wc, bc, we, be, w4, b4] = block.prompt_block.parameters() as Tensor[];
    const { conv2d } = functional;
    const a = conv2d(map, w0 as Tensor, b0, { groups: 2 });
    const c = conv2d(conv2d(a, w1 as Tensor, b1, { groups: 8, padding: 1 }), w2 as Tensor, b2);
    const s = conv2d(conv2d(c.mean([2, 3], true), wc as Tensor, bc).relu(), we as Tensor, be).sigmoid();
    const p = conv2d(c.mul(s), w4 as Tensor, b4, { groups: 2 }).mul(block.beta);
    const y = block.run(x, gridContext([2, 3], 1));
    expect(far(y.narrow(1, 1, 6), p.permute([0, 2, 3, 1]).reshape([2, 6, 8]))).toBeLessThan(1e-5);
    expect(y.narrow(1, 0, 1).abs().sum().item()).toBe(0);
  });

  test('get a gradient for beta alone at the start', () => {
    const block = new PromptBlock(8, { groups: 2, seRatio: 4 });
    const y = block.run(randn([2, 8, 5, 5]), new Context());
    expect(y.abs().sum().item()).toBe(0);
    const gradients = grad([y.mul(randn(y.shape)).sum()], block.parameters());
    const sizes = gradients.map((g) => Number(g?.abs().sum().item()));
    expect(sizes[0]).toBeGreaterThan(0);
    expect(sizes.slice(1).every((size) => size === 0)).toBe(true);
  });

  const where = (model: Backbone, options = {}): string[] =>
    graft(model, 'pro_tuning', { groups: 2, seRatio: 4, ...options }).grafts.map(
      ({ rule, site }) => `${rule} ${site.path} ${site.out}`,
    );

  test('stand behind the stem and every stage but the last, where each host has its stages', () => {
    expect(where(resnet())).toEqual(['stem stem 64', 'stage1 layer1 32']);
    expect(where(vit())).toEqual(['stem tokens 24', 'stage1 blocks.0 24', 'stage2 blocks.1 24', 'stage3 blocks.2 24']);
    expect(where(vit(), { stages: 2 })).toEqual(['stem tokens 24', 'stage1 blocks.1 24']);
    expect(where(swin())).toEqual(['stem tokens 12', 'stage1 layers.1.downsample 24', 'stage2 layers.2.downsample 48']);
    expect(where(convnext())).toEqual(['stem stem 8', 'stage1 stages.0 8', 'stage2 stages.1 12']);
  });

  test('stand where they are told, also behind the last stage', () => {
    expect(where(swin(), { positions: ['stage3', 'stem'] })).toEqual(['stage3 layers.2 48', 'stem tokens 12']);
    expect(() => where(resnet(), { positions: ['stage3'] })).toThrow(
      /no position 'stage3' here; there are stem, stage1, stage2/,
    );
    expect(() => where(resnet(), { positions: ['stage'] })).toThrow(/positions/);
    expect(() => where(vit(), { stages: 3 })).toThrow(/4 blocks cannot be cut into 3 equal stages/);
    expect(() => where(vit(), { groups: 5 })).toThrow(/24 channels do not divide into 5 groups/);
    expect(() => where(vit(), { seRatio: 32 })).toThrow(/seRatio 32 leaves the gate none of 24 channels/);
  });
});
