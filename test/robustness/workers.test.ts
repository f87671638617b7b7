/** The addon in worker threads, and at the end of a process. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { compileChild, runNode } from '../child.js';

const folder = mkdtempSync(join(tmpdir(), 'torchgraft-workers-'));
let child = '';
beforeAll(() => {
  child = compileChild(import.meta.dirname, ['worker_child'], folder);
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

async function run(mode: string): Promise<Record<string, unknown>> {
  const ended = await runNode([child, mode], 170);
  expect(ended, ended.stderr).toMatchObject({ code: 0, signal: null, hung: false });
  expect(ended.stderr).not.toMatch(/error|terminate|assert/i);
  return JSON.parse(ended.stdout) as Record<string, unknown>;
}

test(
  'workers compute what the main thread computes, alone and together, and end cleanly',
  { timeout: 180_000 },
  async () => {
    const { here, sequence, together, terminated } = await run('workers');
    const [loss, again] = here as [number, number];
    expect(loss).toBeGreaterThan(0);
    expect(again).toBe(loss);
    expect(sequence).toEqual([
      { answer: loss, code: 0 },
      { answer: loss, code: 0 },
    ]);
    const [trained, error, litter, memory] = together as { answer: unknown; code: number }[];
    expect(trained).toMatchObject({ answer: expect.any(Number) as number, code: 0 });
    expect(error).toEqual({ answer: [true, true], code: 0 });
    expect(litter).toEqual({ answer: 101, code: 0 });
    expect(memory).toEqual({ answer: 0, code: 0 });
    expect(terminated).toEqual(['started', 'started']);
  },
);

test('a process ends cleanly with live graphs, hooks, custom functions and a failed backward pass', async () => {
  expect(await run('exit')).toEqual({ thrown: true });
});

test('a deep graph of custom functions is freed without overflowing the stack', { timeout: 180_000 }, async () => {
  expect(await run('deep')).toEqual({ gradFn: 'CustomFunction' });
});
