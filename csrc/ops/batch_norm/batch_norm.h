// Batch normalization of channels-last maps by the statistics of the batch. See batch_norm.cpp.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "../cpu_dispatch.h"

// Everything is dense float32; maps are [rows, channels]. Sums run over fixed stretches of rows in their order, in
// double, whatever the number of threads.

// mean, variance (of the population): double [channels].
TORCHGRAFT_CPU_KERNEL(void, batch_statistics_kernel,
                      (const at::Tensor& mean, const at::Tensor& variance, const at::Tensor& x))

// y = (x - mean) * scale + shift.
TORCHGRAFT_CPU_KERNEL(void, batch_normalize_kernel,
                      (const at::Tensor& y, const at::Tensor& x, const at::Tensor& mean, const at::Tensor& scale,
                       const at::Tensor& shift))

// sum_g = Σ g and sum_gx = Σ g (x - mean): double [channels].
TORCHGRAFT_CPU_KERNEL(void, batch_gradient_sums_kernel,
                      (const at::Tensor& sum_g, const at::Tensor& sum_gx, const at::Tensor& grad, const at::Tensor& x,
                       const at::Tensor& mean))

// grad_x = (g - mean_g - (x - mean) * slope) * scale.
TORCHGRAFT_CPU_KERNEL(void, batch_input_gradient_kernel,
                      (const at::Tensor& grad_x, const at::Tensor& grad, const at::Tensor& x, const at::Tensor& mean,
                       const at::Tensor& mean_g, const at::Tensor& slope, const at::Tensor& scale))
