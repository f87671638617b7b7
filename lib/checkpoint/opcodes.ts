import { quote } from './errors.js';
import { KnownName } from './names.js';
import type { PickleMachine } from './pickle.js';
import type { ByteReader } from './reader.js';
import { pythonType, type PickleValue } from './values.js';

/** What an opcode does. */
export type Action = (machine: PickleMachine, reader: ByteReader) => void;

/** The opcode that ends a pickle. */
export const STOP = 0x2e;

/** Python's own bound on integers in decimal. */
const MAX_DIGITS = 4300;
const MAX_LONG_BYTES = 2048;

const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

function text(machine: PickleMachine, bytes: Uint8Array): string {
  try {
    return utf8.decode(bytes);
  } catch {
    return machine.fail('a string of the pickle is not valid UTF-8; it is damaged');
  }
}

/** Python 2's str: bytes that were mostly text. Latin-1 keeps every byte, so NumPy data in it can be recovered. */
function latin1(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString('latin1');
}

function integer(value: bigint): number | bigint {
  const number = Number(value);
  return Number.isSafeInteger(number) ? number : value;
}

function long(machine: PickleMachine, bytes: Uint8Array): number | bigint {
  if (bytes.length > MAX_LONG_BYTES)
    machine.fail(`an integer of ${bytes.length} bytes is more than plain data needs (${MAX_LONG_BYTES})`);
  if (bytes.length === 0) return 0;
  const hex = Buffer.from(bytes).reverse().toString('hex');
  return integer(BigInt.asIntN(bytes.length * 8, BigInt(`0x${hex}`)));
}

function decimal(machine: PickleMachine, line: string): number | bigint {
  const digits = line.endsWith('L') ? line.slice(0, -1) : line;
  if (!/^[+-]?\d+$/.test(digits) || digits.length > MAX_DIGITS) machine.fail(`${quote(line)} is no integer`);
  return integer(BigInt(digits.replace(/^\+/, '')));
}

function memoIndex(machine: PickleMachine, line: string): number {
  const index = decimal(machine, line);
  return typeof index === 'number' && index >= 0 ? index : machine.fail(`${quote(line)} is no place in the memo`);
}

function float(machine: PickleMachine, line: string): number {
  const special: Record<string, number> = { inf: Infinity, '-inf': -Infinity, nan: NaN };
  const value = special[line] ?? Number(line);
  return line.trim() === '' || (Number.isNaN(value) && line !== 'nan')
    ? machine.fail(`${quote(line)} is no number`)
    : value;
}

/** A quoted string as Python 2's repr writes it. */
function quoted(machine: PickleMachine, line: string): string {
  const mark = line[0];
  if (line.length < 2 || (mark !== "'" && mark !== '"') || !line.endsWith(mark))
    machine.fail(`${quote(line)} is no quoted string`);
  const escapes: Record<string, string> = {
    n: '\n',
    t: '\t',
    r: '\r',
    '\\': '\\',
    "'": "'",
    '"': '"',
    a: '\x07',
    b: '\b',
    f: '\f',
    v: '\v',
    '0': '\0',
  };
  return line
    .slice(1, -1)
    .replace(/\\(?:x([0-9a-fA-F]{2})|(.))/g, (whole, hex: string | undefined, char: string | undefined) =>
      hex !== undefined ? String.fromCharCode(parseInt(hex, 16)) : (escapes[char ?? ''] ?? whole),
    );
}

/** Text as protocol 0 writes it: Latin-1 with \\uXXXX and \\UXXXXXXXX. */
function rawUnicode(machine: PickleMachine, line: string): string {
  return line.replace(
    /\\u([0-9a-fA-F]{4})|\\U([0-9a-fA-F]{8})/g,
    (_, short: string | undefined, wide: string | undefined) => {
      const code = parseInt(short ?? wide ?? '', 16);
      return code <= 0x10ffff
        ? String.fromCodePoint(code)
        : machine.fail('a string of the pickle has a character beyond Unicode');
    },
  );
}

function dict(machine: PickleMachine, flat: PickleValue[]): Map<PickleValue, PickleValue> {
  const result = new Map<PickleValue, PickleValue>();
  machine.setItems(result, flat);
  return result;
}

function append(machine: PickleMachine, values: PickleValue[]): void {
  const target = machine.top();
  if (!Array.isArray(target)) machine.fail(`the pickle appends to ${pythonType(target)}; it is damaged`);
  for (const value of values) target.push(value);
}

function addItems(machine: PickleMachine, target: PickleValue, items: PickleValue[]): void {
  if (!(target instanceof Set)) machine.fail(`the pickle adds to ${pythonType(target)}; it is damaged`);
  for (const item of items) target.add(item);
}

function stackGlobal(machine: PickleMachine, module: PickleValue, name: PickleValue): void {
  if (typeof name !== 'string' || typeof module !== 'string')
    machine.fail('the pickle looks up a name that is no text; it is damaged');
  machine.global(module, name);
}

function newObject(machine: PickleMachine, type: PickleValue, args: PickleValue): void {
  if (!(type instanceof KnownName)) machine.fail(`the pickle makes an object of ${pythonType(type)}; it is damaged`);
  machine.push(machine.call(type, args));
}

function tuple(machine: PickleMachine, count: number): void {
  const values = Array.from({ length: count }, () => machine.pop());
  machine.push(values.reverse());
}

function ofCharacter(actions: Record<string, Action>): [number, Action][] {
  return Object.entries(actions).map(([character, action]) => [character.charCodeAt(0), action]);
}

/** The opcodes of protocols 0 to 5. Extension codes (0x82-0x84) and out-of-band buffers (0x97, 0x98) are left out. */
export const ACTIONS: readonly (Action | undefined)[] = (() => {
  const table = new Array<Action | undefined>(256).fill(undefined);
  const rows: [number, Action][] = [
    ...ofCharacter({
      '(': (m) => m.mark(),
      '0': (m) => m.discard(),
      '1': (m) => void m.popMark(),
      '2': (m) => m.push(m.top()),
      F: (m, r) => m.push(float(m, r.line())),
      I: (m, r) => {
        const line = r.line();
        m.push(line === '00' ? false : line === '01' ? true : decimal(m, line));
      },
      J: (m, r) => m.push(r.i32()),
      K: (m, r) => m.push(r.u8()),
      L: (m, r) => m.push(decimal(m, r.line())),
      M: (m, r) => m.push(r.u16()),
      N: (m) => m.push(null),
      P: (m, r) => m.persistent(r.line()),
      Q: (m) => m.persistent(m.pop()),
      R: (m) => m.reduce(),
      S: (m, r) => m.push(quoted(m, r.line())),
      T: (m, r) => m.push(latin1(r.bytes(r.i32()))),
      U: (m, r) => m.push(latin1(r.bytes(r.u8()))),
      V: (m, r) => m.push(rawUnicode(m, r.line())),
      X: (m, r) => m.push(text(m, r.bytes(r.u32()))),
      a: (m) => append(m, [m.pop()]),
      b: (m) => m.build(),
      c: (m, r) => m.global(r.line(), r.line()),
      d: (m) => m.push(dict(m, m.popMark())),
      '}': (m) => m.push(new Map()),
      e: (m) => append(m, m.popMark()),
      g: (m, r) => m.recall(memoIndex(m, r.line())),
      h: (m, r) => m.recall(r.u8()),
      i: (m, r) => {
        const args = m.popMark();
        m.global(r.line(), r.line());
        newObject(m, m.pop(), args);
      },
      j: (m, r) => m.recall(r.u32()),
      l: (m) => m.push(m.popMark()),
      ']': (m) => m.push([]),
      o: (m) => {
        const [type, ...args] = m.popMark();
        newObject(m, type ?? null, args);
      },
      p: (m, r) => m.remember(memoIndex(m, r.line())),
      q: (m, r) => m.remember(r.u8()),
      r: (m, r) => m.remember(r.u32()),
      s: (m) => {
        const value = m.pop();
        const key = m.pop();
        m.setItem(m.top(), key, value);
      },
      t: (m) => m.push(m.popMark()),
      ')': (m) => m.push([]),
      u: (m) => {
        const items = m.popMark();
        m.setItems(m.top(), items);
      },
      G: (m, r) => m.push(r.f64be()),
      B: (m, r) => m.push(r.bytes(r.u32())),
      C: (m, r) => m.push(r.bytes(r.u8())),
    }),
    [
      0x80,
      (m, r) => {
        const protocol = r.u8();
        if (protocol > 5) m.fail(`pickle protocol ${protocol} is unknown; 0 to 5 are read`);
      },
    ],
    [
      0x81,
      (m) => {
        const args = m.pop();
        newObject(m, m.pop(), args);
      },
    ],
    [0x85, (m) => tuple(m, 1)],
    [0x86, (m) => tuple(m, 2)],
    [0x87, (m) => tuple(m, 3)],
    [0x88, (m) => m.push(true)],
    [0x89, (m) => m.push(false)],
    [0x8a, (m, r) => m.push(long(m, r.bytes(r.u8())))],
    [0x8b, (m, r) => m.push(long(m, r.bytes(r.i32())))],
    [0x8c, (m, r) => m.push(text(m, r.bytes(r.u8())))],
    [0x8d, (m, r) => m.push(text(m, r.bytes(r.length64())))],
    [0x8e, (m, r) => m.push(r.bytes(r.length64()))],
    [0x8f, (m) => m.push(new Set<PickleValue>())],
    [
      0x90,
      (m) => {
        const items = m.popMark();
        addItems(m, m.top(), items);
      },
    ],
    [0x91, (m) => m.push(new Set(m.popMark()))],
    [
      0x92,
      (m) => {
        const keywords = m.pop();
        const args = m.pop();
        if (!(keywords instanceof Map) || keywords.size > 0)
          m.fail('the pickle makes an object with keyword arguments, which no known class needs');
        newObject(m, m.pop(), args);
      },
    ],
    [
      0x93,
      (m) => {
        const name = m.pop();
        stackGlobal(m, m.pop(), name);
      },
    ],
    [0x94, (m) => m.rememberNext()],
    [0x95, (_, r) => void r.length64()],
    [0x96, (m, r) => m.push(r.bytes(r.length64()))],
  ];
  for (const [opcode, action] of rows) table[opcode] = action;
  return table;
})();
