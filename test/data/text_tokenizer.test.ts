/** Tokenizers from local files, against what the Python package `tokenizers` makes of the same texts (make_tokenizers.py). */
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { describe, expect, test } from 'vitest';
import { TextTokenizer } from '../../lib/data/index.js';

interface Expected {
  readonly text: string;
  readonly pair?: string;
  readonly ids: readonly number[];
  readonly plain?: readonly number[];
  readonly decoded?: string;
}

const folder = (kind: string): string => fileURLToPath(new URL(`fixtures/tokenizers/${kind}`, import.meta.url));
const read = (kind: string): Expected[] =>
  JSON.parse(readFileSync(`${folder(kind)}/expected.json`, 'utf8')) as Expected[];

describe.each([
  ['unigram', 0, 1],
  ['byte_bpe', 1, 2],
] as const)('%s', (kind, pad, end) => {
  const tokenizer = TextTokenizer.open(folder(kind));
  const rows = read(kind);

  test.each(rows)('encodes $text $pair', ({ text, pair, ids, plain, decoded }) => {
    const { inputIds } = tokenizer.encode(text, pair === undefined ? {} : { pairs: [pair] });
    expect(inputIds.tolist()).toEqual([ids]);
    if (decoded !== undefined) expect(tokenizer.decode(inputIds)).toEqual([decoded]);
    if (plain === undefined || plain.length === 0) return;
    expect(tokenizer.encode(text, { specialTokens: false }).inputIds.tolist()).toEqual([plain]);
  });

  test('pads a batch behind, and says where', () => {
    const texts = rows.filter(({ pair }) => pair === undefined);
    const { inputIds, attentionMask } = tokenizer.encode(texts.map(({ text }) => text));
    const longest = Math.max(...texts.map(({ ids }) => ids.length));
    expect(tokenizer.padId).toBe(pad);
    const filled = (ids: readonly number[], fill: number): number[] =>
      Array.from({ length: longest }, (_, i) => ids[i] ?? fill);
    expect(inputIds.tolist()).toEqual(texts.map(({ ids }) => filled(ids, pad)));
    expect(attentionMask.tolist()).toEqual(texts.map(({ ids }) => filled(ids.map(() => 1), 0))); // prettier-ignore
  });

  test('cuts long texts before their end token', () => {
    const [{ ids, plain = [], text } = { ids: [], text: '' }] = rows;
    const start = ids.length - plain.length - 1;
    const cut = tokenizer.encode(text, { maxLength: 4 }).inputIds.tolist();
    expect(cut).toEqual([[...ids.slice(0, start), ...plain.slice(0, 3 - start), end]]);
    expect(tokenizer.encode(text, { maxLength: 3, specialTokens: false }).inputIds.tolist()).toEqual([
      plain.slice(0, 3),
    ]);
  });

  test('refuses what is no text', () => {
    expect(() => tokenizer.encode([])).toThrow(RangeError);
    expect(() => tokenizer.encode([3 as unknown as string])).toThrow(TypeError);
    expect(() => tokenizer.encode(['a', 'b'], { pairs: ['c'] })).toThrow(/2 texts and 1 second/);
    expect(() => tokenizer.encode('a', { maxLength: 0 })).toThrow(/maxLength/);
  });
});

test('says what is wrong with a folder', () => {
  expect(() => TextTokenizer.open(folder('missing'))).toThrow(/holds no tokenizer\.json/);
  expect(() => new TextTokenizer({})).toThrow(/no tokenizer/);
});
