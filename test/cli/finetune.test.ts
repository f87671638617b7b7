/** Training, scoring, predicting and merging from the command line, on a folder of small images. */
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import sharp from 'sharp';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { uniform } from '../train/tiny.js';
import { json, succeed, torchgraft } from './process.js';

const folder = mkdtempSync(join(tmpdir(), 'torchgraft-cli-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
const at = (...parts: string[]): string => join(folder, ...parts);
const photos = at('photos');
const CLASSES = ['blue', 'green', 'red'];

/** 40 x 30 images of noise in which the color of the class is bright. */
async function makeImages(root: string, perClass: number, seed: number): Promise<void> {
  const random = uniform(seed);
  for (const [c, name] of CLASSES.entries()) {
    mkdirSync(join(root, name), { recursive: true });
    for (let i = 0; i < perClass; i++) {
      const data = new Uint8Array(40 * 30 * 3).map((_, p) => 120 * random() + (p % 3 === 2 - c ? 130 : 0));
      await sharp(data, { raw: { width: 40, height: 30, channels: 3 } })
        .png()
        .toFile(join(root, name, `${i}.png`));
    }
  }
}

const common = [
  'cifar_resnet20',
  '--no-weights',
  '--data',
  photos,
  '--epochs',
  '2',
  '--batch-size',
  '8',
  '--threads',
  '1',
  '--quiet',
];
const finetune = (out: string, ...more: string[]): string[] => ['finetune', ...common, '--out', out, ...more];

interface Result {
  readonly accuracy: number;
  readonly loss: number;
  readonly trainable: number;
  readonly adapter: string;
  readonly report: string;
  readonly skipped: number;
}

let trained: Result;
beforeAll(async () => {
  await makeImages(join(photos, 'train'), 16, 1);
  await makeImages(join(photos, 'val'), 5, 2);
  trained = await json<Result>(...finetune(at('lora'), '--method', 'lora', '--set', 'rank=2', '--lr', '0.02'));
});

describe('finetune', () => {
  it('writes adapter folder, state, log, report and result', () => {
    expect(trained.accuracy).toBeGreaterThan(0.6);
    expect(trained.trainable).toBeLessThan(20_000);
    for (const name of [
      'adapter/adapter_config.json',
      'last.safetensors',
      'best.safetensors',
      'log.jsonl',
      'report.html',
      'run.json',
      'result.json',
    ])
      expect(existsSync(at('lora', name)), name).toBe(true);
    const html = readFileSync(trained.report, 'utf8');
    expect(html).toContain('Confusion matrix');
    expect(html).not.toMatch(/https?:\/\/|<script/);
    const settings = JSON.parse(readFileSync(at('lora', 'run.json'), 'utf8')) as Record<string, unknown>;
    expect(settings).toMatchObject({ method: 'lora', options: { rank: 2 }, bnStats: 'frozen', threads: 1, seed: 0 });
  });

  it('does not write over a run or into a folder with other things', async () => {
    const again = await torchgraft(finetune(at('lora')));
    expect(again).toMatchObject({ code: 2 });
    expect(again.stderr).toMatch(/holds a run already: --resume goes on with it, --overwrite starts anew/);
    const other = await torchgraft(finetune(photos));
    expect(other).toMatchObject({ code: 2 });
    expect(other.stderr).toMatch(/is not empty and holds no run/);
  });

  it('names step, learning rate and images when the loss is lost', async () => {
    const { code, stderr } = await torchgraft(
      finetune(at('nan'), '--method', 'full', '--lr', '1e30', '--warmup-epochs', '0'),
    );
    expect(code).toBe(1);
    expect(stderr).toMatch(
      /the loss became (NaN|Infinity) at step \d+ \(learning rate [\d.]+e\+\d+\), batch: .*photos\/train\/\w+\/\d+\.png/,
    );
    expect(stderr).not.toMatch(/^\s+at /m);
  });

  it('names a broken image, or leaves it out and counts it', async () => {
    const broken = at('broken');
    await makeImages(broken, 8, 3);
    writeFileSync(join(broken, 'red', 'torn.png'), readFileSync(join(broken, 'red', '0.png')).subarray(0, 60));
    const args = [
      'finetune',
      'cifar_resnet20',
      '--no-weights',
      '--data',
      broken,
      '--method',
      'linear_probe',
      '--epochs',
      '1',
      '--quiet',
    ];
    const strict = await torchgraft([...args, '--out', at('strict')]);
    expect(strict).toMatchObject({ code: 1 });
    expect(strict.stderr).toContain('torn.png');
    const result = await json<Result>(...args, '--skip-broken', '--out', at('lenient'));
    expect(result.skipped).toBe(1);
  });

  it('saves on Ctrl-C, exits with 130, and resumes to the same weights', async () => {
    const long = ['--method', 'ssf', '--epochs', '5', '--keep', 'last', '--save-every', '1'];
    const whole = await json<Result>(...finetune(at('whole'), ...long));
    let isSent = false;
    const stopped = await torchgraft(finetune(at('stopped'), ...long), (child) => {
      const watch = setInterval(() => {
        if (!existsSync(at('stopped', 'last.safetensors')) || isSent) return;
        isSent = true;
        clearInterval(watch);
        child.kill('SIGINT');
      }, 5);
    });
    expect(stopped).toMatchObject({ code: 130, stdout: '' });
    expect(stopped.stderr).toContain('--resume --out');
    const mixed = await torchgraft(finetune(at('stopped'), ...long, '--resume', '--lr', '0.5'));
    expect(mixed).toMatchObject({ code: 2 });
    expect(mixed.stderr).toMatch(/other settings: lr was 0\.03, is 0\.5/);
    const resumed = await json<Result>('finetune', '--resume', '--out', at('stopped'), '--quiet');
    expect(resumed.loss).toBe(whole.loss);
    const tensors = (run: string): Buffer => readFileSync(at(run, 'adapter', 'adapter_model.safetensors'));
    expect(tensors('stopped').equals(tensors('whole'))).toBe(true);
  }, 180_000);

  it('prints progress as lines and a summary for people', async () => {
    const { code, stdout, stderr } = await torchgraft(
      finetune(at('people'), '--method', 'linear_probe').filter((a) => a !== '--quiet'),
    );
    expect(code).toBe(0);
    expect(stderr).toMatch(/epoch 1\/2 {2}train loss [\d.]+ acc [\d.]+% {2}val loss/);
    expect(stderr).not.toMatch(/never trained/);
    expect(stdout).toMatch(/linear_probe on cifar_resnet20: 195 of [\d,]+ parameters trained/);
    expect(stdout).toContain(at('people', 'report.html'));
  });
});

describe('evaluate', () => {
  it('gives the same number in a new process', async () => {
    const result = await json<Result & { confusion: number[][]; perClass: { name: string; recall: number }[] }>(
      'evaluate', trained.adapter, '--data', join(photos, 'val'), '--threads', '1', '--batch-size', '8',
    ); // prettier-ignore
    expect(result.accuracy).toBe(trained.accuracy);
    expect(result.loss).toBe(trained.loss);
    expect(result.perClass.map((c) => c.name)).toEqual(CLASSES);
    expect(result.confusion.flat().reduce((a, b) => a + b)).toBe(15);
    const split = await json<Result>(
      'evaluate',
      trained.adapter,
      '--data',
      photos,
      '--split',
      'val',
      '--threads',
      '1',
      '--batch-size',
      '8',
    );
    expect(split.loss).toBe(trained.loss);
  });

  it('refuses images of other classes', async () => {
    mkdirSync(at('strange', 'violet'), { recursive: true });
    await sharp({ create: { width: 9, height: 9, channels: 3, background: '#808' } })
      .png()
      .toFile(at('strange', 'violet', 'a.png'));
    const { code, stderr } = await torchgraft(['evaluate', trained.adapter, '--data', at('strange')]);
    expect(code).toBe(2);
    expect(stderr).toMatch(/no known classes: "violet"; the classes are "blue", "green", "red"/);
  });
});

describe('predict', () => {
  it('names the likeliest classes of files and folders', async () => {
    const file = join(photos, 'val', 'red', '0.png');
    const rows = await json<{ path: string; top: { class: string; probability: number }[] }[]>(
      'predict', trained.adapter, file, join(photos, 'val', 'blue'), '--top-k', '2',
    ); // prettier-ignore
    expect(rows).toHaveLength(6);
    expect(rows[0]!.path).toBe(file);
    for (const { top } of rows) {
      expect(top).toHaveLength(2);
      expect(top[0]!.probability).toBeGreaterThanOrEqual(top[1]!.probability);
      expect(CLASSES).toContain(top[0]!.class);
    }
    expect(await succeed('predict', trained.adapter, file)).toMatch(/0\.png +(red|green|blue) +[\d.]+ %/);
  });
});

describe('merge', () => {
  it('writes a checkpoint that scores the same without adapter and weights', async () => {
    const out = at('merged.safetensors');
    const report = await json<{ merged: string[]; outputChange: { relative: number } }>(
      'merge',
      trained.adapter,
      '--out',
      out,
      '--probe',
    );
    expect(report.merged.length).toBeGreaterThan(10);
    expect(report.outputChange.relative).toBeLessThan(1e-4);
    const merged = await json<Result>('evaluate', out, '--data', join(photos, 'val'));
    expect(merged.accuracy).toBe(trained.accuracy);
    expect(merged.loss).toBeCloseTo(trained.loss, 4);
  });

  it('folds scales and shifts too, where layers get biases that they did not have', async () => {
    const ssf = await json<Result>(...finetune(at('ssf'), '--method', 'ssf'));
    await succeed('merge', ssf.adapter, '--out', at('ssf.safetensors'));
    const merged = await json<Result>('evaluate', at('ssf.safetensors'), '--data', join(photos, 'val'));
    expect(merged.accuracy).toBe(ssf.accuracy);
    expect(merged.loss).toBeCloseTo(ssf.loss, 4);
  });

  it('refuses what cannot be merged, and says why', async () => {
    const conv = await json<Result>(
      ...finetune(at('conv'), '--method', 'conv_adapter', '--set', 'reduction=4', '--epochs', '1'),
    );
    const { code, stderr } = await torchgraft(['merge', conv.adapter, '--out', at('no.safetensors')]);
    expect(code).toBe(1);
    expect(stderr).toMatch(/cannot be merged: .* is not a change of weights/);
    expect(existsSync(at('no.safetensors'))).toBe(false);
  });
});
