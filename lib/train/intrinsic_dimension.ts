/**
 * Local intrinsic dimension: in how small a random subspace the weights of one kind of submodule can be trained to nearly
 * what training all of them gives. Li et al., ICLR 2018, arXiv 1804.08838, section 2; used to choose what to adapt by He
 * et al., AAAI 2023, arXiv 2203.16329, section 3.
 */
import { z } from 'zod';
import {
  type Adapter,
  defineMethod,
  graft,
  intrinsicSubspace,
  layersOf,
  sizeOf,
  type SiteQuery,
  type SubmoduleQuery,
} from '../adapters/index.js';
import type { Backbone } from '../models/index.js';
import type { BatchSource, OptimizerOptions } from './options.js';
import { Trainer } from './trainer.js';

/** What is measured, and on what. */
export interface LocalDimensionOptions {
  /** With its classifier, which stays as it is. Left as it was found. */
  readonly model: Backbone;
  readonly train: BatchSource;
  readonly val: BatchSource;
  /** Roles of the submodules that are compared. Default `attention` and `mlp`. */
  readonly submodules?: readonly string[];
  /** Blocks in which they are. Default: all. */
  readonly depth?: SiteQuery['depth'];
  /** Dimensions to try; those that exceed a submodule's size are left out. Default: powers of two from 4 to 4096. */
  readonly dimensions?: readonly number[];
  /** Share of the full score that a subspace must reach. Default 0.9. */
  readonly share?: number;
  /** Of every training. Default 10. */
  readonly epochs?: number;
  /**
   * Learning rate of AdamW when all weights are trained. Default 1e-3. In a subspace it is larger by the root of the
   * ratio of the sizes, so that the weights move as far in a step. Default 1e-3.
   */
  readonly lr?: number;
  /** Of the random maps and the steps. Default 0. */
  readonly seed?: number;
  readonly signal?: AbortSignal;
  /** Called after each training; dimension null is the training of all weights. */
  readonly onRun?: (run: DimensionRun & { readonly submodule: string }) => void;
}

/** One training. */
export interface DimensionRun {
  /** Number of trained numbers; null when all of the submodule's weights were trained. */
  readonly dimension: number | null;
  /** Best validation accuracy over the epochs. */
  readonly accuracy: number;
}

/** What was found about one kind of submodule. */
export interface LocalDimension {
  readonly submodule: string;
  /** Paths of the layers in it. */
  readonly layers: readonly string[];
  /** How many numbers there are in it. */
  readonly size: number;
  /** Accuracy when all of them are trained. */
  readonly full: number;
  /** Accuracy that a subspace must reach. */
  readonly target: number;
  /** The smallest dimension tried that reaches it; null when none did. */
  readonly dimension: number | null;
  /** The trainings in subspaces, from the smallest dimension up to the first that reaches the target. */
  readonly runs: readonly DimensionRun[];
}

const DEFAULT_DIMENSIONS = Array.from({ length: 11 }, (_, i) => 2 ** (i + 2));

/** Trains all weights and biases of some layers. Not registered: `full` and `bitfit` are what people want of that kind. */
const wholeSubmodule = defineMethod({
  id: 'whole_submodule',
  summary: 'trains every weight of one kind of submodule',
  paper: 'the reference of a local intrinsic dimension',
  options: z.strictObject({ layers: z.array(z.string()) }),
  rules: () => [],
  trains:
    ({ layers }) =>
    ({ name }) =>
      layers.includes(name.slice(0, name.lastIndexOf('.'))),
  bnStats: 'frozen',
});

/** @throws RangeError for dimensions that are not whole numbers above 0, or a share that is none */
function check({ dimensions, share }: { dimensions: readonly number[]; share: number }): void {
  const odd = dimensions.find((d) => !Number.isInteger(d) || d < 1);
  if (odd !== undefined || dimensions.length === 0)
    throw new RangeError(
      `dimensions must be whole numbers from 1 on, at least one of them; got ${dimensions.join(', ')}`,
    );
  if (!(share > 0 && share <= 1)) throw new RangeError(`share must be above 0 and at most 1, got ${share}`);
}

/**
 * Measures each kind of submodule on a data set: first all its weights are trained, then θ alone (everything else frozen,
 * w = w₀ + P θ, θ = 0 at the start) with growing dimension, until a subspace reaches the wanted share of the full score.
 * The classifier is not trained: give a model whose own classifier fits the data, such as one after a linear probe.
 *
 * @returns the kinds, smallest dimension first: the first is the one to adapt. Null if `signal` ended it early
 * @throws RangeError for a submodule that the model does not have
 */
export async function measureLocalDimension(o: LocalDimensionOptions): Promise<LocalDimension[] | null> {
  const { submodules = ['attention', 'mlp'], dimensions = DEFAULT_DIMENSIONS, share = 0.9 } = o;
  check({ dimensions, share });
  const ascending = [...new Set(dimensions)].sort((a, b) => a - b);
  const queries = submodules.map((submodule): SubmoduleQuery => ({
    submodule,
    ...(o.depth !== undefined && { depth: o.depth }),
  }));
  // Asked for before anything is trained: a submodule that is not there is an error at once.
  for (const query of queries) graft(o.model, intrinsicSubspace, { dimension: 1, ...query }, GRAFT).remove();

  const found: LocalDimension[] = [];
  for (const query of queries) {
    const measured = await measureOne(query, ascending, share, o);
    if (measured === null) return null;
    found.push(measured);
  }
  const rank = ({ dimension }: LocalDimension): number => dimension ?? Infinity;
  return found.sort((a, b) => (rank(a) === rank(b) ? a.size - b.size : rank(a) - rank(b)));
}

const GRAFT = { name: 'local_dimension', head: 'frozen' } as const;

async function measureOne(
  query: SubmoduleQuery,
  dimensions: readonly number[],
  share: number,
  o: LocalDimensionOptions,
): Promise<LocalDimension | null> {
  const { model, lr = 1e-3, seed = 0 } = o;
  const { submodule } = query;
  const sites = layersOf(model.sites(), query);
  const [layers, size] = [sites.map(({ path }) => path), sizeOf(sites)];
  const score = async (dimension: number | null): Promise<number | null> => {
    const settings = { ...GRAFT, seed };
    const adapter =
      dimension === null
        ? graft(model, wholeSubmodule, { layers }, settings)
        : graft(model, intrinsicSubspace, { dimension, ...query }, settings);
    const rate = dimension === null ? lr : lr * Math.sqrt(size / dimension);
    try {
      const accuracy = await train(adapter, rate, o);
      if (accuracy !== null) o.onRun?.({ submodule, dimension, accuracy });
      return accuracy;
    } finally {
      adapter.remove();
    }
  };

  const full = await score(null);
  if (full === null) return null;
  const target = share * full;
  const runs: DimensionRun[] = [];
  for (const dimension of dimensions.filter((d) => d <= size)) {
    const accuracy = await score(dimension);
    if (accuracy === null) return null;
    runs.push({ dimension, accuracy });
    if (accuracy >= target) break;
  }
  const last = runs.at(-1);
  const reached = last !== undefined && last.accuracy >= target ? last.dimension : null;
  return { submodule, layers, size, full, target, dimension: reached, runs };
}

/** The best validation accuracy of one training; null if it was interrupted. */
async function train(
  adapter: Adapter,
  lr: number,
  { model, train: data, val, epochs = 10, seed = 0, signal }: LocalDimensionOptions,
): Promise<number | null> {
  const optimizer: OptimizerOptions = { kind: 'adamw', lr, weightDecay: 0 };
  const fit = await new Trainer({
    ...{ model: model, adapter, train: data, val, epochs, optimizer, seed },
    schedule: { kind: 'cosine' },
    backboneMode: 'eval',
    ...(signal !== undefined && { signal }),
  }).fit();
  return fit.interrupted ? null : (fit.best?.val?.accuracy ?? 0);
}
