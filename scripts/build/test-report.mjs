/** Vitest's JSON report. Run as a script, prints the line that CI reads: `N passed, N failed[, N skipped]`. */
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { root } from './native.mjs';
import { SetupError, runScript } from './tools.mjs';

export const reportPath = join(root, 'build', 'test-report.json');

/**
 * Counts of the last run. A test file that could not even be loaded has no tests to count and counts as one that failed;
 * tests that a crash kept from running count as failed, too.
 * @param {string} [path]
 * @returns {{ passed: number, failed: number, skipped: number }}
 */
export function readReport(path = reportPath) {
  if (!existsSync(path)) throw new SetupError('No test ran: there is no report of vitest.');
  const report = JSON.parse(readFileSync(path, 'utf8'));
  const broken = report.testResults.filter(
    (/** @type {{ status: string, assertionResults: { status: string }[] }} */ file) =>
      file.status === 'failed' && !file.assertionResults.some(({ status }) => status === 'failed'),
  );
  const { numTotalTests: total, numPassedTests: passed, numFailedTests: failed } = report;
  const skipped = report.numPendingTests + report.numTodoTests;
  // A process that died took the tests it had not run with it.
  const lost = Math.max(0, (total ?? 0) - passed - failed - skipped);
  return { passed, failed: failed + broken.length + lost, skipped };
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  await runScript(() => {
    const { passed, failed, skipped } = readReport();
    console.log(`${passed} passed, ${failed} failed${skipped > 0 ? `, ${skipped} skipped` : ''}`);
  });
}
