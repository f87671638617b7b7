/**
 * PNG files of numbers: the values as they are stored. Image libraries look palettes up and stretch shallow gray to 0-255,
 * which turns class numbers into colors. W3C Recommendation "Portable Network Graphics" (third edition).
 */
import { promisify } from 'node:util';
import { crc32, inflate } from 'node:zlib';
import type { Image } from './image.js';

const inflated = promisify(inflate);

const SIGNATURE = Buffer.from('89504e470d0a1a0a', 'hex');

/** Larger than any mask, and small enough for its bytes to be counted. */
const MAX_SIDE = 2 ** 15;

interface Header {
  readonly width: number;
  readonly height: number;
  /** Bits per pixel. */
  readonly depth: number;
  readonly isInterlaced: boolean;
}

/**
 * The numbers of an indexed or gray PNG file, one channel of bytes: palette indices, or gray values as they are stored
 * (0 and 1 in a file of one bit). Of 16 bits, only values up to 255 fit.
 *
 * @throws Error that says what is wrong, not in which file
 */
export async function decodeNumbers(file: Uint8Array): Promise<Image> {
  const { header, data } = readChunks(Buffer.from(file.buffer, file.byteOffset, file.byteLength));
  const passes = header.isInterlaced ? ADAM7 : [[0, 0, 1, 1] as const];
  const sizes = passes.map(([x, y, dx, dy]) => ({
    width: Math.ceil((header.width - x) / dx),
    height: Math.ceil((header.height - y) / dy),
  }));
  const expected = sizes.reduce(
    (sum, { width, height }) => sum + (width > 0 ? height * (rowBytes(width, header) + 1) : 0),
    0,
  );
  // A file that holds more than its header says would otherwise be unpacked to any length.
  const rows = await inflated(data, { maxOutputLength: expected + 1 });
  if (rows.length !== expected) {
    throw new Error(`its pixels are damaged: expected ${String(expected)} bytes, got ${String(rows.length)}`);
  }
  const result = new Uint8Array(header.width * header.height);
  let start = 0;
  passes.forEach(([x, y, dx, dy], i) => {
    const { width, height } = sizes[i] as { width: number; height: number };
    if (width <= 0) return;
    const length = rowBytes(width, header);
    const pass = rows.subarray(start, start + height * (length + 1));
    start += pass.length;
    unfilter(pass, length, header.depth > 8 ? 2 : 1);
    for (let row = 0; row < height; row++) {
      const line = pass.subarray(row * (length + 1) + 1, (row + 1) * (length + 1));
      const to = (y + row * dy) * header.width + x;
      if (header.depth === 8 && dx === 1) result.set(line, to);
      else for (let column = 0; column < width; column++) result[to + column * dx] = value(line, column, header.depth);
    }
  });
  return { data: result, width: header.width, height: header.height, channels: 1 };
}

/** First column and row, and distances, of each pass of an interlaced file. */
const ADAM7: readonly (readonly [x: number, y: number, dx: number, dy: number])[] = [
  [0, 0, 8, 8],
  [4, 0, 8, 8],
  [0, 4, 4, 8],
  [2, 0, 4, 4],
  [0, 2, 2, 4],
  [1, 0, 2, 2],
  [0, 1, 1, 2],
];

function rowBytes(width: number, { depth }: Header): number {
  return Math.ceil((width * depth) / 8);
}

/** The header and the joined data of a file, its checksums tested. */
function readChunks(file: Buffer): { header: Header; data: Buffer } {
  if (file.length === 0) throw new Error('it is empty (0 bytes)');
  if (!file.subarray(0, 8).equals(SIGNATURE)) throw new Error('it is not a PNG file');
  let header: Header | undefined;
  const data: Buffer[] = [];
  for (let at = 8; at + 12 <= file.length;) {
    const length = file.readUInt32BE(at);
    const end = at + 8 + length;
    if (end + 4 > file.length) break;
    const type = file.toString('latin1', at + 4, at + 8);
    if (crc32(file.subarray(at + 4, end)) !== file.readUInt32BE(end)) {
      throw new Error(`its part ${JSON.stringify(type)} is damaged (the checksum is wrong)`);
    }
    const content = file.subarray(at + 8, end);
    if (type === 'IHDR') header = readHeader(content);
    else if (type === 'IDAT') data.push(content);
    else if (type === 'IEND' && header) return { header, data: Buffer.concat(data) };
    at = end + 4;
  }
  throw new Error('it is cut off');
}

const GRAY = 0;
const INDEXED = 3;

function readHeader(content: Buffer): Header {
  if (content.length !== 13) throw new Error('its header is damaged');
  const [width, height] = [content.readUInt32BE(0), content.readUInt32BE(4)];
  const [depth = 0, color = 0, compression, filter, interlace = 0] = content.subarray(8);
  if (color !== GRAY && color !== INDEXED) {
    throw new Error('it has colors; expected class numbers, as an indexed (palette) or gray PNG');
  }
  const depths = color === GRAY ? [1, 2, 4, 8, 16] : [1, 2, 4, 8];
  if (!depths.includes(depth) || compression !== 0 || filter !== 0 || interlace > 1) {
    throw new Error('its header is damaged');
  }
  if (width < 1 || height < 1 || width > MAX_SIDE || height > MAX_SIDE) {
    throw new Error(`it is ${String(height)}x${String(width)}; expected sides from 1 to ${String(MAX_SIDE)}`);
  }
  return { width, height, depth, isInterlaced: interlace === 1 };
}

/** Undoes the filters of rows of 1 + `length` bytes, in place; `step` bytes back is the pixel to the left. */
function unfilter(rows: Buffer, length: number, step: number): void {
  for (let start = 0; start < rows.length; start += length + 1) {
    const filter = rows[start] ?? 0;
    const undo = UNDO[filter];
    if (!undo) throw new Error(`its pixels are damaged: there is no filter ${String(filter)}`);
    undo(
      rows.subarray(start + 1, start + 1 + length),
      start > 0 ? rows.subarray(start - length, start) : new Uint8Array(length),
      step,
    );
  }
}

/** By number: what each filter took away from a row is added again, from what is to the left and above. */
const UNDO: readonly ((row: Uint8Array, above: Uint8Array, step: number) => void)[] = [
  () => undefined,
  (row, _above, step) => {
    for (let i = step; i < row.length; i++) row[i] = (row[i] ?? 0) + (row[i - step] ?? 0);
  },
  (row, above) => {
    for (let i = 0; i < row.length; i++) row[i] = (row[i] ?? 0) + (above[i] ?? 0);
  },
  (row, above, step) => {
    for (let i = 0; i < row.length; i++) row[i] = (row[i] ?? 0) + (((row[i - step] ?? 0) + (above[i] ?? 0)) >> 1);
  },
  (row, above, step) => {
    for (let i = 0; i < row.length; i++) {
      row[i] = (row[i] ?? 0) + paeth(row[i - step] ?? 0, above[i] ?? 0, above[i - step] ?? 0);
    }
  },
];

/** Of the pixels to the left, above, and above to the left, the one closest to left + above - corner. */
function paeth(left: number, above: number, corner: number): number {
  const [toLeft, toAbove] = [Math.abs(above - corner), Math.abs(left - corner)];
  const toCorner = Math.abs(left + above - 2 * corner);
  if (toLeft <= toAbove && toLeft <= toCorner) return left;
  return toAbove <= toCorner ? above : corner;
}

/** Pixel `column` of a row. */
function value(line: Buffer, column: number, depth: number): number {
  if (depth === 8) return line[column] ?? 0;
  if (depth === 16) {
    const number = line.readUInt16BE(2 * column);
    if (number > 255) throw new Error(`it has the value ${String(number)}; class numbers up to 255 are supported`);
    return number;
  }
  const bit = column * depth;
  return ((line[bit >> 3] ?? 0) >> (8 - depth - (bit & 7))) & ((1 << depth) - 1);
}
