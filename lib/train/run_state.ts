/**
 * The state of a run on disk: one safetensors file that holds the trained tensors, the buffers, the optimizer's state
 * and the generators' states, and in its header the position in the data and the scores so far. One file, written beside
 * its place and renamed into it, so a kill at any moment leaves the old state or the new one, never half of one.
 */
import { existsSync, readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { readSafetensors, writeSafetensors } from '../checkpoint/index.js';
import { getRngState, noGrad, setRngState, type Device, type Tensor } from '../tensor/index.js';
import type { EpochRecord, Score } from './events.js';
import type { OptimizerState } from './optim.js';

/** Where a run stands: before batch `batch` of epoch `epoch` (from 0), after `step` optimizer steps. */
export interface Position {
  readonly epoch: number;
  readonly batch: number;
  readonly step: number;
}

/** Sums over the epoch so far; the mean of them is the epoch's training score. */
export interface Sums {
  loss: number;
  correct: number;
  samples: number;
}

/** What the header of the state file holds. */
export interface Progress {
  readonly position: Position;
  readonly sums: Sums;
  readonly history: readonly EpochRecord[];
  /** Bytes of the log at this moment. */
  readonly logLength: number;
  /** What the run was started with; a run is only continued with the same. */
  readonly settings: Readonly<Record<string, unknown>>;
  /** The part of the optimizer's state that is not tensors. */
  readonly optimizer: Omit<OptimizerState, 'tensors'>;
}

const FORMAT = 'torchgraft run 1';

/** Writes the state of a run, atomically. */
export function writeRunState(path: string, progress: Progress, tensors: Iterable<readonly [string, Tensor]>): void {
  writeSafetensors(path, tensors, { format: FORMAT, progress: JSON.stringify(progress) });
}

/** Reads the state of a run; null if there is none. Throws if the file is something else or was started with other settings. */
export function readRunState(
  path: string,
  settings: Readonly<Record<string, unknown>>,
): { progress: Progress; tensors: Map<string, Tensor> } | null {
  if (!existsSync(path)) return null;
  const { tensors, metadata } = readSafetensors(path);
  if (metadata['format'] !== FORMAT || metadata['progress'] === undefined)
    throw new Error(`${path} is not the state of a training run; choose another output folder`);
  const progress = measured(JSON.parse(metadata['progress']) as Progress);
  const differences = Object.keys({ ...progress.settings, ...settings })
    .map((key) => ({ key, was: JSON.stringify(progress.settings[key]), is: JSON.stringify(settings[key]) }))
    .filter(({ was, is }) => was !== is)
    .map(({ key, was, is }) => `${key} was ${was}, is ${is}`);
  if (differences.length > 0)
    throw new RangeError(
      `cannot go on with ${path}: it was started with other settings (${differences.join('; ')}). ` +
        'Use the same settings, or start anew in another folder.',
    );
  return { progress, tensors };
}

/** JSON writes NaN, which stands for what a task does not measure, as null. */
function measured({ sums, history, ...progress }: Progress): Progress {
  const numbers = <T extends object>(record: T): T =>
    Object.fromEntries(Object.entries(record).map(([key, value]: [string, unknown]) => [key, value ?? NaN])) as T;
  const score = ({ metrics, ...rest }: Score): Score => ({
    ...numbers(rest),
    ...(metrics && { metrics: numbers(metrics) }),
  });
  const scores = history.map((e) => ({ ...e, train: score(e.train), val: e.val && score(e.val) }));
  return { ...progress, sums: numbers(sums), history: scores };
}

/** Removes what a kill in the middle of writing left behind in the folder of a run. */
export function removeHalfWritten(outDir: string): void {
  for (const name of readdirSync(outDir)) if (HALF_WRITTEN.test(name)) rmSync(join(outDir, name), { force: true });
}

/** Temporary names of `writeAtomically` for the files of a run. */
const HALF_WRITTEN = /^\.(last|best)\.safetensors\..*\.tmp$/;

/** Keys of one kind: `under('param', named)` gives `param.<name>`. */
export function under(kind: string, named: Iterable<readonly [string, Tensor]>): [string, Tensor][] {
  return [...named].map(([name, tensor]) => [`${kind}.${name}`, tensor]);
}

/** The tensors of one kind, without the prefix. */
export function ofKind(kind: string, tensors: ReadonlyMap<string, Tensor>): Map<string, Tensor> {
  const prefix = `${kind}.`;
  return new Map(
    [...tensors].filter(([key]) => key.startsWith(prefix)).map(([key, t]) => [key.slice(prefix.length), t]),
  );
}

/** Copies saved tensors into the live ones of the same names; names and shapes must agree exactly. */
export function restoreInPlace(
  kind: string,
  live: Iterable<readonly [string, Tensor]>,
  saved: ReadonlyMap<string, Tensor>,
): void {
  const targets = new Map(live);
  const strangers = [...saved.keys()].filter((name) => !targets.has(name));
  if (strangers.length > 0)
    throw new Error(`the saved run has ${kind}s that this model has not: ${strangers.slice(0, 5).join(', ')}`);
  for (const [name, target] of targets) {
    const source = saved.get(name);
    if (source === undefined)
      throw new Error(`the saved run has no ${kind} ${name}; it belongs to another model or method`);
    if (source.shape.join() !== target.shape.join())
      throw new Error(
        `${kind} ${name} is [${target.shape.join(', ')}] here but [${source.shape.join(', ')}] in the saved run`,
      );
  }
  noGrad(() => {
    for (const [name, target] of targets) target.copy_(saved.get(name)!);
  });
}

/** States of the random generators that training on `device` uses, under their devices' names. */
export function rngStates(device: Device): Map<string, Tensor> {
  const devices: Device[] = device === 'cpu' ? ['cpu'] : ['cpu', device];
  return new Map(devices.map((name) => [name, getRngState(name)]));
}

export function restoreRng(saved: ReadonlyMap<string, Tensor>): void {
  // The state is handed over as memory of its own: the saved one is a mapped file.
  for (const [device, state] of saved) setRngState(state.clone(), device as Device);
}
