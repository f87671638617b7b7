/** Segmentation, detection and video from the command line, each from training to pictures, in processes of their own. */
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import sharp from 'sharp';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { DetectionShapes, MovingShapes, SegmentationShapes } from '../../lib/data/index.js';
import { classColor } from '../../lib/cli/overlay.js';
import { json, succeed, torchgraft } from './process.js';

// Several processes for each test.
vi.setConfig({ testTimeout: 240_000, hookTimeout: 240_000 });

const folder = mkdtempSync(join(tmpdir(), 'torchgraft-cli-tasks-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
const at = (...parts: string[]): string => join(folder, ...parts);

interface Result {
  readonly task: string;
  readonly score: string;
  readonly accuracy: number;
  readonly loss: number | null;
  readonly samples: number;
  readonly metrics: Record<string, number>;
  readonly adapter: string;
  readonly options: Record<string, unknown>;
}

const base = ['--no-weights', '--image-size', '32', '--threads', '1', '--quiet'];
const finetune = (out: string, model: string, ...more: string[]): string[] => [
  ...['finetune', model, ...base, '--out', at(out), '--epochs', '1'],
  ...more,
];

async function png(path: string, data: Uint8Array, size: number, channels: 1 | 3): Promise<void> {
  const image = sharp(data, { raw: { width: size, height: size, channels } });
  await (channels === 1 ? image.toColorspace('b-w') : image).png().toFile(path);
}

/** A folder of pictures with masks and with COCO's annotations, and one of videos as frames. */
async function makeFolders(): Promise<void> {
  const size = 32;
  const masks = new SegmentationShapes({ count: 8, size });
  const boxes = new DetectionShapes({ count: 8, size });
  for (const name of ['images', 'masks']) mkdirSync(at('scenes', name), { recursive: true });
  writeFileSync(at('scenes', 'classes.txt'), masks.classNames.join('\n'));
  const images: object[] = [];
  const annotations: object[] = [];
  for (let i = 0; i < 8; i++) {
    const { image, mask } = masks.load(i);
    await png(at('scenes', 'images', `${i}.png`), image.data as Uint8Array, size, 3);
    await png(at('scenes', 'masks', `${i}.png`), mask.data as Uint8Array, size, 1);
    images.push({ id: i + 1, file_name: `${i}.png`, width: size, height: size });
    const { labels, areas, boxes: corners } = boxes.load(i).objects;
    labels.forEach((label, k) => {
      const [x = 0, y = 0, x2 = 0, y2 = 0] = corners.subarray(4 * k, 4 * k + 4);
      const bbox = [x, y, x2 - x, y2 - y];
      annotations.push({
        ...{ id: annotations.length + 1, image_id: i + 1, category_id: label + 1, bbox, area: areas[k], iscrowd: 0 },
      });
    });
  }
  const categories = boxes.classNames.map((name, i) => ({ id: i + 1, name }));
  writeFileSync(at('scenes', 'objects.json'), JSON.stringify({ images, annotations, categories }));
  const videos = new MovingShapes({ count: 16, frames: 4, size });
  for (let i = 0; i < videos.length; i++) {
    const clip = at('videos', videos.classNames[videos.labels[i]!]!, `clip_${i}`);
    mkdirSync(clip, { recursive: true });
    const frames = await videos.load(i).read([0, 1, 2, 3]);
    for (const [t, frame] of frames.entries()) await png(join(clip, `f${t}.png`), frame.data as Uint8Array, size, 3);
  }
}

beforeAll(makeFolders);

describe('segment', () => {
  let trained: Result;
  beforeAll(async () => {
    trained = await json<Result>(
      ...finetune('seg', 'cifar_resnet20', '--task', 'segment', '--head', 'fpn', '--head-channels', '8'),
      ...['--method', 'conv_adapter', '--data', at('scenes'), '--batch-size', '4', '--resize', 'short'],
    );
  });

  it('trains on a folder and scores what it has saved', async () => {
    expect(trained).toMatchObject({ task: 'segment', score: 'mIoU', samples: 2 });
    expect(trained.accuracy).toBe(trained.metrics['mIoU']);
    const html = readFileSync(at('seg', 'report.html'), 'utf8');
    expect(html).toContain('mIoU');
    expect(html).toContain('crescent');
    const again = await json<{ mIoU: number; loss: number; perClass: { name: string; pixels: number }[] }>(
      ...['evaluate', trained.adapter, '--data', at('scenes'), '--split', 'val', '--threads', '1'],
    );
    expect(again.mIoU).toBeCloseTo(trained.accuracy, 6);
    expect(again.loss).toBeCloseTo(trained.loss!, 5);
    expect(again.perClass[0]).toMatchObject({ name: 'background' });
    const all = await succeed('evaluate', trained.adapter, '--data', at('scenes'), '--windows', '24,16');
    expect(all).toMatch(/^mIoU [\d.]+ % .*loss/);
    expect(all).toMatch(/class +pixels +IoU/);
  });

  it('writes pictures of what it sees', async () => {
    const answers = await json<{ overlay: string; classes: { class: string; share: number }[] }[]>(
      ...['predict', trained.adapter, at('scenes', 'images'), '--out', at('seen'), '--threads', '1'],
    );
    expect(answers).toHaveLength(8);
    const [first] = answers;
    expect(first!.classes.reduce((sum, c) => sum + c.share, 0)).toBeCloseTo(1, 6);
    const { data, info } = await sharp(first!.overlay).raw().toBuffer({ resolveWithObject: true });
    // 8 times 32 pixels, and the legend below.
    expect(info.width).toBe(256);
    expect(info.height).toBe(256 + first!.classes.length * 9);
    const legend = data.subarray(3 * 256 * 256);
    const swatch = legend.subarray(3 * (2 * 256 + 2), 3 * (2 * 256 + 3));
    const { classNames } = new SegmentationShapes({ count: 1 });
    expect([...swatch]).toEqual([...classColor(classNames.indexOf(first!.classes[0]!.class))]);
  });

  it('resumes bit for bit, task included', async () => {
    const resumed = await json<Result>('finetune', '--resume', '--out', at('seg'), '--quiet');
    expect(resumed.loss).toBe(trained.loss);
    const other = await torchgraft(['finetune', '--resume', '--out', at('seg'), '--head', 'fcn']);
    expect(other).toMatchObject({ code: 2 });
    expect(other.stderr).toMatch(/leave out head/);
  });

  it.each(['setr_pup', 'segmenter', 'upernet', 'fcn'])('has the head %s on a transformer', async (head) => {
    const { adapter, accuracy, options } = await json<Result>(
      ...finetune(`vit_${head}`, 'vit_tiny_patch16_224', '--task', 'segment', '--head', head),
      ...['--head-channels', '12', '--data', 'shapes:8', '--batch-size', '4', '--method', 'spm', '--set', 'width=4'],
    );
    expect(options).toMatchObject({ classes: 9, width: 4 });
    const again = await json<{ mIoU: number }>('evaluate', adapter, '--data', 'shapes:8', '--threads', '1');
    expect(again.mIoU).toBeCloseTo(accuracy, 6);
  });
});

describe('detect', () => {
  const train = (out: string, head: string, ...more: string[]): Promise<Result> =>
    json<Result>(
      ...finetune(out, 'cifar_resnet20', '--task', 'detect', '--head', head, '--head-channels', '8'),
      ...['--method', 'conv_adapter', '--batch-size', '4', ...more],
    );

  it.each([
    ['faster_rcnn', []],
    ['retinanet', ['--head-set', 'neck=horfpn']],
  ])('%s %j trains on COCO files, scores, and draws boxes', async (head, more) => {
    const trained = await train(head, head, '--data', at('scenes', 'objects.json'), ...more);
    expect(trained).toMatchObject({ task: 'detect', score: 'AP', loss: null, samples: 2 });
    const again = await json<{ AP: number; perClass: { name: string }[] }>(
      ...['evaluate', trained.adapter, '--data', at('scenes', 'objects.json'), '--split', 'val', '--threads', '1'],
    );
    expect(again.AP).toBeCloseTo(trained.accuracy, 6);
    expect(again.perClass.map(({ name }) => name)).toContain('crescent');
    const whole = await succeed('evaluate', trained.adapter, '--data', at('scenes', 'objects.json'));
    expect(whole).toMatch(/^AP [\d.]+ %/);
    const answers = await json<{ overlay: string; objects: { class: string; score: number; box: number[] }[] }[]>(
      ...['predict', trained.adapter, at('scenes', 'images', '0.png'), '--out', at(`${head}_seen`)],
      ...['--min-score', '0.001', '--threads', '1'],
    );
    expect(existsSync(answers[0]!.overlay)).toBe(true);
    for (const { score, box } of answers[0]!.objects) {
      expect(score).toBeGreaterThanOrEqual(0.001);
      expect(box.every((side) => side >= 0 && side <= 32)).toBe(true);
    }
  });
});

describe('video', () => {
  it('trains on folders of frames, scores with views, and names likely classes', async () => {
    const trained = await json<Result>(
      ...finetune('video', 'vit_tiny_patch16_224', '--task', 'video', '--frames', '3', '--frame-stride', '1'),
      ...['--method', 'st_adapter', '--set', 'hidden=8', '--data', at('videos'), '--batch-size', '4', '--no-flip'],
    );
    expect(trained).toMatchObject({ task: 'video', score: 'top-1', samples: 8 });
    const evaluate = ['evaluate', trained.adapter, '--data', at('videos'), '--split', 'val', '--threads', '1'];
    const once = await json<{ 'top-1': number; loss: number }>(...evaluate);
    expect(once['top-1']).toBeCloseTo(trained.accuracy, 6);
    expect(once.loss).toBeCloseTo(trained.loss!, 5);
    const often = await json<{ loss: number; samples: number }>(...evaluate, '--views', '2x3');
    expect(often.samples).toBe(8);
    expect(often.loss).not.toBe(once.loss);
    const clip = at('videos', 'left', `clip_${new MovingShapes({ count: 16 }).labels.indexOf(0)}`);
    const [answer] = await json<{ path: string; top: { class: string; probability: number }[] }[]>(
      ...['predict', trained.adapter, clip, '--top-k', '2'],
    );
    expect(answer!.path).toBe(clip);
    expect(answer!.top).toHaveLength(2);
  });
});

describe('mistakes', () => {
  it.each([
    [['--task', 'segment', '--head', 'yolo'], /--head: for --task segment there are upernet, .*'yolo' is none/],
    [['--task', 'classify', '--head', 'fpn'], /--head does not belong to --task classify/],
    [['--task', 'detect', '--frames', '8'], /--frames does not belong to --task detect/],
    [['--task', 'video', '--views', '2x3'], /several clips in time need --frame-stride/],
    [['--task', 'video', '--views', '2x2'], /--views: expected views in time x views in space/],
    [['--task', 'segment', '--head', 'segmenter', '--data', 'shapes:4'], /segmenter reads a plain vision transformer/],
    [['--task', 'segment', '--head', 'fcn', '--head-set', 'a=1'], /the head fcn has no options/],
    [['--task', 'segment', '--head-set', 'neck=horfpn'], /the head upernet has the option fusion and no 'neck'/],
    [['--task', 'detect', '--head-set', 'neck=x', '--data', 'shapes:4'], /no pyramid 'x'.*fpn, horfpn/],
    [['--task', 'segment', '--data', '/nowhere'], /\/nowhere/],
  ])('%j ends with 2 and says what is wrong', async (args, message) => {
    const { code, stderr } = await torchgraft(
      finetune(`x${args.join()}`, 'cifar_resnet20', '--data', 'shapes:4', ...args),
    );
    expect(stderr).toMatch(message);
    expect(code).toBe(2);
  });

  it('a mask beyond the classes is named', async () => {
    mkdirSync(at('bad'), { recursive: true });
    for (const name of ['images', 'masks']) mkdirSync(at('bad', name), { recursive: true });
    writeFileSync(at('bad', 'classes.txt'), 'one\ntwo');
    for (let i = 0; i < 8; i++) {
      await png(at('bad', 'images', `${i}.png`), new Uint8Array(32 * 32 * 3), 32, 3);
      await png(at('bad', 'masks', `${i}.png`), new Uint8Array(32 * 32).fill(i < 6 ? i % 2 : i), 32, 1);
    }
    const { code, stderr } = await torchgraft(
      finetune('bad_run', 'cifar_resnet20', '--task', 'segment', '--head', 'fcn', '--data', at('bad')),
    );
    expect(code).toBe(1);
    expect(stderr).toMatch(/mask .*[67]\.png has the number [67]/);
    // A mask without an image is found before any is read.
    await png(at('bad', 'masks', 'alone.png'), new Uint8Array(32 * 32), 32, 1);
    const { skipped } = await json<{ skipped: number }>(
      ...finetune('skipping', 'cifar_resnet20', '--task', 'segment', '--head', 'fcn', '--head-channels', '8'),
      ...['--data', at('bad'), '--skip-broken', '--batch-size', '4', '--val-fraction', '0.5'],
    );
    expect(skipped).toBe(3);
  });
});
