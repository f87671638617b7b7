/** What RPN and RetinaNet share: predictions at every cell of every level, one for each anchor. */
import { type Context, Conv2d, init, Module, ReLU, Sequential } from '../nn/index.js';
import type { Tensor } from '../tensor/index.js';
import { convAndNorm, type ConvNormChoice } from './pyramid.js';

/** 3x3 convolutions that keep the width, each with its norm and a ReLU: members `{i}.0` and, with a norm, `{i}.1`. */
export function tower(channels: number, depth: number, norm: ConvNormChoice = 'none'): Sequential {
  const layers = Array.from({ length: depth }, () =>
    withReLU(convAndNorm((bias) => new Conv2d(channels, channels, { kernelSize: 3, padding: 1, bias }), norm)),
  );
  return new Sequential(...layers);
}

/** The layers with a ReLU at their end. */
export function withReLU(layers: Sequential): Sequential {
  return layers.push(new ReLU());
}

/** Every convolution below starts normal (0.01) with bias 0. */
export function initNormal(module: Module): void {
  module.apply((part) => {
    if (!(part instanceof Conv2d)) return;
    init.normal_(part.weight, 0, 0.01);
    if (part.bias) init.zeros_(part.bias);
  });
}

/** Maps [B, A C, H, W], anchor by anchor, to [B, H W A, C]. */
export function perAnchor(map: Tensor, perCell: number): Tensor {
  const [batch = 0, channels = 0, rows = 0, columns = 0] = map.shape;
  const size = channels / perCell;
  return map
    .view([batch, perCell, size, rows, columns])
    .permute([0, 3, 4, 1, 2])
    .reshape([batch, rows * columns * perCell, size]);
}

/** A module of several outputs: `forward` refuses. */
export abstract class ManyOutputs extends Module {
  /** @throws TypeError always: it has several outputs */
  forward(_x: Tensor, _ctx: Context): Tensor {
    throw new TypeError(`${this.constructor.name} has several outputs; call its own method`);
  }
}
