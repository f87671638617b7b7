/** Clips to classes. */
import { ClassificationMeter, type ClassificationResult } from '../../metrics/index.js';
import { Context, functional as F, type Module } from '../../nn/index.js';
import { averageViews } from '../../systems/index.js';
import type { Score } from '../events.js';
import type { Batch, LossOptions } from '../options.js';
import { classifyTask } from './classify.js';
import { DeviceSum } from './device_sum.js';
import { maybeAutocast, type Meter, type Scoring, type Task } from './task.js';

/** Clips with a class each: `LoadedClips`. */
export interface ClipBatch extends Batch {
  /** The clips [B V, 3, T, H, W], the V views of a video one after the other. */
  readonly images: Batch['images'];
  /** V; 1 in training. Default 1. */
  readonly views?: number;
}

/** Accuracy, the further ones of `metrics` (top-1, top-5), and everything by class. */
export interface VideoEvaluation extends Score {
  readonly classification: ClassificationResult;
}

const TOP = 5;
/** Smallest probability whose logarithm is taken. */
const LEAST = 1e-12;

/**
 * Classification of videos: a training clip is one sample; a score is of the mean, over the views of a video, of the
 * probabilities.
 *
 * @param loss Default: cross-entropy without label smoothing.
 */
export function videoTask(loss: LossOptions = {}): Task<ClipBatch, VideoEvaluation> {
  const images = classifyTask(loss);
  return {
    ...images,
    id: 'video',
    settings: { task: 'video', ...images.settings },
    meter: (model, how) => new VideoScore(model, how),
  };
}

class VideoScore implements Meter<ClipBatch, VideoEvaluation> {
  #meter: ClassificationMeter | null = null;
  readonly #loss = new DeviceSum();

  constructor(
    private readonly model: Module,
    private readonly how: Scoring,
  ) {}

  add({ images, labels, views = 1 }: ClipBatch): void {
    const { device, autocast } = this.how;
    const clips = images.to(device);
    const logits = maybeAutocast(autocast, device, () => this.model.run(clips, new Context())).float();
    const scores = averageViews(logits, views);
    const target = labels.to(device);
    this.#meter ??= new ClassificationMeter(scores.shape[1] ?? 0, { topK: [TOP] });
    this.#meter.update(scores, target);
    this.#loss.add(F.crossEntropy(scores.clampMin(LEAST).log(), target, { reduction: 'sum' }));
  }

  result(): VideoEvaluation {
    if (this.#meter === null) throw new RangeError('videoTask: nothing has been scored yet');
    const classification = this.#meter.result();
    const { accuracy, topK, samples } = classification;
    const metrics = { 'top-1': accuracy, 'top-5': topK[TOP] ?? 1 };
    return { loss: this.#loss.value() / samples, accuracy, samples, metrics, classification };
  }

  [Symbol.dispose](): void {
    this.#meter?.reset();
    this.#loss[Symbol.dispose]();
  }
}
