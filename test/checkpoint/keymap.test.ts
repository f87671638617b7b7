import { describe, expect, expectTypeOf, test } from 'vitest';
import { applyKeyMap, invertKeyMap, isInvertible, type KeyMap, type KeyRule } from '../../lib/checkpoint/index.js';
import { arange, type Tensor } from '../../lib/tensor/index.js';

const matrix = (rows: number, columns = 2, start = 0) => arange(start, start + rows * columns).reshape([rows, columns]);
const values = (tensors: Map<string, Tensor>) =>
  Object.fromEntries([...tensors].map(([name, value]) => [name, value.tolist()]));

const map: KeyMap = [
  { kind: 'rename', from: 'backbone.{rest...}', to: '{rest...}' },
  { kind: 'rename', from: 'layers.{i}.{rest...}', to: 'blocks.{i}.{rest...}' },
  { kind: 'split', from: 'blocks.{i}.attn.qkv.{k}', to: ['blocks.{i}.q.{k}', 'blocks.{i}.k.{k}', 'blocks.{i}.v.{k}'] },
  { kind: 'concat', from: ['head.a.{k}', 'head.b.{k}'], to: 'head.{k}', sizes: [1, 2] },
  { kind: 'permute', match: 'proj.weight', dims: [1, 0] },
];
const foreign = () =>
  new Map([
    ['backbone.layers.0.attn.qkv.weight', matrix(6)],
    ['backbone.layers.11.attn.qkv.weight', matrix(3)],
    ['head.a.weight', matrix(1)],
    ['head.b.weight', matrix(2, 2, 10)],
    ['backbone.proj.weight', matrix(2, 3)],
    ['other', matrix(1)],
  ]);

describe('applyKeyMap', () => {
  test('renames, splits, joins, permutes; leaves the rest', () => {
    const { tensors, unused, dropped } = applyKeyMap(map, foreign());
    expect(values(tensors)).toEqual({
      'blocks.0.q.weight': [
        [0, 1],
        [2, 3],
      ],
      'blocks.0.k.weight': [
        [4, 5],
        [6, 7],
      ],
      'blocks.0.v.weight': [
        [8, 9],
        [10, 11],
      ],
      'blocks.11.q.weight': [[0, 1]],
      'blocks.11.k.weight': [[2, 3]],
      'blocks.11.v.weight': [[4, 5]],
      'head.weight': [
        [0, 1],
        [10, 11],
        [12, 13],
      ],
      'proj.weight': [
        [0, 3],
        [1, 4],
        [2, 5],
      ],
      other: [[0, 1]],
    });
    expect([unused, dropped]).toEqual([[], []]);
  });

  test('inverts to where it came from', () => {
    const prefixed: KeyMap = map.slice(1);
    const start = new Map([...foreign()].map(([name, value]) => [name.replace('backbone.', ''), value]));
    expect(isInvertible(prefixed)).toBe(true);
    const there = applyKeyMap(prefixed, start).tensors;
    expect(values(applyKeyMap(invertKeyMap(prefixed), there).tensors)).toEqual(values(start));
    expect(invertKeyMap(invertKeyMap(prefixed))).toEqual(prefixed);
  });

  test('a permutation of three dimensions is inverted', () => {
    const rule: KeyMap = [{ kind: 'permute', match: 'w', dims: [2, 0, 1] }];
    const w = arange(24).reshape([2, 3, 4]);
    const there = applyKeyMap(rule, [['w', w]]).tensors;
    expect(there.get('w')!.shape).toEqual([4, 2, 3]);
    expect(applyKeyMap(invertKeyMap(rule), there).tensors.get('w')!.tolist()).toEqual(w.tolist());
  });

  test('regular expressions', () => {
    const rule: KeyRule = {
      kind: 'rename',
      from: /^b(\d+)_/g,
      to: 'blocks.$1.',
      back: { from: /^blocks\.(\d+)\./, to: 'b$1_' },
    };
    const there = applyKeyMap(
      [rule],
      [
        ['b3_w', matrix(1)],
        ['c', matrix(1)],
      ],
    ).tensors;
    expect([...there.keys()]).toEqual(['blocks.3.w', 'c']);
    expect([...applyKeyMap(invertKeyMap([rule]), there).tensors.keys()]).toEqual(['b3_w', 'c']);
    expect(() => invertKeyMap([{ kind: 'rename', from: /a/, to: 'b' }])).toThrow(
      /\/a\/ cannot be inverted; give it "back"/,
    );
  });

  test('reports what was dropped and which rules found nothing', () => {
    const stale: KeyRule = { kind: 'rename', from: 'gone.{rest...}', to: '{rest...}' };
    const result = applyKeyMap(
      [{ kind: 'drop', match: /_index$/g }, { kind: 'drop', match: 'fc.{rest...}' }, stale],
      [
        ['a_index', matrix(1)],
        ['b_index', matrix(1)],
        ['fc.weight', matrix(1)],
        ['w', matrix(1)],
      ],
    );
    expect([[...result.tensors.keys()], result.dropped, result.unused]).toEqual([
      ['w'],
      ['a_index', 'b_index', 'fc.weight'],
      [stale],
    ]);
    expect(isInvertible([{ kind: 'drop', match: 'x' }])).toBe(false);
    expect(() => invertKeyMap([{ kind: 'drop', match: 'x' }])).toThrow(/dropping x cannot be inverted/);
  });

  test('{x} is one component, {x...} any number, the rest literal', () => {
    const rename = (from: string, name: string) =>
      [...applyKeyMap([{ kind: 'rename', from, to: 'hit' }], [[name, matrix(1)]]).tensors.keys()][0];
    expect(rename('a.{x}.b', 'a.1.b')).toBe('hit');
    expect(rename('a.{x}.b', 'a.1.2.b')).toBe('a.1.2.b');
    expect(rename('a.{x...}.b', 'a.1.2.b')).toBe('hit');
    expect(rename('a.b', 'axb')).toBe('axb');
    expect(rename('a(.)b', 'a(.)b')).toBe('hit');
    expect(rename('a', 'ab')).toBe('ab');
  });

  test('mistakes', () => {
    expect(() =>
      applyKeyMap(
        [{ kind: 'rename', from: 'a', to: 'b' }],
        [
          ['a', matrix(1)],
          ['b', matrix(1)],
        ],
      ),
    ).toThrow(/two tensors end up as "b"/);
    expect(() => applyKeyMap([{ kind: 'split', from: 'a', to: ['b', 'c'] }], [['a', matrix(3)]])).toThrow(
      /"a" of shape \[3, 2\].*2 equal parts/,
    );
    expect(() =>
      applyKeyMap([{ kind: 'split', from: 'a', to: ['b', 'c'], sizes: [1, 1] }], [['a', matrix(3)]]),
    ).toThrow(/into \[1, 1\]/);
    expect(() => applyKeyMap([{ kind: 'split', from: 'a', to: ['b'], dim: 5 }], [['a', matrix(3)]])).toThrow(
      RangeError,
    );
    expect(() => applyKeyMap([{ kind: 'concat', from: ['a', 'b'], to: 'c' }], [['a', matrix(3)]])).toThrow(
      /"c" is joined from "a", "b", but "b" is missing/,
    );
    expect(() => applyKeyMap([{ kind: 'permute', match: 'a', dims: [0, 2, 1] }], [['a', matrix(3)]])).toThrow(
      /has 2 dimensions/,
    );
    expect(() => applyKeyMap([{ kind: 'rename', from: 'a', to: '{x}' }], [['a', matrix(1)]])).toThrow(
      /uses \{x\}, which the other side does not name/,
    );
    expect(() => applyKeyMap([{ kind: 'rename', from: '{x}.{x}', to: 'b' }], [['a', matrix(1)]])).toThrow(
      /names \{x\} twice/,
    );
    expect(() => applyKeyMap([{ kind: 'rename', from: 'a.{', to: 'b' }], [['a', matrix(1)]])).toThrow(/stray brace/);
  });

  test('rules are a tagged union', () => {
    expectTypeOf<{ kind: 'drop'; match: string }>().toExtend<KeyRule>();
    expectTypeOf<{ kind: 'drop'; from: string }>().not.toExtend<KeyRule>();
    expectTypeOf<{ kind: 'merge'; match: string }>().not.toExtend<KeyRule>();
  });
});
