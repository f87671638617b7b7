import { describe, expect, test } from 'vitest';
import {
  CheckpointError,
  PickledRecord,
  readCheckpoint,
  StateDict,
  stateDictOf,
  type PickleValue,
} from '../../lib/checkpoint/index.js';
import { fixture } from './helpers.js';
import { tensor, zeros } from '../../lib/tensor/index.js';

const x = tensor([1, 2]);
const weights = (...names: string[]) => new Map(names.map((name) => [name, x]));
const plain = weights('conv.weight', 'conv.bias');
const names = (source: PickleValue, options = {}) => [...stateDictOf(source, options).keys()];

describe('stateDictOf', () => {
  test('a state dict as it is', () => {
    const state = stateDictOf(plain);
    expect(state).toBeInstanceOf(StateDict);
    expect([...state]).toEqual([...plain]);
    expect([state.unwrapped, state.ignored, [...state.scalars]]).toEqual([[], [], []]);
  });

  test('a TorchScript archive: the tensors of nested modules', () => {
    const state = stateDictOf(readCheckpoint(fixture('script_nested.pt')));
    const shapes = Array.from(state, ([name, value]) => [name, value.dtype, value.shape]);
    expect(shapes).toEqual([
      ['resolution', 'int64', []],
      ['body.0.weight', 'float16', [3, 2]],
      ['body.0.bias', 'float16', [3]],
    ]);
    expect(state.scalars.get('title')).toBe('scripted');
    expect([...stateDictOf(readCheckpoint(fixture('script.pt'))).keys()]).toEqual(['weight', 'bias']);
  });

  test('TorchScript modules that contain themselves are refused', () => {
    const endless = new PickledRecord('__torch__.Endless');
    endless.fields.set('weight', x).set('self', endless);
    expect(() => stateDictOf(endless)).toThrow(/nest without end/);
    let wide = new PickledRecord('__torch__.Leaf', new Map([['weight', x]]));
    for (let i = 0; i < 60; i++)
      wide = new PickledRecord(
        '__torch__.Twice',
        new Map([
          ['a', wide],
          ['b', wide],
        ]),
      );
    expect(() => stateDictOf(wide)).toThrow(/nest without end/);
  });

  test.each(['state_dict', 'model', 'model_state_dict', 'net', 'module', 'state_dict_ema', 'model_ema', 'params'])(
    'the wrapper %s',
    (key) => {
      const state = stateDictOf(
        new Map<string, PickleValue>([
          ['epoch', 3],
          [key, plain],
          ['optimizer', new Map([['state', new Map([[0, x]])]])],
          ['note', 'hi'],
        ]),
      );
      expect([...state.keys()]).toEqual([...plain.keys()]);
      expect([state.unwrapped, state.ignored]).toEqual([[key], ['optimizer']]);
      expect([...state.scalars]).toEqual([
        ['epoch', 3],
        ['note', 'hi'],
      ]);
    },
  );

  test('wrappers in wrappers, plain objects, records', () => {
    const state = stateDictOf({
      path: 'a.pt',
      value: {
        model: new PickledRecord('yacs.config.CfgNode', new Map([['state_dict', plain]])),
        lr: 0.5,
      },
    });
    expect([...state.keys()]).toEqual([...plain.keys()]);
    expect([state.unwrapped, state.scalars.get('lr')]).toEqual([['model', 'state_dict'], 0.5]);
  });

  test('averaged weights come first, unless not wanted', () => {
    const both = new Map<string, PickleValue>([
      ['state_dict', weights('raw')],
      ['state_dict_ema', weights('ema')],
    ]);
    expect(names(both)).toEqual(['ema']);
    expect(names(both, { ema: false })).toEqual(['raw']);
  });

  test('an unknown wrapper is taken when it is the only one; else the caller says which', () => {
    expect(
      names(
        new Map<string, PickleValue>([
          ['teacher', plain],
          ['optimizer', weights('momentum')],
        ]),
      ),
    ).toEqual([...plain.keys()]);
    const two = new Map<string, PickleValue>([
      ['student', weights('s')],
      ['teacher', weights('t')],
    ]);
    expect(() => stateDictOf(two)).toThrow(
      /weights under several keys: "student", "teacher"; say which with \{ key: "student" \}/,
    );
    expect(names(two, { key: 'teacher' })).toEqual(['t']);
    expect(names(new Map<string, PickleValue>([['a', two]]), { key: 'a.student' })).toEqual(['s']);
    expect(() => stateDictOf(two, { key: 'absent' })).toThrow(
      /no dict under "absent"; its keys are "student", "teacher"/,
    );
  });

  test('prefixes', () => {
    expect(stateDictOf(weights('module.a', 'module.b')).unwrapped).toEqual(['prefix module.']);
    expect(names(weights('module.module.a', 'module.module.b'))).toEqual(['a', 'b']);
    expect(names(weights('_orig_mod.a', '_orig_mod.b'))).toEqual(['a', 'b']);
    expect(names(weights('module._orig_mod.layer._orig_mod.a'))).toEqual(['layer.a']);
    expect(names(weights('layer1._orig_mod.a', 'b'))).toEqual(['layer1.a', 'b']);
    expect(names(weights('module.a', 'b'))).toEqual(['module.a', 'b']);
    const averaged = stateDictOf(weights('n_averaged', 'module.a'));
    expect([[...averaged.keys()], averaged.ignored]).toEqual([['a'], ['n_averaged']]);
    expect(names(weights('model.a', 'model.b'))).toEqual(['model.a', 'model.b']);
    expect(names(weights('model.a', 'model.b'), { prefixes: ['model.'] })).toEqual(['a', 'b']);
    expect(() => stateDictOf(weights('_orig_mod.a', 'a'))).toThrow(/makes two tensors called "a"/);
  });

  test('things between the tensors are set aside', () => {
    const state = stateDictOf(
      new Map<string, PickleValue>([
        ['a', x],
        ['version', 2],
        ['extra', new Map([['k', 1]])],
      ]),
    );
    expect([[...state.keys()], state.scalars.get('version'), state.ignored]).toEqual([['a'], 2, ['extra']]);
  });

  test('no tensors', () => {
    expect(() =>
      stateDictOf({
        path: 'x.pt',
        value: new Map<string, PickleValue>([
          ['epoch', 1],
          ['args', new Map()],
        ]),
      }),
    ).toThrow(/^x\.pt: no tensors were found; its keys are "epoch", "args"$/);
    expect(() => stateDictOf(new Map())).toThrow(/its keys are none/);
    for (const value of [null, 3, 'x', [x], zeros([1]), new Uint8Array(2)] as PickleValue[]) {
      expect(() => stateDictOf(value)).toThrow(CheckpointError);
    }
  });

  test('dicts that contain themselves or nest without end', () => {
    const loop = new Map<string, PickleValue>();
    loop.set('model', loop);
    expect(() => stateDictOf(loop)).toThrow(/no tensors/);
    let deep: PickleValue = plain;
    for (let i = 0; i < 100; i++) deep = new Map([['model', deep]]);
    expect(() => stateDictOf(deep)).toThrow(CheckpointError);
  });
});
