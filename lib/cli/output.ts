/** How commands talk: results on standard output (as text or JSON), everything else on standard error. */

/** The caller's mistake on the command line: exit code 2, no stack. */
export class UsageError extends Error {
  override readonly name = 'UsageError';
}

/** What lists the names that the library's messages speak of, on the command line. */
const COMMANDS: Readonly<Record<string, string>> = {
  'listModels()': "'torchgraft models'",
  'listMethods()': "'torchgraft methods'",
};

/**
 * Runs `fn`; a TypeError or RangeError, which is how the library reports wrong names and options, becomes a UsageError, also
 * where `fn` returns a promise.
 */
export function asUsage<T>(fn: () => T): T {
  const explain = (error: unknown): never => {
    if (error instanceof TypeError || error instanceof RangeError)
      throw new UsageError(
        error.message.replace(/\b\w+\(\)/g, (call) => COMMANDS[call] ?? call),
        { cause: error },
      );
    throw error;
  };
  try {
    const result = fn();
    return result instanceof Promise ? (result.catch(explain) as T) : result;
  } catch (error) {
    return explain(error);
  }
}

/** Prints a result: `data` as JSON when asked for, else the text. */
export function printResult(json: boolean | undefined, data: unknown, text: () => string): void {
  process.stdout.write(json === true ? `${JSON.stringify(data, null, 2)}\n` : `${text()}\n`);
}

/** A remark for people: standard error, so that it never mixes with a result. */
export function note(text: string): void {
  process.stderr.write(`${text}\n`);
}

/** Columns aligned by spaces: text to the left, numbers (cells that start with a digit) to the right. */
export function table(head: readonly string[], rows: readonly (readonly string[])[]): string {
  const all = [head, ...rows];
  const widths = head.map((_, i) => all.reduce((most, row) => Math.max(most, (row[i] ?? '').length), 0));
  const isNumeric = head.map(
    (_, i) => rows.length > 0 && rows.every((row) => /^[-\d]/.test(row[i] ?? '') || row[i] === ''),
  );
  const line = (row: readonly string[]): string =>
    widths
      .map((w, i) => (isNumeric[i] ? (row[i] ?? '').padStart(w) : (row[i] ?? '').padEnd(w)))
      .join('  ')
      .trimEnd();
  return [line(head), widths.map((w) => '-'.repeat(w)).join('  '), ...rows.map(line)].join('\n');
}

/** 25802 as `25,802`. */
export const count = (n: number): string => n.toLocaleString('en-US');
