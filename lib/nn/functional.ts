/** Layers' formulas as functions, for code that has no module. Thin: each is one operator of LibTorch, or nearly. */
import { aten, type Tensor } from '../tensor/index.js';
import { pair, type Size2 } from './site.js';

export { bceWithLogits, crossEntropy, klDiv, mseLoss, pixelCrossEntropy } from './losses.js';

/** max(x, 0). */
export function relu(x: Tensor): Tensor {
  return aten.relu(x);
}

/** x Φ(x). @param approximate `none` (default) or `tanh` */
export function gelu(x: Tensor, approximate: 'none' | 'tanh' = 'none'): Tensor {
  return aten.gelu(x, { approximate });
}

/** x σ(x). */
export function silu(x: Tensor): Tensor {
  return aten.silu(x);
}

/** 1 / (1 + exp(-x)). */
export function sigmoid(x: Tensor): Tensor {
  return aten.sigmoid(x);
}

/** exp(x) / Σ exp(x) along a dimension. Default: the last. */
export function softmax(x: Tensor, dim = -1): Tensor {
  return aten.softmax(x, dim);
}

/** log softmax(x) along a dimension. Default: the last. */
export function logSoftmax(x: Tensor, dim = -1): Tensor {
  return aten.logSoftmax(x, dim);
}

/** x Wᵀ + b: [..., in] to [..., out] with `weight` [out, in]. */
export function linear(x: Tensor, weight: Tensor, bias: Tensor | null = null): Tensor {
  return aten.linear(x, weight, bias);
}

/** Geometry of `conv2d`. */
export interface ConvGeometry {
  /** Default 1. */
  stride?: Size2;
  /** Default 0. */
  padding?: Size2;
  /** Default 1. */
  dilation?: Size2;
  /** Default 1. */
  groups?: number;
}

/** Convolution of [B, in, H, W] with `weight` [out, in / groups, kh, kw]. */
export function conv2d(x: Tensor, weight: Tensor, bias: Tensor | null = null, geometry: ConvGeometry = {}): Tensor {
  const { stride = 1, padding = 0, dilation = 1, groups = 1 } = geometry;
  return aten.conv2d(x, weight, bias, pair(stride), pair(padding), pair(dilation), groups);
}

/** Normalization over the last dimensions `shape`. @param eps default 1e-5 */
export function layerNorm(
  x: Tensor,
  shape: readonly number[],
  weight: Tensor | null = null,
  bias: Tensor | null = null,
  eps = 1e-5,
): Tensor {
  return aten.layerNorm(x, shape, weight, bias, eps);
}

/** Normalization of `groups` groups of channels of [B, C, ...]. @param eps default 1e-5 */
export function groupNorm(
  x: Tensor,
  groups: number,
  weight: Tensor | null = null,
  bias: Tensor | null = null,
  eps = 1e-5,
): Tensor {
  return aten.groupNorm(x, groups, weight, bias, eps);
}

/** Dropout with probability p. @param training false makes it the identity; default true */
export function dropout(x: Tensor, p = 0.5, training = true): Tensor {
  return training && p > 0 ? aten.dropout(x, p, true) : x;
}

/** x / max(‖x‖_p, eps) along a dimension. Defaults: p 2, dim 1, eps 1e-12. */
export function normalize(
  x: Tensor,
  { p = 2, dim = 1, eps = 1e-12 }: { p?: number; dim?: number; eps?: number } = {},
): Tensor {
  return aten.div(x, aten.norm(x, p, [dim], true).clampMin(eps).expandAs(x));
}

/** Options of `scaledDotProductAttention`. */
export interface AttentionOptions {
  /** Bool (true: may be seen) or added to the scores; broadcast to [..., L, S]. */
  mask?: Tensor | null;
  /** Probability with which attention weights are dropped; give 0 in evaluation. Default 0. */
  dropout?: number;
  /** Each position sees only itself and earlier ones. Default false. */
  causal?: boolean;
  /** Default 1 / sqrt(E). */
  scale?: number | null;
  /**
   * Whether an added mask may hide all keys of a query. The fused kernels keep log Σ exp of the scores for their backward
   * pass; over n hidden keys, log n is lost beside the lowest number, and all weights come back as 1 instead of 1 / n.
   * Default false.
   */
  mayHideAll?: boolean;
}

/** Scores for which single operators take no longer than the fused kernel. */
const FEW_SCORES = 2 ** 15;

/**
 * softmax(Q Kᵀ · scale + mask) V for `query` [..., L, E], `key` [..., S, E], `value` [..., S, Ev]; gives [..., L, Ev]. By
 * LibTorch's fused kernels, whose exponentials have 20 bits on the CPU; few scores are computed in single operators there,
 * to the last digit.
 */
export function scaledDotProductAttention(
  query: Tensor,
  key: Tensor,
  value: Tensor,
  options: AttentionOptions = {},
): Tensor {
  const { mask = null, dropout: p = 0, causal = false, scale = null, mayHideAll = false } = options;
  if (!causal && mask?.dtype !== 'bool' && (mayHideAll || areFew(query, key)))
    return attentionInSteps(query, key, value, mask, p, scale ?? (query.shape.at(-1) ?? 1) ** -0.5);
  return aten.scaledDotProductAttention(query, key, value, mask, p, causal, { scale });
}

function areFew(query: Tensor, key: Tensor): boolean {
  const scores = (query.numel() / (query.shape.at(-1) ?? 1)) * (key.shape.at(-2) ?? 1);
  return query.dtype === 'float32' && query.device === 'cpu' && scores <= FEW_SCORES;
}

function attentionInSteps(
  query: Tensor,
  key: Tensor,
  value: Tensor,
  mask: Tensor | null,
  p: number,
  scale: number,
): Tensor {
  const products = (scale === 1 ? query : query.mul(scale)).matmul(key.transpose(-2, -1));
  return dropout(softmax(mask ? products.add(mask) : products), p).matmul(value);
}

/** Average of [B, C, H, W] over equal cells. */
export function adaptiveAvgPool2d(x: Tensor, outputSize: Size2): Tensor {
  return aten.adaptiveAvgPool2d(x, pair(outputSize));
}

/** Options of `interpolate`. */
export interface InterpolateOptions {
  size: Size2;
  /** Default `bilinear`. */
  mode?: 'nearest' | 'bilinear' | 'bicubic';
  /** Whether corner pixels keep their positions (not for `nearest`). Default false. */
  alignCorners?: boolean;
  /** Low-pass filter when shrinking, as Pillow does (not for `nearest`). Default false. */
  antialias?: boolean;
}

/** Resamples maps [B, C, H, W] to [B, C, ...size]. */
export function interpolate(x: Tensor, options: InterpolateOptions): Tensor {
  const { mode = 'bilinear', alignCorners = false, antialias = false } = options;
  const size = pair(options.size);
  switch (mode) {
    case 'nearest':
      if (antialias || alignCorners)
        throw new TypeError("interpolate: 'nearest' takes neither antialias nor alignCorners");
      return aten.upsampleNearest2d(x, size);
    case 'bilinear':
      return antialias
        ? aten._upsampleBilinear2dAa(x, size, alignCorners)
        : aten.upsampleBilinear2d(x, size, alignCorners);
    case 'bicubic':
      return antialias
        ? aten._upsampleBicubic2dAa(x, size, alignCorners)
        : aten.upsampleBicubic2d(x, size, alignCorners);
    default:
      throw new TypeError(`interpolate: mode must be 'nearest', 'bilinear' or 'bicubic', got '${String(mode)}'`);
  }
}
