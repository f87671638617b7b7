import { fromTypedArray, type MemoryFormat, type Tensor } from '../tensor/index.js';
import { BatchLoader, type BatchLoaderOptions, type Collated } from './batch_loader.js';
import type { Dataset } from './dataset.js';
import type { Image } from './image.js';
import { pipelineOf, type Pipeline } from './pipeline.js';
import type { Random } from './random.js';
import type { LoadedBatch } from './samples.js';
import type { TransformInput } from './transforms.js';

export interface DataLoaderOptions extends BatchLoaderOptions<Dataset> {
  /** Steps from image to input, see `transforms`. Default none: batches of bytes. */
  readonly transform?: readonly TransformInput[] | Pipeline;
  /** Default 'contiguous_format'. */
  readonly memoryFormat?: MemoryFormat;
}

/** Class numbers of the samples at `indices`, int64. */
export function labelsOf(dataset: { readonly labels: ArrayLike<number> }, indices: readonly number[]): Tensor {
  const labels = BigInt64Array.from(indices, (index) => BigInt(dataset.labels[index] ?? 0));
  return fromTypedArray(labels, [labels.length]);
}

/**
 * Batches of labeled images, decoded in sharp's thread pool ahead of their use; see `BatchLoader` for order, seeds and cache.
 *
 * @example
 * const loader = new DataLoader({ dataset, batchSize: 64, shuffle: true, transform });
 * for await (const batch of loader.epoch(0)) {
 *   step(batch.images, batch.labels);
 *   batch.dispose();
 * }
 */
export class DataLoader extends BatchLoader<Image, Image, LoadedBatch, Dataset> {
  readonly pipeline: Pipeline;
  readonly #memoryFormat: MemoryFormat;

  constructor(options: DataLoaderOptions) {
    super(options, ['transform', 'memoryFormat']);
    const { transform, memoryFormat = 'contiguous_format' } = options;
    this.pipeline = pipelineOf(transform);
    this.#memoryFormat = memoryFormat;
  }

  protected bytesOf(image: Image): number {
    return image.data.byteLength;
  }

  protected prepare(image: Image): Image {
    return this.pipeline.prepare(image);
  }

  protected finish(image: Image, random: Random): Image {
    return this.pipeline.augment(image, random);
  }

  protected collate(images: readonly Image[], indices: readonly number[]): Collated<LoadedBatch> {
    const batch = {
      images: this.pipeline.collate(images, { device: this.device, memoryFormat: this.#memoryFormat }),
      labels: labelsOf(this.dataset, indices).to(this.device),
    };
    return { fields: batch, tensors: Object.values(batch) };
  }
}
