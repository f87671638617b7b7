/** Backbones relieved of what only classification needs. */
import { describe, expect, test } from 'vitest';
import { graft } from '../../lib/adapters/index.js';
import { createCustomModel } from '../../lib/models/index.js';
import { loadState } from '../../lib/models/load.js';
import { aten, noGrad, randn, scope, type Tensor } from '../../lib/tensor/index.js';
import { randomize, tinyModels } from './tiny.js';

/** GhostNet's last convolution stands in the list of its blocks, whose numbers must not change. */
const inList = /^blocks\.4\.0\.(conv|bn1)\./;

describe.each(tinyModels)('the trunk of $name', ({ make, sizes, channels = 3, unused }) => {
  test('computes the same levels, from no more parameters than that takes, and loads whole files', () => {
    const whole = randomize(make()).eval();
    const x = randn([2, channels, ...(sizes[0] ?? [])]);
    const expected = noGrad(() => whole.forwardIntermediates(x));
    const trunk = make().toTrunk().eval();
    loadState(trunk, whole.stateDict());
    const maps = noGrad(() => trunk.forwardIntermediates(x));
    maps.forEach((map, i) => expect(map.equal(expected[i] as Tensor)).toBe(true));
    scope(() => {
      const sums = trunk.forwardIntermediates(x).map((map) => map.square().sum());
      aten.stack(sums).sum().backward();
    });
    const idle = trunk.namedParameters().filter(([name, p]) => !p.grad && !unused?.test(name) && !inList.test(name));
    expect(idle.map(([name]) => name)).toEqual([]);
    expect(trunk.parameters().length).toBeLessThan(whole.parameters().length);
    expect(() => trunk.run(x)).toThrow(/is a trunk without logits; run forwardIntermediates/);
  });
});

test('adapters must come after', () => {
  const model = createCustomModel('vit', {
    imgSize: 8,
    patchSize: 4,
    embedDim: 8,
    depth: 1,
    numHeads: 2,
    numClasses: 3,
  });
  graft(model, 'lora');
  expect(() => model.toTrunk()).toThrow(/make it a trunk before adapters/);
});
