/** One training run with everything it leaves behind: adapter folder, report, result. */
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { findMethod, graft, readAdapterFolder, saveAdapter, startFrom, type Adapter } from '../adapters/index.js';
import { writeSafetensors } from '../checkpoint/index.js';
import type { SplitsOf } from '../data/index.js';
import type { Backbone } from '../models/index.js';
import { LvAdapter } from '../systems/index.js';
import { manualSeed, type Tensor } from '../tensor/index.js';
import {
  evaluate,
  headline,
  htmlReport,
  Trainer,
  type FitResult,
  type Report,
  type Score,
  type TaskBatch,
  type TrainListener,
} from '../train/index.js';
import { leftOut, withKit, type Loader, type TaskKit } from './kits/kit.js';
import { asUsage } from './output.js';
import type { RunSettings } from './settings.js';
import { readLanguage, TEXT_FILE } from './task_language.js';
import { backboneOf, backboneSide, modelFor, readsMaps, textTowerOf } from './task_model.js';
import { isDenseClip, type StoredTask, type TaskSpec } from './task_spec.js';
import { BACKBONE_FILE, openBackbone, prepareCompute } from './trained.js';

/** What `finetune --json` prints, and `result.json` holds. */
export interface RunResult {
  readonly task: RunSettings['task']['kind'];
  readonly model: string;
  readonly method: string;
  readonly options: Readonly<Record<string, unknown>>;
  readonly trainable: number;
  readonly total: number;
  readonly percent: number;
  readonly epochs: number;
  /** Which weights are in the adapter folder, and of which epoch. */
  readonly keep: 'best' | 'last';
  readonly keptEpoch: number;
  /** What decides which epoch is best, and what the next three are: accuracy, mIoU, AP. */
  readonly score: string;
  /** Of the weights in the adapter folder, on the validation data. */
  readonly accuracy: number;
  readonly bestAccuracy: number;
  readonly lastAccuracy: number;
  /** All figures that the task has by name. */
  readonly metrics?: Readonly<Record<string, number>>;
  /** Null where the task does not measure it. */
  readonly loss: number | null;
  readonly samples: number;
  /** Of this process. */
  readonly seconds: number;
  readonly skipped: number;
  readonly adapter: string;
  readonly report: string;
}

interface RunOptions {
  readonly resume: boolean;
  readonly signal: AbortSignal;
  readonly onEvent: TrainListener | undefined;
}

/** Trains as the settings say and writes everything into `out`; null if it was interrupted. */
export function trainRun(settings: RunSettings, out: string, o: RunOptions): Promise<RunResult | null> {
  return withKit(settings.task.kind, (kit) => trainWith(kit, settings, out, o));
}

async function trainWith<
  Source extends { readonly classNames: readonly string[] },
  B extends TaskBatch,
  S extends Score,
>(kit: TaskKit<Source, B, S>, settings: RunSettings, out: string, o: RunOptions): Promise<RunResult | null> {
  const device = await prepareCompute(settings);
  const { valFraction, splitSeed, skipBroken } = settings;
  const parts = await kit.open(settings.data, { valFraction, seed: splitSeed, skipBroken });
  const { val, classNames } = parts;
  manualSeed(settings.seed); // for backbones and heads that start from random weights
  const { adapter, stored } = await makeAdapter(settings, classNames, device);
  const { model } = adapter;
  const loaders = await makeLoaders(kit, settings, parts);
  const task = await kit.task(settings.task, classNames.length, { labelSmoothing: settings.labelSmoothing });
  const trainer = new Trainer({
    model,
    adapter,
    ...loaders,
    task,
    epochs: settings.epochs,
    optimizer: {
      ...{ kind: settings.optimizer, lr: settings.lr, weightDecay: settings.weightDecay },
      ...(isDenseClip(settings.task) && { rateFactor: denseClipRate(settings.task) }),
    },
    schedule: { kind: settings.schedule, warmupEpochs: settings.warmupEpochs },
    accumulate: settings.accumulate,
    clip: settings.clip,
    autocast: settings.amp ? 'bfloat16' : null,
    bnStats: settings.bnStats,
    backboneMode: adapter.backboneMode,
    seed: settings.seed,
    outDir: out,
    resume: o.resume,
    saveEvery: settings.saveEvery,
    signal: o.signal,
    ...(o.onEvent === undefined ? {} : { onEvent: o.onEvent }),
  });
  const fit = await trainer.fit();
  if (fit.interrupted) return null;
  if (settings.keep === 'best') trainer.restoreBest();
  const score = await evaluate(model, loaders.val, { task, autocast: settings.amp ? 'bfloat16' : null });

  const folder = join(out, 'adapter');
  await saveRunAdapter(folder, adapter, stored, settings, classNames);
  const skipped = new Set(
    [parts.train, val].flatMap(leftOut).concat(loaders.train.skipped, loaders.val.skipped).map(pathOf),
  ).size;
  const result = describeResult(settings, adapter, fit, score, {
    skipped,
    adapter: folder,
    report: join(out, 'report.html'),
  });
  const shown = await kit.report(score, val, settings.method, settings.task);
  writeFileSync(result.report, reportOf(result, settings, fit, shown));
  writeFileSync(join(out, 'result.json'), `${JSON.stringify(result, null, 2)}\n`);
  return result;
}

/** DenseCLIP trains its image tower, where it trains it, at a tenth of the rate. */
function denseClipRate({ kind }: TaskSpec): (name: string) => number {
  const tower = kind === 'detect' ? 'backbone.backbone.backbone.' : 'backbone.backbone.';
  return (name) => (name.startsWith(tower) ? 0.1 : 1);
}

const pathOf = ({ path }: { readonly path: string }): string => path;

/** The model of the task with the method set in, and what rebuilds it. */
async function makeAdapter(
  settings: RunSettings,
  classNames: readonly string[],
  device: Awaited<ReturnType<typeof prepareCompute>>,
): Promise<{ adapter: Adapter; stored: StoredTask }> {
  const { task, method, seed } = settings;
  const imageSize = await backboneSide(task, settings.imageSize);
  const classes = classNames.length;
  const own = await openBackbone(settings.model, settings.weights, {
    ...{ classes, isTrunk: readsMaps(task), options: settings.modelOptions },
    ...(imageSize === null ? {} : { imageSize }),
  });
  const { name, options: backboneOptions, numFeatures }: Backbone = own;
  const language = await readLanguage(task, classNames, settings, task.kind === 'multi' ? undefined : numFeatures);
  const model = (await modelFor(task, own, classNames, language)).to({ device });
  // What trains the trunk is LV-Adapter's stage of that name: its statistics move, too.
  if (model instanceof LvAdapter && method === 'full') model.stage = 'finetune';
  const hasClasses = task.kind === 'segment' && 'classes' in findMethod(method).options.shape;
  const options = { ...(hasClasses && { classes }), ...settings.options };
  const head = task.kind === 'classify' || task.kind === 'video' ? { classes } : 'train';
  const adapter = asUsage(() => graft(model, method, options, { head, seed }));
  if (settings.from !== null) startFrom(adapter, readAdapterFolder(settings.from));
  return {
    adapter,
    stored: {
      ...{ spec: task, backbone: { name, options: { ...backboneOptions } } },
      ...(language && { language: { tokens: language.tokens, text: language.text } }),
    },
  };
}

async function makeLoaders<
  Source extends { readonly classNames: readonly string[] },
  B extends TaskBatch,
  S extends Score,
>(
  kit: TaskKit<Source, B, S>,
  settings: RunSettings,
  { train, val }: SplitsOf<Source>,
): Promise<{ train: Loader<B>; val: Loader<B> }> {
  const { batchSize, seed, skipBroken, transforms, task: spec } = settings;
  const [trainCount, valCount] = [train, val].map((part) => ('length' in part ? Number(part.length) : 1)) as [
    number,
    number,
  ];
  const share = valCount / (trainCount + valCount);
  const bytes = settings.cacheMegabytes * 2 ** 20;
  const common = { batchSize, seed, skipBroken, spec };
  return {
    train: await kit.loader(train, {
      ...{ ...common, isTraining: true, transforms: transforms.train, cacheBytes: bytes * (1 - share) },
    }),
    val: await kit.loader(val, {
      ...{ ...common, isTraining: false, transforms: transforms.evaluate, cacheBytes: bytes * share },
    }),
  };
}

/** Writes the adapter folder; random weights of the backbone go with it, as nobody else has them. */
async function saveRunAdapter(
  folder: string,
  adapter: Adapter,
  stored: StoredTask,
  settings: RunSettings,
  classNames: readonly string[],
): Promise<void> {
  const { task, transforms, weights, textWeights } = settings;
  const isClassifier = task.kind === 'classify';
  saveAdapter(adapter, folder, {
    classNames,
    preprocessing: transforms.evaluate,
    ...(!isClassifier && { task: stored }),
  });
  mkdirSync(folder, { recursive: true });
  const tower = await textTowerOf(adapter.model);
  if (tower && (textWeights !== null || weights === null)) writeSafetensors(join(folder, TEXT_FILE), tower.stateDict());
  if (weights !== null) return;
  adapter.disable();
  writeSafetensors(join(folder, BACKBONE_FILE), await backboneState(adapter));
  adapter.activate();
}

/** The backbone's weights, without parts of it that count as the head and lie in the adapter. */
async function backboneState({ model }: Adapter): Promise<Map<string, Tensor>> {
  const backbone = await backboneOf(model);
  const path = model.namedModules().find(([, module]) => module === backbone)?.[0] ?? '';
  const isHead = (name: string): boolean => path !== '' && model.isInClassifier(`${path}.${name}`);
  return new Map([...backbone.stateDict()].filter(([name]) => !isHead(name)));
}

function describeResult(
  settings: RunSettings,
  adapter: Adapter,
  fit: FitResult,
  score: Score,
  rest: Pick<RunResult, 'skipped' | 'adapter' | 'report'>,
): RunResult {
  const { trainable, total, percent } = adapter.summary();
  const last = fit.history.at(-1)!;
  const best = fit.best!;
  const { name, value } = headline(score);
  const { loss, samples, metrics } = score;
  return {
    task: settings.task.kind,
    model: settings.model,
    method: settings.method,
    options: adapter.options,
    trainable,
    total,
    percent,
    epochs: settings.epochs,
    keep: settings.keep,
    keptEpoch: settings.keep === 'best' ? best.epoch : last.epoch,
    score: name === 'acc' ? 'accuracy' : name,
    accuracy: value,
    bestAccuracy: best.val === null ? value : headline(best.val).value,
    lastAccuracy: last.val === null ? value : headline(last.val).value,
    ...(metrics && { metrics }),
    loss: Number.isNaN(loss) ? null : loss,
    samples,
    seconds: fit.seconds,
    ...rest,
  };
}

function reportOf(
  result: RunResult,
  settings: RunSettings,
  fit: FitResult,
  shown: Pick<Report, 'confusion' | 'samples' | 'classes'>,
): string {
  const { model, method, trainable, total, accuracy, seconds, samples, score } = result;
  const { transforms, options, task, modelOptions, ...plain } = settings;
  return htmlReport({
    title: `${method} on ${model}`,
    summary: `Trained for ${settings.epochs} epochs on ${settings.data}; scored on ${samples} held-out ${task.kind === 'video' ? 'videos' : 'images'}.`,
    score,
    runs: [{ name: method, trainable, total, accuracy, seconds, history: fit.history }],
    ...shown,
    settings: {
      ...plain,
      task: JSON.stringify(task),
      modelOptions: JSON.stringify(modelOptions),
      ...{ options: JSON.stringify(options), transforms: JSON.stringify(transforms.train) },
    },
  });
}
