/** DenseCLIP under detectors: the loss inside boxes, the detectors around it, files, and that they learn. */
import { describe, expect, test } from 'vitest';
import { graft } from '../../lib/adapters/index.js';
import type { DetectionTarget } from '../../lib/heads/index.js';
import { ClipTokenizer, createCustomClip, loadState } from '../../lib/models/index.js';
import { BatchNorm2d, Context, functional } from '../../lib/nn/index.js';
import {
  boxScoreLoss,
  createDenseClipDetector,
  denseClipGroups,
  type CreateDenseClipDetectorOptions,
  type DenseClipDetector,
  type DenseClipSizes,
} from '../../lib/systems/index.js';
import { manualSeed, noGrad, rand, randn, scope, tensor, type Tensor } from '../../lib/tensor/index.js';
import { AdamW } from '../../lib/train/optim.js';

const tokenizer = new ClipTokenizer(['c a', 'ca t</w>', 'd o', 'do g</w>']);
const classes = ['cat', 'dog'];
const sizes: DenseClipSizes = {
  visual: { layers: [1, 1, 1, 1], width: 2, outputDim: 6 },
  text: { width: 8, heads: 2, layers: 1 },
};
const common = {
  classes,
  tokenizer,
  inputResolution: 128,
  contextDecoder: { width: 8, heads: 2, layers: 1 },
  channels: 8,
  input: { minSize: 64, maxSize: 128 },
  boxWidth: 16,
};

function build(options: Partial<CreateDenseClipDetectorOptions> = {}): DenseClipDetector {
  manualSeed(9);
  const model = createDenseClipDetector(sizes, { ...common, ...options });
  // The last norm of each block starts at 0 and would hide the block.
  noGrad(() => model.apply((part) => part instanceof BatchNorm2d && part.weight?.fill_(1)));
  return model;
}

const number = (x: Tensor): number => Number(x.item());
const target = (boxes: number[][], labels: number[]): DetectionTarget => ({
  boxes: tensor(boxes.flat(), { dtype: 'float32' }).reshape([boxes.length, 4]),
  labels: tensor(labels, { dtype: 'int64' }),
});
const images = [rand([3, 64, 96]), rand([3, 80, 64])];
const targets = (first: number): DetectionTarget[] => [
  target([[4, 6, 40, 50], [30, 20, 90, 60]], [first, first + 1]), // prettier-ignore
  target([[10, 8, 50, 70]], [first + 1]),
];

describe('loss inside boxes', () => {
  test('is what the definition says, box by box', () => {
    manualSeed(5);
    const logits = randn([2, 3, 6, 8]).requiresGrad_();
    // Halves are cut off, sides beyond the image are drawn in, a box may vanish, boxes of two classes may overlap.
    const given = [target([[1.9, 3, 17.5, 22], [8, 8, 900, 900], [5, 5, 7, 7]], [2, 0, 1]), target([[-9, 2, 20, 11]], [1])]; // prettier-ignore
    const goal = new Map<string, number>();
    const covered = new Set<string>();
    given.forEach(({ boxes, labels }, i) => {
      const rows = boxes.tolist() as number[][];
      (labels.tolist() as number[]).forEach((label, g) => {
        const clamp = (value: number, last: number): number => Math.min(Math.max(Math.trunc(value / 4), 0), last);
        const [x1 = 0, y1 = 0, x2 = 0, y2 = 0] = rows[g] ?? [];
        for (let y = clamp(y1, 5); y < clamp(y2, 5); y++) {
          for (let x = clamp(x1, 7); x < clamp(x2, 7); x++) {
            covered.add(`${i} ${y} ${x}`);
            goal.set(`${i} ${label} ${y} ${x}`, 1);
          }
        }
      });
    });
    const values = logits.detach().tolist() as number[][][][];
    let sum = 0;
    for (const place of covered) {
      const [i = 0, y = 0, x = 0] = place.split(' ').map(Number);
      for (let k = 0; k < 3; k++) {
        const p = 1 / (1 + Math.exp(-(values[i]?.[k]?.[y]?.[x] ?? NaN)));
        sum -= Math.log(goal.has(`${i} ${k} ${y} ${x}`) ? p : 1 - p);
      }
    }
    expect(covered.size).toBeGreaterThan(20);
    expect(number(boxScoreLoss(logits, given))).toBeCloseTo(sum / (3 * covered.size), 5);
  });

  test('without boxes it is 0, and so is its gradient', () => {
    const logits = randn([1, 2, 4, 4]).requiresGrad_();
    const loss = boxScoreLoss(logits, [target([], [])]);
    loss.backward();
    expect([number(loss), number((logits.grad as Tensor).abs().sum())]).toEqual([0, 0]);
  });
});

describe.each([
  ['retinanet', 0],
  ['faster_rcnn', 1],
] as const)('%s', (head, first) => {
  test('adds the loss of the scores, whose classes count from 0', () => {
    const model = build({ head }).eval();
    const image = images.slice(0, 1);
    const { loss_seg: found, ...stock } = model.losses(image, targets(first).slice(0, 1));
    expect(Object.keys(stock).length).toBeGreaterThan(1);
    const body = model.backbone;
    const ctx = new Context();
    const mean = tensor([0.48145466, 0.4578275, 0.40821073]).view([-1, 1, 1]);
    const std = tensor([0.26862954, 0.26130258, 0.27577711]).view([-1, 1, 1]);
    const { scores, levels } = body.guided(image[0]?.sub(mean).div(std).unsqueeze(0) as Tensor, ctx);
    expect(levels.map((map) => map.shape[1])).toEqual([8, 8, 8, 8, 8]);
    expect(levels[0]?.shape.slice(2)).toEqual(head === 'retinanet' ? [8, 12] : [16, 24]);
    const logits = functional.interpolate(scores.div(0.07), { size: [16, 24] });
    expect(number(found as Tensor)).toBeCloseTo(number(boxScoreLoss(logits, targets(0).slice(0, 1))), 4);
    expect(number(build({ head, scoreWeight: 3 }).eval().losses(image, targets(first).slice(0, 1)).loss_seg as Tensor)).toBeCloseTo(3 * number(found as Tensor), 4); // prettier-ignore
  });

  test('learns, the text tower aside, and detects', () => {
    const model = build({ head }).train();
    const frozen = model.backbone.text_encoder.parameters();
    const before = frozen.map((p) => p.detach().clone());
    const optimizer = new AdamW(denseClipGroups(model, { lr: 1e-3 }));
    const learned = new Set(optimizer.groups.flatMap((group) => [...group.params]));
    expect(model.parameters().every((p) => learned.has(p) !== frozen.includes(p))).toBe(true);
    expect(optimizer.groups[0]?.params.length).toBe(model.backbone.backbone.parameters().length);
    const losses = (): Tensor => {
      manualSeed(3);
      return Object.values(model.losses(images, targets(first))).reduce((a, b) => a.add(b));
    };
    const start = number(noGrad(losses));
    for (let step = 0; step < 6; step++) {
      scope(() => {
        optimizer.zeroGrad();
        losses().backward();
        optimizer.step();
      });
    }
    expect(number(noGrad(losses))).toBeLessThan(start);
    expect(number(model.backbone.contexts.grad?.abs().sum() as Tensor)).toBeGreaterThan(0);
    frozen.forEach((p, i) => expect(p.equal(before[i] as Tensor)).toBe(true));
    const found = noGrad(() => model.eval().detect(images));
    expect(found.length).toBe(2);
    for (const { boxes, labels } of found) {
      expect(boxes.shape[0]).toBe(labels.shape[0]);
      if (boxes.shape[0]) expect(number(labels.max())).toBeLessThan(first + 2);
    }
  });

  test('adapters sit in the image tower; all but the towers is the head', () => {
    const model = build({ head });
    const adapter = graft(model, 'bitfit', {}, { head: 'train' });
    model.eval();
    Object.values(model.losses(images, targets(first))).reduce((a, b) => a.add(b)).backward(); // prettier-ignore
    expect(adapter.parameters().some((p) => p.grad !== null)).toBe(true);
    const trained = model.namedParameters().flatMap(([name, p]) => (p.requiresGrad ? [name] : []));
    expect(trained).toEqual(expect.arrayContaining(['backbone.contexts', 'backbone.gamma']));
    expect(trained.some((name) => name.startsWith('backbone.text_encoder.'))).toBe(false);
  });
});

describe('files', () => {
  test('official names of the pyramid, and MMDetection’s of the head', () => {
    const [model, other] = [build(), build()];
    const official = new Map(
      Array.from(model.stateDict(), ([name, t]): [string, Tensor] => {
        const theirs = name
          .replace(/^backbone\.(?=backbone|context|gamma|neck|text)/, '')
          .replace(/^head\.(.{3}).*_head\.conv\.(\d)\.0/, (_, kind: string, i) => `bbox_head.${kind}_convs.${i}.conv`)
          .replace('head.classification_head.cls_logits', 'bbox_head.retina_cls')
          .replace('head.regression_head.bbox_reg', 'bbox_head.retina_reg')
          .replace('bbox_head.cla_', 'bbox_head.cls_');
        return [theirs, t];
      }),
    );
    expect([...official.keys()].filter((name) => !/^(backbone|text_encoder|context_decoder|neck|bbox_head)\.|^(contexts|gamma)$/.test(name))).toEqual([]); // prettier-ignore
    for (const state of [official, model.stateDict()]) {
      noGrad(() => {
        for (const p of other.parameters()) p.add_(1);
      });
      loadState(other, state);
      const own = model.stateDict();
      for (const [name, t] of other.namedState()) expect(t.equal(own.get(name) as Tensor), name).toBe(true);
    }
  });

  test('the towers of a CLIP', () => {
    const clip = createCustomClip({
      visualKind: 'resnet',
      visual: { imgSize: 64, layers: [1, 1, 1, 1], width: 2, heads: 1, outputDim: 6 },
      text: { ...sizes.text, contextLength: 20, vocabSize: tokenizer.vocabSize, embedDim: 6 },
    });
    const { backbone } = build();
    backbone.loadClip(clip.officialState('openai'));
    expect(backbone.text_encoder.proj.weight.equal(clip.text.proj.weight)).toBe(true);
    expect(backbone.stateDict().get('backbone.attnpool.positional_embedding')?.shape).toEqual([17, 64]);
    expect(() => backbone.loadClip(backbone.stateDict())).toThrow(/no CLIP/);
  });
});

test('an image beyond the positions is refused with what would help', () => {
  const model = build({ inputResolution: 64 }).eval();
  expect(() => model.detect([rand([3, 64, 96])])).toThrow(
    /map of 2 x 3 does not lie in the positions of 2 x 2.*inputResolution/,
  );
});
