import { applyFunction, aten, keep, noGrad, scope, type Tensor, tensor, zeros } from '../../tensor/index.js';
import { truncNormal_ } from '../init.js';
import { Linear } from './linear.js';

/** Bits per weight that a quantized layer may have. */
export const QUANTIZED_BITS = [1, 2, 4, 8] as const;

/** Bits per number that a quantized layer can have. */
export type QuantizedBits = (typeof QUANTIZED_BITS)[number];

/** The levels of a quantizer of the standard normal distribution, and the borders between their intervals. */
export interface Codebook {
  /** 2^bits values in rising order. */
  readonly values: Float32Array;
  /** One less; an element equal to a border belongs to the interval below. */
  readonly thresholds: Float64Array;
}

/** So many rounds, no more and no fewer: with 8 bits they have not converged, and files depend on the very numbers. */
const ROUNDS = 500;

const codebooks = new Map<number, Codebook>();

/**
 * Levels v and borders t by alternation: t_k lies halfway between v_k and v_{k+1}, and v_k is the median of its interval
 * under the standard normal distribution. Jie, Wang & Deng, ICCV 2023, arXiv 2307.16867, section 3.3.
 *
 * @throws RangeError for other numbers of bits than 1, 2, 4, 8
 */
export function codebook(bits: number): Codebook {
  const known = codebooks.get(bits);
  if (known) return known;
  if (!QUANTIZED_BITS.some((allowed) => allowed === bits)) {
    throw new RangeError(`a quantized layer has 1, 2, 4 or 8 bits per weight, not ${bits}`);
  }
  const book = noGrad(() =>
    scope((): Codebook => {
      const ends = { dtype: 'float64', device: 'cpu' } as const;
      const [zero, one] = [tensor([0], ends), tensor([1], ends)];
      const levels = 2 ** bits;
      let values = zeros([levels], ends);
      let thresholds = zeros([levels - 1], ends);
      for (let round = 0; round < ROUNDS; round++) {
        thresholds = values
          .narrow(0, 0, levels - 1)
          .add(values.narrow(0, 1, levels - 1))
          .mul(0.5);
        const below = aten.cat([zero, aten.specialNdtr(thresholds), one]);
        values = aten.specialNdtri(
          below
            .narrow(0, 0, levels)
            .add(below.narrow(0, 1, levels))
            .mul(0.5),
        );
      }
      return {
        values: Float32Array.from(values.data() as Float64Array),
        thresholds: Float64Array.from(thresholds.data() as Float64Array),
      };
    }),
  );
  codebooks.set(bits, book);
  return book;
}

const tables = new Map<string, { values: Tensor; thresholds: Tensor }>();

/** The codebook where `like` is, in its dtype. */
function tablesFor(like: Tensor, bits: QuantizedBits): { values: Tensor; thresholds: Tensor } {
  const { dtype, device } = like;
  const key = `${bits}/${dtype}/${device}`;
  let table = tables.get(key);
  if (!table) {
    const { values, thresholds } = codebook(bits);
    const make = (numbers: Float32Array | Float64Array): Tensor => keep(tensor(Array.from(numbers), { dtype, device }));
    tables.set(key, (table = { values: make(values), thresholds: make(thresholds) }));
  }
  return table;
}

/** A matrix as codes of its standardized elements, with the mean and the (unbiased) standard deviation over all of it. */
export interface QuantizedMatrix {
  /** int64, in the shape of the matrix. */
  readonly codes: Tensor;
  readonly mean: Tensor;
  readonly deviation: Tensor;
}

/** Added to the deviation that the matrix is divided by, but not to the one that it is multiplied by. */
const EPSILON = 1e-5;

/** The codes of a matrix, as they are stored. Outside of autograd. */
export function quantize(weight: Tensor, bits: QuantizedBits): QuantizedMatrix {
  return noGrad(() => {
    const [mean, deviation] = [weight.mean(), weight.std()];
    const standard = weight.sub(mean).div(deviation.add(EPSILON));
    return { codes: aten.bucketize(standard, tablesFor(weight, bits).thresholds), mean, deviation };
  });
}

/** Q: the value of the interval that an element lies in. Its gradient passes straight through. */
function round(standard: Tensor, bits: QuantizedBits): Tensor {
  const { values, thresholds } = tablesFor(standard, bits);
  const result = applyFunction(
    {
      name: 'Quantize',
      forward: (x) => aten.take(values, aten.bucketize(x, thresholds)),
      backward: ([grad]) => grad ?? null,
    },
    [standard],
  );
  return result as Tensor;
}

/** Options of `QuantizedLinear`. */
export interface QuantizedLinearOptions {
  readonly bits: QuantizedBits;
  /** `default`: as a linear layer; `small`: normal with deviation 0.001, cut at ±0.002. Default `default`. */
  readonly start?: 'default' | 'small';
}

/**
 * A linear layer without bias whose weight has 2^bits values: with μ and σ the mean and standard deviation of the latent
 * `weight` [out, in], it computes with Q((W - μ) / (σ + 1e-5)) σ + μ. The gradient passes straight through Q and flows
 * through μ and σ. Jie, Wang & Deng, ICCV 2023, arXiv 2307.16867, equations 6 to 8.
 */
export class QuantizedLinear extends Linear {
  readonly bits: QuantizedBits;

  constructor(inFeatures: number, outFeatures: number, { bits, start = 'default' }: QuantizedLinearOptions) {
    super(inFeatures, outFeatures, { bias: false });
    codebook(bits);
    if (inFeatures * outFeatures < 2) {
      throw new RangeError('a quantized layer of one weight has no standard deviation; take a larger one');
    }
    this.bits = bits;
    if (start === 'small') truncNormal_(this.weight, { std: 0.001, a: -0.002, b: 0.002 });
  }

  override effectiveWeight(): Tensor {
    const { weight } = this;
    const [mean, deviation] = [weight.mean(), weight.std()];
    const standard = weight.sub(mean).div(deviation.add(EPSILON));
    return round(standard, this.bits).mul(deviation).add(mean);
  }

  override extraRepr(): string {
    return `${super.extraRepr()}, bits=${this.bits}`;
  }
}
