import { crc32 } from 'node:zlib';

import type { Sink } from './atomic.js';

const UTF8_FLAG = 0x0800;
const MAX_16 = 0xffff;
const MAX_32 = 0xffffffff;
/** 1980-01-01, the first date that zip knows: files written twice are equal. */
const DATE = 0x0021;

interface WrittenEntry {
  readonly name: Buffer;
  readonly crc: number;
  readonly size: number;
  readonly headerOffset: number;
}

/** Writes a zip archive of stored entries, each one's data aligned so that it can be mapped. ZIP64 where needed. */
export class ZipWriter {
  readonly #entries: WrittenEntry[] = [];

  /** @param alignment bytes to which each entry's data is aligned; PyTorch uses 64 */
  constructor(
    private readonly sink: Sink,
    private readonly alignment = 64,
  ) {}

  /** Adds an entry of `size` bytes, which `body` hands over in pieces. */
  add(name: string, size: number, body: (write: (bytes: Uint8Array) => void) => void): void {
    const nameBytes = Buffer.from(name, 'utf8');
    if (nameBytes.length > MAX_16)
      throw new RangeError(`the name of an archive's entry may have ${MAX_16} bytes, not ${nameBytes.length}`);
    const headerOffset = this.sink.position;
    // The header carries the checksum but stands in front: leave room, write the data, then come back.
    const zip64 = size >= MAX_32 ? zip64Field([size, size]) : Buffer.alloc(0);
    const fixed = 30 + nameBytes.length + zip64.length;
    const padding = paddingField(headerOffset + fixed, this.alignment);
    this.sink.skip(fixed + padding.length);
    let crc = 0;
    let written = 0;
    body((bytes) => {
      crc = crc32(bytes, crc);
      written += bytes.length;
      this.sink.write(bytes);
    });
    if (written !== size) throw new Error(`archive entry ${name}: announced ${size} bytes, wrote ${written}`);
    const header = Buffer.alloc(30);
    header.writeUInt32LE(0x04034b50, 0);
    header.writeUInt16LE(zip64.length > 0 ? 45 : 20, 4);
    header.writeUInt16LE(UTF8_FLAG, 6);
    header.writeUInt16LE(DATE, 12);
    header.writeUInt32LE(crc, 14);
    header.writeUInt32LE(Math.min(size, MAX_32), 18);
    header.writeUInt32LE(Math.min(size, MAX_32), 22);
    header.writeUInt16LE(nameBytes.length, 26);
    header.writeUInt16LE(zip64.length + padding.length, 28);
    this.sink.writeAt(Buffer.concat([header, nameBytes, zip64, padding]), headerOffset);
    this.#entries.push({ name: nameBytes, crc, size, headerOffset });
  }

  /** Adds bytes that are at hand. */
  addBytes(name: string, bytes: Uint8Array): void {
    this.add(name, bytes.length, (write) => write(bytes));
  }

  /** Writes the directory. Nothing can be added afterwards. */
  finish(): void {
    const offset = this.sink.position;
    for (const entry of this.#entries) this.sink.write(centralRecord(entry));
    const size = this.sink.position - offset;
    const count = this.#entries.length;
    if (count >= MAX_16 || offset >= MAX_32 || size >= MAX_32) this.#finish64(offset, size, count);
    const end = Buffer.alloc(22);
    end.writeUInt32LE(0x06054b50, 0);
    end.writeUInt16LE(Math.min(count, MAX_16), 8);
    end.writeUInt16LE(Math.min(count, MAX_16), 10);
    end.writeUInt32LE(Math.min(size, MAX_32), 12);
    end.writeUInt32LE(Math.min(offset, MAX_32), 16);
    this.sink.write(end);
  }

  #finish64(offset: number, size: number, count: number): void {
    const at = this.sink.position;
    const record = Buffer.alloc(56 + 20);
    record.writeUInt32LE(0x06064b50, 0);
    record.writeBigUInt64LE(44n, 4);
    record.writeUInt16LE(45, 12);
    record.writeUInt16LE(45, 14);
    record.writeBigUInt64LE(BigInt(count), 24);
    record.writeBigUInt64LE(BigInt(count), 32);
    record.writeBigUInt64LE(BigInt(size), 40);
    record.writeBigUInt64LE(BigInt(offset), 48);
    record.writeUInt32LE(0x07064b50, 56);
    record.writeBigUInt64LE(BigInt(at), 64);
    record.writeUInt32LE(1, 72);
    this.sink.write(record);
  }
}

function centralRecord({ name, crc, size, headerOffset }: WrittenEntry): Buffer {
  const wide = [...(size >= MAX_32 ? [size, size] : []), ...(headerOffset >= MAX_32 ? [headerOffset] : [])];
  const extra = wide.length > 0 ? zip64Field(wide) : Buffer.alloc(0);
  const version = wide.length > 0 ? 45 : 20;
  const record = Buffer.alloc(46);
  record.writeUInt32LE(0x02014b50, 0);
  record.writeUInt16LE(version, 4);
  record.writeUInt16LE(version, 6);
  record.writeUInt16LE(UTF8_FLAG, 8);
  record.writeUInt16LE(DATE, 14);
  record.writeUInt32LE(crc, 16);
  record.writeUInt32LE(Math.min(size, MAX_32), 20);
  record.writeUInt32LE(Math.min(size, MAX_32), 24);
  record.writeUInt16LE(name.length, 28);
  record.writeUInt16LE(extra.length, 30);
  record.writeUInt32LE(Math.min(headerOffset, MAX_32), 42);
  return Buffer.concat([record, name, extra]);
}

function zip64Field(values: readonly number[]): Buffer {
  const field = Buffer.alloc(4 + values.length * 8);
  field.writeUInt16LE(1, 0);
  field.writeUInt16LE(values.length * 8, 2);
  values.forEach((value, index) => field.writeBigUInt64LE(BigInt(value), 4 + index * 8));
  return field;
}

/** An extra field (PyTorch's id, "FB") that moves the data from `position` to the next multiple of `alignment`. */
function paddingField(position: number, alignment: number): Buffer {
  const length = alignment - ((position + 4) % alignment || alignment);
  const field = Buffer.alloc(4 + length);
  field.write('FB', 0, 'latin1');
  field.writeUInt16LE(length, 2);
  return field;
}
