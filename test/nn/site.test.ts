import { describe, expect, it } from 'vitest';
import type { Context } from '../../lib/nn/index.js';
import {
  BatchNorm2d,
  Conv2d,
  Identity,
  LayerNorm,
  Linear,
  Module,
  ModuleList,
  site,
  sitesOf,
  Span,
} from '../../lib/nn/index.js';
import type { Tensor } from '../../lib/tensor/index.js';

class Block extends Module {
  readonly before: Identity;
  readonly norm: LayerNorm;
  readonly qkv: Linear;
  readonly branch: Span;

  constructor(depth: number) {
    super();
    const where = { stage: 0, depth };
    this.before = site(new Identity(), { role: 'tokens', in: 4, out: 4, layout: 'tokens', ...where });
    this.norm = site(new LayerNorm(4), { role: 'norm', ...where });
    this.qkv = site(new Linear(4, 12), {
      role: ['linear', 'qkv'],
      ...where,
      slice: [
        { name: 'q', start: 0, length: 4 },
        { name: 'k', start: 4, length: 4 },
        { name: 'v', start: 8, length: 4, role: ['v', 'value'] },
      ],
    });
    this.branch = site(new Span((x, ctx) => this.qkv.run(this.norm.run(x, ctx), ctx)), {
      role: 'attention',
      in: 4,
      out: 12,
      layout: 'tokens',
    });
  }

  forward(x: Tensor, ctx: Context): Tensor {
    return this.branch.run(this.before.run(x, ctx), ctx);
  }
}

class Net extends Module {
  readonly stem = site(new Conv2d(3, 4, { kernelSize: 3, stride: 2, padding: 1, bias: false }), {
    role: 'conv',
    activation: 'relu',
  });
  readonly bn = site(new BatchNorm2d(4), { role: 'norm' });
  readonly blocks = new ModuleList(
    [0, 1].map((d) => site(new Block(d), { role: 'block', in: 4, out: 12, layout: 'tokens', depth: d })),
  );

  forward(x: Tensor): Tensor {
    return x;
  }
}

describe('sitesOf', () => {
  const net = new Net();
  const sites = sitesOf(net);

  it('lists modules, identities, spans and slices in order', () => {
    const inBlock = ['', '.before', '.norm', '.qkv', '.qkv[q]', '.qkv[k]', '.qkv[v]', '.branch'];
    const expected = ['stem', 'bn', ...['blocks.0', 'blocks.1'].flatMap((b) => inBlock.map((s) => b + s))];
    expect(sites.map((s) => s.path)).toEqual(expected);
  });

  it('fills in what layers know', () => {
    const { module, ...stem } = sites[0]!;
    expect(module).toBe(net.stem);
    expect(stem).toEqual({
      path: 'stem',
      roles: ['conv'],
      in: 3,
      out: 4,
      layout: 'map',
      kernel: [3, 3],
      stride: [2, 2],
      padding: [1, 1],
      groups: 1,
      activation: 'relu',
      block: null,
    });
    expect(sites[1]).toMatchObject({ in: 4, out: 4, layout: 'map', roles: ['norm'] });
  });

  it('knows the block, the depth and the slices', () => {
    const at = (path: string) => sites.find((s) => s.path === path)!;
    expect(at('blocks.1.norm')).toMatchObject({ block: 'blocks.1', depth: 1, stage: 0, layout: 'tokens' });
    expect(at('blocks.1').block).toBe('blocks.1');
    expect(at('blocks.0.qkv')).toMatchObject({ in: 4, out: 12, roles: ['linear', 'qkv'] });
    expect(at('blocks.0.qkv').slice).toBeUndefined();
    expect(at('blocks.0.qkv[k]')).toMatchObject({
      in: 4,
      out: 4,
      roles: ['k'],
      slice: { name: 'k', start: 4, length: 4 },
    });
    expect(at('blocks.0.qkv[k]').module).toBe(at('blocks.0.qkv').module);
    expect(at('blocks.0.qkv[v]').roles).toEqual(['v', 'value']);
  });

  it('is empty for a model that publishes nothing', () => {
    expect(sitesOf(new Linear(1, 1))).toEqual([]);
  });
});

describe('site', () => {
  it('asks for what it cannot know', () => {
    expect(() => site(new Identity(), { role: 'tokens', in: 4, out: 4 })).toThrow(/Identity does not know 'layout'/);
    expect(() => site(new Span((x) => x), { role: 'mlp', out: 4, layout: 'map' })).toThrow(/Span does not know 'in'/);
  });

  it('refuses slices outside of the output', () => {
    const slice = [{ name: 'v', start: 2, length: 3 }];
    expect(() => site(new Linear(4, 4), { role: 'linear', slice })).toThrow(
      /slice 'v' covers channels 2 to 5 of a Linear with 4 outputs/,
    );
  });
});
