/** Classification of images on the command line. */
import type { Dataset } from '../../data/index.js';
import type { Batch, Evaluation, ReportSample } from '../../train/index.js';
import { isShapes, openImages, openTrainingData } from '../dataset.js';
import { count, table } from '../output.js';
import { buildTransforms } from '../preprocess.js';
import type { Trained } from '../trained.js';
import { chunks, imagesOf, loadAll, loaderOptions, type Answer, type PredictOptions, type TaskKit } from './kit.js';

export const classifyKit: TaskKit<Dataset, Batch, Evaluation> = {
  isBuiltIn: isShapes,
  open: (data, { skipBroken: _, ...o }) => openTrainingData(data, o),
  openWhole: openImages,
  transforms: buildTransforms,
  async loader(dataset, o) {
    const { DataLoader } = await import('../../data/index.js');
    return new DataLoader({ ...loaderOptions(dataset, o), transform: o.transforms });
  },
  async task(_spec, _classes, loss) {
    const { classifyTask } = await import('../../train/index.js');
    return classifyTask(loss);
  },
  async describe(score, classNames) {
    const perClass = await classScores(score.confusion, classNames);
    const { accuracy, loss, samples, correct, confusion } = score;
    return {
      data: { accuracy, loss, samples, correct, perClass, classNames, confusion },
      text: () =>
        [
          `accuracy ${(100 * accuracy).toFixed(2)} % (${count(correct)} of ${count(samples)})   loss ${loss.toFixed(4)}`,
          ...confusionTables(confusion, perClass, 'images', classNames),
        ].join('\n'),
    };
  },
  async report(score, val, of) {
    const { classNames } = val;
    return {
      confusion: { of, classNames, matrix: score.confusion },
      samples: await samplePredictions(score, val, classNames),
    };
  },
  async predict(trained, targets, o) {
    const paths = await imagesOf(targets);
    const predictions: Prediction[] = [];
    for (const chunk of chunks(paths, o.batchSize)) predictions.push(...(await classifyImages(trained, chunk, o)));
    return predictionTable('image', predictions);
  },
};

/** One image or video and its likeliest classes. */
export interface Prediction {
  readonly path: string;
  readonly top: readonly { readonly class: string; readonly probability: number }[];
}

/** Likeliest classes, a row for each input. */
export function predictionTable(what: string, predictions: readonly Prediction[]): Answer {
  return {
    data: predictions,
    text: () =>
      table(
        [what, ...Array.from({ length: predictions[0]?.top.length ?? 0 }, (_, i) => `${i + 1}.`)],
        predictions.map((p) => [p.path, ...p.top.map((t) => `${t.class} ${(100 * t.probability).toFixed(1)} %`)]),
      ),
  };
}

/** From probabilities [N, K], row by row, to the `k` likeliest classes. */
export function likeliest(
  paths: readonly string[],
  { values, indices }: { values: number[][]; indices: number[][] },
  classNames: readonly string[],
): Prediction[] {
  return paths.map((path, i) => ({
    path,
    top: indices[i]!.map((c, j) => ({ class: classNames[c] ?? String(c), probability: values[i]![j]! })),
  }));
}

async function classifyImages(
  { model, classNames, transforms }: Trained,
  paths: readonly string[],
  { topK, skipBroken, device }: PredictOptions,
): Promise<Prediction[]> {
  const { decodeImage, Pipeline } = await import('../../data/index.js');
  const { noGrad, scope } = await import('../../tensor/index.js');
  const pipeline = new Pipeline(transforms);
  const good = await loadAll(paths, skipBroken, async (path) => pipeline.apply(await decodeImage(path)));
  if (good.length === 0) return [];
  const found = scope(() =>
    noGrad(() => {
      const input = pipeline.collate(
        good.map(({ value }) => value),
        { device },
      );
      const [values, indices] = model.run(input).float().softmax(1).topk(Math.min(topK, classNames.length), 1);
      return { values: values.tolist() as number[][], indices: indices.tolist() as number[][] };
    }),
  );
  return likeliest(
    good.map(({ path }) => path),
    found,
    classNames,
  );
}

interface ClassScore {
  readonly name: string;
  readonly samples: number;
  readonly recall: number | null;
  readonly precision: number | null;
}

type Confusion = readonly (readonly number[])[];

/** Recall and precision of each class; null where there is nothing to divide by. */
export async function classScores(confusion: Confusion, classNames: readonly string[]): Promise<ClassScore[]> {
  const { perClassAccuracy } = await import('../../metrics/index.js');
  const recall = perClassAccuracy(confusion);
  const precision = perClassAccuracy(confusion.map((_, p) => confusion.map((row) => row[p]!)));
  return classNames.map((name, c) => {
    const samples = confusion[c]!.reduce((a, b) => a + b, 0);
    return { name, samples, recall: recall[c] ?? null, precision: precision[c] ?? null };
  });
}

/** Confusion matrices wider than this are only in the JSON. */
const WIDEST = 20;

/** 0.123 as `12.3 %`; nothing for null or NaN. */
export const share = (value: number | null): string =>
  value === null || Number.isNaN(value) ? '' : `${(100 * value).toFixed(1)} %`;

/** Scores by class, and the confusion matrix unless it is too wide. */
export function confusionTables(
  confusion: Confusion,
  perClass: readonly ClassScore[],
  what: string,
  classNames: readonly string[],
): string[] {
  const lines = [
    '',
    table(
      ['class', what, 'recall', 'precision'],
      perClass.map((c) => [c.name, `${c.samples}`, share(c.recall), share(c.precision)]),
    ),
  ];
  if (classNames.length <= WIDEST) {
    const rows = confusion.map((row, t) => [classNames[t]!, ...row.map((n) => (n === 0 ? '' : `${n}`))]);
    lines.push('', 'Confusion matrix (rows: true class, columns: predicted):', '', table(['', ...classNames], rows));
  }
  return lines;
}

/** Up to 24 images for a report: the most confident mistakes first, then right ones spread over the data. */
export async function samplePredictions(
  evaluation: Evaluation,
  dataset: Dataset,
  classNames: readonly string[],
): Promise<ReportSample[]> {
  const { imageDataUri } = await import('../../train/index.js');
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
