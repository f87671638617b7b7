import { CheckpointError } from './errors.js';
import { SubRegion, type ByteRegion } from './region.js';

const WINDOW = 64 * 1024;

/** Reads a region from front to back through a small window, so that a pickle inside a big file costs no copy of the file. */
export class ByteReader {
  #window: Uint8Array = new Uint8Array(0);
  #view = new DataView(this.#window.buffer);
  #windowStart = 0;
  #position: number;

  constructor(
    private readonly region: ByteRegion,
    start = 0,
  ) {
    this.#position = start;
  }

  get path(): string {
    return this.region.path;
  }

  /** Offset of the next byte in the region. */
  get position(): number {
    return this.#position;
  }

  get remaining(): number {
    return this.region.size - this.#position;
  }

  u8(): number {
    const at = this.#take(1);
    return this.#view.getUint8(at);
  }

  u16(): number {
    const at = this.#take(2);
    return this.#view.getUint16(at, true);
  }

  i32(): number {
    const at = this.#take(4);
    return this.#view.getInt32(at, true);
  }

  u32(): number {
    const at = this.#take(4);
    return this.#view.getUint32(at, true);
  }

  i64(): bigint {
    const at = this.#take(8);
    return this.#view.getBigInt64(at, true);
  }

  /** An unsigned 64-bit length; one beyond what is left is a CheckpointError before anything is allocated. */
  length64(): number {
    const at = this.#take(8);
    const length = this.#view.getBigUint64(at, true);
    if (length > BigInt(this.remaining)) throw this.#truncated(String(length));
    return Number(length);
  }

  /** Big-endian, as pickles write floats. */
  f64be(): number {
    const at = this.#take(8);
    return this.#view.getFloat64(at, false);
  }

  /** A copy of the next `length` bytes. */
  bytes(length: number): Uint8Array {
    if (length > this.remaining || length < 0) throw this.#truncated(String(length));
    if (length > WINDOW) {
      this.#position += length;
      return this.region.bytes(this.#position - length, length);
    }
    const at = this.#take(length);
    return this.#window.slice(at, at + length);
  }

  /** The next `size` bytes as a region of their own, without reading them. */
  subRegion(size: number): ByteRegion {
    const part = new SubRegion(this.region, this.#position, size);
    this.#position += size;
    return part;
  }

  /** The bytes up to the next line feed, which is consumed, as Latin-1 text. */
  line(limit = 1 << 20): string {
    let text = '';
    for (;;) {
      const byte = this.u8();
      if (byte === 10) return text;
      text += String.fromCharCode(byte);
      if (text.length > limit)
        throw new CheckpointError(this.path, `a line of the pickle is longer than ${limit} bytes`);
    }
  }

  /** Makes `count` bytes available in the window (which may exchange `#view`: call this first), steps over them and returns where they start in it. */
  #take(count: number): number {
    const at = this.#position - this.#windowStart;
    if (at + count <= this.#window.length) {
      this.#position += count;
      return at;
    }
    if (count > this.remaining) throw this.#truncated(String(count));
    this.#window = this.region.bytes(this.#position, Math.min(Math.max(WINDOW, count), this.remaining));
    this.#view = new DataView(this.#window.buffer, this.#window.byteOffset, this.#window.byteLength);
    this.#windowStart = this.#position;
    this.#position += count;
    return 0;
  }

  #truncated(wanted: string): CheckpointError {
    return new CheckpointError(
      this.path,
      `the pickle asks for ${wanted} bytes at offset ${this.#position}, but ${this.remaining} are left: the file is truncated or damaged`,
    );
  }
}
