/** One training run with everything it leaves behind: adapter folder, report, result. */
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { graft, saveAdapter, type Adapter } from '../adapters/index.js';
import { writeSafetensors } from '../checkpoint/index.js';
import { DataLoader, type Dataset } from '../data/index.js';
import type { Backbone } from '../models/index.js';
import { manualSeed } from '../tensor/index.js';
import {
  evaluate,
  htmlReport,
  imageDataUri,
  Trainer,
  type Evaluation,
  type FitResult,
  type ReportSample,
  type TrainListener,
} from '../train/index.js';
import { BACKBONE_FILE, openBackbone, prepareCompute } from './classifier.js';
import { openTrainingData } from './dataset.js';
import { asUsage } from './output.js';
import type { RunSettings } from './settings.js';

/** What `finetune --json` prints, and `result.json` holds. */
export interface RunResult {
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
  /** Validation score of the weights in the adapter folder. */
  readonly accuracy: number;
  readonly loss: number;
  readonly bestAccuracy: number;
  readonly lastAccuracy: number;
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
export async function trainRun(settings: RunSettings, out: string, o: RunOptions): Promise<RunResult | null> {
  const device = await prepareCompute(settings);
  const { train, val, classNames } = await openTrainingData(settings.data, {
    valFraction: settings.valFraction,
    seed: settings.splitSeed,
  });
  manualSeed(settings.seed); // for backbones that start from random weights
  const imageSize = settings.imageSize;
  const model = await openBackbone(settings.model, settings.weights, {
    classes: classNames.length,
    ...(imageSize === null ? {} : { imageSize }),
  });
  model.to({ device });
  const adapter = asUsage(() =>
    graft(
      model,
      settings.method,
      { ...settings.options },
      { head: { classes: classNames.length }, seed: settings.seed },
    ),
  );
  const loaders = makeLoaders(settings, train, val);
  const trainer = new Trainer({
    model,
    adapter,
    ...loaders,
    epochs: settings.epochs,
    optimizer: { kind: settings.optimizer, lr: settings.lr, weightDecay: settings.weightDecay },
    schedule: { kind: settings.schedule, warmupEpochs: settings.warmupEpochs },
    loss: { labelSmoothing: settings.labelSmoothing },
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
  const evaluation = await evaluate(model, loaders.val, { autocast: settings.amp ? 'bfloat16' : null });

  const folder = join(out, 'adapter');
  saveRunAdapter(folder, model, adapter, settings, classNames);
  const skipped = new Set([...loaders.train.skipped, ...loaders.val.skipped].map((s) => s.path)).size;
  const result = describeResult(settings, adapter, fit, evaluation, {
    skipped,
    adapter: folder,
    report: join(out, 'report.html'),
  });
  writeFileSync(result.report, await reportOf(result, settings, fit, evaluation, val, classNames));
  writeFileSync(join(out, 'result.json'), `${JSON.stringify(result, null, 2)}\n`);
  return result;
}

function makeLoaders(settings: RunSettings, train: Dataset, val: Dataset): { train: DataLoader; val: DataLoader } {
  const { batchSize, seed, skipBroken, transforms } = settings;
  const share = val.length / (train.length + val.length);
  const bytes = settings.cacheMegabytes * 2 ** 20;
  const common = { batchSize, seed, skipBroken };
  return {
    train: new DataLoader({
      ...common,
      dataset: train,
      shuffle: true,
      transform: transforms.train,
      cacheBytes: bytes * (1 - share),
    }),
    val: new DataLoader({ ...common, dataset: val, transform: transforms.evaluate, cacheBytes: bytes * share }),
  };
}

/** Writes the adapter folder; random weights of the backbone go with it, as nobody else has them. */
function saveRunAdapter(
  folder: string,
  model: Backbone,
  adapter: Adapter,
  settings: RunSettings,
  classNames: readonly string[],
): void {
  saveAdapter(adapter, folder, { classNames, preprocessing: settings.transforms.evaluate });
  if (settings.weights !== null) return;
  mkdirSync(folder, { recursive: true });
  adapter.disable();
  writeSafetensors(join(folder, BACKBONE_FILE), model.stateDict());
  adapter.activate();
}

function describeResult(
  settings: RunSettings,
  adapter: Adapter,
  fit: FitResult,
  evaluation: Evaluation,
  rest: Pick<RunResult, 'skipped' | 'adapter' | 'report'>,
): RunResult {
  const { trainable, total, percent } = adapter.summary();
  const last = fit.history.at(-1)!;
  const best = fit.best!;
  const { accuracy, loss, samples } = evaluation;
  return {
    model: settings.model,
    method: settings.method,
    options: adapter.options,
    trainable,
    total,
    percent,
    epochs: settings.epochs,
    keep: settings.keep,
    keptEpoch: settings.keep === 'best' ? best.epoch : last.epoch,
    accuracy,
    loss,
    bestAccuracy: best.val?.accuracy ?? accuracy,
    lastAccuracy: last.val?.accuracy ?? accuracy,
    samples,
    seconds: fit.seconds,
    ...rest,
  };
}

async function reportOf(
  result: RunResult,
  settings: RunSettings,
  fit: FitResult,
  evaluation: Evaluation,
  val: Dataset,
  classNames: readonly string[],
): Promise<string> {
  const { model, method, trainable, total, accuracy, seconds } = result;
  const { transforms, options, ...plain } = settings;
  return htmlReport({
    title: `${method} on ${model}`,
    summary: `Trained for ${settings.epochs} epochs on ${settings.data}; scored on ${evaluation.samples} held-out images.`,
    runs: [{ name: method, trainable, total, accuracy, seconds, history: fit.history }],
    confusion: { of: method, classNames, matrix: evaluation.confusion },
    samples: await samplePredictions(evaluation, val, classNames),
    settings: { ...plain, options: JSON.stringify(options), transforms: JSON.stringify(transforms.train) },
  });
}

/** Up to 24 images for a report: the most confident mistakes first, then right ones spread over the data. */
export async function samplePredictions(
  evaluation: Evaluation,
  dataset: Dataset,
  classNames: readonly string[],
): Promise<ReportSample[]> {
  const wanted = 24;
  const wrong = evaluation.predictions
    .filter((p) => p.label !== p.predicted)
    .sort((a, b) => b.confidence - a.confidence)
    .slice(0, wanted / 2);
  const right = evaluation.predictions.filter((p) => p.label === p.predicted);
  const spread = Math.min(right.length, wanted - wrong.length);
  const chosen = [
    ...wrong,
    ...Array.from({ length: spread }, (_, i) => right[Math.floor((i * right.length) / spread)]!),
  ];
  return Promise.all(
    chosen.map(async (p) => {
      const { data, width, height } = await dataset.load(p.index);
      if (!(data instanceof Uint8Array)) throw new TypeError('a report shows images of bytes only');
      const image = await imageDataUri({ data, width, height });
      return { image, label: classNames[p.label]!, predicted: classNames[p.predicted]!, confidence: p.confidence };
    }),
  );
}
