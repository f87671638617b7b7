/** Real Python with torch, timm, transformers, peft and safetensors; see scripts/interop/environment.mjs. */
import { spawn } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll } from 'vitest';
import { obtainPython } from '../../scripts/interop/environment.mjs';

/** The interpreter, or why there is none; tests skip then, with the reason in their names. */
export interface Python {
  readonly command: string | null;
  /** For names of skipped tests; empty where Python is there. */
  readonly reason: string;
}

/** The environment of the cache, made at the first call on a machine, which takes some minutes. */
export async function findEnvironment(): Promise<Python> {
  try {
    return { command: await obtainPython(), reason: '' };
  } catch (error) {
    const why = (error as Error).message;
    console.warn(`exchange with Python is not tested: ${why}`);
    return { command: null, reason: ` (skipped: ${why})` };
  }
}

export const scripts = fileURLToPath(new URL('../../scripts/interop/', import.meta.url));

/** A folder that is removed after the tests of the file. */
export function temporaryFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), 'torchgraft-interop-'));
  afterAll(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

/** Runs a program of scripts/interop, or one given as text with `-c`; returns its standard output. */
export async function runPython({ command }: Python, args: readonly string[], statuses = [0]): Promise<string> {
  const child = spawn(command ?? 'python3', args, {
    cwd: scripts,
    env: { ...process.env, PYTHONPATH: scripts, PYTHONDONTWRITEBYTECODE: '1', HF_HUB_OFFLINE: '1' },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let stdout = '';
  let stderr = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => (stdout += text));
  child.stderr.setEncoding('utf8').on('data', (text: string) => (stderr += text));
  const code = await new Promise<number | null>((resolve, reject) => child.on('error', reject).on('close', resolve));
  if (code === null || !statuses.includes(code))
    throw new Error(`python ${args[0] === '-c' ? '-c ...' : args.join(' ')} ended with ${code}:\n${stdout}${stderr}`);
  return stdout;
}

/** Runs `export.py` or `check.py` over several models in one process; a line of JSON for each. */
export async function runJobs<T>(
  python: Python,
  script: string,
  folder: string,
  jobs: readonly object[],
): Promise<T[]> {
  const file = join(folder, `${basename(script)}.json`);
  writeFileSync(file, JSON.stringify(jobs));
  const text = await runPython(python, [`${script}.py`, '--jobs', file], [0, 1]);
  const lines = text.trim().split('\n');
  if (lines.length !== jobs.length) throw new Error(`${script}.py answered ${lines.length} of ${jobs.length} jobs`);
  return lines.map((line) => JSON.parse(line) as T);
}
