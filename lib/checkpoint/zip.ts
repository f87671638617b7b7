import { crc32, inflateRawSync } from 'node:zlib';

import { CheckpointError, quote } from './errors.js';
import { MemoryRegion, SubRegion, type ByteRegion } from './region.js';

/*
 * A reader of zip directories, our own because zero-copy loading needs what zip packages do not give: the place of a
 * stored entry's bytes inside the file. It reads stored and deflated entries, with ZIP64, and believes no length.
 */

/** One entry of an archive. */
export interface ZipEntry {
  readonly name: string;
  readonly isDeflated: boolean;
  readonly crc: number;
  /** Bytes in the file. */
  readonly storedSize: number;
  /** Bytes of the content. */
  readonly size: number;
  readonly headerOffset: number;
  /** Where the bytes start, past the entry's own header. */
  readonly dataOffset: number;
}

const END_SIGNATURE = 0x06054b50;
const END64_SIGNATURE = 0x06064b50;
const LOCATOR64_SIGNATURE = 0x07064b50;
const CENTRAL_SIGNATURE = 0x02014b50;
const LOCAL_SIGNATURE = 0x04034b50;
const END_SIZE = 22;
const CENTRAL_SIZE = 46;
const LOCAL_SIZE = 30;
/** The end record may be followed by a comment of up to 64 KB. */
const MAX_TAIL = END_SIZE + 0xffff;
/** Deflate cannot shrink data more than about 1032 to 1; an entry that says so lies. */
const MAX_DEFLATE_RATIO = 1032;

/** A zip archive over a region. Opening it checks the whole directory and every entry's header. */
export class ZipArchive {
  /** By name, in the order of the directory. */
  readonly entries: ReadonlyMap<string, ZipEntry>;

  private constructor(
    private readonly region: ByteRegion,
    entries: Map<string, ZipEntry>,
  ) {
    this.entries = entries;
  }

  static open(region: ByteRegion): ZipArchive {
    const directory = findDirectory(region);
    const entries = new Map<string, ZipEntry>();
    for (const entry of readDirectory(region, directory)) {
      if (entries.has(entry.name))
        throw new CheckpointError(region.path, `the archive has two entries called ${quote(entry.name)}`);
      entries.set(entry.name, entry);
    }
    checkDisjoint(region, entries, directory.offset);
    return new ZipArchive(region, entries);
  }

  /** The entry's content: a view of the file if it is stored, else inflated into memory and checked. */
  content(entry: ZipEntry): ByteRegion {
    if (!entry.isDeflated) return new SubRegion(this.region, entry.dataOffset, entry.size);
    return new MemoryRegion(this.region.path, this.#inflate(entry));
  }

  /** Compares the content with its checksum. Reading storages does not, because it would read the whole file. */
  verify(entry: ZipEntry): void {
    if (entry.isDeflated) {
      this.#inflate(entry);
      return;
    }
    const step = 16 * 1024 * 1024;
    let crc = 0;
    for (let start = 0; start < entry.size; start += step) {
      crc = crc32(this.region.bytes(entry.dataOffset + start, Math.min(step, entry.size - start)), crc);
    }
    this.#checkCrc(entry, crc);
  }

  #inflate(entry: ZipEntry): Uint8Array {
    const { path } = this.region;
    const packed = this.region.bytes(entry.dataOffset, entry.storedSize);
    let content: Uint8Array;
    try {
      // zlib grows the output as it comes, so a wrong size costs nothing; the cap stops a bomb.
      content = inflateRawSync(packed, { maxOutputLength: Math.max(entry.size, 1) });
    } catch (error) {
      throw new CheckpointError(
        path,
        `the archive's entry ${quote(entry.name)} does not inflate to its ${entry.size} bytes; the file is damaged`,
        { cause: error },
      );
    }
    if (content.length !== entry.size) {
      throw new CheckpointError(
        path,
        `the archive's entry ${quote(entry.name)} inflates to ${content.length} bytes; its directory says ${entry.size}`,
      );
    }
    this.#checkCrc(entry, crc32(content));
    return content;
  }

  #checkCrc(entry: ZipEntry, crc: number): void {
    if (crc === entry.crc) return;
    throw new CheckpointError(
      this.region.path,
      `the archive's entry ${quote(entry.name)} has checksum ${crc.toString(16)}, expected ${entry.crc.toString(16)}: the file is damaged`,
    );
  }
}

interface Directory {
  readonly offset: number;
  readonly size: number;
  readonly count: number;
}

function findDirectory(region: ByteRegion): Directory {
  const tailSize = Math.min(region.size, MAX_TAIL);
  const tailStart = region.size - tailSize;
  const tail = viewOf(region, tailStart, tailSize);
  for (let at = tailSize - END_SIZE; at >= 0; at--) {
    if (tail.getUint32(at, true) !== END_SIGNATURE || at + END_SIZE + tail.getUint16(at + 20, true) !== tailSize)
      continue;
    const end = tailStart + at;
    if (tail.getUint16(at + 4, true) === 0xffff || tail.getUint16(at + 10, true) === 0xffff)
      return findDirectory64(region, end);
    if (tail.getUint32(at + 12, true) === 0xffffffff || tail.getUint32(at + 16, true) === 0xffffffff)
      return findDirectory64(region, end);
    if (tail.getUint16(at + 4, true) !== 0 || tail.getUint16(at + 6, true) !== 0) {
      throw new CheckpointError(region.path, 'is a part of a zip archive split over several files; join them first');
    }
    return checkDirectory(
      region,
      end,
      tail.getUint32(at + 16, true),
      tail.getUint32(at + 12, true),
      tail.getUint16(at + 10, true),
    );
  }
  throw new CheckpointError(
    region.path,
    'starts like a zip archive but has no directory at its end: the file is truncated',
  );
}

function findDirectory64(region: ByteRegion, end: number): Directory {
  const fail = (): never => {
    throw new CheckpointError(region.path, 'the ZIP64 directory of the archive is missing or damaged');
  };
  if (end < 20) return fail();
  const locator = viewOf(region, end - 20, 20);
  if (locator.getUint32(0, true) !== LOCATOR64_SIGNATURE) return fail();
  const offset = toNumber(region, locator.getBigUint64(8, true));
  if (offset > end - 20 - 56) return fail();
  const record = viewOf(region, offset, 56);
  if (record.getUint32(0, true) !== END64_SIGNATURE) return fail();
  const directoryOffset = toNumber(region, record.getBigUint64(48, true));
  const size = toNumber(region, record.getBigUint64(40, true));
  return checkDirectory(region, offset, directoryOffset, size, toNumber(region, record.getBigUint64(32, true)));
}

function checkDirectory(region: ByteRegion, end: number, offset: number, size: number, count: number): Directory {
  if (offset + size > end) {
    throw new CheckpointError(
      region.path,
      `the archive's directory (${size} bytes at ${offset}) reaches past its end record at ${end}`,
    );
  }
  if (count * CENTRAL_SIZE > size) {
    throw new CheckpointError(
      region.path,
      `the archive's directory of ${size} bytes cannot hold the ${count} entries that it announces`,
    );
  }
  return { offset, size, count };
}

function* readDirectory(region: ByteRegion, { offset, size, count }: Directory): Generator<ZipEntry> {
  const view = viewOf(region, offset, size);
  const decoder = new TextDecoder('utf-8');
  let at = 0;
  for (let index = 0; index < count; index++) {
    if (at + CENTRAL_SIZE > size || view.getUint32(at, true) !== CENTRAL_SIGNATURE) {
      throw new CheckpointError(region.path, `entry ${index} of the archive's directory is damaged`);
    }
    const nameLength = view.getUint16(at + 28, true);
    const extraLength = view.getUint16(at + 30, true);
    const next = at + CENTRAL_SIZE + nameLength + extraLength + view.getUint16(at + 32, true);
    if (next > size) throw new CheckpointError(region.path, `entry ${index} of the archive's directory is cut short`);
    const nameBytes = new Uint8Array(view.buffer, view.byteOffset + at + CENTRAL_SIZE, nameLength);
    const name = decoder.decode(nameBytes);
    const flags = view.getUint16(at + 8, true);
    const method = view.getUint16(at + 10, true);
    if (flags & 1) throw new CheckpointError(region.path, `the archive's entry ${quote(name)} is encrypted`);
    if (method !== 0 && method !== 8) {
      throw new CheckpointError(
        region.path,
        `the archive's entry ${quote(name)} is compressed by method ${method}; only stored and deflated entries are read`,
      );
    }
    const wide = readZip64(region, view, at, at + CENTRAL_SIZE + nameLength, extraLength, name);
    const dataOffset = findData(region, wide.headerOffset, nameBytes, name);
    const entry = { name, isDeflated: method === 8, crc: view.getUint32(at + 16, true), dataOffset, ...wide };
    checkSizes(region, entry, offset);
    yield entry;
    at = next;
  }
}

/** Sizes and offset of an entry, from the ZIP64 field where the short fields are saturated. */
function readZip64(
  region: ByteRegion,
  view: DataView,
  at: number,
  extraStart: number,
  extraLength: number,
  name: string,
): { storedSize: number; size: number; headerOffset: number } {
  const short = {
    size: view.getUint32(at + 24, true),
    storedSize: view.getUint32(at + 20, true),
    headerOffset: view.getUint32(at + 42, true),
  };
  if (!Object.values(short).includes(0xffffffff)) return short;
  let field = extraStart;
  const extraEnd = extraStart + extraLength;
  while (field + 4 <= extraEnd) {
    const id = view.getUint16(field, true);
    const fieldEnd = field + 4 + view.getUint16(field + 2, true);
    field += 4;
    if (id === 1 && fieldEnd <= extraEnd) {
      const next = (value: number): number => {
        if (value !== 0xffffffff) return value;
        if (field + 8 > fieldEnd)
          throw new CheckpointError(region.path, `the ZIP64 field of the archive's entry ${quote(name)} is cut short`);
        field += 8;
        return toNumber(region, view.getBigUint64(field - 8, true));
      };
      // The field holds only the saturated values, in this order.
      const size = next(short.size);
      const storedSize = next(short.storedSize);
      return { size, storedSize, headerOffset: next(short.headerOffset) };
    }
    field = fieldEnd;
  }
  throw new CheckpointError(region.path, `the archive's entry ${quote(name)} lacks its ZIP64 field`);
}

/** Reads the header in front of an entry's data, whose length only that header knows. */
function findData(region: ByteRegion, headerOffset: number, nameBytes: Uint8Array, name: string): number {
  const header = viewOf(region, headerOffset, LOCAL_SIZE);
  if (header.getUint32(0, true) !== LOCAL_SIGNATURE) {
    throw new CheckpointError(region.path, `the archive's entry ${quote(name)} has no header at byte ${headerOffset}`);
  }
  const nameLength = header.getUint16(26, true);
  const localName = region.bytes(headerOffset + LOCAL_SIZE, nameLength);
  if (Buffer.compare(localName, nameBytes) !== 0) {
    throw new CheckpointError(
      region.path,
      `the archive's entry ${quote(name)} is called ${quote(new TextDecoder().decode(localName))} in its own header`,
    );
  }
  return headerOffset + LOCAL_SIZE + nameLength + header.getUint16(28, true);
}

function checkSizes(region: ByteRegion, entry: ZipEntry, directoryOffset: number): void {
  const { name, size, storedSize, dataOffset, isDeflated } = entry;
  if (dataOffset + storedSize > directoryOffset) {
    throw new CheckpointError(
      region.path,
      `the archive's entry ${quote(name)} (${storedSize} bytes at ${dataOffset}) reaches into the directory at ${directoryOffset}`,
    );
  }
  if (isDeflated ? size > storedSize * MAX_DEFLATE_RATIO + 64 : size !== storedSize) {
    throw new CheckpointError(
      region.path,
      `the archive's entry ${quote(name)} says it has ${size} bytes, but ${storedSize} are stored`,
    );
  }
}

function checkDisjoint(region: ByteRegion, entries: Map<string, ZipEntry>, end: number): void {
  const sorted = [...entries.values()].sort((a, b) => a.headerOffset - b.headerOffset);
  sorted.forEach((entry, index) => {
    const next = sorted[index + 1];
    const limit = next?.headerOffset ?? end;
    if (entry.dataOffset + entry.storedSize > limit) {
      throw new CheckpointError(
        region.path,
        `the archive's entries ${quote(entry.name)} and ${quote(next?.name ?? 'directory')} overlap`,
      );
    }
  });
}

function viewOf(region: ByteRegion, offset: number, length: number): DataView {
  const bytes = region.bytes(offset, length);
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

function toNumber(region: ByteRegion, value: bigint): number {
  if (value > BigInt(region.size)) {
    throw new CheckpointError(region.path, `the archive speaks of ${value} bytes; the file has ${region.size}`);
  }
  return Number(value);
}
