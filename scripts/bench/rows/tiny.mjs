/** Operators on a handful of numbers: what a call costs. */
import { aten, manualSeed, randn, scope, setNumThreads } from '../../../dist/torchgraft.js';
import { timed } from '../measure.mjs';

/** @type {Record<string, () => () => unknown>} */
const operations = {
  tiny_add: () => {
    const a = randn([2, 2]);
    const b = randn([2, 2]);
    return () => a.add(b);
  },
  tiny_add_grad: () => {
    const a = randn([2, 2], { requiresGrad: true });
    const b = randn([2, 2]);
    return () => a.add(b);
  },
  tiny_view: () => {
    const a = randn([2, 2]);
    return () => a.view([4]);
  },
  tiny_conv: () => {
    const x = randn([1, 4, 4, 4]);
    const w = randn([4, 4, 1, 1]);
    const b = randn([4]);
    return () => aten.conv2d(x, w, b, [1, 1], [0, 0], [1, 1], 1);
  },
};

/** @param {{ row: string, threads: number, count: number, warmup: number, steps: number }} options */
export default function measure({ row, threads, count, ...repeats }) {
  setNumThreads(threads);
  manualSeed(0);
  const operation = operations[row]();
  // A scope per hundred, as a step has: Python frees each result at once, and freeing is part of the cost.
  const hundred = () => {
    for (let i = 0; i < 100; i++) operation();
  };
  const { seconds, cpu } = timed(() => {
    for (let i = 0; i < count / 100; i++) scope(hundred);
  }, repeats);
  return { seconds: seconds / count, cpu: cpu / count };
}
