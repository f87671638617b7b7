/** The smallest model that an adapter can be set into: one bare layer, `layer`, with the role `layer`. */
import { Host } from '../../../lib/models/index.js';
import { type Context, type Module, site } from '../../../lib/nn/index.js';
import type { Tensor } from '../../../lib/tensor/index.js';

class LayerHost extends Host {
  readonly name = 'layer';
  readonly classifier = null;

  constructor(readonly layer: Module) {
    super();
    site(layer, { role: 'layer' });
  }

  forward(x: Tensor, ctx: Context): Tensor {
    return this.layer.run(x, ctx);
  }

  resetClassifier(): void {
    throw new RangeError('a bare layer has no classifier');
  }
}

export function layerHost(layer: Module): Host {
  return new LayerHost(layer);
}
