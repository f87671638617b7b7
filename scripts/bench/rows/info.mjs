/** Versions, and the matrix-product peak as our side reaches it. Not a row: the runner asks first. */
import {
  buildInfo,
  aten,
  empty,
  getNumThreads,
  manualSeed,
  noGrad,
  randn,
  setNumThreads,
} from '../../../dist/torchgraft.js';
import { timed } from '../measure.mjs';

/** @param {{ threads: number }} options */
export default function measure({ threads }) {
  setNumThreads(threads);
  manualSeed(0);
  const n = 2048;
  const a = randn([n, n]);
  const b = randn([n, n]);
  const out = empty([n, n]);
  const { seconds } = noGrad(() => timed(() => aten.mm(a, b, { out }), { warmup: 3, steps: 9 }));
  return { ...buildInfo(), threads: getNumThreads(), flopsPerSecond: (2 * n ** 3) / seconds };
}
