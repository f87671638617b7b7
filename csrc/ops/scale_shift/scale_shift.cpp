// torchgraft::scale_shift: y = x * scale + shift per channel along a dimension. "Scaling & Shifting Your Features",
// Lian et al., NeurIPS 2022, arXiv:2210.08823.
//
// Composed of ATen operators, the product is a tensor of its own, and the backward pass reads the gradient three times.
// Here the forward pass is one sweep, the backward pass another; x is saved only if the scale learns.
#include <ATen/ATen.h>
#include <ATen/OpMathType.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "ops/autograd.h"
#include "ops/channel_affine/channel_affine.h"

namespace torchgraft {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// [C] as [1, C, 1, 1] for a tensor of `ndim` dimensions.
at::Tensor along(const at::Tensor& values, int64_t dim, int64_t ndim) {
  std::vector<int64_t> sizes(static_cast<size_t>(ndim), 1);
  sizes[static_cast<size_t>(dim)] = values.numel();
  return values.view(sizes);
}

int64_t checked_dim(const at::Tensor& x, const at::Tensor& scale, const at::Tensor& shift, int64_t dim) {
  TORCH_CHECK_INDEX(x.dim() > 0 && dim >= -x.dim() && dim < x.dim(), "scale_shift: dim ", dim,
                    " is out of range for an input of ", x.dim(), " dimensions");
  dim = dim < 0 ? dim + x.dim() : dim;
  TORCH_CHECK_VALUE(at::isFloatingType(x.scalar_type()), "scale_shift: the input must be floating point, got ",
                    x.scalar_type());
  const auto check = [&](const at::Tensor& t, const char* name) {
    TORCH_CHECK_VALUE(t.dim() == 1 && t.size(0) == x.size(dim), "scale_shift: ", name, " must have shape [",
                      x.size(dim), "], the size of dimension ", dim, " of the input ", x.sizes(), ", got ", t.sizes());
    const bool wide = at::isReducedFloatingType(x.scalar_type()) && t.scalar_type() == at::kFloat;
    TORCH_CHECK_VALUE(t.scalar_type() == x.scalar_type() || wide, "scale_shift: ", name, " must be ", x.scalar_type(),
                      " like the input, got ", t.scalar_type());
    TORCH_CHECK_VALUE(t.device() == x.device(), "scale_shift: ", name, " is on ", t.device(), ", the input on ",
                      x.device());
  };
  check(scale, "scale");
  check(shift, "shift");
  return dim;
}

// The formula, of ATen operators: on devices without a kernel here, and where the gradient itself is differentiated.
at::Tensor composite(const at::Tensor& x, const at::Tensor& scale, const at::Tensor& shift, int64_t dim) {
  dim = checked_dim(x, scale, shift, dim);
  return x.mul(along(scale, dim, x.dim())).add_(along(shift, dim, x.dim())).to(x.scalar_type());
}

at::Tensor arithmetic(const at::Tensor& values) {
  return values.to(at::toOpMathType(values.scalar_type())).contiguous();
}

at::Tensor forward_cpu(const at::Tensor& x, const at::Tensor& scale, const at::Tensor& shift, int64_t dim) {
  dim = checked_dim(x, scale, shift, dim);
  const auto [dense, layout] = dense_by_channel(x, dim);
  at::Tensor y = at::empty_like(dense);
  if (x.numel() > 0) {
    TORCHGRAFT_CHOOSE_KERNEL(channel_affine_kernel)
    (y, dense, arithmetic(scale), arithmetic(shift), at::Tensor(), false, nullptr, layout);
  }
  return y;
}

struct Gradients {
  at::Tensor x, scale, shift;
};

Gradients backward_composite(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& scale, int64_t dim,
                             at::ScalarType x_type, bool needs_x, bool needs_shift) {
  std::vector<int64_t> others;
  for (int64_t d = 0; d < grad.dim(); ++d) {
    if (d != dim) {
      others.push_back(d);
    }
  }
  const auto sum = [&](const at::Tensor& t) { return others.empty() ? t : t.sum(others, false, scale.scalar_type()); };
  Gradients result;
  if (needs_x) {
    result.x = grad.mul(along(scale, dim, grad.dim())).to(x_type);
  }
  if (x.defined()) {
    result.scale = sum(grad.mul(x)).to(scale.scalar_type());
  }
  if (needs_shift) {
    result.shift = sum(grad).to(scale.scalar_type());
  }
  return result;
}

// `x` is undefined when the scale needs no gradient.
Gradients backward_cpu(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& scale, int64_t dim, bool needs_x,
                       bool needs_shift) {
  const auto [dense, layout] = dense_by_channel(grad, dim);
  const auto sums = at::TensorOptions(at::toOpMathType(grad.scalar_type()));
  Gradients result;
  if (needs_x) {
    result.x = at::empty_like(dense);
  }
  if (x.defined() || needs_shift) {
    at::Tensor grad_scale = x.defined() ? at::zeros({layout.channels}, sums) : at::Tensor();
    at::Tensor grad_shift = at::zeros({layout.channels}, sums);
    if (grad.numel() > 0) {
      const at::Tensor values = x.defined() ? laid_out_like(x, dense) : x;
      TORCHGRAFT_CHOOSE_KERNEL(channel_reduce_kernel)
      (grad_scale, grad_shift, result.x, dense, values, arithmetic(scale), layout);
    }
    if (x.defined()) {
      result.scale = grad_scale.to(scale.scalar_type());
    }
    if (needs_shift) {
      result.shift = grad_shift.to(scale.scalar_type());
    }
  } else if (needs_x && grad.numel() > 0) {
    TORCHGRAFT_CHOOSE_KERNEL(channel_mask_kernel)(at::Tensor(), result.x, dense, arithmetic(scale), nullptr, layout);
  }
  return result;
}

at::Tensor below_autograd(const at::Tensor& x, const at::Tensor& scale, const at::Tensor& shift, int64_t dim) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("torchgraft::scale_shift", "")
                             .typed<at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, int64_t)>();
  const at::AutoDispatchBelowADInplaceOrView guard;
  return op.call(x, scale, shift, dim);
}

struct ScaleShift : torch::autograd::Function<ScaleShift> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& scale, const at::Tensor& shift,
                            int64_t dim) {
    at::Tensor y = below_autograd(x, scale, shift, dim);
    ctx->save_for_backward({requires_grad(scale) ? x : at::Tensor(), scale});
    ctx->saved_data["dim"] = dim < 0 ? dim + x.dim() : dim;
    ctx->saved_data["dtype"] = static_cast<int64_t>(x.scalar_type());
    return y;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const at::Tensor& grad = grads[0];
    const auto saved = ctx->get_saved_variables();
    const at::Tensor& x = saved[0];
    const at::Tensor& scale = saved[1];
    const int64_t dim = ctx->saved_data["dim"].toInt();
    const bool needs_x = ctx->needs_input_grad(0);
    const bool needs_shift = ctx->needs_input_grad(2);
    const bool fused = grad.device().is_cpu() && !needs_graph({grad, x, scale});
    const auto dtype = static_cast<at::ScalarType>(ctx->saved_data["dtype"].toInt());
    const Gradients result = fused ? backward_cpu(grad, x, scale, dim, needs_x, needs_shift)
                                   : backward_composite(grad, x, scale, dim, dtype, needs_x, needs_shift);
    return {result.x, result.scale, result.shift, at::Tensor()};
  }
};

at::Tensor autograd(const at::Tensor& x, const at::Tensor& scale, const at::Tensor& shift, int64_t dim) {
  if (!needs_graph({x, scale, shift})) {
    return below_autograd(x, scale, shift, dim);
  }
  return ScaleShift::apply(x, scale, shift, dim);
}

TORCH_LIBRARY_FRAGMENT(torchgraft, m) {
  m.def("scale_shift(Tensor x, Tensor scale, Tensor shift, int dim=-1) -> Tensor");
}
TORCH_LIBRARY_IMPL(torchgraft, CompositeExplicitAutograd, m) { m.impl("scale_shift", composite); }
TORCH_LIBRARY_IMPL(torchgraft, CPU, m) { m.impl("scale_shift", forward_cpu); }
TORCH_LIBRARY_IMPL(torchgraft, Autograd, m) { m.impl("scale_shift", autograd); }

}  // namespace
}  // namespace torchgraft
