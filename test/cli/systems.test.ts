/** Representation Separation, DenseCLIP and LV-Adapter from the command line, and merging of models of all tasks. */
import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import sharp from 'sharp';
import { afterAll, describe, expect, it, vi } from 'vitest';
import { readSafetensors, writeSafetensors } from '../../lib/checkpoint/index.js';
import { groupTaskClasses, RoadShapes, type Image } from '../../lib/data/index.js';
import { clipTextOptions, ClipTextTransformer, createModel } from '../../lib/models/index.js';
import { manualSeed } from '../../lib/tensor/index.js';
import { json, succeed, torchgraft } from './process.js';

// Several processes for each test.
vi.setConfig({ testTimeout: 240_000, hookTimeout: 240_000 });

const folder = mkdtempSync(join(tmpdir(), 'torchgraft-cli-systems-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
const at = (...parts: string[]): string => join(folder, ...parts);

interface Result {
  readonly method: string;
  readonly score: string;
  readonly accuracy: number;
  readonly loss: number;
  readonly trainable: number;
  readonly total: number;
  readonly metrics: Record<string, number>;
  readonly adapter: string;
}
type Scores = Record<string, number> & { perClass: Record<string, { name: string }[]> };

const finetune = (out: string, model: string, ...more: string[]): string[] => [
  ...['finetune', model, '--out', at(out), '--epochs', '1', '--batch-size', '4', '--threads', '1', '--quiet'],
  ...more,
];
const evaluate = (target: string, ...more: string[]): Promise<Scores> =>
  json<Scores>('evaluate', target, '--threads', '1', ...more);

async function png(path: string, { data, width, height, channels }: Image): Promise<void> {
  const image = sharp(data as Uint8Array, { raw: { width, height, channels: channels as 1 | 3 } });
  await (channels === 1 ? image.toColorspace('b-w') : image).png().toFile(path);
}

/** Eight pictures of shapes on a road, as a folder with everything that is known of them. */
async function writeRoads(): Promise<string> {
  const roads = new RoadShapes({ count: 8, size: 48 });
  const { sem, driv, det } = groupTaskClasses(roads.classNames) as Record<'sem' | 'driv' | 'det', string[]>;
  for (const name of ['images', 'masks/sem', 'masks/driv']) mkdirSync(at('roads', name), { recursive: true });
  writeFileSync(at('roads', 'sem.txt'), sem.join('\n'));
  writeFileSync(at('roads', 'driv.txt'), driv.join('\n'));
  const images: object[] = [];
  const annotations: object[] = [];
  for (let i = 0; i < roads.length; i++) {
    const { image, masks, objects } = roads.load(i);
    await png(at('roads', 'images', `${i}.png`), image);
    for (const [task, mask] of Object.entries(masks)) await png(at('roads', 'masks', task, `${i}.png`), mask);
    images.push({ id: i, file_name: `${i}.png`, width: image.width, height: image.height });
    objects?.labels.forEach((category_id, k) => {
      const [x = 0, y = 0, x2 = 0, y2 = 0] = objects.boxes.subarray(4 * k, 4 * k + 4);
      annotations.push({ id: annotations.length, image_id: i, category_id, bbox: [x, y, x2 - x, y2 - y] });
    });
  }
  const categories = det.map((name, id) => ({ id, name }));
  writeFileSync(at('roads', 'objects.json'), JSON.stringify({ images, annotations, categories }));
  return at('roads');
}

it('representation separation trains all of it, scores, draws, resumes and becomes one file', async () => {
  const trained = await json<Result>(
    ...finetune('separation', 'vit_tiny_patch16_224', '--no-weights', '--image-size', '32', '--data', 'shapes:8'),
    ...['--task', 'segment', '--head', 'representation_separation', '--head-set', 'width=16', '--head-set', 'taps=3'],
  );
  expect(trained).toMatchObject({ method: 'full', score: 'mIoU' });
  expect(trained.trainable).toBe(trained.total);
  const scored = await evaluate(trained.adapter, '--data', 'shapes:8');
  expect(scored['mIoU']).toBeCloseTo(trained.accuracy, 6);
  expect(scored['loss']).toBeCloseTo(trained.loss, 5);
  const resumed = await json<Result>('finetune', '--resume', '--out', at('separation'), '--quiet');
  expect(resumed.loss).toBe(trained.loss);
  await succeed('merge', trained.adapter, '--out', at('separation.safetensors'), '--threads', '1');
  const merged = await evaluate(at('separation.safetensors'), '--data', 'shapes:8');
  expect(merged['loss']).toBeCloseTo(trained.loss, 5);
  const picture = at('picture.png');
  await png(picture, new RoadShapes({ count: 1, size: 48 }).load(0).image);
  const [seen] = await json<{ overlay: string; classes: { share: number }[] }[]>(
    ...['predict', at('separation.safetensors'), picture, '--out', at('seen'), '--threads', '1'],
  );
  expect(existsSync(seen!.overlay)).toBe(true);
  expect(seen!.classes.reduce((sum, c) => sum + c.share, 0)).toBeCloseTo(1, 6);
});

describe('LV-Adapter', () => {
  const tower = ['text.layers=1', 'text.width=16', 'text.heads=2'].flatMap((option) => ['--head-set', option]);
  const common = ['--image-size', '48', '--task', 'multi', '--head-channels', '16', ...tower];

  it('adapts beside a frozen trunk, then finetunes it from there; scores, draws, becomes one file', async () => {
    const data = await writeRoads();
    const adapted = await json<Result>(...finetune('adapt', 'resnet18', '--no-weights', '--data', data, ...common));
    expect(adapted).toMatchObject({ method: 'linear_probe', score: 'mean' });
    expect(Object.keys(adapted.metrics)).toEqual(['mean', 'mIoU sem', 'mIoU driv', 'AP', 'AP50']);
    const scored = await evaluate(adapted.adapter, '--data', data, '--split', 'val');
    expect(scored['mean']).toBeCloseTo(adapted.accuracy, 6);
    expect(scored['loss']).toBeCloseTo(adapted.loss, 5);
    expect(scored.perClass['driv']!.map(({ name }) => name)).toEqual(['direct', 'alternative', 'background']);
    expect((await evaluate(adapted.adapter, '--data', data))['samples']).toBe(8);

    const towers = ['--weights', join(adapted.adapter, 'backbone.safetensors')];
    const second = finetune('finetune', 'resnet18', '--data', data, ...towers, ...common, '--method', 'full');
    const text = ['--text-weights', join(adapted.adapter, 'text.safetensors')];
    // With a rate of 0, what was adapted is what there is.
    const started = await json<Result>(
      ...second,
      ...text,
      '--from',
      adapted.adapter,
      '--lr',
      '0',
      '--bn-stats',
      'frozen',
    );
    expect(started.trainable).toBeGreaterThan(adapted.trainable);
    const [first, then] = [adapted, started].map(
      ({ adapter }) => readSafetensors(join(adapter, 'adapter_model.safetensors')).tensors,
    );
    const learned = [...first!.keys()].filter((name) => name.startsWith('backbone.'));
    expect(learned.length).toBeGreaterThan(40);
    for (const name of learned) expect(then!.get(name)?.equal(first!.get(name)!), name).toBe(true);
    expect(readdirSync(started.adapter)).toContain('text.safetensors');
    expect((await evaluate(started.adapter, ...towers, '--data', data, '--split', 'val'))['loss']).toBeCloseTo(
      started.loss,
      5,
    );

    await succeed('merge', adapted.adapter, '--out', at('lv.safetensors'), '--threads', '1');
    const seen = await json<{ overlays: string[]; classes: Record<string, { class: string }[]> }[]>(
      ...['predict', at('lv.safetensors'), join(data, 'images', '0.png'), '--out', at('lv_seen'), '--threads', '1'],
    );
    expect(seen[0]!.overlays.map((path) => path.replace(/^.*[\\/]/, ''))).toEqual([
      '0.sem.png',
      '0.driv.png',
      '0.det.png',
    ]);
    expect(seen[0]!.overlays.every((path) => existsSync(path))).toBe(true);
    expect(Object.keys(seen[0]!.classes)).toEqual(['sem', 'driv']);
  });

  it('says which masks it does not know, and what reads the names', async () => {
    const data = at('strange');
    mkdirSync(join(data, 'masks', 'depth'), { recursive: true });
    mkdirSync(join(data, 'images'));
    writeFileSync(join(data, 'depth.txt'), 'near\nfar');
    for (const i of [0, 1]) {
      const { image, masks } = new RoadShapes({ count: 2, size: 32 }).load(i);
      await png(join(data, 'images', `${i}.png`), image);
      const near = { ...masks['driv']!, data: masks['driv']!.data.map((label) => Math.min(label, 1)) };
      await png(join(data, 'masks', 'depth', `${i}.png`), near);
    }
    const base = ['--task', 'multi', '--no-weights', '--image-size', '32'];
    const strange = await torchgraft(finetune('x', 'resnet18', ...base, '--data', data));
    expect(strange.stderr).toMatch(/lv_adapter has the tasks sem, driv, det; the data has 'depth'/);
    const weights = at('resnet18.safetensors');
    writeSafetensors(weights, createModel('resnet18').stateDict(), { format: 'pt' });
    const mute = await torchgraft(
      finetune('y', 'resnet18', '--task', 'multi', '--weights', weights, '--image-size', '32', '--data', 'shapes:4'),
    );
    expect(mute.stderr).toMatch(/holds no text tower of a CLIP.*--text-weights.*--head-set language=false/);
    const useless = await torchgraft(
      finetune('z', 'resnet18', '--no-weights', '--vocabulary', weights, '--data', 'shapes:shape:4'),
    );
    expect(useless.stderr).toMatch(/--vocabulary: nothing here reads the names of the classes/);
    expect([strange.code, mute.code, useless.code]).toEqual([2, 2, 2]);
  });
});

it('DenseCLIP takes both towers from one CLIP, and becomes one file', async () => {
  manualSeed(0);
  const text = new ClipTextTransformer(
    clipTextOptions.parse({ contextLength: 77, vocabSize: 514, width: 32, heads: 1, layers: 1, embedDim: 1024 }),
  );
  const under = (prefix: string, state: Map<string, unknown>) =>
    Array.from(state, ([name, tensor]) => [prefix + name, tensor] as const);
  const state = new Map([
    ...under('visual.', createModel('resnet50_clip', { numClasses: 0 }).stateDict()),
    ...under('text.', text.stateDict()),
  ]) as ReturnType<typeof text.stateDict>;
  const clip = at('clip.safetensors');
  writeSafetensors(clip, state, { format: 'pt' });
  const decoder = ['width=16', 'heads=2', 'layers=1'].flatMap((option) => ['--head-set', `contextDecoder.${option}`]);
  const trained = await json<Result>(
    ...finetune('dense_clip', 'resnet50_clip', '--weights', clip, '--image-size', '32', '--data', 'shapes:4'),
    ...['--task', 'segment', '--head', 'dense_clip', '--head-channels', '8', '--method', 'ssf', ...decoder],
  );
  expect(readdirSync(trained.adapter).sort()).toEqual(['adapter_config.json', 'adapter_model.safetensors']);
  const merged = at('dense_clip.safetensors');
  await succeed('merge', trained.adapter, '--weights', clip, '--out', merged, '--threads', '1');
  // The text tower came from the file, its positions cut off at the context.
  const { tensors } = readSafetensors(merged);
  expect(tensors.get('text_encoder.proj.weight')?.equal(text.proj.weight)).toBe(true);
  expect(tensors.get('text_encoder.positional_embedding')?.shape[0]).toBe(10 + 2 + 8); // 'background'
  expect((await evaluate(merged, '--data', 'shapes:4'))['loss']).toBeCloseTo(trained.loss, 4);

  // The detector has positions for larger images, and takes them from the same file.
  const detector = await json<Result>(
    ...finetune('dense_clip_boxes', 'resnet50_clip', '--weights', clip, '--image-size', '32', '--data', 'shapes:4'),
    ...[
      '--task',
      'detect',
      '--head',
      'dense_clip_retinanet',
      '--head-channels',
      '8',
      '--method',
      'linear_probe',
      ...decoder,
    ],
  );
  expect(detector.score).toBe('AP');
  const boxes = await evaluate(detector.adapter, '--weights', clip, '--data', 'shapes:4');
  expect(boxes['AP']).toBeCloseTo(detector.accuracy, 6);
});

describe('merge', () => {
  const base = ['--no-weights', '--image-size', '32', '--data', 'shapes:8', '--head-channels', '8'];
  it.each([
    ['segment', 'ssf', ['--task', 'segment', '--head', 'fcn'], 'mIoU'],
    ['detect', 'lora', ['--task', 'detect', '--head', 'retinanet'], 'AP'],
    ['video', 'lora', ['--task', 'video', '--frames', '2'], 'top-1'],
  ])('%s with %s: what the file scores is what the adapter scored', async (task, method, flags, figure) => {
    const given = task === 'video' ? base.slice(0, -2) : base;
    const { adapter, loss } = await json<Result>(
      ...finetune(`merge_${task}`, 'cifar_resnet20', ...given, ...flags, '--method', method),
    );
    const file = at(`${task}.safetensors`);
    const report = await json<{ outputChange: { relative: number }; merged: string[] }>(
      ...['merge', adapter, '--out', file, '--probe', '--threads', '1'],
    );
    expect(report.merged.length).toBeGreaterThan(5);
    expect(report.outputChange.relative).toBeLessThan(1e-4);
    const [before, after] = [await evaluate(adapter, '--data', 'shapes:8'), await evaluate(file, '--data', 'shapes:8')];
    expect(after[figure]).toBeCloseTo(before[figure]!, 3);
    if (loss !== null) expect(after['loss']).toBeCloseTo(before['loss']!, 4);
  });

  it('says why a method stays beside its backbone, and that other names do not fit', async () => {
    const { adapter } = await json<Result>(
      ...finetune(
        'beside',
        'cifar_resnet20',
        ...base,
        '--task',
        'segment',
        '--head',
        'fcn',
        '--method',
        'conv_adapter',
      ),
    );
    const refused = await torchgraft(['merge', adapter, '--out', at('no.safetensors')]);
    expect(refused.stderr).toMatch(
      /cannot be merged: at backbone\..* a parallel ConvAdapter is not a change of weights/,
    );
    const named = await torchgraft(['merge', adapter, '--out', at('no.safetensors'), '--names', 'timm']);
    expect(named.stderr).toMatch(/--names timm: a model that was trained to segment has its own names only/);
    expect([refused.code, named.code, existsSync(at('no.safetensors'))]).toEqual([1, 2, false]);
  });
});
