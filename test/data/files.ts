/** Folders of images, masks and annotations for the tests. */
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import sharp, { type PngOptions } from 'sharp';
import { afterAll } from 'vitest';
import type { Image } from '../../lib/data/index.js';

/** A fresh folder, removed after the tests of the file. */
export function scratchFolder(): string {
  const folder = mkdtempSync(path.join(tmpdir(), 'torchgraft-data-'));
  afterAll(() => rmSync(folder, { recursive: true }));
  return folder;
}

/** Writes a file, and the folders that it needs. */
export function write(content: string | Uint8Array, ...place: string[]): string {
  const file = path.join(...place);
  mkdirSync(path.dirname(file), { recursive: true });
  writeFileSync(file, content);
  return file;
}

/** An image of one value, or of what `value` says of each pixel. */
export function plain(
  height: number,
  width: number,
  channels: number,
  value: number | ((x: number, y: number) => number) = 0,
): Image {
  const data = new Uint8Array(height * width * channels);
  for (let i = 0; i < data.length; i++) {
    const pixel = Math.floor(i / channels);
    data[i] = typeof value === 'number' ? value : value(pixel % width, Math.floor(pixel / width));
  }
  return { data, height, width, channels };
}

/** The bytes of a PNG: gray for one channel, else RGB. */
export async function png(image: Image, options: PngOptions = {}): Promise<Uint8Array> {
  const { data, height, width, channels } = image;
  const raw = sharp(data, { raw: { height, width, channels: channels as 1 | 3 } });
  return raw
    .toColourspace(channels === 1 ? 'b-w' : 'srgb')
    .png(options)
    .toBuffer();
}
