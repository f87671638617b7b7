/** Text to token ids and back, by the tokenizer files that stand beside published weights. */
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { requirePackage } from '../native/packages.js';
import { tensor, type Device, type Tensor } from '../tensor/index.js';

/** What is used of the package's tokenizers. */
interface Tokenizer {
  encode(
    text: string,
    options: { text_pair?: string | null; add_special_tokens?: boolean },
  ): { readonly ids: readonly number[] };
  decode(ids: readonly number[], options: { skip_special_tokens?: boolean }): string;
  token_to_id(token: string): number | undefined;
}

/** The package, as far as it is used; its own declarations cannot be resolved under Node's module rules. */
interface Tokenizers {
  readonly Tokenizer: new (tokenizer: object, config: object) => Tokenizer;
}

const tokenizers = (): Tokenizers => requirePackage('@huggingface/tokenizers') as Tokenizers;

/** What a text model reads of a batch of texts. */
export interface TokenizedTexts {
  /** int64 [B, N], padded behind. */
  readonly inputIds: Tensor;
  /** int64 [B, N]: 1 for tokens, 0 for padding. */
  readonly attentionMask: Tensor;
}

/** How texts are encoded. */
export interface EncodeOptions {
  /** Longer texts are cut, so that the end token stays the last. Default: no limit. */
  readonly maxLength?: number;
  /** Second text of each pair, for tasks on two texts. */
  readonly pairs?: readonly string[];
  /** Whether the model's start and end tokens are set. Default true. */
  readonly specialTokens?: boolean;
  /** Where the tensors are made. Default `cpu`. */
  readonly device?: Device;
}

const TOKENIZER_FILE = 'tokenizer.json';
const CONFIG_FILE = 'tokenizer_config.json';

/**
 * A tokenizer from local files, of any model whose files come in Hugging Face's format: T5, BART, mBART, RoBERTa.
 *
 * ```ts
 * const tokenizer = TextTokenizer.open('weights/t5_small');
 * const { inputIds, attentionMask } = tokenizer.encode(['translate English to German: a house']);
 * ```
 */
export class TextTokenizer {
  readonly #tokenizer: Tokenizer;
  /** Id that fills up short texts. */
  readonly padId: number;

  /**
   * @param tokenizer what `tokenizer.json` holds
   * @param config what `tokenizer_config.json` holds
   * @param padId id of padding. Default: that of the config's `pad_token`, of `<pad>`, or of `[PAD]`
   * @throws Error when the contents are not a tokenizer's, or no id of padding is known
   */
  constructor(tokenizer: object, config: object = {}, padId?: number) {
    const { Tokenizer } = tokenizers();
    try {
      this.#tokenizer = new Tokenizer(tokenizer, config);
    } catch (error) {
      throw new Error(`this is no tokenizer that can be read: ${(error as Error).message}`, { cause: error });
    }
    const found = padId ?? this.#findPad(config);
    if (found === undefined) throw new Error('the tokenizer names no token for padding; give its id as padId');
    this.padId = found;
  }

  /** Reads a folder with `tokenizer.json` and, if there is one, `tokenizer_config.json`. @throws Error that names the file */
  static open(folder: string, padId?: number): TextTokenizer {
    const file = join(folder, TOKENIZER_FILE);
    if (!existsSync(file))
      throw new Error(`${folder} holds no ${TOKENIZER_FILE}; save the model's fast tokenizer there`);
    const config = join(folder, CONFIG_FILE);
    const read = readJson(file);
    return new TextTokenizer(read, existsSync(config) ? readJson(config) : {}, padId);
  }

  #findPad(config: object): number | undefined {
    const named: unknown = 'pad_token' in config ? config.pad_token : undefined;
    const content = typeof named === 'object' && named !== null && 'content' in named ? named.content : named;
    for (const token of [content, '<pad>', '[PAD]']) {
      const id = typeof token === 'string' ? this.idOf(token) : undefined;
      if (id !== undefined) return id;
    }
    return undefined;
  }

  /** Id of a token such as `</s>`, or undefined. */
  idOf(token: string): number | undefined {
    return this.#tokenizer.token_to_id(token);
  }

  /**
   * Texts to ids, all as long as the longest.
   *
   * @throws TypeError when something is not a text; RangeError for no texts, pairs of another number, or a length below 1
   */
  encode(texts: string | readonly string[], options: EncodeOptions = {}): TokenizedTexts {
    const list = typeof texts === 'string' ? [texts] : texts;
    const { pairs, maxLength = Infinity, specialTokens = true, device = 'cpu' } = options;
    const given: readonly unknown[] = [...list, ...(pairs ?? [])];
    const wrong = given.find((text) => typeof text !== 'string');
    if (wrong !== undefined) throw new TypeError(`texts must be strings, got ${typeof wrong}`);
    if (list.length === 0) throw new RangeError('there are no texts to encode');
    if (pairs && pairs.length !== list.length) {
      throw new RangeError(`${list.length} texts and ${pairs.length} second texts; each needs one`);
    }
    if (maxLength !== Infinity && !(Number.isInteger(maxLength) && maxLength > 0)) {
      throw new RangeError(`maxLength must be a positive integer, got ${maxLength}`);
    }
    const rows = list.map((text, i) => {
      const { ids } = this.#tokenizer.encode(text, {
        text_pair: pairs?.[i] ?? null,
        add_special_tokens: specialTokens,
      });
      return ids.length <= maxLength ? ids : cut(ids, maxLength, specialTokens ? this.#closing() : 0);
    });
    // A text may be empty; a batch of nothing but padding still has a column.
    const length = Math.max(1, ...rows.map((ids) => ids.length));
    const padded = (row: readonly number[], fill: number): number[] => [
      ...row,
      ...Array<number>(length - row.length).fill(fill),
    ];
    const make = (values: number[][]): Tensor => tensor(values, { dtype: 'int64', device });
    const inputIds = make(rows.map((ids) => padded(ids, this.padId)));
    const ones = rows.map((ids) => Array<number>(ids.length).fill(1));
    return { inputIds, attentionMask: make(ones.map((row) => padded(row, 0))) };
  }

  /** How many tokens the tokenizer sets behind every text. */
  #closing(): number {
    const { ids } = this.#tokenizer.encode('a', { add_special_tokens: true });
    const inner = this.#tokenizer.encode('a', { add_special_tokens: false }).ids;
    const start = ids.findIndex((_, i) => inner.every((id, j) => ids[i + j] === id));
    return start < 0 ? 0 : ids.length - start - inner.length;
  }

  /** Ids [N] or [B, N] to one text per row, without padding and the other special tokens. */
  decode(ids: Tensor, options: { readonly specialTokens?: boolean } = {}): string[] {
    const rows = ids.ndim === 1 ? ids.view([1, -1]) : ids;
    const [count = 0] = rows.shape;
    return Array.from({ length: count }, (_, i) =>
      this.#tokenizer.decode(Array.from(rows.select(0, i).contiguous().data(), Number), {
        skip_special_tokens: options.specialTokens !== true,
      }),
    );
  }
}

/** The first ids, with the last `closing` in their place at the end. */
function cut(ids: readonly number[], length: number, closing: number): number[] {
  const end = ids.slice(ids.length - Math.min(closing, length));
  return [...ids.slice(0, length - end.length), ...end];
}

function readJson(file: string): object {
  let value: unknown;
  try {
    value = JSON.parse(readFileSync(file, 'utf8'));
  } catch (error) {
    throw new Error(`${file} cannot be read as JSON: ${(error as Error).message}`, { cause: error });
  }
  if (typeof value !== 'object' || value === null) throw new Error(`${file} holds no object`);
  return value;
}
