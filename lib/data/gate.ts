/** A bound on how much is in the making at once. */

/** Lets a limited number of jobs run at once, in the order in which they came; none any more once it is closed. */
export class Gate {
  readonly #limit: () => number;
  readonly #waiting: (() => void)[] = [];
  #running = 0;
  #isClosed = false;

  constructor(limit: () => number) {
    this.#limit = limit;
  }

  /** The job's result; undefined if the gate was closed before the job could start. */
  async pass<T>(job: () => Promise<T>): Promise<T | undefined> {
    if (this.#isClosed) return undefined;
    if (this.#running < this.#limit()) this.#running++;
    else await new Promise<void>((resolve) => this.#waiting.push(resolve));
    try {
      return this.#isClosed ? undefined : await job();
    } finally {
      this.#running--;
      this.#admit(this.#limit() - this.#running);
    }
  }

  close(): void {
    this.#isClosed = true;
    this.#admit(this.#waiting.length);
  }

  #admit(count: number): void {
    for (const start of this.#waiting.splice(0, Math.max(0, count))) {
      this.#running++;
      start();
    }
  }
}
