/**
 * One stretch of the barrage, in a process of its own: `node barrage_child.js JOB`, JOB a JSON file. Before each call its
 * number is written to `position`, so that the parent can say which call ended or stopped the process. The findings
 * (calls that threw something that is no error, stray rejections, exits) go to `findings` as lines of JSON.
 */
import { appendFileSync, openSync, readFileSync, writeSync } from 'node:fs';
import * as lib from '../../lib/index.js';
import { native } from '../../lib/native/index.js';
import { argumentsFor } from './aten.js';
import { examples, writeFiles } from './examples.js';
import { anything, Mischief, plainCount, plainValue, type Named } from './hostile.js';
import { Draw } from './random.js';
import { operators, publicTargets, strayExamples, type Target } from './targets.js';

/** What the parent asks for. */
export interface Job {
  readonly seed: number;
  /** `sweep`: round i puts the value of number i somewhere into each call that is no operator's. */
  readonly suite: 'public' | 'sweep' | 'operators' | 'native' | 'self' | 'list';
  /** Calls per target. */
  readonly rounds: number;
  /** Calls are numbered over all targets; this stretch makes those from `from` up to `to`. */
  readonly from: number;
  readonly to: number;
  readonly position: string;
  readonly findings: string;
  /** Names of targets that are left out, as a pattern. */
  readonly except: string | null;
  /** Names of targets that are called; null for all. */
  readonly only: string | null;
  /** Every so many calls one is made, which one depends on the seed. */
  readonly stride: number;
}

const job = JSON.parse(readFileSync(process.argv[2] ?? '', 'utf8')) as Job;
const position = openSync(job.position, 'w');
let current = '';

function report(problem: string): void {
  appendFileSync(job.findings, `${JSON.stringify({ call: current, problem })}\n`);
}

const exit = process.exit.bind(process);
process.exit = (code?: number) => {
  report(`called process.exit(${String(code)})`);
  throw new Mischief('process.exit');
};
process.on('unhandledRejection', (reason) => {
  if (!(reason instanceof Mischief)) report(`unhandled rejection: ${String(reason)}`);
});
process.on('uncaughtException', (error) => report(`uncaught exception: ${String(error)}`));

/** A call that is about to be made. */
interface Prepared {
  readonly text: string;
  readonly make: () => unknown;
}

function isPlain(value: unknown): value is Record<string, unknown> | unknown[] {
  if (typeof value !== 'object' || value === null) return false;
  const prototype: unknown = Object.getPrototypeOf(value);
  return Array.isArray(value) || prototype === Object.prototype;
}

/** Replaces, removes or adds one value somewhere inside of `args`. */
function spoil(draw: Draw, args: unknown[], given: Named | null): string {
  let place: Record<string, unknown> | unknown[] = args;
  let path = '';
  for (;;) {
    const keys = Object.keys(place);
    const key =
      keys.length > 0 && !draw.chance(0.1) ? draw.of(keys) : Array.isArray(place) ? String(place.length) : 'x';
    const inner: unknown = Reflect.get(place, key);
    path += `[${key}]`;
    if (isPlain(inner) && draw.chance(0.7)) {
      place = inner;
      continue;
    }
    if (given === null && draw.chance(0.1)) {
      if (Array.isArray(place)) place.pop();
      else Reflect.deleteProperty(place, key);
      return `example without ${path}`;
    }
    const { text, value } = given ?? anything(draw);
    Reflect.set(place, key, value);
    return `example with args${path} = ${text}`;
  }
}

function prepare(index: number): Prepared | null {
  const target = targets[Math.floor(index / job.rounds)]!;
  const round = index % job.rounds;
  const draw = new Draw(`${job.seed}/${target.name}/${round}`);
  lib.manualSeed(index);
  if ('arguments' in target) {
    const { args, text } = argumentsFor(draw, target);
    return { text: `${target.name}(${text})`, make: () => lib.call(target.name, ...args) };
  }
  const resolved = target.resolve();
  if (!resolved) return null;
  const given = job.suite === 'sweep' ? plainValue(round) : null;
  const example = given || draw.chance(0.65) ? examples[target.path]?.() : undefined;
  let args: unknown[];
  let text: string;
  if (example) {
    args = draw.of(example).slice();
    text = round === 0 && !given ? 'example as it is' : spoil(draw, args, given);
  } else {
    const list = draw.list(4, () => anything(draw));
    if (given) list[draw.below(2)] = given;
    args = Array.from(list, (v) => v?.value);
    text = Array.from(list, (v) => v?.text).join(', ');
  }
  let self: unknown = resolved.self;
  let of = '';
  if (target.kind !== 'function' && target.kind !== 'construct' && draw.chance(0.15)) {
    const other = anything(draw);
    self = other.value;
    of = ` of ${other.text}`;
  }
  return { text: `${target.name}(${text})${of}`, make: () => Reflect.apply(resolved.fn, self, args) };
}

function nativeTargets() {
  const left = new Set(['setup', 'scopeOpen', 'scopeClose', 'inferenceEnter', 'inferenceExit', 'autocastEnter', 'autocastExit', 'setGradMode']); // prettier-ignore
  return Object.entries(native as unknown as Record<string, () => unknown>)
    .filter(([name, fn]) => typeof fn === 'function' && !left.has(name))
    .map(([name, fn]) => ({ name: `native.${name}`, kind: 'function' as const, path: `native.${name}`, resolve: () => ({ fn, self: undefined }) })); // prettier-ignore
}

/** Misdeeds on purpose, for the tests of the barrage itself. */
const misdeeds: Readonly<Record<string, () => unknown>> = {
  abort: () => process.abort(),
  segfault: () => process.kill(process.pid, 'SIGSEGV'),
  exit: () => process.exit(3),
  hang: () => {
    for (;;);
  },
  null: () => {
    throw null; // eslint-disable-line @typescript-eslint/only-throw-error -- that is the misdeed
  },
  reject: async () => Promise.reject('text'), // eslint-disable-line @typescript-eslint/prefer-promise-reject-errors -- that is the misdeed
  stray: () => {
    void Promise.reject(new Error('nobody sees this'));
    return new Promise((resolve) => setImmediate(resolve));
  },
  mode: () => native.setGradMode(false),
};

const sweepTargets = (): Target[] => publicTargets().filter((t) => t.kind === 'function' || t.kind === 'construct');
const all =
  job.suite === 'operators'
    ? operators()
    : job.suite === 'native'
      ? nativeTargets()
      : job.suite === 'self'
        ? Object.entries(misdeeds).map(([name, fn]): Target => ({ name, kind: 'function', path: name, resolve: () => ({ fn, self: undefined }) })) // prettier-ignore
        : job.suite === 'sweep'
          ? sweepTargets()
          : publicTargets();
const except = job.except === null ? null : new RegExp(job.except);
const only = job.only === null ? null : new RegExp(job.only);
const targets = all;

if (job.suite === 'list') {
  process.stdout.write(JSON.stringify({ names: publicTargets().map((t) => t.name), operators: operators().length, native: nativeTargets().length, sweep: sweepTargets().length, values: plainCount, stray: strayExamples() })); // prettier-ignore
  exit(0);
}

/** A result that claims to be a tensor must be usable, or say what is wrong by an error. */
function look(value: unknown): void {
  if (!native.isTensor(value)) return;
  const tensor = value as lib.Tensor;
  if (tensor.isFreed) return;
  if (tensor.numel() > 10_000) return;
  try {
    String(tensor);
  } catch (error) {
    if (!(error instanceof Error)) throw error;
  }
}

const isError = (error: unknown): boolean => error instanceof Error;
const wait = (ms: number): Promise<'late'> => new Promise((resolve) => setTimeout(resolve, ms, 'late'));

async function settle(value: unknown): Promise<void> {
  if (value instanceof Promise) {
    const late = await Promise.race([value.then(look, (error: unknown) => { if (!isError(error)) report(`rejected with ${typeof error} ${String(error)}`); }), wait(30_000)]); // prettier-ignore
    if (late === 'late') report('a promise that was not settled within 30 s');
    return;
  }
  look(value);
  if (typeof value === 'object' && value !== null && !native.isTensor(value) && Symbol.asyncIterator in value) {
    const iterator = (value as AsyncIterable<unknown>)[Symbol.asyncIterator]();
    await settle(iterator.next());
    await settle(iterator.return?.());
  }
  // Handlers of signals and the like are taken back.
  if (typeof value === 'object' && value !== null && !native.isTensor(value) && Symbol.dispose in value) {
    (value as Disposable)[Symbol.dispose]();
  }
}

let returned = 0;
let threw = 0;
if (job.suite === 'public' || job.suite === 'sweep') writeFiles();
const last = Math.min(job.to, targets.length * job.rounds);
for (let index = job.from; index < last; index++) {
  current = targets[Math.floor(index / job.rounds)]!.name;
  if (except?.test(current) || only?.test(current) === false || (index + job.seed) % job.stride !== 0) continue;
  writeSync(position, `${index}          \n`, 0);
  const prepared = prepare(index);
  if (!prepared) continue;
  current = `${prepared.text} [call ${index}]`;
  writeSync(position, `${index}          \n${current.slice(0, 2000)}\n\0`, 0);
  try {
    const value = prepared.make();
    returned++;
    await settle(value);
  } catch (error) {
    threw++;
    if (!isError(error)) report(`threw ${typeof error} ${String(error)}`);
  }
  lib.setNumThreads(1);
  if (!lib.isGradEnabled()) report('left recording off');
  if (index % 200 === 0) {
    (globalThis as { gc?: () => void }).gc?.();
    await new Promise((resolve) => setImmediate(resolve));
  }
}
writeSync(position, `done ${returned} ${threw} \n`, 0);
exit(0);
