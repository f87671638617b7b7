/** Segmentation, detection and video through the trainer and `evaluate`. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, describe, expect, it, vi } from 'vitest';
import { graft, type Adapter } from '../../lib/adapters/index.js';
import { native } from '../../lib/native/index.js';
import { SegmentationMeter } from '../../lib/metrics/index.js';
import { BatchNorm2d } from '../../lib/nn/index.js';
import { memory, noGrad, type Tensor } from '../../lib/tensor/index.js';
import type { Host } from '../../lib/models/index.js';
import {
  detectTask,
  evaluate,
  multiTask,
  readJsonl,
  segmentationLogits,
  segmentTask,
  Trainer,
  videoTask,
  type BatchSource,
  type FitResult,
  type Task,
  type TaskBatch,
  type TrainerOptions,
} from '../../lib/train/index.js';
import { ColorData, tinyNet } from './tiny.js';
import {
  boxData,
  clipData,
  COLORS,
  detector,
  lvModel,
  maskData,
  sceneData,
  segmenter,
  separator,
  SIDE,
  videoNet,
} from './dense.js';

const folder = mkdtempSync(join(tmpdir(), 'torchgraft-tasks-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
afterEach(() => vi.restoreAllMocks());
let folders = 0;
const newFolder = (): string => join(folder, String(folders++));

type Options<B extends TaskBatch> = Partial<TrainerOptions<B>>;

/** A task with what it needs: a fresh model with an adapter, data, and a run. */
interface Subject {
  readonly adapter: () => Adapter;
  readonly run: (adapter: Adapter, o?: Options<TaskBatch>, scored?: 'unscored') => Trainer<TaskBatch>;
  /** Whether it may be counted as learned. */
  readonly learned: (result: FitResult) => boolean;
}

function subject<B extends TaskBatch>(o: {
  readonly model: () => Host;
  readonly graft: (model: Host) => Adapter;
  readonly task: Task<B>;
  readonly train: BatchSource<B>;
  readonly val: BatchSource<B>;
  readonly lr: number;
  readonly learned: (result: FitResult) => boolean;
}): Subject {
  return {
    adapter: () => o.graft(o.model()),
    learned: o.learned,
    run: (adapter, more = {}, scored) => {
      const { model, backboneMode } = adapter;
      const { task, train, val } = o;
      const options: TrainerOptions<B> = {
        ...{ model, adapter, backboneMode, task, train, epochs: 3 },
        ...(scored === undefined && { val }),
        optimizer: { kind: 'adamw', lr: o.lr },
        ...(more as Options<B>),
      };
      return new Trainer(options);
    },
  };
}

const last = (result: FitResult) => result.history.at(-1)!;
const subjects: Readonly<Record<string, Subject>> = {
  segment: subject({
    model: segmenter,
    graft: (model) => graft(model, 'spm', { classes: COLORS + 1, width: 4 }, { seed: 1 }),
    task: segmentTask({ classes: COLORS + 1 }),
    train: maskData(16, 4),
    val: maskData(6, 4),
    lr: 0.02,
    learned: (result) => last(result).train.accuracy > 0.8,
  }),
  separation: subject({
    model: separator,
    graft: (model) => graft(model, 'lora', { rank: 2 }, { seed: 1 }),
    task: segmentTask({ classes: COLORS + 1 }),
    train: maskData(16, 4),
    val: maskData(6, 4),
    lr: 0.01,
    learned: (result) => last(result).train.loss < 0.9 * result.history[0]!.train.loss,
  }),
  detect: subject({
    model: detector,
    graft: (model) => graft(model, 'conv_adapter', { reduction: 2 }, { seed: 1 }),
    task: detectTask(),
    train: boxData(12, 4),
    val: boxData(5, 4),
    lr: 0.005,
    learned: (result) => last(result).train.loss < result.history[0]!.train.loss,
  }),
  multi: subject({
    model: lvModel,
    graft: (model) => graft(model, 'conv_adapter', { reduction: 2 }, { seed: 1 }),
    task: multiTask(),
    train: sceneData(12, 4),
    val: sceneData(5, 4),
    lr: 0.005,
    learned: (result) => last(result).train.loss < result.history[0]!.train.loss,
  }),
  video: subject({
    model: videoNet,
    graft: (model) => graft(model, 'st_adapter', {}, { head: { classes: 2 }, seed: 1 }),
    task: videoTask(),
    train: clipData(16, 4),
    val: clipData(6, 4, 2),
    lr: 0.02,
    learned: (result) => last(result).train.loss < result.history[0]!.train.loss,
  }),
};

const numbers = (tensor: Tensor): number[] => Array.from(tensor.detach().double().data() as Float64Array);
const state = (model: Host): [string, number[]][] => model.namedState().map(([name, t]) => [name, numbers(t)]);

describe.each(Object.entries(subjects))('%s', (id, { adapter: make, run, learned }) => {
  it('learns beside a backbone that does not change, heads in training mode', async () => {
    const adapter = make();
    const { model } = adapter;
    const before = new Map(state(model));
    const outDir = newFolder();
    const result = await run(adapter, { epochs: 4, outDir }).fit();
    expect(learned(result)).toBe(true);
    const changed = state(model).filter(([name, value]) => value.join() !== before.get(name)!.join());
    expect(changed.every(([name]) => model.isInClassifier(name))).toBe(true);
    if (id === 'segment') {
      const norms = model.namedModules().filter(([, module]) => module instanceof BatchNorm2d);
      const moved = changed.filter(([name]) => name.endsWith('running_mean')).length;
      expect(moved).toBe(norms.filter(([path]) => path.startsWith('decode_head')).length);
      expect(moved).toBeGreaterThan(0);
    }
    adapter.disable();
    for (const [name, value] of state(model)) expect(value, name).toEqual(before.get(name));
    const epochs = readJsonl(join(outDir, 'log.jsonl')).filter((record) => record['event'] === 'epoch');
    expect(epochs).toHaveLength(4);
    expect(Object.keys((epochs[0]!['val'] as { metrics: object }).metrics)[0]).toBe(
      { segment: 'mIoU', separation: 'mIoU', detect: 'AP', multi: 'mean', video: 'top-1' }[id],
    );
  });

  it('reads nothing back in a step, and one tensor of figures at a look', async () => {
    const adapter = make();
    const item = vi.spyOn(native, 'item');
    const data = vi.spyOn(native, 'toTypedArray');
    await run(adapter, { epochs: 1, logEvery: 1000 }, 'unscored').fit();
    const reads = data.mock.results.map(({ value }) => (value as Float64Array).length);
    expect(item).not.toHaveBeenCalled();
    // 4 steps (3 with boxes): their losses and, where they are counted, right answers.
    expect(reads).toEqual([id === 'detect' || id === 'multi' ? 3 : 8]);
  });

  it('goes on after a break with the same bits', async () => {
    const whole = make();
    const expected = await run(whole, { outDir: newFolder() }).fit();
    const outDir = newFolder();
    const broken = make();
    const stop = new AbortController();
    let steps = 0;
    const first = await run(broken, {
      outDir,
      logEvery: 1,
      signal: stop.signal,
      onEvent: (e) => {
        if (e.type === 'step' && ++steps === 5) stop.abort();
      },
    }).fit();
    expect(first.interrupted).toBe(true);
    const again = make();
    const resumed = await run(again, { outDir, resume: true }).fit();
    expect(resumed.history).toEqual(expected.history);
    expect(state(again.model)).toEqual(state(whole.model));
    expect(again.namedParameters().map(([, p]) => numbers(p))).toEqual(
      whole.namedParameters().map(([, p]) => numbers(p)),
    );
  });

  it('leaves no tensors behind', async () => {
    const tensors: number[] = [];
    const onEvent: NonNullable<Options<TaskBatch>['onEvent']> = (e) => {
      if (e.type === 'epoch') tensors.push(memory().tensors);
    };
    await run(make(), { epochs: 6, onEvent }).fit();
    expect(tensors.at(-1)).toBeLessThan(tensors[1]! + 30);
  });
});

describe('scores', () => {
  it('of classification hold a prediction for each image', async () => {
    const { predictions, confusion, correct, samples } = await evaluate(tinyNet(), new ColorData(10, 4));
    expect(predictions.map((p) => p.index).sort((a, b) => a - b)).toEqual([0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
    expect(predictions.filter((p) => p.label === p.predicted)).toHaveLength(correct);
    expect([samples, confusion.flat().reduce((a, b) => a + b)]).toEqual([10, 10]);
  });

  it('of segmentation are those of the meter, whole or by windows', async () => {
    const model = segmenter().eval();
    const task = segmentTask({ classes: COLORS + 1 });
    const whole = await evaluate(model, maskData(6, 4), { task });
    const meter = new SegmentationMeter(COLORS + 1);
    for await (const batch of maskData(6, 6).epoch(0)) {
      noGrad(() => meter.update(model.run(batch.images).argmax(1), batch.masks));
    }
    const { mIoU, aAcc } = meter.result();
    expect(whole).toMatchObject({ accuracy: aAcc, samples: 6, metrics: { mIoU } });
    expect(whole.segmentation.areas).toEqual(meter.result().areas);
    const windows = { crop: 16, stride: 8 };
    const slid = await evaluate(model, maskData(6, 4), { task: segmentTask({ classes: COLORS + 1, windows }) });
    expect(slid.loss).not.toBeCloseTo(whole.loss, 6);
    const one = await evaluate(model, maskData(6, 4), {
      task: segmentTask({ classes: COLORS + 1, windows: { crop: SIDE, stride: SIDE } }),
    });
    expect(one.loss).toBeCloseTo(whole.loss, 5);
    for await (const batch of maskData(1, 1).epoch(0)) {
      const plain = { run: (x: Tensor) => model.run(x) } as unknown as typeof model;
      const logits = noGrad(() => segmentationLogits(plain, batch.images, windows));
      expect(
        logits.allclose(
          noGrad(() => model.logits(batch.images, windows)),
          1e-4,
          1e-5,
        ),
      ).toBe(true);
    }
  });

  it('of video are means over the views', async () => {
    const model = videoNet();
    const once = await evaluate(model, clipData(6, 4), { task: videoTask() });
    const twice = await evaluate(model, clipData(6, 4, 2), { task: videoTask() });
    expect(twice.samples).toBe(6);
    expect(twice.loss).toBeCloseTo(once.loss, 5);
    expect(twice.classification.confusion).toEqual(once.classification.confusion);
    expect(once.metrics).toEqual({ 'top-1': once.accuracy, 'top-5': 1 });
  });

  it('of detection have neither loss nor accuracy', async () => {
    const result = await evaluate(detector(), boxData(5, 4), { task: detectTask() });
    expect(result).toMatchObject({ loss: NaN, accuracy: NaN, samples: 5 });
    expect(result.coco.AP).toBe(result.metrics!['AP']);
  });
});

it('a task brings its own loss, and knows its model', async () => {
  const o = { model: videoNet(), train: clipData(2, 2), epochs: 1, task: videoTask() };
  expect(() => new Trainer({ ...o, loss: {} })).toThrow(/loss belongs to classification/);
  const wrong = new Trainer({ ...o, train: boxData(2, 2), task: detectTask() });
  await expect(wrong.fit()).rejects.toThrow(/must be a Detector/);
});
