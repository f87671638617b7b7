import type { DType } from '../tensor/index.js';
import { DTYPES, elementCount, shapeText } from './dtypes.js';
import { CheckpointError, quote } from './errors.js';

/** Where one tensor of a safetensors file lies: bytes `start` to `end` of the data that follows the header. */
export interface SafetensorsEntry {
  readonly name: string;
  readonly dtype: DType;
  readonly shape: readonly number[];
  readonly start: number;
  readonly end: number;
}

/** What a safetensors header says. */
export interface SafetensorsHeader {
  /** By name, in the order of the header. */
  readonly entries: Map<string, SafetensorsEntry>;
  readonly metadata: Record<string, string>;
}

const byName = new Map(DTYPES.flatMap((entry) => (entry.safetensors ? [[entry.safetensors, entry] as const] : [])));

/**
 * Reads the JSON header of a safetensors file and believes none of it: every range must match its dtype and shape, and
 * together they must cover the `dataSize` bytes after the header exactly, without overlap or gap.
 */
export function parseSafetensorsHeader(path: string, bytes: Uint8Array, dataSize: number): SafetensorsHeader {
  const json = parseStrictJson(path, bytes);
  if (!isRecord(json))
    throw new CheckpointError(path, 'the header is no JSON object; expected { name: { dtype, ... } }');
  const entries = new Map<string, SafetensorsEntry>();
  let metadata: Record<string, string> = {};
  for (const [name, value] of Object.entries(json)) {
    if (name === '__metadata__') metadata = checkMetadata(path, value);
    else entries.set(name, checkEntry(path, name, value, dataSize));
  }
  checkCover(path, entries, dataSize);
  return { entries, metadata };
}

function parseStrictJson(path: string, bytes: Uint8Array): unknown {
  let text: string;
  try {
    text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch (error) {
    throw new CheckpointError(path, 'the header is not valid UTF-8; not a safetensors file, or damaged', {
      cause: error,
    });
  }
  if (!text.startsWith('{'))
    throw new CheckpointError(path, `the header must start with "{", not ${quote(text.slice(0, 1))}`);
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (error) {
    throw new CheckpointError(path, 'the header is not valid JSON; not a safetensors file, or damaged', {
      cause: error,
    });
  }
  const duplicate = findDuplicateKey(text);
  if (duplicate !== null)
    throw new CheckpointError(path, `the header has the key ${quote(duplicate)} twice in one object`);
  return json;
}

/** The first key that stands twice in one object of `text`, which must be valid JSON; JSON.parse keeps the last silently. */
export function findDuplicateKey(text: string): string | null {
  const open: (Set<string> | null)[] = [];
  let expectsKey = false;
  for (let at = 0; at < text.length; at++) {
    const char = text[at];
    if (char === '"') {
      const start = at++;
      let isEscaped = false;
      for (; text[at] !== '"'; at++) {
        if (text[at] === '\\') {
          isEscaped = true;
          at++;
        }
      }
      const keys = open.at(-1);
      if (expectsKey && keys) {
        const key = isEscaped ? (JSON.parse(text.slice(start, at + 1)) as string) : text.slice(start + 1, at);
        if (keys.has(key)) return key;
        keys.add(key);
        expectsKey = false;
      }
    } else if (char === '{') {
      open.push(new Set());
      expectsKey = true;
    } else if (char === '[') {
      open.push(null);
      expectsKey = false;
    } else if (char === '}' || char === ']') {
      open.pop();
      expectsKey = false;
    } else if (char === ',') {
      expectsKey = open.at(-1) instanceof Set;
    }
  }
  return null;
}

function checkMetadata(path: string, value: unknown): Record<string, string> {
  if (!isRecord(value)) throw new CheckpointError(path, '"__metadata__" must be an object of strings');
  for (const [key, text] of Object.entries(value)) {
    if (typeof text !== 'string') {
      throw new CheckpointError(path, `"__metadata__" must hold strings only, but ${quote(key)} is ${kindOf(text)}`);
    }
  }
  return value as Record<string, string>;
}

function checkEntry(path: string, name: string, value: unknown, dataSize: number): SafetensorsEntry {
  const fail = (message: string): never => {
    throw new CheckpointError(path, `tensor ${quote(name)}: ${message}`);
  };
  if (!isRecord(value)) return fail(`expected { dtype, shape, data_offsets }, found ${kindOf(value)}`);
  const { dtype, shape, data_offsets: offsets } = value;
  if (typeof dtype !== 'string') return fail(`dtype must be a string, found ${kindOf(dtype)}`);
  const spelling = byName.get(dtype);
  if (!spelling) return fail(`dtype ${quote(dtype)} is not supported; supported: ${[...byName.keys()].join(', ')}`);
  const count = elementCount(shape);
  if (count === null) {
    return fail(`shape must be a list of non-negative integers with a product below 2^53, found ${shapeText(shape)}`);
  }
  if (!isRange(offsets)) {
    return fail(`data_offsets must be two non-negative integers [start, end], found ${shapeText(offsets)}`);
  }
  const [start, end] = offsets;
  if (start > end) return fail(`data_offsets [${start}, ${end}] end before they start`);
  if (end > dataSize) {
    return fail(
      `data_offsets [${start}, ${end}] reach past the data of ${dataSize} bytes: the file is truncated or damaged`,
    );
  }
  const expected = count * spelling.bytes;
  if (end - start !== expected) {
    return fail(
      `${dtype} of shape ${shapeText(shape)} needs ${expected} bytes, but data_offsets [${start}, ${end}] hold ${end - start}`,
    );
  }
  return { name, dtype: spelling.dtype, shape: shape as number[], start, end };
}

function checkCover(path: string, entries: Map<string, SafetensorsEntry>, dataSize: number): void {
  const sorted = [...entries.values()].sort((a, b) => a.start - b.start || a.end - b.end);
  let reached = 0;
  let previous = '';
  for (const { name, start, end } of sorted) {
    if (start < reached) {
      throw new CheckpointError(
        path,
        `tensor ${quote(name)} starts at byte ${start} and overlaps ${quote(previous)}, which ends at ${reached}`,
      );
    }
    if (start > reached) {
      throw new CheckpointError(
        path,
        `${start - reached} bytes before tensor ${quote(name)} belong to no tensor (gap at ${reached})`,
      );
    }
    reached = end;
    previous = name;
  }
  if (reached !== dataSize) {
    throw new CheckpointError(path, `the tensors end at byte ${reached}, but ${dataSize} bytes follow the header`);
  }
}

function isRange(value: unknown): value is [start: number, end: number] {
  return Array.isArray(value) && value.length === 2 && value.every((n) => Number.isSafeInteger(n) && n >= 0);
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function kindOf(value: unknown): string {
  if (value === undefined) return 'nothing';
  if (value === null) return 'null';
  return Array.isArray(value) ? 'a list' : `${typeof value === 'object' ? 'an' : 'a'} ${typeof value}`;
}
