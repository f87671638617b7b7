import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import path from 'node:path';
import { afterEach, beforeAll, describe, expect, it } from 'vitest';
import {
  ClipLoader, clipViews, MovingShapes, openVideo, openVideos, Random, SampleError, stackFrames, testFrames, trainingClip,
  trainingFrames, VideoFolder, type Image, type LoadedClips, type Video, type VideoSource,
} from '../../lib/data/index.js'; // prettier-ignore
import { Stream } from '../../lib/data/random.js';
import type { Tensor } from '../../lib/tensor/index.js';
import { plain, png, scratchFolder, write } from './files.js';
import { fixtures } from './npy.js';

const root = scratchFolder();
let made = 0;
const fresh = (): string => path.join(root, String(made++));
const still = { size: 8, mean: [0, 0, 0], std: [1, 1, 1] } as const;

/** PNGs of one gray value each. */
const frame: Uint8Array[] = [];
beforeAll(async () => {
  for (let t = 0; t < 12; t++) frame.push(await png(plain(10, 12, 3, 10 * t)));
});

/** A folder of frames whose gray is ten times their number. */
function frames(count: number, ...place: string[]): string {
  const folder = path.join(...place);
  for (let t = 0; t < count; t++) write(frame[t] as Uint8Array, folder, `frame_${t}.png`);
  return folder;
}
const gray = (images: readonly Image[]): number[] => images.map(({ data }) => data[0] ?? -1);

describe('a folder of frames', () => {
  it('gives the frames asked for, by the numbers in their names', async () => {
    const video = await openVideo(frames(12, fresh()));
    expect(video.frameCount).toBe(12);
    expect(gray(await video.read([11, 2, 2, 10]))).toEqual([110, 20, 20, 100]);
    await expect(video.read([12])).rejects.toThrow(/index 12 is outside/);
  });

  it('without frames, with a broken one or with one of another size: an error that names it', async () => {
    const empty = path.dirname(write('', fresh(), 'notes.txt'));
    const error: unknown = await openVideo(empty).catch((e: unknown) => e);
    expect(error).toBeInstanceOf(SampleError);
    expect((error as Error).message).toContain(`the video ${empty} is empty: the folder has no frames`);
    const folder = frames(4, fresh());
    write('no image', folder, 'frame_2.png');
    const broken = await openVideo(folder);
    expect(gray(await broken.read([1, 3]))).toEqual([10, 30]);
    await expect(broken.read([1, 2])).rejects.toThrow(/cannot decode the image .*frame_2\.png/);
    write(await png(plain(10, 13, 3)), folder, 'frame_2.png');
    await expect(broken.read([1, 2])).rejects.toThrow(/differ in size: frame 1 is 10x12, frame 2 is 10x13/);
    await expect(openVideo(path.join(root, 'none'))).rejects.toThrow(/no such file or folder/);
  });
});

describe('VideoFolder', () => {
  it('reads classes of folders of frames', async () => {
    const base = fresh();
    for (const place of [
      ['nod', 'b'],
      ['wave', 'a'],
      ['nod', 'a'],
    ])
      frames(3, base, ...place);
    const dataset = new VideoFolder(base);
    expect(dataset.classNames).toEqual(['nod', 'wave']);
    expect([...dataset.labels]).toEqual([0, 0, 1]);
    expect(dataset.describe(1)).toBe(path.join(base, 'nod', 'b'));
    expect((await dataset.load(2)).frameCount).toBe(3);
    expect(() => new VideoFolder(base, { classNames: ['wave'] })).toThrow(/no known classes: "nod"/);
  });

  it('an empty clip is an error that names it, or left out and counted', () => {
    const base = fresh();
    frames(3, base, 'nod', 'a');
    const empty = path.dirname(write('', base, 'nod', 'b', 'notes.txt'));
    expect(() => new VideoFolder(base)).toThrow(SampleError);
    expect(() => new VideoFolder(base)).toThrow(`the video ${empty} is empty`);
    const dataset = new VideoFolder(base, { skipBroken: true });
    expect(dataset.length).toBe(1);
    expect(dataset.skipped.map((one) => one.path)).toEqual([empty]);
  });

  it('says what it expects where it does not find it', () => {
    const base = fresh();
    write(frame[0] as Uint8Array, base, 'nod', 'frame_0.png');
    expect(() => new VideoFolder(base)).toThrow(
      /nod has no videos.* It has images: put the frames of each video into a/,
    );
    expect(() => new VideoFolder(path.join(base, 'nod'))).toThrow(/has images but no class folders/);
  });

  it('openVideos takes the parts that are there, or holds some of each class back', () => {
    const base = fresh();
    for (const part of ['train', 'val']) for (const name of ['nod', 'wave']) frames(1, base, part, name, 'a');
    const parts = openVideos(base);
    expect([parts.train.length, parts.val.length, parts.test]).toEqual([2, 2, undefined]);
    expect(() => new VideoFolder(base)).toThrow(/holds a split data set .*openVideos/);
    const whole = fresh();
    for (const name of ['nod', 'wave']) for (const video of ['a', 'b', 'c', 'd']) frames(1, whole, name, video);
    const { train, val } = openVideos(whole, { valFraction: 0.25 });
    expect([Array.from(train.labels), Array.from(val.labels)]).toEqual([[0, 0, 0, 1, 1, 1], [0, 1]]); // prettier-ignore
    const few = fresh();
    frames(1, few, 'nod', 'a');
    expect(() => openVideos(few)).toThrow(/too few videos/);
  });
});

describe('video files', () => {
  const file = (name: string): string => path.join(fixtures, 'video', name);
  const { PATH } = process.env;
  afterEach(() => {
    process.env['PATH'] = PATH;
  });

  it('without ffmpeg: an error that says what to install, which is not skipped', async () => {
    process.env['PATH'] = fresh();
    const base = fresh();
    write('', base, 'nod', 'a.mp4');
    const loader = new ClipLoader({
      dataset: new VideoFolder(base),
      batchSize: 1,
      skipBroken: true,
      clips: { ...still, frames: 2 },
    });
    const error: unknown = await loader.epoch().next().catch((e: unknown) => e); // prettier-ignore
    expect(error).not.toBeInstanceOf(SampleError);
    expect((error as Error).message).toMatch(
      /a\.mp4 needs ffmpeg, which is not installed .*apt install ffmpeg.*folder of frames/,
    );
  });

  describe.skipIf(spawnSync('ffmpeg', ['-version']).status !== 0)('with ffmpeg (skipped without)', () => {
    // The gray of each frame of a 64x48 video rises with its number; in `uneven` every one of the first ten frames is there, then each third.
    it('counts frames of uneven distances, and gives those asked for', async () => {
      const video = await openVideo(file('uneven.mkv'));
      expect(video.frameCount).toBe(26);
      const all = await video.read(Array.from({ length: 26 }, (_, i) => i));
      expect(all[0]).toMatchObject({ width: 64, height: 48, channels: 3 });
      const values = gray(all);
      values.slice(1).forEach((value, i) => expect(value - (values[i] ?? 0)).toBeGreaterThan(i < 9 ? 1 : 8));
      expect(gray(await video.read([25, 3, 3, 7]))).toEqual([25, 3, 3, 7].map((i) => values[i]));
    });

    it('turns what was filmed upright', async () => {
      const video = await openVideo(file('turned.mov'));
      expect(video.frameCount).toBe(60);
      expect((await video.read([59]))[0]).toMatchObject({ width: 48, height: 64 });
    });

    it('names the file that is damaged or no video', async () => {
      await expect(openVideo(file('damaged.mkv'))).rejects.toThrow(SampleError);
      await expect(openVideo(file('damaged.mkv'))).rejects.toThrow(/cannot decode the video .*damaged\.mkv: /);
      await expect(openVideo(write('text', fresh(), 'x.mp4'))).rejects.toThrow(/cannot decode the video .*x\.mp4: /);
    });
  });
});

/** Videos that are in memory; says which frames were read. */
class Videos implements VideoSource {
  readonly classNames = ['a', 'b'];
  readonly labels: number[];
  readonly length: number;
  readonly reads: number[] = [];
  constructor(readonly videos: readonly Image[][]) {
    this.length = videos.length;
    this.labels = videos.map((_, i) => i % 2);
  }
  load(index: number): Video {
    const images = this.videos[index] ?? [];
    return {
      frameCount: images.length,
      read: (numbers) => {
        this.reads.push(...numbers);
        return Promise.resolve(numbers.map((n) => images[n] as Image));
      },
    };
  }
  describe(index: number): string {
    return `video ${index}`;
  }
}

const textured = (count: number, height: number, width: number): Image[] =>
  Array.from({ length: count }, (_, t) => plain(height, width, 3, (x, y) => (x * 7 + y * 3 + t * 20) % 256));

/** Long lists are not for the test runner to compare. */
const digest = (tensor: Tensor): string =>
  createHash('sha256')
    .update(tensor.data() as Float32Array)
    .digest('hex');

async function collect(batches: AsyncIterable<LoadedClips>): Promise<unknown[]> {
  const result = [];
  for await (const { index, indices, images, labels, views, dispose } of batches) {
    result.push([index, indices, images.shape, digest(images), labels.tolist(), views]);
    dispose();
  }
  return result;
}

describe('ClipLoader', () => {
  const videos = [textured(9, 16, 20), textured(5, 20, 14), textured(12, 16, 16)];
  const training = { ...still, frames: 4, crop: 'random_resized_crop', flip: 0.5 } as const;

  it('trains on the clips that trainingFrames and trainingClip give', async () => {
    const dataset = new Videos(videos);
    const loader = new ClipLoader({ dataset, batchSize: 3, seed: 5, clips: training });
    for await (const { images, labels, views, dispose } of loader.epoch(2)) {
      expect([images.shape, labels.tolist(), views]).toEqual([[3, 3, 4, 8, 8], [0, 1, 0], 1]);
      videos.forEach((frames, i) => {
        const random = new Random(5, Stream.augment, 2, i);
        const taken = trainingFrames(frames.length, training, random).map((n) => frames[n] as Image);
        expect(images.select(0, i).equal(trainingClip(stackFrames(taken), training, random))).toBe(true);
      });
      dispose();
    }
  });

  it('tests on the views that clipViews gives, reading only the frames that they take, and once', async () => {
    const clips = { ...still, frames: 3, stride: 2, temporalViews: 2, spatialViews: 3 } as const;
    const dataset = new Videos(videos);
    const loader = new ClipLoader({ dataset, batchSize: 2, clips });
    const found: LoadedClips[] = [];
    for await (const batch of loader.epoch()) found.push(batch);
    expect(found.map(({ images }) => images.shape)).toEqual([[12, 3, 3, 8, 8], [6, 3, 3, 8, 8]]); // prettier-ignore
    videos.forEach((frames, i) => {
      const views = found[i < 2 ? 0 : 1]?.images.narrow(0, (i % 2) * 6, 6);
      expect(views?.allclose(clipViews(stackFrames(frames), clips), 1e-5, 1e-6)).toBe(true);
    });
    expect(found[0]?.views).toBe(6);
    const once = videos.flatMap(({ length }) =>
      [...new Set(testFrames(length, clips, 2).flat())].sort((a, b) => a - b),
    );
    expect(dataset.reads).toEqual(once);
    await collect(loader.epoch(1));
    expect(dataset.reads).toEqual(once);
    for (const batch of found) batch.dispose();
  });

  it('repeats exactly, whatever is read ahead, kept, or where it starts', async () => {
    const loader = (prefetch: number, cacheBytes: number): ClipLoader =>
      new ClipLoader({
        dataset: new Videos(videos),
        batchSize: 1,
        shuffle: true,
        clips: training,
        prefetch,
        cacheBytes,
      });
    const first = await collect(loader(0, 0).epoch(1));
    const other = loader(3, 6000);
    await collect(other.epoch(0));
    expect(await collect(other.epoch(1))).toEqual(first);
    expect(await collect(loader(2, 1e9).epoch(1, 2))).toEqual(first.slice(2));
    expect(await collect(loader(0, 0).epoch(2))).not.toEqual(first);
  });

  it('a corrupt frame is an error at its batch, or its video is left out and counted', async () => {
    const base = fresh();
    for (const name of ['a', 'b', 'c']) frames(3, base, 'nod', name);
    write('no image', base, 'nod', 'b', 'frame_1.png');
    const options = { dataset: new VideoFolder(base), batchSize: 3, clips: { ...still, frames: 1 } };
    await expect(new ClipLoader(options).epoch().next()).rejects.toThrow(/cannot decode the image .*b.frame_1\.png/);
    const loader = new ClipLoader({ ...options, skipBroken: true });
    for await (const { indices, images, dispose } of loader.epoch()) {
      expect([indices, images.shape]).toEqual([[0, 2], [2, 3, 1, 8, 8]]); // prettier-ignore
      dispose();
    }
    expect(loader.skipped.map(({ index }) => index)).toEqual([1]);
  });

  it('refuses views that cannot be taken before it reads anything', () => {
    const dataset = new Videos(videos);
    const make = (clips: object) => () =>
      new ClipLoader({ dataset, batchSize: 1, clips: { ...still, frames: 2, ...clips } });
    expect(make({ temporalViews: 2 })).toThrow(/one view in time, and 2 are wanted/);
    expect(make({ frames: 0 })).toThrow(/frames must be a whole number/);
    expect(make({ crop: 'random_resized_crop', stride: -1 })).toThrow(/stride/);
  });
});

describe('moving shapes', () => {
  /** Middle and number of the pixels that differ between two frames: where the object is in either. */
  const object = (image: Image, other: Image): { x: number; y: number; area: number } => {
    let [x, y, area] = [0, 0, 0];
    for (let i = 0; i < image.width * image.height; i++) {
      const difference = [0, 1, 2].reduce(
        (sum, c) => sum + Math.abs((image.data[3 * i + c] ?? 0) - (other.data[3 * i + c] ?? 0)),
        0,
      );
      if (difference < 60) continue;
      x += i % image.width;
      y += Math.floor(i / image.width);
      area++;
    }
    return { x: x / area, y: y / area, area };
  };

  it('move as their class says', async () => {
    const dataset = new MovingShapes({ count: 64, frames: 5, clutter: 0, size: 64 });
    expect(dataset.classNames).toEqual(['left', 'right', 'up', 'down', 'grow', 'shrink', 'turn_left', 'turn_right']);
    const counts = dataset.classNames.map((_, label) => dataset.labels.filter((l) => l === label).length);
    expect(counts).toEqual(Array(8).fill(8));
    for (let i = 0; i < dataset.length; i++) {
      const name = dataset.classNames[dataset.labels[i] ?? 0] ?? '';
      const [first, second, middle, fourth, last] = (await dataset.load(i).read([0, 1, 2, 3, 4])) as [Image, Image, Image, Image, Image]; // prettier-ignore
      if (name === 'grow' || name === 'shrink') {
        const [early, late] = [object(first, second).area, object(fourth, last).area];
        expect(name === 'grow' ? late : early, `${name} ${i}`).toBeGreaterThan(name === 'grow' ? early : late);
      } else if (!name.startsWith('turn')) {
        const [a, b] = [object(first, middle), object(middle, last)];
        const [along, across] = name === 'left' || name === 'right' ? (['x', 'y'] as const) : (['y', 'x'] as const);
        expect(Math.sign(b[along] - a[along]), `${name} ${i}`).toBe(name === 'left' || name === 'up' ? -1 : 1);
        expect(Math.abs(b[across] - a[across])).toBeLessThan(Math.abs(b[along] - a[along]));
      }
    }
  });

  it('depend on number and seed alone, and every frame is there by itself', async () => {
    const [short, long] = [new MovingShapes({ count: 3 }), new MovingShapes({ count: 9 })];
    expect(await short.load(2).read([5, 1])).toEqual(await long.load(2).read([5, 1]));
    const all = await short.load(1).read(Array.from({ length: 16 }, (_, t) => t));
    expect((await short.load(1).read([7]))[0]).toEqual(all[7]);
    const other = new MovingShapes({ count: 3, seed: 1 });
    expect((await other.load(1).read([7]))[0]).not.toEqual(all[7]);
    await expect((async () => short.load(1).read([16]))()).rejects.toThrow(/index 16 is outside/);
  });

  it.each([
    [{ count: 1, frames: 1 }, /frames must be .* 2 to 1000, got 1/],
    [{ count: 1, size: 8 }, /size must be .* 32 to 1024/],
    [{ count: 1.5 }, /count/],
  ])('refuse %j', (options, message) => {
    expect(() => new MovingShapes(options)).toThrow(message);
  });
});
