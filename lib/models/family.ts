/** What a file of backbones gives the registry. */
import { z } from 'zod';
import { type Backbone, IMAGENET_MEAN, IMAGENET_STD, type Preprocessing } from './backbone.js';
import type { Host } from './host.js';

/** A family of models, backbones unless said otherwise, that differ only in options. */
export interface Family<S extends z.ZodObject = z.ZodObject, M extends Host = Backbone> {
  readonly id: string;
  readonly paper: string;
  /** Where the published checkpoints come from: repository or library, and the license of the code they come with. */
  readonly checkpoints: { readonly source: string; readonly license: string };
  /** A strict zod object: unknown options are refused. */
  readonly options: S;
  /** Published members by name, each as the options in which it differs from the defaults. */
  readonly variants: Readonly<Record<string, Partial<z.input<S>>>>;
  /** Makes the variant `name`, on the default device, with random weights. */
  readonly create: (name: string, options: z.output<S>) => M;
}

/** Counts and sizes, and probabilities, among options. */
export const positive = z.int().positive();
export const rate = z.number().min(0).max(1);

/** An image's side, or [height, width]. */
export const imageSize = z.union([positive, z.tuple([positive, positive])]);

/** Options that every backbone has; a family whose defaults differ says so behind them. */
export const backboneOptions = {
  numClasses: z.int().nonnegative().default(1000),
  inChans: positive.default(3),
  imgSize: imageSize.default(224),
  /** Stochastic depth of the last block, rising linearly from 0. */
  dropPathRate: rate.default(0),
};

/** Side of a kernel with a center: that of a convolution which keeps the map's size. */
export const oddKernel = z
  .int()
  .positive()
  .refine((side) => side % 2 === 1, { error: 'a kernel that keeps the size of the map has an odd side' });

/** A size as [height, width]. */
export function sizePair(size: z.output<typeof imageSize>): [height: number, width: number] {
  return typeof size === 'number' ? [size, size] : [size[0], size[1]];
}

/** The preprocessing of a model with these options; ImageNet's mean and deviation unless given. */
export function preprocessing(
  options: { inChans: number; imgSize: z.output<typeof imageSize> },
  rest: Pick<Preprocessing, 'interpolation' | 'cropPct'> & Partial<Preprocessing>,
): Preprocessing {
  return {
    inputSize: [options.inChans, ...sizePair(options.imgSize)],
    mean: IMAGENET_MEAN,
    std: IMAGENET_STD,
    ...rest,
  };
}

/** @throws RangeError when the lists, which hold one entry per stage, differ in length */
export function requireSameLength(owner: string, lists: Readonly<Record<string, readonly unknown[]>>): void {
  const lengths = Object.entries(lists).map(([name, list]) => `${name} has ${list.length}`);
  if (new Set(Object.values(lists).map((list) => list.length)).size > 1) {
    throw new RangeError(`${owner}: one entry per stage is expected in each of these lists, but ${lengths.join(', ')}`);
  }
}
