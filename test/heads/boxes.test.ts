import { describe, expect, it } from 'vitest';
import {
  AnchorGenerator,
  BoxCoder,
  DetectionInput,
  giouLoss,
  matchBoxes,
  octave,
  sampleBalanced,
  scaleBoxes,
  sigmoidFocalLoss,
} from '../../lib/heads/index.js';
import { bceWithLogits } from '../../lib/nn/index.js';
import { aten, manualSeed, rand, randn, tensor } from '../../lib/tensor/index.js';

describe('BoxCoder', () => {
  it('decodes what it encodes, for several boxes per anchor, and limits sides', () => {
    manualSeed(0);
    const corner = rand([6, 2]).mul(50);
    const boxes = aten.cat([corner, corner.add(rand([6, 2]).mul(40)).add(1)], 1);
    const anchors = boxes.roll([1], [0]);
    const coder = new BoxCoder([10, 10, 5, 5]);
    const codes = coder.encode(boxes, anchors);
    const twice = coder.decode(aten.cat([codes, codes], 1), anchors);
    expect(twice.shape).toEqual([6, 2, 4]);
    expect(twice.select(1, 1).allclose(boxes, 1e-4, 1e-4)).toBe(true);
    const wide = new BoxCoder().decode(tensor([[0, 0, 9, 0]]), tensor([[0, 0, 2, 2]]));
    expect((wide.tolist() as number[][][])[0]?.[0]?.[2]).toBeCloseTo(1 + 62.5);
    expect(coder.decode(tensor([]).view([0, 4]), tensor([]).view([0, 4])).shape).toEqual([0, 1, 4]);
  });
});

describe('matchBoxes', () => {
  const iou = tensor([[0.1, 0.45, 0.6, 0.6, 0], [0.2, 0.3, 0.6, 0.1, 0]]); // prettier-ignore

  it('sorts by the two thresholds; the first of equals', () => {
    expect(matchBoxes(iou, { high: 0.6, low: 0.4 }).tolist()).toEqual([-1, -2, 0, 0, -1]);
    expect(matchBoxes(iou.narrow(0, 0, 0), { high: 0.5, low: 0.5 }).tolist()).toEqual([-1, -1, -1, -1, -1]);
  });

  it('at low quality a box that is the best of one object gets its own best object', () => {
    const weak = tensor([[0.1, 0.2, 0], [0.15, 0.1, 0]]); // prettier-ignore
    expect(matchBoxes(weak, { high: 0.7, low: 0.3, lowQuality: true }).tolist()).toEqual([1, 0, -1]);
    // An object that nothing touches overlaps everything equally little.
    const apart = tensor([[0.8, 0], [0, 0]]); // prettier-ignore
    expect(matchBoxes(apart, { high: 0.7, low: 0.3, lowQuality: true }).tolist()).toEqual([0, 0]);
  });
});

describe('sampleBalanced', () => {
  it('draws at random, positives up to their share, no row twice and none below 0', () => {
    manualSeed(5);
    const labels = tensor([1, 1, 1, 2, 0, 0, 0, 0, 0, -1], { dtype: 'int64' });
    const drawn = Array.from({ length: 20 }, () => {
      const { positive, negative } = sampleBalanced(labels, 6, 0.5);
      return [...(positive.tolist() as number[]), ...(negative.tolist() as number[])];
    });
    for (const rows of drawn) {
      expect(rows.length).toBe(6);
      expect(new Set(rows).size).toBe(6);
      expect(rows.filter((row) => row < 4).length).toBe(3);
      expect(rows).not.toContain(9);
    }
    expect(new Set(drawn.map((rows) => rows.join())).size).toBeGreaterThan(5);
    const few = sampleBalanced(tensor([1, 0, 0], { dtype: 'int64' }), 10, 0.5);
    expect([few.positive.tolist(), few.negative.tolist()]).toEqual([[0], [1, 2]]);
  });
});

describe('losses', () => {
  it('focal loss without focus is half the cross entropy, and fades where the answer is right', () => {
    manualSeed(1);
    const logits = randn([5, 3]);
    const targets = rand([5, 3]).gt(0.5).float();
    const plain = bceWithLogits(logits, targets, { reduction: 'none' });
    expect(sigmoidFocalLoss(logits, targets, { alpha: 0.5, gamma: 0 }).allclose(plain.mul(0.5))).toBe(true);
    const sure = sigmoidFocalLoss(tensor([4]), tensor([1]));
    expect(Number(sure.item())).toBeLessThan(0.25 * 4e-4 * Number(bceWithLogits(tensor([4]), tensor([1])).item()));
  });

  it('GIoU loss is 0 for equal boxes and grows with the distance', () => {
    const box = tensor([[0, 0, 2, 2]]);
    const loss = (x: number): number => Number(giouLoss(box, box.add(x)).item());
    expect(loss(0)).toBeCloseTo(0, 5);
    expect(loss(5)).toBeGreaterThan(1);
    expect(loss(9)).toBeGreaterThan(loss(5));
  });
});

describe('AnchorGenerator', () => {
  it('divides the padded size without remainder and goes row by row', () => {
    const anchors = new AnchorGenerator([octave(32), octave(64)], [1]);
    expect(anchors.sizes).toEqual([[32, 40, 50], [64, 80, 101]]); // prettier-ignore
    const [fine, coarse] = anchors.grid([96, 64], [[2, 3], [1, 1]], { dtype: 'float32', device: 'cpu' }); // prettier-ignore
    expect(fine?.shape).toEqual([18, 4]);
    // Second row, second column, first size: moved by 64 / 3 without remainder, and 96 / 2.
    expect(fine?.tolist()).toContainEqual([21 - 16, 48 - 16, 21 + 16, 48 + 16]);
    expect(coarse?.shape).toEqual([3, 4]);
    expect(() => anchors.grid([96, 64], [[2, 3]], { dtype: 'float32', device: 'cpu' })).toThrow(/2 levels, and 1 maps/);
    expect(() => new AnchorGenerator([[8], [8, 16]])).toThrow(RangeError);
  });
});

describe('DetectionInput', () => {
  it('draws a least side for training and takes the last one otherwise', () => {
    manualSeed(2);
    const input = new DetectionInput({ minSize: [32, 48, 64], maxSize: 1000 });
    const image = rand([3, 20, 40]);
    const target = { boxes: tensor([[1, 2, 3, 4]]), labels: tensor([1], { dtype: 'int64' }) };
    const heights = Array.from({ length: 12 }, () => input.prepare([image], [target]).sizes[0]?.[0]);
    expect(new Set(heights)).toEqual(new Set([32, 48, 64]));
    const test = input.prepare([image]);
    expect([test.sizes, test.images.shape]).toEqual([[[64, 128]], [1, 3, 64, 128]]);
    expect(scaleBoxes(tensor([[1, 2, 3, 4]]), [20, 40], [64, 128]).tolist()).toEqual([
      [1, 2, 3, 4].map((side) => Math.fround(side * 3.2)),
    ]);
  });

  it('refuses what is no image or target', () => {
    const input = new DetectionInput();
    const labels = tensor([1], { dtype: 'int64' });
    expect(() => input.prepare([])).toThrow(/at least one image/);
    expect(() => input.prepare([rand([1, 4, 4])])).toThrow(/must be \[3, H, W\].*\[1, 4, 4\]/);
    expect(() => input.prepare([rand([3, 4, 4])], [{ boxes: rand([2, 4]), labels }])).toThrow(
      /target 0.*\[2, 4\] and \[1\]/,
    );
    expect(() => new DetectionInput({ minSize: 0 })).toThrow(RangeError);
  });
});
