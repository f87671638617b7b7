// torchgraft::conv_norm_act: y = act(norm(conv(x)) + residual), the norm a BatchNorm with fixed statistics.
//
// In a frozen stretch of a network nothing but the gradient of the input is wanted. ATen keeps, for that, the inputs of
// the convolution, of the norm and of the activation, and makes a pass over the map for each. Here the norm, the sum
// and the ReLU are one pass over the convolution's result, in place, and the backward pass needs one bit per element.
// If the convolution or the norm learns after all, the formula is composed of ATen operators.
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
using Optional = std::optional<at::Tensor>;

struct Geometry {
  at::IntArrayRef stride, padding, dilation;
  int64_t groups;
};

// BatchNorm as a factor and a term per channel, in the arithmetic type.
struct Affine {
  at::Tensor scale, shift;
};

Affine fold(const Optional& weight, const Optional& bias, const at::Tensor& mean, const at::Tensor& variance,
            double eps) {
  const auto wide = [&](const Optional& t) {
    return t.has_value() ? t->detach().to(at::toOpMathType(mean.scalar_type())).contiguous() : at::Tensor();
  };
  const at::Tensor means = wide(mean);
  const Affine affine{at::empty_like(means), at::empty_like(means)};
  TORCHGRAFT_CHOOSE_KERNEL(norm_terms_kernel)
  (affine.scale, affine.shift, wide(weight), wide(bias), means, wide(variance), eps);
  return affine;
}

bool is_relu(c10::string_view act) {
  TORCH_CHECK_VALUE(act == "relu" || act == "none", "conv_norm_act: act must be 'relu' or 'none', got '", act, "'");
  return act == "relu";
}

void check(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& mean, const at::Tensor& variance) {
  TORCH_CHECK_VALUE(x.dim() == 4 && weight.dim() == 4,
                    "conv_norm_act: expected maps [B, C, H, W] and a weight [out, in, kh, kw], got ", x.sizes(),
                    " and ", weight.sizes());
  TORCH_CHECK_VALUE(mean.dim() == 1 && mean.size(0) == weight.size(0) && variance.sizes() == mean.sizes(),
                    "conv_norm_act: the statistics must have shape [", weight.size(0), "], got ", mean.sizes(), " and ",
                    variance.sizes());
}

at::Tensor composite(const at::Tensor& x, const at::Tensor& weight, const Optional& bias, const Optional& norm_weight,
                     const Optional& norm_bias, const at::Tensor& mean, const at::Tensor& variance,
                     const Optional& residual, const Geometry& g, double eps, bool relu) {
  at::Tensor y = at::conv2d(x, weight, bias, g.stride, g.padding, g.dilation, g.groups);
  y = at::batch_norm(y, norm_weight, norm_bias, mean, variance, false, 0.0, eps, true);
  if (residual.has_value()) {
    y = y.add(*residual);
  }
  return relu ? y.relu() : y;
}

// Forward on the CPU without a graph; fills `mask` (bytes) if it is given.
at::Tensor forward_cpu(const at::Tensor& x, const at::Tensor& weight, const Optional& bias, const Affine& affine,
                       const Optional& residual, const Geometry& g, bool relu, at::Tensor* mask) {
  at::Tensor y = at::conv2d(x, weight, bias, g.stride, g.padding, g.dilation, g.groups);
  const auto [dense, layout] = dense_by_channel(y, 1);
  at::Tensor other;
  if (residual.has_value()) {
    TORCH_CHECK_VALUE(residual->sizes() == y.sizes() && residual->scalar_type() == y.scalar_type(),
                      "conv_norm_act: the residual must be ", y.scalar_type(), y.sizes(), " like the result, got ",
                      residual->scalar_type(), residual->sizes());
    other = laid_out_like(*residual, dense);
  }
  if (mask != nullptr && relu) {
    *mask = at::empty({mask_bytes(dense.numel())}, at::TensorOptions(at::kByte));
  }
  if (dense.numel() > 0) {
    TORCHGRAFT_CHOOSE_KERNEL(channel_affine_kernel)
    (dense, dense, affine.scale, affine.shift, other, relu,
     mask != nullptr && relu ? mask->mutable_data_ptr<uint8_t>() : nullptr, layout);
  }
  return dense;
}

// Whether the pass of ours serves: maps on the CPU whose statistics have the arithmetic type of the maps.
bool serves(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& mean) {
  return x.device().is_cpu() && x.scalar_type() == weight.scalar_type() && at::isFloatingType(x.scalar_type()) &&
         at::toOpMathType(x.scalar_type()) == at::toOpMathType(mean.scalar_type());
}

struct ConvNormAct : torch::autograd::Function<ConvNormAct> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& weight,
                            const at::Tensor& scale, const at::Tensor& shift, const Optional& residual,
                            const Optional& bias, at::IntArrayRef stride, at::IntArrayRef padding,
                            at::IntArrayRef dilation, int64_t groups, bool relu) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    at::Tensor mask;
    at::Tensor y =
        forward_cpu(x, weight, bias, {scale, shift}, residual, {stride, padding, dilation, groups}, relu, &mask);
    ctx->save_for_backward({weight, scale, mask});
    ctx->saved_data["stride"] = stride;
    ctx->saved_data["padding"] = padding;
    ctx->saved_data["dilation"] = dilation;
    ctx->saved_data["groups"] = groups;
    ctx->saved_data["has_residual"] = residual.has_value();
    ctx->saved_data["sizes"] = x.sizes();
    ctx->saved_data["channels_last"] = x.suggest_memory_format() == at::MemoryFormat::ChannelsLast;
    // The mask lies in the order of y's memory.
    ctx->saved_data["out_sizes"] = y.sizes();
    ctx->saved_data["out_strides"] = y.strides();
    return y;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const at::Tensor& weight = saved[0];
    const at::Tensor& scale = saved[1];
    const at::Tensor& mask = saved[2];
    const bool needs_x = ctx->needs_input_grad(0);
    // Edges count tensors only, so the residual is the fifth if it is there at all.
    const bool needs_residual = ctx->saved_data["has_residual"].toBool() && ctx->needs_input_grad(4);
    const auto out_sizes = ctx->saved_data["out_sizes"].toIntVector();
    const auto out_strides = ctx->saved_data["out_strides"].toIntVector();

    at::Tensor masked;
    at::Tensor scaled;
    if (needs_graph({grads[0]})) {  // createGraph: everything of differentiable operators
      masked = mask.defined() ? grads[0].mul(unpack(mask, out_sizes, out_strides)) : grads[0];
      scaled = masked.mul(scale.view({1, -1, 1, 1}));
    } else {
      const auto like = at::empty_strided(out_sizes, out_strides, grads[0].options());
      const auto grad = grads[0].strides() == like.strides() ? grads[0] : at::empty_like(like).copy_(grads[0]);
      if (needs_residual) {
        masked = mask.defined() ? like : grad;
      }
      if (needs_x) {
        scaled = needs_residual && mask.defined() ? at::empty_like(like) : like;
      }
      const auto [dense, layout] = dense_by_channel(grad, 1);
      if (grad.numel() > 0) {
        TORCHGRAFT_CHOOSE_KERNEL(channel_mask_kernel)
        (mask.defined() ? masked : at::Tensor(), scaled, dense, scale,
         mask.defined() ? mask.const_data_ptr<uint8_t>() : nullptr, layout);
      }
    }
    at::Tensor grad_x;
    if (needs_x) {
      // Only the sizes and the layout of the input count, since no gradient of the weight is asked for.
      const auto format =
          ctx->saved_data["channels_last"].toBool() ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
      const auto input = at::empty(ctx->saved_data["sizes"].toIntVector(), scaled.options(), format);
      grad_x = std::get<0>(at::convolution_backward(
          scaled, input, weight, at::OptionalIntArrayRef(), ctx->saved_data["stride"].toIntVector(),
          ctx->saved_data["padding"].toIntVector(), ctx->saved_data["dilation"].toIntVector(), false, {0, 0},
          ctx->saved_data["groups"].toInt(), {true, false, false}));
    }
    variable_list result(11);
    result[0] = grad_x;
    result[4] = masked;
    return result;
  }

  // The bits as a bool tensor of the given layout.
  static at::Tensor unpack(const at::Tensor& mask, at::IntArrayRef sizes, at::IntArrayRef strides) {
    const auto shifts = at::arange(8, mask.options());
    const auto bits = mask.unsqueeze(1).bitwise_right_shift(shifts).bitwise_and(1).flatten();
    return at::as_strided(bits, sizes, strides).to(at::kBool);
  }
};

at::Tensor conv_norm_act(const at::Tensor& x, const at::Tensor& weight, const Optional& bias,
                         const Optional& norm_weight, const Optional& norm_bias, const at::Tensor& mean,
                         const at::Tensor& variance, const Optional& residual, at::IntArrayRef stride,
                         at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups, double eps,
                         c10::string_view act) {
  check(x, weight, mean, variance);
  const bool relu = is_relu(act);
  const Geometry geometry{stride, padding, dilation, groups};
  const bool learns = needs_graph({weight, value_or_undefined(bias), value_or_undefined(norm_weight),
                                   value_or_undefined(norm_bias), mean, variance});
  if (learns || !serves(x, weight, mean)) {
    return composite(x, weight, bias, norm_weight, norm_bias, mean, variance, residual, geometry, eps, relu);
  }
  const Affine affine = fold(norm_weight, norm_bias, mean, variance, eps);
  if (!needs_graph({x, value_or_undefined(residual)})) {
    return forward_cpu(x, weight, bias, affine, residual, geometry, relu, nullptr);
  }
  return ConvNormAct::apply(x, weight, affine.scale, affine.shift, residual, bias, stride, padding, dilation, groups,
                            relu);
}

TORCH_LIBRARY_FRAGMENT(torchgraft, m) {
  m.def(
      "conv_norm_act(Tensor x, Tensor weight, Tensor? bias, Tensor? norm_weight, Tensor? norm_bias, Tensor "
      "running_mean, "
      "Tensor running_var, Tensor? residual=None, int[2] stride=1, int[2] padding=0, int[2] dilation=1, int groups=1, "
      "float eps=1e-05, str act='relu') -> Tensor");
}
// The function chooses by itself whether it makes a graph, so it is the kernel for autograd and below alike; operators
// that it calls meet autocast on their own.
TORCH_LIBRARY_IMPL(torchgraft, CompositeImplicitAutograd, m) { m.impl("conv_norm_act", conv_norm_act); }

}  // namespace
}  // namespace torchgraft
