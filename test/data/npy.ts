/** The fixtures of this folder: images as NumPy files, uint8 [H, W, C]. */
import { readFileSync } from 'node:fs';
import path from 'node:path';
import type { Image } from '../../lib/data/index.js';

export const fixtures = path.join(import.meta.dirname, 'fixtures');

/** Real photographs, where this machine has them. */
export const signDigits = path.join(import.meta.dirname, '../../../shared/data/sign-digits');

export function readNpy(...names: string[]): Image {
  const file = readFileSync(path.join(fixtures, ...names));
  const headerLength = file.readUInt16LE(8);
  const header = file.toString('latin1', 10, 10 + headerLength);
  const shape = /'descr': '\|u1', 'fortran_order': False, 'shape': \((\d+), (\d+), (\d+)\)/.exec(header);
  if (!shape) throw new Error(`${names.join('/')}: expected uint8 [H, W, C], got ${header}`);
  const [height, width, channels] = shape.slice(1).map(Number) as [number, number, number];
  return { data: new Uint8Array(file.subarray(10 + headerLength)), height, width, channels };
}

/** How far two images are from each other: largest difference, and the shares of values within 0 and 1. */
export function compare(a: Image, b: Image): { most: number; exact: number; withinOne: number } {
  if (a.width !== b.width || a.height !== b.height || a.channels !== b.channels) {
    throw new Error(`sizes differ: ${a.height}x${a.width}x${a.channels} and ${b.height}x${b.width}x${b.channels}`);
  }
  let [most, exact, near] = [0, 0, 0];
  for (let i = 0; i < a.data.length; i++) {
    const difference = Math.abs(a.data[i]! - b.data[i]!);
    most = Math.max(most, difference);
    if (difference === 0) exact++;
    if (difference <= 1) near++;
  }
  return { most, exact: exact / a.data.length, withinOne: near / a.data.length };
}
