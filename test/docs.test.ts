/** The pages that are made from the code say what the code says. */
import { execFile } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { expect, test } from 'vitest';

test('docs/models.md, docs/methods.md and the tables of the README are up to date', async () => {
  const script = fileURLToPath(new URL('../scripts/docs/generate.mjs', import.meta.url));
  const { stderr } = await promisify(execFile)(process.execPath, ['--no-warnings', script, '--check']);
  expect(stderr).toBe('');
}, 120_000);
