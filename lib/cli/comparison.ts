/** The experiment of `quickstart`: one pretrained backbone, one new task, several methods. */
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type Adapter, graft, saveAdapter } from '../adapters/index.js';
import { writeSafetensors } from '../checkpoint/index.js';
import { DataLoader, Shapes, transforms, type Dataset, type ShapesTask, type TransformInput } from '../data/index.js';
import { createModel, loadWeights, type Backbone, type ModelOptions } from '../models/index.js';
import { manualSeed } from '../tensor/index.js';
import { evaluate, htmlReport, Trainer, type Evaluation, type FitResult, type TrainListener } from '../train/index.js';
import { UsageError } from './output.js';
import { samplePredictions } from './kits/classify.js';

const SIDE = 32;
const BATCH = 32;
const MOST_HELD_OUT = 400;
const heldOut = (o: ComparisonOptions): number => Math.min(o.targetImages, MOST_HELD_OUT);
/** Seeds of the data keep the parts apart. */
const SEEDS = { train: 0, val: 1 } as const;

interface MethodChoice {
  readonly method: string;
  readonly options?: Readonly<Record<string, unknown>>;
  readonly lr: number;
}

/** A backbone that is small enough to be pretrained here, and the methods that are compared on it. */
interface Subject {
  readonly model: string;
  readonly options: ModelOptions;
  /** What it is pretrained to tell, and what it is adapted to tell. */
  readonly source: ShapesTask;
  readonly target: ShapesTask;
  /** Pretraining: images unless the user says how many, epochs, learning rate. */
  readonly images: number;
  readonly epochs: number;
  readonly lr: number;
  /** Learning rate of the new head, whatever the method's; absent: the same. */
  readonly headLr?: number;
  readonly methods: readonly MethodChoice[];
  /** Methods that are compared only where they are asked for. */
  readonly onRequest?: readonly MethodChoice[];
  /** The method whose adapter folder is written. */
  readonly shown: string;
}

const SUBJECTS = {
  resnet: {
    model: 'cifar_resnet20',
    options: {},
    source: 'shape',
    target: 'color',
    images: 5000,
    epochs: 5,
    lr: 3e-3,
    methods: [
      { method: 'linear_probe', lr: 0.1 },
      { method: 'bitfit', lr: 0.03 },
      { method: 'ssf', lr: 0.03 },
      { method: 'lora', options: { rank: 4 }, lr: 0.01 },
      { method: 'conv_adapter', options: { reduction: 4 }, lr: 0.01 },
      { method: 'full', lr: 0.002 },
    ],
    shown: 'conv_adapter',
  },
  vit: {
    model: 'vit_tiny_patch16_224',
    options: { imgSize: SIDE, patchSize: 4, depth: 6 },
    // Textures are slow to learn and colors quick, so that a little pretraining leaves something to adapt.
    source: 'texture',
    target: 'color',
    images: 3000,
    epochs: 6,
    lr: 5e-4,
    headLr: 0.03,
    methods: [
      { method: 'linear_probe', lr: 0.03 },
      { method: 'bitfit', lr: 0.01 },
      { method: 'ssf', lr: 0.01 },
      { method: 'lora', options: { rank: 8 }, lr: 0.005 },
      { method: 'fact', options: { rank: 16, scale: 10 }, lr: 0.005 },
      { method: 'krona', lr: 0.01 },
      { method: 'kadaptation', options: { phmDim: 8 }, lr: 0.01 },
      { method: 'vpt', options: { tokens: 10, deep: true }, lr: 0.01 },
      { method: 'adaptformer', options: { hidden: 16, scale: 1 }, lr: 0.005 },
      { method: 'convpass', options: { hidden: 8, scale: 1 }, lr: 0.005 },
      { method: 'pro_tuning', options: { stages: 3 }, lr: 0.003 },
      { method: 'full', lr: 5e-4 },
    ],
    onRequest: [
      { method: 'adapter', options: { width: 16 }, lr: 0.005 },
      { method: 'prefix', options: { length: 10 }, lr: 0.01 },
      { method: 'mam', options: { width: 64, length: 10 }, lr: 0.005 },
      { method: 'krona_b', lr: 0.01 },
      { method: 'krona_b_res', lr: 0.01 },
      { method: 'lokr', lr: 0.005 },
      { method: 'compacter', options: { phmDim: 2 }, lr: 0.01 },
      { method: 'noah', lr: 0.005 },
    ],
    shown: 'lora',
  },
} as const satisfies Record<string, Subject>;

/** The backbones to choose from. */
export const subjects = Object.keys(SUBJECTS) as (keyof typeof SUBJECTS)[];

const build = ({ model, options }: Subject, classes: number): Backbone =>
  createModel(model, { ...options, numClasses: classes });

export interface ComparisonOptions {
  readonly out: string;
  readonly backbone: keyof typeof SUBJECTS;
  /** Only these methods. Default: those of the backbone that need not be asked for. */
  readonly methods?: readonly string[];
  /** Images to pretrain on. Default: what suits the backbone. */
  readonly images?: number;
  /** Images of the new task, and epochs on them. */
  readonly targetImages: number;
  readonly epochs: number;
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
  const known: Subject = SUBJECTS[o.backbone];
  const subject = { ...known, images: o.images ?? known.images };
  const methods = chosen(subject, o);
  mkdirSync(o.out, { recursive: true });
  const backbone = join(o.out, 'backbone.safetensors');
  o.note(`Pretraining ${subject.model} on ${subject.images} images: which ${subject.source}?`);
  const pretrained = await pretrain(subject, backbone, o);
  if (pretrained === null) return null;

  o.note(`Adapting it to ${o.targetImages} images of another task: which ${subject.target}?`);
  const data = {
    train: shapes(subject.target, o.targetImages, 'train'),
    val: shapes(subject.target, heldOut(o), 'val'),
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
    data: `shapes:${subject.target}`,
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
  new Shapes({ task, count: images, size: SIDE, seed: SEEDS[part] });

/** The same preparation for both tasks; crops move the image by up to two pixels. */
function steps(model: Backbone, isTraining: boolean): TransformInput[] {
  const { mean, std } = model.config;
  const crop = isTraining ? [transforms.randomCrop(SIDE, { padding: 2 })] : [];
  return [transforms.resize([SIDE, SIDE]), ...crop, transforms.toFloat(), transforms.normalize(mean, std)];
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
  manualSeed(o.seed);
  const data = {
    train: shapes(subject.source, subject.images, 'train'),
    val: shapes(subject.source, heldOut(o), 'val'),
  };
  const model = build(subject, data.train.classNames.length);
  const fit = await new Trainer({
    model,
    ...loaders(model, data, o.seed),
    epochs: subject.epochs,
    optimizer: { kind: 'adamw', lr: subject.lr },
    schedule: { kind: 'cosine', warmupEpochs: 0.5 },
    bnStats: 'update',
    seed: o.seed,
    signal: o.signal,
    onEvent: o.listener('pretraining'),
  }).fit();
  if (fit.interrupted) return null;
  writeSafetensors(path, model.stateDict());
  return { task: subject.source, accuracy: fit.history.at(-1)!.val!.accuracy, seconds: fit.seconds };
}

async function adapt(
  subject: Subject,
  { method, options = {}, lr }: MethodChoice,
  backbone: string,
  data: { train: Dataset; val: Dataset },
  folder: string,
  o: ComparisonOptions,
): Promise<Outcome | null> {
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
    epochs: o.epochs,
    optimizer: { kind: 'adamw', lr, rateFactor: headFactor(adapter, (subject.headLr ?? lr) / lr) },
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
  const shown = outcomes.find(({ row }) => row.method === subject.shown) ?? outcomes.at(-1)!;
  return htmlReport({
    title: `${subject.model}: from ${subject.source} to ${subject.target}`,
    summary:
      `A ${subject.model} was pretrained to tell the ${subject.source} on ${subject.images} procedural images (${(100 * pretrained.accuracy).toFixed(1)} % right ` +
      `on new ones, ${pretrained.seconds.toFixed(0)} s), then adapted to tell the ${subject.target} from ${o.targetImages} images with each method. ` +
      `Accuracy is on ${heldOut(o)} images that were never trained on.`,
    runs: outcomes.map(({ row, total, fit }) => ({ name: row.method, total, history: fit.history, ...row })),
    confusion: { of: shown.row.method, classNames: val.classNames, matrix: shown.evaluation.confusion },
    samples: await samplePredictions(shown.evaluation, val, val.classNames),
    settings: { seed: o.seed, batch: BATCH, 'pretraining epochs': subject.epochs, 'adaptation epochs': o.epochs },
  });
}
