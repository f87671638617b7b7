/** Forward and backward of the deformable convolution alone. */
import { dcnv3, manualSeed, rand, randn, scope, setNumThreads } from '../../../dist/torchgraft.js';
import { timed } from '../measure.mjs';

/**
 * @param {{ threads: number, batch: number, size: number, channels: number, groups: number, warmup: number,
 *   steps: number }} options
 */
export default function measure({ threads, batch, size, channels, groups, ...repeats }) {
  setNumThreads(threads);
  manualSeed(0);
  const map = [batch, size, size];
  const x = randn([...map, channels], { requiresGrad: true });
  const offset = randn([...map, groups * 18], { requiresGrad: true });
  const mask = rand([...map, groups * 9], { requiresGrad: true });
  const upstream = randn([...map, channels]);
  const leaves = [x, offset, mask];
  const step = () =>
    scope(() => {
      for (const leaf of leaves) leaf.grad = null;
      dcnv3(x, offset, mask, { kernel: 3, padding: 1, groups }).backward(upstream);
    });
  return timed(step, repeats);
}
