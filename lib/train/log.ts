/**
 * The JSONL log of a run: one JSON object per line, `{"event":"step",...}` or `{"event":"epoch",...}`.
 *
 * The state of a run remembers how long the log was; a resumed run cuts the log back to that length, so that no step
 * stands in it twice and a line cut short by a kill disappears.
 */
import { appendFileSync, mkdirSync, readFileSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';

export class JsonlLog {
  private readonly path: string;

  constructor(path: string) {
    this.path = path;
  }

  /** Starts an empty log, or goes on with one after its first `length` bytes. */
  open(length = 0): void {
    mkdirSync(dirname(this.path), { recursive: true });
    if (length === 0) writeFileSync(this.path, '');
    // A log that was deleted or shortened by hand must not stop the run; truncation would pad it with zero bytes.
    else if (this.length() > length) truncateSync(this.path, length);
    else appendFileSync(this.path, '');
  }

  /** Appends one line; non-finite numbers become null, as JSON has none. */
  write(record: Readonly<Record<string, unknown>>): void {
    appendFileSync(this.path, `${JSON.stringify(record)}\n`);
  }

  /** Bytes written so far; 0 if there is no log. */
  length(): number {
    return statSync(this.path, { throwIfNoEntry: false })?.size ?? 0;
  }
}

/** The records of a JSONL file; a last line that was cut short is left out. */
export function readJsonl(path: string): Record<string, unknown>[] {
  // A number would be an open file such as the terminal.
  if (typeof path !== 'string') throw new TypeError(`readJsonl: path must be a string, got a ${typeof path}`);
  const text = readFileSync(path, 'utf8');
  return text
    .slice(0, text.lastIndexOf('\n') + 1)
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => JSON.parse(line) as Record<string, unknown>);
}
