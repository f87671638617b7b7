/**
 * Initializers with PyTorch's formulas. Each fills a tensor in place, without a graph, and returns it. They draw from
 * the same generator in the same order as PyTorch, so the same seed gives the same numbers.
 */
import { aten, noGrad, scope, type Tensor } from '../tensor/index.js';

/** Nonlinearities that `calculateGain` knows. */
export type Nonlinearity = 'linear' | 'conv' | 'sigmoid' | 'tanh' | 'relu' | 'leaky_relu' | 'selu';

/** Which fan the variance preserves: `fan_in` in the forward pass, `fan_out` in the backward pass. */
export type FanMode = 'fan_in' | 'fan_out';

/** Uniform numbers in [a, b). Defaults 0, 1. */
export function uniform_<T extends Tensor>(tensor: T, a = 0, b = 1): T {
  noGrad(() => tensor.uniform_(a, b));
  return tensor;
}

/** Normal numbers. Defaults: mean 0, standard deviation 1. */
export function normal_<T extends Tensor>(tensor: T, mean = 0, std = 1): T {
  noGrad(() => tensor.normal_(mean, std));
  return tensor;
}

/** The same value everywhere. */
export function constant_<T extends Tensor>(tensor: T, value: number): T {
  noGrad(() => tensor.fill_(value));
  return tensor;
}

/** Ones. */
export function ones_<T extends Tensor>(tensor: T): T {
  return constant_(tensor, 1);
}

/** Zeros. */
export function zeros_<T extends Tensor>(tensor: T): T {
  return constant_(tensor, 0);
}

/** The identity matrix. @throws RangeError unless the tensor has 2 dimensions */
export function eye_<T extends Tensor>(tensor: T): T {
  if (tensor.ndim !== 2) throw new RangeError(`eye_: expected a matrix, got shape [${tensor.shape.join(', ')}]`);
  noGrad(() => tensor.zero_().fillDiagonal_(1));
  return tensor;
}

/**
 * A convolution weight that passes its input on (as far as there are channels): 1 at the center of the kernel of
 * channel i to channel i, per group. For 3 to 5 dimensions.
 */
export function dirac_<T extends Tensor>(tensor: T, groups = 1): T {
  const [out = 0, perGroup = 0, ...kernel] = tensor.shape;
  if (kernel.length < 1 || kernel.length > 3) {
    throw new RangeError(
      `dirac_: expected a convolution weight of 3 to 5 dimensions, got shape [${tensor.shape.join(', ')}]`,
    );
  }
  if (out % groups !== 0) throw new RangeError(`dirac_: ${out} output channels do not divide into ${groups} groups`);
  const outPerGroup = out / groups;
  const center = kernel.map((size) => Math.floor(size / 2));
  noGrad(() => {
    tensor.zero_();
    for (let group = 0; group < groups; group++) {
      for (let i = 0; i < Math.min(outPerGroup, perGroup); i++) {
        tensor.index(group * outPerGroup + i, i, ...center).fill_(1);
      }
    }
  });
  return tensor;
}

/** Options of `truncNormal_`. */
export interface TruncNormalOptions {
  /** Default 0. */
  mean?: number;
  /** Default 1. */
  std?: number;
  /** Absolute lower bound, not in units of std. Default -2. */
  a?: number;
  /** Absolute upper bound. Default 2. */
  b?: number;
  /** `inverse` (default): through the inverse distribution, as timm and PyTorch before 2.13; `rejection`: as PyTorch from 2.13 on. */
  sampler?: 'inverse' | 'rejection';
}

/** Normal numbers within [a, b]. The two samplers draw different numbers for the same seed from the same distribution. */
export function truncNormal_<T extends Tensor>(tensor: T, options: TruncNormalOptions = {}): T {
  const { mean = 0, std = 1, a = -2, b = 2, sampler = 'inverse' } = options;
  if (!(std > 0) || !(a < b))
    throw new RangeError(`truncNormal_: needs std > 0 and a < b, got std ${std}, a ${a}, b ${b}`);
  if (tensor.device === 'meta') return tensor;
  const cdf = (x: number): number => (1 + erf(x / Math.SQRT2)) / 2;
  const low = cdf((a - mean) / std);
  const high = cdf((b - mean) / std);
  noGrad(() =>
    scope(() => {
      if (sampler === 'inverse') {
        tensor.uniform_(2 * low - 1, 2 * high - 1);
        tensor.erfinv_();
        tensor.mul_(std * Math.SQRT2);
        tensor.add_(mean);
        tensor.clamp_(a, b);
      } else if (high - low > 0.3) {
        redrawOutside(tensor, mean, std, a, b);
      } else {
        redrawByDensity(tensor, mean, std, a, b);
      }
    }),
  );
  return tensor;
}

/** Draws from the normal until everything lies in [a, b]. */
function redrawOutside(tensor: Tensor, mean: number, std: number, a: number, b: number): void {
  // Bounds as the dtype holds them, so that the comparison agrees with the stored values.
  const held = (bound: number): number => Number(tensor.newFull([], bound, { device: 'cpu' }).item());
  const low = held(a);
  const high = held(b);
  let result: Tensor = tensor.normal_(mean, std);
  for (;;) {
    const outside = result.lt(low).logicalOr(result.gt(high));
    if (!outside.any().item()) break;
    result = aten.where(outside, aten.emptyLike(result).normal_(mean, std), result);
  }
  if (result !== tensor) tensor.copy_(result);
}

/** For bounds in the tail: uniform candidates, accepted with the density relative to its peak in [a, b]. */
function redrawByDensity(tensor: Tensor, mean: number, std: number, a: number, b: number): void {
  const mode = Math.max(a, Math.min(mean, b));
  const logPeak = -0.5 * ((mode - mean) / std) ** 2;
  const threshold = aten.emptyLike(tensor);
  const isRejected = (candidates: Tensor): Tensor => {
    candidates.sub_(mean).div_(std).pow_(2).mul_(-0.5).sub_(logPeak);
    return threshold.uniform_().log_().gt(candidates);
  };
  tensor.uniform_(a, b);
  const candidates = tensor.clone();
  let pending = isRejected(candidates);
  let result: Tensor = tensor;
  while (pending.any().item()) {
    candidates.uniform_(a, b);
    result = aten.where(pending, candidates, result);
    pending = aten.where(pending, isRejected(candidates), pending);
  }
  if (result !== tensor) tensor.copy_(result);
}

/** Number of inputs and outputs that one weight connects: channels times kernel positions; per group for grouped convolutions. */
export function fans(tensor: Tensor): { fanIn: number; fanOut: number } {
  const [out, inner, ...kernel] = tensor.shape;
  if (out === undefined || inner === undefined) {
    throw new RangeError(`fan in and fan out need at least 2 dimensions, got shape [${tensor.shape.join(', ')}]`);
  }
  const field = kernel.reduce((product, size) => product * size, 1);
  return { fanIn: inner * field, fanOut: out * field };
}

/** The recommended gain of a nonlinearity. @param slope negative slope of `leaky_relu`, default 0.01 */
export function calculateGain(nonlinearity: Nonlinearity, slope = 0.01): number {
  switch (nonlinearity) {
    case 'linear':
    case 'conv':
    case 'sigmoid':
      return 1;
    case 'tanh':
      return 5 / 3;
    case 'relu':
      return Math.SQRT2;
    case 'leaky_relu':
      return Math.sqrt(2 / (1 + slope ** 2));
    case 'selu':
      return 3 / 4;
    default:
      throw new RangeError(`calculateGain: unknown nonlinearity '${String(nonlinearity)}'`);
  }
}

/** Uniform in ±gain sqrt(6 / (fanIn + fanOut)). Glorot & Bengio 2010. */
export function xavierUniform_<T extends Tensor>(tensor: T, gain = 1): T {
  const { fanIn, fanOut } = fans(tensor);
  const bound = Math.sqrt(3) * (gain * Math.sqrt(2 / (fanIn + fanOut)));
  return uniform_(tensor, -bound, bound);
}

/** Normal with standard deviation gain sqrt(2 / (fanIn + fanOut)). Glorot & Bengio 2010. */
export function xavierNormal_<T extends Tensor>(tensor: T, gain = 1): T {
  const { fanIn, fanOut } = fans(tensor);
  return normal_(tensor, 0, gain * Math.sqrt(2 / (fanIn + fanOut)));
}

/** Options of the Kaiming initializers. */
export interface KaimingOptions {
  /** Negative slope, used with `leaky_relu` only. Default 0. */
  a?: number;
  /** Default `fan_in`. */
  mode?: FanMode;
  /** Default `leaky_relu`. */
  nonlinearity?: Nonlinearity;
}

function kaimingStd(tensor: Tensor, { a = 0, mode = 'fan_in', nonlinearity = 'leaky_relu' }: KaimingOptions): number {
  const { fanIn, fanOut } = fans(tensor);
  return calculateGain(nonlinearity, a) / Math.sqrt(mode === 'fan_in' ? fanIn : fanOut);
}

/** Uniform in ±gain sqrt(3 / fan). He et al. 2015. An empty tensor is returned as it is. */
export function kaimingUniform_<T extends Tensor>(tensor: T, options: KaimingOptions = {}): T {
  if (tensor.shape.includes(0)) return tensor;
  const bound = Math.sqrt(3) * kaimingStd(tensor, options);
  return uniform_(tensor, -bound, bound);
}

/** Normal with standard deviation gain / sqrt(fan). He et al. 2015. An empty tensor is returned as it is. */
export function kaimingNormal_<T extends Tensor>(tensor: T, options: KaimingOptions = {}): T {
  if (tensor.shape.includes(0)) return tensor;
  return normal_(tensor, 0, kaimingStd(tensor, options));
}

/** A (semi-)orthogonal matrix of shape [dim 0, the rest], times gain. Saxe et al. 2014. */
export function orthogonal_<T extends Tensor>(tensor: T, gain = 1): T {
  if (tensor.ndim < 2)
    throw new RangeError(`orthogonal_: expected at least 2 dimensions, got shape [${tensor.shape.join(', ')}]`);
  if (tensor.numel() === 0) return tensor;
  const rows = tensor.shape[0] ?? 1;
  const columns = tensor.numel() / rows;
  noGrad(() => {
    let flat = tensor.newEmpty([rows, columns]).normal_(0, 1);
    if (rows < columns) flat = flat.t_();
    const [q, r] = aten.linalgQr(flat);
    // Signs of the diagonal make the distribution uniform over orthogonal matrices.
    q.mul_(r.diag().sign());
    if (rows < columns) q.t_();
    tensor.viewAs(q).copy_(q);
    tensor.mul_(gain);
  });
  return tensor;
}

/** Error function in double precision: series for small |x|, continued fraction of erfc beyond. */
function erf(x: number): number {
  const z = Math.abs(x);
  if (z > 6) return Math.sign(x);
  if (z < 2.5) {
    let term = z;
    let sum = z;
    for (let n = 1; Math.abs(term) > 1e-17 * Math.abs(sum); n++) {
      term *= (-z * z) / n;
      sum += term / (2 * n + 1);
      if (n > 200) break;
    }
    return (Math.sign(x) * 2 * sum) / Math.sqrt(Math.PI);
  }
  let fraction = 0;
  for (let k = 60; k >= 1; k--) fraction = k / 2 / (z + fraction);
  return Math.sign(x) * (1 - Math.exp(-z * z) / ((z + fraction) * Math.sqrt(Math.PI)));
}
