import { Tensor, type DType } from '../tensor/index.js';

/**
 * What a pickle can hold once read: Python's None, bool, int, float, str, bytes, list and tuple (both arrays), dict
 * (Map), set, tensors (NumPy arrays too), and objects of the few known record classes.
 */
export type PickleValue =
  | null
  | boolean
  | number
  | bigint
  | string
  | Uint8Array
  | PickleValue[]
  | Map<PickleValue, PickleValue>
  | Set<PickleValue>
  | Tensor
  | PickledRecord
  | Opaque;

/** What only the machine itself handles: names, references to storages, unfinished objects. */
export interface Opaque {
  readonly isOpaque: true;
}

/** What Python names of TorchScript's modules begin with. */
export const SCRIPT = '__torch__';

/** An object of a class that only keeps named values, such as `argparse.Namespace`. */
export class PickledRecord {
  /**
   * @param type the class's full Python name
   * @param fields its attributes (or items, for subclasses of dict)
   */
  constructor(
    readonly type: string,
    readonly fields: Map<string, PickleValue> = new Map(),
  ) {}
}

/** Where the bytes of a tensor come from: what a persistent id says. */
export class StorageReference implements Opaque {
  readonly isOpaque = true;

  constructor(
    readonly key: string,
    /** Null: untyped bytes. */
    readonly dtype: DType | null,
    /** Bytes of the whole storage called `key`. */
    readonly bytes: number,
    /** Elements that tensors may use; bytes if untyped. */
    readonly elements: number,
    /** First of them; not 0 only in old files, where a storage may be a view of another. */
    readonly offset = 0,
  ) {}
}

/** A tensor as the file describes it: a strided view of a storage. */
export interface TensorDescription {
  readonly storage: StorageReference;
  readonly dtype: DType;
  readonly offset: number;
  readonly shape: readonly number[];
  readonly strides: readonly number[];
}

/** A NumPy dtype; its byte order arrives after it was made. */
export class NumpyDType implements Opaque {
  readonly isOpaque = true;
  order = '=';
  constructor(readonly code: string) {}
}

/** A NumPy array whose content arrives after it was made; replaced by a tensor then. */
export class UnfinishedArray implements Opaque {
  readonly isOpaque = true;
  /** Places in the memo that must follow the replacement. */
  readonly memo: number[] = [];
}

/** A key or number as text; for other values, what they are. */
export function textOf(value: PickleValue | undefined): string {
  return typeof value === 'object' || value === undefined ? pythonType(value) : String(value);
}

/** What a Python value is, for messages. */
export function pythonType(value: unknown): string {
  if (value === undefined) return 'nothing';
  if (value === null) return 'None';
  if (Array.isArray(value)) return 'a list';
  if (value instanceof Map) return 'a dict';
  if (value instanceof Tensor) return 'a tensor';
  if (value instanceof PickledRecord) return value.type;
  if (value instanceof Uint8Array) return 'bytes';
  const names: Record<string, string> = { boolean: 'a bool', number: 'a number', bigint: 'an int', string: 'a str' };
  return names[typeof value] ?? 'an object';
}
