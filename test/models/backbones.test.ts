import { describe, expect, test } from 'vitest';
import { UnusedAffine } from '../../lib/models/blocks.js';
import type { Backbone } from '../../lib/models/index.js';
import { type SiteLayout, Context, type GraftSet, Identity, type Site } from '../../lib/nn/index.js';
import { manualSeed, noGrad, randn, type Tensor } from '../../lib/tensor/index.js';
import { randomize, type Tiny, tinyModels } from './tiny.js';

const image = ({ sizes, channels = 3 }: Tiny, index = 0, batch = 2): Tensor =>
  randn([batch, channels, ...(sizes[index] ?? [])]);

/** What flows through each site of one forward pass; nothing is changed. */
function observe(
  model: Backbone,
  x: Tensor,
): { shapes: Map<string, [input: number[], output: number[]]>; output: Tensor } {
  const shapes = new Map<string, [number[], number[]]>();
  const sites = model.sites().filter((site) => site.slice === undefined);
  for (const { path, module } of sites) {
    const watch: GraftSet = {
      apply(watched, input, ctx) {
        const output = watched.forward(input, ctx);
        shapes.set(path, [input.shape, output.shape]);
        return output;
      },
      parameters: () => [],
      modules: () => [],
    };
    module.grafts = watch;
  }
  try {
    return { shapes, output: noGrad(() => model.run(x)) };
  } finally {
    for (const { module } of sites) module.grafts = undefined;
  }
}

/** Channels of a feature of any layout: maps hold them second, tokens and vectors last. */
function channelsOf(shape: readonly number[], layout: SiteLayout): number | undefined {
  if (layout === 'heads') return (shape[1] ?? 0) * (shape[3] ?? 0);
  return shape.length === 4 ? shape[1] : shape.at(-1);
}

describe.each(tinyModels)('$name', (tiny) => {
  test('computes logits at its image sizes, and the same as features and head', () => {
    const model = randomize(tiny.make()).eval();
    tiny.sizes.forEach((_, index) => {
      const x = image(tiny, index);
      const logits = model.run(x);
      expect(logits.shape).toEqual([2, model.getModule(model.classifier).siteTag?.out]);
      expect(logits.isfinite().all().item()).toBe(true);
      expect(model.forwardHead(model.forwardFeatures(x)).equal(logits)).toBe(true);
    });
  });

  test('publishes sites with the channels that flow through them, and every site is reached', () => {
    const model = randomize(tiny.make()).eval();
    const x = image(tiny);
    const sites = model.sites();
    const { shapes, output } = observe(model, x);
    expect(new Set(sites.map((site) => site.path)).size).toBe(sites.length);
    for (const site of sites.filter(({ slice }) => slice === undefined)) {
      const [input = [], out = []] = shapes.get(site.path) ?? [];
      expect([site.path, channelsOf(input, site.layout), channelsOf(out, site.layout), out.length]).toEqual([
        site.path,
        site.in,
        site.out,
        { map: 4, tokens: 3, vector: 2, heads: 4 }[site.layout],
      ]);
    }
    // Watching takes the blocks through their spans instead of the joined last step.
    expect(output.sub(model.run(x)).abs().max().item()).toBeLessThan(1e-5);
  });

  test('says block, stage and depth of every site inside a block', () => {
    const sites = tiny.make().sites();
    const blocks = sites.filter((site) => site.roles.includes('block'));
    expect(blocks.map((block) => block.depth)).toEqual(blocks.map((_, i) => i));
    for (const site of sites) {
      const block = blocks.find(({ path }) => path === site.block);
      if (block) expect([site.path, site.stage, site.depth]).toEqual([site.path, block.stage, block.depth]);
      else expect([site.path, site.block, site.depth]).toEqual([site.path, null, undefined]);
    }
  });

  test('loads its own state dict strictly, and refuses a name more or less', () => {
    const [a, b] = [randomize(tiny.make()).eval(), tiny.make().eval()];
    const x = image(tiny);
    b.loadStateDict(a.stateDict());
    expect(b.run(x).equal(a.run(x))).toBe(true);
    const less = a.stateDict();
    less.delete(`${model(a)}.weight`);
    expect(() => b.loadStateDict(less)).toThrow(/missing/);
    expect(() => b.loadStateDict(a.stateDict().set('extra', randn([1])))).toThrow(/unexpected/);
  });

  // Not bit for bit: the first of the two passes records no graph, where fused operators may take another way.
  test('gives the same output and gradients with activation checkpointing, up to rounding', () => {
    const run = (enabled: boolean): Map<string, Tensor | null> => {
      manualSeed(7);
      const model = randomize(tiny.make()).eval().setCheckpointing(enabled);
      const x = image(tiny).requiresGrad_();
      const y = model.run(x);
      y.square().sum().backward();
      const grads = model.namedParameters().map(([name, { grad }]): [string, Tensor | null] => [name, grad]);
      return new Map([...grads, ['output', y], ['input gradient', x.grad]]);
    };
    const again = run(true);
    for (const [name, expected] of run(false)) {
      const [a, b] = [again.get(name), expected];
      if (tiny.unused?.test(name)) {
        expect([name, a, b]).toEqual([name, null, null]);
        continue;
      }
      if (!a || !b) throw new Error(`${name} has no gradient`);
      const difference = Number(a.sub(b).norm().item()) / Math.max(1e-3, Number(b.norm().item()));
      expect([name, difference < 1e-5]).toEqual([name, true]);
    }
  });

  test('gives maps at its feature levels', () => {
    const model = tiny.make().eval();
    const x = image(tiny);
    const maps = model.forwardIntermediates(x);
    expect(maps.map((map) => map.shape[1])).toEqual(model.featureLevels.map(({ channels }) => channels));
    maps.forEach((map, i) => {
      const stride = model.featureLevels[i]?.stride ?? 0;
      expect(map.shape.slice(2)).toEqual(x.shape.slice(2).map((side) => Math.ceil(side / stride)));
    });
  });

  test('exchanges its classifier', () => {
    const model = tiny.make().eval().to({ dtype: 'float64' });
    const x = image(tiny).to('float64');
    model.resetClassifier(7);
    expect(model.run(x).shape).toEqual([2, 7]);
    expect(model.sites().filter((site) => site.roles.includes('classifier'))).toMatchObject([
      { in: model.numFeatures, out: 7 },
    ]);
    model.resetClassifier(0);
    expect(model.getModule(model.classifier)).toBeInstanceOf(Identity);
    expect(model.run(x).shape).toEqual([2, model.numFeatures]);
  });

  test('lists its norms, convolutions and linear layers as sites, and nothing of the classifier among them', () => {
    const model = tiny.make();
    const paths = (role: string): string[] =>
      model
        .sites()
        .filter((site: Site) => site.roles.includes(role))
        .map(({ path }) => path);
    const weights = model.namedModules().filter(([, m]) => 'weight' in m && !(m instanceof UnusedAffine));
    const listed = [
      ...paths('conv'),
      ...paths('norm'),
      ...paths('head_norm'),
      ...paths('downsample_norm'),
      ...paths('downsample_conv'),
      ...paths('downsample_linear'),
      ...paths('inner_norm'),
      ...paths('linear'),
      ...paths('classifier'),
    ];
    for (const [path] of weights) expect(listed).toContain(path);
    expect(paths('linear')).not.toContain(model.classifier);
  });
});

test('a vision transformer tells the context its grid and prefix', () => {
  const tiny = tinyModels.find(({ name }) => name.startsWith('vit of any size')) as Tiny;
  const ctx = new Context();
  tiny.make().run(image(tiny, 1), ctx);
  expect([ctx.grid, ctx.prefixTokens]).toEqual([[2, 5], 3]);
});

function model(backbone: Backbone): string {
  return backbone.classifier;
}
