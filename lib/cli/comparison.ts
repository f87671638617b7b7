/** The experiment of `quickstart`: one pretrained backbone, one new task, several methods. */
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type Adapter, graft, saveAdapter } from '../adapters/index.js';
import { writeSafetensors } from '../checkpoint/index.js';
import { DataLoader, Shapes, transforms, type Dataset, type ShapesTask, type TransformInput } from '../data/index.js';
import { createModel, loadWeights, type Backbone } from '../models/index.js';
import { manualSeed } from '../tensor/index.js';
import { evaluate, htmlReport, Trainer, type Evaluation, type FitResult, type TrainListener } from '../train/index.js';
import { UsageError } from './output.js';
import { samplePredictions } from './kits/classify.js';
import { IMAGE_SIDE, SUBJECTS, type MethodChoice, type Subject } from './subjects.js';

const BATCH = 32;
const MOST_HELD_OUT = 400;
const heldOut = ({ adaptation }: Subject): number => Math.min(adaptation.images, MOST_HELD_OUT);
/** Seeds of the data keep the parts apart. */
const SEEDS = { train: 0, val: 1 } as const;

const build = ({ model, options }: Subject, classes: number): Backbone =>
  createModel(model, { ...options, numClasses: classes });

export interface ComparisonOptions {
  readonly out: string;
  readonly backbone: keyof typeof SUBJECTS;
  /** Only these methods. Default: those of the backbone that need not be asked for. */
  readonly methods?: readonly string[];
  /** Images to pretrain on, images of the new task, and epochs on them. Default: what suits the backbone. */
  readonly images?: number;
  readonly targetImages?: number;
  readonly epochs?: number;
  readonly seed: number;
  readonly signal: AbortSignal;
  readonly listener: (label: string) => TrainListener;
  readonly note: (text: string) => void;
}

export interface ComparisonRow {
  readonly method: string;
  readonly trainable: number;
  readonly percent: number;
  readonly accuracy: number;
  readonly seconds: number;
}

export interface Comparison {
  readonly rows: readonly ComparisonRow[];
  readonly pretrained: { readonly task: string; readonly accuracy: number; readonly seconds: number };
  readonly backbone: string;
  readonly adapter: string;
  readonly report: string;
  /** What `--data` of evaluate takes to score the adapter. */
  readonly data: string;
}

interface Outcome {
  readonly row: ComparisonRow;
  readonly total: number;
  readonly fit: FitResult;
  readonly evaluation: Evaluation;
}

/** Runs it; null if it was interrupted. */
export async function compareMethods(o: ComparisonOptions): Promise<Comparison | null> {
  const subject = subjectOf(o);
  const { pretraining, adaptation } = subject;
  const methods = chosen(subject, o);
  mkdirSync(o.out, { recursive: true });
  const backbone = join(o.out, 'backbone.safetensors');
  o.note(`Pretraining ${subject.model} on ${pretraining.images} images: which ${pretraining.task}?`);
  const pretrained = await pretrain(subject, backbone, o);
  if (pretrained === null) return null;

  o.note(`Adapting it to ${adaptation.images} images of another task: which ${adaptation.task}?`);
  const data = {
    train: shapes(adaptation.task, adaptation.images, 'train'),
    val: shapes(adaptation.task, heldOut(subject), 'val'),
  };
  const adapter = join(o.out, 'adapter');
  const outcomes: Outcome[] = [];
  for (const choice of methods) {
    const outcome = await adapt(subject, choice, backbone, data, adapter, o);
    if (outcome === null) return null;
    outcomes.push(outcome);
  }
  const report = join(o.out, 'report.html');
  writeFileSync(report, await reportOf(subject, outcomes, pretrained, data.val, o));
  return {
    rows: outcomes.map(({ row }) => row),
    pretrained,
    backbone,
    adapter,
    report,
    data: `shapes:${adaptation.task}`,
  };
}

/** The backbone asked for, trained as much as asked for. */
function subjectOf({ backbone, images, targetImages, epochs }: ComparisonOptions): Subject {
  const { pretraining, adaptation, ...rest }: Subject = SUBJECTS[backbone];
  return {
    ...rest,
    pretraining: { ...pretraining, images: images ?? pretraining.images },
    adaptation: { ...adaptation, images: targetImages ?? adaptation.images, epochs: epochs ?? adaptation.epochs },
  };
}

/** The methods asked for, in the order of the subject. */
function chosen(
  { methods, onRequest = [], model }: Subject,
  { methods: wanted }: ComparisonOptions,
): readonly MethodChoice[] {
  if (!wanted) return methods;
  const all = [...methods, ...onRequest];
  const known = all.map(({ method }) => method);
  const strange = wanted.find((id) => !known.includes(id));
  if (strange !== undefined)
    throw new UsageError(`${model} is compared with ${known.join(', ')}; '${strange}' is none of them`);
  return all.filter(({ method }) => wanted.includes(method));
}

const shapes = (task: ShapesTask, images: number, part: keyof typeof SEEDS): Dataset =>
  new Shapes({ task, count: images, size: IMAGE_SIDE, seed: SEEDS[part] });

/** The same preparation for both tasks; crops move the image by up to two pixels. */
function steps(model: Backbone, isTraining: boolean): TransformInput[] {
  const { mean, std } = model.config;
  const crop = isTraining ? [transforms.randomCrop(IMAGE_SIDE, { padding: 2 })] : [];
  return [transforms.resize([IMAGE_SIDE, IMAGE_SIDE]), ...crop, transforms.toFloat(), transforms.normalize(mean, std)];
}

function loaders(
  model: Backbone,
  data: { train: Dataset; val: Dataset },
  seed: number,
): { train: DataLoader; val: DataLoader } {
  return {
    train: new DataLoader({
      dataset: data.train,
      batchSize: BATCH,
      shuffle: true,
      seed,
      transform: steps(model, true),
    }),
    val: new DataLoader({ dataset: data.val, batchSize: BATCH, transform: steps(model, false) }),
  };
}

async function pretrain(
  subject: Subject,
  path: string,
  o: ComparisonOptions,
): Promise<Comparison['pretrained'] | null> {
  const { task, images, epochs, lr } = subject.pretraining;
  manualSeed(o.seed);
  const data = {
    train: shapes(task, images, 'train'),
    val: shapes(task, heldOut(subject), 'val'),
  };
  const model = build(subject, data.train.classNames.length);
  const fit = await new Trainer({
    model,
    ...loaders(model, data, o.seed),
    epochs,
    optimizer: { kind: 'adamw', lr },
    schedule: { kind: 'cosine', warmupEpochs: 0.5 },
    bnStats: 'update',
    seed: o.seed,
    signal: o.signal,
    onEvent: o.listener('pretraining'),
  }).fit();
  if (fit.interrupted) return null;
  writeSafetensors(path, model.stateDict());
  return { task, accuracy: fit.history.at(-1)!.val!.accuracy, seconds: fit.seconds };
}

async function adapt(
  subject: Subject,
  { method, options = {}, lr }: MethodChoice,
  backbone: string,
  data: { train: Dataset; val: Dataset },
  folder: string,
  o: ComparisonOptions,
): Promise<Outcome | null> {
  const { epochs, headLr = lr } = subject.adaptation;
  const { classNames } = data.train;
  const model = build(subject, classNames.length);
  loadWeights(model, backbone, { classifier: 'drop' });
  const adapter = graft(model, method, options, { head: { classes: classNames.length }, seed: o.seed });
  const { train, val } = loaders(model, data, o.seed);
  const fit = await new Trainer({
    model,
    adapter,
    train,
    val,
    epochs,
    optimizer: { kind: 'adamw', lr, rateFactor: headFactor(adapter, headLr / lr) },
    schedule: { kind: 'cosine', warmupEpochs: 1 },
    bnStats: adapter.bnStats,
    backboneMode: adapter.backboneMode,
    seed: o.seed,
    signal: o.signal,
    onEvent: o.listener(method.padEnd(12)),
  }).fit();
  if (fit.interrupted) return null;
  const evaluation = await evaluate(model, val);
  if (method === subject.shown) saveAdapter(adapter, folder, { classNames, preprocessing: steps(model, false) });
  const { trainable, total, percent } = adapter.summary();
  return {
    row: { method, trainable, percent, accuracy: evaluation.accuracy, seconds: fit.seconds },
    total,
    fit,
    evaluation,
  };
}

/** `factor` for the parameters of the new head, 1 for all others. */
function headFactor(adapter: Adapter, factor: number): (name: string) => number {
  const ofHead = new Set(adapter.headModule?.parameters());
  const named = adapter.namedParameters().filter(([, parameter]) => ofHead.has(parameter));
  const names = new Set(named.map(([name]) => name));
  return (name) => (names.has(name) ? factor : 1);
}

async function reportOf(
  subject: Subject,
  outcomes: readonly Outcome[],
  pretrained: Comparison['pretrained'],
  val: Dataset,
  o: ComparisonOptions,
): Promise<string> {
  const { model, pretraining, adaptation } = subject;
  const shown = outcomes.find(({ row }) => row.method === subject.shown) ?? outcomes.at(-1)!;
  return htmlReport({
    title: `${model}: from ${pretraining.task} to ${adaptation.task}`,
    summary:
      `A ${model} was pretrained to tell the ${pretraining.task} on ${pretraining.images} procedural images ` +
      `(${(100 * pretrained.accuracy).toFixed(1)} % right on new ones, ${pretrained.seconds.toFixed(0)} s), ` +
      `then adapted to tell the ${adaptation.task} from ${adaptation.images} images with each method. ` +
      `Accuracy is on ${heldOut(subject)} images that were never trained on.`,
    runs: outcomes.map(({ row, total, fit }) => ({ name: row.method, total, history: fit.history, ...row })),
    confusion: { of: shown.row.method, classNames: val.classNames, matrix: shown.evaluation.confusion },
    samples: await samplePredictions(shown.evaluation, val, val.classNames),
    settings: {
      seed: o.seed,
      batch: BATCH,
      'pretraining epochs': pretraining.epochs,
      'adaptation epochs': adaptation.epochs,
    },
  });
}
