/**
 * Sums of Kronecker products, H = Σ_i A_i ⊗ (L_i R_i), as layers: parameterized hypercomplex multiplication (Zhang et al.,
 * ICLR 2021, arXiv 2102.08597) with factors of low rank (Karimi Mahabadi et al., Compacter, NeurIPS 2021, arXiv
 * 2106.04647, equations 4 to 6). The n small matrices A are a rule that many layers may share.
 */
import { Buffer, init, Parameter } from '../nn/index.js';
import { aten, empty, type Tensor } from '../tensor/index.js';
import { SharedPart } from './core/index.js';

/** What a rule is: a free tensor, or A_i = left_i right_i of rank 1. */
export type RuleKind = 'full' | 'factored';

/** What the rules of a Kronecker sum can be told. */
export interface KroneckerRuleOptions {
  readonly kind: RuleKind;
  /** Its numbers start uniformly within plus and minus this. */
  readonly range: number;
  /** False: the rule stays at its random start, as a buffer. Only for full rules. Default true. */
  readonly trained?: boolean;
}

/** The matrices A [n, n, n]: `full`, or `left` [n, n, 1] times `right` [n, 1, n]. */
export class KroneckerRule extends SharedPart {
  readonly full: Parameter | Buffer | null;
  readonly left: Parameter | null;
  readonly right: Parameter | null;

  constructor(
    readonly n: number,
    { kind, range, trained = true }: KroneckerRuleOptions,
  ) {
    super();
    const start = (...shape: number[]): Tensor => init.uniform_(empty(shape), -range, range);
    const whole = kind === 'full' ? start(n, n, n) : null;
    this.full = whole && (trained ? new Parameter(whole) : new Buffer(whole));
    this.left = whole ? null : new Parameter(start(n, n, 1));
    this.right = whole ? null : new Parameter(start(n, 1, n));
  }

  /** A [n, n, n]. */
  matrices(): Tensor {
    return this.full ?? (this.left as Tensor).bmm(this.right as Tensor);
  }
}

/**
 * How L and R start. `zero`: both at 0; `xavier`: L Xavier-uniform with gain √2 in each of its n slices, R at 0;
 * `both`: both so.
 */
export type FactorStart = 'zero' | 'xavier' | 'both';

/** Fills each slice [a, b] of [n, a, b] Xavier-uniformly with gain √2. */
function startSlices(tensor: Tensor): void {
  const [n = 0] = tensor.shape;
  for (let i = 0; i < n; i++) init.xavierUniform_(tensor.select(0, i), Math.SQRT2);
}

/** The matrices L `left` [n, in / n, r] and R `right` [n, r, out / n] of one layer. */
export class KroneckerFactors extends SharedPart {
  readonly left: Parameter;
  readonly right: Parameter;

  /** @throws RangeError when n does not divide both widths, or the rank exceeds them */
  constructor(
    readonly inFeatures: number,
    readonly outFeatures: number,
    { n, rank, start }: { readonly n: number; readonly rank: number; readonly start: FactorStart },
  ) {
    super();
    checkDivisible(n, inFeatures, outFeatures);
    if (rank > Math.min(inFeatures, outFeatures)) {
      const [rows, columns] = [inFeatures / n, outFeatures / n];
      throw new RangeError(
        `rank ${rank} exceeds what a ${inFeatures} to ${outFeatures} layer can hold, whose blocks are ${rows} x ${columns}; ` +
          `at most ${Math.min(rows, columns)} is of use`,
      );
    }
    this.left = new Parameter(empty([n, inFeatures / n, rank]));
    this.right = new Parameter(empty([n, rank, outFeatures / n]));
    if (start === 'zero') init.zeros_(this.left);
    else startSlices(this.left);
    if (start === 'both') startSlices(this.right);
    else init.zeros_(this.right);
  }
}

function checkDivisible(n: number, ...widths: readonly number[]): void {
  if (widths.every((width) => width % n === 0)) return;
  const fitting = Array.from({ length: Math.min(...widths, 64) }, (_, i) => i + 1).filter((m) =>
    widths.every((width) => width % m === 0),
  );
  throw new RangeError(
    `${n} matrices cannot be the blocks of a layer from ${widths.join(' to ')} features, both of which they must divide; ` +
      `${fitting.join(', ')} would do`,
  );
}

/** H [in, out], whole: H[a κ + k, b λ + l] = Σ_i A_i[a, b] (L_i R_i)[k, l]. */
export function kroneckerMatrix(
  rule: KroneckerRule,
  { left, right, inFeatures, outFeatures }: KroneckerFactors,
): Tensor {
  const { n } = rule;
  const [k, l] = [inFeatures / n, outFeatures / n];
  const products = left.bmm(right).view([n, k * l]);
  const sum = rule
    .matrices()
    .view([n, n * n])
    .t()
    .mm(products);
  return sum.view([n, n, k, l]).permute([0, 2, 1, 3]).reshape([inFeatures, outFeatures]);
}

/** A product of two matrices that a layer's matrix is: `down` [q, in], `up` [out, q]. */
export interface LowRank {
  readonly down: Tensor;
  readonly up: Tensor;
}

/**
 * H of a factored rule as a product of rank n r, since (a b) ⊗ (L R) = (a ⊗ L)(b ⊗ R); null for a full rule, and where
 * the product with H itself takes fewer operations.
 */
export function kroneckerLowRank(rule: KroneckerRule, factors: KroneckerFactors): LowRank | null {
  const { left, right, inFeatures, outFeatures } = factors;
  const { n } = rule;
  const [, , r = 1] = left.shape;
  if (!rule.left || !rule.right || n * r * (inFeatures + outFeatures) >= inFeatures * outFeatures) return null;
  const down = rule.left.view([n, 1, n, 1]).mul(left.transpose(1, 2).unsqueeze(2));
  const up = rule.right.view([n, 1, n, 1]).mul(right.unsqueeze(2));
  return { down: down.reshape([n * r, inFeatures]), up: up.reshape([n * r, outFeatures]).t() };
}

/**
 * x H for x [..., in], without forming H where that takes fewer operations: each piece of x meets all L_i, the rule mixes
 * the pieces, and all R_i bring them to their width.
 */
export function kroneckerProduct(x: Tensor, rule: KroneckerRule, factors: KroneckerFactors): Tensor {
  const low = kroneckerLowRank(rule, factors);
  if (low) return aten.linear(aten.linear(x, low.down), low.up);
  const { left, right, inFeatures, outFeatures } = factors;
  const { n } = rule;
  const [, , r = 1] = left.shape;
  if (n * r * (inFeatures + outFeatures + n * n) >= inFeatures * outFeatures)
    return x.matmul(kroneckerMatrix(rule, factors));
  const rows = x.numel() / inFeatures;
  // [rows, a, i, r]
  const met = x.reshape([rows * n, inFeatures / n]).mm(left.permute([1, 0, 2]).reshape([inFeatures / n, n * r]));
  const pieces = met
    .view([rows, n, n, r])
    .permute([2, 0, 3, 1])
    .reshape([n, rows * r, n]);
  // [i, rows, r, b]
  const mixed = pieces.bmm(rule.matrices()).view([n, rows, r, n]);
  const y = mixed
    .permute([1, 3, 0, 2])
    .reshape([rows * n, n * r])
    .mm(right.reshape([n * r, outFeatures / n]));
  return y.view([...x.shape.slice(0, -1), outFeatures]);
}
