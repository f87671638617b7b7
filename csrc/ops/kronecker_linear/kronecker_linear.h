// Products of rows with A ⊗ B that never form it. See kronecker_linear.cpp.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "../cpu_dispatch.h"

namespace torchgraft {

// A [a1, a2], B [b1, b2]: rows of a1 b1 numbers become rows of a2 b2.
struct KroneckerShape {
  int64_t rows, a1, a2, b1, b2;

  int64_t in() const { return a1 * b1; }
  int64_t out() const { return a2 * b2; }
};

}  // namespace torchgraft

// y += scale x (A ⊗ B) for dense y [rows, a2 b2], x [rows, a1 b1], A and B.
TORCHGRAFT_CPU_KERNEL(void, kronecker_forward_kernel,
                      (const at::Tensor& y, const at::Tensor& x, const at::Tensor& a, const at::Tensor& b, double scale,
                       const KroneckerShape& shape))

// Gradients for `grad` [rows, a2 b2]: grad_x is added to; grad_a and grad_b are written. Each may be undefined. Sums
// run over fixed stretches of rows in their order, whatever the number of threads.
TORCHGRAFT_CPU_KERNEL(void, kronecker_backward_kernel,
                      (const at::Tensor& grad_x, const at::Tensor& grad_a, const at::Tensor& grad_b,
                       const at::Tensor& grad, const at::Tensor& x, const at::Tensor& a, const at::Tensor& b,
                       double scale, const KroneckerShape& shape))
