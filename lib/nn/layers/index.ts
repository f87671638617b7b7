export {
  activationLayer,
  ACTIVATIONS,
  type ActivationName,
  GELU,
  QuickGELU,
  ReLU,
  ReLU6,
  Sigmoid,
  SiLU,
  Tanh,
} from './activation.js';
export { Conv2d, type Conv2dOptions } from './conv.js';
export { ConvTranspose2d, type ConvTranspose2dOptions } from './conv_transpose.js';
export { DepthwiseConv3d, type Size3 } from './conv3d.js';
export { Dropout, Dropout2d, DropPath } from './dropout.js';
export { Embedding, Linear } from './linear.js';
export {
  BatchNorm1d,
  BatchNorm2d,
  GroupNorm,
  LayerNorm,
  LayerNorm2d,
  RMSNorm,
  type BatchNormOptions,
  type NormOptions,
} from './norm.js';
export { AdaptiveAvgPool2d, AvgPool2d, MaxPool2d, type PoolOptions } from './pool.js';
export {
  codebook,
  QUANTIZED_BITS,
  quantize,
  QuantizedLinear,
  type Codebook,
  type QuantizedBits,
  type QuantizedLinearOptions,
  type QuantizedMatrix,
} from './quantized.js';
export { Flatten, Identity, LayerScale } from './shape.js';
