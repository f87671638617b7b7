import { Tensor } from '../tensor/index.js';
import { spellingOf } from './dtypes.js';
import { PickledRecord, pythonType } from './values.js';

/** What `writeTorchFile` can store: tensors, and plain data around them. Maps and plain objects become dicts. */
export type Storable =
  | null
  | boolean
  | number
  | bigint
  | string
  | Tensor
  | readonly Storable[]
  | ReadonlyMap<string, Storable>
  | { readonly [key: string]: Storable };

/** A pickle and the tensors whose storages it refers to, in the order of their keys '0', '1', ... */
export interface PickledTensors {
  readonly bytes: Uint8Array;
  readonly storages: readonly Tensor[];
}

/**
 * Pickles plain data as `torch.save` does (protocol 2), with names only that PyTorch loads with `weights_only=True`.
 * Tensors are contiguous there; those on other devices come back on the CPU. An integral number becomes an int.
 */
export function pickleForTorch(value: Storable): PickledTensors {
  const pickler = new Pickler();
  pickler.add(value, new Set());
  return pickler.finish();
}

class Pickler {
  readonly #chunks: Buffer[] = [Buffer.from([0x80, 2])];
  readonly #storages: Tensor[] = [];
  readonly #keys = new Map<Tensor, number>();

  finish(): PickledTensors {
    this.#write('.');
    return { bytes: Buffer.concat(this.#chunks), storages: this.#storages };
  }

  add(value: Storable, open: Set<object>): void {
    if (value === null) this.#write('N');
    else if (typeof value === 'boolean') this.#bytes([value ? 0x88 : 0x89]);
    else if (typeof value === 'number') this.#number(value);
    else if (typeof value === 'bigint') this.#long(value);
    else if (typeof value === 'string') this.#text(value);
    else if (value instanceof Tensor) this.#tensor(value);
    else this.#container(value, open);
  }

  #container(value: Exclude<Storable, null | boolean | number | bigint | string | Tensor>, open: Set<object>): void {
    if (open.has(value)) throw new TypeError('a value that contains itself cannot be written');
    open.add(value);
    if (Array.isArray(value)) {
      this.#write(']');
      this.#write('(');
      for (const item of value as readonly Storable[]) this.add(item, open);
      this.#write('e');
    } else {
      this.#write('}');
      this.#write('(');
      for (const [key, item] of entriesOf(value as ReadonlyMap<string, Storable>)) {
        if (typeof key !== 'string') throw new TypeError(`keys must be strings, found ${pythonType(key)}`);
        this.#text(key);
        this.add(item, open);
      }
      this.#write('u');
    }
    open.delete(value);
  }

  #number(value: number): void {
    if (!Number.isInteger(value) || Object.is(value, -0)) {
      const bytes = Buffer.alloc(9);
      bytes.write('G', 'latin1');
      bytes.writeDoubleBE(value, 1);
      this.#chunks.push(bytes);
    } else if (Math.abs(value) < 2 ** 31) {
      const bytes = Buffer.alloc(5);
      bytes.write('J', 'latin1');
      bytes.writeInt32LE(value, 1);
      this.#chunks.push(bytes);
    } else {
      this.#long(BigInt(value));
    }
  }

  #long(value: bigint): void {
    let bits = 8;
    while (BigInt.asIntN(bits, value) !== value) bits += 8;
    if (bits > 255 * 8) throw new RangeError('an integer of more than 255 bytes cannot be written');
    const bytes = Buffer.from(
      BigInt.asUintN(bits, value)
        .toString(16)
        .padStart(bits / 4, '0'),
      'hex',
    ).reverse();
    this.#bytes([0x8a, bytes.length, ...bytes]);
  }

  #text(value: string): void {
    const bytes = Buffer.from(value, 'utf8');
    const head = Buffer.alloc(5);
    head.write('X', 'latin1');
    head.writeUInt32LE(bytes.length, 1);
    this.#chunks.push(head, bytes);
  }

  /**
   * `_rebuild_tensor_v2(storage, 0, size, stride, False, OrderedDict())`, the storage as a persistent id; for dtypes
   * without storages of their own `_rebuild_tensor_v3(bytes, ..., dtype)`.
   */
  #tensor(tensor: Tensor): void {
    const { storage, bytes } = spellingOf(tensor.dtype);
    const known = this.#keys.get(tensor);
    const key = known ?? this.#storages.push(tensor) - 1;
    this.#keys.set(tensor, key);
    const { shape } = tensor;
    this.#write(`ctorch._utils\n_rebuild_tensor_v${storage === null ? 3 : 2}\n`);
    this.#write('((');
    this.#text('storage');
    this.#write(storage === null ? 'ctorch.storage\nUntypedStorage\n' : `ctorch\n${storage}\n`);
    this.#text(String(key));
    this.#text('cpu');
    this.#number(storage === null ? tensor.numel() * bytes : tensor.numel());
    this.#write('tQK\0');
    this.#tuple(shape);
    this.#tuple(contiguousStrides(shape));
    this.#bytes([0x89]);
    this.#write('ccollections\nOrderedDict\n)R');
    if (storage === null) this.#write(`ctorch\n${tensor.dtype}\n`);
    this.#write('tR');
  }

  #tuple(values: readonly number[]): void {
    this.#write('(');
    for (const value of values) this.#number(value);
    this.#write('t');
  }

  #write(text: string): void {
    this.#chunks.push(Buffer.from(text, 'latin1'));
  }

  #bytes(bytes: readonly number[]): void {
    this.#chunks.push(Buffer.from(bytes));
  }
}

function contiguousStrides(shape: readonly number[]): number[] {
  let step = 1;
  return shape
    .toReversed()
    .map((size) => {
      const stride = step;
      step *= Math.max(size, 1);
      return stride;
    })
    .reverse();
}

function entriesOf(
  value: ReadonlyMap<string, Storable> | { readonly [key: string]: Storable },
): Iterable<[string, Storable]> {
  if (value instanceof Map) return value as Map<string, Storable>;
  if (value instanceof PickledRecord) return value.fields as Map<string, Storable>;
  const prototype: unknown = Object.getPrototypeOf(value);
  if (prototype === Object.prototype || prototype === null) return Object.entries(value as { [key: string]: Storable });
  throw new TypeError(
    `cannot write ${pythonType(value)}; tensors, text, numbers, booleans, null, arrays, Maps and plain objects can be written`,
  );
}
