/** Weights spread over several files with an index beside them, as transformers saves big models. */
import { readFileSync, rmSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import type { Device, Tensor } from '../tensor/index.js';
import { byteLength, writeAtomically } from './atomic.js';
import { CheckpointError, quote } from './errors.js';
import { findDuplicateKey } from './header.js';
import { requirePath } from './region.js';
import { readTorchFile } from './pytorch.js';
import { readSafetensors, writeSafetensors } from './safetensors.js';
import { stateDictOf } from './unwrap.js';

/** How the file that lists the shards ends. */
export const INDEX_ENDING = '.index.json';

/** transformers' own bound. */
const DEFAULT_SHARD_BYTES = 5e9;

interface Index {
  readonly metadata: Readonly<Record<string, string>>;
  /** Names of tensors by file. */
  readonly files: ReadonlyMap<string, readonly string[]>;
}

/** Reads an index and believes none of its paths: shards are files beside it. */
function readIndex(path: string): Index {
  const fail = (message: string): never => {
    throw new CheckpointError(path, message);
  };
  let text: string;
  try {
    text = readFileSync(path, 'utf8');
  } catch (error) {
    throw new CheckpointError(path, 'the index of the shards cannot be read', { cause: error });
  }
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (error) {
    throw new CheckpointError(path, 'the index of the shards is not JSON', { cause: error });
  }
  const { weight_map: map, metadata } = (json ?? {}) as { weight_map?: unknown; metadata?: unknown };
  if (typeof map !== 'object' || map === null || Array.isArray(map))
    return fail('the index has no weight_map; expected { weight_map: { tensor: file } }');
  const duplicate = findDuplicateKey(text);
  if (duplicate !== null) fail(`the index has the key ${quote(duplicate)} twice in one object`);
  const files = new Map<string, string[]>();
  for (const [name, file] of Object.entries(map)) {
    if (typeof file !== 'string' || file !== basename(file) || file === '' || file === '..')
      return fail(`the index puts ${quote(name)} into ${quote(String(file))}; expected the name of a file beside it`);
    files.set(file, [...(files.get(file) ?? []), name]);
  }
  const strings = Object.entries((metadata ?? {}) as Record<string, unknown>).filter(
    (entry): entry is [string, string] => typeof entry[1] === 'string',
  );
  return { metadata: Object.fromEntries(strings), files };
}

/**
 * Reads sharded weights (safetensors or PyTorch files) by their index, `model.safetensors.index.json`: each shard is
 * mapped, and its tensors are read as they are used.
 *
 * @throws CheckpointError for a damaged index, a shard outside of its folder, and a shard that lacks its tensors
 */
export function readSharded(
  path: string,
  { device = 'cpu' }: { readonly device?: Device } = {},
): { tensors: Map<string, Tensor>; metadata: Record<string, string> } {
  requirePath(path);
  const { files, metadata } = readIndex(path);
  const tensors = new Map<string, Tensor>();
  for (const [file, names] of files) {
    const shard = join(dirname(path), file);
    const content = file.endsWith('.safetensors')
      ? readSafetensors(shard, { device, names }).tensors
      : stateDictOf({ path: shard, value: readTorchFile(shard, { device }) }, { prefixes: [] });
    for (const name of names) {
      const tensor = content.get(name);
      if (!tensor) throw new CheckpointError(shard, `has no tensor ${quote(name)}, which the index says it has`);
      tensors.set(name, tensor);
    }
  }
  return { tensors, metadata: { ...metadata } };
}

/**
 * Writes tensors as safetensors: one file at `path` while it holds at most `maxShardBytes`, else `x-00001-of-00003.safetensors`,
 * ... and the index `x.safetensors.index.json` beside it. The index is written last, and returned is the path to read.
 *
 * @throws TypeError as `writeSafetensors`; RangeError for a bound that is not positive
 */
export function writeSharded(
  path: string,
  tensors: Iterable<readonly [string, Tensor]>,
  {
    maxShardBytes = DEFAULT_SHARD_BYTES,
    metadata = {},
  }: { readonly maxShardBytes?: number; readonly metadata?: Readonly<Record<string, string>> } = {},
): string {
  requirePath(path);
  if (!path.endsWith('.safetensors')) throw new RangeError(`sharded weights are safetensors; '${path}' must end so`);
  if (!(maxShardBytes > 0)) throw new RangeError(`maxShardBytes must be positive, got ${maxShardBytes}`);
  const shards: [string, Tensor][][] = [[]];
  let held = 0;
  let total = 0;
  for (const [name, tensor] of tensors) {
    const size = byteLength(tensor);
    if (held > 0 && held + size > maxShardBytes) {
      shards.push([]);
      held = 0;
    }
    shards.at(-1)?.push([name, tensor]);
    held += size;
    total += size;
  }
  const index = path + INDEX_ENDING;
  if (shards.length === 1) {
    writeSafetensors(path, shards[0] ?? [], metadata);
    rmSync(index, { force: true });
    return path;
  }
  const digits = (n: number): string => String(n).padStart(5, '0');
  const map: Record<string, string> = {};
  shards.forEach((shard, i) => {
    const file = path.replace(/\.safetensors$/, `-${digits(i + 1)}-of-${digits(shards.length)}.safetensors`);
    writeSafetensors(file, shard, metadata);
    for (const [name] of shard) map[name] = basename(file);
  });
  writeAtomically(index, (sink) => {
    sink.write(
      Buffer.from(`${JSON.stringify({ metadata: { ...metadata, total_size: total }, weight_map: map }, null, 2)}\n`),
    );
  });
  return index;
}
