import { noGrad, type Tensor } from '../tensor/index.js';
import { Buffer } from './parameter.js';

/** A state dict: names and tensors. */
export type StateSource = ReadonlyMap<string, Tensor> | Readonly<Record<string, Tensor>>;

/** How `loadStateDict` treats what does not fit, and whether it copies. */
export interface LoadOptions {
  /** Default true. */
  strict?: boolean;
  /** Take over the given tensors instead of copying them. Default false. */
  assign?: boolean;
}

/** What did not fit. */
export interface LoadReport {
  /** Names of the module that the state lacks. */
  missing: string[];
  /** Names of the state that the module lacks. */
  unexpected: string[];
  mismatched: { name: string; expected: number[]; found: number[] }[];
}

const LISTED = 10;

function listing(title: string, items: readonly string[]): string {
  if (items.length === 0) return '';
  const rest = items.length > LISTED ? `, ... (${items.length - LISTED} more)` : '';
  return `\n  ${title} (${items.length}): ${items.slice(0, LISTED).join(', ')}${rest}`;
}

/** The report as an error message; '' when everything fits. */
export function describeReport(report: LoadReport): string {
  const shapes = report.mismatched.map(
    ({ name, expected, found }) => `${name} [${expected.join(', ')}] given [${found.join(', ')}]`,
  );
  return listing('missing', report.missing) + listing('unexpected', report.unexpected) + listing('wrong shape', shapes);
}

/** Which names and shapes of `state` differ from those of `entries`. Optional buffers may be missing. */
export function compareState(
  entries: Iterable<readonly [string, Tensor]>,
  state: ReadonlyMap<string, Tensor>,
): LoadReport {
  const report: LoadReport = { missing: [], unexpected: [], mismatched: [] };
  const known = new Set<string>();
  for (const [name, target] of entries) {
    known.add(name);
    const source = state.get(name);
    if (source === undefined) {
      if (!(target instanceof Buffer && target.optional)) report.missing.push(name);
      continue;
    }
    const [expected, found] = [target.shape, source.shape];
    if (expected.join() !== found.join()) report.mismatched.push({ name, expected, found });
  }
  for (const name of state.keys()) if (!known.has(name)) report.unexpected.push(name);
  return report;
}

/** Loads `state` into the named tensors `entries`; see `Module.loadStateDict`. `owner` names the module in errors. */
export function loadInto(
  entries: readonly (readonly [string, Tensor])[],
  state: StateSource,
  { strict = true, assign = false }: LoadOptions,
  owner: string,
): LoadReport {
  const given: ReadonlyMap<string, Tensor> = state instanceof Map ? state : new Map(Object.entries(state));
  const report = compareState(entries, given);
  const misshapen = new Set(report.mismatched.map(({ name }) => name));
  const fitting: [Tensor, Tensor][] = [];
  for (const [name, target] of entries) {
    const source = given.get(name);
    if (source === undefined || misshapen.has(name)) continue;
    if (target.device === 'meta') {
      throw new Error(
        `loadStateDict: '${name}' of ${owner} lies on the meta device and has no data; build the model on a real device to load weights`,
      );
    }
    fitting.push([target, source]);
  }
  if (strict) {
    const trouble = describeReport(report);
    if (trouble !== '') {
      throw new Error(
        `loadStateDict: the state does not fit ${owner}; nothing was loaded.${trouble}\n  Pass { strict: false } to load what fits.`,
      );
    }
  }
  noGrad(() => {
    for (const [target, source] of fitting) {
      if (assign) target.setData(source.detach().to({ dtype: target.dtype, device: target.device }));
      else target.copy_(source);
    }
  });
  return report;
}
