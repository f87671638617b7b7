/** `npm run verify -- DIR...`: checks any folders of golden cases and counts.json files, and says what each gave. */
import { readCounts, findGolden, type Golden } from './case.js';
import { checkCase, checkCounts, type Verdict } from './check.js';

const number = (value: number): string => (Number.isNaN(value) ? '-' : value.toExponential(1));

/** One line per case, its problems below it. */
export function describe({ name, forward, grad, tolerance, problems, skipped }: Verdict): string {
  if (skipped !== null) return `skipped ${name}  ${skipped}`;
  const errors = tolerance
    ? `forward ${number(forward)} (<= ${tolerance.forward})  grad ${number(grad)} (<= ${tolerance.grad ?? '-'})`
    : 'parameters counted on the meta device';
  return [
    `${problems.length === 0 ? 'passed' : 'FAILED'}  ${name}  ${errors}`,
    ...problems.map((text) => `        ${text}`),
  ].join('\n');
}

function* verdicts(golden: Golden): Generator<Verdict> {
  if (golden.kind === 'case') yield checkCase(golden.folder);
  else for (const row of readCounts(golden.file)) yield checkCounts(row);
}

/** Checks everything under `paths` and prints it. Returns the exit status: 0 when all passed and there was something. */
export function verify(paths: readonly string[], print: (line: string) => void = console.log): number {
  let passed = 0;
  let failed = 0;
  let skipped = 0;
  for (const golden of paths.flatMap(findGolden)) {
    for (const verdict of verdicts(golden)) {
      print(describe(verdict));
      if (verdict.skipped !== null) skipped++;
      else if (verdict.problems.length === 0) passed++;
      else failed++;
    }
  }
  const none = passed + failed + skipped === 0;
  print(
    none ? 'no golden cases found' : `${passed} passed, ${failed} failed${skipped > 0 ? `, ${skipped} skipped` : ''}`,
  );
  return failed === 0 && passed > 0 ? 0 : 1;
}
