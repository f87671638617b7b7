/** The language of a task's model: the names of its classes as tokens, and the text tower that reads them. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import type { ClipTextTransformer } from '../models/index.js';
import type { Tensor } from '../tensor/index.js';
import { asUsage, UsageError } from './output.js';
import { isDenseClip, type DenseSpec, type StoredTask, type TaskSpec } from './task_spec.js';

type StoredLanguage = NonNullable<StoredTask['language']>;

/** What a model knows of language. */
export interface Language extends StoredLanguage {
  /** Weights of the text tower; null: random ones. */
  readonly tower: ReadonlyMap<string, Tensor> | null;
}

/** Where language comes from. */
export interface LanguageSource {
  /** The backbone's weights, which may be a whole CLIP. */
  readonly weights: string | null;
  /** A file with a text tower; null: that of `weights`. */
  readonly textWeights: string | null;
  /** CLIP's vocabulary; null: names are spelled letter by letter. */
  readonly vocabulary: string | null;
}

/** Whether a model reads the names of its classes. */
export function readsNames(spec: TaskSpec): spec is DenseSpec {
  return (spec.kind === 'multi' || isDenseClip(spec)) && (spec as DenseSpec).options['language'] !== false;
}

/** Learned vectors before a name: LV-Adapter's, and DenseCLIP's. */
const contextsOf = (spec: DenseSpec): readonly [option: string, usual: number] =>
  spec.kind === 'multi' ? ['promptLength', 16] : ['contexts', 8];
/** Start, three tokens, end. */
const LEAST_TOKENS = 5;

/**
 * The language of a model that is to be trained: class names as tokens, and the text tower; null where there is none.
 *
 * @param embedDim of a tower without weights
 * @throws UsageError when there is no text tower, or it has another vocabulary
 */
export async function readLanguage(
  spec: TaskSpec,
  classNames: readonly string[],
  source: LanguageSource,
  embedDim: number | undefined,
): Promise<Language | null> {
  if (!readsNames(spec)) return null;
  const { ClipTokenizer } = await import('../models/index.js');
  const { groupTaskClasses } = await import('../data/index.js');
  const { textTowerSizes } = await import('../systems/index.js');
  const { vocabulary, weights, textWeights } = source;
  const tokenizer = asUsage(() => (vocabulary === null ? new ClipTokenizer([]) : ClipTokenizer.fromFile(vocabulary)));
  const groups = spec.kind === 'multi' ? groupTaskClasses(classNames) : { classes: classNames };
  const longest = Math.max(...Object.values(groups).flatMap((names) => names.map((n) => tokenizer.encode(n).length)));
  const [option, usual] = contextsOf(spec);
  const length = Math.max(LEAST_TOKENS, longest + 2);
  const contextLength = length + Number(spec.options[option] ?? usual);
  const file = textWeights ?? weights;
  const tower = file === null ? null : await textTowerIn(file, contextLength);
  const { vocabSize } = tokenizer;
  const asked = (spec.options['text'] ?? {}) as Partial<StoredLanguage['text']>;
  const sizes = tower
    ? { ...textTowerSizes(tower), ...asked }
    : { vocabSize, width: 512, heads: 8, layers: 12, embedDim: embedDim ?? asked.width ?? 512, ...asked };
  if (sizes.vocabSize !== vocabSize)
    throw new UsageError(
      `the text tower in ${String(file)} knows ${sizes.vocabSize} tokens, and the names of the classes were split by a vocabulary of ` +
        `${vocabSize}: give CLIP's with --vocabulary bpe_simple_vocab_16e6.txt.gz`,
    );
  const tokens = Object.fromEntries(
    Object.entries(groups).map(([task, names]) => [
      task,
      tokenizer.tokenize(names, { contextLength: length }).tolist() as number[][],
    ]),
  );
  return { tokens, text: { ...sizes, contextLength }, tower };
}

/** @throws UsageError when the file holds none */
async function textTowerIn(file: string, contextLength: number): Promise<Map<string, Tensor>> {
  const { readCheckpoint, stateDictOf } = await import('../checkpoint/index.js');
  const { clipTextTower } = await import('../systems/index.js');
  const state = stateDictOf(readCheckpoint(file));
  try {
    return clipTextTower(state, contextLength);
  } catch (error) {
    throw new UsageError(
      `${file} holds no text tower of a CLIP, which reads the names of the classes: give one with --text-weights, or leave ` +
        'language out with --head-set language=false',
      { cause: error },
    );
  }
}

/** The text tower of an adapter lies in its folder where the backbone's weights do not hold it. */
export const TEXT_FILE = 'text.safetensors';

/** The language of a model that was trained, from what its adapter folder says. @throws as `readLanguage` */
export async function storedLanguage(
  stored: StoredLanguage | undefined,
  folder: string,
  weights: string,
): Promise<Language | null> {
  if (stored === undefined) return null;
  const beside = join(folder, TEXT_FILE);
  const file = existsSync(beside) ? beside : weights;
  return { ...stored, tower: await textTowerIn(file, stored.text.contextLength) };
}

/** A text tower with its weights. */
export async function towerOf({ text, tower }: Language): Promise<ClipTextTransformer> {
  const { clipTextOptions, ClipTextTransformer } = await import('../models/index.js');
  const made = new ClipTextTransformer(clipTextOptions.parse(text));
  if (tower) made.loadStateDict(new Map(tower));
  return made;
}
