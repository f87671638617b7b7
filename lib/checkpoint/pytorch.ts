import type { Device, DType, Tensor } from '../tensor/index.js';
import { byteLength, visitBytes, writeAtomically } from './atomic.js';
import { spellingOf, shapeText } from './dtypes.js';
import { CheckpointError, quote, quoteList } from './errors.js';
import { storageDType, TENSOR_STAND_IN } from './names.js';
import { readPickle, type PickleHost } from './pickle.js';
import { pickleForTorch, type Storable } from './pickler.js';
import { ByteReader } from './reader.js';
import { FileMap, tensorFromSwapped, type ByteRegion } from './region.js';
import { toDevice } from './safetensors.js';
import { pythonType, textOf, StorageReference, type PickleValue, type TensorDescription } from './values.js';
import { ZipArchive, type ZipEntry } from './zip.js';
import { ZipWriter } from './zipwriter.js';

/** Options of `readTorchFile`. */
export interface ReadTorchOptions {
  /** Where the tensors go; default the CPU, mapped and not copied. What the file says about devices is ignored. */
  readonly device?: Device;
  /** Compare every storage with its checksum (zip container only), which reads the whole file. Default false. */
  readonly verify?: boolean;
}

/** `torch.save` before 1.6 starts with this number. */
const MAGIC = 0x1950a86a20f9469cfc6cn;
const LEGACY_PROTOCOL = 1001;
/** A view may repeat elements (`expand`); beyond this the file asks for memory that it does not hold. */
const MAX_EXPANDED = 2 ** 28;

/**
 * Reads a file of `torch.save`: the zip container (since PyTorch 1.6), the old container, or a plain pickle of NumPy
 * arrays. Nothing is executed: names other than those that rebuild tensors and plain data are refused by name.
 * Tensors are memory-mapped without copying; tensors that shared a storage still do. `requires_grad` is not restored.
 *
 * @returns dicts as Map, lists and tuples as arrays, see PickleValue; `stateDictOf` finds the weights in it
 * @throws CheckpointError when the file is damaged or holds something that is refused
 * @example
 * const state = stateDictOf(readTorchFile('resnet50.pth'));
 */
export function readTorchFile(path: string, options: ReadTorchOptions = {}): PickleValue {
  const file = FileMap.open(path);
  try {
    return looksLikeZip(file) ? readTorchZip(file, ZipArchive.open(file), options) : readLegacy(file, options);
  } finally {
    file.close();
  }
}

/** True when the region begins like a zip archive (or is an empty one). */
export function looksLikeZip(region: ByteRegion): boolean {
  if (region.size < 4) return false;
  const [p, k, a, b] = region.bytes(0, 4);
  return p === 0x50 && k === 0x4b && ((a === 3 && b === 4) || (a === 5 && b === 6));
}

/** The entry that holds the pickle of a PyTorch archive: `<any folder>/data.pkl`. */
export function findDataEntry(archive: ZipArchive): ZipEntry | undefined {
  return [...archive.entries.values()].find(
    (entry) => /^[^/]+\/data\.pkl$/.test(entry.name) || entry.name === 'data.pkl',
  );
}

/** Reads an archive that is already open. */
function readTorchZip(file: ByteRegion, archive: ZipArchive, options: ReadTorchOptions): PickleValue {
  const entry = findDataEntry(archive);
  if (!entry) {
    throw new CheckpointError(
      file.path,
      `the archive has no data.pkl, so torch.save did not write it; it has ${quoteList(archive.entries.keys())}`,
    );
  }
  const folder = entry.name.slice(0, -'data.pkl'.length);
  archive.verify(entry);
  const isSwapped = readByteOrder(file, archive, folder) === 'big';
  const storages = new Storages(file.path, isSwapped, (reference) => {
    const name = `${folder}data/${reference.key}`;
    const stored = archive.entries.get(name);
    if (!stored)
      throw new CheckpointError(
        file.path,
        `the pickle refers to storage ${quote(name)}, which the archive does not have`,
      );
    if (options.verify) archive.verify(stored);
    return archive.content(stored);
  });
  try {
    return readPickle(new ByteReader(archive.content(entry)), tensorHost(storages, options.device));
  } finally {
    storages.release();
  }
}

function readByteOrder(file: ByteRegion, archive: ZipArchive, folder: string): 'little' | 'big' {
  const entry = archive.entries.get(`${folder}byteorder`);
  if (!entry) return 'little';
  const text = Buffer.from(archive.content(entry).bytes(0, Math.min(entry.size, 16))).toString('latin1');
  if (text === 'little' || text === 'big') return text;
  throw new CheckpointError(file.path, `the archive's byte order is ${quote(text)}; expected "little" or "big"`);
}

/**
 * The old container: magic number, protocol, system, the pickle, the keys of its storages, their bytes. The pickle
 * stands before the places of the storages are known, so it is read twice: first only to find its end and its storages.
 */
function readLegacy(file: ByteRegion, options: ReadTorchOptions): PickleValue {
  const reader = new ByteReader(file);
  if (readPickle(reader) !== MAGIC) return readPlainPickle(file);
  const protocol = readPickle(reader);
  if (protocol !== LEGACY_PROTOCOL)
    throw new CheckpointError(
      file.path,
      `protocol ${textOf(protocol)} of the old container is unknown; expected ${LEGACY_PROTOCOL}`,
    );
  const system = readPickle(reader);
  const isLittle = system instanceof Map ? system.get('little_endian') : undefined;
  if (typeof isLittle !== 'boolean')
    throw new CheckpointError(file.path, 'the old container does not say its byte order; it is damaged');

  const start = reader.position;
  const found = new Map<string, StorageReference>();
  readPickle(reader, collectingHost(file.path, found));
  const places = readStoragePlaces(file, reader, found);
  const storages = new Storages(file.path, !isLittle, ({ key }) => {
    const place = places.get(key);
    if (!place)
      throw new CheckpointError(file.path, `the pickle refers to storage ${quote(key)}, which the file does not have`);
    return place;
  });
  try {
    return readPickle(new ByteReader(file, start), tensorHost(storages, options.device));
  } finally {
    storages.release();
  }
}

function readPlainPickle(file: ByteRegion): PickleValue {
  return readPickle(new ByteReader(file));
}

function collectingHost(path: string, found: Map<string, StorageReference>): PickleHost {
  return {
    persistent: (id) => {
      const reference = storageReference(path, id);
      const earlier = found.get(reference.key);
      if (earlier && (earlier.bytes !== reference.bytes || earlier.dtype !== reference.dtype)) {
        throw new CheckpointError(
          path,
          `the pickle describes storage ${quote(reference.key)} in two ways; it is damaged`,
        );
      }
      found.set(reference.key, reference);
      return reference;
    },
    tensor: () => TENSOR_STAND_IN,
  };
}

function readStoragePlaces(
  file: ByteRegion,
  reader: ByteReader,
  found: Map<string, StorageReference>,
): Map<string, ByteRegion> {
  const keys = readPickle(reader);
  if (!Array.isArray(keys))
    throw new CheckpointError(file.path, `the list of storages is missing; found ${pythonType(keys)}`);
  const places = new Map<string, ByteRegion>();
  for (const key of keys) {
    const reference = typeof key === 'string' ? found.get(key) : undefined;
    if (typeof key !== 'string' || !reference)
      throw new CheckpointError(file.path, `the file stores ${quote(textOf(key))}, which its pickle does not use`);
    if (places.has(key)) throw new CheckpointError(file.path, `the file stores ${quote(key)} twice`);
    if (reader.remaining < 8)
      throw new CheckpointError(file.path, `storage ${quote(key)} is missing: the file is truncated`);
    const elements = reader.i64();
    const size = Number(elements) * spellingOf(reference.dtype ?? 'uint8').bytes;
    if (elements < 0n || size > reader.remaining) {
      throw new CheckpointError(
        file.path,
        `storage ${quote(key)} says it has ${elements} elements (${size} bytes), but ${reader.remaining} bytes are left: the file is truncated or damaged`,
      );
    }
    places.set(key, reader.subRegion(size));
  }
  return places;
}

/** Reads `('storage', class, key, location, elements[, view])`. */
function storageReference(path: string, id: PickleValue): StorageReference {
  const fail = (message: string): never => {
    throw new CheckpointError(path, `a reference to a storage is damaged: ${message}`);
  };
  if (!Array.isArray(id) || id[0] !== 'storage') return fail(`expected ('storage', ...), found ${pythonType(id)}`);
  const [, type, key, , elements, view] = id;
  const dtype = storageDType(type);
  if (dtype === undefined) return fail(`expected a storage class, found ${pythonType(type)}`);
  if (typeof key !== 'string') return fail(`its key is ${pythonType(key)}`);
  if (typeof elements !== 'number' || !Number.isSafeInteger(elements) || elements < 0)
    return fail(`storage ${quote(key)} has ${textOf(elements)} elements`);
  const bytes = elements * spellingOf(dtype ?? 'uint8').bytes;
  if (!Array.isArray(view)) return new StorageReference(key, dtype, bytes, elements);
  const [, offset, size] = view;
  if (
    typeof offset !== 'number' ||
    typeof size !== 'number' ||
    offset < 0 ||
    size < 0 ||
    !Number.isSafeInteger(offset + size) ||
    offset + size > elements
  ) {
    return fail(`the view of storage ${quote(key)} reaches outside of it`);
  }
  return new StorageReference(key, dtype, bytes, size, offset);
}

function tensorHost(storages: Storages, device: Device | undefined): PickleHost {
  return {
    persistent: (id) => storageReference(storages.path, id),
    tensor: (description) => toDevice(storages.tensor(description), device ?? 'cpu'),
  };
}

/** The storages of one file, each made once and shared by the tensors that are views of it. */
class Storages {
  /** By dtype and key: the whole storage, and its size in bytes. */
  readonly #opened = new Map<string, { readonly flat: Tensor; readonly size: number }>();

  constructor(
    readonly path: string,
    private readonly isSwapped: boolean,
    private readonly locate: (reference: StorageReference) => ByteRegion,
  ) {}

  tensor({ storage, dtype, offset, shape, strides }: TensorDescription): Tensor {
    const flat = this.#open(storage, dtype);
    const count = shape.reduce((product, size) => product * size, 1);
    const limit = storage.dtype === null ? Math.floor(storage.elements / spellingOf(dtype).bytes) : storage.elements;
    const last = shape.reduce((sum, size, axis) => sum + (size - 1) * (strides[axis] ?? 0), offset);
    if (count > 0 && last >= limit) {
      throw new CheckpointError(
        this.path,
        `a tensor of shape ${shapeText(shape)}, stride ${shapeText(strides)} and offset ${offset} reaches outside of its storage ${quote(storage.key)} of ${limit} elements`,
      );
    }
    if (count > Math.max(limit, MAX_EXPANDED)) {
      throw new CheckpointError(
        this.path,
        `a tensor of shape ${shapeText(shape)} repeats the ${limit} elements of its storage ${quote(storage.key)} too often; the file is damaged or hostile`,
      );
    }
    return flat.asStrided([...shape], [...strides], count === 0 ? 0 : storage.offset + offset);
  }

  /** Frees the flat tensors; the views of them keep the memory. */
  release(): void {
    for (const { flat } of this.#opened.values()) flat.dispose();
    this.#opened.clear();
  }

  #open(storage: StorageReference, dtype: DType): Tensor {
    const key = `${dtype} ${storage.key}`;
    const known = this.#opened.get(key);
    if (known) {
      this.#requireSize(storage, known.size);
      return known.flat;
    }
    const { bytes, unit } = spellingOf(dtype);
    const region = this.locate(storage);
    this.#requireSize(storage, region.size);
    const count = Math.floor(region.size / bytes);
    const flat =
      this.isSwapped && unit > 1 ? tensorFromSwapped(region, count, dtype, unit) : region.tensor(0, [count], dtype);
    this.#opened.set(key, { flat, size: region.size });
    return flat;
  }

  /** Every mention of a storage must say the size that it has. */
  #requireSize({ key, bytes }: StorageReference, size: number): void {
    if (size === bytes) return;
    throw new CheckpointError(
      this.path,
      `storage ${quote(key)} has ${size} bytes, but the pickle says ${bytes}; the file is damaged`,
    );
  }
}

/**
 * Writes a file that `torch.load(path, weights_only=True)` reads: the zip container of `torch.save`, atomically. Values
 * may be nested: `{ state_dict: tensors, epoch: 3 }`. Tensors are written contiguous and load on the CPU; one tensor
 * under two names is stored once.
 *
 * @throws TypeError for values that plain pickles cannot hold, and for meta tensors
 */
export function writeTorchFile(path: string, value: Storable): void {
  const { bytes, storages } = pickleForTorch(value);
  writeAtomically(path, (sink) => {
    const archive = new ZipWriter(sink);
    archive.addBytes('archive/data.pkl', bytes);
    archive.addBytes('archive/byteorder', Buffer.from('little'));
    storages.forEach((tensor, key) => {
      archive.add(`archive/data/${key}`, byteLength(tensor), (write) => visitBytes(tensor, write));
    });
    archive.addBytes('archive/version', Buffer.from('3\n'));
    archive.finish();
  });
}
