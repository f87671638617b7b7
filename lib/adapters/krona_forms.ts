/** One Kronecker product as a layer: A ⊗ B is never built where a row meets it, only where it is merged. */
import { Conv2d, init, kroneckerLinear, Linear, Module, Parameter } from '../nn/index.js';
import { aten, empty, full, type Tensor, zeros } from '../tensor/index.js';
import type { DeltaForm } from './core/index.js';

/** Rows and columns of a factor. */
export type FactorShape = readonly [rows: number, columns: number];

/** Divisors of n, rising. */
function divisors(n: number): number[] {
  return Array.from({ length: n }, (_, i) => i + 1).filter((d) => n % d === 0);
}

/**
 * Shapes of both factors for a layer: those that are given, checked, or a pair of the smallest size: A nearly square, B
 * its mirror image, as in (32, 24) and (24, 32) for 768 to 768.
 *
 * @throws RangeError when a1 b1 or a2 b2 is not the width; the message says what fits
 */
export function factorShapes(
  inFeatures: number,
  outFeatures: number,
  a: FactorShape | undefined,
  b: FactorShape | undefined,
): { readonly a: FactorShape; readonly b: FactorShape } {
  const rows = a?.[0] ?? (b ? inFeatures / b[0] : divisors(inFeatures).find((d) => d * d >= inFeatures)) ?? 1;
  const columns = a?.[1] ?? (b ? outFeatures / b[1] : divisors(outFeatures).findLast((d) => d * d <= outFeatures)) ?? 1;
  const other: FactorShape = b ?? [inFeatures / rows, outFeatures / columns];
  const fits = [rows, columns, ...other].every(Number.isInteger);
  if (!fits || rows * other[0] !== inFeatures || columns * other[1] !== outFeatures) {
    throw new RangeError(
      `factors of ${a?.join(' x ') ?? 'free shape'} and ${b?.join(' x ') ?? 'free shape'} do not make a ${inFeatures} x ${outFeatures} matrix; ` +
        `their rows must multiply to ${inFeatures} and their columns to ${outFeatures}, as ${divisors(inFeatures).find((d) => d * d >= inFeatures) ?? 1} rows of A do`,
    );
  }
  return { a: [rows, columns], b: other };
}

/** D = (A ⊗ B)ᵀ for a linear layer: `A` [a1, a2] Kaiming-uniform with slope √5, `B` [b1, b2] zero. */
export class KroneckerLinear extends Module implements DeltaForm {
  readonly A: Parameter;
  readonly B: Parameter;

  constructor(a: FactorShape, b: FactorShape) {
    super();
    this.A = new Parameter(init.kaimingUniform_(empty([...a]), { a: Math.sqrt(5) }));
    this.B = new Parameter(zeros([...b]));
  }

  forward(x: Tensor): Tensor {
    return kroneckerLinear(x, this.A, this.B);
  }

  applyWith(layer: Module, x: Tensor, scale: number): Tensor | null {
    if (!(layer instanceof Linear)) return null;
    return kroneckerLinear(x, this.A, this.B, { scale, weight: layer.weight, bias: layer.bias });
  }

  delta(): Tensor {
    return this.A.t().contiguous().kron(this.B.t().contiguous());
  }
}

/** What a bypass is beside its factors. */
export interface BypassOptions {
  readonly scale: number;
  /** Start of r; null for no r. */
  readonly residualScaleInit: number | null;
  /** Whether the features are maps [B, C, H, W]. */
  readonly isMap: boolean;
}

/** s x (A ⊗ B) + r x, with one learned number r `residual_scale`, or none. */
export class KroneckerBypass extends KroneckerLinear {
  readonly residual_scale: Parameter | null;
  readonly #scale: number;
  readonly #isMap: boolean;

  constructor(a: FactorShape, b: FactorShape, { scale, residualScaleInit, isMap }: BypassOptions) {
    super(a, b);
    this.residual_scale = residualScaleInit === null ? null : new Parameter(full([1], residualScaleInit));
    this.#scale = scale;
    this.#isMap = isMap;
  }

  override forward(x: Tensor): Tensor {
    return this.#isMap ? this.#compute(x.permute([0, 2, 3, 1])).permute([0, 3, 1, 2]) : this.#compute(x);
  }

  #compute(x: Tensor): Tensor {
    const y = kroneckerLinear(x, this.A, this.B, { scale: this.#scale });
    return this.residual_scale ? aten.addcmul(y, x, this.residual_scale) : y;
  }
}

/** Options of LoKr, see `lokr`. */
export interface LokrOptions {
  readonly rank: number;
  readonly decomposeBoth: boolean;
  readonly decomposeFactor: number;
  /** Convolutions with a kernel above 1x1 get a Tucker core `t2` [r, r, kh, kw]. */
  readonly effectiveConv: boolean;
}

/** A dimension as a product of two: see the page of LoKr's options. */
function splitDimension(n: number, factor: number): FactorShape {
  if (factor > 0 && n % factor === 0) return [factor, n / factor];
  const limit = factor > 0 ? Math.min(factor, Math.sqrt(n)) : Math.sqrt(n);
  const m = divisors(n).findLast((d) => d <= limit) ?? 1;
  return [m, n / m];
}

/** What a kernel adds to the shape of w2. */
type Kernel = readonly [] | readonly [number, number];

/**
 * D = w1 ⊗ w2, either of them perhaps a product of rank r: Kronecker factors as the package peft has them (LoKr). For a
 * linear layer w1 [out_l, in_m], w2 [out_k, in_n]; for a convolution w2 has the kernel as well. w1 (or its first factor)
 * starts at zero.
 */
abstract class Lokr extends Module implements DeltaForm {
  readonly w1: Parameter | null;
  readonly w1_a: Parameter | null;
  readonly w1_b: Parameter | null;
  readonly w2: Parameter | null;
  readonly w2_a: Parameter | null;
  readonly w2_b: Parameter | null;
  readonly t2: Parameter | null;
  readonly #w2Shape: readonly number[];

  constructor(inFeatures: number, outFeatures: number, kernel: Kernel, o: LokrOptions) {
    super();
    const { rank: r } = o;
    const [inM, inN] = splitDimension(inFeatures, o.decomposeFactor);
    const [outL, outK] = splitDimension(outFeatures, o.decomposeFactor);
    const kaiming = (...shape: number[]): Parameter =>
      new Parameter(init.kaimingUniform_(empty(shape), { a: Math.sqrt(5) }));
    const splitsFirst = o.decomposeBoth && r < Math.max(outL, inM) / 2;
    const splitsSecond = r < Math.max(outK, inN) / 2;
    const area = kernel.reduce((product: number, side) => product * side, 1);
    const isTucker = o.effectiveConv && splitsSecond && area > 1;
    this.w1 = splitsFirst ? null : new Parameter(zeros([outL, inM]));
    this.w1_a = splitsFirst ? new Parameter(zeros([outL, r])) : null;
    this.w1_b = splitsFirst ? kaiming(r, inM) : null;
    this.w2 = splitsSecond ? null : kaiming(outK, inN, ...kernel);
    this.t2 = isTucker ? kaiming(r, r, ...kernel) : null;
    this.w2_a = splitsSecond ? (isTucker ? kaiming(r, outK) : kaiming(outK, r)) : null;
    this.w2_b = splitsSecond ? (isTucker ? kaiming(r, inN) : kaiming(r, inN * area)) : null;
    this.#w2Shape = [outK, inN, ...kernel];
  }

  /** w1 [out_l, in_m]. */
  protected first(): Tensor {
    return this.w1 ?? (this.w1_a as Parameter).mm(this.w1_b as Parameter);
  }

  /** w2 [out_k, in_n, ...kernel]. */
  protected second(): Tensor {
    if (this.w2) return this.w2;
    const [a, b] = [this.w2_a as Parameter, this.w2_b as Parameter];
    if (!this.t2) return a.mm(b).view(this.#w2Shape);
    const [r = 1, , ...kernel] = this.t2.shape;
    const [outK = 1, inN = 1] = this.#w2Shape;
    // t2 [i, j, kernel]: first j becomes the input's channel, then i the output's.
    const inner = b.t().matmul(this.t2.view([r, r, -1]));
    return a
      .t()
      .mm(inner.reshape([r, -1]))
      .view([outK, inN, ...kernel]);
  }

  delta(): Tensor {
    const w2 = this.second();
    const w1 = this.first();
    return w1
      .view([...w1.shape, ...Array<number>(w2.ndim - 2).fill(1)])
      .contiguous()
      .kron(w2.contiguous());
  }
}

/** LoKr beside a linear layer. */
export class LokrLinear extends Lokr {
  constructor(inFeatures: number, outFeatures: number, options: LokrOptions) {
    super(inFeatures, outFeatures, [], options);
  }

  forward(x: Tensor): Tensor {
    return kroneckerLinear(x, this.first().t(), this.second().t());
  }

  /** The layer and the increment in one: x Wᵀ + b + s x D; null beside anything but a linear layer. */
  applyWith(layer: Module, x: Tensor, scale: number): Tensor | null {
    if (!(layer instanceof Linear)) return null;
    const [a, b] = [this.first().t(), this.second().t()];
    return kroneckerLinear(x, a, b, { scale, weight: layer.weight, bias: layer.bias });
  }
}

/** LoKr beside a convolution. */
export class LokrConv extends Lokr {
  readonly #layer: Pick<Conv2d, 'stride' | 'padding' | 'dilation' | 'groups'>;

  constructor(
    { inChannels, kernelSize, stride, padding, dilation, groups }: Conv2d,
    outChannels: number,
    options: LokrOptions,
  ) {
    super(inChannels / groups, outChannels, kernelSize, options);
    this.#layer = { stride, padding, dilation, groups };
  }

  forward(x: Tensor): Tensor {
    const { stride, padding, dilation, groups } = this.#layer;
    // Groups cut across the product's blocks; their weights are small, since each sees only its part of the input.
    if (groups > 1) return aten.conv2d(x, this.delta(), null, stride, padding, dilation, groups);
    const [w1, w2] = [this.first(), this.second()];
    const [outL = 1, inM = 1] = w1.shape;
    const [outK = 1, inN = 1] = w2.shape;
    const [batch = 0, , height = 0, width = 0] = x.shape;
    const pieces = x.reshape([batch * inM, inN, height, width]);
    const met = aten.conv2d(pieces, w2, null, stride, padding, dilation, 1);
    const [, , h = 0, w = 0] = met.shape;
    return w1.matmul(met.reshape([batch, inM, outK * h * w])).view([batch, outL * outK, h, w]);
  }
}

/** LoKr's form for a layer, or for a slice of `outFeatures` of its outputs. @throws RangeError where none fits */
export function lokrForm(module: Module, outFeatures: number, isSlice: boolean, options: LokrOptions): Lokr {
  if (module instanceof Linear) return new LokrLinear(module.inFeatures, outFeatures, options);
  if (module instanceof Conv2d && (!isSlice || module.groups === 1)) return new LokrConv(module, outFeatures, options);
  throw new RangeError(
    `needs a linear layer or a convolution (a slice: one without groups), and this is a ${module.constructor.name}`,
  );
}
