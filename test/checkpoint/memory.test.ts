/** Loading holds one copy of a tensor at most: what a process without a spare byte would see. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, test } from 'vitest';
import { compileChild, runNode } from '../child.js';
import { temporaryFolder } from './helpers.js';

const folder = temporaryFolder();
const isLinux = existsSync('/proc/self/status');

/** Containers of 100 MB, and how many copies of the weights may stand in anonymous memory beside the model's own. */
const containers: readonly (readonly [string, number, string])[] = [
  ['safetensors', 0, 'mapped'],
  ['zip', 0, 'mapped'],
  ['legacy', 0, 'mapped where it lies well'],
  ['legacy_shifted', 1, 'copied once where it does not'],
  ['swapped', 1, 'copied once to turn its bytes around'],
];

describe.skipIf(!isLinux)(`memory while loading${isLinux ? '' : ' (skipped: it is read from /proc)'}`, () => {
  let child = '';

  const run = async (what: string): Promise<string> => {
    const { code, stdout, stderr } = await runNode([child, what, folder], 60);
    expect(stderr).toBe('');
    expect(code).toBe(0);
    return stdout;
  };

  beforeAll(async () => {
    child = compileChild(import.meta.dirname, ['memory_child'], join(folder, 'child'));
    await run('write');
  }, 60_000);

  test.each(containers)('%s: %d copies, %s', { timeout: 60_000 }, async (container, copies) => {
    const growth = Number(await run(container));
    expect(growth).toBeGreaterThanOrEqual(copies * 0.5);
    expect(growth).toBeLessThan(copies + 0.3);
  });
});
