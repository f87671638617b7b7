// Found by calling every operator of LibTorch 2.13 with thousands of random arguments each, see
// test/robustness/barrage.test.ts. Whoever finds another one adds it here, with what happens.
#include "argument_guards.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/abs.h>
#include <ATen/ops/all.h>
#include <ATen/ops/any.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/isnan.h>
#include <ATen/ops/max.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "dispatch.h"
#include "napi.h"

namespace torchgraft {

namespace {

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

// Kernels that write into a tensor without looking at its dtype and at how its elements lie.
void written_fits(const Overload& overload, const at::Tensor& self, const char* name, const at::Tensor& written) {
  if (written.scalar_type() != self.scalar_type()) {
    throw ArgumentError(overload.name + ": " + name + " must have the dtype of the tensor");
  }
  if (!written.is_non_overlapping_and_dense()) {
    throw ArgumentError(overload.name + ": " + name + " is written to and must have memory for each of its elements");
  }
}

void outputs_fit(const Overload& overload, const torch::jit::Stack& stack) {
  const c10::IValue* self = argument(overload, stack, "self");
  if (!self || !self->isTensor()) return;
  for (const char* name : {"out", "output", "buffer"}) {
    const c10::IValue* out = argument(overload, stack, name);
    if (out && out->isTensor()) written_fits(overload, self->toTensor(), name, out->toTensor());
  }
}

// The kernel writes as many numbers into `noise`, and into `out` without resizing it, as `self` has.
void noise_fits(const Overload& overload, const torch::jit::Stack& stack) {
  const c10::IValue* self = argument(overload, stack, "self");
  const c10::IValue* noise = argument(overload, stack, "noise");
  if (!self || !noise || !self->isTensor() || !noise->isTensor()) return;
  if (!self->toTensor().sizes().equals(noise->toTensor().sizes())) {
    throw ArgumentError(overload.name + ": noise must have the shape of the tensor");
  }
  written_fits(overload, self->toTensor(), "noise", noise->toTensor());
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
  const double stride = step && step->isScalar() ? number(*step) : 1;
  const double size = (number(*end) - number(*start)) / stride;
  if (!(std::abs(size) < 9007199254740992.0)) throw OutOfRange(overload.name + ": the range has too many elements");
  // In integers a step below 1 is 0, by which the kernel divides.
  const c10::IValue* out = argument(overload, stack, "out");
  const c10::IValue* dtype = argument(overload, stack, "dtype");
  const bool integral = out && out->isTensor()
                            ? c10::isIntegralType(out->toTensor().scalar_type(), true)
                            : dtype && dtype->isInt() && c10::isIntegralType(dtype->toScalarType(), true);
  if (integral && std::abs(stride) < 1)
    throw OutOfRange(overload.name + ": a range of integers needs a step of 1 or more");
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

// One bin for each number from 0 to the largest: an index read as a count fills the memory, for minutes.
void bins_fit(const Overload& overload, const torch::jit::Stack& stack) {
  constexpr int64_t most = int64_t{1} << 28;
  const c10::IValue* self = argument(overload, stack, "self");
  const c10::IValue* least = argument(overload, stack, "minlength");
  if (least && least->isInt() && least->toInt() > most) {
    throw OutOfRange(overload.name + ": minlength must be at most 2^28");
  }
  if (!self || !self->isTensor()) return;
  const at::Tensor& counted = self->toTensor();
  const bool integral = c10::isIntegralType(counted.scalar_type(), false);
  if (!integral || !counted.is_cpu() || counted.layout() != at::kStrided || counted.numel() == 0) return;
  if (counted.max().item<int64_t>() > most) throw OutOfRange(overload.name + ": the numbers must be at most 2^28");
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

// What takes the numbers in has no memory where `self` is sparse and `src` is not.
void layouts_fit(const Overload& overload, const torch::jit::Stack& stack) {
  const c10::IValue* self = argument(overload, stack, "self");
  const c10::IValue* src = argument(overload, stack, "src");
  if (!self || !src || !self->isTensor() || !src->isTensor()) return;
  const at::Layout layout = self->toTensor().layout();
  if (layout != at::kStrided && src->toTensor().layout() != layout) {
    throw ArgumentError(overload.name + ": a sparse tensor is replaced by one of the same layout only");
  }
}

// The kernel draws until the sum passes the count, which it never does where that is NaN.
void counts_fit(const Overload& overload, const torch::jit::Stack& stack) {
  const c10::IValue* count = argument(overload, stack, "count");
  if (!count || !count->isTensor()) return;
  const at::Tensor& counts = count->toTensor();
  if (!counts.is_floating_point() || counts.is_meta() || counts.layout() != at::kStrided) return;
  if (counts.detach().isnan().any().item<bool>()) throw ArgumentError(overload.name + ": count must not be NaN");
}

// It reads the first number of elements per step before it looks how many steps there are.
void steps_fit(const Overload& overload, const torch::jit::Stack& stack) {
  const c10::IValue* steps = argument(overload, stack, "batch_sizes");
  if (!steps || !steps->isTensor()) return;
  const at::Tensor& sizes = steps->toTensor();
  if (sizes.dim() != 1 || sizes.numel() == 0 || sizes.scalar_type() != at::kLong || !sizes.is_cpu()) {
    throw ArgumentError(overload.name + ": batch_sizes must be int64 numbers in a row, on the CPU, one or more");
  }
}

// LAPACK gives up on such a matrix before it says how much memory it needs.
void entries_finite(const Overload& overload, const torch::jit::Stack& stack) {
  const c10::IValue* self = argument(overload, stack, "self");
  if (!self || !self->isTensor()) return;
  const at::Tensor matrix = self->toTensor().detach();
  if (matrix.is_meta() || matrix.layout() != at::kStrided || c10::isIntegralType(matrix.scalar_type(), true)) return;
  if (!matrix.isfinite().all().item<bool>()) {
    throw ArgumentError(overload.name + ": the matrix must not have NaN or infinite entries");
  }
}

// The kernel sorts in place where the elements of a row are one and the same, and reads beyond them.
void elements_differ(const Overload& overload, const torch::jit::Stack& stack) {
  const c10::IValue* self = argument(overload, stack, "self");
  const c10::IValue* dim = argument(overload, stack, "dim");
  if (!self || !dim || !self->isTensor() || !dim->isInt()) return;
  const at::Tensor& tensor = self->toTensor();
  if (tensor.layout() != at::kStrided || dim->toInt() < -tensor.dim() || dim->toInt() >= tensor.dim()) return;
  if (tensor.size(dim->toInt()) > 1 && tensor.stride(dim->toInt()) == 0) {
    throw ArgumentError(overload.name + ": the tensor is expanded along dim " + std::to_string(dim->toInt()) +
                        ", where LibTorch reads beyond its memory; call contiguous() first");
  }
}

// The kernels loop over all positions of a map, also where there are no channels or one side is 0.
void maps_fit(const Overload& overload, const torch::jit::Stack& stack) {
  constexpr int64_t most = int64_t{1} << 31;
  const c10::IValue* sides = argument(overload, stack, "output_size");
  if (!sides || !sides->isIntList()) return;
  int64_t positions = 1;
  for (const int64_t side : sides->toIntVector()) {
    if (side > most || (positions *= std::max<int64_t>(side, 1)) > most) {
      throw OutOfRange(overload.name + ": output_size must have at most 2^31 positions");
    }
  }
}

// The kernel writes as many numbers of 4 bytes as the tensor has elements, of whatever size these are.
void zeros_fit(const Overload& overload, const torch::jit::Stack& stack) {
  const c10::IValue* self = argument(overload, stack, "self");
  if (self && self->isTensor() && self->toTensor().is_mkldnn() && self->toTensor().scalar_type() != at::kFloat) {
    throw ArgumentError(overload.name + ": a tensor of layout mkldnn must be float32");
  }
}

// The kernel takes the exponent's sign away and goes on until it is 0; this one has no positive counterpart.
void exponent_fits(const Overload& overload, const torch::jit::Stack& stack) {
  const c10::IValue* exponent = argument(overload, stack, "n");
  if (exponent && exponent->isInt() && exponent->toInt() == std::numeric_limits<int64_t>::min()) {
    throw OutOfRange(overload.name + ": n must be greater than -2^63");
  }
}

// These write in the order in which `out` would lie had they made it.
void output_contiguous(const Overload& overload, const torch::jit::Stack& stack) {
  const c10::IValue* out = argument(overload, stack, "out");
  if (out && out->isTensor() && !out->toTensor().is_contiguous()) {
    throw ArgumentError(overload.name + ": out must be contiguous");
  }
}

// The memory that is needed is computed in 64 bits, which overflow to a size that is there.
void strides_fit(const Overload& overload, const torch::jit::Stack& stack) {
  const c10::IValue* sizes = argument(overload, stack, "size");
  const c10::IValue* strides = argument(overload, stack, "stride");
  if (!sizes || !strides || !sizes->isIntList() || !strides->isIntList()) return;
  const std::vector<int64_t> size = sizes->toIntVector();
  const std::vector<int64_t> stride = strides->toIntVector();
  double extent = 0;
  for (size_t i = 0; i < std::min(size.size(), stride.size()); ++i) {
    extent += static_cast<double>(size[i]) * static_cast<double>(stride[i]);
  }
  if (std::abs(extent) > 9007199254740992.0)
    throw OutOfRange(overload.name + ": these strides reach beyond any memory");
}

// The number of heads of the queries is divided by that of the keys.
void heads_fit(const Overload& overload, const torch::jit::Stack& stack) {
  for (const char* name : {"key", "value"}) {
    const c10::IValue* heads = argument(overload, stack, name);
    if (!heads || !heads->isTensor() || heads->toTensor().dim() < 3) continue;
    if (heads->toTensor().size(-3) == 0) throw ArgumentError(overload.name + ": " + name + " has no heads");
  }
}

// The size of the output is computed in 32 bits.
void window_fits(const Overload& overload, const torch::jit::Stack& stack) {
  const auto first = [&](const char* name) {
    const c10::IValue* list = argument(overload, stack, name);
    if (!list || !list->isIntList() || list->toIntList().empty()) return 1.0;
    return std::abs(static_cast<double>(list->toIntList().get(0)));
  };
  if (first("kernel_size") * first("dilation") + 2 * first("padding") + first("stride") > 2147483647.0) {
    throw OutOfRange(overload.name + ": the window must reach over fewer than 2^31 elements");
  }
}

std::unordered_map<std::string, Guard> make_guards() {
  std::unordered_map<std::string, Guard> guards;
  for (const char* name : {"rrelu_with_noise", "rrelu_with_noise_", "rrelu_with_noise_functional"}) {
    guards.emplace(std::string("aten::") + name, noise_fits);
  }
  for (const char* kind : {"reflection", "replication"}) {
    for (const char* dims : {"1", "2", "3"}) {
      guards.emplace(std::string("aten::") + kind + "_pad" + dims + "d", padding_fits);
    }
  }
  for (const char* name : {"tril", "triu", "_softmax", "_log_softmax"}) {
    guards.emplace(std::string("aten::") + name, output_contiguous);
  }
  for (const char* name :
       {"as_strided", "as_strided_", "as_strided_copy", "as_strided_scatter", "empty_strided", "new_empty_strided"}) {
    guards.emplace(std::string("aten::") + name, strides_fit);
  }
  guards.emplace("aten::scaled_dot_product_attention", heads_fit);
  guards.emplace("aten::max_pool1d", window_fits);
  guards.emplace("aten::range", range_fits);
  guards.emplace("aten::bincount", bins_fit);
  guards.emplace("aten::random", bounds_fit);
  guards.emplace("aten::random_", bounds_fit);
  guards.emplace("aten::copy", layouts_fit);
  guards.emplace("aten::log_sigmoid", outputs_fit);
  guards.emplace("aten::log_sigmoid_forward", outputs_fit);
  guards.emplace("aten::binomial", counts_fit);
  for (const char* name : {"lstm", "gru", "rnn_tanh", "rnn_relu"}) {
    guards.emplace(std::string("aten::") + name, steps_fit);
  }
  guards.emplace("aten::linalg_eigvals", entries_finite);
  guards.emplace("aten::median", elements_differ);
  guards.emplace("aten::nanmedian", elements_differ);
  for (const char* name : {"max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d"}) {
    guards.emplace(std::string("aten::adaptive_") + name, maps_fit);
  }
  guards.emplace("aten::zero_", zeros_fit);
  guards.emplace("aten::matrix_power", exponent_fits);
  guards.emplace("aten::linalg_matrix_power", exponent_fits);
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

const std::unordered_map<std::string, Guard>& argument_guards() {
  static const auto* guards = new std::unordered_map<std::string, Guard>(make_guards());
  return *guards;
}

}  // namespace torchgraft
