/** The figures of a plain backbone's rows in counts.json: parameters and multiply-accumulates. */
import type { Backbone } from '../../../lib/models/index.js';
import { countMacs, empty, noGrad, scope, type Tensor } from '../../../lib/tensor/index.js';
import type { CountsRow } from '../case.js';
import { countParameters } from './timm_backbones.js';

/** Multiply-accumulates of one image of the row's size (224 where it says none); `model` must be on the meta device. */
function macsOfRow(model: Backbone, row: CountsRow, run: (x: Tensor) => unknown): number {
  const stated = row['image_size'];
  const [channels] = model.config.inputSize;
  const side = typeof stated === 'number' ? stated : 224;
  const x = empty([1, channels, side, side], { device: 'meta' });
  model.eval();
  return noGrad(() => scope(() => countMacs(() => run(x)).macs));
}

/** Parameters and multiply-accumulates. `run` is the pass to count, by default images to logits. */
export function countBackbone(
  model: Backbone,
  row: CountsRow,
  run: (x: Tensor) => unknown = (x) => model.run(x),
): Record<string, number> {
  return { ...countParameters(model), macs: macsOfRow(model, row, run) };
}
