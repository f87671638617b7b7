/** Runs the barrage in processes of its own, and says which call ended, stopped or embarrassed one of them. */
import { execFileSync, spawn } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { compileChild } from '../child.js';
import type { Job } from './barrage_child.js';

const files = ['barrage_child', 'targets', 'examples', 'hostile', 'random', 'aten'];
/** Nothing that these calls do takes longer, however busy the machine. */
const HANG_SECONDS = 90;
/** A process makes so many calls at most, so that what LibTorch caches does not pile up. */
const CALLS_PER_PROCESS = 5000;

/** What there is to be called. */
export interface Counts {
  readonly names: readonly string[];
  readonly operators: number;
  readonly native: number;
  readonly sweep: number;
  /** Values of a sweep. */
  readonly values: number;
  /** Examples of nothing that is exported. */
  readonly stray: readonly string[];
}

/** A call that did what no call may. */
export interface Finding {
  readonly call: string;
  readonly problem: string;
}

export interface BarrageOptions {
  readonly suite: Exclude<Job['suite'], 'list'>;
  readonly seed: number;
  /** Calls per target. */
  readonly rounds: number;
  /** The first call; default 0. */
  readonly from?: number;
  /** Calls in all. */
  readonly calls: number;
  /** Names of targets that are left out, as a pattern. */
  readonly except?: string;
  /** Names of targets that are called, as a pattern; default all. */
  readonly only?: string;
  /** Makes only one of so many calls. Default 1. */
  readonly stride?: number;
  /** Default 90. */
  readonly hangSeconds?: number;
  /** Whether a tensor's memory ends at a closed page (Linux; fence.c), so that a kernel which leaves it is named. */
  readonly fenced?: boolean;
  /** Crashes and hangs after which there is no point in going on. */
  readonly most?: number;
}

/** The compiled child and a folder for it to play in. */
export class Barrage implements Disposable {
  readonly #folder = mkdtempSync(join(tmpdir(), 'torchgraft-barrage-'));
  readonly #child: string;
  #jobs = 0;
  /** Calls that returned, and calls that threw, in stretches that came to their end. */
  returned = 0;
  threw = 0;

  constructor() {
    this.#child = compileChild(import.meta.dirname, files, join(this.#folder, 'code'));
  }

  [Symbol.dispose](): void {
    rmSync(this.#folder, { recursive: true, force: true });
  }

  /** What there is to be called. */
  async targets(): Promise<Counts> {
    const { output } = await this.#run({
      suite: 'list',
      seed: 0,
      rounds: 1,
      from: 0,
      to: 0,
      except: null,
      only: null,
      stride: 1,
    });
    return JSON.parse(output) as Counts;
  }

  /** Makes the calls; after a crash or a hang it goes on with the next call. */
  async fire(o: BarrageOptions): Promise<Finding[]> {
    const findings: Finding[] = [];
    let from = o.from ?? 0;
    while (from < o.calls && findings.length < (o.most ?? 20)) {
      const { suite, seed, rounds, except = null, only = null, stride = 1, hangSeconds = HANG_SECONDS } = o;
      const to = Math.min(o.calls, from + CALLS_PER_PROCESS * stride);
      const run = await this.#run(
        { suite, seed, rounds, from, to, except, only, stride },
        hangSeconds,
        o.fenced ? { LD_PRELOAD: this.#fence() } : {},
      );
      findings.push(...run.findings);
      if (run.position.startsWith('done')) {
        const [, returned, threw] = run.position.split(' ').map(Number);
        this.returned += returned ?? 0;
        this.threw += threw ?? 0;
        from = to;
        continue;
      }
      const index = Number.parseInt(run.position, 10);
      if (!Number.isInteger(index)) throw new Error(`the barrage did not start:\n${run.output}`);
      const call = run.position.split('\n').slice(1).join(' ').trim();
      findings.push({ call: `${call} [call ${index}]`, problem: `${run.ended}\n${run.output.slice(-600)}` });
      from = index + 1;
    }
    return findings;
  }

  #fence(): string {
    const library = join(this.#folder, 'fence.so');
    const source = join(import.meta.dirname, 'fence.c');
    if (!existsSync(library)) execFileSync('cc', ['-O2', '-shared', '-fPIC', '-o', library, source, '-ldl']);
    return library;
  }

  #run(
    job: Omit<Job, 'position' | 'findings'>,
    hangSeconds = HANG_SECONDS,
    variables: NodeJS.ProcessEnv = {},
  ): Promise<{ position: string; ended: string; output: string; findings: Finding[] }> {
    // prettier-ignore
    const folder = join(this.#folder, `job-${this.#jobs++}`);
    // Two levels deep, so that '..' stays inside.
    const sandbox = join(folder, 'a', 'b');
    mkdirSync(sandbox, { recursive: true });
    const [position, findings, file] = ['position', 'findings', 'job.json'].map((name) => join(folder, name)) as [string, string, string]; // prettier-ignore
    writeFileSync(file, JSON.stringify({ ...job, position, findings } satisfies Job));
    const env = { ...process.env, OMP_NUM_THREADS: '1', MKL_NUM_THREADS: '1', ...variables };
    const child = spawn(process.execPath, ['--expose-gc', this.#child, file], { cwd: sandbox, env, stdio: ['ignore', 'pipe', 'pipe'] }); // prettier-ignore
    let output = '';
    const take = (chunk: Buffer): void => {
      output = (output + chunk.toString()).slice(-1_000_000);
    };
    child.stdout.on('data', take);
    child.stderr.on('data', take);
    const where = (): string => (existsSync(position) ? (readFileSync(position, 'utf8').split('\0')[0] ?? '') : '');
    let seen = '';
    let since = Date.now();
    let hung = false;
    const watch = setInterval(() => {
      const now = where();
      if (now !== seen) [seen, since] = [now, Date.now()];
      if (Date.now() - since < hangSeconds * 1000) return;
      hung = true;
      child.kill('SIGKILL');
    }, 1000);
    return new Promise((resolve) => {
      child.on('close', (code, signal) => {
        clearInterval(watch);
        const ended = hung
          ? `did not return within ${hangSeconds} s`
          : `ended the process (${signal ?? `code ${String(code)}`})`;
        const lines = existsSync(findings) ? readFileSync(findings, 'utf8').trim().split('\n') : [];
        const found = lines.map((line) => JSON.parse(line) as Finding);
        const at = where();
        rmSync(folder, { recursive: true, force: true });
        resolve({ position: at, ended, output, findings: found });
      });
    });
  }
}
