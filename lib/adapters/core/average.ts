/** A new adapter between others: the weighted mean of their values. */
import { isDeepStrictEqual } from 'node:util';
import type { Host } from '../../models/index.js';
import { noGrad, scope, type Tensor } from '../../tensor/index.js';
import type { Adapter } from './adapter.js';
import { adapterState, loadAdapterState } from './folder.js';
import { graftMethod } from './graft.js';
import { AdapterHost } from './host.js';

/** The weighted mean of states with the same names; sums in float64. Integer buffers are the first one's. */
function mean(states: readonly ReadonlyMap<string, Tensor>[], weights: readonly number[]): Map<string, Tensor> {
  const [first] = states;
  const names = new Set(states.flatMap((state) => [...state.keys()]));
  return new Map(
    Array.from(names, (name) => {
      const own = first?.get(name) as Tensor;
      if (!own.isFloatingPoint()) return [name, own];
      const terms = states.map((state, i) => (state.get(name) as Tensor).to('float64').mul(weights[i] ?? 0));
      return [name, terms.reduce((sum, term) => sum.add(term)).to(own.dtype)];
    }),
  );
}

/**
 * Sets in a new adapter whose values are the mean of others', which must be of one method with the same options and the
 * same head: the "soup" of several runs. It becomes the active one; the others stay as they are.
 *
 * @param weights share of each adapter by name, above 0; they are divided by their sum
 * @param name of the new adapter
 * @throws RangeError for names that the model does not have, weights that are no positive numbers, or adapters that differ
 *   in kind; the message says in what. Nothing has changed then.
 *
 * ```ts
 * averageAdapters(model, { seed0: 1, seed1: 1, seed2: 1 }, 'soup');
 * ```
 */
export function averageAdapters(model: Host, weights: Readonly<Record<string, number>>, name: string): Adapter {
  const host = AdapterHost.of<Adapter>(model);
  const entries = Object.entries(weights);
  const wrong = entries.find(([, weight]) => !(Number.isFinite(weight) && weight > 0));
  if (entries.length === 0 || wrong) {
    throw new RangeError(
      `averageAdapters: weights must be positive numbers by name, ${wrong ? `'${wrong[0]}' has ${wrong[1]}` : 'none are given'}`,
    );
  }
  host.check(entries.map(([key]) => key));
  const adapters = entries.map(([key]) => host.adapters.get(key) as Adapter);
  const first = adapters[0] as Adapter;
  for (const other of adapters) {
    const kind = ({ method, options, head }: Adapter): unknown => [method.id, options, head];
    if (!isDeepStrictEqual(kind(first), kind(other))) {
      throw new RangeError(
        `averageAdapters: '${first.name}' (${JSON.stringify(kind(first))}) and '${other.name}' (${JSON.stringify(kind(other))}) are of different kinds`,
      );
    }
  }
  const total = entries.reduce((sum, [, weight]) => sum + weight, 0);
  const soup = graftMethod(model, first.method, first.options, { name, head: first.head, activate: 'no' });
  try {
    noGrad(() =>
      scope(() => {
        const states = adapters.map((adapter) => completeState(adapter));
        loadAdapterState(
          soup,
          mean(
            states,
            entries.map(([, weight]) => weight / total),
          ),
          'the mean',
        );
      }),
    );
    soup.activate();
  } catch (error) {
    soup.remove();
    throw error;
  }
  return soup;
}

/** What training changed, and the statistics that it did not. */
function completeState(adapter: Adapter): Map<string, Tensor> {
  const state = adapterState(adapter);
  for (const overlay of adapter.overlays) {
    if (!overlay.trains) state.set(`buffers.${overlay.name}`, adapter.valueOf(overlay));
  }
  return state;
}
