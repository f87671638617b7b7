/** Big archives in little room. */
import { closeSync, openSync, writeSync } from 'node:fs';
import type { Sink } from '../../lib/checkpoint/atomic.js';
import { ZipWriter } from '../../lib/checkpoint/zipwriter.js';

/** A file in which zeros are left out: they read as zeros all the same. */
export class SparseSink implements Sink {
  position = 0;

  constructor(private readonly file: number) {}

  write(bytes: Uint8Array): void {
    if (bytes !== ZEROS) this.writeAt(bytes, this.position);
    this.position += bytes.length;
  }

  writeAt(bytes: Uint8Array, position: number): void {
    writeSync(this.file, bytes, 0, bytes.length, position);
  }

  skip(count: number): void {
    this.position += count;
  }
}

const ZEROS = new Uint8Array(1 << 24);

/** A file of torch.save with `big`, float32 zeros of a little over 4 GB, and `behind`, [1, 2, 3]. Returns the bytes of `big`. */
export function bigTorchArchive(path: string): number {
  const elements = (257 * ZEROS.length) / 4;
  const tensor = (name: string, key: string, count: number): string => {
    const number = (n: number): string => `J${Buffer.from(new Int32Array([n]).buffer).toString('latin1')}`;
    const storage = `(U\x07storagectorch\nFloatStorage\nU\x01${key}U\x03cpu${number(count)}tQ`;
    const rest = `K\0(${number(count)}t(K\x01t\x89ccollections\nOrderedDict\n)R`;
    return `U${String.fromCharCode(name.length)}${name}ctorch._utils\n_rebuild_tensor_v2\n(${storage}${rest}tR`;
  };
  const pickle = `\x80\x02}(${tensor('big', '0', elements)}${tensor('behind', '1', 3)}u.`;
  const file = openSync(path, 'w');
  const archive = new ZipWriter(new SparseSink(file));
  archive.addBytes('archive/data.pkl', Buffer.from(pickle, 'latin1'));
  archive.addBytes('archive/byteorder', Buffer.from('little'));
  archive.add('archive/data/0', elements * 4, (write) => {
    for (let i = 0; i < 257; i++) write(ZEROS);
  });
  archive.addBytes('archive/data/1', Buffer.from(new Float32Array([1, 2, 3]).buffer));
  archive.addBytes('archive/version', Buffer.from('3\n'));
  archive.finish();
  closeSync(file);
  return elements * 4;
}
