import { Tensor } from '../tensor/index.js';
import { CheckpointError, quote, quoteList } from './errors.js';
import { PickledRecord, pythonType, SCRIPT, textOf, type PickleValue } from './values.js';

/** A plain value that stood beside the weights, such as `epoch` or `best_acc`. */
export type Scalar = null | boolean | number | bigint | string;

/** Weights by name, and what was around them. */
export class StateDict extends Map<string, Tensor> {
  /** What was taken off, outermost first: `state_dict`, `prefix module.` */
  readonly unwrapped: string[] = [];
  /** Plain values that stood beside the weights, at any of the levels taken off. */
  readonly scalars = new Map<string, Scalar>();
  /** Names of other things beside the weights: `optimizer`, `args`, ... */
  readonly ignored: string[] = [];

  /** Map methods that make a new one make a plain Map. */
  static override get [Symbol.species](): MapConstructor {
    return Map;
  }
}

/** Options of `stateDictOf`. */
export interface StateDictOptions {
  /** Take the weights under this key, instead of the wrapper that is found. Dots lead deeper: 'models.teacher'. */
  readonly key?: string;
  /** Where a file has both, take the averaged weights (EMA), as timm does. Default true. */
  readonly ema?: boolean;
  /** Prefixes to take off names when all have them. Default `module.` (data parallel). */
  readonly prefixes?: readonly string[];
}

/** Anything that holds weights: what a reader returned, a Checkpoint, a plain object. */
export type Wrapped =
  PickleValue | Readonly<Record<string, unknown>> | { readonly value: PickleValue; readonly path: string };

const EMA_WRAPPERS = ['state_dict_ema', 'model_ema', 'ema_state_dict', 'params_ema', 'ema'];
const WRAPPERS = [
  'state_dict',
  'model_state_dict',
  'model_state',
  'model',
  'net',
  'network',
  'module',
  'params',
  'weights',
];
const MAX_LEVELS = 8;
const MAX_SCRIPT_DEPTH = 100;
const MAX_SCRIPT_MODULES = 100_000;
/** Compiled modules leave this component in the middle of names too. */
const COMPILED = /(^|\.)_orig_mod\./g;
/** The only name beside `module.` in what `AveragedModel` saves. */
const AVERAGED_COUNT = 'n_averaged';

/**
 * Finds the weights in what a checkpoint file holds (a TorchScript archive too): takes off wrappers (`state_dict`, `model`, `state_dict_ema`,
 * `module`, ... nested too), and the prefixes `module.` and `_orig_mod.` from names.
 *
 * @throws CheckpointError when there are no tensors, listing the keys that there are
 * @example
 * const state = stateDictOf(readCheckpoint('swin_tiny.pth'));
 * state.get('patch_embed.proj.weight');  state.unwrapped;  // ['model']
 */
export function stateDictOf(source: Wrapped, options: StateDictOptions = {}): StateDict {
  const { path, value } = unpack(source);
  const result = new StateDict();
  const root = dictOf(value);
  if (!root) throw new CheckpointError(path, `holds ${pythonType(value)}; expected a dict of tensors`);
  let current = options.key === undefined ? root : descend(path, root, options.key, result);
  for (let level = 0; level < MAX_LEVELS; level++) {
    const wrapper = findWrapper(current, options.ema ?? true);
    const inner = wrapper === null ? null : dictOf(current.get(wrapper));
    if (wrapper === null || inner === null) break;
    collectRest(current, wrapper, result);
    result.unwrapped.push(wrapper);
    current = inner;
  }
  const tensors = takeTensors(current, result);
  if (tensors.size === 0) {
    throw new CheckpointError(path, noTensors(current, result));
  }
  for (const [name, tensor] of stripPrefixes(path, tensors, options.prefixes ?? ['module.'], result))
    result.set(name, tensor);
  return result;
}

function unpack(source: Wrapped): { readonly path: string; readonly value: unknown } {
  return isPacked(source) ? source : { path: 'state dict', value: source };
}

function isPacked(source: Wrapped): source is { readonly value: PickleValue; readonly path: string } {
  return (
    typeof source === 'object' &&
    source !== null &&
    'value' in source &&
    'path' in source &&
    typeof source.path === 'string'
  );
}

/** A module of a TorchScript archive. */
function isScript(value: unknown): value is PickledRecord {
  return value instanceof PickledRecord && (value.type === SCRIPT || value.type.startsWith(`${SCRIPT}.`));
}

/** The tensors of a TorchScript module and of those below it by dotted names, and its own plain values. */
function scriptState(root: PickledRecord): Map<PickleValue, PickleValue> {
  const state = new Map<PickleValue, PickleValue>();
  let visited = 0;
  const visit = (module: PickledRecord, prefix: string, depth: number): void => {
    // One module may stand at several places, and in a hostile file within itself.
    if (depth > MAX_SCRIPT_DEPTH || ++visited > MAX_SCRIPT_MODULES)
      throw new CheckpointError('state dict', 'the TorchScript modules nest without end; the file is damaged');
    for (const [name, value] of module.fields) {
      if (isScript(value)) visit(value, `${prefix}${name}.`, depth + 1);
      else if (value instanceof Tensor || prefix === '') state.set(prefix + name, value);
    }
  };
  visit(root, '', 0);
  return state;
}

function dictOf(value: unknown): Map<PickleValue, PickleValue> | null {
  if (value instanceof Map) return value;
  if (isScript(value)) return scriptState(value);
  if (value instanceof PickledRecord) return value.fields;
  if (typeof value !== 'object' || value === null) return null;
  const prototype: unknown = Object.getPrototypeOf(value);
  return prototype === Object.prototype || prototype === null
    ? new Map(Object.entries(value as Record<string, PickleValue>))
    : null;
}

function descend(
  path: string,
  from: Map<PickleValue, PickleValue>,
  key: string,
  result: StateDict,
): Map<PickleValue, PickleValue> {
  let current = from;
  const parts = from.has(key) ? [key] : key.split('.');
  for (const part of parts) {
    const inner = dictOf(current.get(part));
    if (!inner) throw new CheckpointError(path, `has no dict under ${quote(key)}; its keys are ${keysOf(current)}`);
    collectRest(current, part, result);
    result.unwrapped.push(part);
    current = inner;
  }
  return current;
}

/** The key whose dict holds the weights, or null when `current` holds them itself (or nothing does). */
function findWrapper(current: Map<PickleValue, PickleValue>, ema: boolean): string | null {
  const order = ema ? [...EMA_WRAPPERS, ...WRAPPERS] : [...WRAPPERS, ...EMA_WRAPPERS];
  const known = order.find((name) => holdsTensors(current.get(name), MAX_LEVELS));
  if (known !== undefined) return known;
  const isFlat = [...current.values()].some((value) => value instanceof Tensor);
  if (isFlat) return null;
  const candidates = [...current].filter(
    ([key, value]) => typeof key === 'string' && !isTraining(key) && holdsTensors(value, MAX_LEVELS),
  );
  const [only] = candidates;
  return candidates.length === 1 && typeof only?.[0] === 'string' ? only[0] : null;
}

/** Optimizers hold tensors too (in lists and under numbers), but no weights. */
function isTraining(key: string): boolean {
  return /optim|sched|scaler|amp|hook/i.test(key);
}

function holdsTensors(value: PickleValue | undefined, depth: number): boolean {
  const dict = depth > 0 ? dictOf(value) : null;
  if (!dict) return false;
  for (const item of dict.values()) if (item instanceof Tensor) return true;
  for (const [key, item] of dict)
    if (typeof key === 'string' && !isTraining(key) && holdsTensors(item, depth - 1)) return true;
  return false;
}

function collectRest(dict: Map<PickleValue, PickleValue>, taken: string, result: StateDict): void {
  for (const [key, value] of dict) if (key !== taken) setAside(textOf(key), value, result);
}

function setAside(name: string, value: PickleValue, result: StateDict): void {
  if (value === null || typeof value !== 'object') result.scalars.set(name, value);
  else result.ignored.push(name);
}

function takeTensors(current: Map<PickleValue, PickleValue>, result: StateDict): Map<string, Tensor> {
  const tensors = new Map<string, Tensor>();
  const rest: [string, PickleValue][] = [];
  for (const [key, value] of current) {
    if (value instanceof Tensor) tensors.set(textOf(key), value);
    else rest.push([textOf(key), value]);
  }
  if (tensors.size > 0) for (const [name, value] of rest) setAside(name, value, result);
  return tensors;
}

function noTensors(current: Map<PickleValue, PickleValue>, result: StateDict): string {
  const several = [...current].filter(([, value]) => holdsTensors(value, MAX_LEVELS)).map(([key]) => textOf(key));
  const where = result.unwrapped.length > 0 ? ` under ${quote(result.unwrapped.join('.'))}` : '';
  if (several.length > 0) {
    return `there are weights under several keys${where}: ${quoteList(several)}; say which with { key: ${quote(several[0] ?? '')} }`;
  }
  return `no tensors were found${where}; its keys are ${keysOf(current)}`;
}

function keysOf(dict: Map<PickleValue, PickleValue>): string {
  return dict.size === 0 ? 'none' : quoteList([...dict.keys()].map(textOf));
}

function stripPrefixes(
  path: string,
  tensors: Map<string, Tensor>,
  prefixes: readonly string[],
  result: StateDict,
): Map<string, Tensor> {
  let current = tensors;
  const rename = (label: string, change: (name: string) => string): void => {
    const renamed = new Map<string, Tensor>();
    for (const [name, tensor] of current) {
      const short = change(name);
      if (renamed.has(short))
        throw new CheckpointError(path, `taking off the ${label} makes two tensors called ${quote(short)}`);
      renamed.set(short, tensor);
    }
    current = renamed;
    result.unwrapped.push(label);
  };
  for (let level = 0; level < MAX_LEVELS; level++) {
    const names = [...current.keys()];
    const weights = names.filter((name) => name !== AVERAGED_COUNT);
    const prefix = prefixes.find(
      (candidate) => candidate !== '' && weights.length > 0 && weights.every((name) => name.startsWith(candidate)),
    );
    if (prefix !== undefined) {
      if (current.delete(AVERAGED_COUNT)) result.ignored.push(AVERAGED_COUNT);
      rename(`prefix ${prefix}`, (name) => name.slice(prefix.length));
    } else if (names.some((name) => name.search(COMPILED) >= 0)) {
      rename('prefix _orig_mod.', (name) => name.replace(COMPILED, '$1'));
    } else {
      break;
    }
  }
  return current;
}
