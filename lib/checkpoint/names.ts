import { Tensor, type DType } from '../tensor/index.js';
import { DTYPES, elementCount, MAX_DIMENSIONS } from './dtypes.js';
import { CheckpointError, quote } from './errors.js';
import { numpyDType, numpyScalar, numpyTensor } from './numpy.js';
import type { PickleMachine } from './pickle.js';
import {
  NumpyDType,
  PickledRecord,
  pythonType,
  SCRIPT,
  StorageReference,
  UnfinishedArray,
  type Opaque,
  type PickleValue,
} from './values.js';

/** A Python name that pickles may use, and what stands in for it here. No Python runs: these are our own functions. */
export class KnownName implements Opaque {
  readonly isOpaque = true;

  constructor(
    /** Full Python name. */
    readonly name: string,
    readonly behavior: {
      readonly call?: (machine: PickleMachine, args: PickleValue[]) => PickleValue;
      /** The dtype that the name stands for, as a storage class. Null: untyped bytes. */
      readonly storage?: DType | null;
    } = {},
  ) {}

  get call() {
    return this.behavior.call;
  }
}

/** Python 2 names that Python 3 has moved. */
const MOVED: Record<string, string> = { __builtin__: 'builtins', copy_reg: 'copyreg', UserDict: 'collections' };

/**
 * What a pickle's `module name` stands for. A name outside the table ends the reading: that is the whole protection
 * against pickles that run programs.
 */
export function lookUp(machine: PickleMachine, module: string, name: string): PickleValue {
  const full = `${MOVED[module] ?? module}.${name}`;
  const found = TABLE.get(full);
  if (found !== undefined) return found;
  // Modules of a TorchScript archive: their code stands elsewhere in it and is not looked at.
  if (module === SCRIPT || module.startsWith(`${SCRIPT}.`)) return record(full);
  throw new CheckpointError(
    machine.path,
    `the file asks for the Python name ${quote(full)}, which is not among the few that rebuild tensors and plain data; ` +
      `it was refused and nothing was executed. ` +
      "If you trust the file, open it in Python and save only its tensors: torch.save({'state_dict': ...}, path)",
  );
}

/** The constructor's arguments are kept as the fields' start only where the class is a kind of dict. */
function record(type: string): KnownName {
  return new KnownName(type, {
    call: (machine, args) => {
      const made = new PickledRecord(type);
      const [items] = args;
      if (items instanceof Map) {
        machine.work(items.size);
        for (const [key, value] of items) machine.setItem(made, key, value);
      } else if (args.length > 0) {
        machine.fail(`${type} is rebuilt from its fields, not from ${pythonType(items)}`);
      }
      return made;
    },
  });
}

/** Classes that only keep named values, and that people leave in checkpoints. */
const RECORDS = [
  'argparse.Namespace',
  'types.SimpleNamespace',
  'yacs.config.CfgNode',
  'easydict.EasyDict',
  'addict.addict.Dict',
  'mmengine.config.config.ConfigDict',
  'mmcv.utils.config.ConfigDict',
];

const object = new KnownName('builtins.object');

function makeDict(machine: PickleMachine, args: PickleValue[]): PickleValue {
  const source = args[0] ?? [];
  const result = new Map<PickleValue, PickleValue>();
  const pairs = source instanceof Map ? [...source] : source;
  if (!Array.isArray(pairs)) machine.fail(`a dict is made from pairs, not from ${pythonType(source)}`);
  machine.work(pairs.length);
  for (const pair of pairs) {
    if (!Array.isArray(pair) || pair.length !== 2) machine.fail('a dict is made from pairs; the pickle is damaged');
    result.set(pair[0] ?? null, pair[1] ?? null);
  }
  return result;
}

/** A list, tuple, set or torch.Size from at most one sequence. */
function sequence(machine: PickleMachine, args: PickleValue[]): PickleValue[] {
  const source = args[0] ?? [];
  const items = source instanceof Set ? [...source] : source;
  if (!Array.isArray(items) || args.length > 1)
    machine.fail(`a sequence is made from one list, not from ${pythonType(source)}`);
  machine.work(items.length);
  return [...items];
}

/** Bytes as protocol 2 writes them: text and the name of its encoding, for Python 2 knows no bytes. */
function encode(machine: PickleMachine, args: PickleValue[]): Uint8Array {
  const [text, encoding] = args;
  if (typeof text !== 'string' || (encoding !== 'latin1' && encoding !== 'latin-1'))
    machine.fail('_codecs.encode is known for Latin-1 text only');
  machine.work(text.length);
  return new Uint8Array(Buffer.from(text, 'latin1'));
}

function makeBytes(machine: PickleMachine, args: PickleValue[]): Uint8Array {
  const [source, encoding] = args;
  if (source === undefined) return new Uint8Array(0);
  if (typeof source === 'string') return encode(machine, [source, encoding ?? null]);
  if (!(source instanceof Uint8Array)) machine.fail(`bytes are made from bytes, not from ${pythonType(source)}`);
  machine.work(source.length);
  return source.slice();
}

/** `copyreg._reconstructor(class, object, None)`: how protocols 0 and 1 make an object. */
function reconstruct(machine: PickleMachine, args: PickleValue[]): PickleValue {
  const [type, base, state] = args;
  if (!(type instanceof KnownName)) machine.fail(`the pickle makes an object of ${pythonType(type)}; it is damaged`);
  if (base === object) return machine.call(type, []);
  return machine.call(type, state === null || state === undefined ? [] : [state]);
}

function device(machine: PickleMachine, args: PickleValue[]): string {
  const [type, index] = args;
  if (typeof type !== 'string') machine.fail('torch.device is made from a name; the pickle is damaged');
  return typeof index === 'number' ? `${type}:${index}` : type;
}

function path(machine: PickleMachine, args: PickleValue[]): string {
  const parts = args.map((part) =>
    typeof part === 'string' ? part : machine.fail('a path is made from text; the pickle is damaged'),
  );
  return parts.join('/').replace(/^\/\//, '/');
}

/** `_rebuild_tensor_v2(storage, offset, size, stride, requires_grad, backward_hooks[, metadata])`, and its relatives. */
function rebuildTensor(machine: PickleMachine, args: PickleValue[], dtype?: DType): PickleValue {
  const [storage, offset, shape, strides] = args;
  const name = 'torch._utils._rebuild_tensor';
  if (!machine.host.tensor)
    machine.fail('the pickle describes a tensor of PyTorch, which this kind of file cannot hold');
  if (!(storage instanceof StorageReference)) machine.fail(`${name} needs a storage, found ${pythonType(storage)}`);
  if (typeof offset !== 'number' || !Number.isSafeInteger(offset) || offset < 0)
    machine.fail(`${name}: the storage offset must be a non-negative integer`);
  if (!isSizes(shape) || elementCount(shape) === null)
    machine.fail(`${name}: the size must be a list of non-negative integers with a product below 2^53`);
  if (!isSizes(strides) || strides.length !== shape.length)
    machine.fail(`${name}: the stride must be a list of ${shape.length} non-negative integers`);
  return machine.host.tensor({ storage, offset, shape, strides, dtype: dtype ?? storage.dtype ?? 'uint8' });
}

function isSizes(value: PickleValue | undefined): value is number[] {
  return (
    Array.isArray(value) &&
    value.length <= MAX_DIMENSIONS &&
    value.every((size) => typeof size === 'number' && Number.isSafeInteger(size) && size >= 0)
  );
}

/** `_rebuild_tensor_v3(storage, offset, size, stride, requires_grad, hooks, dtype[, metadata])`. */
function rebuildTensor3(machine: PickleMachine, args: PickleValue[]): PickleValue {
  const dtype = args[6];
  const found = DTYPES.find((entry) => `torch.${entry.dtype}` === dtype);
  return found
    ? rebuildTensor(machine, args, found.dtype)
    : machine.fail('_rebuild_tensor_v3: the dtype is not one that LibTorch computes in here');
}

/** `_rebuild_parameter(data, requires_grad, hooks)`: the data. */
function rebuildParameter(machine: PickleMachine, args: PickleValue[]): PickleValue {
  const [data] = args;
  return data instanceof Tensor || isStandIn(data)
    ? (data as PickleValue)
    : machine.fail(`a parameter is made from a tensor, not from ${pythonType(data)}`);
}

/** Lists and dicts of TorchScript, which wraps them to remember their types. */
function typed(machine: PickleMachine, args: PickleValue[]): PickleValue {
  return args[0] ?? machine.fail('a typed container of TorchScript holds nothing; the pickle is damaged');
}

/** The first pass over an old file builds no tensors; see pytorch.ts. */
export const TENSOR_STAND_IN: Opaque = { isOpaque: true };

function isStandIn(value: PickleValue | undefined): boolean {
  return value === TENSOR_STAND_IN;
}

/** `_rebuild_from_type_v2(function, type, args, state)`: a tensor with Python attributes, which are left out. */
function rebuildFromType(machine: PickleMachine, args: PickleValue[]): PickleValue {
  const [rebuild, type, inner] = args;
  const isPlain = type instanceof KnownName && TENSOR_CLASSES.includes(type.name);
  return isPlain
    ? machine.call(rebuild ?? null, inner ?? null)
    : machine.fail('a tensor of a class of its own cannot be rebuilt');
}

const TENSOR_CLASSES = [
  'torch.Tensor',
  'torch._tensor.Tensor',
  'torch.nn.parameter.Parameter',
  'torch.nn.parameter.Buffer',
];

function rawBytes(machine: PickleMachine, value: PickleValue | undefined): Uint8Array {
  if (value instanceof Uint8Array) return value;
  if (typeof value === 'string') return encode(machine, [value, 'latin1']);
  return machine.fail(`NumPy data must be bytes, found ${pythonType(value)}; arrays of objects are refused`);
}

function numpyType(machine: PickleMachine, value: PickleValue | undefined) {
  if (!(value instanceof NumpyDType)) machine.fail(`expected a NumPy dtype, found ${pythonType(value)}`);
  return numpyDType(machine.path, value.order === '=' ? value.code : value.order + value.code);
}

/** `scalar(dtype, bytes)`. */
function makeNumpyScalar(machine: PickleMachine, args: PickleValue[]): PickleValue {
  const type = args[0] instanceof NumpyDType ? args[0].code : '';
  const data = rawBytes(machine, args[1]);
  // Strings of NumPy (names of data sets, mostly) hold 4 bytes for each character (U) or one (S).
  if (/^U\d+$/.test(type)) return Buffer.from(data).toString('utf16le').replaceAll('\0', '');
  if (/^S\d+$/.test(type)) return Buffer.from(data).toString('latin1').replace(/\0+$/, '');
  return numpyScalar(machine.path, numpyType(machine, args[0]), data);
}

/** The state of an ndarray: (version, shape, dtype, isFortran, data). */
export function finishArray(machine: PickleMachine, state: PickleValue[]): PickleValue {
  const [shape, dtype, isFortran, data] = state.slice(-4);
  return makeArray(machine, shape, dtype, isFortran === true, data);
}

function makeArray(
  machine: PickleMachine,
  shape: PickleValue | undefined,
  dtype: PickleValue | undefined,
  isFortran: boolean,
  data: PickleValue | undefined,
): Tensor {
  if (!isSizes(shape)) machine.fail('the shape of a NumPy array must be non-negative integers');
  const bytes = rawBytes(machine, data);
  machine.work(bytes.length);
  return numpyTensor(machine.path, numpyType(machine, dtype), shape, isFortran, bytes);
}

/** `_frombuffer(buffer, dtype, shape, order)`: how protocol 5 keeps arrays. */
function fromBuffer(machine: PickleMachine, args: PickleValue[]): PickleValue {
  const [data, dtype, shape, order] = args;
  return makeArray(machine, shape, dtype, order === 'F', data);
}

function makeDType(machine: PickleMachine, args: PickleValue[]): PickleValue {
  const [code] = args;
  if (typeof code !== 'string' || !/^[<>|=]?[a-zA-Z]\d*$/.test(code))
    machine.fail('the NumPy dtype is none of plain numbers');
  return new NumpyDType(code);
}

function known(): Map<string, PickleValue> {
  const table = new Map<string, PickleValue>();
  const add = (name: string, behavior: KnownName['behavior'] = {}): void => {
    table.set(name, new KnownName(name, behavior));
  };
  for (const { dtype, storage } of DTYPES) {
    if (storage !== null) add(`torch.${storage}`, { storage: dtype });
    if (storage !== null) add(`torch.cuda.${storage}`, { storage: dtype });
    table.set(`torch.${dtype}`, `torch.${dtype}`);
  }
  for (const name of ['torch.storage.UntypedStorage', 'torch.UntypedStorage', 'torch.storage._UntypedStorage'])
    add(name, { storage: null });
  for (const name of TENSOR_CLASSES) add(name);
  add('torch._utils._rebuild_tensor', { call: (m, args) => rebuildTensor(m, args) });
  add('torch._utils._rebuild_tensor_v2', { call: (m, args) => rebuildTensor(m, args) });
  add('torch._utils._rebuild_tensor_v3', { call: rebuildTensor3 });
  add('torch._utils._rebuild_parameter', { call: rebuildParameter });
  add('torch._utils._rebuild_parameter_with_state', { call: rebuildParameter });
  add('torch._tensor._rebuild_from_type_v2', { call: rebuildFromType });
  add('torch.Size', { call: sequence });
  for (const name of ['build_intlist', 'build_doublelist', 'build_boollist', 'build_tensorlist', 'restore_type_tag'])
    add(`torch.jit._pickle.${name}`, { call: typed });
  add('torch.device', { call: device });

  for (const name of ['collections.OrderedDict', 'builtins.dict', 'collections.Counter']) add(name, { call: makeDict });
  // The first argument of a defaultdict is its factory, a type that is never called here.
  add('collections.defaultdict', { call: (m, args) => makeDict(m, args.slice(1)) });
  for (const name of ['builtins.list', 'builtins.tuple']) add(name, { call: sequence });
  for (const name of ['builtins.set', 'builtins.frozenset'])
    add(name, { call: (m, args) => new Set(sequence(m, args)) });
  for (const name of ['builtins.int', 'builtins.float', 'builtins.str', 'builtins.bool']) add(name);
  for (const name of ['builtins.bytes', 'builtins.bytearray']) add(name, { call: makeBytes });
  table.set('builtins.object', object);
  add('_codecs.encode', { call: encode });
  add('copyreg._reconstructor', { call: reconstruct });
  for (const flavor of ['Path', 'PosixPath', 'WindowsPath', 'PurePath', 'PurePosixPath', 'PureWindowsPath']) {
    add(`pathlib.${flavor}`, { call: path });
    add(`pathlib._local.${flavor}`, { call: path });
  }
  for (const name of RECORDS) table.set(name, record(name));

  for (const core of ['numpy.core', 'numpy._core']) {
    add(`${core}.multiarray.scalar`, { call: makeNumpyScalar });
    add(`${core}.multiarray._reconstruct`, { call: () => new UnfinishedArray() });
    add(`${core}.numeric._frombuffer`, { call: fromBuffer });
  }
  add('numpy.dtype', { call: makeDType });
  add('numpy.ndarray');
  return table;
}

const TABLE = known();

/** The storage class that a persistent id names: its dtype, null for untyped bytes, undefined if it is none. */
export function storageDType(value: PickleValue | undefined): DType | null | undefined {
  return value instanceof KnownName ? value.behavior.storage : undefined;
}
