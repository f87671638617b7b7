/** Test programs that run in processes of their own, on top of the compiled package. */
import { spawn } from 'node:child_process';
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import ts from 'typescript';
import { distFolder } from './dist.js';

/**
 * Writes the TypeScript files of `source` (a folder under `test/`) into `folder` as JavaScript that imports the compiled
 * package in place of `lib/`; returns the path of the first.
 */
export function compileChild(source: string, names: readonly string[], folder: string): string {
  const dist = distFolder();
  mkdirSync(folder, { recursive: true });
  writeFileSync(join(folder, 'package.json'), '{"type":"module"}');
  for (const name of names) {
    const text = readFileSync(join(source, `${name}.ts`), 'utf8').replaceAll('../../lib/', `${dist}/`);
    const compilerOptions = {
      module: ts.ModuleKind.ESNext,
      target: ts.ScriptTarget.ES2022,
      verbatimModuleSyntax: true,
    };
    const file = join(folder, `${name}.js`);
    mkdirSync(dirname(file), { recursive: true });
    writeFileSync(file, ts.transpileModule(text, { compilerOptions }).outputText);
  }
  return join(folder, `${String(names[0])}.js`);
}

/** How a child ended, and what it printed. */
export interface Ended {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly stdout: string;
  readonly stderr: string;
  /** Whether it was killed because it took longer than it may. */
  readonly hung: boolean;
}

/** Runs Node with these arguments until it ends, at most `seconds`. */
export function runNode(args: readonly string[], seconds: number, cwd?: string): Promise<Ended> {
  return new Promise((resolve) => {
    const child = spawn(process.execPath, args, { stdio: ['ignore', 'pipe', 'pipe'], ...(cwd ? { cwd } : {}) });
    let stdout = '';
    let stderr = '';
    let hung = false;
    child.stdout.on('data', (chunk: Buffer) => (stdout += chunk.toString()));
    child.stderr.on('data', (chunk: Buffer) => (stderr += chunk.toString()));
    const timer = setTimeout(() => {
      hung = true;
      child.kill('SIGKILL');
    }, seconds * 1000);
    child.on('close', (code, signal) => {
      clearTimeout(timer);
      resolve({ code, signal, stdout, stderr, hung });
    });
  });
}
