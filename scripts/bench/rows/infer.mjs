/** Forward passes of a network that learns nothing. */
import { createModel, inferenceMode, manualSeed, randn, scope, setNumThreads } from '../../../dist/torchgraft.js';
import { timed } from '../measure.mjs';

/** @type {Record<string, string>} */
const models = { infer_resnet50: 'resnet50', infer_vit_small: 'vit_small_patch16_224' };

/** @param {{ row: string, threads: number, batch: number, layout: string, warmup: number, steps: number }} options */
export default function measure({ row, threads, batch, layout, ...repeats }) {
  setNumThreads(threads);
  manualSeed(0);
  const memoryFormat = layout === 'channels_last' ? 'channels_last' : 'contiguous_format';
  const model = createModel(models[row]).eval().freeze().to({ memoryFormat });
  const x = randn([batch, 3, 224, 224]).to({ memoryFormat });
  return timed(() => inferenceMode(() => scope(() => void model.run(x))), repeats);
}
