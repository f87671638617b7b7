/**
 * Random projections that need no matrix: Fastfood. Le, Sarlós & Smola, ICML 2013; as the subspaces in which networks are
 * trained to measure their intrinsic dimension: Li et al., ICLR 2018, arXiv 1804.08838; Aghajanyan et al., ACL 2021,
 * arXiv 2012.13255.
 */
import { aten, defaultDType, fromTypedArray, randint, randn, randperm, type Tensor } from '../tensor/index.js';
import { Module } from './module.js';
import { Buffer } from './parameter.js';

/** Most bits that one matrix product transforms at a time. */
const BITS = 6;

/** The smallest power of two that is at least `n`. */
export function powerOfTwo(n: number): number {
  return 2 ** Math.ceil(Math.log2(Math.max(1, n)));
}

/** The Walsh-Hadamard matrix [size, size] in natural order: the sign of element (i, j) is the parity of i & j. */
function hadamard(size: number, like: Tensor): Tensor {
  const signs = new Float32Array(size * size);
  for (let i = 0; i < size; i++) {
    for (let j = 0; j < size; j++) {
      let parity = 0;
      for (let bits = i & j; bits > 0; bits >>= 1) parity ^= bits & 1;
      signs[i * size + j] = parity === 0 ? 1 : -1;
    }
  }
  return fromTypedArray(signs, [size, size]).to({ dtype: like.dtype, device: like.device });
}

/**
 * Unnormalized Walsh-Hadamard transform along the last dimension, in natural order (for 4: rows ++++, +-+-, ++--, +--+).
 * The matrix is a Kronecker product of small ones, so groups of index bits are transformed one after the other: L log L
 * operations, as products of matrices.
 *
 * @throws RangeError unless the length is a power of two
 */
export function walshHadamard(x: Tensor): Tensor {
  const length = x.shape.at(-1) ?? 0;
  const bits = Math.log2(length);
  if (!Number.isInteger(bits)) {
    throw new RangeError(`walshHadamard: a length of ${length} is no power of two; pad it to ${powerOfTwo(length)}`);
  }
  if (bits === 0) return x;
  const groups = Math.ceil(bits / BITS);
  let y = x.reshape([-1, length]);
  // Bits that lie behind those that are being transformed.
  let behind = bits;
  for (let group = 0; group < groups; group++) {
    const width = Math.floor((bits + group) / groups);
    behind -= width;
    const [size, stride] = [2 ** width, 2 ** behind];
    const matrix = hadamard(size, x);
    if (stride === 1) {
      y = y.reshape([-1, size]).mm(matrix);
    } else {
      const pieces = y.reshape([-1, size, stride]);
      y = aten.bmm(matrix.expand([pieces.shape[0] ?? 0, size, size]), pieces);
    }
  }
  return y.reshape(x.shape);
}

/**
 * A fixed random linear map P from d to D numbers that about keeps lengths: with L the power of two at or above D,
 * P θ = (Had (G ⊙ (Had (S ⊙ pad_L θ))[Π]))[0 ... D] / sqrt(D ΣG²), S random signs, Π a random permutation, G standard
 * normal, Had the unnormalized Walsh-Hadamard transform. Buffers `signs`, `permutation` (int64), `gaussians`, all [L].
 */
export class Fastfood extends Module {
  readonly signs: Buffer;
  readonly permutation: Buffer;
  readonly gaussians: Buffer;

  /** @throws RangeError unless 1 <= dimension <= size */
  constructor(
    readonly dimension: number,
    readonly size: number,
  ) {
    super();
    if (!(Number.isInteger(dimension) && dimension >= 1 && dimension <= size)) {
      throw new RangeError(`a subspace of ${size} numbers has a dimension of 1 to ${size}, not ${dimension}`);
    }
    const length = powerOfTwo(size);
    this.signs = new Buffer(randint(0, 2, [length]).mul(2).sub(1).to(defaultDType()));
    this.permutation = new Buffer(randperm(length, { dtype: 'int64' }));
    this.gaussians = new Buffer(randn([length]));
  }

  /** θ [d] to P θ [D]. */
  forward(theta: Tensor): Tensor {
    const { dimension: d, size, signs, permutation, gaussians } = this;
    if (theta.ndim !== 1 || theta.shape[0] !== d)
      throw new RangeError(`expected ${d} numbers, got shape [${theta.shape.join(', ')}]`);
    // A transform of a vector that is zero from m on repeats the one of its first m numbers.
    const m = powerOfTwo(d);
    const scale = gaussians.square().sum().mul(size).rsqrt();
    const first = aten.constantPadNd(theta.mul(signs.narrow(0, 0, d)).mul(scale), [0, m - d]);
    const places = m < powerOfTwo(size) ? permutation.bitwiseAnd(m - 1) : permutation;
    const mixed = walshHadamard(first).indexSelect(0, places).mul(gaussians);
    return walshHadamard(mixed).narrow(0, 0, size);
  }
}
