/** Several tasks at once on the command line: masks of several kinds, and boxes. */
import type { Image, MultiTaskSample, SampleSource } from '../../data/index.js';
import type { MultiTaskEvaluation, SceneBatch } from '../../train/index.js';
import { isBuiltIn, openBuiltIn } from '../dataset.js';
import { asUsage, table } from '../output.js';
import { colorSteps, flipSteps } from '../preprocess.js';
import type { SpecOf } from '../task_spec.js';
import { share } from './classify.js';
import { averagePrecisions, describeObjects, drawObjects, precisionTable } from './detect.js';
import { drawEach, loaderOptions, type TaskKit } from './kit.js';
import { classTable, drawClasses, perClassScores, type ClassShare } from './segment.js';

type Source = SampleSource<MultiTaskSample>;

/** The number of the first class of boxes. */
async function firstOf({ options }: SpecOf<'multi'>): Promise<number> {
  const { firstLabel } = await import('../../heads/index.js');
  return firstLabel(options['detector'] === 'faster_rcnn' ? 'faster_rcnn' : 'retinanet');
}

export const multiKit: TaskKit<Source, SceneBatch, MultiTaskEvaluation> = {
  isBuiltIn,
  async open(data, o) {
    const { openMultiTask, RoadShapes } = await import('../../data/index.js');
    return openBuiltIn<Source>(data, (part) => new RoadShapes(part)) ?? asUsage(() => openMultiTask(data, o));
  },
  async openWhole(data, classNames, skipBroken) {
    const { groupTaskClasses, MultiTaskFolder } = await import('../../data/index.js');
    return asUsage(() => new MultiTaskFolder(data, { classes: groupTaskClasses(classNames), skipBroken }));
  },
  // The model resizes and normalizes by itself, as detectors do.
  transforms: (_config, flags) => ({ train: [...flipSteps(flags), ...colorSteps(flags)], evaluate: [] }),
  async loader(dataset, o) {
    const { MultiTaskLoader } = await import('../../data/index.js');
    const firstLabel = await firstOf(o.spec as SpecOf<'multi'>);
    return new MultiTaskLoader({ ...loaderOptions(dataset, o), transform: o.transforms, firstLabel });
  },
  async task() {
    const { multiTask } = await import('../../train/index.js');
    return multiTask();
  },
  async describe({ segmentation, coco, loss, samples, metrics = {} }, classNames, spec) {
    const { groupTaskClasses } = await import('../../data/index.js');
    const groups = groupTaskClasses(classNames);
    const first = await firstOf(spec as SpecOf<'multi'>);
    const masks = Object.entries(segmentation).map(
      ([task, result]) => [task, perClassScores(result, groups[task] ?? [])] as const,
    );
    const boxes = coco && averagePrecisions(coco, groups['det'] ?? [], first);
    const known = Object.entries(metrics).map(([name, value]) => [name, Number.isNaN(value) ? null : value] as const);
    return {
      data: {
        ...Object.fromEntries(known),
        ...{ loss: Number.isNaN(loss) ? null : loss, samples, classNames },
        perClass: { ...Object.fromEntries(masks), ...(boxes && { det: boxes }) },
      },
      text: () =>
        [
          known.map(([name, value]) => `${name} ${share(value)}`).join('   '),
          ...masks.map(([task, rows]) => `\n${task}\n${classTable(rows)}`),
          ...(boxes ? [`\ndet\n${precisionTable(boxes)}`] : []),
        ].join('\n'),
    };
  },
  async report({ segmentation, coco }, { classNames }, _of, spec) {
    const { groupTaskClasses } = await import('../../data/index.js');
    const groups = groupTaskClasses(classNames);
    const first = await firstOf(spec as SpecOf<'multi'>);
    const masks = Object.entries(segmentation).flatMap(([task, result]) =>
      perClassScores(result, groups[task] ?? []).map((c) => [`${task}: ${c.name}`, share(c.iou)]),
    );
    const boxes = coco ? averagePrecisions(coco, groups['det'] ?? [], first) : [];
    const rows = [...masks, ...boxes.map((c) => [`det: ${c.name}`, share(c.AP)])];
    return { classes: { head: ['class', 'IoU, AP'], rows } };
  },
  async predict({ model, classNames, spec }, targets, o) {
    const { groupTaskClasses, Pipeline } = await import('../../data/index.js');
    const { noGrad, scope } = await import('../../tensor/index.js');
    const { LvMultiTask } = await import('../../systems/index.js');
    if (!(model instanceof LvMultiTask)) throw new TypeError('the model is not for several tasks');
    const first = await firstOf(spec as SpecOf<'multi'>);
    const groups = groupTaskClasses(classNames);
    const pipeline = new Pipeline([{ kind: 'toFloat' }]);
    const find = (image: Image) =>
      scope(() =>
        noGrad(() => {
          const input = pipeline.collate([image], { device: o.device }).squeeze(0);
          const { logits, detections } = model.findings([input]);
          const labels = Object.entries(logits).map(
            ([task, [map]]) => [task, map!.argmax(1).to('uint8').data() as Uint8Array] as const,
          );
          return { labels, objects: detections && describeObjects(detections[0]!, first, o.minScore) };
        }),
      );
    const answers = await drawEach(targets, o, async (image, overlay) => {
      const { labels, objects } = find(image);
      const overlays: string[] = [];
      const fileOf = (task: string): string => overlay.replace(/\.png$/, `.${task}.png`);
      const classes: Record<string, ClassShare[]> = {};
      for (const [task, map] of labels) {
        overlays.push(fileOf(task));
        classes[task] = await drawClasses(fileOf(task), image, map, groups[task] ?? []);
      }
      if (objects) overlays.push(fileOf('det'));
      const found = objects ? await drawObjects(fileOf('det'), image, objects, groups['det'] ?? []) : [];
      return { overlays, classes, objects: found };
    });
    return {
      data: answers,
      text: () =>
        table(
          ['image', 'overlays', 'objects'],
          answers.map((a) => [
            a.path,
            a.overlays.join(', '),
            a.objects.map((b) => `${b.class} ${share(b.score)}`).join(', '),
          ]),
        ),
    };
  },
};
