// Batch normalization in training mode on channels-last float32 maps, in the place of LibTorch's CPU kernel.
//
// LibTorch (2.13) adds up the statistics of a channel in float, one row after the other: relative errors of some 1e-6
// in one layer, where its kernel for contiguous maps has 1e-7, and ten times that at the end of a deep network. Here
// sums are in double, which costs nothing beside reading the map. Everything else goes to LibTorch's kernel.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full.h>
#include <ATen/ops/native_batch_norm_backward_native.h>
#include <ATen/ops/native_batch_norm_native.h>
#include <c10/util/Exception.h>

#include <array>
#include <optional>
#include <tuple>

#include "ops/batch_norm/batch_norm.h"
#include "ops/replaced_kernel.h"

namespace torchgraft {
namespace {

using Optional = std::optional<at::Tensor>;
using Three = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

bool is_float_vector(const Optional& t, int64_t channels) {
  return !t.has_value() || !t->defined() || (t->scalar_type() == at::kFloat && t->dim() == 1 && t->numel() == channels);
}

bool serves(const at::Tensor& x, std::initializer_list<Optional> vectors) {
  if (x.dim() != 4 || x.scalar_type() != at::kFloat || x.numel() == 0 || x.is_contiguous() ||
      !x.is_contiguous(at::MemoryFormat::ChannelsLast)) {
    return false;
  }
  for (const Optional& t : vectors) {
    if (!is_float_vector(t, x.size(1))) {
      return false;
    }
  }
  return true;
}

at::TensorOptions in_double(const at::Tensor& x) { return x.options().dtype(at::kDouble).memory_format(std::nullopt); }

// A vector of factors or summands, or the same for all channels.
at::Tensor vector_or(const Optional& t, const at::Tensor& x, double otherwise) {
  return t.has_value() && t->defined() ? t->to(at::kDouble) : at::full({x.size(1)}, otherwise, in_double(x));
}

at::Tensor in_float(const at::Tensor& t) { return t.to(at::kFloat).contiguous(); }

void move_towards(const Optional& running, const at::Tensor& batch, double momentum) {
  if (running.has_value() && running->defined()) {
    running->copy_(running->to(at::kDouble).mul_(1 - momentum).add_(batch, momentum));
  }
}

Three batch_norm(const at::Tensor& x, const Optional& weight, const Optional& bias, const Optional& running_mean,
                 const Optional& running_var, bool training, double momentum, double eps) {
  if (!training || !serves(x, {weight, bias, running_mean, running_var})) {
    return at::native::batch_norm_cpu(x, weight, bias, running_mean, running_var, training, momentum, eps);
  }
  const at::Tensor mean = at::empty({x.size(1)}, in_double(x));
  const at::Tensor variance = at::empty_like(mean);
  TORCHGRAFT_CHOOSE_KERNEL(batch_statistics_kernel)(mean, variance, x);
  const auto count = static_cast<double>(x.numel() / x.size(1));
  move_towards(running_mean, mean, momentum);
  move_towards(running_var, count > 1 ? variance.mul(count / (count - 1)) : variance.div(0), momentum);
  const at::Tensor inverse = variance.add(eps).rsqrt_();
  at::Tensor y = at::empty_like(x);
  const at::Tensor save_mean = in_float(mean);
  TORCHGRAFT_CHOOSE_KERNEL(batch_normalize_kernel)
  (y, x, save_mean, in_float(inverse.mul(vector_or(weight, x, 1))), in_float(vector_or(bias, x, 0)));
  return {y, save_mean, in_float(inverse)};
}

Three batch_norm_backward(const at::Tensor& grad_out, const at::Tensor& x, const Optional& weight,
                          const Optional& running_mean, const Optional& running_var, const Optional& save_mean,
                          const Optional& save_invstd, bool training, double eps, std::array<bool, 3> wanted) {
  const bool has_saved =
      save_mean.has_value() && save_mean->defined() && save_invstd.has_value() && save_invstd->defined();
  if (!training || !has_saved || !serves(x, {weight, save_mean, save_invstd}) || grad_out.sizes() != x.sizes() ||
      grad_out.scalar_type() != at::kFloat) {
    return at::native::batch_norm_backward_cpu(grad_out, x, weight, running_mean, running_var, save_mean, save_invstd,
                                               training, eps, wanted);
  }
  const at::Tensor grad = grad_out.contiguous(at::MemoryFormat::ChannelsLast);
  const at::Tensor mean = save_mean->contiguous();
  const at::Tensor inverse = save_invstd->to(at::kDouble);
  const at::Tensor sum_g = at::empty({x.size(1)}, in_double(x));
  const at::Tensor sum_gx = at::empty_like(sum_g);
  TORCHGRAFT_CHOOSE_KERNEL(batch_gradient_sums_kernel)(sum_g, sum_gx, grad, x, mean);
  Three result;
  if (wanted[0]) {
    const auto count = static_cast<double>(x.numel() / x.size(1));
    at::Tensor& grad_x = std::get<0>(result);
    grad_x = at::empty_like(x);
    TORCHGRAFT_CHOOSE_KERNEL(batch_input_gradient_kernel)
    (grad_x, grad, x, mean, in_float(sum_g.div(count)), in_float(sum_gx.mul(inverse).mul(inverse).div(count)),
     in_float(inverse.mul(vector_or(weight, x, 1))));
  }
  if (wanted[1]) {
    std::get<1>(result) = in_float(sum_gx.mul(inverse));
  }
  if (wanted[2]) {
    std::get<2>(result) = in_float(sum_g);
  }
  return result;
}

const ReplacedKernel replaced_forward("native_batch_norm", batch_norm);
const ReplacedKernel replaced_backward("native_batch_norm_backward", batch_norm_backward);

}  // namespace
}  // namespace torchgraft
