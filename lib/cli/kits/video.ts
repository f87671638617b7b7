/** Classification of videos on the command line. */
import type { TransformInput, VideoSource } from '../../data/index.js';
import type { ClipBatch, VideoEvaluation } from '../../train/index.js';
import { isBuiltIn, openBuiltIn } from '../dataset.js';
import { asUsage, note, UsageError } from '../output.js';
import { flipSteps, inputOf, isWholeInput, networkSteps } from '../preprocess.js';
import type { SpecOf, TaskSpec } from '../task_spec.js';
import { classScores, confusionTables, likeliest, predictionTable, share, type Prediction } from './classify.js';
import { loaderOptions, type TaskKit } from './kit.js';

/** Videos are many frames; fewer of them make the built-in set. */
const DEFAULT_COUNT = 400;

export const videoKit: TaskKit<VideoSource, ClipBatch, VideoEvaluation> = {
  isBuiltIn,
  async open(data, o) {
    const { MovingShapes, openVideos } = await import('../../data/index.js');
    const builtIn = openBuiltIn<VideoSource>(data, (part) => new MovingShapes(part), DEFAULT_COUNT);
    return builtIn ?? asUsage(() => openVideos(data, o));
  },
  async openWhole(data, classNames, skipBroken) {
    const { VideoFolder } = await import('../../data/index.js');
    return asUsage(() => new VideoFolder(data, { classNames, skipBroken }));
  },
  transforms(config, flags) {
    const { height } = inputOf(config, flags);
    const last = networkSteps(config);
    const crop: TransformInput = isWholeInput(config, flags)
      ? { kind: 'randomCrop', size: height }
      : { kind: 'randomResizedCrop', size: height };
    return { train: [crop, ...flipSteps(flags), ...last], evaluate: last };
  },
  async loader(dataset, o) {
    const { ClipLoader } = await import('../../data/index.js');
    const views = viewsOf(o.spec, o.transforms);
    if (!o.isTraining) return new ClipLoader({ ...loaderOptions(dataset, o), clips: views });
    const has = (kind: TransformInput['kind']): boolean => o.transforms.some((step) => step.kind === kind);
    const { frames, stride, size, mean, std } = views;
    const clips = {
      ...{ frames, stride, size, mean, std },
      crop: has('randomResizedCrop') ? 'random_resized_crop' : 'short_side_jitter',
      flip: has('horizontalFlip') ? 0.5 : 0,
    } as const;
    return new ClipLoader({ ...loaderOptions(dataset, o), clips });
  },
  async task(_spec, _classes, loss) {
    const { videoTask } = await import('../../train/index.js');
    return videoTask(loss);
  },
  async describe({ classification, loss, metrics = {} }, classNames) {
    const { confusion, samples } = classification;
    const perClass = await classScores(confusion, classNames);
    return {
      data: { ...metrics, loss, samples, perClass, classNames, confusion },
      text: () =>
        [
          `${Object.entries(metrics)
            .map(([name, value]) => `${name} ${share(value)}`)
            .join('   ')}   loss ${loss.toFixed(4)}`,
          ...confusionTables(confusion, perClass, 'videos', classNames),
        ].join('\n'),
    };
  },
  report: ({ classification: { confusion } }, { classNames }, of) =>
    Promise.resolve({ confusion: { of, classNames, matrix: confusion } }),
  async predict({ model, classNames, transforms, spec }, paths, o) {
    const { ClipLoader, openVideo } = await import('../../data/index.js');
    const { averageViews } = await import('../../systems/index.js');
    const { noGrad, scope } = await import('../../tensor/index.js');
    const dataset: VideoSource = {
      length: paths.length,
      classNames,
      labels: paths.map(() => 0),
      load: (index) => asUsage(() => openVideo(paths[index]!)),
      describe: (index) => paths[index]!,
    };
    const { batchSize, skipBroken, topK, device } = o;
    const loader = new ClipLoader({ dataset, batchSize, skipBroken, device, clips: viewsOf(spec, transforms) });
    const predictions: Prediction[] = [];
    for await (const batch of loader.epoch(0)) {
      const found = scope(() =>
        noGrad(() => {
          const scores = averageViews(model.run(batch.images).float(), batch.views);
          const [values, indices] = scores.topk(Math.min(topK, classNames.length), 1);
          return { values: values.tolist() as number[][], indices: indices.tolist() as number[][] };
        }),
      );
      const names = batch.indices.map((index) => paths[index]!);
      predictions.push(...likeliest(names, found, classNames));
      batch.dispose();
    }
    for (const { message } of loader.skipped) note(`left out: ${message}`);
    return predictionTable('video', predictions);
  },
};

/** How a video is seen in a test. */
function viewsOf(spec: TaskSpec, transforms: readonly TransformInput[]) {
  const normalize = transforms.find((step) => step.kind === 'normalize');
  if (!normalize) throw new UsageError('the adapter was saved without the mean and deviation of its images');
  const { frames, stride, size, views } = spec as SpecOf<'video'>;
  const [temporalViews, spatialViews] = views;
  return { frames, stride, size, temporalViews, spatialViews, mean: normalize.mean, std: normalize.std };
}
