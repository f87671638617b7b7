// torchgraft::frozen_linear: y = x Wᵀ + b where W and b do not learn.
// torchgraft::lora_linear: y = x (W + s B A)ᵀ + b where only B and A do. Hu et al., arXiv:2106.09685, equation 3.
//
// LibTorch multiplies dense matrices with MKL, which does not use its fast kernels on every processor; oneDNN, linked
// into the same library, is 10 to 30 % faster there. The increment s B A of a weight is cheaper to add to W than its
// product is to add to y, once there are more rows than a few hundred; its gradients never form the product of full
// size: with t = x Aᵀ and u = s g B they are gB = s gᵀ t and gA = uᵀ x.
#include "frozen_linear.h"

#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "ops/autograd.h"

namespace torchgraft {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Optional = std::optional<at::Tensor>;

// Rows from which work of the weight's size (adding s B A to W, transposing W) is small beside the product.
constexpr int64_t kManyRows = 512;

const std::optional<c10::OperatorHandle>& onednn_linear() {
  static const auto op = c10::Dispatcher::singleton().findSchema({"mkldnn::_linear_pointwise", ""});
  return op;
}

bool onednn_serves(const at::Tensor& x, const at::Tensor& weight) {
  return x.device().is_cpu() && x.scalar_type() == at::kFloat && weight.scalar_type() == at::kFloat && x.dim() >= 2 &&
         x.numel() > 0 && weight.numel() > 0 && at::hasMKLDNN() && at::globalContext().userEnabledMkldnn() &&
         onednn_linear().has_value();
}

at::Tensor rows(const at::Tensor& t) { return t.reshape({-1, t.size(-1)}); }

struct FrozenLinear : torch::autograd::Function<FrozenLinear> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& weight, const Optional& bias) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    ctx->save_for_backward({requires_grad(weight) ? x : at::Tensor(), weight});
    ctx->saved_data["has_bias"] = bias.has_value();
    return linear_product(x, weight, bias);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const at::Tensor& x = saved[0];
    const at::Tensor& weight = saved[1];
    const at::Tensor& grad = grads[0];
    variable_list result(3);
    if (ctx->needs_input_grad(0)) {
      result[0] = needs_graph({grad, weight}) ? grad.matmul(weight) : frozen_linear_input_gradient(grad, weight);
    }
    if (ctx->needs_input_grad(1)) {
      result[1] = rows(grad).t().mm(rows(x));
    }
    // Edges count tensors only, so the bias is the third if it is there at all.
    if (ctx->saved_data["has_bias"].toBool() && ctx->needs_input_grad(2)) {
      result[2] = rows(grad).sum(0);
    }
    return result;
  }
};

struct LoraLinear : torch::autograd::Function<LoraLinear> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& weight, const at::Tensor& down,
                            const at::Tensor& up, double scale, const Optional& bias) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    ctx->save_for_backward({x, weight, down, up});
    ctx->saved_data["scale"] = scale;
    return linear_product(x, at::addmm(weight, up, down, 1, scale), bias);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const at::Tensor& x = saved[0];
    const at::Tensor& weight = saved[1];
    const at::Tensor& down = saved[2];
    const at::Tensor& up = saved[3];
    const double scale = ctx->saved_data["scale"].toDouble();
    variable_list result(6);
    const at::Tensor grad = rows(grads[0]);
    if (ctx->needs_input_grad(0)) {
      const at::Tensor merged = at::addmm(weight, up, down, 1, scale);
      result[0] =
          needs_graph({grads[0], down, up}) ? grads[0].matmul(merged) : frozen_linear_input_gradient(grads[0], merged);
    }
    if (ctx->needs_input_grad(2)) {
      result[2] = grad.mm(up).mul(scale).t().mm(rows(x));
    }
    if (ctx->needs_input_grad(3)) {
      result[3] = grad.t().mm(rows(x).mm(down.t()).mul(scale));
    }
    return result;
  }
};

at::Tensor lora_linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& down, const at::Tensor& up,
                       double scale, const Optional& bias) {
  TORCH_CHECK_VALUE(weight.dim() == 2 && down.dim() == 2 && up.dim() == 2 && down.size(0) == up.size(1) &&
                        up.size(0) == weight.size(0) && down.size(1) == weight.size(1),
                    "lora_linear: expected a weight [out, in], down [r, in] and up [out, r], got ", weight.sizes(),
                    ", ", down.sizes(), " and ", up.sizes());
  // By what requires a gradient, not by the grad mode: with and without a graph the bits are the same.
  const bool learns = requires_grad(weight) || requires_grad(bias);
  const bool merges = !learns && onednn_serves(x, weight) && x.numel() / x.size(-1) >= kManyRows &&
                      down.scalar_type() == weight.scalar_type() && up.scalar_type() == weight.scalar_type() &&
                      !at::autocast::is_autocast_enabled(at::kCPU);
  if (!merges) {
    const at::Tensor y = frozen_linear(x, weight, bias);
    return y.add(at::linear(at::linear(x, down), up), scale);
  }
  return needs_graph({x, down, up}) ? LoraLinear::apply(x, weight, down, up, scale, bias)
                                    : linear_product(x, at::addmm(weight, up, down, 1, scale), bias);
}

TORCH_LIBRARY_FRAGMENT(torchgraft, m) {
  m.def("frozen_linear(Tensor x, Tensor weight, Tensor? bias=None) -> Tensor");
  m.def("lora_linear(Tensor x, Tensor weight, Tensor down, Tensor up, float scale=1.0, Tensor? bias=None) -> Tensor");
}
TORCH_LIBRARY_IMPL(torchgraft, CompositeImplicitAutograd, m) {
  m.impl("frozen_linear", frozen_linear);
  m.impl("lora_linear", lora_linear);
}

}  // namespace

at::Tensor linear_product(const at::Tensor& x, const at::Tensor& weight, const Optional& bias) {
  if (!onednn_serves(x, weight)) {
    return at::linear(x, weight, bias);
  }
  const c10::impl::ExcludeDispatchKeyGuard autograd(c10::autograd_dispatch_keyset);
  torch::jit::Stack stack;
  c10::List<std::optional<at::Scalar>> scalars;
  torch::jit::push(stack, x, weight, bias, "none", std::move(scalars), c10::IValue());
  onednn_linear()->callBoxed(stack);
  return std::move(stack.front()).toTensor();
}

at::Tensor frozen_linear_input_gradient(const at::Tensor& grad, const at::Tensor& weight) {
  return grad.numel() < kManyRows * grad.size(-1) ? grad.matmul(weight)
                                                  : linear_product(grad, weight.t().contiguous(), {});
}

// Frozen or not, the product is the same, so that a network gives the same bits before and after freezing.
at::Tensor frozen_linear(const at::Tensor& x, const at::Tensor& weight, const Optional& bias) {
  if (weight.dim() != 2 || !onednn_serves(x, weight) || at::autocast::is_autocast_enabled(at::kCPU)) {
    return at::linear(x, weight, bias);
  }
  return needs_graph({x, weight, value_or_undefined(bias)}) ? FrozenLinear::apply(x, weight, bias)
                                                            : linear_product(x, weight, bias);
}

}  // namespace torchgraft
