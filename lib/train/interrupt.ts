/** Ctrl-C as an AbortSignal, for programs that want to save before they leave. */

/** Exit code of a program that was ended by SIGINT: 128 + 2. */
export const INTERRUPTED = 130;

/** A signal that SIGINT raises, and the way to stop listening. */
export interface Interrupt extends Disposable {
  readonly signal: AbortSignal;
}

/**
 * Listens for SIGINT: the first raises `signal`, after `onFirst` was called; a second ends the process at once with
 * exit code 130. Dispose of it (or use `using`) to give SIGINT back.
 *
 * @example
 * using interrupt = onInterrupt();
 * const result = await new Trainer({ model, train, epochs: 10, signal: interrupt.signal }).fit();
 * if (result.interrupted) process.exitCode = INTERRUPTED;
 */
export function onInterrupt(onFirst?: () => void): Interrupt {
  const controller = new AbortController();
  const listener = (): void => {
    if (controller.signal.aborted) process.exit(INTERRUPTED);
    onFirst?.();
    controller.abort();
  };
  process.on('SIGINT', listener);
  return { signal: controller.signal, [Symbol.dispose]: () => void process.off('SIGINT', listener) };
}
