import { statSync } from 'node:fs';

import { native } from '../native/addon.js';
import type { MappedFile } from '../native/types.js';
import { call, fromTypedArray, noGrad, scope, type DType, type Tensor } from '../tensor/index.js';
import { spellingOf } from './dtypes.js';
import { CheckpointError } from './errors.js';

/** A stretch of bytes that tensors can be taken from: part of a mapped file, or inflated bytes in memory. */
export interface ByteRegion {
  /** The file, for messages. */
  readonly path: string;
  readonly size: number;
  /** A copy of `length` bytes from `offset`. */
  bytes(offset: number, length: number): Uint8Array;
  /** A tensor over the bytes from `offset`: without copying from a mapped file whose alignment allows it. */
  tensor(offset: number, shape: readonly number[], dtype: DType, strides?: readonly number[]): Tensor;
}

/** @throws TypeError when a path is no string: Node would take a number for an open file and wait for it */
export function requirePath(path: unknown): asserts path is string {
  if (typeof path !== 'string') throw new TypeError(`a file's path must be a string, not ${typeof path}`);
}

/**
 * A file mapped into memory, privately: tensors over it are read when they are used, writing to them copies the page
 * and never reaches the file. The mapping lives until `close` and the last tensor over it is freed.
 *
 * A file that another program cuts short while it is mapped takes its bytes with it: the operating system then kills
 * whoever reads them. Every new tensor checks the file's size again; beyond that, replace files (as all writers here
 * do), never truncate them.
 */
export class FileMap implements ByteRegion {
  readonly path: string;
  readonly size: number;
  readonly #file: MappedFile;
  #isOpen = true;

  private constructor(path: string, file: MappedFile) {
    this.path = path;
    this.#file = file;
    this.size = native.mapSize(file);
  }

  /** Maps `path`; a missing, empty or unreadable file or a folder is a CheckpointError. */
  static open(path: string): FileMap {
    requirePath(path);
    try {
      const stat = statSync(path);
      if (stat.isDirectory()) throw new CheckpointError(path, 'is a folder; expected a checkpoint file');
      if (!stat.isFile()) throw new CheckpointError(path, 'is not a regular file, so it cannot be mapped');
      if (stat.size === 0) throw new CheckpointError(path, 'is empty; expected a checkpoint file');
      return new FileMap(path, native.mapFile(path));
    } catch (error) {
      if (error instanceof CheckpointError) throw error;
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') {
        throw new CheckpointError(path, 'there is no such file', { cause: error });
      }
      throw new CheckpointError(path, `cannot be read: ${(error as Error).message}`, { cause: error });
    }
  }

  bytes(offset: number, length: number): Uint8Array {
    this.#check(offset, length);
    return this.#native(() => native.mapBytes(this.#file, offset, length));
  }

  tensor(offset: number, shape: readonly number[], dtype: DType, strides?: readonly number[]): Tensor {
    this.#check(offset, 0);
    return this.#native(() => native.tensorFromMap(this.#file, offset, shape, dtype, strides) as Tensor);
  }

  /** Gives the mapping up; tensors made from it stay valid. Closing twice is allowed. */
  close(): void {
    if (this.#isOpen) native.unmapFile(this.#file);
    this.#isOpen = false;
  }

  [Symbol.dispose](): void {
    this.close();
  }

  /** What the addon refuses here is the file's fault, not the caller's or LibTorch's. */
  #native<T>(action: () => T): T {
    try {
      return action();
    } catch (error) {
      const message = error instanceof Error ? error.message.replace(`${this.path}: `, '') : String(error);
      throw new CheckpointError(this.path, message, { cause: error });
    }
  }

  #check(offset: number, length: number): void {
    if (!this.#isOpen) throw new CheckpointError(this.path, 'is already closed; open it again to read from it');
    checkRange(this, offset, length);
  }
}

/** A part of another region. */
export class SubRegion implements ByteRegion {
  readonly path: string;

  constructor(
    private readonly parent: ByteRegion,
    private readonly start: number,
    readonly size: number,
  ) {
    this.path = parent.path;
    checkRange(parent, start, size);
  }

  bytes(offset: number, length: number): Uint8Array {
    checkRange(this, offset, length);
    return this.parent.bytes(this.start + offset, length);
  }

  tensor(offset: number, shape: readonly number[], dtype: DType, strides?: readonly number[]): Tensor {
    checkRange(this, offset, 0);
    return this.parent.tensor(this.start + offset, shape, dtype, strides);
  }
}

/** Bytes in memory. Its tensors are copies. */
export class MemoryRegion implements ByteRegion {
  readonly size: number;

  constructor(
    readonly path: string,
    private readonly data: Uint8Array,
  ) {
    this.size = data.length;
  }

  bytes(offset: number, length: number): Uint8Array {
    checkRange(this, offset, length);
    return this.data.slice(offset, offset + length);
  }

  tensor(offset: number, shape: readonly number[], dtype: DType, strides?: readonly number[]): Tensor {
    const { bytes } = spellingOf(dtype);
    const extent = strides ? stridedExtent(shape, strides) : shape.reduce((product, size) => product * size, 1);
    checkRange(this, offset, extent * bytes);
    const flat = tensorFromBytes(this.data.subarray(offset, offset + extent * bytes), [extent], dtype);
    const shaped = strides ? flat.asStrided([...shape], [...strides], 0) : flat.reshape([...shape]);
    flat.dispose();
    return shaped;
  }
}

/** Elements from the first to the last that a strided shape touches. */
function stridedExtent(shape: readonly number[], strides: readonly number[]): number {
  if (shape.includes(0)) return 0;
  return shape.reduce((last, size, axis) => last + (size - 1) * (strides[axis] ?? 0), 1);
}

/** A new CPU tensor from the little-endian bytes of its elements. */
export function tensorFromBytes(bytes: Uint8Array, shape: readonly number[], dtype: DType): Tensor {
  const raw = fromTypedArray(bytes, [bytes.length], 'uint8');
  const flat = dtype === 'uint8' ? raw : call('aten::view.dtype', raw, dtype);
  const shaped = flat.reshape([...shape]);
  flat.dispose();
  raw.dispose();
  return shaped;
}

/**
 * A new CPU tensor [count] from the big-endian bytes of its elements, whose numbers have `unit` bytes (two make a complex
 * one): turned around in LibTorch, so that there is no second copy in JavaScript.
 */
export function tensorFromSwapped(region: ByteRegion, count: number, dtype: DType, unit: number): Tensor {
  return noGrad(() =>
    scope(() => {
      const raw = region.tensor(0, [(count * spellingOf(dtype).bytes) / unit, unit], 'uint8');
      return call('aten::view.dtype', raw.flip([1]).flatten(), dtype);
    }),
  );
}

/** Reverses the bytes of every number of `unit` bytes in place, for files in the other byte order. */
export function swapBytes(bytes: Uint8Array, unit: number): Uint8Array {
  if (unit === 1) return bytes;
  const buffer = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (unit === 2) buffer.swap16();
  else if (unit === 4) buffer.swap32();
  else buffer.swap64();
  return bytes;
}

function checkRange(region: { path: string; size: number }, offset: number, length: number): void {
  const isValid = Number.isSafeInteger(offset) && Number.isSafeInteger(length) && offset >= 0 && length >= 0;
  if (!isValid || offset + length > region.size) {
    throw new CheckpointError(
      region.path,
      `needs ${length} bytes at offset ${offset}, but there are ${region.size}: the file is truncated or damaged`,
    );
  }
}
