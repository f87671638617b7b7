/** Memory stays where it is: over thousands of steps, without scopes, and after everything that is done and undone. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { compileChild, runNode } from '../child.js';

const folder = mkdtempSync(join(tmpdir(), 'torchgraft-memory-'));
const code = join(folder, 'code');
beforeAll(() => compileChild(import.meta.dirname, ['steps', 'creations', 'counts'], code));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

async function measure(name: string, ...args: string[]): Promise<unknown> {
  const ended = await runNode(['--expose-gc', join(code, `${name}.js`), ...args], 280, folder);
  expect(ended, ended.stderr).toMatchObject({ code: 0, signal: null });
  return JSON.parse(ended.stdout) as unknown;
}

test('5,000 training steps do not grow the process', { timeout: 300_000 }, async () => {
  const result = (await measure('steps', '5000')) as { growth: number; loss: number; counts: number };
  expect(result.loss).toBeLessThan(10);
  expect(result.growth).toBeLessThan(20);
  // After the first step, which makes gradients and moments, the number of live tensors is always the same.
  expect(result.counts).toBeLessThanOrEqual(2);
});

describe('creation outside of any scope is bounded', () => {
  test.each([
    ['100,000 tensors of one element', '100000', '1', 120],
    ['100,000 tensors of 16 KiB, 3 GiB in all', '100000', '64', 350],
    ['2,000 tensors of 4 MiB, 16 GiB in all', '2000', '1024', 700],
  ])('%s', { timeout: 300_000 }, async (_, count, side, bound) => {
    const result = (await measure('creations', count, side)) as { growth: number };
    expect(result.growth).toBeLessThan(bound);
  });
});

test('what is done and undone leaves no tensor behind', { timeout: 300_000 }, async () => {
  const results = (await measure('counts')) as Record<string, { tensors: number; bytes: number }>;
  expect(Object.keys(results).length).toBeGreaterThan(10);
  expect(Object.entries(results).filter(([, r]) => r.tensors !== 0 || r.bytes !== 0)).toEqual([]);
});
