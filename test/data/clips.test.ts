import { describe, expect, test } from 'vitest';
import { clipViews, Random, testFrames, trainingClip, trainingFrames } from '../../lib/data/index.js';
import { tensor, zeros, type Tensor } from '../../lib/tensor/index.js';

describe('frames of a training clip', () => {
  test('one out of each segment', () => {
    const seen = new Set<string>();
    for (let seed = 0; seed < 40; seed++) {
      const frames = trainingFrames(9, { frames: 4 }, new Random(seed));
      frames.forEach((frame, i) => {
        expect(frame).toBeGreaterThanOrEqual(2 * i);
        expect(frame).toBeLessThanOrEqual(2 * i + 2);
      });
      seen.add(frames.join());
    }
    expect(seen.size).toBeGreaterThan(10);
  });

  test('every stride-th from any start that leaves room', () => {
    const starts = new Set<number>();
    for (let seed = 0; seed < 60; seed++) {
      const [start = 0, ...rest] = trainingFrames(10, { frames: 3, stride: 3 }, new Random(seed));
      expect(rest).toEqual([start + 3, start + 6]);
      starts.add(start);
    }
    expect([...starts].sort()).toEqual([0, 1, 2, 3]);
  });

  test('the last frame taken is repeated where the video ends', () => {
    expect(trainingFrames(8, { frames: 4, stride: 3 }, new Random(1))).toEqual([0, 3, 6, 6]);
    expect(trainingFrames(1, { frames: 3, stride: 2 }, new Random(1))).toEqual([0, 0, 0]);
    expect(trainingFrames(1, { frames: 3 }, new Random(1))).toEqual([0, 0, 0]);
  });
});

test('a wrong sampling is refused, with what was wrong', () => {
  expect(() => testFrames(0, { frames: 4 })).toThrow(/at least one frame, this one has 0/);
  expect(() => testFrames(9, { frames: 4 }, 3)).toThrow(/one view in time, and 3 are wanted/);
  expect(() => testFrames(9, { frames: 0 })).toThrow(/frames must be a whole number from 1 on, got 0/);
  expect(() => trainingFrames(9, { frames: 2, stride: -1 }, new Random(1))).toThrow(/stride must be .* 0 on, got -1/);
});

/** A video whose red is the column, green the row and blue the frame. */
const video = (frames: number, height: number, width: number): Tensor => {
  const values: number[] = [];
  for (let t = 0; t < frames; t++)
    for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) values.push(5 * x, 5 * y, t);
  return tensor(values, { dtype: 'uint8' }).view([frames, height, width, 3]);
};
const plain = { mean: [0, 0, 0], std: [1 / 255, 1 / 255, 1 / 255] };

describe('training clips', () => {
  test.each(['random_resized_crop', 'short_side_jitter'] as const)('%s cuts all frames alike', (crop) => {
    const clips = [1, 2, 3].map((seed) =>
      trainingClip(video(4, 20, 30), { ...plain, size: 12, crop }, new Random(seed)),
    );
    for (const clip of clips) {
      expect(clip.shape).toEqual([3, 4, 12, 12]);
      const [red, green, blue] = clip.unbind(0) as [Tensor, Tensor, Tensor];
      for (const place of [red, green]) expect(place.select(0, 0).equal(place.select(0, 3))).toBe(true);
      const times = [...(blue.mean([1, 2]).data() as Float32Array)];
      expect(times.map(Math.round)).toEqual([0, 1, 2, 3]);
      // Columns rise to the right: nothing is mirrored.
      expect(Number(red.select(2, 11).sub(red.select(2, 0)).min().item())).toBeGreaterThan(0);
    }
    expect(clips[0]?.equal(clips[1] as Tensor)).toBe(false);
  });

  test('a flip mirrors left and right', () => {
    const options = { ...plain, size: 12, crop: 'short_side_jitter' } as const;
    const straight = trainingClip(video(2, 20, 30), options, new Random(4));
    const mirrored = trainingClip(video(2, 20, 30), { ...options, flip: 1 }, new Random(4));
    expect(mirrored.flip([3]).equal(straight)).toBe(true);
  });
});

test('views of a portrait video are cut along its height', () => {
  const views = clipViews(video(5, 30, 20), { ...plain, frames: 2, size: 20, spatialViews: 3 });
  expect(views.shape).toEqual([3, 3, 2, 20, 20]);
  const tops = [0, 1, 2].map((i) =>
    Number(views.select(0, i).select(0, 1).select(0, 0).select(0, 0).select(0, 0).item()),
  );
  expect(tops.map(Math.round)).toEqual([0, 25, 50]);
});

test('only bytes of the right shape are taken', () => {
  const options = { ...plain, frames: 2, size: 8 };
  expect(() => clipViews(zeros([4, 9, 9, 3]), options)).toThrow(/expected bytes .*got float32 \[4, 9, 9, 3\]/);
  expect(() => clipViews(zeros([4, 9, 9], { dtype: 'uint8' }), options)).toThrow(TypeError);
});
