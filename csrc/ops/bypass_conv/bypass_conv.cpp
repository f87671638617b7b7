// torchgraft::bypass_conv: φ(K * φ(z) + b) with φ(t) = t sigmoid(1.702 t), the middle of a convolutional bypass,
// between its two linear layers. Jie & Deng, Convpass, arXiv:2207.07039.
//
// z [B, N, h] are tokens of which a map of height times width stands, row by row, after `before` others; what is no
// patch meets the kernel as an image of one pixel, that is, its center only. On the CPU a sample goes through all of it
// in the cache (bypass_conv_kernel.cpp); everything else is composed of LibTorch's operators.
#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <vector>

#include "ops/autograd.h"
#include "ops/bypass_conv/bypass_conv.h"

namespace torchgraft {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Optional = std::optional<at::Tensor>;

BypassShape shape_of(const at::Tensor& z, const at::Tensor& weight, int64_t before, int64_t height, int64_t width) {
  return {z.size(0), z.size(1), z.size(2), before, height, width, weight.size(2)};
}

bool is_plain(const at::Tensor& t, const at::Tensor& z) {
  return t.device().is_cpu() && t.layout() == at::kStrided && t.scalar_type() == z.scalar_type();
}

// Wider bottlenecks leave the cache, and a convolution of LibTorch is the better product for them.
constexpr int64_t kWidest = 32;

bool serves(const at::Tensor& z, const at::Tensor& weight, const Optional& bias) {
  return is_plain(z, z) && is_plain(weight, z) && (!bias.has_value() || is_plain(*bias, z)) &&
         (z.scalar_type() == at::kFloat || z.scalar_type() == at::kDouble) && z.numel() > 0 && z.size(2) <= kWidest &&
         !at::autocast::is_autocast_enabled(at::kCPU);
}

at::Tensor quick_gelu(const at::Tensor& t) { return t * at::sigmoid(t * 1.702); }

// The same from differentiable operators.
at::Tensor composed(const at::Tensor& z, const at::Tensor& weight, const Optional& bias, const BypassShape& s) {
  const at::Tensor u = quick_gelu(z);
  const at::Tensor map = u.narrow(1, s.before, s.patches()).reshape({s.batch, s.height, s.width, s.channels});
  const at::Tensor mixed = at::conv2d(map.permute({0, 3, 1, 2}), weight, bias, 1, s.side / 2);
  std::vector<at::Tensor> parts{mixed.permute({0, 2, 3, 1}).reshape({s.batch, s.patches(), s.channels})};
  const at::Tensor center = weight.select(3, s.side / 2).select(2, s.side / 2);
  const int64_t after = s.length - s.before - s.patches();
  if (s.before > 0) {
    parts.insert(parts.begin(), at::linear(u.narrow(1, 0, s.before), center, bias));
  }
  if (after > 0) {
    parts.push_back(at::linear(u.narrow(1, s.length - after, after), center, bias));
  }
  return quick_gelu(parts.size() == 1 ? parts[0] : at::cat(parts, 1));
}

struct Forward {
  at::Tensor out, mixed;
};

Forward forward_cpu(const at::Tensor& z, const at::Tensor& weight, const Optional& bias, const BypassShape& shape) {
  const at::Tensor dense = z.contiguous();
  const Forward result{at::empty_like(dense), at::empty_like(dense)};
  TORCHGRAFT_CHOOSE_KERNEL(bypass_conv_forward_kernel)
  (result.out, result.mixed, dense, weight.contiguous(), value_or_undefined(bias), shape);
  return result;
}

struct BypassConv : torch::autograd::Function<BypassConv> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& z, const at::Tensor& weight, const Optional& bias,
                            int64_t before, int64_t height, int64_t width) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    const Forward result = forward_cpu(z, weight, bias, shape_of(z, weight, before, height, width));
    ctx->save_for_backward({z, weight, value_or_undefined(bias), result.mixed});
    ctx->saved_data["before"] = before;
    ctx->saved_data["height"] = height;
    ctx->saved_data["width"] = width;
    return result.out;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const at::Tensor& z = saved[0];
    const at::Tensor& weight = saved[1];
    const at::Tensor& bias = saved[2];
    const auto number = [&](const char* name) { return ctx->saved_data[name].toInt(); };
    const BypassShape shape = shape_of(z, weight, number("before"), number("height"), number("width"));
    // Edges count tensors only: z, K, b if it is there.
    const bool needs[] = {ctx->needs_input_grad(0), ctx->needs_input_grad(1),
                          bias.defined() && ctx->needs_input_grad(2)};
    variable_list result(6);
    if (needs_graph({grads[0], z, weight, bias})) {
      differentiable(result, grads[0], saved, shape, needs);
      return result;
    }
    const at::Tensor dense = z.contiguous();
    for (size_t i = 0; i < 3; ++i) {
      if (needs[i]) {
        result[i] = at::empty_like(i == 0 ? dense : saved[i], at::MemoryFormat::Contiguous);
      }
    }
    TORCHGRAFT_CHOOSE_KERNEL(bypass_conv_backward_kernel)
    (result[0], result[1], result[2], grads[0].contiguous(), dense, saved[3], weight.contiguous(), shape);
    return result;
  }

  // The same gradients with a graph: those of the composed operators.
  static void differentiable(variable_list& result, const at::Tensor& grad, const variable_list& saved,
                             const BypassShape& shape, const bool (&needs)[3]) {
    const at::Tensor& bias = saved[2];
    const at::Tensor out = composed(saved[0], saved[1], bias.defined() ? Optional(bias) : Optional(), shape);
    variable_list wanted;
    for (size_t i = 0; i < 3; ++i) {
      if (needs[i]) {
        wanted.push_back(saved[i]);
      }
    }
    const variable_list found =
        torch::autograd::grad({out}, wanted, {grad}, /*retain_graph=*/true, /*create_graph=*/true);
    size_t next = 0;
    for (size_t i = 0; i < 3; ++i) {
      if (needs[i]) {
        result[i] = found[next++];
      }
    }
  }
};

at::Tensor bypass_conv(const at::Tensor& z, const at::Tensor& weight, const Optional& bias, int64_t before,
                       int64_t height, int64_t width) {
  TORCH_CHECK_VALUE(z.dim() == 3, "bypass_conv: expected tokens [B, N, h], got ", z.sizes());
  const int64_t channels = z.size(2);
  TORCH_CHECK_VALUE(weight.dim() == 4 && weight.size(0) == channels && weight.size(1) == channels &&
                        weight.size(2) == weight.size(3) && weight.size(2) % 2 == 1,
                    "bypass_conv: expected a kernel [h, h, k, k] of odd side k for tokens ", z.sizes(), ", got ",
                    weight.sizes());
  TORCH_CHECK_VALUE(!bias.has_value() || (bias->dim() == 1 && bias->size(0) == channels),
                    "bypass_conv: expected a bias [h] for tokens ", z.sizes(), ", got ",
                    bias.has_value() ? bias->sizes() : at::IntArrayRef());
  // Bounded one by one, so that no product leaves the numbers.
  const int64_t length = z.size(1);
  TORCH_CHECK_VALUE(before >= 0 && height >= 1 && width >= 1 && before <= length && height <= length &&
                        width <= length && before + height * width <= length,
                    "bypass_conv: a map of ", height, " x ", width, " after ", before, " tokens does not fit in ",
                    length, " tokens");
  const BypassShape shape = shape_of(z, weight, before, height, width);
  if (!serves(z, weight, bias)) {
    return composed(z, weight, bias, shape);
  }
  return needs_graph({z, weight, value_or_undefined(bias)}) ? BypassConv::apply(z, weight, bias, before, height, width)
                                                            : forward_cpu(z, weight, bias, shape).out;
}

TORCH_LIBRARY_FRAGMENT(torchgraft, m) {
  m.def("bypass_conv(Tensor z, Tensor weight, Tensor? bias, int before, int height, int width) -> Tensor");
}
TORCH_LIBRARY_IMPL(torchgraft, CompositeImplicitAutograd, m) { m.impl("bypass_conv", bypass_conv); }

}  // namespace
}  // namespace torchgraft
