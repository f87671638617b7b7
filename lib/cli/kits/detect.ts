/** Detection on the command line. */
import { existsSync, statSync } from 'node:fs';
import { dirname, join } from 'node:path';
import type { DetectionSample, Image, SampleSource } from '../../data/index.js';
import type { Detection } from '../../heads/index.js';
import type { CocoResult } from '../../metrics/index.js';
import type { BoxBatch, DetectionEvaluation } from '../../train/index.js';
import { isBuiltIn, openBuiltIn } from '../dataset.js';
import { asUsage, table, UsageError } from '../output.js';
import { writeBoxOverlay } from '../overlay.js';
import { colorSteps, flipSteps } from '../preprocess.js';
import { stockHead, type SpecOf } from '../task_spec.js';
import { share } from './classify.js';
import { drawEach, loaderOptions, type TaskKit } from './kit.js';

type Source = SampleSource<DetectionSample>;

/** An object for people. */
export interface Found {
  readonly class: string;
  readonly score: number;
  /** (x1, y1, x2, y2) in pixels of the image. */
  readonly box: [number, number, number, number];
}

export const detectKit: TaskKit<Source, BoxBatch, DetectionEvaluation> = {
  isBuiltIn,
  async open(data, o) {
    const { DetectionShapes, openCoco } = await import('../../data/index.js');
    return openBuiltIn<Source>(data, (part) => new DetectionShapes(part)) ?? asUsage(() => openCoco(data, o));
  },
  async openWhole(data, classNames, skipBroken) {
    const { CocoDataset } = await import('../../data/index.js');
    if (!existsSync(data) || !statSync(data).isFile())
      throw new UsageError(
        `--data: expected a JSON file of COCO's form, got ${data}; with --split, the folder given to finetune`,
      );
    const beside = join(dirname(data), 'images');
    const images = existsSync(beside) ? beside : dirname(data);
    return asUsage(() => new CocoDataset({ annotations: data, images, classNames, skipBroken }));
  },
  // Detectors resize and normalize by themselves.
  transforms: (_config, flags) => ({ train: [...flipSteps(flags), ...colorSteps(flags)], evaluate: [] }),
  async loader(dataset, o) {
    const { DetectionLoader } = await import('../../data/index.js');
    const { firstLabel } = await import('../../heads/index.js');
    const { head } = o.spec as SpecOf<'detect'>;
    return new DetectionLoader({
      ...loaderOptions(dataset, o),
      transform: o.transforms,
      firstLabel: firstLabel(stockHead(head)),
    });
  },
  async task() {
    const { detectTask } = await import('../../train/index.js');
    return detectTask();
  },
  async describe({ coco, samples }, classNames, spec) {
    const perClass = await precisions(coco, classNames, spec as SpecOf<'detect'>);
    const known = (value: number): number | null => (value < 0 ? null : value);
    const { AP, AP50, AP75, APs, APm, APl, AR } = coco;
    const figures = {
      AP,
      AP50,
      AP75,
      APs,
      APm,
      APl,
      ...Object.fromEntries(Object.entries(AR).map(([n, r]) => [`AR${n}`, r])),
    };
    return {
      data: {
        ...Object.fromEntries(Object.entries(figures).map(([name, value]) => [name, known(value)])),
        ...{ samples, perClass, classNames },
      },
      text: () =>
        [
          Object.entries(figures)
            .filter(([, value]) => value >= 0)
            .map(([name, value]) => `${name} ${share(value)}`)
            .join('   '),
          '',
          precisionTable(perClass),
        ].join('\n'),
    };
  },
  async report({ coco }, { classNames }, _of, spec) {
    const perClass = await precisions(coco, classNames, spec as SpecOf<'detect'>);
    return { classes: { head: ['class', 'AP'], rows: perClass.map((c) => [c.name, share(c.AP)]) } };
  },
  async predict({ model, classNames, spec }, targets, o) {
    const { Pipeline } = await import('../../data/index.js');
    const { Detector, firstLabel } = await import('../../heads/index.js');
    const { noGrad, scope } = await import('../../tensor/index.js');
    if (!(model instanceof Detector)) throw new TypeError('the model is no detector');
    const first = firstLabel(stockHead((spec as SpecOf<'detect'>).head));
    const pipeline = new Pipeline([{ kind: 'toFloat' }]);
    const detect = (image: Image): Labeled[] =>
      scope(() =>
        noGrad(() => {
          const [found] = model.detect(pipeline.collate([image], { device: o.device }));
          return describeObjects(found!, first, o.minScore);
        }),
      );
    const answers = await drawEach(targets, o, async (image, overlay) => {
      return { overlay, objects: await drawObjects(overlay, image, detect(image), classNames) };
    });
    return {
      data: answers,
      text: () =>
        table(
          ['image', 'overlay', 'objects'],
          answers.map((a) => [a.path, a.overlay, a.objects.map((b) => `${b.class} ${share(b.score)}`).join(', ')]),
        ),
    };
  },
};

/** An object by the number of its class, from 0 on. */
interface Labeled {
  readonly label: number;
  readonly score: number;
  readonly box: Found['box'];
}

/** What was found with at least this score. */
export function describeObjects({ boxes, labels, scores }: Detection, first: number, minScore: number): Labeled[] {
  const [sides, numbers] = [boxes.tolist() as Found['box'][], labels.tolist() as number[]];
  return (scores.tolist() as number[])
    .map((score, k) => ({ score, label: numbers[k]! - first, box: sides[k]! }))
    .filter(({ score }) => score >= minScore);
}

/** Writes an overlay of the boxes in an image, and says what they are. */
export async function drawObjects(
  overlay: string,
  image: Image,
  objects: readonly Labeled[],
  classNames: readonly string[],
): Promise<Found[]> {
  const named = objects.map(({ label, score, box }) => ({
    label,
    found: { class: classNames[label] ?? String(label), score, box },
  }));
  const boxes = named.map(({ label, found: { class: name, score, box } }) => ({
    ...{ box, label, text: `${name} ${Math.round(100 * score)}%` },
  }));
  await writeBoxOverlay(overlay, image, boxes);
  return named.map(({ found }) => found);
}

interface ClassPrecision {
  readonly name: string;
  readonly AP: number | null;
}

/** Average precision by class, for people. */
export function precisionTable(perClass: readonly ClassPrecision[]): string {
  return table(
    ['class', 'AP'],
    perClass.map((c) => [c.name, share(c.AP)]),
  );
}

/** Average precision by class; null for a class of which nothing is annotated. */
export function averagePrecisions(
  { categoryIds, apPerCategory }: CocoResult,
  classNames: readonly string[],
  first: number,
): ClassPrecision[] {
  return classNames.map((name, c) => {
    const at = categoryIds.indexOf(c + first);
    const AP = at < 0 ? -1 : apPerCategory[at]!;
    return { name, AP: AP < 0 ? null : AP };
  });
}

async function precisions(
  coco: CocoResult,
  classNames: readonly string[],
  { head }: SpecOf<'detect'>,
): Promise<ClassPrecision[]> {
  const { firstLabel } = await import('../../heads/index.js');
  return averagePrecisions(coco, classNames, firstLabel(stockHead(head)));
}
