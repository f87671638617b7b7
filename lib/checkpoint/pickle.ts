import { CheckpointError } from './errors.js';
import { finishArray, KnownName, lookUp } from './names.js';
import { ACTIONS, STOP } from './opcodes.js';
import type { ByteReader } from './reader.js';
import {
  NumpyDType,
  PickledRecord,
  pythonType,
  UnfinishedArray,
  type PickleValue,
  type TensorDescription,
} from './values.js';

/*
 * A pickle machine that executes nothing. A pickle is a program for a stack machine whose dangerous instructions look up
 * a name in Python and call it; here a name is looked up in the table of names.ts, which holds only what rebuilds
 * plain data and tensors, and anything else ends the reading at the name itself.
 */

/** What the machine needs from the file format around it. */
export interface PickleHost {
  /** Turns a persistent id into what it stands for; without it such ids are refused. */
  persistent?(id: PickleValue): PickleValue;
  /** Builds the tensor that the file describes; without it tensors are refused. */
  tensor?(description: TensorDescription): PickleValue;
}

/** Python refuses to nest deeper when it writes. */
const MAX_DEPTH = 1000;
/** Work that a pickle may ask for beyond its own length, per byte of it: stops a few bytes from copying a big value often. */
const WORK_PER_BYTE = 64;
const FREE_WORK = 1 << 20;
/** A container takes one byte of pickle but some 200 of memory; real checkpoints have some 100,000 of them. */
const MAX_OBJECTS = 1_000_000;
const MAX_OPCODES = 32_000_000;

/** Reads one pickle from where `reader` stands, and leaves it behind the end. */
export function readPickle(reader: ByteReader, host: PickleHost = {}): PickleValue {
  return new PickleMachine(reader, host).run();
}

/** One run of the machine. `names.ts` calls back into it through `fail`, `work` and `host`. */
export class PickleMachine {
  #stack: PickleValue[] = [];
  #marks: PickleValue[][] = [];
  readonly #memo = new Map<number, PickleValue>();
  #work: number;
  #objects = 0;

  constructor(
    private readonly reader: ByteReader,
    readonly host: PickleHost,
  ) {
    this.#work = reader.remaining * WORK_PER_BYTE + FREE_WORK;
  }

  get path(): string {
    return this.reader.path;
  }

  /** A refusal that says where in the pickle it happened. */
  fail(message: string): never {
    throw new CheckpointError(this.path, `${message} (pickle, byte ${this.reader.position})`);
  }

  /** Accounts for `amount` elements about to be copied. */
  work(amount: number): void {
    this.#work -= amount;
    if (this.#work < 0) this.fail('the pickle copies its values over and over; it is damaged or hostile');
  }

  run(): PickleValue {
    for (let count = 0; ; count++) {
      if (count > MAX_OPCODES) this.fail(`the pickle has more than ${MAX_OPCODES} instructions`);
      const opcode = this.reader.u8();
      if (opcode === STOP) break;
      const action = ACTIONS[opcode];
      if (!action)
        this.fail(
          `opcode 0x${opcode.toString(16)} is unknown or refused; the pickle is damaged or uses features that plain data does not need`,
        );
      action(this, this.reader);
    }
    const result = this.pop();
    this.#checkDepth(result);
    return result;
  }

  push(value: PickleValue): void {
    if (typeof value === 'object' && ++this.#objects > MAX_OBJECTS)
      this.fail(`the pickle makes more than ${MAX_OBJECTS} objects`);
    this.#stack.push(value);
  }

  pop(): PickleValue {
    const value = this.#stack.pop();
    if (value === undefined) this.fail('the pickle takes a value from an empty stack; it is damaged');
    return value;
  }

  top(): PickleValue {
    const value = this.#stack.at(-1);
    if (value === undefined) this.fail('the pickle looks at an empty stack; it is damaged');
    return value;
  }

  mark(): void {
    if (this.#marks.length >= MAX_DEPTH) this.fail(`the pickle nests deeper than ${MAX_DEPTH} levels`);
    this.#marks.push(this.#stack);
    this.#stack = [];
  }

  /** The values since the last mark, which is taken away. */
  popMark(): PickleValue[] {
    const outer = this.#marks.pop();
    if (!outer) this.fail('the pickle closes a group that it never opened; it is damaged');
    const values = this.#stack;
    this.#stack = outer;
    return values;
  }

  /** Python's POP also takes away a mark that nothing follows. */
  discard(): void {
    if (this.#stack.length > 0) this.#stack.pop();
    else this.popMark();
  }

  remember(index: number): void {
    const value = this.top();
    if (value instanceof UnfinishedArray) value.memo.push(index);
    this.#memo.set(index, value);
  }

  rememberNext(): void {
    this.remember(this.#memo.size);
  }

  recall(index: number): void {
    const value = this.#memo.get(index);
    if (value === undefined) this.fail(`the pickle refers to value ${index}, which it has not stored; it is damaged`);
    this.push(value);
  }

  global(module: string, name: string): void {
    this.push(lookUp(this, module, name));
  }

  reduce(): void {
    const args = this.pop();
    const callee = this.pop();
    this.push(this.call(callee, args));
  }

  call(callee: PickleValue, args: PickleValue): PickleValue {
    if (!Array.isArray(args))
      this.fail(`the pickle calls something with ${pythonType(args)} instead of arguments; it is damaged`);
    if (!(callee instanceof KnownName))
      this.fail(`the pickle calls ${pythonType(callee)}, which cannot be called; it is damaged`);
    if (!callee.call) this.fail(`the pickle calls ${callee.name}, which only names a type here; nothing was executed`);
    return callee.call(this, args);
  }

  persistent(id: PickleValue): void {
    if (!this.host.persistent)
      this.fail('the pickle refers to data outside of itself, which this kind of file does not have');
    this.push(this.host.persistent(id));
  }

  /** `obj.__setstate__(state)`, for the objects that have a state here. */
  build(): void {
    const state = this.pop();
    const target = this.top();
    if (target instanceof UnfinishedArray) {
      if (!Array.isArray(state)) this.fail(`the state of a NumPy array must be a tuple, found ${pythonType(state)}`);
      const built = finishArray(this, state);
      this.pop();
      this.push(built);
      for (const index of target.memo) this.#memo.set(index, built);
    } else if (target instanceof NumpyDType) {
      const order = Array.isArray(state) ? state[1] : undefined;
      if (typeof order !== 'string' || !['<', '>', '|', '='].includes(order))
        this.fail('the state of a NumPy dtype is damaged');
      target.order = order;
    } else if (target instanceof PickledRecord) {
      this.#setFields(target, state);
    } else if (!(target instanceof Map) && !(target instanceof Set) && typeof target !== 'object') {
      this.fail(`the pickle sets attributes of ${pythonType(target)}; it is damaged`);
    }
    // Attributes of dicts, tensors and modules' state dicts (`_metadata`) have no place here and are left out.
  }

  setItem(target: PickleValue, key: PickleValue, value: PickleValue): void {
    if (target instanceof Map) target.set(key, value);
    else if (target instanceof PickledRecord) target.fields.set(this.#fieldName(key), value);
    else this.fail(`the pickle sets items of ${pythonType(target)}; it is damaged`);
  }

  setItems(target: PickleValue, flat: PickleValue[]): void {
    if (flat.length % 2 !== 0) this.fail('the pickle sets a key without a value; it is damaged');
    for (let at = 0; at < flat.length; at += 2) this.setItem(target, flat[at] ?? null, flat[at + 1] ?? null);
  }

  #setFields(target: PickledRecord, state: PickleValue): void {
    const states = Array.isArray(state) ? state : [state];
    for (const part of states) {
      if (part === null) continue;
      if (!(part instanceof Map)) this.fail(`the state of ${target.type} must be a dict, found ${pythonType(part)}`);
      this.work(part.size);
      for (const [key, value] of part) target.fields.set(this.#fieldName(key), value);
    }
  }

  #fieldName(key: PickleValue): string {
    if (typeof key === 'string') return key;
    if (typeof key === 'number' || typeof key === 'bigint') return String(key);
    return this.fail(`a field's name must be a str, found ${pythonType(key)}`);
  }

  /** Whoever walks the result may recurse; and an array without its content must not get out. */
  #checkDepth(root: PickleValue): void {
    const seen = new Set<unknown>();
    let level: unknown[] = [root];
    for (let depth = 0; level.length > 0; depth++) {
      if (depth > MAX_DEPTH) this.fail(`the pickle nests deeper than ${MAX_DEPTH} levels`);
      const next: unknown[] = [];
      for (const value of level) {
        if (typeof value !== 'object' || value === null || seen.has(value)) continue;
        seen.add(value);
        if (value instanceof UnfinishedArray)
          this.fail('the pickle holds a NumPy array without content; it is damaged');
        const inner = value instanceof PickledRecord ? value.fields : value;
        if (inner instanceof Map) for (const [key, item] of inner) next.push(key, item);
        else if (Array.isArray(inner) || inner instanceof Set) for (const item of inner) next.push(item);
      }
      level = next;
    }
  }
}
