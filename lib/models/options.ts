/** Checking options and names: errors that say what was wrong, what is known, and what was probably meant. */
import type { z } from 'zod';

/**
 * Number of single-character insertions, deletions, substitutions and swaps of neighbors between two words.
 * @throws TypeError for anything but strings
 */
export function editDistance(a: string, b: string): number {
  for (const word of [a, b] as readonly unknown[]) {
    if (typeof word !== 'string') throw new TypeError(`editDistance: expected two strings, got a ${typeof word}`);
  }
  let before: number[] = [];
  let previous = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const row = [i];
    for (let j = 1; j <= b.length; j++) {
      const same = a[i - 1] === b[j - 1] ? 0 : 1;
      let best = Math.min((previous[j] ?? 0) + 1, (row[j - 1] ?? 0) + 1, (previous[j - 1] ?? 0) + same);
      if (i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1])
        best = Math.min(best, (before[j - 2] ?? 0) + 1);
      row.push(best);
    }
    before = previous;
    previous = row;
  }
  return previous[b.length] ?? 0;
}

/**
 * The candidates most like `name`, best first: those that contain it or are contained in it, and those at a small edit
 * distance. Case does not count.
 */
export function nearest(name: string, candidates: Iterable<string>, count = 3): string[] {
  const wanted = name.toLowerCase();
  const scored = Array.from(candidates, (candidate) => {
    const known = candidate.toLowerCase();
    const distance = editDistance(wanted, known);
    const contains = wanted.length > 2 && (known.includes(wanted) || wanted.includes(known));
    return { candidate, score: distance - (contains ? Math.max(wanted.length, known.length) : 0), distance, contains };
  });
  return scored
    .filter(({ distance, contains }) => contains || distance <= Math.max(2, Math.floor(wanted.length / 3)))
    .sort((x, y) => x.score - y.score)
    .slice(0, count)
    .map(({ candidate }) => candidate);
}

/** "did you mean a, b?" or '' when nothing is near. */
export function suggestion(name: string, candidates: Iterable<string>): string {
  const near = nearest(name, candidates);
  return near.length > 0 ? `; did you mean ${near.join(' or ')}?` : '';
}

/** No option is so long a list, and the holes of a longer one would be visited one by one. */
const LONGEST_LIST = 100_000;

function refuseEndlessLists(value: unknown, owner: string): void {
  if (typeof value !== 'object' || value === null) return;
  for (const [key, entry] of Object.entries(value)) {
    if (Array.isArray(entry) && entry.length > LONGEST_LIST)
      throw new TypeError(`${owner}: option '${key}': a list of ${entry.length} entries; at most ${LONGEST_LIST}`);
  }
}

/**
 * Checks `value` against `schema` and fills in defaults.
 *
 * @param owner whose options they are, for the message
 * @throws TypeError naming every wrong option, what was expected, and for unknown ones the nearest known
 */
export function parseOptions<S extends z.ZodObject>(schema: S, value: unknown, owner: string): z.output<S> {
  refuseEndlessLists(value, owner);
  const result = schema.safeParse(value);
  if (result.success) return result.data;
  const known = Object.keys(schema.shape);
  const problems = result.error.issues.flatMap((issue) => {
    if (issue.code === 'unrecognized_keys' && issue.path.length === 0) {
      const others = known.length > 0 ? `; known are ${known.join(', ')}` : '; it takes none';
      return issue.keys.map((key) => `unknown option '${key}'${suggestion(key, known) || others}`);
    }
    return [issue.path.length > 0 ? `option '${issue.path.join('.')}': ${issue.message}` : issue.message];
  });
  throw new TypeError(`${owner}: ${problems.join('; ')}`);
}
