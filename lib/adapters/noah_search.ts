/** The search for a sub-network of NOAH: random draws for the supernet's training, then evolution. arXiv 2206.04673, section 3.3. */
import { NOAH_KINDS, type NoahKind, type NoahSizes } from './noah.js';

/** What may be chosen. */
export interface NoahSpace {
  /** Sizes of each kind that a block may have. */
  readonly choices: Readonly<Record<NoahKind, readonly number[]>>;
  /** In how many of the first blocks a kind may stand, chosen for each kind by itself. */
  readonly depths: readonly number[];
  /** Number of blocks of the model. */
  readonly blocks: number;
  /** Width of the model's tokens. */
  readonly width: number;
}

/** One kind's part of a candidate: its size in each block, of which the first `depth` count. */
interface Gene {
  readonly depth: number;
  readonly sizes: readonly number[];
}

type Genome = Readonly<Record<NoahKind, Gene>>;

/** Gives numbers in [0, 1). */
export type RandomSource = () => number;

function pick<T>(list: readonly T[], random: RandomSource): T {
  if (list.length === 0) throw new RangeError('noah: nothing to choose from; give at least one size and one depth');
  return list[Math.floor(random() * list.length)] as T;
}

const each = (make: (kind: NoahKind) => Gene): Genome =>
  Object.fromEntries(NOAH_KINDS.map((kind) => [kind, make(kind)])) as unknown as Genome;

function draw({ choices, depths, blocks }: NoahSpace, random: RandomSource): Genome {
  return each((kind) => ({
    depth: pick(depths, random),
    sizes: Array.from({ length: blocks }, () => pick(choices[kind], random)),
  }));
}

function express(genome: Genome): NoahSizes {
  const sizes = (kind: NoahKind): number[] =>
    genome[kind].sizes.map((size, block) => (block < genome[kind].depth ? size : 0));
  return { prompts: sizes('prompts'), lora: sizes('lora'), adapters: sizes('adapters') };
}

/** A sub-network at random: what each step of the supernet's training computes with. */
export function sampleNoahSizes(space: NoahSpace, random: RandomSource = Math.random): NoahSizes {
  return express(draw(space, random));
}

/** Parameters in the blocks of a sub-network: n d for n prompts, 4 r d for LoRA, 2 h d + h + d for an adapter. */
export function noahParameters(sizes: NoahSizes, width: number): number {
  const sum = (list: readonly number[], cost: (size: number) => number): number =>
    list.reduce((total, size) => total + (size > 0 ? cost(size) : 0), 0);
  return (
    sum(sizes.prompts, (n) => n * width) +
    sum(sizes.lora, (r) => 4 * r * width) +
    sum(sizes.adapters, (h) => 2 * h * width + h + width)
  );
}

/** Options of `searchNoah`; the defaults are the published ones. */
export interface NoahSearchOptions {
  readonly space: NoahSpace;
  /** How good a sub-network is, such as its accuracy in the trained supernet; larger is better. */
  readonly evaluate: (sizes: NoahSizes) => number | Promise<number>;
  /** Largest number of parameters. Default 640,000. */
  readonly limit?: number;
  /** Default 20. */
  readonly generations?: number;
  /** Candidates of the first generation. Default 50. */
  readonly population?: number;
  /** The best so far, of whom the next generation descends. Default 10. */
  readonly parents?: number;
  /** Children of two parents in each generation. Default 25. */
  readonly crossovers?: number;
  /** Changed copies of a parent in each generation. Default 25. */
  readonly mutations?: number;
  /** Probability that a mutation draws a block's size anew. Default 0.2. */
  readonly mutationRate?: number;
  /** Probability that it draws a depth anew. Default 0.4. */
  readonly depthRate?: number;
  /** Default `Math.random`. */
  readonly random?: RandomSource;
}

/** A sub-network and what it is worth. */
export interface NoahCandidate {
  readonly sizes: NoahSizes;
  readonly score: number;
  readonly parameters: number;
}

/** So many draws in vain end the search for a candidate within the limit. */
const ATTEMPTS = 10_000;

/**
 * Evolutionary search: a random population, then generations of crossovers and mutations of the best so far, all within
 * the limit of parameters and none evaluated twice.
 *
 * @returns the best candidates, best first
 * @throws RangeError when no sub-network of the space is within the limit
 */
export async function searchNoah(options: NoahSearchOptions): Promise<NoahCandidate[]> {
  const { space, evaluate, limit = 640_000, generations = 20, random = Math.random } = options;
  const { population = 50, parents = 10, crossovers = 25, mutations = 25 } = options;
  const { mutationRate = 0.2, depthRate = 0.4 } = options;
  const seen = new Set<string>();
  let best: (NoahCandidate & { readonly genome: Genome })[] = [];

  const admit = async (count: number, make: () => Genome): Promise<number> => {
    let admitted = 0;
    for (let attempt = 0; admitted < count && attempt < ATTEMPTS; attempt++) {
      const genome = make();
      const sizes = express(genome);
      const parameters = noahParameters(sizes, space.width);
      const key = JSON.stringify(sizes);
      if (parameters > limit || seen.has(key)) continue;
      seen.add(key);
      best.push({ genome, sizes, parameters, score: await evaluate(sizes) });
      admitted++;
    }
    return admitted;
  };
  const parent = (): Genome => pick(best.slice(0, parents), random).genome;
  const crossover = (): Genome => {
    const [one, other] = [parent(), parent()];
    const either = <T>(a: T, b: T): T => (random() < 0.5 ? a : b);
    return each((kind) => ({
      depth: either(one[kind].depth, other[kind].depth),
      sizes: one[kind].sizes.map((size, block) => either(size, other[kind].sizes[block] ?? size)),
    }));
  };
  const mutation = (): Genome => {
    const [old, fresh] = [parent(), draw(space, random)];
    return each((kind) => ({
      depth: random() < depthRate ? fresh[kind].depth : old[kind].depth,
      sizes: old[kind].sizes.map((size, b) => (random() < mutationRate ? (fresh[kind].sizes[b] ?? size) : size)),
    }));
  };

  if ((await admit(population, () => draw(space, random))) === 0) {
    throw new RangeError(
      `noah: no sub-network within ${limit} parameters was found; raise the limit or offer smaller sizes`,
    );
  }
  for (let generation = 0; ; generation++) {
    best = best.sort((a, b) => b.score - a.score).slice(0, Math.max(parents, 1));
    if (generation === generations) break;
    await admit(crossovers, crossover);
    await admit(mutations, mutation);
  }
  return best.map(({ sizes, score, parameters }) => ({ sizes, score, parameters }));
}
