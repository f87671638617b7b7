/** What a run survives: SIGKILL at any moment, SIGINT. The runs are processes of their own. */
import { spawn, type ChildProcess } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import ts from 'typescript';
import { readJsonl } from '../../lib/train/index.js';
import { distFolder } from '../dist.js';
import { uniform } from './tiny.js';

const folder = mkdtempSync(join(tmpdir(), 'torchgraft-kill-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** The child as JavaScript on top of the compiled package. */
beforeAll(() => {
  const dist = distFolder();
  writeFileSync(join(folder, 'package.json'), '{"type":"module"}');
  for (const name of ['child', 'tiny']) {
    const source = readFileSync(join(import.meta.dirname, `${name}.ts`), 'utf8').replaceAll('../../lib/', `${dist}/`);
    const compilerOptions = {
      module: ts.ModuleKind.ESNext,
      target: ts.ScriptTarget.ES2022,
      verbatimModuleSyntax: true,
    };
    writeFileSync(join(folder, `${name}.js`), ts.transpileModule(source, { compilerOptions }).outputText);
  }
});

interface Run {
  readonly process: ChildProcess;
  readonly ended: Promise<{ code: number | null; signal: NodeJS.Signals | null; output: string }>;
}

function start(outDir: string, resume: boolean, onLine: (line: string) => void = () => {}): Run {
  const child = spawn(process.execPath, [join(folder, 'child.js'), outDir, ...(resume ? ['resume'] : [])], {
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let output = '';
  const listen = (chunk: Buffer): void => {
    output += chunk.toString();
    for (const line of chunk.toString().split('\n')) if (line !== '') onLine(line);
  };
  child.stdout.on('data', listen);
  child.stderr.on('data', listen);
  const ended = new Promise<{ code: number | null; signal: NodeJS.Signals | null; output: string }>((resolve) => {
    child.on('close', (code, signal) => resolve({ code, signal, output }));
  });
  return { process: child, ended };
}

/** The line with the digest of the weights and the losses. */
function result(output: string): string {
  const line = output.split('\n').find((text) => text.startsWith('weights '));
  if (line === undefined) throw new Error(`the run did not end as it should:\n${output}`);
  return line;
}

let whole = '';
beforeAll(async () => {
  whole = result((await start(join(folder, 'whole'), false).ended).output);
});

describe('a run that is killed', () => {
  const random = uniform(Number(process.env['TORCHGRAFT_KILL_SEED'] ?? 1));

  it.each(Array.from({ length: 3 }, (_, i) => i))(
    'again and again at random moments ends with the same weights (%i)',
    { timeout: 180_000 },
    async (i) => {
      const outDir = join(folder, `killed-${i}`);
      let kills = 0;
      for (let attempt = 0; ; attempt++) {
        // From the first output on; the time until then is that of loading LibTorch, during which nothing is at stake.
        const delay = attempt < 5 ? random() * 60 : Infinity;
        let timer: NodeJS.Timeout | undefined;
        const run = start(outDir, attempt > 0, () => {
          if (delay !== Infinity) timer ??= setTimeout(() => run.process.kill('SIGKILL'), delay);
        });
        const { signal, output } = await run.ended;
        clearTimeout(timer);
        if (signal === 'SIGKILL') {
          kills++;
          continue;
        }
        expect(result(output)).toBe(whole);
        break;
      }
      expect(kills).toBeGreaterThan(0);
      const log = readJsonl(join(outDir, 'log.jsonl'));
      expect(log.filter((r) => r['event'] === 'epoch').map((r) => r['epoch'])).toEqual([1, 2, 3, 4, 5, 6]);
      const steps = log.filter((r) => r['event'] === 'step').map((r) => r['step'] as number);
      expect(new Set(steps).size).toBe(steps.length);
    },
  );

  it('before anything was saved begins anew', async () => {
    const outDir = join(folder, 'early');
    expect(result((await start(outDir, true).ended).output)).toBe(whole);
  });
});

describe('SIGINT', () => {
  it('saves and exits with 130; the resumed run ends with the same weights', async () => {
    const outDir = join(folder, 'interrupted');
    let sent = false;
    const run = start(outDir, false, (line) => {
      if (line !== 'step 7' || sent) return;
      sent = true;
      run.process.kill('SIGINT');
    });
    const { code, output } = await run.ended;
    expect({ code, output }).toMatchObject({ code: 130 });
    expect(existsSync(join(outDir, 'last.safetensors'))).toBe(true);
    expect(result((await start(outDir, true).ended).output)).toBe(whole);
  });

  it('twice ends even a process that does not listen to the first', async () => {
    const script = `
      import { onInterrupt } from '${distFolder()}/train/interrupt.js';
      onInterrupt(() => console.log('first'));
      setInterval(() => {}, 1000);
      console.log('ready');`;
    const child = spawn(process.execPath, ['--input-type=module', '-e', script], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    child.stdout.on('data', () => child.kill('SIGINT')); // at 'ready', and again at 'first'
    const code = await new Promise((resolve) => child.on('close', resolve));
    expect(code).toBe(130);
  });
});
