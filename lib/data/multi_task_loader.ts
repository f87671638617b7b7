/** Batches of images with several masks and with boxes. */
import type { Collated } from './batch_loader.js';
import {
  AnnotatedLoader,
  checkedFirstLabel,
  floatPipeline,
  loadedObjects,
  stackMasks,
  tensorsOf,
  type AnnotatedLoaderOptions,
} from './dense_loaders.js';
import type { LoadedScenes, MultiTaskSample, Objects } from './samples.js';

/** See `MultiTaskLoader`. */
export interface MultiTaskLoaderOptions extends AnnotatedLoaderOptions<MultiTaskSample> {
  /** The label of class 0 of objects in the batches: 1 for detectors whose label 0 is the background. Default 0. */
  readonly firstLabel?: number;
}

const NO_OBJECTS: Objects = {
  boxes: new Float32Array(),
  labels: new Int32Array(),
  areas: new Float32Array(),
  crowds: new Uint8Array(),
};

/**
 * Batches of images with several masks and boxes: `LoadedScenes`. Images stay of different sizes, float32 from 0 to 1 if not
 * normalized: models for several tasks normalize, resize and pad by themselves, as detectors do. See `BatchLoader` for order,
 * seeds and cache.
 *
 * @example
 * const loader = new MultiTaskLoader({ dataset: new RoadShapes({ count: 100 }), batchSize: 4, shuffle: true });
 */
export class MultiTaskLoader extends AnnotatedLoader<MultiTaskSample, LoadedScenes> {
  readonly firstLabel: number;

  /** @throws RangeError for a first label that is no whole number from 0 on */
  constructor(options: MultiTaskLoaderOptions) {
    super(options, floatPipeline(options.transform), ['firstLabel']);
    this.firstLabel = checkedFirstLabel('MultiTaskLoader', options.firstLabel ?? 0);
  }

  protected collate(samples: readonly MultiTaskSample[]): Collated<LoadedScenes> {
    const { device, firstLabel, pipeline } = this;
    const images = samples.map(({ image }) => pipeline.collate([image], { device }).squeeze(0));
    const tasks = Object.keys(samples[0]?.masks ?? {});
    const masks = Object.fromEntries(
      tasks.map((task) => [
        task,
        samples.map(({ image: { height, width }, masks: { [task]: mask } }) =>
          stackMasks(mask ? [mask] : [], height, width)
            .to(device)
            .to('int64')
            .squeeze(0),
        ),
      ]),
    );
    const targets = samples.some(({ objects }) => objects)
      ? samples.map(({ objects = NO_OBJECTS }) => loadedObjects(objects, firstLabel, device))
      : null;
    const tensors = [...images, ...Object.values(masks).flat(), ...(targets ?? []).flatMap(tensorsOf)];
    return { fields: { images, masks, targets }, tensors };
  }
}
