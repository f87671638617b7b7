/** Backbones as detectors and segmenters run them: no classifier, one map for each level. */
import type { Backbone } from '../../../lib/models/index.js';
import { type Built, type Config, entriesOf, type Entry, soleInput, UnknownCase } from '../builder.js';
import type { GoldenCase } from '../case.js';

/** Whether a case runs the form for feature pyramids: its name says so, or it lists the levels. */
export const isPyramid = (name: string, config: Config): boolean =>
  /features|pyramid|detection|segmentation/i.test(name) || config.has('out_indices');

/**
 * The maps of `model`'s levels, those of the config's `out_indices` or all; named as the case names its outputs, finest
 * first, and c2, c3, ... when it has another number of them.
 */
export function pyramid(
  model: Backbone,
  config: Config,
  { outputs = {} }: GoldenCase,
  state?: ReadonlyMap<string, Entry>,
): Built {
  const trunk = model.toTrunk();
  const indices = config.get<number[]>(
    'out_indices',
    model.featureLevels.map((_, i) => i),
  );
  const wanted = Object.keys(outputs).sort();
  const nameOf = (place: number, level: number): string =>
    (wanted.length === indices.length ? wanted[place] : undefined) ?? `c${level + 2}`;
  const run: Built['run'] = (inputs) => {
    const maps = trunk.forwardIntermediates(soleInput(inputs));
    return Object.fromEntries(
      indices.map((level, place) => {
        const map = maps[level];
        if (!map) throw new UnknownCase(`there is no level ${level}`);
        return [nameOf(place, level), map];
      }),
    );
  };
  // Levels that nobody wants have no norm of their own.
  const hasNorm = (name: string): boolean => {
    const level = /^norm(\d)\./.exec(name)?.[1];
    return level === undefined || indices.includes(Number(level));
  };
  const entries = [...(state ?? entriesOf(trunk))].filter(([name]) => hasNorm(name));
  return { module: trunk, state: new Map(entries), run };
}
