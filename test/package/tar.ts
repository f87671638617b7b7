/** Reads npm's tarballs. */
import { readFileSync } from 'node:fs';
import { gunzipSync } from 'node:zlib';

export interface Entry {
  readonly path: string;
  readonly data: Buffer;
}

/** The files of a gzipped tar archive. */
export function readTarball(file: string): Entry[] {
  const bytes = gunzipSync(readFileSync(file));
  const entries: Entry[] = [];
  const text = (start: number, end: number): string => bytes.toString('utf8', start, end).replace(/\0.*$/s, '');
  for (let at = 0; bytes[at] !== 0;) {
    const size = parseInt(text(at + 124, at + 136), 8);
    const prefix = text(at + 345, at + 500);
    const name = text(at, at + 100);
    const data = bytes.subarray(at + 512, at + 512 + size);
    entries.push({ path: prefix === '' ? name : `${prefix}/${name}`, data });
    at += 512 + Math.ceil(size / 512) * 512;
  }
  return entries;
}
