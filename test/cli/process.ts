/** The command line in a process of its own. */
import { spawn, type ChildProcess } from 'node:child_process';
import { join } from 'node:path';
import { distFolder } from '../dist.js';

export interface Outcome {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs `torchgraft ARGS`; `onStart` gets the process, for signals. */
export function torchgraft(args: readonly string[], onStart?: (child: ChildProcess) => void): Promise<Outcome> {
  const child = spawn(process.execPath, [join(distFolder(), 'cli/main.js'), ...args], {
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let stdout = '';
  let stderr = '';
  child.stdout.on('data', (chunk: Buffer) => (stdout += chunk.toString()));
  child.stderr.on('data', (chunk: Buffer) => (stderr += chunk.toString()));
  onStart?.(child);
  return new Promise((resolve) => child.on('close', (code) => resolve({ code, stdout, stderr })));
}

/** As `torchgraft`, but anything else than success is an error. Returns standard output. */
export async function succeed(...args: string[]): Promise<string> {
  const { code, stdout, stderr } = await torchgraft(args);
  if (code !== 0) throw new Error(`torchgraft ${args.join(' ')} ended with ${code}:\n${stdout}${stderr}`);
  return stdout;
}

/** Standard output of a command with `--json`, parsed. */
export async function json<T>(...args: string[]): Promise<T> {
  return JSON.parse(await succeed(...args, '--json')) as T;
}
