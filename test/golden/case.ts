/** Golden cases on disk: what a case folder and a counts.json hold. The format is described in shared/golden/README.md. */
import { existsSync, readdirSync, readFileSync, statSync } from 'node:fs';
import { basename, dirname, join, resolve } from 'node:path';

/** case.json, as far as it is used. */
export interface CaseFile {
  readonly system: string;
  readonly case: string;
  /** Where the numbers come from; `entry` names the file and class. */
  readonly source?: { readonly entry?: string };
  readonly config: Readonly<Record<string, unknown>>;
  readonly mode?: 'eval' | 'train' | 'function';
  /** Shapes, alone or with their dtype. */
  readonly outputs?: Readonly<Record<string, readonly number[] | readonly [shape: readonly number[], dtype: string]>>;
  readonly trainable?: readonly string[];
  readonly without_gradient?: readonly string[];
  readonly zero_gradient?: readonly string[];
  readonly tolerance: { readonly forward: number; readonly grad: number | null };
  /** A published file of a third party, and what is read from it. */
  readonly files?: { readonly official: string; readonly expected: string };
  readonly merged?: { readonly file: string; readonly leftover: readonly string[] };
}

/** A case and where it lies. */
export interface GoldenCase extends CaseFile {
  readonly folder: string;
}

/** One row of a counts.json: numbers of parameters of a published configuration. */
export interface CountsRow {
  readonly system: string;
  readonly model: string;
  readonly config: Readonly<Record<string, unknown>> | string;
  readonly num_classes: number | null;
  readonly [figure: string]: unknown;
}

/** What a row says of its configuration, as text. */
export function configText({ config }: Pick<CountsRow, 'config'>): string {
  return typeof config === 'string' ? config : JSON.stringify(config);
}

/** What can be checked: a case, or the rows of a counts.json. */
export type Golden =
  { readonly kind: 'case'; readonly folder: string } | { readonly kind: 'counts'; readonly file: string };

export function readCase(folder: string): GoldenCase {
  return { ...(JSON.parse(readFileSync(join(folder, 'case.json'), 'utf8')) as CaseFile), folder };
}

/** The rows of a counts.json; its folder's name is the system's. */
export function readCounts(file: string): CountsRow[] {
  const system = basename(dirname(resolve(file)));
  return (JSON.parse(readFileSync(file, 'utf8')) as Omit<CountsRow, 'system'>[]).map(
    (row) => ({ ...row, system }) as CountsRow,
  );
}

/**
 * Everything under `path`, sorted: a case folder, a counts.json, or any folder above them. Folders `official_*` hold
 * case files like the others; published checkpoints inside them are never opened here.
 *
 * @throws Error when the path does not exist
 */
export function findGolden(path: string): Golden[] {
  if (!existsSync(path)) throw new Error(`there is nothing at ${path}`);
  if (!statSync(path).isDirectory()) {
    if (basename(path) === 'counts.json') return [{ kind: 'counts', file: path }];
    if (basename(path) === 'case.json') return [{ kind: 'case', folder: dirname(path) }];
    throw new Error(`${path} is neither a case folder nor a counts.json`);
  }
  if (existsSync(join(path, 'case.json'))) return [{ kind: 'case', folder: path }];
  return readdirSync(path, { withFileTypes: true })
    .filter((entry) => entry.isDirectory() || entry.name === 'counts.json')
    .sort((a, b) => (a.name < b.name ? -1 : 1))
    .flatMap((entry) => findGolden(join(path, entry.name)));
}
