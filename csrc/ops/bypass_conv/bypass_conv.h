// The middle of a convolutional bypass, over tokens. See bypass_conv.cpp.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "../cpu_dispatch.h"

namespace torchgraft {

// Tokens [batch, length, channels] of which a map of height times width, row by row, stands after `before` others; a
// kernel of side times side.
struct BypassShape {
  int64_t batch, length, channels, before, height, width, side;

  int64_t patches() const { return height * width; }
  int64_t sample() const { return length * channels; }
};

}  // namespace torchgraft

// mixed = K * φ(z) + b and out = φ(mixed) for dense z [batch, length, channels]; b may be undefined.
TORCHGRAFT_CPU_KERNEL(void, bypass_conv_forward_kernel,
                      (const at::Tensor& out, const at::Tensor& mixed, const at::Tensor& z, const at::Tensor& weight,
                       const at::Tensor& bias, const BypassShape& shape))

// Gradients of z, K and b for `grad` of out; each may be undefined. Sums run over fixed stretches of samples in their
// order, whatever the number of threads.
TORCHGRAFT_CPU_KERNEL(void, bypass_conv_backward_kernel,
                      (const at::Tensor& grad_z, const at::Tensor& grad_weight, const at::Tensor& grad_bias,
                       const at::Tensor& grad, const at::Tensor& z, const at::Tensor& mixed, const at::Tensor& weight,
                       const BypassShape& shape))
