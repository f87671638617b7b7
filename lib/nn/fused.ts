/**
 * Our own fused operators (csrc/ops), as functions. Each equals the formula in its comment and chooses by itself: what it
 * has no faster way for (other devices, learning weights, autocast) is composed of ATen operators.
 */
import { operator, type Tensor } from '../tensor/index.js';
import type { Context } from './context.js';
import { BatchNorm2d, Conv2d } from './layers/index.js';
import type { Module } from './module.js';

const ops = {
  scaleShift: operator('torchgraft::scale_shift'),
  convNormAct: operator('torchgraft::conv_norm_act'),
  loraLinear: operator('torchgraft::lora_linear'),
  kroneckerLinear: operator('torchgraft::kronecker_linear'),
  bypassConv: operator('torchgraft::bypass_conv'),
};

/** x * scale + shift per channel along `dim` (default: the last); `scale` and `shift` [C]. One pass, also backward. */
export function scaleShift(x: Tensor, scale: Tensor, shift: Tensor, dim = -1): Tensor {
  return ops.scaleShift(x, scale, shift, dim) as Tensor;
}

/** x (W + s B A)ᵀ + b for `weight` W [out, in], `down` A [r, in], `up` B [out, r]. */
export function loraLinear(
  x: Tensor,
  weight: Tensor,
  down: Tensor,
  up: Tensor,
  { scale = 1, bias = null }: { scale?: number; bias?: Tensor | null } = {},
): Tensor {
  return ops.loraLinear(x, weight, down, up, scale, bias) as Tensor;
}

/**
 * x Wᵀ + b + s x (A ⊗ B) for x [..., a1 b1], A `a` [a1, a2], B `b` [b1, b2] and `weight` W [a2 b2, a1 b1]; without W
 * only s x (A ⊗ B). Neither the Kronecker product nor its gradient is ever formed: a row, read as M [a1, b1], becomes
 * Aᵀ M B. Edalati et al. 2022, arXiv 2212.10650, section 3.
 */
export function kroneckerLinear(
  x: Tensor,
  a: Tensor,
  b: Tensor,
  { scale = 1, weight = null, bias = null }: { scale?: number; weight?: Tensor | null; bias?: Tensor | null } = {},
): Tensor {
  return ops.kroneckerLinear(x, a, b, scale, weight, bias) as Tensor;
}

/**
 * φ(K * φ(z) + b) with φ(t) = t sigmoid(1.702 t) for tokens `z` [B, N, h] of which a map of `grid` stands, row by row,
 * after `before` others; `weight` K [h, h, k, k] with odd k, stride 1 and zeros around the map. What is no patch meets
 * the kernel as an image of one pixel: its center only. Jie & Deng 2022, arXiv 2207.07039.
 */
export function bypassConv(
  z: Tensor,
  weight: Tensor,
  bias: Tensor | null,
  { grid, before = 0 }: { grid: readonly [height: number, width: number]; before?: number },
): Tensor {
  return ops.bypassConv(z, weight, bias, before, ...grid) as Tensor;
}

/**
 * act(norm(conv(x)) + residual), the modules run one after the other: what most residual networks are made of. Where the
 * norm's statistics are fixed and nothing is grafted onto either module, norm, sum and ReLU are one pass.
 */
export function convNormAct(
  conv: Module,
  norm: Module,
  x: Tensor,
  ctx: Context,
  { residual, act = 'relu' }: { residual?: Tensor; act?: 'relu' | 'none' } = {},
): Tensor {
  if (isFixed(norm) && conv instanceof Conv2d && conv.grafts === undefined) {
    return ops.convNormAct(
      ...[x, conv.weight, conv.bias, norm.weight, norm.bias, norm.running_mean, norm.running_var, residual ?? null],
      ...[conv.stride, conv.padding, conv.dilation, conv.groups, norm.eps, act],
    ) as Tensor;
  }
  let y = norm.run(conv.run(x, ctx), ctx);
  if (residual) y = y.add(residual);
  return act === 'relu' ? y.relu() : y;
}

function isFixed(norm: Module): norm is BatchNorm2d {
  if (!(norm instanceof BatchNorm2d) || norm.running_mean === null || norm.grafts !== undefined) return false;
  return norm.isConstant || !norm.training;
}
