/** Writes what npm calls a tarball: a gzipped tar archive in which every file lies under package/. */
import { createReadStream, createWriteStream, readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { createGzip } from 'node:zlib';

const block = 512;

/** npm's own time stamp for all files: equal contents make equal archives. */
const modified = Date.UTC(1985, 9, 26, 8, 15) / 1000;

/**
 * The files of a folder, as paths with forward slashes, sorted.
 * @param {string} folder
 * @returns {string[]}
 */
export function filesOf(folder) {
  return readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) =>
      join(entry.parentPath, entry.name)
        .slice(folder.length + 1)
        .replaceAll('\\', '/'),
    )
    .sort();
}

/**
 * A ustar header.
 * @param {string} path
 * @param {number} size
 * @param {boolean} executable
 */
function header(path, size, executable) {
  const bytes = Buffer.alloc(block);
  // Up to 100 characters of name, and before the slash that is left out between them, up to 155 of prefix.
  const cut = path.length <= 100 ? -1 : path.indexOf('/', path.length - 101);
  if ((path.length > 100 && cut < 0) || cut > 155) throw new Error(`${path} is too long for a tar archive`);
  const octal = (/** @type {number} */ value, /** @type {number} */ width) =>
    `${value.toString(8).padStart(width - 1, '0')}\0`;
  bytes.write(path.slice(cut + 1), 0);
  bytes.write(octal(executable ? 0o755 : 0o644, 8), 100);
  bytes.write(octal(0, 8), 108);
  bytes.write(octal(0, 8), 116);
  bytes.write(octal(size, 12), 124);
  bytes.write(octal(modified, 12), 136);
  bytes.write(' '.repeat(8), 148);
  bytes.write('0', 156);
  bytes.write('ustar\x0000', 257);
  if (cut > 0) bytes.write(path.slice(0, cut), 345);
  const sum = bytes.reduce((total, byte) => total + byte, 0);
  bytes.write(`${octal(sum, 7)} `, 148);
  return bytes;
}

/**
 * @param {string} folder
 * @returns {AsyncGenerator<Buffer>}
 */
async function* archive(folder) {
  for (const file of filesOf(folder)) {
    const path = join(folder, file);
    const { size, mode } = statSync(path);
    yield header(`package/${file}`, size, (mode & 0o100) !== 0);
    yield* createReadStream(path, { highWaterMark: 1 << 20 });
    yield Buffer.alloc((block - (size % block)) % block);
  }
  yield Buffer.alloc(2 * block);
}

/**
 * Packs a folder.
 * @param {string} folder
 * @param {string} file
 * @param {number} level of compression, 1 to 9
 * @returns {Promise<{ packed: number, unpacked: number }>} bytes of the archive and of the files in it
 */
export async function writeTarball(folder, file, level) {
  await pipeline(Readable.from(archive(folder)), createGzip({ level }), createWriteStream(file));
  const unpacked = filesOf(folder).reduce((total, path) => total + statSync(join(folder, path)).size, 0);
  return { packed: statSync(file).size, unpacked };
}
