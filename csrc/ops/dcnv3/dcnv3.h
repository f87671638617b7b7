// Deformable convolution v3 on channels-last tensors. See dcnv3.cpp.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "../cpu_dispatch.h"

namespace torchgraft {

struct Dcnv3Shape {
  int64_t batch, in_height, in_width, out_height, out_width;
  int64_t groups, depth;  // channels = groups * depth
  int64_t kernel_height, kernel_width;
  int64_t stride_height, stride_width, pad_height, pad_width, dilation_height, dilation_width;
  double offset_scale;
  bool remove_center;

  constexpr int64_t channels() const { return groups * depth; }
  constexpr int64_t points() const { return kernel_height * kernel_width - (remove_center ? 1 : 0); }
};

}  // namespace torchgraft

// All tensors dense: x [N, H, W, C], offset [N, Ho, Wo, G * P * 2], mask [N, Ho, Wo, G * P], out [N, Ho, Wo, C].
TORCHGRAFT_CPU_KERNEL(void, dcnv3_forward_kernel,
                      (const at::Tensor& out, const at::Tensor& x, const at::Tensor& offset, const at::Tensor& mask,
                       const Dcnv3Shape& shape))

// Each of the first three may be undefined; grad_x must come zeroed.
TORCHGRAFT_CPU_KERNEL(void, dcnv3_backward_kernel,
                      (const at::Tensor& grad_x, const at::Tensor& grad_offset, const at::Tensor& grad_mask,
                       const at::Tensor& grad, const at::Tensor& x, const at::Tensor& offset, const at::Tensor& mask,
                       const Dcnv3Shape& shape))

#ifdef TORCHGRAFT_WITH_CUDA
// The same two, on the GPU that holds the tensors.
namespace torchgraft::cuda {
void dcnv3_forward(const at::Tensor& out, const at::Tensor& x, const at::Tensor& offset, const at::Tensor& mask,
                   const Dcnv3Shape& shape);
void dcnv3_backward(const at::Tensor& grad_x, const at::Tensor& grad_offset, const at::Tensor& grad_mask,
                    const at::Tensor& grad, const at::Tensor& x, const at::Tensor& offset, const at::Tensor& mask,
                    const Dcnv3Shape& shape);
}  // namespace torchgraft::cuda
#endif
