#include "channel_affine.h"

#include <ATen/ops/empty_like.h>

namespace torchgraft {

std::pair<at::Tensor, ChannelLayout> dense_by_channel(const at::Tensor& t, int64_t dim) {
  const int64_t channels = t.size(dim);
  int64_t inner = 1;
  if (dim == 1 && t.dim() == 4 && !t.is_contiguous() && t.is_contiguous(at::MemoryFormat::ChannelsLast)) {
    return {t, {channels, 1}};
  }
  for (int64_t d = dim + 1; d < t.dim(); ++d) {
    inner *= t.size(d);
  }
  return {t.contiguous(), {channels, inner}};
}

at::Tensor laid_out_like(const at::Tensor& other, const at::Tensor& like) {
  if (other.strides() == like.strides()) {
    return other;
  }
  at::Tensor copy = at::empty_like(like, other.options());
  copy.copy_(other);
  return copy;
}

}  // namespace torchgraft
