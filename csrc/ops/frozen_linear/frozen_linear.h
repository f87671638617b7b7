// Products with weights that do not learn. See frozen_linear.cpp.
#pragma once

#include <ATen/core/Tensor.h>

namespace torchgraft {

// x Wᵀ + b without a graph, [..., in] to [..., out], by the fastest product that LibTorch has for these tensors.
at::Tensor linear_product(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias);

}  // namespace torchgraft
