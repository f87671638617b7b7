/** Small data and models of the dense tasks, in memory: bright squares, whose color is their class. */
import { EncoderDecoder, FasterRcnn, FpnHead, AnchorGenerator } from '../../lib/heads/index.js';
import { clipTextOptions, ClipTextTransformer, createCustomModel, type Backbone } from '../../lib/models/index.js';
import { LvMultiTask, RepresentationSeparation } from '../../lib/systems/index.js';
import { fromTypedArray, manualSeed, scope, tensor, keep, type Tensor } from '../../lib/tensor/index.js';
import type { BatchSource, BoxBatch, ClipBatch, MaskBatch, SceneBatch, TaskBatch } from '../../lib/train/index.js';
import { randomize } from '../models/tiny.js';
import { uniform } from './tiny.js';

export const SIDE = 32;
/** Colors of the squares; class 0 of masks is the background. */
export const COLORS = 2;

interface Scene {
  readonly pixels: Float32Array;
  readonly mask: BigInt64Array;
  readonly box: readonly [number, number, number, number];
  readonly color: number;
}

/** A square of 10 to 15 pixels on noise; `shift` moves it to the right. */
function scene(index: number, shift = 0): Scene {
  const random = uniform(index + 1);
  const size = 10 + Math.floor(6 * random());
  const x = Math.floor((SIDE - size - 8) * random()) + shift;
  const y = Math.floor((SIDE - size) * random());
  const color = index % COLORS;
  const plane = SIDE * SIDE;
  const pixels = new Float32Array(3 * plane).map(() => 0.3 * random());
  const mask = new BigInt64Array(plane);
  for (let row = y; row < y + size; row++) {
    for (let column = x; column < x + size; column++) {
      pixels[color * plane + row * SIDE + column] = 1;
      mask[row * SIDE + column] = BigInt(color + 1);
    }
  }
  mask.fill(255n, 0, 4); // a corner that does not count
  return { pixels, mask, box: [x, y, x + size, y + size], color };
}

function joined<T extends Float32Array | BigInt64Array>(like: T, parts: readonly T[]): T {
  const all = like as Float32Array;
  parts.forEach((part, i) => all.set(part as Float32Array, i * part.length));
  return like;
}

/** Batches of numbered samples, the same in every epoch. */
class Source<B extends TaskBatch> implements BatchSource<B> {
  readonly length: number;

  constructor(
    readonly samples: number,
    private readonly size: number,
    private readonly make: (indices: readonly number[]) => B,
  ) {
    this.length = Math.ceil(samples / size);
  }

  // eslint-disable-next-line @typescript-eslint/require-await -- the interface is asynchronous, these samples are not
  async *epoch(_epoch: number, from = 0): AsyncGenerator<B> {
    for (let b = from; b < this.length; b++) {
      const first = b * this.size;
      const count = Math.min(this.size, this.samples - first);
      yield scope(() => this.make(Array.from({ length: count }, (_, i) => first + i)));
    }
  }
}

const imagesOf = (scenes: readonly Scene[]): Tensor =>
  keep(
    fromTypedArray(
      joined(
        new Float32Array(scenes.length * 3 * SIDE * SIDE),
        scenes.map((s) => s.pixels),
      ),
      [scenes.length, 3, SIDE, SIDE],
    ),
  );

export const maskData = (samples: number, size: number): BatchSource<MaskBatch> =>
  new Source(samples, size, (indices) => {
    const scenes = indices.map((i) => scene(i));
    const all = joined(
      new BigInt64Array(scenes.length * SIDE * SIDE),
      scenes.map((s) => s.mask),
    );
    return { images: imagesOf(scenes), masks: keep(fromTypedArray(all, [scenes.length, SIDE, SIDE])), indices };
  });

/** Every third image has a crowd around all of it beside its square. */
export const boxData = (samples: number, size: number): BatchSource<BoxBatch> =>
  new Source(samples, size, (indices) => {
    const scenes = indices.map((i) => scene(i));
    const images = scenes.map((s) => keep(fromTypedArray(s.pixels, [3, SIDE, SIDE])));
    const targets = scenes.map((s, i) => {
      const isCrowded = (indices[i] ?? 0) % 3 === 0;
      const boxes = [[...s.box], ...(isCrowded ? [[0, 0, SIDE, SIDE]] : [])];
      return {
        boxes: keep(tensor(boxes)),
        labels: keep(
          tensor(
            boxes.map(() => s.color + 1),
            { dtype: 'int64' },
          ),
        ),
        crowds: keep(tensor(boxes.map((_, k) => k > 0))),
      };
    });
    return { images, targets, indices };
  });

/** The squares' classes, whether the picture's left half is meant (`driv`), and boxes. */
export const sceneData = (samples: number, size: number): BatchSource<SceneBatch> =>
  new Source(samples, size, (indices) => {
    const scenes = indices.map((i) => scene(i));
    const half = (s: Scene): BigInt64Array =>
      s.mask.map((label, i) => (label === 0n ? BigInt(i % SIDE < SIDE / 2) : 2n));
    const mask = (numbers: BigInt64Array): Tensor => keep(fromTypedArray(numbers, [SIDE, SIDE]));
    return {
      images: scenes.map((s) => keep(fromTypedArray(s.pixels, [3, SIDE, SIDE]))),
      masks: {
        sem: scenes.map((s) => mask(s.mask)),
        driv: scenes.map((s) => mask(half(s).map((label) => (label === 255n ? 2n : label)))),
      },
      targets: scenes.map((s) => ({
        boxes: keep(tensor([[...s.box]])),
        labels: keep(tensor([s.color], { dtype: 'int64' })),
        crowds: keep(tensor([false])),
      })),
      indices,
    };
  });

/** Representation separation behind a small transformer. */
export function separator(): RepresentationSeparation {
  manualSeed(7);
  const sizes = { imgSize: SIDE, patchSize: 4, embedDim: 24, depth: 4, numHeads: 3, numClasses: 2 };
  return new RepresentationSeparation(createCustomModel('vit', sizes), { classes: COLORS + 1, width: 16 });
}

/** LV-Adapter on a small residual network, with a text tower of its own. */
export function lvModel(): LvMultiTask {
  manualSeed(6);
  const text = clipTextOptions.parse({ contextLength: 7, vocabSize: 20, width: 8, heads: 2, layers: 1, embedDim: 6 });
  const model = new LvMultiTask(body(), new ClipTextTransformer(text), {
    tasks: { sem: COLORS + 1, driv: 3, det: COLORS },
    ...{ channels: 16, heads: 2, promptLength: 3, headChannels: 8, size: SIDE, anchor: 8 },
  });
  const tokens = (classes: number): Tensor =>
    tensor(
      Array.from({ length: classes }, (_, k) => [18, k, 19, 0]),
      { dtype: 'int64' },
    );
  return model.setClasses({ sem: tokens(COLORS + 1), driv: tokens(3), det: tokens(COLORS) });
}

const FRAMES = 4;

/** Squares that stand (class 0) or move to the right (class 1); with `views`, each clip so many times. */
export const clipData = (samples: number, size: number, views = 1): BatchSource<ClipBatch> =>
  new Source(samples, size, (indices) => {
    const clips = indices.flatMap((i) => {
      const frames = Array.from({ length: FRAMES }, (_, t) => scene(2 * i, i % 2 === 1 ? 2 * t : 4));
      const plane = SIDE * SIDE;
      const clip = new Float32Array(3 * FRAMES * plane);
      for (let c = 0; c < 3; c++) {
        frames.forEach((frame, t) =>
          clip.set(frame.pixels.subarray(c * plane, (c + 1) * plane), (c * FRAMES + t) * plane),
        );
      }
      return Array.from({ length: views }, () => clip);
    });
    const all = joined(new Float32Array(clips.length * 3 * FRAMES * SIDE * SIDE), clips);
    return {
      images: keep(fromTypedArray(all, [clips.length, 3, FRAMES, SIDE, SIDE])),
      labels: keep(
        tensor(
          indices.map((i) => i % 2),
          { dtype: 'int64' },
        ),
      ),
      views,
      indices,
    };
  });

function body(): Backbone {
  const channels = [8, 10, 12, 14];
  const options = { block: 'basic', layers: [1, 1, 1, 1], channels, stemChannels: 8, numClasses: 2 };
  return randomize(createCustomModel('resnet', { ...options, zeroInitLast: false }));
}

export function segmenter(): EncoderDecoder {
  manualSeed(3);
  const backbone = body().toTrunk();
  const inChannels = backbone.featureLevels.map((level) => level.channels);
  const decodeHead = new FpnHead({ inChannels, channels: 8, numClasses: COLORS + 1, dropout: 0.1 });
  return new EncoderDecoder({ backbone, decodeHead, average: 'valid' });
}

export function detector(): FasterRcnn {
  manualSeed(4);
  return new FasterRcnn({
    body: body().toTrunk(),
    numClasses: COLORS + 1,
    input: { minSize: SIDE, maxSize: SIDE },
    pyramid: { outChannels: 16 },
    anchors: new AnchorGenerator([[8], [12], [16], [24], [32]]),
    boxHead: { kind: 'mlp', width: 32 },
  });
}

export function videoNet(): Backbone {
  manualSeed(5);
  const options = { imgSize: SIDE, patchSize: 8, embedDim: 24, depth: 2, numHeads: 3, numClasses: 2 };
  return createCustomModel('vit', options);
}
