/** Segmentation on the command line. */
import type { Image, SampleSource, SegmentationSample, TransformInput } from '../../data/index.js';
import type { SegmentationResult } from '../../metrics/index.js';
import type { MaskBatch, SegmentationEvaluation } from '../../train/index.js';
import { isBuiltIn, openBuiltIn } from '../dataset.js';
import { asUsage, table } from '../output.js';
import { writeMaskOverlay } from '../overlay.js';
import { colorSteps, flipSteps, inputOf, isWholeInput, networkSteps } from '../preprocess.js';
import type { SpecOf } from '../task_spec.js';
import { share } from './classify.js';
import { drawEach, loaderOptions, type TaskKit } from './kit.js';

type Source = SampleSource<SegmentationSample>;

export const segmentKit: TaskKit<Source, MaskBatch, SegmentationEvaluation> = {
  isBuiltIn,
  async open(data, o) {
    const { openMasks, SegmentationShapes } = await import('../../data/index.js');
    const builtIn = openBuiltIn<Source>(data, (part) => new SegmentationShapes(part));
    return builtIn ?? (await asUsage(() => openMasks(data, o)));
  },
  async openWhole(data, classNames, skipBroken) {
    const { openMaskFolder } = await import('../../data/index.js');
    return asUsage(() => openMaskFolder(data, { classNames, skipBroken }));
  },
  transforms(config, flags) {
    const { height, width, interpolation } = inputOf(config, flags);
    const size: [number, number] = [height, width];
    const short = Math.min(height, width);
    const isWhole = isWholeInput(config, flags);
    const fit: TransformInput[] = isWhole
      ? [{ kind: 'resize', size, interpolation }]
      : [{ kind: 'resize', size: short, interpolation }];
    const vary: TransformInput[] = isWhole
      ? fit
      : [
          { kind: 'randomScale', size: [short, 4 * short], interpolation },
          { kind: 'randomMaskCrop', size },
          { kind: 'pad', size },
        ];
    const last = networkSteps(config);
    return {
      train: [...vary, ...flipSteps(flags), ...colorSteps(flags), ...last],
      evaluate: [...fit, ...last],
    };
  },
  async loader(dataset, o) {
    const { SegmentationLoader } = await import('../../data/index.js');
    return new SegmentationLoader({ ...loaderOptions(dataset, o), transform: o.transforms });
  },
  async task(spec, classes) {
    const { segmentTask } = await import('../../train/index.js');
    const { windows } = spec as SpecOf<'segment'>;
    return segmentTask({ classes, ...(windows && { windows }) });
  },
  describe(score, classNames) {
    const { segmentation, loss, samples, metrics = {} } = score;
    const perClass = perClassScores(segmentation, classNames);
    return Promise.resolve({
      data: { ...metrics, mDice: segmentation.mDice, loss, samples, perClass, classNames },
      text: () =>
        [
          `${Object.entries({ ...metrics, mDice: segmentation.mDice })
            .map(([name, value]) => `${name} ${share(value)}`)
            .join('   ')}   loss ${loss.toFixed(4)}`,
          '',
          classTable(perClass),
        ].join('\n'),
    });
  },
  report({ segmentation: { iou, acc } }, { classNames }) {
    const rows = classNames.map((name, c) => [name, share(iou[c] ?? null), share(acc[c] ?? null)]);
    return Promise.resolve({ classes: { head: ['class', 'IoU', 'accuracy'], rows } });
  },
  async predict({ model, classNames, transforms, spec }, targets, o) {
    const { Pipeline } = await import('../../data/index.js');
    const { noGrad, scope } = await import('../../tensor/index.js');
    const { segmentationLogits } = await import('../../train/index.js');
    const { functional } = await import('../../nn/index.js');
    const { windows } = spec as SpecOf<'segment'>;
    const pipeline = new Pipeline(transforms);
    const labelsOf = (image: Image): Uint8Array =>
      scope(() =>
        noGrad(() => {
          const input = pipeline.collate([pipeline.apply(image)], { device: o.device });
          const logits = segmentationLogits(model, input, windows ?? undefined).float();
          const size = [image.height, image.width] as const;
          return functional.interpolate(logits, { size }).argmax(1).to('uint8').data() as Uint8Array;
        }),
      );
    const found = await drawEach(targets, o, async (image, overlay) => {
      return { overlay, classes: await drawClasses(overlay, image, labelsOf(image), classNames) };
    });
    return {
      data: found,
      text: () =>
        table(
          ['image', 'overlay', 'classes'],
          found.map((f) => [f.path, f.overlay, f.classes.map((c) => `${c.class} ${share(c.share)}`).join(', ')]),
        ),
    };
  },
};

interface PixelScore {
  readonly name: string;
  readonly pixels: number;
  readonly iou: number | null;
  readonly accuracy: number | null;
  readonly dice: number | null;
}

/** Scores of each class; null where there is nothing to divide by. */
export function perClassScores(
  { iou, acc, dice, areas }: SegmentationResult,
  classNames: readonly string[],
): PixelScore[] {
  const number = (value: number | undefined): number | null =>
    value === undefined || Number.isNaN(value) ? null : value;
  return classNames.map((name, c) => ({
    name,
    pixels: areas.labeled[c] ?? 0,
    iou: number(iou[c]),
    accuracy: number(acc[c]),
    dice: number(dice[c]),
  }));
}

/** Scores by class, for people. */
export function classTable(perClass: readonly PixelScore[]): string {
  return table(
    ['class', 'pixels', 'IoU', 'accuracy', 'Dice'],
    perClass.map((c) => [c.name, `${c.pixels}`, share(c.iou), share(c.accuracy), share(c.dice)]),
  );
}

/** How much of an image a class covers. */
export interface ClassShare {
  readonly class: string;
  readonly share: number;
}

/** Writes an overlay of the classes of an image's pixels, and says which they are, the largest first. */
export async function drawClasses(
  overlay: string,
  image: Image,
  labels: Uint8Array,
  classNames: readonly string[],
): Promise<ClassShare[]> {
  const counts = new Map<number, number>();
  for (const label of labels) counts.set(label, (counts.get(label) ?? 0) + 1);
  const present = [...counts].sort((a, b) => b[1] - a[1]).map(([label, n]) => ({ label, part: n / labels.length }));
  const nameOf = (label: number): string => classNames[label] ?? String(label);
  const legend = present.map(({ label, part }) => ({ label, text: `${nameOf(label)} ${share(part)}` }));
  await writeMaskOverlay(overlay, image, labels, legend);
  return present.map(({ label, part }) => ({ class: nameOf(label), share: part }));
}
