/** What the residual networks share: the way of an image through stem and stages. */
import { Context, type Module, runChain } from '../nn/index.js';
import type { Tensor } from '../tensor/index.js';
import { Backbone } from './backbone.js';
import { outputsOf } from './blocks.js';

/** A backbone whose stages follow a stem; their outputs are the feature levels. */
export abstract class StagedBackbone extends Backbone {
  /** The image batch. */
  abstract readonly input: Module;
  /** Image to the map that enters the first stage. */
  abstract readonly stem: Module;
  abstract readonly stages: Iterable<Module>;
  /** The map before the pool. */
  abstract readonly features: Module;

  forwardFeatures(x: Tensor, ctx: Context = new Context()): Tensor {
    return runChain([this.input, this.stem, ...this.stages, this.features], x, ctx);
  }

  forwardIntermediates(x: Tensor, ctx: Context = new Context()): Tensor[] {
    return outputsOf(this.stages, this.stem.run(this.input.run(x, ctx), ctx), ctx);
  }
}
