/** The programs in examples/, each shortened to a few steps: they run to the end and leave frozen weights alone. */
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { runNode } from './child.js';
import { distFolder } from './dist.js';

const folder = join(import.meta.dirname, '..', 'examples');
const programs = readdirSync(folder).filter((name) => name.endsWith('.mjs') && name !== 'common.mjs');

test('there is one for each kind of system', () => {
  expect(programs).toEqual([
    'dense_clip.mjs',
    'detection_conv_adapter.mjs',
    'lv_adapter.mjs',
    'representation_separation.mjs',
    'segmentation_spm.mjs',
    'video_st_adapter.mjs',
  ]);
});

test.each(programs)('%s runs', { timeout: 240_000 }, async (name) => {
  distFolder(); // an error if there is none
  const ended = await runNode(['--no-warnings', join(folder, name), '--short'], 220);
  expect(ended, ended.stderr).toMatchObject({ code: 0, signal: null, stderr: '' });
  const lines = ended.stdout.trim().split('\n');
  // What was pretrained, and at least two models on it.
  expect(lines.length).toBeGreaterThanOrEqual(3);
  expect(lines[0]).toMatch(/^pretrained on \w+: [\d.]+ %/);
  for (const line of lines.slice(1)) {
    expect(line).toMatch(/ (mIoU|AP|mean|top-1) [\d.]+ % .*\d+ frozen tensors unchanged bit for bit$/);
  }
});
