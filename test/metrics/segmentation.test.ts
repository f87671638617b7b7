import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { SegmentationMeter } from '../../lib/metrics/index.js';
import { memory, scope, tensor, type Tensor } from '../../lib/tensor/index.js';
import { settledMemory } from '../support/settled_memory.js';

const pixels = (values: number[]): Tensor => tensor(values, { dtype: 'uint8' });

describe('SegmentationMeter', () => {
  it('agrees with plain counting over several images', () => {
    const pixel = fc.tuple(fc.nat(3), fc.constantFrom(0, 1, 2, 3, 255));
    const image = fc.array(pixel, { minLength: 1, maxLength: 30 });
    fc.assert(
      fc.property(fc.array(image, { minLength: 1, maxLength: 3 }), (images) => {
        const meter = new SegmentationMeter(4);
        for (const one of images) scope(() => meter.update(pixels(one.map(([p]) => p)), pixels(one.map(([, l]) => l))));
        const valid = images.flat().filter(([, label]) => label !== 255);
        const result = meter.result();
        for (let k = 0; k < 4; k++) {
          const right = valid.filter(([p, l]) => p === k && l === k).length;
          const [predicted, labeled] = [valid.filter(([p]) => p === k).length, valid.filter(([, l]) => l === k).length];
          expect(result.iou[k]).toBe(right / (predicted + labeled - right));
          expect(result.acc[k]).toBe(right / labeled);
          expect(result.dice[k]).toBe((2 * right) / (predicted + labeled));
        }
        const known = result.iou.filter((value) => !Number.isNaN(value));
        // Where every pixel is ignored no class is known: the mean of none is NaN, which toBeCloseTo never accepts.
        if (known.length === 0) expect(result.mIoU).toBe(NaN);
        else expect(result.mIoU).toBeCloseTo(known.reduce((a, b) => a + b, 0) / known.length);
      }),
      { numRuns: 40 },
    );
  });

  it('a class that is predicted and never labeled has IoU 0 and no accuracy', () => {
    const meter = new SegmentationMeter(3);
    meter.update(pixels([0, 1]), pixels([0, 0]));
    const { iou, acc, mIoU, mAcc, aAcc } = meter.result();
    expect(iou).toEqual([0.5, 0, NaN]);
    expect(acc).toEqual([0.5, NaN, NaN]);
    expect([mIoU, mAcc, aAcc]).toEqual([0.25, 0.5, 0.5]);
  });

  it('a class that never appears is NaN everywhere and in no mean', () => {
    const meter = new SegmentationMeter(3);
    meter.update(pixels([0, 1]), pixels([0, 1]));
    expect(meter.result()).toMatchObject({ aAcc: 1, mIoU: 1, mAcc: 1, mDice: 1 });
    const { iou, acc, dice } = meter.result();
    for (const values of [iou, acc, dice]) expect(values).toEqual([1, 1, NaN]);
  });

  it('has no mean to give when every pixel is ignored', () => {
    const meter = new SegmentationMeter(2);
    meter.update(pixels([0, 1]), pixels([255, 255]));
    expect(meter.result()).toMatchObject({ aAcc: NaN, mIoU: NaN, mAcc: NaN, mDice: NaN, iou: [NaN, NaN] });
  });

  it('shifts labels where 0 is no class, after they were replaced', () => {
    const meter = new SegmentationMeter(2, { reduceZeroLabel: true, remap: { 9: 2, 2: 0 } });
    // Labels 0, 1, 9 -> 2, 2 -> 0, 255; shifted: none, 0, 1, none, none.
    meter.update(pixels([0, 0, 1, 1, 1]), pixels([0, 1, 9, 2, 255]));
    expect(meter.result()).toMatchObject({ aAcc: 1, areas: { labeled: [1, 1], predicted: [1, 1] } });
  });

  it('refuses labels beyond the classes, other shapes, and to answer before it has counted', () => {
    const meter = new SegmentationMeter(2);
    expect(() => meter.result()).toThrow(/call update first/);
    expect(() => meter.update(pixels([0]), pixels([0, 1]))).toThrow(/\[1\] and labels \[2\]/);
    meter.update(pixels([0, 1, 1]), pixels([0, 2, 254]));
    expect(() => meter.result()).toThrow(/2 pixels have labels that are none of the 2 classes/);
    meter.reset();
    const before = settledMemory().tensors;
    scope(() => meter.update(pixels([0]), pixels([0])));
    expect(meter.result().mIoU).toBe(1);
    meter.reset();
    expect(memory().tensors).toBe(before);
    expect(() => new SegmentationMeter(0)).toThrow(RangeError);
  });
});
