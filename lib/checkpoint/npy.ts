import type { Tensor } from '../tensor/index.js';
import { byteLength, visitBytes, writeAtomically } from './atomic.js';
import { elementCount, MAX_DIMENSIONS, shapeText } from './dtypes.js';
import { CheckpointError, quote, quoteList } from './errors.js';
import { fortranStrides, numpyDType, numpyName, numpyTensor } from './numpy.js';
import { FileMap, type ByteRegion } from './region.js';
import { ZipArchive } from './zip.js';
import { ZipWriter } from './zipwriter.js';

const MAGIC = '\x93NUMPY';
/**
 * NumPy itself refuses to parse longer headers of files it does not trust; structured types, which are long, are
 * refused anyway.
 */
const MAX_HEADER = 64 * 1024;

/**
 * Reads a `.npy` file (versions 1 to 3) of numbers or booleans: memory-mapped without copying when its byte order is
 * this machine's, in Fortran order too. uint16, uint32 and uint64 become int32, int64 and int64.
 *
 * @throws CheckpointError for a damaged file, object arrays, strings, dates and records
 */
export function readNpy(path: string): Tensor {
  const file = FileMap.open(path);
  try {
    return parseNpy(file);
  } finally {
    file.close();
  }
}

/** Reads a `.npz` archive: its arrays by name, without the `.npy`. Stored arrays are mapped, compressed ones inflated. */
export function readNpz(path: string): Map<string, Tensor> {
  const file = FileMap.open(path);
  try {
    return parseNpz(ZipArchive.open(file), path);
  } finally {
    file.close();
  }
}

/** The arrays of an archive that is already open. */
export function parseNpz(archive: ZipArchive, path: string): Map<string, Tensor> {
  const tensors = new Map<string, Tensor>();
  for (const entry of archive.entries.values()) {
    if (!entry.name.endsWith('.npy')) {
      throw new CheckpointError(
        path,
        `a .npz archive holds .npy entries only, but this one has ${quote(entry.name)} (of ${quoteList(archive.entries.keys(), 5)})`,
      );
    }
    tensors.set(entry.name.slice(0, -'.npy'.length), parseNpy(archive.content(entry)));
  }
  return tensors;
}

/** True when the region begins with NumPy's magic string. */
export function looksLikeNpy(region: ByteRegion): boolean {
  return region.size >= 10 && Buffer.from(region.bytes(0, 6)).toString('latin1') === MAGIC;
}

/** Reads one array from a region. */
function parseNpy(region: ByteRegion): Tensor {
  const { path } = region;
  if (!looksLikeNpy(region)) throw new CheckpointError(path, 'does not start with NumPy\'s magic string "\\x93NUMPY"');
  const start = Buffer.from(region.bytes(0, Math.min(12, region.size)));
  const version = start.readUInt8(6);
  if (version < 1 || version > 3)
    throw new CheckpointError(path, `.npy version ${version} is unknown; 1 to 3 are read`);
  const fixed = version === 1 ? 10 : 12;
  if (region.size < fixed) throw new CheckpointError(path, 'ends inside its .npy header: the file is truncated');
  const length = version === 1 ? start.readUInt16LE(8) : start.readUInt32LE(8);
  if (length > MAX_HEADER || fixed + length > region.size) {
    throw new CheckpointError(
      path,
      `says its .npy header has ${length} bytes; at most ${Math.min(MAX_HEADER, region.size - fixed)} are possible`,
    );
  }
  const text = Buffer.from(region.bytes(fixed, length)).toString(version === 3 ? 'utf8' : 'latin1');
  const { descr, isFortran, shape } = parseNpyHeader(path, text);
  const type = numpyDType(path, descr);
  const size = region.size - fixed - length;
  const count = elementCount(shape);
  if (count === null || count * type.bytes !== size) {
    const needed = count === null ? 'no possible array' : `${count * type.bytes} bytes`;
    throw new CheckpointError(
      path,
      `an array of ${descr} of shape ${shapeText(shape)} is ${needed}, but ${size} bytes follow the header`,
    );
  }
  if (type.isSwapped || type.widened)
    return numpyTensor(path, type, shape, isFortran, region.bytes(fixed + length, size));
  return region.tensor(fixed + length, shape, type.dtype, isFortran ? fortranStrides(shape) : undefined);
}

interface NpyHeader {
  readonly descr: string;
  readonly isFortran: boolean;
  readonly shape: number[];
}

/** The header is a Python dict as text; of that syntax only what NumPy writes for plain arrays is read. */
export function parseNpyHeader(path: string, text: string): NpyHeader {
  const fail = (): never => {
    throw new CheckpointError(
      path,
      `cannot read the .npy header ${quote(text.trim())}; expected {'descr': '<f4', 'fortran_order': False, 'shape': (2, 3)}`,
    );
  };
  const body = /^\s*\{(.*)\}\s*$/s.exec(text)?.[1] ?? fail();
  if (/'descr'\s*:\s*\[/.test(body)) {
    throw new CheckpointError(
      path,
      'holds records (a structured dtype), which have no tensor; save the fields as separate arrays',
    );
  }
  const fields = new Map<string, string>();
  const field = /\s*(['"])(\w+)\1\s*:\s*('[^']*'|"[^"]*"|True|False|\([^()]*\))\s*(,|$)/y;
  while (field.lastIndex < body.length && body.slice(field.lastIndex).trim() !== '') {
    const found = field.exec(body) ?? fail();
    const [, , key = '', value = ''] = found;
    if (fields.has(key)) fail();
    fields.set(key, value);
  }
  const [descr, order, shape] = ['descr', 'fortran_order', 'shape'].map((key) => fields.get(key));
  if (!descr || !shape?.startsWith('(') || (order !== 'True' && order !== 'False') || fields.size !== 3) return fail();
  const sizes = shape
    .slice(1, -1)
    .split(',')
    .map((size) => size.trim());
  if (sizes.at(-1) === '') sizes.pop();
  if (sizes.length > MAX_DIMENSIONS || !sizes.every((size) => /^\d{1,16}L?$/.test(size))) return fail();
  return { descr: descr.slice(1, -1), isFortran: order === 'True', shape: sizes.map((size) => parseInt(size, 10)) };
}

/** Writes a tensor as `.npy`, version 1, C order, atomically. bfloat16 has no NumPy dtype and is a TypeError. */
export function writeNpy(path: string, tensor: Tensor): void {
  const header = npyHeader(tensor);
  writeAtomically(path, (sink) => {
    sink.write(header);
    visitBytes(tensor, (bytes) => sink.write(bytes));
  });
}

/** Writes tensors as an uncompressed `.npz`, atomically, each aligned so that it can be mapped. */
export function writeNpz(path: string, tensors: Iterable<readonly [string, Tensor]>): void {
  // One after the other, so that the first entry that is none ends it.
  const rows: { name: string; tensor: Tensor; header: Buffer }[] = [];
  for (const [name, tensor] of tensors) rows.push({ name, tensor, header: npyHeader(tensor) });
  writeAtomically(path, (sink) => {
    const archive = new ZipWriter(sink);
    for (const { name, tensor, header } of rows) {
      archive.add(`${name}.npy`, header.length + byteLength(tensor), (write) => {
        write(header);
        visitBytes(tensor, write);
      });
    }
    archive.finish();
  });
}

function npyHeader(tensor: Tensor): Buffer {
  const { shape } = tensor;
  const tuple = shape.length === 1 ? `(${shape[0]},)` : `(${shape.join(', ')})`;
  const text = `{'descr': '${numpyName(tensor.dtype)}', 'fortran_order': False, 'shape': ${tuple}, }`;
  // Data starts at a multiple of 64, as in NumPy.
  const total = Math.ceil((10 + text.length + 1) / 64) * 64;
  const header = Buffer.alloc(total, ' ');
  header.write(MAGIC, 0, 'latin1');
  header.writeUInt8(1, 6);
  header.writeUInt8(0, 7);
  header.writeUInt16LE(total - 10, 8);
  header.write(text, 10, 'latin1');
  header.write('\n', total - 1, 'latin1');
  return header;
}
