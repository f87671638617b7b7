// Found by calling every operator of LibTorch 2.13 with hundreds of random arguments each, see
// test/robustness/barrage.test.ts. Whoever finds another one adds it here, with what happens.
#include "guards.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/abs.h>
#include <ATen/ops/max.h>

#include <cmath>
#include <string_view>
#include <unordered_map>

#include "dispatch.h"
#include "napi.h"

namespace torchgraft {

namespace {

// Steps of LibTorch's own that trust their caller: with shapes, dtypes or sizes that do not fit they read and write
// outside of their memory or divide by zero. The public operators that use them check first and remain.
constexpr std::string_view kUnchecked[] = {
    // Backward steps; autograd calls them with what the forward step left.
    "_adaptive_avg_pool2d_backward",
    "_adaptive_avg_pool3d_backward",
    "_pdist_backward",
    "_slow_conv2d_backward",
    "_slow_conv2d_forward",
    "_thnn_differentiable_gru_cell_backward",
    "_thnn_differentiable_lstm_cell_backward",
    "_weight_norm_differentiable_backward",
    "_weight_norm_interface_backward",
    "fractional_max_pool2d_backward",
    "fractional_max_pool3d_backward",
    "reflection_pad1d_backward",
    "reflection_pad2d_backward",
    "reflection_pad3d_backward",
    "replication_pad1d_backward",
    "replication_pad2d_backward",
    "replication_pad3d_backward",
    // Inner parts of batch_norm, weight_norm, cholesky_solve, the fft functions, stack, reshape and sparse tensors.
    "_batch_norm_impl_index_backward",
    "_batch_norm_no_update",
    "_batch_norm_with_update",
    "_batch_norm_with_update_functional",
    "_native_batch_norm_legit",
    "_native_batch_norm_legit_functional",
    "_native_batch_norm_legit_no_training",
    "_weight_norm",
    "_weight_norm_interface",
    "_cholesky_solve_helper",
    "_fft_c2c",
    "_fft_c2r",
    "_fft_r2c",
    "_stack",
    "_reshape_alias",
    "_reshape_alias_copy",
    "_convert_indices_from_coo_to_csr",
    "_convert_indices_from_csr_to_coo",
    "_foreach_copy",
    "_nnpack_spatial_convolution",
    "_transform_bias_rescale_qkv",
    // Tensors without memory, of functorch and of forward-mode differentiation.
    "_efficientzerotensor",
    "_new_zeros_with_same_feature_meta",
    "_add_batch_dim",
    "_remove_batch_dim",
    // The state of a Sobol engine, which only its Python class builds.
    "_sobol_engine_draw",
    "_sobol_engine_ff",
    "_sobol_engine_ff_",
    "_sobol_engine_initialize_state_",
    "_sobol_engine_scramble",
    "_sobol_engine_scramble_",
    // These take weights packed by operators that cannot be called from here.
    "quantized_gru_cell",
    "quantized_lstm_cell",
    "quantized_rnn_relu_cell",
    "quantized_rnn_tanh_cell",
};

[[noreturn]] void refuse(const Overload& overload, const torch::jit::Stack&) {
  throw ArgumentError(overload.name +
                      ": is an inner step of LibTorch that does not check its arguments, so that a wrong one would end "
                      "the process; call the public operator that it belongs to");
}

const c10::IValue* argument(const Overload& overload, const torch::jit::Stack& stack, std::string_view name) {
  for (size_t i = 0; i < overload.parameters.size() && i < stack.size(); ++i) {
    if (overload.parameters[i].name == name) return &stack[i];
  }
  return nullptr;
}

double number(const c10::IValue& value) {
  const at::Scalar scalar = value.toScalar();
  return scalar.isComplex() ? std::abs(scalar.toComplexDouble()) : scalar.toDouble();
}

// The kernel writes as many numbers into `noise`, and into `out` without resizing it, as `self` has.
void noise_fits(const Overload& overload, const torch::jit::Stack& stack) {
  const c10::IValue* self = argument(overload, stack, "self");
  const c10::IValue* noise = argument(overload, stack, "noise");
  if (!self || !noise || !self->isTensor() || !noise->isTensor()) return;
  if (!self->toTensor().sizes().equals(noise->toTensor().sizes()) ||
      self->toTensor().scalar_type() != noise->toTensor().scalar_type()) {
    throw ArgumentError(overload.name + ": noise must have the shape and the dtype of the tensor");
  }
  const c10::IValue* out = argument(overload, stack, "out");
  if (out && out->isTensor() && !out->toTensor().sizes().equals(self->toTensor().sizes())) {
    throw ArgumentError(overload.name + ": out must have the shape of the tensor");
  }
}

// The kernel looks for the next number that the dtype can hold, by steps that are too small to get there.
void bounds_fit(const Overload& overload, const torch::jit::Stack& stack) {
  constexpr int64_t exact = int64_t{1} << 53;
  const c10::IValue* self = argument(overload, stack, "self");
  if (!self || !self->isTensor() || !self->toTensor().is_floating_point()) return;
  for (const char* name : {"from", "to"}) {
    const c10::IValue* bound = argument(overload, stack, name);
    if (bound && bound->isInt() && (bound->toInt() > exact || bound->toInt() < -exact)) {
      throw OutOfRange(overload.name + ": " + name + " must be within 2^53 of 0 for floating point tensors");
    }
  }
}

// The kernel divides by a number that is zero as an integer.
void is_floating(const Overload& overload, const torch::jit::Stack& stack) {
  const c10::IValue* self = argument(overload, stack, "self");
  if (self && self->isTensor() && !self->toTensor().is_floating_point()) {
    throw ArgumentError(overload.name + ": the tensor must be a floating point one");
  }
}

// The kernels read as many paddings as their dimensions ask for.
void padding_fits(const Overload& overload, const torch::jit::Stack& stack) {
  const c10::IValue* padding = argument(overload, stack, "padding");
  const size_t digit = overload.name.find("_pad");
  if (!padding || !padding->isIntList() || digit == std::string::npos) return;
  const size_t expected = 2 * static_cast<size_t>(overload.name[digit + 4] - '0');
  if (padding->toIntList().size() != expected) {
    throw ArgumentError(overload.name + ": padding must have " + std::to_string(expected) + " numbers");
  }
}

// The number of elements is computed in floating point and overflows.
void range_fits(const Overload& overload, const torch::jit::Stack& stack) {
  const c10::IValue* start = argument(overload, stack, "start");
  const c10::IValue* end = argument(overload, stack, "end");
  const c10::IValue* step = argument(overload, stack, "step");
  if (!start || !end || !start->isScalar() || !end->isScalar()) return;
  const double size = (number(*end) - number(*start)) / (step && step->isScalar() ? number(*step) : 1);
  if (!(std::abs(size) < 9007199254740992.0)) throw OutOfRange(overload.name + ": the range has too many elements");
}

// It takes the count on trust.
void count_fits(const Overload& overload, const torch::jit::Stack& stack) {
  const c10::IValue* input = argument(overload, stack, "input");
  const c10::IValue* count = argument(overload, stack, "numel");
  const c10::IValue* bins = argument(overload, stack, "n_bins");
  if (!input || !count || !bins || !input->isTensor()) return;
  if (count->toInt() != input->toTensor().numel()) {
    throw OutOfRange(overload.name + ": numel must be the number of elements of input");
  }
  if (bins->toInt() < 1 || bins->toInt() > 100000) throw OutOfRange(overload.name + ": n_bins must be 1 to 100000");
}

// The kernels loop from 0 to the degree for every element.
void degree_fits(const Overload& overload, const torch::jit::Stack& stack) {
  constexpr double most = 1e6;
  const c10::IValue* degree = argument(overload, stack, "n");
  if (!degree) return;
  double largest = 0;
  if (degree->isScalar()) {
    largest = std::abs(number(*degree));
  } else if (degree->isTensor()) {
    const at::Tensor n = degree->toTensor().detach();
    if (n.is_meta() || n.numel() == 0 || n.is_complex() || n.layout() != at::kStrided || n.is_quantized()) return;
    largest = n.to(at::kDouble).abs().max().item<double>();
  }
  if (largest > most) throw OutOfRange(overload.name + ": n must be at most 1000000");
}

std::unordered_map<std::string, Guard> make_guards() {
  std::unordered_map<std::string, Guard> guards;
  for (const std::string_view name : kUnchecked) guards.emplace("aten::" + std::string(name), refuse);
  for (const char* name :
       {"rrelu_with_noise", "rrelu_with_noise_", "rrelu_with_noise_functional", "rrelu_with_noise_backward"}) {
    guards.emplace(std::string("aten::") + name, noise_fits);
  }
  for (const char* kind : {"reflection", "replication"}) {
    for (const char* dims : {"1", "2", "3"}) {
      guards.emplace(std::string("aten::") + kind + "_pad" + dims + "d", padding_fits);
    }
  }
  guards.emplace("aten::range", range_fits);
  guards.emplace("aten::random", bounds_fit);
  guards.emplace("aten::random_", bounds_fit);
  guards.emplace("aten::smooth_l1_loss_backward", is_floating);
  guards.emplace("aten::huber_loss_backward", is_floating);
  guards.emplace("aten::choose_qparams_optimized", count_fits);
  for (const char* name :
       {"chebyshev_polynomial_t", "chebyshev_polynomial_u", "chebyshev_polynomial_v", "chebyshev_polynomial_w",
        "hermite_polynomial_h", "hermite_polynomial_he", "laguerre_polynomial_l", "legendre_polynomial_p",
        "shifted_chebyshev_polynomial_t", "shifted_chebyshev_polynomial_u", "shifted_chebyshev_polynomial_v",
        "shifted_chebyshev_polynomial_w"}) {
    guards.emplace(std::string("aten::special_") + name, degree_fits);
  }
  return guards;
}

}  // namespace

Guard find_guard(const std::string& name) {
  static const auto* guards = new std::unordered_map<std::string, Guard>(make_guards());
  const auto found = guards->find(name);
  return found == guards->end() ? nullptr : found->second;
}

}  // namespace torchgraft
