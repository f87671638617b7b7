/** CLIP's tokenizer: byte-pair encoding of lower-case text. Radford et al. 2021; Sennrich et al. 2016, arXiv 1508.07909. */
import { readFileSync } from 'node:fs';
import { gunzipSync } from 'node:zlib';
import { requirePath } from '../checkpoint/index.js';
import { type Tensor, tensor } from '../tensor/index.js';
import { cleanText } from './clip_text_repair.js';

const START = '<|startoftext|>';
const END = '<|endoftext|>';
const END_OF_WORD = '</w>';
/** Merges that OpenAI's vocabulary of 49408 takes from the file, which holds more. */
const MERGES = 49152 - 256 - 2;
/** Words whose pieces are remembered. */
const REMEMBERED = 50_000;

/** In this order: special tokens, English endings, words, single digits, runs of anything else. The text is lower case. */
const PIECES = /<\|startoftext\|>|<\|endoftext\|>|'(?:[s\u017f]|t|re|ve|m|ll|d)|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+/gu;

/** Printable stand-ins of the 256 bytes, in the order of the vocabulary: those that are printable themselves, then the rest. */
function byteSymbols(): Map<number, string> {
  const ranges = [
    [33, 126],
    [161, 172],
    [174, 255],
  ] as const;
  const printable = ranges.flatMap(([from, to]) => Array.from({ length: to - from + 1 }, (_, i) => from + i));
  const symbols = new Map(printable.map((byte) => [byte, String.fromCodePoint(byte)]));
  let next = 256;
  for (let byte = 0; byte < 256; byte++) if (!symbols.has(byte)) symbols.set(byte, String.fromCodePoint(next++));
  return symbols;
}

/** How texts become rows of ids. */

/** How texts become rows of ids. */
export interface TokenizeOptions {
  /** Length of every row. Default 77. */
  readonly contextLength?: number;
  /** Cut texts that are too long, instead of refusing them. Default false. */
  readonly truncate?: boolean;
}

/**
 * Text to ids. Ids: the 256 bytes, the same at the end of a word, the merges, start and end of text.
 *
 * ```ts
 * const tokenizer = ClipTokenizer.fromFile('bpe_simple_vocab_16e6.txt.gz');
 * const ids = tokenizer.tokenize(['a photo of a dog']); // int64 [1, 77]
 * ```
 */
export class ClipTokenizer {
  readonly vocabSize: number;
  /** Ids of the start and the end of a text: the last two. */
  readonly startId: number;
  readonly endId: number;
  readonly #symbols = byteSymbols();
  readonly #ranks: ReadonlyMap<string, number>;
  readonly #ids: ReadonlyMap<string, number>;
  readonly #tokens: readonly string[];
  readonly #words = new Map<string, readonly number[]>();

  /**
   * @param merges pairs of symbols such as `i n` or `th e</w>`, the most frequent first
   * @throws TypeError for a line that is no pair
   */
  constructor(merges: readonly string[]) {
    const bad = merges.find((merge) => !/^\S+ \S+$/.test(merge));
    if (bad !== undefined) {
      throw new TypeError(`a merge is two symbols with a space between them, such as 'th e</w>', and not '${bad}'`);
    }
    const bytes = [...this.#symbols.values()];
    const joined = merges.map((merge) => merge.replace(' ', ''));
    this.#tokens = [...bytes, ...bytes.map((symbol) => symbol + END_OF_WORD), ...joined, START, END];
    this.#ids = new Map(this.#tokens.map((token, id) => [token, id]));
    this.#ranks = new Map(merges.map((merge, rank) => [merge, rank]));
    this.vocabSize = this.#tokens.length;
    this.startId = this.vocabSize - 2;
    this.endId = this.vocabSize - 1;
  }

  /**
   * Reads OpenAI's `bpe_simple_vocab_16e6.txt.gz`, or transformers' `merges.txt` of CLIP: a line of heading, then one merge
   * a line; plain or gzip.
   *
   * @throws Error when the file cannot be read, RangeError when it holds too few merges
   */
  static fromFile(path: string): ClipTokenizer {
    requirePath(path);
    const raw = readFileSync(path);
    const text = (raw[0] === 0x1f && raw[1] === 0x8b ? gunzipSync(raw) : raw).toString('utf8');
    const merges = text.split('\n').slice(1, MERGES + 1);
    if (merges.length < MERGES || merges.at(-1) === '') {
      throw new RangeError(
        `${path} holds fewer than the ${MERGES} merges of CLIP's vocabulary; expected bpe_simple_vocab_16e6.txt.gz or merges.txt`,
      );
    }
    return new ClipTokenizer(merges);
  }

  /** The ids of a text of any length, without start and end. */
  encode(text: string): number[] {
    return Array.from(cleanText(text).matchAll(PIECES), ([piece]) => this.#encodePiece(piece)).flat();
  }

  /** The text of ids: words separated by spaces, as the tokenizer sees them; start and end appear by name. */
  decode(ids: Iterable<number>): string {
    const bytes = new Map(Array.from(this.#symbols, ([byte, symbol]) => [symbol, byte]));
    const symbols = Array.from(ids, (id) => {
      const token = this.#tokens[id];
      if (token === undefined) throw new RangeError(`there is no id ${id}; ids are 0 to ${this.vocabSize - 1}`);
      return token;
    }).join('');
    const values = Array.from(symbols.replaceAll(END_OF_WORD, ' '), (symbol) => bytes.get(symbol) ?? 0x20);
    return new TextDecoder().decode(Uint8Array.from(values));
  }

  /**
   * Texts to rows [start, ids, end, 0, ...] of one length: int64 [texts, contextLength].
   *
   * @throws RangeError for a text that is too long, unless `truncate` is given: then it is cut and ends with the end id
   */
  tokenize(texts: string | readonly string[], options: TokenizeOptions = {}): Tensor {
    const { contextLength = 77, truncate = false } = options;
    if (!Number.isInteger(contextLength) || contextLength < 2) {
      throw new RangeError(`tokenize: contextLength must be at least 2, for start and end, got ${contextLength}`);
    }
    const rows = (typeof texts === 'string' ? [texts] : texts).map((text) => {
      const ids = [this.startId, ...this.encode(text), this.endId];
      if (ids.length > contextLength && !truncate) {
        throw new RangeError(
          `tokenize: '${text.slice(0, 40)}' is ${ids.length} tokens long and the context ${contextLength}; shorten it or pass truncate: true`,
        );
      }
      const row = Array.from({ length: contextLength }, (_, i) => ids[i] ?? 0);
      if (ids.length > contextLength) row[contextLength - 1] = this.endId;
      return row;
    });
    return tensor(rows.flat(), { dtype: 'int64' }).reshape([rows.length, contextLength]);
  }

  #encodePiece(piece: string): readonly number[] {
    if (piece === START) return [this.startId];
    if (piece === END) return [this.endId];
    const known = this.#words.get(piece);
    if (known) return known;
    const ids = this.#merge(piece).map((symbol) => this.#ids.get(symbol) ?? 0);
    if (this.#words.size >= REMEMBERED) this.#words.clear();
    this.#words.set(piece, ids);
    return ids;
  }

  /** Bytes of a piece, then again and again the pair of lowest rank joined, everywhere, from left to right. */
  #merge(piece: string): string[] {
    let word = Array.from(Buffer.from(piece, 'utf8'), (byte) => this.#symbols.get(byte) ?? '');
    word.push((word.pop() ?? '') + END_OF_WORD);
    for (;;) {
      const best = this.#lowestPair(word);
      if (best === null) return word;
      const joined: string[] = [];
      for (let i = 0; i < word.length; i++) {
        const [first = '', second] = [word[i], word[i + 1]];
        if (second !== undefined && `${first} ${second}` === best) {
          joined.push(first + second);
          i++;
        } else joined.push(first);
      }
      word = joined;
    }
  }

  #lowestPair(word: readonly string[]): string | null {
    let best: string | null = null;
    let lowest = Infinity;
    for (let i = 0; i + 1 < word.length; i++) {
      const pair = `${word[i] ?? ''} ${word[i + 1] ?? ''}`;
      const rank = this.#ranks.get(pair) ?? Infinity;
      if (rank < lowest) [best, lowest] = [pair, rank];
    }
    return best;
  }
}
