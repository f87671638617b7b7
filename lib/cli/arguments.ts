/** Parsers of option values, and the options that several commands share. */
import { existsSync, statSync } from 'node:fs';
import { InvalidArgumentError, Option, type Command } from 'commander';
import { UsageError } from './output.js';

/** A whole number of at least `least`. */
export const integer =
  (least: number) =>
  (text: string): number => {
    const value = Number(text);
    if (!Number.isSafeInteger(value) || value < least || text.trim() === '')
      throw new InvalidArgumentError(`expected a whole number of at least ${least}.`);
    return value;
  };

/** A finite number between two bounds, both included. */
export const real =
  (least: number, most = Number.MAX_VALUE) =>
  (text: string): number => {
    const value = Number(text);
    if (!Number.isFinite(value) || value < least || value > most || text.trim() === '')
      throw new InvalidArgumentError(
        most === Number.MAX_VALUE
          ? `expected a number of at least ${least}.`
          : `expected a number from ${least} to ${most}.`,
      );
    return value;
  };

/** Collects repeated `--set key=value`; see `parseSettings`. */
export const collect = (text: string, before: readonly string[] = []): string[] => [...before, text];

/**
 * `['rank=4', 'scale.kind=learned']` to `{ rank: 4, scale: { kind: 'learned' } }`: values are JSON where they parse as JSON (numbers,
 * true, false, null, lists, objects), else plain text. Whether an option exists is the method's schema to say.
 */
export function parseSettings(assignments: readonly string[], flag = '--set'): Record<string, unknown> {
  const settings: Record<string, unknown> = {};
  for (const assignment of assignments) {
    const split = assignment.indexOf('=');
    if (split < 1) throw new UsageError(`${flag} expects key=value, got '${assignment}' (for example ${flag} rank=4)`);
    const keys = assignment.slice(0, split).split('.');
    if (keys.some((key) => key === '' || key === '__proto__'))
      throw new UsageError(`${flag}: '${assignment.slice(0, split)}' is not an option name`);
    let target = settings;
    for (const key of keys.slice(0, -1)) {
      const inner = (target[key] ??= {});
      if (typeof inner !== 'object' || inner === null)
        throw new UsageError(`${flag}: '${key}' is given both a value and parts`);
      target = inner as Record<string, unknown>;
    }
    const last = keys.at(-1)!;
    if (last in target) throw new UsageError(`${flag}: '${keys.join('.')}' is given twice`);
    target[last] = parseValue(assignment.slice(split + 1));
  }
  return settings;
}

function parseValue(text: string): unknown {
  try {
    return JSON.parse(text) as unknown;
  } catch {
    return text;
  }
}

/** The path of an existing file, or a UsageError that names the option. */
export function existingFile(path: string, option: string): string {
  if (!existsSync(path) || !statSync(path).isFile()) throw new UsageError(`${option}: there is no file ${path}`);
  return path;
}

/** `--names`: whose names the tensors of a file get. */
export function namesOption(): Option {
  return new Option(
    '--names <whose>',
    "names of the tensors: ours, timm's, the official repository's, transformers', torchvision's",
  )
    .choices(['own', 'timm', 'official', 'transformers', 'torchvision'])
    .default('own');
}

/** Where and how fast to compute. */
export interface ComputeOptions {
  readonly threads?: number;
  readonly device?: string;
}

/** Adds `--threads` and `--device`. */
export function addComputeOptions(command: Command): Command {
  return command
    .addOption(new Option('--threads <n>', 'CPU threads for computing (default: all cores)').argParser(integer(1)))
    .addOption(new Option('--device <name>', 'cpu, cuda or cuda:N').default('cpu'));
}
