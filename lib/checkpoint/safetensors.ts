import type { Device, DType, Tensor } from '../tensor/index.js';
import { byteLength, visitBytes, writeAtomically } from './atomic.js';
import { spellingOf } from './dtypes.js';
import { CheckpointError, quote, quoteList } from './errors.js';
import { parseSafetensorsHeader, type SafetensorsEntry, type SafetensorsHeader } from './header.js';
import { FileMap, type ByteRegion } from './region.js';

/** The reference library's bound on the header; a bigger one is an attack or no safetensors file. */
const MAX_HEADER_BYTES = 100_000_000;

/** Options of `readSafetensors`. */
export interface ReadSafetensorsOptions {
  /** Where the tensors go; default the CPU, mapped and not copied. */
  readonly device?: Device;
  /** Only these; a name that the file lacks is a CheckpointError. Default: all. */
  readonly names?: readonly string[];
}

/** What `readSafetensors` returns. */
export interface SafetensorsContent {
  /** By name, in the order of the header. */
  readonly tensors: Map<string, Tensor>;
  readonly metadata: Record<string, string>;
}

/**
 * Reads a safetensors file: memory-mapped, without copying. Tensors are read from the disk as they are used; writing to
 * one copies the page and leaves the file as it is.
 *
 * @throws CheckpointError when the header breaks any rule of the format (see `parseSafetensorsHeader`)
 * @example
 * const { tensors } = readSafetensors('model.safetensors');
 * model.loadStateDict(tensors);
 */
export function readSafetensors(path: string, options: ReadSafetensorsOptions = {}): SafetensorsContent {
  const file = SafetensorsFile.open(path);
  try {
    const names = options.names ?? file.names();
    const tensors = new Map(names.map((name) => [name, file.get(name, options.device)]));
    return { tensors, metadata: file.metadata };
  } finally {
    file.close();
  }
}

/** A safetensors file held open, for taking single tensors. Close it, or declare it with `using`. */
export class SafetensorsFile {
  /** The strings of the header's `__metadata__`. */
  readonly metadata: Record<string, string>;
  readonly #entries: Map<string, SafetensorsEntry>;

  private constructor(
    readonly path: string,
    private readonly file: FileMap,
    private readonly dataStart: number,
    header: SafetensorsHeader,
  ) {
    this.metadata = header.metadata;
    this.#entries = header.entries;
  }

  /** Maps the file and checks its whole header; no tensor is read yet. */
  static open(path: string): SafetensorsFile {
    const file = FileMap.open(path);
    try {
      const dataStart = 8 + headerLength(file);
      const bytes = file.bytes(8, dataStart - 8);
      return new SafetensorsFile(path, file, dataStart, parseSafetensorsHeader(path, bytes, file.size - dataStart));
    } catch (error) {
      file.close();
      throw error;
    }
  }

  /** Tensor names in the order of the header. */
  names(): string[] {
    return [...this.#entries.keys()];
  }

  /** Whether the file holds a tensor of this name. */
  has(name: string): boolean {
    return this.#entries.has(name);
  }

  /** Shape and dtype of one tensor, without touching its data. */
  info(name: string): { shape: number[]; dtype: DType } {
    const { shape, dtype } = this.#entry(name);
    return { shape: [...shape], dtype };
  }

  /** One tensor: mapped on the CPU (the default), or copied to `device`. It outlives the file object. */
  get(name: string, device: Device = 'cpu'): Tensor {
    const { start, shape, dtype } = this.#entry(name);
    return toDevice(this.file.tensor(this.dataStart + start, shape, dtype), device);
  }

  /** Gives the file up; tensors taken from it stay valid. Closing twice is allowed. */
  close(): void {
    this.file.close();
  }

  /** As `close`, for `using`. */
  [Symbol.dispose](): void {
    this.close();
  }

  #entry(name: string): SafetensorsEntry {
    const entry = this.#entries.get(name);
    if (entry) return entry;
    throw new CheckpointError(this.path, `has no tensor ${quote(name)}; it has ${quoteList(this.#entries.keys())}`);
  }
}

/** Moves a tensor read from a file, freeing the mapped one; on the CPU it is the mapped one. */
export function toDevice(tensor: Tensor, device: Device): Tensor {
  if (device === 'cpu') return tensor;
  const moved = tensor.to(device);
  tensor.dispose();
  return moved;
}

/** True when the file begins like safetensors: a plausible header length, then "{". */
export function looksLikeSafetensors(file: ByteRegion): boolean {
  if (file.size < 10) return false;
  const start = file.bytes(0, 9);
  const length = new DataView(start.buffer, start.byteOffset).getBigUint64(0, true);
  return start[8] === 0x7b && length <= BigInt(MAX_HEADER_BYTES);
}

function headerLength(file: FileMap): number {
  if (file.size < 8) {
    throw new CheckpointError(
      file.path,
      `has ${file.size} bytes; a safetensors file starts with 8 bytes of header length`,
    );
  }
  const prefix = file.bytes(0, 8);
  const length = new DataView(prefix.buffer, prefix.byteOffset).getBigUint64(0, true);
  if (length > BigInt(MAX_HEADER_BYTES)) {
    throw new CheckpointError(
      file.path,
      `says its header has ${length} bytes; at most ${MAX_HEADER_BYTES} are allowed. Not a safetensors file?`,
    );
  }
  if (length > BigInt(file.size - 8)) {
    throw new CheckpointError(
      file.path,
      `says its header has ${length} bytes, but ${file.size - 8} follow: the file is truncated, or no safetensors file`,
    );
  }
  return Number(length);
}

/**
 * Writes tensors as safetensors, atomically: `path` holds the old file or the whole new one. Tensors are written one
 * after another, so the file never stands in memory. As in the reference library the data is ordered by falling
 * alignment, then by name, and the header is padded with spaces to a multiple of 8 bytes, so every tensor is aligned.
 *
 * @param tensors by name; any device and layout, dtypes except complex128
 * @param metadata strings for `__metadata__`; default none
 * @throws TypeError for a dtype that the format lacks, a meta tensor, metadata that is no string
 */
export function writeSafetensors(
  path: string,
  tensors: Iterable<readonly [string, Tensor]>,
  metadata: Readonly<Record<string, string>> = {},
): void {
  const rows = [...tensors].map(([name, tensor]) => {
    const { safetensors: dtype, unit } = spellingOf(tensor.dtype);
    if (dtype === null)
      throw new TypeError(`safetensors has no dtype for ${tensor.dtype} (tensor ${quote(name)}); convert it first`);
    if (tensor.device === 'meta')
      throw new TypeError(`tensor ${quote(name)} is on the meta device and has no data to write`);
    if (name === '__metadata__')
      throw new TypeError('a tensor cannot be called "__metadata__": the format uses that key');
    return { name, tensor, dtype, alignment: unit, size: byteLength(tensor) };
  });
  rows.sort((a, b) => b.alignment - a.alignment || (a.name < b.name ? -1 : a.name > b.name ? 1 : 0));

  const fields: string[] = [];
  if (Object.keys(metadata).length > 0) fields.push(`"__metadata__":${JSON.stringify(checkStrings(metadata))}`);
  const seen = new Set<string>();
  let position = 0;
  for (const { name, tensor, dtype, size } of rows) {
    if (seen.has(name)) throw new TypeError(`two tensors are called ${quote(name)}`);
    seen.add(name);
    fields.push(
      `${JSON.stringify(name)}:${JSON.stringify({ dtype, shape: tensor.shape, data_offsets: [position, position + size] })}`,
    );
    position += size;
  }
  const json = Buffer.from(`{${fields.join(',')}}`, 'utf8');
  if (json.length > MAX_HEADER_BYTES) {
    throw new RangeError(
      `the header would have ${json.length} bytes; readers of safetensors accept ${MAX_HEADER_BYTES}`,
    );
  }
  const header = Buffer.alloc(8 + Math.ceil(json.length / 8) * 8, ' ');
  header.writeBigUInt64LE(BigInt(header.length - 8), 0);
  json.copy(header, 8);

  writeAtomically(path, (sink) => {
    sink.write(header);
    for (const { tensor } of rows) visitBytes(tensor, (bytes) => sink.write(bytes));
  });
}

function checkStrings(metadata: Readonly<Record<string, string>>): Readonly<Record<string, string>> {
  for (const [key, value] of Object.entries(metadata)) {
    if (typeof value !== 'string')
      throw new TypeError(`safetensors metadata holds strings only, but ${quote(key)} is a ${typeof value}`);
  }
  return metadata;
}
