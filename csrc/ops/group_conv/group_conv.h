// Grouped convolution with one output channel per group, on channels-last maps. See group_conv.cpp.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "../cpu_dispatch.h"

namespace torchgraft {

struct GroupConvShape {
  int64_t batch, in_height, in_width, out_height, out_width;
  int64_t groups, per_group;  // input channels = groups * per_group, output channels = groups
  int64_t kernel_height, kernel_width;
  int64_t stride_height, stride_width, pad_height, pad_width, dilation_height, dilation_width;

  int64_t channels() const { return groups * per_group; }
  int64_t taps() const { return kernel_height * kernel_width; }
};

}  // namespace torchgraft

// `taps` is the weight as [kh * kw, C]. Maps are dense channels-last; bias may be undefined.
TORCHGRAFT_CPU_KERNEL(void, group_conv_forward_kernel,
                      (const at::Tensor& out, const at::Tensor& x, const at::Tensor& taps, const at::Tensor& bias,
                       const GroupConvShape& shape))

// Each output may be undefined: grad_x like x, grad_taps [kh * kw, C]. Sums run over the images in their order.
TORCHGRAFT_CPU_KERNEL(void, group_conv_backward_kernel,
                      (const at::Tensor& grad_x, const at::Tensor& grad_taps, const at::Tensor& grad,
                       const at::Tensor& x, const at::Tensor& taps, const GroupConvShape& shape))
