// torchgraft::group_conv: a grouped convolution with one output channel per group, as the bottlenecks of adapters have
// it. LibTorch computes the same with kernels made for many channels per group: 2 GFLOP/s where 50 are possible.
//
// Channels-last float32 and float64 maps on the CPU with grouped input channels take the path here; everything else is
// conv2d.
#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "ops/autograd.h"
#include "ops/group_conv/group_conv.h"

namespace torchgraft {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Optional = std::optional<at::Tensor>;

bool serves(const at::Tensor& x, const at::Tensor& weight, const Optional& bias, int64_t groups) {
  return x.dim() == 4 && weight.dim() == 4 && x.device().is_cpu() && weight.device().is_cpu() &&
         (x.scalar_type() == at::kFloat || x.scalar_type() == at::kDouble) && x.scalar_type() == weight.scalar_type() &&
         (!bias.has_value() || (bias->scalar_type() == x.scalar_type() && bias->numel() == weight.size(0))) &&
         weight.size(0) == groups && weight.size(1) > 1 && x.size(1) == groups * weight.size(1) && x.numel() > 0 &&
         x.is_contiguous(at::MemoryFormat::ChannelsLast) && !at::autocast::is_autocast_enabled(at::kCPU);
}

GroupConvShape shape_of(at::IntArrayRef x, at::IntArrayRef weight, at::IntArrayRef stride, at::IntArrayRef padding,
                        at::IntArrayRef dilation) {
  const auto out = [&](size_t i) {
    return (x[i + 2] + 2 * padding[i] - dilation[i] * (weight[i + 2] - 1) - 1) / stride[i] + 1;
  };
  return {x[0],      x[2],      x[3],      out(0),     out(1),     weight[0],   weight[1],  weight[2],
          weight[3], stride[0], stride[1], padding[0], padding[1], dilation[0], dilation[1]};
}

// [G, per group, kh, kw] as [kh * kw, C].
at::Tensor as_taps(const at::Tensor& weight) {
  return weight.permute({2, 3, 0, 1}).contiguous().view({weight.size(2) * weight.size(3), -1});
}

at::Tensor from_taps(const at::Tensor& taps, const GroupConvShape& s) {
  return taps.view({s.kernel_height, s.kernel_width, s.groups, s.per_group}).permute({2, 3, 0, 1}).contiguous();
}

at::Tensor forward_cpu(const at::Tensor& x, const at::Tensor& weight, const Optional& bias, const GroupConvShape& s) {
  at::Tensor y = at::empty({s.batch, s.groups, s.out_height, s.out_width}, x.options(), at::MemoryFormat::ChannelsLast);
  const at::Tensor summand = bias.has_value() ? bias->contiguous() : at::Tensor();
  TORCHGRAFT_CHOOSE_KERNEL(group_conv_forward_kernel)(y, x, as_taps(weight), summand, s);
  return y;
}

struct GroupConv : torch::autograd::Function<GroupConv> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& weight, const Optional& bias,
                            at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    ctx->save_for_backward({requires_grad(weight) ? x : at::Tensor(), weight});
    ctx->saved_data["sizes"] = x.sizes();
    ctx->saved_data["stride"] = stride;
    ctx->saved_data["padding"] = padding;
    ctx->saved_data["dilation"] = dilation;
    ctx->saved_data["has_bias"] = bias.has_value();
    return forward_cpu(x, weight, bias, shape_of(x.sizes(), weight.sizes(), stride, padding, dilation));
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const at::Tensor& x = saved[0];
    const at::Tensor& weight = saved[1];
    const auto sizes = ctx->saved_data["sizes"].toIntVector();
    const auto stride = ctx->saved_data["stride"].toIntVector();
    const auto padding = ctx->saved_data["padding"].toIntVector();
    const auto dilation = ctx->saved_data["dilation"].toIntVector();
    const bool needs_x = ctx->needs_input_grad(0);
    const bool needs_weight = ctx->needs_input_grad(1);
    // Edges count tensors only, so the bias is the third if it is there at all.
    const bool needs_bias = ctx->saved_data["has_bias"].toBool() && ctx->needs_input_grad(2);
    variable_list result(6);
    if (needs_graph({grads[0], x, weight})) {
      const auto input = x.defined() ? x : at::empty(sizes, weight.options(), at::MemoryFormat::ChannelsLast);
      const auto [gx, gw, gb] =
          at::convolution_backward(grads[0], input, weight, {{weight.size(0)}}, stride, padding, dilation, false,
                                   {0, 0}, weight.size(0), {needs_x, needs_weight, needs_bias});
      result[0] = gx;
      result[1] = gw;
      result[2] = gb;
      return result;
    }
    const GroupConvShape shape = shape_of(sizes, weight.sizes(), stride, padding, dilation);
    const at::Tensor grad = grads[0].contiguous(at::MemoryFormat::ChannelsLast);
    const at::Tensor taps = as_taps(weight);
    if (needs_x) {
      result[0] = at::empty(sizes, weight.options(), at::MemoryFormat::ChannelsLast);
    }
    const at::Tensor grad_taps = needs_weight ? at::empty_like(taps) : at::Tensor();
    if (needs_x || needs_weight) {
      TORCHGRAFT_CHOOSE_KERNEL(group_conv_backward_kernel)(result[0], grad_taps, grad, x, taps, shape);
    }
    if (needs_weight) {
      result[1] = from_taps(grad_taps, shape);
    }
    if (needs_bias) {
      result[2] = grad.sum({0, 2, 3});
    }
    return result;
  }
};

at::Tensor group_conv(const at::Tensor& x, const at::Tensor& weight, const Optional& bias, at::IntArrayRef stride,
                      at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups) {
  const bool geometry = stride.size() == 2 && padding.size() == 2 && dilation.size() == 2 && stride[0] > 0 &&
                        stride[1] > 0 && padding[0] >= 0 && padding[1] >= 0 && dilation[0] > 0 && dilation[1] > 0;
  if (!geometry || !serves(x, weight, bias, groups)) {
    return at::conv2d(x, weight, bias, stride, padding, dilation, groups);
  }
  const GroupConvShape shape = shape_of(x.sizes(), weight.sizes(), stride, padding, dilation);
  if (shape.out_height < 1 || shape.out_width < 1) {  // let LibTorch say it
    return at::conv2d(x, weight, bias, stride, padding, dilation, groups);
  }
  if (!needs_graph({x, weight, value_or_undefined(bias)})) {
    return forward_cpu(x, weight, bias, shape);
  }
  return GroupConv::apply(x, weight, bias, stride, padding, dilation);
}

TORCH_LIBRARY_FRAGMENT(torchgraft, m) {
  m.def(
      "group_conv(Tensor x, Tensor weight, Tensor? bias=None, int[2] stride=1, int[2] padding=0, int[2] dilation=1, "
      "int groups=1) -> Tensor");
}
TORCH_LIBRARY_IMPL(torchgraft, CompositeImplicitAutograd, m) { m.impl("group_conv", group_conv); }

}  // namespace
}  // namespace torchgraft
