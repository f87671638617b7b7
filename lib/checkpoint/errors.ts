/** A checkpoint file that cannot be used: broken, lying about itself, or asking for something that is refused. */
export class CheckpointError extends Error {
  /** The file the message is about. */
  readonly path: string;

  /**
   * @param path the file
   * @param message what was found, what was expected, what to do; the path is put in front of it
   * @param options `cause`: the error underneath
   */
  constructor(path: string, message: string, options?: { cause?: unknown }) {
    super(`${path}: ${message}`, options);
    this.name = 'CheckpointError';
    this.path = path;
  }
}

/** Quotes a name from a file for a message: escaped, and cut when a hostile file makes it long. */
export function quote(name: string): string {
  return JSON.stringify(name.length > 120 ? `${name.slice(0, 117)}...` : name);
}

/** Up to `limit` names, quoted, and how many more there are. */
export function quoteList(names: Iterable<string>, limit = 20): string {
  const all = [...names];
  const shown = all.slice(0, limit).map(quote).join(', ');
  return all.length > limit ? `${shown} and ${all.length - limit} more` : shown;
}
