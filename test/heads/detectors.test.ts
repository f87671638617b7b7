import { readdirSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import { graft } from '../../lib/adapters/index.js';
import {
  AnchorGenerator,
  createDetector,
  type Detector,
  type DetectionTarget,
  FasterRcnn,
  listDetectors,
  RetinaNet,
} from '../../lib/heads/index.js';
import { createCustomModel, loadState } from '../../lib/models/index.js';
import { BatchNorm2d } from '../../lib/nn/index.js';
import { manualSeed, memory, noGrad, rand, scope, tensor, type Tensor, withDefaults } from '../../lib/tensor/index.js';
import { checkCase } from '../golden/check.js';
import { settledMemory } from '../support/settled_memory.js';

const cases = fileURLToPath(new URL('cases', import.meta.url));

describe("second versions against torchvision's own code (make_detectors.py)", () => {
  it.each(readdirSync(cases))('%s', (name) => {
    const { problems, forward } = checkCase(`${cases}/${name}`);
    expect(problems).toEqual([]);
    expect(forward).not.toBeNaN();
  });
});

function tinyBody() {
  const body = createCustomModel('resnet', {
    block: 'basic',
    layers: [1, 1, 1, 1],
    channels: [4, 4, 8, 8],
    stemChannels: 4,
  });
  for (const [, module] of body.toTrunk().namedModules()) if (module instanceof BatchNorm2d) module.makeConstant();
  return body;
}

const input = { minSize: 64, maxSize: 128 };
const makers: Readonly<Record<string, () => Detector>> = {
  'Faster R-CNN': () =>
    new FasterRcnn({
      body: tinyBody(),
      pyramid: { outChannels: 8 },
      input,
      numClasses: 3,
      anchors: new AnchorGenerator([[8], [16], [32], [48], [64]]),
      boxHead: { kind: 'mlp', width: 16 },
      scoreThreshold: 0.01,
    }),
  RetinaNet: () =>
    new RetinaNet({
      body: tinyBody(),
      pyramid: { outChannels: 8, levels: [1, 2, 3] },
      input,
      numClasses: 3,
      anchors: new AnchorGenerator([[8], [16], [32], [48], [64]]),
      scoreThreshold: 0.001,
    }),
};

/** A bright rectangle on a dark ground. */
function scene(): { image: Tensor; target: DetectionTarget } {
  const image = rand([3, 64, 80]).mul(0.1);
  image.narrow(1, 20, 30).narrow(2, 30, 24).add_(0.8);
  return { image, target: { boxes: tensor([[30, 20, 54, 50]]), labels: tensor([1], { dtype: 'int64' }) } };
}

function total(losses: Readonly<Record<string, Tensor>>): Tensor {
  return Object.values(losses).reduce((sum, loss) => sum.add(loss));
}

describe.each(Object.entries(makers))('%s', (_, make) => {
  it('learns: a few steps lower the loss, everything outside constant norms moves', () => {
    manualSeed(0);
    const model = make().train();
    const { image, target } = scene();
    const step = (): number =>
      scope(() => {
        model.zeroGrad();
        const loss = total(model.losses([image], [target]));
        loss.backward();
        noGrad(() => {
          for (const p of model.parameters()) if (p.grad) p.sub_(p.grad.clamp(-1, 1).mul(0.02));
        });
        return Number(loss.item());
      });
    const before = settledMemory().tensors;
    const losses = Array.from({ length: 25 }, step);
    expect(losses.at(-1)).toBeLessThan(0.8 * (losses[0] ?? 0));
    expect(memory().tensors - before).toBeLessThan(2 * model.parameters().length + 10);
    expect(model.parameters().filter((p) => p.grad === null).length).toBe(0);
  });

  it('detects by falling score, within the image, and takes a batch as a list', () => {
    manualSeed(1);
    const model = make().eval();
    const images = rand([2, 3, 50, 70]);
    noGrad(() => {
      const found = model.detect(images);
      expect(found.length).toBe(2);
      for (const { boxes, labels, scores } of found) {
        const values = scores.tolist() as number[];
        expect(values.length).toBeGreaterThan(0);
        expect(values).toEqual([...values].sort((a, b) => b - a));
        expect(labels.shape).toEqual([values.length]);
        expect(boxes.shape).toEqual([values.length, 4]);
        expect(Number(boxes.min().item())).toBeGreaterThanOrEqual(0);
        expect(Number(boxes.amax([0]).select(0, 2).item())).toBeLessThanOrEqual(70.001);
        expect(Number(boxes.amax([0]).select(0, 3).item())).toBeLessThanOrEqual(50.001);
      }
      // The second detector was made by the first call's sizes; a list of the same images agrees.
      expect(model.detect(images.unbind(0))[1]?.boxes.equal(found[1]!.boxes)).toBe(true);
    });
  });

  it('has a loss for images without boxes, and refuses missing targets', () => {
    manualSeed(2);
    const model = make().train();
    const nothing = { boxes: tensor([]).view([0, 4]), labels: tensor([], { dtype: 'int64' }) };
    const { image, target } = scene();
    for (const targets of [
      [nothing, nothing],
      [target, nothing],
    ]) {
      // prettier-ignore
      const loss = total(model.losses([image, image], targets));
      expect(Number.isFinite(loss.item())).toBe(true);
      loss.backward();
    }
    expect(() => model.losses([image], [])).toThrow(/1 images and 0 targets/);
    expect(() => model.run(image)).toThrow(/call losses\(images, targets\) or detect/);
  });

  it('is grafted in its body only; neck and heads train beside the grafts and the body stays', () => {
    manualSeed(3);
    const model = make();
    expect(model.sites().every(({ path }) => path.startsWith('backbone.body.'))).toBe(true);
    const body = new Map([...model.backbone.body.stateDict()].map(([name, value]) => [name, value.clone()]));
    const adapter = graft(model, 'conv_adapter', { reduction: 2 }, { head: 'train' });
    const names = adapter.namedParameters().map(([name]) => name);
    expect(names.some((name) => name.includes('fpn'))).toBe(true);
    const { image, target } = scene();
    total(model.losses([image], [target])).backward();
    expect(model.backbone.body.parameters().every((p) => p.grad === null)).toBe(true);
    for (const [name, value] of model.backbone.body.stateDict()) expect(value.equal(body.get(name)!)).toBe(true);
  });

  it('gets a classifier for other classes', () => {
    const model = make();
    model.resetClassifier(6);
    const [, state] = [...model.stateDict()].filter(([name]) => /cls_(score|logits)\.bias$/.test(name)).at(-1)!;
    expect(state.shape[0]! % 6).toBe(0);
    expect(
      total(model.train().losses([scene().image], [{ ...scene().target, labels: tensor([5], { dtype: 'int64' }) }]))
        .ndim,
    ).toBe(0);
  });
});

describe('published detectors', () => {
  const onMeta = <T>(make: () => T): T => withDefaults({ device: 'meta' }, make);

  it.each([
    ['fasterrcnn_resnet50_fpn', 41_755_286],
    ['fasterrcnn_resnet50_fpn_v2', 43_712_278],
    ['retinanet_resnet50_fpn', 34_014_999],
    ['retinanet_resnet50_fpn_v2', 38_198_935],
  ])('%s has %i parameters, as its files say', (name, expected) => {
    expect(
      onMeta(() => createDetector(name))
        .parameters()
        .reduce((sum, p) => sum + p.numel(), 0),
    ).toBe(expected);
  });

  it('load files with the old names of pyramids and towers', () => {
    const renamed = (name: string): string =>
      name
        .replace(/(inner_blocks|layer_blocks)\.(\d+)\.0\./, '$1.$2.')
        .replace('rpn.head.conv.0.0.', 'rpn.head.conv.')
        .replace(/(_head\.conv)\.(\d)\.0\./, (_, head: string, i: string) => `${head}.${2 * Number(i)}.`);
    for (const make of Object.values(makers)) {
      const [from, to] = [make(), make()];
      const old = new Map([...from.stateDict()].map(([name, value]) => [renamed(name), value]));
      expect([...old.keys()]).not.toEqual([...from.stateDict().keys()]);
      loadState(to, old);
      const state = to.stateDict();
      for (const [name, value] of from.stateDict()) expect(state.get(name)?.equal(value)).toBe(true);
      // Names of today pass unchanged.
      loadState(to, from.stateDict());
    }
  });

  it('refuse unknown names and parts', () => {
    expect(listDetectors()).toHaveLength(4);
    expect(() => createDetector('fasterrcnn_resnet50')).toThrow(/did you mean fasterrcnn_resnet50_fpn/);
    expect(() => createDetector('retinanet_resnet50_fpn', { trainableLayers: 6 })).toThrow(/0 to 5, got 6/);
  });
});
