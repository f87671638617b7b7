import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { json, torchgraft } from './process.js';

const out = mkdtempSync(join(tmpdir(), 'torchgraft-quickstart-'));
afterAll(() => rmSync(out, { recursive: true, force: true }));

describe('quickstart', () => {
  it('compares six methods and writes an adapter folder that can be scored, and a report', async () => {
    // A run in miniature: the path is the same, only the numbers mean nothing.
    const small = ['--images', '64', '--target-images', '32', '--epochs', '1', '--threads', '1', '--out', out];
    const result = await json<{
      rows: { method: string; trainable: number; accuracy: number; seconds: number }[];
      adapter: string;
      backbone: string;
      report: string;
      data: string;
    }>('quickstart', ...small);
    expect(result.rows.map((r) => r.method)).toEqual(['linear_probe', 'bitfit', 'ssf', 'lora', 'conv_adapter', 'full']);
    for (const row of result.rows) expect(row.seconds).toBeGreaterThan(0);
    const html = readFileSync(result.report, 'utf8');
    for (const text of [
      'Accuracy against trainable parameters',
      'Confusion matrix',
      'Sample predictions',
      'data:image/png',
    ])
      expect(html).toContain(text);
    expect(existsSync(join(result.adapter, 'adapter_config.json'))).toBe(true);
    const score = await json<{ samples: number; accuracy: number }>(
      'evaluate', result.adapter, '--weights', result.backbone, '--data', `${result.data}:64`, '--split', 'test',
    ); // prettier-ignore
    expect(score.samples).toBe(16);
  }, 240_000);

  it('compares what is asked for on the transformer, in the order of its list', async () => {
    const small = ['--images', '64', '--target-images', '16', '--epochs', '1', '--threads', '1', '--out', out];
    const methods = ['--methods', 'noah', 'prefix', 'linear_probe'];
    const { rows } = await json<{ rows: { method: string; trainable: number }[] }>(
      ...['quickstart', '--backbone', 'vit', ...small, ...methods],
    );
    expect(rows.map((r) => r.method)).toEqual(['linear_probe', 'prefix', 'noah']);
    expect(rows[0]!.trainable).toBeLessThan(rows[1]!.trainable);
  }, 240_000);

  it('says what can be compared before anything is trained', async () => {
    const { code, stderr } = await torchgraft(['quickstart', '--methods', 'prefix', '--out', out]);
    expect(code).toBe(2);
    expect(stderr).toMatch(/is compared with linear_probe, .*; 'prefix' is none of them/);
  });
});
