/** NOAH's supernet, its sub-networks and their search; AdaptFormer's options. */
import { beforeEach, describe, expect, test } from 'vitest';
import {
  type Adapter,
  graft,
  type NoahSizes,
  noahParameters,
  noahSizes,
  type NoahSpace,
  sampleNoahSizes,
  searchNoah,
  setNoahSizes,
} from '../../lib/adapters/index.js';
import { type Backbone, createCustomModel } from '../../lib/models/index.js';
import { Context, functional, type Module } from '../../lib/nn/index.js';
import { manualSeed, noGrad, randn, type Tensor } from '../../lib/tensor/index.js';
import { randomize } from '../models/tiny.js';

beforeEach(() => manualSeed(8));

const make = (more = {}): Backbone => {
  manualSeed(3);
  const options = { imgSize: 16, patchSize: 4, embedDim: 24, depth: 3, numHeads: 3, numClasses: 5, ...more };
  return randomize(createCustomModel('vit', options)).eval();
};
const x = randn([2, 3, 16, 16]);
const output = (model: Backbone): Tensor => noGrad(() => model.run(x));
const far = (a: Tensor, b: Tensor): number => Number(a.sub(b).norm().item()) / Number(b.norm().item());

const sub: NoahSizes = { prompts: [2, 0, 4], lora: [0, 3, 1], adapters: [5, 2, 0] };
const largest = { prompts: 4, lora: 3, adapters: 5 };

function spread(adapter: Adapter): Adapter {
  noGrad(() => {
    for (const p of adapter.parameters()) p.copy_(randn(p.shape).mul(0.4));
  });
  return adapter;
}

describe('a sub-network', () => {
  test('of a supernet computes what one of its own sizes computes with the leading rows', () => {
    const model = make();
    const supernet = spread(graft(model, 'noah', { ...largest, largest }, { head: 'frozen' }));
    const full = output(model);
    setNoahSizes(supernet, sub);
    expect(noahSizes(supernet)).toBe(sub);
    const chosen = output(model);
    expect(far(chosen, full)).toBeGreaterThan(1e-3);

    // The same numbers in tensors of the small sizes.
    const small = make();
    const own = graft(small, 'noah', { ...sub }, { head: 'frozen' });
    const values = supernet.officialState();
    const cut = new Map(
      Array.from(own.officialState(), ([name, target]): [string, Tensor] => {
        let value = values.get(name) as Tensor;
        target.shape.forEach((length, dim) => (value = value.narrow(dim, 0, length)));
        return [name, value];
      }),
    );
    own.loadOfficialState(cut);
    expect(far(output(small), chosen)).toBeLessThan(1e-6);
  });

  test('with nothing in it is the backbone, whatever the tensors hold', () => {
    const model = make({ globalPool: 'avg' });
    const plain = output(model);
    const adapter = spread(graft(model, 'noah', { prompts: 3, lora: 2, adapters: 4 }, { head: 'frozen' }));
    const none = [0, 0, 0];
    setNoahSizes(adapter, { prompts: none, lora: none, adapters: none });
    expect(output(model).equal(plain)).toBe(true);
  });

  test('leaves no prompt for the pool to read', () => {
    const model = make({ globalPool: 'avg' });
    spread(graft(model, 'noah', { prompts: [2, 3, 4], lora: 0, adapters: 0 }, { head: 'frozen' }));
    const features = noGrad(() => model.forwardFeatures(x, new Context()));
    expect(features.shape).toEqual([2, 17, 24]);
  });

  test('that the supernet cannot hold is refused', () => {
    const adapter = graft(make(), 'noah', { prompts: 2, lora: 2, adapters: 2 });
    const two = [2, 2, 2];
    expect(() => setNoahSizes(adapter, { prompts: two, lora: [2, 3, 2], adapters: two })).toThrow(
      /a size of 3 for lora; the supernet holds 0 to 2/,
    );
    expect(() => setNoahSizes(adapter, { prompts: two, lora: [2, 2], adapters: two })).toThrow(
      /lora lists 2 sizes, the model has 3 blocks/,
    );
    expect(() => graft(make(), 'noah', { prompts: [1, 2] })).toThrow(/prompts lists 2 sizes/);
    expect(() => graft(make(), 'noah', { prompts: 5, largest })).toThrow(/a size of 5 for prompts/);
    expect(() => setNoahSizes(graft(make(), 'lora'), sub)).toThrow(/must be of the method noah/);
  });

  test('has as many parameters as the formula says', () => {
    const adapter = graft(make(), 'noah', { ...sub }, { head: 'frozen' });
    const held = {
      prompts: Array<number>(3).fill(4),
      lora: Array<number>(3).fill(3),
      adapters: Array<number>(3).fill(5),
    };
    expect(adapter.summary().grafts).toBe(noahParameters(held, 24));
    const blocks = 12;
    const five = Array<number>(blocks).fill(5);
    expect(noahParameters({ prompts: five, lora: five, adapters: five }, 768)).toBe(331_836);
  });
});

/** Numbers that repeat from run to run. */
function generator(): () => number {
  let state = 12345;
  return () => (state = (state * 48271) % 2147483647) / 2147483647;
}

describe('the search', () => {
  const space: NoahSpace = {
    choices: { prompts: [1, 5, 10], lora: [1, 5, 10], adapters: [1, 5, 10] },
    depths: [3, 6],
    blocks: 6,
    width: 32,
  };

  test('draws depths and sizes that are among the choices', () => {
    const random = generator();
    const drawn = Array.from({ length: 200 }, () => sampleNoahSizes(space, random));
    for (const { prompts, lora, adapters } of drawn) {
      for (const list of [prompts, lora, adapters]) {
        expect(list).toHaveLength(6);
        const depth = list.filter((size) => size > 0).length;
        expect([3, 6]).toContain(depth);
        expect(list.slice(0, depth).every((size) => [1, 5, 10].includes(size))).toBe(true);
      }
    }
    expect(new Set(drawn.map((sizes) => JSON.stringify(sizes))).size).toBeGreaterThan(190);
  });

  test('finds better sub-networks than as many random draws, within the limit, and evaluates none twice', async () => {
    const wanted = { prompts: [1, 1, 1, 0, 0, 0], lora: [10, 5, 1, 10, 5, 1], adapters: [5, 5, 5, 0, 0, 0] };
    const score = (sizes: NoahSizes): number =>
      -(['prompts', 'lora', 'adapters'] as const)
        .flatMap((kind) => sizes[kind].map((size, i) => Math.abs(size - (wanted[kind][i] ?? 0))))
        .reduce((a, b) => a + b);
    const seen: string[] = [];
    const limit = noahParameters(wanted, space.width) + 500;
    const found = await searchNoah({
      ...{ space, limit, generations: 15, random: generator() },
      evaluate: (sizes) => {
        seen.push(JSON.stringify(sizes));
        return Promise.resolve(score(sizes));
      },
    });
    expect(found).toHaveLength(10);
    expect(found.map(({ score: value }) => value)).toEqual([...found].map((f) => f.score).sort((a, b) => b - a));
    expect(found.every(({ parameters }) => parameters <= limit)).toBe(true);
    expect(new Set(seen).size).toBe(seen.length);
    const random = generator();
    const drawn = Math.max(...seen.map(() => score(sampleNoahSizes(space, random))));
    expect(found[0]?.score).toBeGreaterThan(drawn);
  });

  test('says when nothing is small enough', async () => {
    await expect(searchNoah({ space, limit: 10, evaluate: () => 0, random: generator() })).rejects.toThrow(
      /no sub-network within 10 parameters/,
    );
  });
});

describe('AdaptFormer', () => {
  const place = (model: Backbone): { branch: Module; z: Tensor } => ({
    branch: model.getModule('blocks.1.mlp_branch'),
    z: randn([2, 17, 24]),
  });

  test.each(['none', 'in', 'out'])('equals its formula with the norm: %s, beside the MLP and behind it', (norm) => {
    for (const placement of ['parallel', 'sequential']) {
      for (const scale of [0.3, 'learned']) {
        const model = make();
        const { branch, z } = place(model);
        const m = branch.forward(z, new Context());
        const adapter = spread(graft(model, 'adaptformer', { hidden: 5, norm, placement, scale, dropout: 0 }));
        const part = (leaf: string): Tensor => adapter.officialState().get(`blocks.1.adaptmlp.${leaf}`) as Tensor;
        const normed = (t: Tensor): Tensor =>
          functional.layerNorm(
            t,
            [24],
            part('adapter_layer_norm_before.weight'),
            part('adapter_layer_norm_before.bias'),
          );
        const read = placement === 'parallel' ? z : m;
        const { linear, relu } = functional;
        const down = linear(norm === 'in' ? normed(read) : read, part('down_proj.weight'), part('down_proj.bias'));
        const up = linear(relu(down), part('up_proj.weight'), part('up_proj.bias'));
        const scaled = scale === 'learned' ? up.mul(part('scale')) : up.mul(Number(scale));
        const expected = m.add(norm === 'out' ? normed(scaled) : scaled);
        expect(
          far(
            noGrad(() => branch.run(z, new Context())),
            expected,
          ),
        ).toBeLessThan(1e-5);
      }
    }
  });

  test('has the official names, also without biases', () => {
    const names = (options: object): string[] => [
      ...graft(make({ depth: 1 }), 'adaptformer', { hidden: 4, ...options }, { head: 'frozen' })
        .officialState()
        .keys(),
    ];
    expect(names({ scale: 'learned', norm: 'in' }).sort()).toEqual(
      ['adapter_layer_norm_before.bias', 'adapter_layer_norm_before.weight', 'scale']
        .concat(['down_proj', 'up_proj'].flatMap((layer) => [`${layer}.bias`, `${layer}.weight`]))
        .map((leaf) => `blocks.0.adaptmlp.${leaf}`)
        .sort(),
    );
    expect(names({ bias: false })).toEqual(
      ['down', 'up'].map((layer) => `blocks.0.adapter_mlp.adapter_${layer}.weight`),
    );
  });
});
