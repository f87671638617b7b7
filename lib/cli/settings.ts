/**
 * The settings of a `finetune` run: from flags, backbone and method to one JSON value, which is stored as `run.json` in
 * the output folder, so that `--resume` and whoever wonders later find every decision in one place.
 */
import { existsSync, readFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import type { Method } from '../adapters/index.js';
import type { TransformInput } from '../data/index.js';
import { existingFile, parseSettings } from './arguments.js';
import { asUsage, UsageError } from './output.js';
import { withKit } from './kits/kit.js';
import { inputOf, isWholeInput, type PreprocessFlags } from './preprocess.js';
import { readsNames } from './task_language.js';
import { defaultMethod, taskFromFlags, type TaskFlags, type TaskSpec } from './task_spec.js';

/** What `finetune` was told, as commander parses it. */
export interface FinetuneFlags extends PreprocessFlags, TaskFlags {
  readonly weights?: string | false;
  readonly textWeights?: string;
  readonly vocabulary?: string;
  readonly from?: string;
  readonly data?: string;
  readonly valFraction: number;
  readonly splitSeed: number;
  readonly method?: string;
  readonly set?: string[];
  readonly epochs: number;
  readonly batchSize: number;
  readonly optimizer: 'adamw' | 'adam' | 'sgd';
  readonly lr?: number;
  readonly weightDecay: number;
  readonly schedule: 'cosine' | 'constant';
  readonly warmupEpochs: number;
  readonly accumulate: number;
  readonly clip?: number;
  readonly labelSmoothing: number;
  readonly bnStats?: 'frozen' | 'update';
  readonly amp?: boolean;
  readonly seed: number;
  readonly keep: 'best' | 'last';
  readonly saveEvery?: number;
  readonly skipBroken?: boolean;
  readonly cache: number;
  readonly threads?: number;
  readonly device: string;
  readonly out: string;
  readonly resume?: boolean;
  readonly overwrite?: boolean;
  readonly quiet?: boolean;
  readonly json?: boolean;
}

/** Every decision of a run. */
export interface RunSettings {
  readonly task: TaskSpec;
  readonly model: string;
  readonly imageSize: number | null;
  /** What the backbone is created with beyond its name and size. */
  readonly modelOptions: Readonly<Record<string, unknown>>;
  /** Path of the backbone's weights; null: random ones. */
  readonly weights: string | null;
  /** Path of a file with the text tower; null: that of the backbone's weights. */
  readonly textWeights: string | null;
  /** Path of CLIP's vocabulary; null: names are spelled letter by letter. */
  readonly vocabulary: string | null;
  /** Path of the adapter folder whose trained part training starts from. */
  readonly from: string | null;
  readonly data: string;
  readonly valFraction: number;
  readonly splitSeed: number;
  readonly method: string;
  readonly options: Readonly<Record<string, unknown>>;
  readonly epochs: number;
  readonly batchSize: number;
  readonly optimizer: 'adamw' | 'adam' | 'sgd';
  readonly lr: number;
  readonly weightDecay: number;
  readonly schedule: 'cosine' | 'constant';
  readonly warmupEpochs: number;
  readonly accumulate: number;
  readonly clip: number | null;
  readonly labelSmoothing: number;
  readonly bnStats: 'frozen' | 'update';
  readonly amp: boolean;
  readonly seed: number;
  readonly keep: 'best' | 'last';
  readonly saveEvery: number | null;
  readonly skipBroken: boolean;
  readonly cacheMegabytes: number;
  readonly threads: number;
  readonly device: string;
  readonly transforms: { readonly train: TransformInput[]; readonly evaluate: TransformInput[] };
}

const FILE = 'run.json';

export const settingsFile = (out: string): string => join(out, FILE);

/** The settings of the run in `out`; null if there is none. */
export function readSettings(out: string): RunSettings | null {
  const path = settingsFile(out);
  if (!existsSync(path)) return null;
  // Runs from before there were tasks are classifications.
  return {
    task: { kind: 'classify' },
    ...{ modelOptions: {}, textWeights: null, vocabulary: null, from: null },
    ...(JSON.parse(readFileSync(path, 'utf8')) as Partial<RunSettings>),
  } as RunSettings;
}

/** Decides everything that the flags leave open. */
export async function resolveSettings(model: string, flags: FinetuneFlags): Promise<RunSettings> {
  const { findMethod } = await import('../adapters/index.js');
  const { modelInfo } = await import('../models/index.js');
  const { getNumThreads } = await import('../tensor/index.js');
  const { data } = flags;
  if (data === undefined) throw new UsageError('--data is missing: a folder of images, or shapes:TASK');
  if (flags.weights === undefined)
    throw new UsageError("--weights is missing: the backbone's checkpoint; --no-weights trains on random weights");
  const size = flags.imageSize;
  // Detectors pad images to what the backbone reads: of other sizes it may have no facts.
  const isPadded = flags.task === 'detect' || flags.task === 'multi';
  const info = asUsage(() => modelInfo(model, size === undefined || isPadded ? {} : { imgSize: size }));
  const { height } = inputOf(info.config, flags);
  const task = taskFromFlags(flags, height, isWholeInput(info.config, flags));
  for (const [name, file] of Object.entries({ 'text-weights': flags.textWeights, vocabulary: flags.vocabulary })) {
    if (file === undefined) continue;
    if (!readsNames(task)) throw new UsageError(`--${name}: nothing here reads the names of the classes`);
    existingFile(file, `--${name}`);
  }
  const method = asUsage(() => findMethod(flags.method ?? defaultMethod(task)));
  const kit = await withKit(flags.task, (own) => {
    const isBuiltIn = own.isBuiltIn(data);
    // The built-in videos tell left from right.
    const flip = flags.flip && !(flags.task === 'video' && isBuiltIn);
    return { isBuiltIn, transforms: own.transforms(info.config, { ...flags, flip }) };
  });
  return {
    task,
    model,
    imageSize: size ?? null,
    modelOptions: readsAnySize(flags.task, info.options) ? { dynamicImgSize: true } : {},
    weights: flags.weights === false ? null : resolve(flags.weights),
    ...{ textWeights: pathOf(flags.textWeights), vocabulary: pathOf(flags.vocabulary), from: pathOf(flags.from) },
    data: kit.isBuiltIn ? data : resolve(data),
    valFraction: flags.valFraction,
    splitSeed: flags.splitSeed,
    method: method.id,
    options: parseSettings(flags.set ?? []),
    epochs: flags.epochs,
    batchSize: flags.batchSize,
    optimizer: flags.optimizer,
    lr: flags.lr ?? (await rateOf(task, method, info.parameters)),
    weightDecay: flags.weightDecay,
    schedule: flags.schedule,
    warmupEpochs: flags.warmupEpochs,
    accumulate: flags.accumulate,
    clip: flags.clip ?? null,
    labelSmoothing: flags.labelSmoothing,
    bnStats: flags.bnStats ?? method.bnStats ?? 'frozen',
    amp: flags.amp === true,
    seed: flags.seed,
    keep: flags.keep,
    saveEvery: flags.saveEvery ?? null,
    skipBroken: flags.skipBroken === true,
    cacheMegabytes: flags.cache,
    threads: flags.threads ?? getNumThreads(),
    device: flags.device,
    transforms: kit.transforms,
  };
}

/** Dense heads start from nothing, under the rate of one that is linear they would burst. */
const DENSE_HEAD_RATE = 1e-3;

async function rateOf(task: TaskSpec, method: Method, parameters: number): Promise<number> {
  const { learningRate } = await import('../adapters/index.js');
  const rate = learningRate(method, parameters);
  const isDense = task.kind === 'segment' || task.kind === 'detect' || task.kind === 'multi';
  return isDense && method.id === 'linear_probe' ? Math.min(rate, DENSE_HEAD_RATE) : rate;
}

const pathOf = (file: string | undefined): string | null => (file === undefined ? null : resolve(file));

/** Maps of any size, where a transformer has to be told. */
const readsAnySize = (task: TaskFlags['task'], options: Readonly<Record<string, unknown>>): boolean =>
  (task === 'segment' || task === 'detect' || task === 'multi') && 'dynamicImgSize' in options;

/** Refuses to go on with a run under other settings; those that do not change the result may differ. */
export function mustAgree(saved: RunSettings, given: RunSettings, out: string): void {
  const free = new Set<keyof RunSettings>(['keep', 'saveEvery', 'cacheMegabytes']);
  const differences = (Object.keys(given) as (keyof RunSettings)[])
    .filter((key) => !free.has(key) && JSON.stringify(saved[key]) !== JSON.stringify(given[key]))
    .map((key) => `${key} was ${JSON.stringify(saved[key])}, is ${JSON.stringify(given[key])}`);
  if (differences.length > 0)
    throw new UsageError(
      `the run in ${out} was started with other settings: ${differences.join('; ')}. Leave them out, or start anew in another folder.`,
    );
}
