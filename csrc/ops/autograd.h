// What the autograd formulas of the fused operators share.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>

#include <initializer_list>

namespace torchgraft {

inline bool requires_grad(const at::Tensor& t) { return t.defined() && t.requires_grad(); }

inline bool requires_grad(const std::optional<at::Tensor>& t) { return t.has_value() && requires_grad(*t); }

// Whether a result computed from these tensors now needs a node in the graph. In a backward pass this is true only
// under createGraph: then a formula must be made of differentiable operators.
inline bool needs_graph(std::initializer_list<at::Tensor> tensors) {
  if (!at::GradMode::is_enabled()) {
    return false;
  }
  for (const at::Tensor& t : tensors) {
    if (requires_grad(t)) {
      return true;
    }
  }
  return false;
}

inline at::Tensor value_or_undefined(const std::optional<at::Tensor>& t) { return t.has_value() ? *t : at::Tensor(); }

}  // namespace torchgraft
