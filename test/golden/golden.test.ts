import { fileURLToPath } from 'node:url';
import { describe, expect, test } from 'vitest';
import { findGolden, readCounts } from './case.js';
import { checkCase, checkCounts } from './check.js';

const cases = fileURLToPath(new URL('cases', import.meta.url));
const found = findGolden(cases);
const folders = found.flatMap((golden) => (golden.kind === 'case' ? [golden.folder] : []));
const rows = found.flatMap((golden) => (golden.kind === 'counts' ? readCounts(golden.file) : []));

describe('golden cases', () => {
  test('are there', () => {
    expect(folders.length).toBeGreaterThan(0);
    expect(rows.length).toBeGreaterThan(0);
  });

  test.for(folders.map((folder) => [folder.slice(cases.length + 1), folder] as const))('%s', ([, folder], { skip }) => {
    const { problems, forward, skipped } = checkCase(folder);
    if (skipped !== null) skip(skipped);
    expect(problems).toEqual([]);
    expect(forward).not.toBeNaN();
  });
});

describe('published parameter counts', () => {
  test.each(rows.map((row) => [`${row.system} ${row.model} ${JSON.stringify(row.config)}`, row] as const))(
    '%s',
    (_, row) => {
      expect(checkCounts(row).problems).toEqual([]);
    },
  );
});
