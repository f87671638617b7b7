// One pass over a dense tensor with a factor and a term per channel; shared by the operators that need one.
//
// A layout is described by two numbers: `channels` and `inner`, the count of neighbors in memory that share a channel.
// The channel of element i is (i / inner) % channels: inner = 1 for channels-last maps and for token matrices,
// inner = H * W for contiguous [B, C, H, W].
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "../cpu_dispatch.h"

namespace torchgraft {

struct ChannelLayout {
  int64_t channels;
  int64_t inner;
};

// The layout of `dim` in `t`, made dense if it is not: contiguous, or channels-last for the channel dimension of maps.
std::pair<at::Tensor, ChannelLayout> dense_by_channel(const at::Tensor& t, int64_t dim);

// `other` with the sizes and the memory layout of `like` (which is dense).
at::Tensor laid_out_like(const at::Tensor& other, const at::Tensor& like);

// Bytes that hold one bit per element.
inline int64_t mask_bytes(int64_t numel) { return (numel + 7) / 8; }

}  // namespace torchgraft

// A BatchNorm with fixed statistics as a scale and a shift per channel, by the same steps as LibTorch's own, so that
// both give the same bits. All tensors are contiguous and of one type, float or double; weight and bias may be
// undefined.
TORCHGRAFT_CPU_KERNEL(void, norm_terms_kernel,
                      (const at::Tensor& scale, const at::Tensor& shift, const at::Tensor& weight,
                       const at::Tensor& bias, const at::Tensor& mean, const at::Tensor& variance, double eps))

// out = act(x * scale + shift + residual). Scale and shift are contiguous, of x's arithmetic type (float for half
// types); shift and residual may be undefined; out may be x. With `relu`, `mask`, if given, receives a bit per element:
// whether the gradient passes.
TORCHGRAFT_CPU_KERNEL(void, channel_affine_kernel,
                      (const at::Tensor& out, const at::Tensor& x, const at::Tensor& scale, const at::Tensor& shift,
                       const at::Tensor& residual, bool relu, uint8_t* mask, ChannelLayout layout))

// masked = mask * grad, scaled = mask * grad * scale. Each output may be undefined, and so may mask (null: all pass).
TORCHGRAFT_CPU_KERNEL(void, channel_mask_kernel,
                      (const at::Tensor& masked, const at::Tensor& scaled, const at::Tensor& grad,
                       const at::Tensor& scale, const uint8_t* mask, ChannelLayout layout))

// Per channel: grad_scale = sum(grad * x) unless x is undefined, grad_shift = sum(grad); scaled = grad * scale if
// defined. Sums run in a fixed order, whatever the number of threads.
TORCHGRAFT_CPU_KERNEL(void, channel_reduce_kernel,
                      (const at::Tensor& grad_scale, const at::Tensor& grad_shift, const at::Tensor& scaled,
                       const at::Tensor& grad, const at::Tensor& x, const at::Tensor& scale, ChannelLayout layout))
