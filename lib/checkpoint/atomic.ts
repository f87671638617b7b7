import { randomBytes } from 'node:crypto';
import { closeSync, fsyncSync, openSync, realpathSync, renameSync, rmSync, writeSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';

import { call, scope, type Tensor } from '../tensor/index.js';
import { spellingOf } from './dtypes.js';

/** Where a writer puts its bytes. */
export interface Sink {
  /** Bytes written so far. */
  readonly position: number;
  /** Appends bytes, at `position`. */
  write(bytes: Uint8Array): void;
  /** Fills in bytes at an earlier or later place, without moving `position`. */
  writeAt(bytes: Uint8Array, position: number): void;
  /** Moves `position` forward; what is skipped is filled by `writeAt` or reads as zeros. */
  skip(count: number): void;
}

/**
 * Writes a file so that its path holds either the old content or the whole new one, whatever happens meanwhile: into a
 * temporary file in the same folder, flushed to the disk, then renamed. Nothing is left behind when `body` throws.
 */
export function writeAtomically(path: string, body: (sink: Sink) => void): void {
  const target = followLink(path);
  const temporary = join(dirname(target), `.${basename(target)}.${process.pid}-${randomBytes(4).toString('hex')}.tmp`);
  const descriptor = openSync(temporary, 'wx');
  let isOpen = true;
  try {
    body(new FileSink(descriptor));
    fsyncSync(descriptor);
    closeSync(descriptor);
    isOpen = false;
    renameSync(temporary, target);
  } catch (error) {
    if (isOpen) closeSync(descriptor);
    rmSync(temporary, { force: true });
    throw error;
  }
  flushFolder(dirname(target));
}

class FileSink implements Sink {
  position = 0;

  constructor(private readonly descriptor: number) {}

  /** Appends bytes, at `position`. */
  write(bytes: Uint8Array): void {
    this.writeAt(bytes, this.position);
    this.position += bytes.length;
  }

  writeAt(bytes: Uint8Array, position: number): void {
    for (let done = 0; done < bytes.length;) {
      done += writeSync(this.descriptor, bytes, done, bytes.length - done, position + done);
    }
  }

  skip(count: number): void {
    this.position += count;
  }
}

/** Renaming onto a symbolic link would replace the link; write to what it points to. */
function followLink(path: string): string {
  try {
    return realpathSync(path);
  } catch {
    return path;
  }
}

/** Makes the rename itself durable. Not every system lets a folder be opened; the file is complete either way. */
function flushFolder(folder: string): void {
  try {
    const descriptor = openSync(folder, 'r');
    try {
      fsyncSync(descriptor);
    } finally {
      closeSync(descriptor);
    }
  } catch {
    // Nothing to do about it: durability of the rename is then up to the file system.
  }
}

const CHUNK_BYTES = 16 * 1024 * 1024;

/**
 * Hands the little-endian bytes of a tensor to `visit`, in C order, at most 16 MB at a time so that a big tensor does
 * not stand in memory twice.
 */
export function visitBytes(tensor: Tensor, visit: (bytes: Uint8Array) => void): void {
  if (tensor.device === 'meta') {
    throw new TypeError('a tensor on the meta device has no data; load weights before writing a file');
  }
  const { bytes } = spellingOf(tensor.dtype);
  scope(() => {
    const plain = tensor.detach().resolveConj().resolveNeg().cpu().contiguous().reshape([-1]);
    const total = plain.numel();
    const step = Math.floor(CHUNK_BYTES / bytes);
    for (let start = 0; start < total; start += step) {
      scope(() => {
        const part = plain.narrow(0, start, Math.min(step, total - start));
        const raw = part.dtype === 'uint8' ? part : call('aten::view.dtype', part, 'uint8');
        visit(raw.data() as Uint8Array);
      });
    }
  });
}

/** Bytes of a tensor's elements in a file. */
export function byteLength(tensor: Tensor): number {
  return tensor.numel() * spellingOf(tensor.dtype).bytes;
}
