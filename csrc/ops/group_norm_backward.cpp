// LibTorch's CPU kernel for the backward step of group normalization, with the checks that it leaves out.
//
// For channels-last maps the kernel (2.13) writes the gradient of the input even when nobody asked for it, through a
// null pointer: training only the scale and bias of a group norm behind frozen layers ends the process. Here the
// gradient is always asked for on that path and dropped afterwards. The sizes, which it takes on trust when called by
// name, are checked too.
#include <ATen/core/Tensor.h>
#include <ATen/ops/native_group_norm_backward_native.h>
#include <c10/util/Exception.h>

#include <array>
#include <optional>
#include <tuple>

#include "ops/replaced_kernel.h"

namespace torchgraft {
namespace {

using Gradients = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

Gradients group_norm_backward(const at::Tensor& grad_out, const at::Tensor& input, const at::Tensor& mean,
                              const at::Tensor& rstd, const std::optional<at::Tensor>& weight, int64_t batch,
                              int64_t channels, int64_t positions, int64_t groups, std::array<bool, 3> wanted) {
  TORCH_CHECK(batch >= 0 && channels > 0 && positions >= 0 && groups > 0 && channels % groups == 0,
              "native_group_norm_backward: ", channels, " channels in ", groups, " groups");
  TORCH_CHECK(input.dim() >= 2 && input.size(0) == batch && input.size(1) == channels &&
                  input.numel() == batch * channels * positions && grad_out.sizes() == input.sizes(),
              "native_group_norm_backward: input and grad_out must be [", batch, ", ", channels, ", ...] with ",
              positions, " positions, got ", input.sizes(), " and ", grad_out.sizes());
  TORCH_CHECK(mean.numel() == batch * groups && rstd.numel() == batch * groups,
              "native_group_norm_backward: mean and rstd must be [", batch, ", ", groups, "], got ", mean.sizes(),
              " and ", rstd.sizes());
  TORCH_CHECK(!weight || !weight->defined() || weight->numel() == channels,
              "native_group_norm_backward: the weight must have ", channels, " elements");
  const auto asked = wanted;
  if (input.suggest_memory_format() != at::MemoryFormat::Contiguous) wanted[0] = true;
  Gradients gradients = at::native::native_group_norm_backward(grad_out, input, mean, rstd, weight, batch, channels,
                                                               positions, groups, wanted);
  if (!asked[0]) std::get<0>(gradients) = at::Tensor();
  return gradients;
}

const ReplacedKernel replaced("native_group_norm_backward", group_norm_backward);

}  // namespace
}  // namespace torchgraft
