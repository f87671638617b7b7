/** Warnings go through Node's own channel: shown once on stderr, silenced or caught as any other. */

/** Emits a warning of type `TorchgraftWarning` with a code. */
export function warn(code: string, message: string): void {
  process.emitWarning(message, { type: 'TorchgraftWarning', code });
}
