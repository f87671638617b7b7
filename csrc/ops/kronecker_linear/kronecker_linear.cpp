// torchgraft::kronecker_linear: y = x Wᵀ + b + s x (A ⊗ B) where W and b do not learn, or s x (A ⊗ B) alone. Edalati et
// al., KronA, arXiv:2212.10650, section 3.
//
// A ⊗ B is never formed, nor its gradient, both of which have the size of W. On the CPU each row takes both small
// products within the cache (kronecker_linear_kernel.cpp) and is added to x Wᵀ in place; everything else is composed of
// LibTorch's products.
#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "ops/autograd.h"
#include "ops/frozen_linear/frozen_linear.h"
#include "ops/kronecker_linear/kronecker_linear.h"

namespace torchgraft {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Optional = std::optional<at::Tensor>;

KroneckerShape shape_of(const at::Tensor& x, const at::Tensor& a, const at::Tensor& b) {
  const int64_t in = a.size(0) * b.size(0);
  return {in == 0 ? 0 : x.numel() / in, a.size(0), a.size(1), b.size(0), b.size(1)};
}

bool is_plain(const at::Tensor& t, const at::Tensor& x) {
  return t.device().is_cpu() && t.layout() == at::kStrided && t.scalar_type() == x.scalar_type();
}

// Multiplications per row when Aᵀ M comes first, and when M B does.
int64_t work_a_first(const KroneckerShape& s) { return s.a2 * s.b1 * (s.a1 + s.b2); }
int64_t work_b_first(const KroneckerShape& s) { return s.a1 * s.b2 * (s.b1 + s.a2); }

// Whether the kernel serves, and its order, Aᵀ M first, is not by far the longer one.
bool serves(const at::Tensor& x, const at::Tensor& a, const at::Tensor& b) {
  const KroneckerShape s = shape_of(x, a, b);
  return is_plain(x, x) && is_plain(a, x) && is_plain(b, x) &&
         (x.scalar_type() == at::kFloat || x.scalar_type() == at::kDouble) && x.numel() > 0 && s.out() > 0 &&
         2 * work_a_first(s) <= 3 * work_b_first(s) && !at::autocast::is_autocast_enabled(at::kCPU);
}

// x (A ⊗ B) from differentiable operators, in the order that takes fewer operations.
at::Tensor composed(const at::Tensor& x, const at::Tensor& a, const at::Tensor& b) {
  const KroneckerShape s = shape_of(x, a, b);
  auto out = x.sizes().vec();
  out.back() = s.out();
  const auto on_left = [&](const at::Tensor& m) { return m.transpose(-1, -2).matmul(a).transpose(-1, -2); };
  if (work_b_first(s) <= work_a_first(s)) {
    return on_left(x.reshape({-1, s.b1}).matmul(b).view({s.rows, s.a1, s.b2})).reshape(out);
  }
  return on_left(x.reshape({s.rows, s.a1, s.b1})).reshape({-1, s.b1}).matmul(b).view(out);
}

// x Wᵀ + b, or zeros where there is no W: what the kernel adds to. Memory that nobody else holds.
at::Tensor base_of(const at::Tensor& x, const Optional& weight, const Optional& bias, int64_t out) {
  if (weight.has_value()) {
    return linear_product(x, *weight, bias);
  }
  auto sizes = x.sizes().vec();
  sizes.back() = out;
  return at::zeros(sizes, x.options());
}

at::Tensor forward_cpu(const at::Tensor& x, const Optional& weight, const at::Tensor& a, const at::Tensor& b,
                       double scale, const Optional& bias) {
  const KroneckerShape shape = shape_of(x, a, b);
  const at::Tensor y = base_of(x, weight, bias, shape.out()).contiguous();
  TORCHGRAFT_CHOOSE_KERNEL(kronecker_forward_kernel)(y, x.contiguous(), a.contiguous(), b.contiguous(), scale, shape);
  return y;
}

struct KroneckerLinear : torch::autograd::Function<KroneckerLinear> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const Optional& weight, const at::Tensor& a,
                            const at::Tensor& b, double scale, const Optional& bias) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    ctx->save_for_backward({x, value_or_undefined(weight), a, b});
    ctx->saved_data["scale"] = scale;
    return forward_cpu(x, weight, a, b, scale, bias);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const at::Tensor& x = saved[0];
    const at::Tensor& weight = saved[1];
    const at::Tensor& a = saved[2];
    const at::Tensor& b = saved[3];
    const double scale = ctx->saved_data["scale"].toDouble();
    // Edges count tensors only: x, W if it is there, A, B.
    const size_t first = weight.defined() ? 2 : 1;
    const bool needs_x = ctx->needs_input_grad(0);
    const bool needs_a = ctx->needs_input_grad(first);
    const bool needs_b = ctx->needs_input_grad(first + 1);
    variable_list result(6);
    if (needs_graph({grads[0], x, a, b})) {
      differentiable(result, grads[0], saved, scale, needs_x, needs_a, needs_b);
      return result;
    }
    const at::Tensor grad = grads[0].contiguous();
    if (needs_x) {
      result[0] = weight.defined() ? frozen_linear_input_gradient(grad, weight).contiguous()
                                   : at::zeros(x.sizes(), x.options());
    }
    result[2] = needs_a ? at::empty_like(a, at::MemoryFormat::Contiguous) : at::Tensor();
    result[3] = needs_b ? at::empty_like(b, at::MemoryFormat::Contiguous) : at::Tensor();
    TORCHGRAFT_CHOOSE_KERNEL(kronecker_backward_kernel)
    (result[0], result[2], result[3], grad, x.contiguous(), a.contiguous(), b.contiguous(), scale, shape_of(x, a, b));
    return result;
  }

  // The same gradients from operators that can be differentiated again.
  static void differentiable(variable_list& result, const at::Tensor& grad, const variable_list& saved, double scale,
                             bool needs_x, bool needs_a, bool needs_b) {
    const at::Tensor& x = saved[0];
    const at::Tensor& a = saved[2];
    const at::Tensor& b = saved[3];
    const KroneckerShape s = shape_of(x, a, b);
    const at::Tensor m = x.reshape({s.rows, s.a1, s.b1});
    const at::Tensor g = grad.reshape({s.rows, s.a2, s.b2}).mul(scale);
    const at::Tensor h = g.matmul(b.t());
    if (needs_x) {
      const at::Tensor through_factors = a.matmul(h).reshape(x.sizes());
      result[0] = saved[1].defined() ? through_factors.add(grad.matmul(saved[1])) : through_factors;
    }
    if (needs_a) {
      result[2] = m.matmul(h.transpose(1, 2)).sum(0);
    }
    if (needs_b) {
      result[3] = m.transpose(1, 2).matmul(a).matmul(g).sum(0);
    }
  }
};

at::Tensor kronecker_linear(const at::Tensor& x, const at::Tensor& a, const at::Tensor& b, double scale,
                            const Optional& weight, const Optional& bias) {
  TORCH_CHECK_VALUE(a.dim() == 2 && b.dim() == 2 && x.dim() >= 1 && x.size(-1) == a.size(0) * b.size(0),
                    "kronecker_linear: expected A [a1, a2], B [b1, b2] and x [..., a1 b1], got ", a.sizes(), ", ",
                    b.sizes(), " and ", x.sizes());
  TORCH_CHECK_VALUE(!weight.has_value() || (weight->dim() == 2 && weight->size(0) == a.size(1) * b.size(1) &&
                                            weight->size(1) == x.size(-1)),
                    "kronecker_linear: expected a weight [a2 b2, a1 b1] for A ", a.sizes(), " and B ", b.sizes(),
                    ", got ", weight.has_value() ? weight->sizes() : at::IntArrayRef());
  TORCH_CHECK_VALUE(weight.has_value() || !bias.has_value(), "kronecker_linear: a bias without a weight");
  // By what requires a gradient, not by the grad mode: with and without a graph the bits are the same.
  const bool learns = requires_grad(weight) || requires_grad(bias);
  if (!serves(x, a, b) || (weight.has_value() && !is_plain(*weight, x))) {
    const at::Tensor increment = composed(x, a, b);
    return weight.has_value() ? frozen_linear(x, *weight, bias).add(increment, scale) : increment.mul(scale);
  }
  if (learns) {
    return frozen_linear(x, *weight, bias).add(kronecker_linear(x, a, b, scale, {}, {}));
  }
  return needs_graph({x, a, b}) ? KroneckerLinear::apply(x, weight, a, b, scale, bias)
                                : forward_cpu(x, weight, a, b, scale, bias);
}

TORCH_LIBRARY_FRAGMENT(torchgraft, m) {
  m.def(
      "kronecker_linear(Tensor x, Tensor a, Tensor b, float scale=1.0, Tensor? weight=None, Tensor? bias=None) -> "
      "Tensor");
}
TORCH_LIBRARY_IMPL(torchgraft, CompositeImplicitAutograd, m) { m.impl("kronecker_linear", kronecker_linear); }

}  // namespace
}  // namespace torchgraft
