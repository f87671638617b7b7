import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { CheckpointError, readCheckpoint, readTorchFile, type PickleValue } from '../../lib/checkpoint/index.js';
import { fixture, temporaryFolder, torchArchive, unpickle } from './helpers.js';

const folder = temporaryFolder();

describe('plain data', () => {
  const ints = [0, 255, 256, 65535, 65536, -1, 2 ** 31, -(2n ** 63n), 2n ** 100n];
  test.each([0, 1, 2, 3, 4, 5])('protocol %i', (protocol) => {
    const value = unpickle(readFileSync(fixture(`plain_protocol${protocol}.pkl`))) as Map<PickleValue, PickleValue>;
    expect(Object.fromEntries(value as Map<string, PickleValue>)).toEqual({
      none: null,
      true: true,
      false: false,
      ints,
      float: [0.5, -1e300, Infinity],
      text: 'a\\b\n\'"ü\u4e2d',
      bytes: new Uint8Array([0, 1, 255]),
      tuple: [],
      tuples: [1, [2], [3, 4, 5], [1, 2, 3, 4]],
      set: new Set([1, 2]),
      shared: [ints, ints],
    });
    const shared = value.get('shared') as PickleValue[];
    expect(shared[0]).toBe(value.get('ints'));
  });

  test.each([
    ["S'a\\x41\\n\\'b'\n.", "aA\n'b"],
    ['S"it\'s"\n.', "it's"],
    ['Va\\u00fc\\U0001F600\n.', 'aü😀'],
    ['I01\n.', true],
    ['I-7\n.', -7],
    ['L12345678901234567890L\n.', 12345678901234567890n],
    ['F-1.5e3\n.', -1500],
    ['Fnan\n.', NaN],
    ['(I1\nI2\nl.', [1, 2]],
    ['(I1\nI2\nd.', new Map([[1, 2]])],
    ['(lp0\nI5\nag0\n0.', [5]],
    ['K\x01K\x020.', 1],
    ['K\x01(K\x02K\x031.', 1],
    ['K\x012\x86.', [1, 1]],
    ['U\x02ab.', 'ab'],
    ['\x8a\x02\x00\x80.', -32768],
    ['\x8a\x00.', 0],
    ['\x8b\x01\x00\x00\x00\xff.', -1],
    ['\x80\x04\x8f(K\x01K\x02\x90.', new Set([1, 2])],
    ['\x80\x04(K\x01\x91.', new Set([1])],
    ['(ccollections\nOrderedDict\no.', new Map()],
    ['(icollections\nOrderedDict\n.', new Map()],
    ['\x80\x04\x8c\x0bcollections\x8c\x0bOrderedDict\x93)\x81.', new Map()],
  ] as [string, unknown][])('%j', (pickle, expected) => {
    expect(unpickle(pickle)).toEqual(expected);
  });
});

describe('names that are not data are refused by name, and nothing runs', () => {
  const call = (module: string, name: string, argument = "S'touch /tmp/x'\n") =>
    `\x80\x02c${module}\n${name}\n(${argument}tR.`;
  const rows: [string, string, string][] = [
    ['os.system', call('os', 'system'), 'os.system'],
    ['posix.system', call('posix', 'system'), 'posix.system'],
    ['nt.system', call('nt', 'system'), 'nt.system'],
    ['subprocess.Popen', call('subprocess', 'Popen'), 'subprocess.Popen'],
    ['eval', call('builtins', 'eval'), 'builtins.eval'],
    ['eval of Python 2', call('__builtin__', 'eval'), 'builtins.eval'],
    ['exec', call('builtins', 'exec'), 'builtins.exec'],
    ['getattr', "\x80\x02cbuiltins\ngetattr\n(ccollections\nOrderedDict\nS'__init__'\ntR.", 'builtins.getattr'],
    ['__import__', call('builtins', '__import__'), 'builtins.__import__'],
    [
      'a dotted name',
      '\x80\x04\x8c\x0bcollections\x8c\x16OrderedDict.fromkeys.x\x93.',
      'collections.OrderedDict.fromkeys.x',
    ],
    ['a stack global', '\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x02ls\x85R.', 'os.system'],
    ['an instance', "\x80\x02(S'x'\nios\nsystem\n.", 'os.system'],
    ['an object', "\x80\x02(cos\nsystem\nS'x'\no.", 'os.system'],
    ['a new object', '\x80\x02cshutil\nrmtree\n)\x81.', 'shutil.rmtree'],
    ['a nested load', call('torch.storage', '_load_from_bytes', 'U\x01a'), 'torch.storage._load_from_bytes'],
    ['torch.load', call('torch.serialization', 'load'), 'torch.serialization.load'],
    ['numpy.load', call('numpy', 'load'), 'numpy.load'],
    ['runpy', call('runpy', '_run_code'), 'runpy._run_code'],
    ['functools.partial', call('functools', 'partial'), 'functools.partial'],
    ['a name never called', '\x80\x02cos\nsystem\n0N.', 'os.system'],
    ['a call inside the arguments of another', "ccollections\nOrderedDict\n(cos\nsystem\n(S'x'\ntRtR.", 'os.system'],
    [
      'a call of what a call gave',
      "cbuiltins\ngetattr\n(cbuiltins\n__import__\n(S'os'\ntRS'system'\ntR(S'x'\ntR.",
      'builtins.getattr',
    ],
    [
      'the reconstructor of a class',
      'ccopyreg\n_reconstructor\n(csubprocess\nPopen\ncbuiltins\nobject\nNtR.',
      'subprocess.Popen',
    ],
    ['a default factory', 'ccollections\ndefaultdict\n(cos\nsystem\ntR.', 'os.system'],
    [
      'in a tensor of a class of its own',
      'ctorch._tensor\n_rebuild_from_type_v2\n(cposix\nsystem\n)tR.',
      'posix.system',
    ],
    ['as a state', '\x80\x02cargparse\nNamespace\n)\x81}U\x01ccos\nsystem\nsb.', 'os.system'],
    ['as a persistent id', '\x80\x02cos\nsystem\nQ.', 'os.system'],
  ];
  test.each(rows)('%s', (label, pickle, name) => {
    const path = torchArchive(join(folder, 'evil.pt'), pickle);
    expect(() => readTorchFile(path), label).toThrow(
      new RegExp(`asks for the Python name "${name.replaceAll('.', '\\.')}"`),
    );
    expect(() => readTorchFile(path)).toThrow(/refused and nothing was executed/);
    expect(() => readTorchFile(path)).toThrow(CheckpointError);
  });

  test('a whole pickled model', () => {
    expect(() => readCheckpoint(fixture('whole_model.pt'))).toThrow(
      /"torch\.nn\.modules\.container\.Sequential".*save only its tensors/,
    );
  });
});

describe('damaged and hostile pickles', () => {
  const le32 = (value: number) => Buffer.from(new Uint32Array([value]).buffer).toString('latin1');
  const rows: [string, string, RegExp][] = [
    ['nothing', '', /asks for 1 bytes at offset 0, but 0 are left/],
    ['no end', 'N', /asks for 1 bytes/],
    ['an empty stack', '.', /empty stack/],
    ['an unknown opcode', '\xff.', /opcode 0xff is unknown/],
    ['an extension', '\x82\x01.', /opcode 0x82/],
    ['an out-of-band buffer', '\x97.', /opcode 0x97/],
    ['protocol 6', '\x80\x06N.', /protocol 6/],
    ['text beyond the end', `X${le32(0xfffffff0)}ab.`, /asks for 4294967280 bytes/],
    ['a negative length', `T${le32(0xffffffff)}ab.`, /asks for -1 bytes/],
    ['a negative long', `\x8b${le32(0xffffffff)}ab.`, /asks for -1 bytes/],
    ['8 GB of bytes', '\x8e\0\0\0\0\x02\0\0\0ab.', /asks for 8589934592 bytes/],
    ['a frame beyond the end', '\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7fN.', /are left/],
    ['a memo that is not there', 'h\x05.', /value 5, which it has not stored/],
    ['a negative memo', 'Np-1\n.', /no place in the memo/],
    ['a mark that is not there', 't.', /never opened/],
    ['a key without a value', '}(K\x01u.', /key without a value/],
    ['appending to a number', 'K\x01K\x02a.', /appends to a number/],
    ['items of a list', ']K\x01K\x02s.', /sets items of a list/],
    ['adding to a list', '](K\x01\x90.', /adds to a list/],
    ['calling a number', 'K\x01)R.', /calls a number/],
    ['calling a type', 'ctorch\nFloatStorage\n)R.', /only names a type/],
    ['no arguments', 'ccollections\nOrderedDict\nK\x01R.', /instead of arguments/],
    ['keyword arguments', 'ccollections\nOrderedDict\n)}K\x01K\x01s\x92.', /keyword arguments/],
    ['text that is not UTF-8', 'X\x02\0\0\0\xff\xfe.', /not valid UTF-8/],
    ['a bad integer', 'Ione\n.', /no integer/],
    ['a bad float', 'F\n.', /no number/],
    ['a bad string', "S'abc\n.", /no quoted string/],
    ['5,000 digits', `L${'9'.repeat(5000)}L\n.`, /no integer/],
    ['a persistent id', 'K\x01Q.', /outside of itself/],
    ['deep marks', '('.repeat(1001), /nests deeper/],
    ['deep lists', `${']'.repeat(5000)}${'a'.repeat(4999)}.`, /nests deeper/],
    ['an array without content', '\x80\x02cnumpy.core.multiarray\n_reconstruct\n)R.', /without content/],
    [
      'a copy bomb',
      `\x80\x02X${le32(1 << 16)}${'a'.repeat(1 << 16)}q\x01${'0c_codecs\nencode\n(h\x01X\x06\0\0\0latin1tR'.repeat(2000)}.`,
      /over and over/,
    ],
  ];
  test.each(rows)('%s', (label, pickle, message) => {
    expect(() => unpickle(pickle), label).toThrow(message);
    expect(() => unpickle(pickle)).toThrow(CheckpointError);
  });

  test('a billion laughs stay small', () => {
    const laughs = `\x80\x02]q\x00${Array.from({ length: 60 }, () => '](h\x00h\x00eq\x00').join('')}.`;
    const start = performance.now();
    const value = unpickle(laughs);
    expect(Array.isArray(value)).toBe(true);
    expect(performance.now() - start).toBeLessThan(2000);
  });

  /** What a pickle becomes, with the memory and time that it took. */
  function cost(pickle: string): { megabytes: number; milliseconds: number } {
    const before = process.memoryUsage();
    const start = performance.now();
    const value = unpickle(pickle);
    expect(value).toBeDefined();
    const after = process.memoryUsage();
    const megabytes = (after.heapUsed + after.external - before.heapUsed - before.external) / 2 ** 20;
    return { megabytes, milliseconds: performance.now() - start };
  }

  test.each([
    // Python's own unpickler makes a list as long as the largest place.
    ['places in the memo without end', `N${'r\xff\xff\xff\xff'.repeat(3)}p4294967295\n.`],
    ['a text of 2^40 letters', `X${le32(1024)}${'a'.repeat(1024)}q\0${'(h\0h\0tq\0'.repeat(30)}.`],
    ['keys that are laughs', `]q\0${'(h\0h\0tq\0'.repeat(60)}0}h\0Ns.`],
    ['a dict of dicts', `}q\0${'}(K\x01h\0K\x02h\0uq\0'.repeat(60)}.`],
  ])('%s take no room', (_, pickle) => {
    const { megabytes, milliseconds } = cost(pickle);
    expect(megabytes).toBeLessThan(32);
    expect(milliseconds).toBeLessThan(2000);
  });

  test('too many containers end the reading before the memory does', () => {
    expect(() => unpickle(`(${'}'.repeat(1_100_000)}l.`)).toThrow(/more than 1000000 objects/);
  });
});
