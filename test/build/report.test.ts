import { spawnSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { readReport } from '../../scripts/build/test-report.mjs';

const root = fileURLToPath(new URL('../../', import.meta.url));

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'torchgraft-report-'));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

describe('the count that CI reads', () => {
  // A real run of vitest, so that a change of its report shows here.
  it('counts passed, failed, skipped, files that do not load, and tests lost with their process', { timeout: 120_000 }, () => {
    const head = "import { expect, it } from 'vitest';\n";
    mkdirSync(join(folder, 'test'));
    symlinkSync(join(root, 'node_modules'), join(folder, 'node_modules'));
    writeFileSync(join(folder, 'package.json'), '{ "type": "module" }');
    writeFileSync(join(folder, 'test/a.test.ts'), `${head}it('a', () => {}); it('b', () => {}); it.skip('c', () => {}); it.todo('d');`);
    writeFileSync(join(folder, 'test/b.test.ts'), `${head}it('a', () => {}); it('b', () => expect(1).toBe(2));`);
    writeFileSync(join(folder, 'test/c.test.ts'), "import './missing.js';");
    writeFileSync(
      join(folder, 'test/d.test.ts'),
      `${head}it('a', () => { process.kill(process.pid, 'SIGKILL'); }); it('b', () => {});`,
    );
    const report = join(folder, 'report.json');
    const vitest = join(root, 'node_modules/vitest/vitest.mjs');
    const args = [vitest, 'run', '--root', folder, '--reporter=json', `--outputFile.json=${report}`];
    const { status } = spawnSync(process.execPath, args, { cwd: folder, stdio: 'ignore' });
    expect(status).toBe(1);
    expect(readReport(report)).toEqual({ passed: 3, failed: 4, skipped: 2 });
  });

  it('refuses to count where nothing ran', () => {
    expect(() => readReport(join(folder, 'none.json'))).toThrow('No test ran');
  });
});
