import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import {
  type CocoAnnotation,
  type CocoDetection,
  type CocoGroundTruth,
  DetectionMeter,
  evaluateCoco,
} from '../../lib/metrics/index.js';
import { memory, scope, tensor } from '../../lib/tensor/index.js';
import { settledMemory } from '../support/settled_memory.js';

interface Scene {
  truth: CocoGroundTruth;
  detections: CocoDetection[];
  stats: number[];
  precision: number[];
  recall: number[];
}

const scenes = JSON.parse(readFileSync(new URL('coco.json', import.meta.url), 'utf8')) as Scene[];

function expectClose(ours: ArrayLike<number>, golden: readonly number[]): void {
  expect(ours.length).toBe(golden.length);
  golden.forEach((value, i) => expect(ours[i]).toBeCloseTo(value, 10));
}

describe('evaluateCoco', () => {
  it.each(scenes.map((scene, i) => [i, scene] as const))('gives the numbers of pycocotools, scene %i', (_, scene) => {
    const result = evaluateCoco(scene.truth, scene.detections);
    expectClose(result.stats, scene.stats);
    expectClose(result.recall, scene.recall);
    // The file holds sums over the recalls.
    const cells = result.categoryIds.length * 4;
    const sums = Array.from({ length: 10 * cells }, (_unused, i) => {
      const [t, cell] = [Math.floor(i / cells), i % cells];
      return Array.from({ length: 101 }, (_r, r) => result.precision[(t * 101 + r) * cells + cell] ?? 0).reduce(
        (a, b) => a + b,
      );
    });
    expectClose(sums, scene.precision);
  });

  const truth = (...annotations: Partial<CocoAnnotation>[]): CocoGroundTruth => ({
    images: [{ id: 1 }],
    categories: [{ id: 1 }],
    annotations: annotations.map((a, i) => ({
      id: i + 1,
      image_id: 1,
      category_id: 1,
      bbox: [0, 0, 10, 10],
      area: 100,
      ...a,
    })),
  });
  const found: CocoDetection = { image_id: 1, category_id: 1, bbox: [0, 0, 10, 10], score: 0.5 };

  it('is 1 for what is right and -1 for what is not annotated', () => {
    const result = evaluateCoco(truth({}), [found]);
    expectClose(result.stats, [1, 1, 1, 1, -1, -1, 1, 1, 1, 1, -1, -1]);
    expect(result.AR).toEqual({ 1: 1, 10: 1, 100: 1 });
    expect(evaluateCoco(truth({}), []).AP).toBe(0);
    expect(evaluateCoco(truth(), [found]).stats.every((value) => value === -1)).toBe(true);
  });

  it('refuses ids and boxes that cannot be meant', () => {
    expect(() => evaluateCoco(truth({ id: 0 }), [])).toThrow(/ids must be at least 1, got 0/);
    expect(() => evaluateCoco(truth({ image_id: 7 }), [])).toThrow(/annotation 1 belongs to image 7/);
    expect(() => evaluateCoco(truth({}), [{ ...found, image_id: 7 }])).toThrow(/detection 0 belongs to image 7/);
    expect(() => evaluateCoco(truth({ bbox: [0, 0, NaN, 1] }), [])).toThrow(TypeError);
    expect(() => evaluateCoco(truth({}), [{ ...found, score: NaN }])).toThrow(/detection 0 must have a score, got NaN/);
  });
});

describe('DetectionMeter', () => {
  it('holds tensors until the result, which is that of COCO; crowds and areas count', () => {
    const before = settledMemory().tensors;
    const meter = new DetectionMeter();
    const ints = (values: number[]) => tensor(values, { dtype: 'int64' });
    scope(() => {
      const one = { boxes: tensor([[0, 0, 10, 10], [20, 20, 30, 30]]), labels: ints([1, 1]), scores: tensor([0.9, 0.8]) }; // prettier-ignore
      const none = { boxes: tensor([]).view([0, 4]), labels: ints([]), scores: tensor([]) };
      const crowd = { boxes: tensor([[0, 0, 10, 10], [15, 15, 40, 40]]), labels: ints([1, 1]), crowds: tensor([false, true]) }; // prettier-ignore
      meter.update([one, none], [crowd, { boxes: tensor([[0, 0, 50, 50]]), labels: ints([1]), areas: tensor([90]) }]);
    });
    const result = meter.result();
    // One of two objects is found; the other detection lies in the crowd and does not count.
    expect(result.AR[100]).toBeCloseTo(0.5);
    expect(result.AP).toBeCloseTo(51 / 101);
    expect(result.ARs).toBeCloseTo(0.5);
    expect(result.APm).toBe(-1);
    meter.reset();
    expect(memory().tensors).toBe(before);
    expect(() => meter.result()).toThrow(/call update first/);
    expect(() => meter.update([], [{ boxes: tensor([[0, 0, 1, 1]]), labels: ints([1]) }])).toThrow(/0 images.*of 1/);
  });
});
