// Products with weights that do not learn. See frozen_linear.cpp.
#pragma once

#include <ATen/core/Tensor.h>

namespace torchgraft {

// x Wᵀ + b without a graph, [..., in] to [..., out], by the fastest product that LibTorch has for these tensors.
at::Tensor linear_product(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias);

// The operators of frozen_linear.cpp, for others that are made of them: x Wᵀ + b, and the gradient of x, g W, without a
// graph.
at::Tensor frozen_linear(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias);
at::Tensor frozen_linear_input_gradient(const at::Tensor& grad, const at::Tensor& weight);

}  // namespace torchgraft
