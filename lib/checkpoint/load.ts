import type { Device, Tensor } from '../tensor/index.js';
import { CheckpointError, quoteList } from './errors.js';
import { looksLikeNpy, parseNpz, readNpy } from './npy.js';
import { findDataEntry, looksLikeZip, readTorchFile } from './pytorch.js';
import { FileMap, type ByteRegion } from './region.js';
import { looksLikeSafetensors, readSafetensors, toDevice } from './safetensors.js';
import { INDEX_ENDING, readSharded } from './sharded.js';
import type { PickleValue } from './values.js';
import { ZipArchive } from './zip.js';

/** The formats that `readCheckpoint` tells apart. */
export type CheckpointFormat = 'safetensors' | 'torch' | 'npy' | 'npz';

/** A checkpoint file as read. `stateDictOf` finds the weights in it. */
export interface Checkpoint {
  readonly path: string;
  readonly format: CheckpointFormat;
  /** A Map of tensors, or for PyTorch files whatever was saved. A single `.npy` array is called 'array'. */
  readonly value: PickleValue;
  /** The strings of a safetensors header; empty for other formats. */
  readonly metadata: Readonly<Record<string, string>>;
}

/** Options of `readCheckpoint`. */
export interface ReadCheckpointOptions {
  /** Where the tensors go; default the CPU, mapped and not copied. */
  readonly device?: Device;
}

/**
 * Reads a checkpoint file in any format: safetensors, PyTorch (zip or old container), NumPy. The format is recognized by
 * the content, not by the file's name; an index of shards by its ending, `.index.json`.
 *
 * @throws CheckpointError when no format is recognized, saying what the file looks like, or when the file is damaged
 * @example
 * const weights = stateDictOf(readCheckpoint('model.pth'));
 */
export function readCheckpoint(path: string, options: ReadCheckpointOptions = {}): Checkpoint {
  if (typeof path === 'string' && path.endsWith(INDEX_ENDING)) {
    const { tensors, metadata } = readSharded(path, options);
    return { path, format: 'safetensors', value: tensors, metadata };
  }
  const format = recognize(path);
  const device = options.device ?? 'cpu';
  switch (format) {
    case 'safetensors': {
      const { tensors, metadata } = readSafetensors(path, { device });
      return { path, format, value: tensors, metadata };
    }
    case 'torch':
      return { path, format, value: readTorchFile(path, { device }), metadata: {} };
    case 'npy':
      return { path, format, value: new Map([['array', toDevice(readNpy(path), device)]]), metadata: {} };
    case 'npz': {
      const tensors = readArchive(path);
      return {
        path,
        format,
        value: new Map([...tensors].map(([name, tensor]) => [name, toDevice(tensor, device)])),
        metadata: {},
      };
    }
  }
}

function readArchive(path: string): Map<string, Tensor> {
  using file = FileMap.open(path);
  return parseNpz(ZipArchive.open(file), path);
}

function recognize(path: string): CheckpointFormat {
  using file = FileMap.open(path);
  if (looksLikeZip(file)) return recognizeArchive(file);
  if (looksLikeNpy(file)) return 'npy';
  if (looksLikeSafetensors(file)) return 'safetensors';
  if (looksLikePickle(file)) return 'torch';
  throw new CheckpointError(
    path,
    `${describeUnknown(file)}; safetensors, PyTorch (.pt, .pth), .npy and .npz files are read`,
  );
}

function recognizeArchive(file: ByteRegion): CheckpointFormat {
  const archive = ZipArchive.open(file);
  if (findDataEntry(archive)) return 'torch';
  const names = [...archive.entries.keys()];
  if (names.length > 0 && names.every((name) => name.endsWith('.npy'))) return 'npz';
  throw new CheckpointError(
    file.path,
    `is a zip archive, but neither of torch.save nor of numpy.savez; it has ${quoteList(names, 8) || 'no entries'}`,
  );
}

/** What a file of torch.save with protocol 0 or 1 begins with: its magic number as text. */
const MAGIC_TEXT = 'L119547037146038801333356L';

/** Protocol 2 and up begin with a mark of their own; before that, only the magic number of torch.save is recognized. */
function looksLikePickle(file: ByteRegion): boolean {
  const start = Buffer.from(file.bytes(0, Math.min(file.size, MAGIC_TEXT.length))).toString('latin1');
  return start.charCodeAt(0) === 0x80 || start === MAGIC_TEXT;
}

const SIGNS: readonly (readonly [RegExp, string])[] = [
  [/^version https:\/\/git-lfs/, 'is a Git LFS pointer, not the file itself: fetch it with "git lfs pull"'],
  [/^\s*(<!doctype|<html|<\?xml)/i, 'is a web page or XML, so the download went wrong'],
  [/^\s*[{[]/, 'looks like JSON text'],
  [/^\x89HDF/, 'is an HDF5 (Keras) file'],
  [/^GGUF/, 'is a GGUF file'],
  // A gzip file begins with 1f 8b; control characters in an expression look like mistakes, so only the second stands here.
  [/^.\x8b/, 'is compressed with gzip: unpack it first'],
  [/^[^]{257}ustar/, 'is a tar archive (or a PyTorch file older than 0.1.10): unpack it first'],
];

function describeUnknown(file: ByteRegion): string {
  const start = Buffer.from(file.bytes(0, Math.min(file.size, 512))).toString('latin1');
  const sign = SIGNS.find(([pattern]) => pattern.test(start));
  return sign
    ? sign[1]
    : `is in no known format (it begins with the bytes ${Buffer.from(start.slice(0, 8), 'latin1').toString('hex')})`;
}
