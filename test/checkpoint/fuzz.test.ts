/**
 * 10,000 mutated files: each is either read, and its tensors can be summed, or refused with an Error. Seeded: case `i` is
 * the same file in every run. A failure prints its number; `mutate(originals, i)` makes the file again.
 */
import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { readCheckpoint, stateDictOf } from '../../lib/checkpoint/index.js';
import { memory, scope } from '../../lib/tensor/index.js';
import { fixture, temporaryFolder } from './helpers.js';

const CASES = 10_000;
const folder = temporaryFolder();
const NAMES = [
  'dtypes.safetensors',
  'dtypes.safetensors',
  'structured.pt',
  'structured_legacy.pt',
  'dtypes.pt',
  'dtypes_legacy.pt',
  'dtypes.safetensors',
  'structured_deflated.pt',
  'protocol4.pt',
  'numpy_protocol5.pkl',
  'compressed.npz',
  'fortran.npy',
  'dtypes_big_endian.pt',
];

/** A small generator of its own (mulberry32): the cases must not change with a library. */
function generator(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return Math.floor((((t ^ (t >>> 14)) >>> 0) / 4294967296) * below);
  };
}

const LENGTHS = [
  0n,
  1n,
  0x7fn,
  0xffn,
  0xffffn,
  0x7fffffffn,
  0xfffffff0n,
  0xffffffffn,
  2n ** 40n,
  2n ** 53n,
  2n ** 63n - 1n,
  2n ** 64n - 1n,
];

/** Where lengths, headers and directories are: mutations there tell more than mutations of the numbers. */
function place(random: (below: number) => number, size: number): number {
  const reach = Math.min(size, [16, 256, 1024][random(3)] ?? 16);
  const choice = random(3);
  return choice === 0 ? random(size) : choice === 1 ? random(reach) : size - 1 - random(reach);
}

type Mutation = (bytes: Buffer, random: (below: number) => number) => Buffer;

const MUTATIONS: Mutation[] = [
  (bytes, random) => bytes.subarray(0, random(bytes.length)),
  (bytes, random) => {
    for (let flips = 1 + random(4); flips > 0; flips--) {
      const at = place(random, bytes.length);
      bytes[at] = (bytes[at] ?? 0) ^ (1 << random(8));
    }
    return bytes;
  },
  (bytes, random) => {
    for (let count = 1 + random(8); count > 0; count--) bytes[place(random, bytes.length)] = random(256);
    return bytes;
  },
  (bytes, random) => {
    const wide = random(2) === 0;
    const value = LENGTHS[random(LENGTHS.length)] ?? 0n;
    const at = Math.min(place(random, bytes.length), bytes.length - 8);
    if (wide) bytes.writeBigUInt64LE(value, at);
    else bytes.writeUInt32LE(Number(value & 0xffffffffn), at);
    return bytes;
  },
  (bytes, random) => {
    // Another number in a JSON header or text: digits are replaced by digits.
    const digits = [...bytes.keys()].slice(0, 4096).filter((at) => (bytes[at] ?? 0) >= 48 && (bytes[at] ?? 0) <= 57);
    for (let count = 1 + random(3); count > 0 && digits.length > 0; count--)
      bytes[digits[random(digits.length)] ?? 0] = 48 + random(10);
    return bytes;
  },
  (bytes, random) => {
    const from = random(bytes.length);
    const length = 1 + random(64);
    return random(2) === 0
      ? Buffer.concat([bytes.subarray(0, from), bytes.subarray(from + length)])
      : Buffer.concat([bytes.subarray(0, from), bytes.subarray(from, from + length), bytes.subarray(from)]);
  },
  (bytes, random) => {
    bytes.copy(bytes, place(random, bytes.length), random(bytes.length), bytes.length);
    return bytes;
  },
  (bytes, random) => Buffer.concat([bytes, Buffer.alloc(1 + random(64), random(256))]),
];

function mutate(originals: Buffer[], index: number): Buffer {
  const random = generator(index);
  const original = originals[index % originals.length] ?? Buffer.alloc(0);
  const mutation = MUTATIONS[random(MUTATIONS.length)] ?? ((bytes) => bytes);
  return mutation(Buffer.from(original), random);
}

interface Outcome {
  loaded: number;
  refused: number;
  slowest: number;
  kinds: Map<string, number>;
}

function run(originals: Buffer[], from: number, to: number): Outcome {
  const outcome: Outcome = { loaded: 0, refused: 0, slowest: 0, kinds: new Map() };
  for (let index = from; index < to; index++) {
    const path = join(folder, `case-${index}`);
    writeFileSync(path, mutate(originals, index));
    const start = performance.now();
    try {
      // Reading the bytes is part of it: a tensor outside of its file would end the process here.
      scope(() => {
        for (const tensor of stateDictOf(readCheckpoint(path)).values()) tensor.to('complex128').sum().abs().item();
      });
      outcome.loaded++;
    } catch (error) {
      outcome.refused++;
      const kind = error instanceof Error ? error.name : 'not an Error';
      outcome.kinds.set(kind, (outcome.kinds.get(kind) ?? 0) + 1);
    }
    outcome.slowest = Math.max(outcome.slowest, performance.now() - start);
    rmSync(path);
  }
  return outcome;
}

test(`${CASES} mutated files are read or refused`, { timeout: 120_000 }, () => {
  const originals = NAMES.map((name) => readFileSync(fixture(name)));
  run(originals, 0, 1000);
  const tensors = memory().tensors;
  const before = process.memoryUsage().rss;
  const outcome = run(originals, 0, CASES);
  const grown = process.memoryUsage().rss - before;

  // Both outcomes must occur, or the mutations test nothing.
  expect(outcome.loaded + outcome.refused).toBe(CASES);
  expect(outcome.loaded).toBeGreaterThan(CASES / 20);
  expect(outcome.refused).toBeGreaterThan(CASES / 4);
  expect(outcome.kinds.get('not an Error')).toBeUndefined();
  // The caller's mistakes (TypeError) and LibTorch's refusals are not what a broken file is.
  expect(Object.fromEntries(outcome.kinds)).toEqual({ CheckpointError: outcome.refused });
  expect(memory().tensors).toBeLessThanOrEqual(tensors);
  expect(outcome.slowest).toBeLessThan(3000);
  expect(grown).toBeLessThan(200 * 2 ** 20);
});
