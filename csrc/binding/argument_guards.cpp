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

// Null where there is none, or it is not given.
const at::Tensor* tensor_argument(const Overload& overload, const torch::jit::Stack& stack, std::string_view name) {
  const c10::IValue* value = argument(overload, stack, name);
  return value && value->isTensor() ? &value->toTensor() : nullptr;
}

// Whether its numbers can be looked at.
bool readable(const at::Tensor& tensor) {
  return !tensor.is_meta() && tensor.layout() == at::kStrided && !tensor.is_quantized() && tensor.numel() > 0;
}

constexpr double kExact = 9007199254740992.0;  // 2^53

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
  const at::Tensor* self = tensor_argument(overload, stack, "self");
  if (!self) return;
  for (const char* name : {"out", "output", "buffer"}) {
    const at::Tensor* out = tensor_argument(overload, stack, name);
    if (out) written_fits(overload, *self, name, *out);
  }
}

// The kernel writes as many numbers into `noise`, and into `out` without resizing it, as `self` has.
void noise_fits(const Overload& overload, const torch::jit::Stack& stack) {
  const at::Tensor* self = tensor_argument(overload, stack, "self");
  const at::Tensor* noise = tensor_argument(overload, stack, "noise");
  if (!self || !noise) return;
  if (!self->sizes().equals(noise->sizes())) {
    throw ArgumentError(overload.name + ": noise must have the shape of the tensor");
  }
  written_fits(overload, *self, "noise", *noise);
  const at::Tensor* out = tensor_argument(overload, stack, "out");
  if (out && !out->sizes().equals(self->sizes())) {
    throw ArgumentError(overload.name + ": out must have the shape of the tensor");
  }
}

// The kernel looks for the next number that the dtype can hold, by steps that are too small to get there.
void bounds_fit(const Overload& overload, const torch::jit::Stack& stack) {
  constexpr int64_t exact = int64_t{1} << 53;
  const at::Tensor* self = tensor_argument(overload, stack, "self");
  if (!self || !self->is_floating_point()) return;
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
  if (!(std::abs(size) < kExact)) throw OutOfRange(overload.name + ": the range has too many elements");
  // In integers a step below 1 is 0, by which the kernel divides.
  const at::Tensor* out = tensor_argument(overload, stack, "out");
  const c10::IValue* dtype = argument(overload, stack, "dtype");
  const bool integral = out ? c10::isIntegralType(out->scalar_type(), true)
                            : dtype && dtype->isInt() && c10::isIntegralType(dtype->toScalarType(), true);
  if (integral && std::abs(stride) < 1)
    throw OutOfRange(overload.name + ": a range of integers needs a step of 1 or more");
}

// It takes the count on trust.
void count_fits(const Overload& overload, const torch::jit::Stack& stack) {
  const at::Tensor* input = tensor_argument(overload, stack, "input");
  const c10::IValue* count = argument(overload, stack, "numel");
  const c10::IValue* bins = argument(overload, stack, "n_bins");
  if (!input || !count || !bins) return;
  if (count->toInt() != input->numel()) {
    throw OutOfRange(overload.name + ": numel must be the number of elements of input");
  }
  if (bins->toInt() < 1 || bins->toInt() > 100000) throw OutOfRange(overload.name + ": n_bins must be 1 to 100000");
}

// One bin for each number from 0 to the largest: an index read as a count fills the memory, for minutes.
void bins_fit(const Overload& overload, const torch::jit::Stack& stack) {
  constexpr int64_t most = int64_t{1} << 28;
  const at::Tensor* self = tensor_argument(overload, stack, "self");
  const c10::IValue* least = argument(overload, stack, "minlength");
  if (least && least->isInt() && least->toInt() > most) {
    throw OutOfRange(overload.name + ": minlength must be at most 2^28");
  }
  if (!self) return;
  if (!c10::isIntegralType(self->scalar_type(), false) || !self->is_cpu() || !readable(*self)) return;
  if (self->max().item<int64_t>() > most) throw OutOfRange(overload.name + ": the numbers must be at most 2^28");
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
    if (n.is_complex() || !readable(n)) return;
    largest = n.to(at::kDouble).abs().max().item<double>();
  }
  if (largest > most) throw OutOfRange(overload.name + ": n must be at most 1000000");
}

// What takes the numbers in has no memory where `self` is sparse and `src` is not.
void layouts_fit(const Overload& overload, const torch::jit::Stack& stack) {
  const at::Tensor* self = tensor_argument(overload, stack, "self");
  const at::Tensor* src = tensor_argument(overload, stack, "src");
  if (!self || !src) return;
  if (self->layout() != at::kStrided && src->layout() != self->layout()) {
    throw ArgumentError(overload.name + ": a sparse tensor is replaced by one of the same layout only");
  }
}

// The kernel draws until the sum passes the count, which it never does where that is NaN.
void counts_fit(const Overload& overload, const torch::jit::Stack& stack) {
  const at::Tensor* count = tensor_argument(overload, stack, "count");
  if (!count || !count->is_floating_point() || !readable(*count)) return;
  if (count->detach().isnan().any().item<bool>()) throw ArgumentError(overload.name + ": count must not be NaN");
}

// It reads the first number of elements per step before it looks how many steps there are.
void steps_fit(const Overload& overload, const torch::jit::Stack& stack) {
  const at::Tensor* steps = tensor_argument(overload, stack, "batch_sizes");
  if (!steps) return;
  if (steps->dim() != 1 || steps->numel() == 0 || steps->scalar_type() != at::kLong || !steps->is_cpu()) {
    throw ArgumentError(overload.name + ": batch_sizes must be int64 numbers in a row, on the CPU, one or more");
  }
}

// LAPACK refuses such a matrix, which the kernel does not notice; the process ends. linalg_eig checks.
void entries_finite(const Overload& overload, const torch::jit::Stack& stack) {
  const at::Tensor* self = tensor_argument(overload, stack, "self");
  if (!self) return;
  if (c10::isIntegralType(self->scalar_type(), true) || !readable(*self)) return;
  if (!self->detach().isfinite().all().item<bool>()) {
    throw ArgumentError(overload.name + ": the matrix must not have NaN or infinite entries");
  }
}

// Along a stride of 0 the kernel reads beyond the tensor, and gives what it finds there.
void elements_differ(const Overload& overload, const torch::jit::Stack& stack) {
  const at::Tensor* self = tensor_argument(overload, stack, "self");
  const c10::IValue* dim = argument(overload, stack, "dim");
  if (!self || !dim || !dim->isInt() || self->layout() != at::kStrided) return;
  const int64_t d = dim->toInt();
  if (d < -self->dim() || d >= self->dim()) return;
  if (self->size(d) > 1 && self->stride(d) == 0) {
    throw ArgumentError(overload.name + ": the tensor is expanded along dim " + std::to_string(d) +
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

// The kernel writes beyond the memory of smaller dtypes.
void zeros_fit(const Overload& overload, const torch::jit::Stack& stack) {
  const at::Tensor* self = tensor_argument(overload, stack, "self");
  if (self && self->is_mkldnn() && self->scalar_type() != at::kFloat) {
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
  const at::Tensor* out = tensor_argument(overload, stack, "out");
  if (out && !out->is_contiguous()) {
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
    if (size[i] == 0) return;
    extent += static_cast<double>(size[i] - 1) * static_cast<double>(stride[i]);
  }
  if (std::abs(extent) > kExact) throw OutOfRange(overload.name + ": these strides reach beyond any memory");
}

// Where heads are grouped, the number of those of the queries is divided by that of the keys.
void heads_fit(const Overload& overload, const torch::jit::Stack& stack) {
  const c10::IValue* grouped = argument(overload, stack, "enable_gqa");
  if (!grouped || !grouped->isBool() || !grouped->toBool()) return;
  for (const char* name : {"key", "value"}) {
    const at::Tensor* heads = tensor_argument(overload, stack, name);
    if (heads && heads->dim() >= 3 && heads->size(-3) == 0)
      throw ArgumentError(overload.name + ": " + name + " has no heads");
  }
}

// The size of the output overflows, and the kernel loops over the whole window for each position of it.
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
