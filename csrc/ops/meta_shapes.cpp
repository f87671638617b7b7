// Shapes on the meta device for operators whose meta kernels live in PyTorch's Python part, which LibTorch comes
// without. With them whole networks run on the meta device: shapes and counts of multiply-accumulates, without memory.
#include <ATen/ATen.h>
#include <ATen/ExpandUtils.h>
#include <ATen/WrapDimUtils.h>
#include <torch/library.h>

#include <tuple>
#include <vector>

namespace torchgraft {
namespace {

at::Tensor convolution(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>&,
                       c10::SymIntArrayRef stride, c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation,
                       bool transposed, c10::SymIntArrayRef output_padding, c10::SymInt groups) {
  const auto size = [&](int64_t dim) { return input.size(dim); };
  std::vector<int64_t> out{size(0), transposed ? weight.size(1) * groups.expect_int() : weight.size(0)};
  for (int64_t i = 0; i < input.dim() - 2; ++i) {
    const int64_t reach = dilation[i].expect_int() * (weight.size(i + 2) - 1);
    const int64_t pad = 2 * padding[i].expect_int();
    const int64_t step = stride[i].expect_int();
    const int64_t length = transposed ? (size(i + 2) - 1) * step - pad + reach + output_padding[i].expect_int() + 1
                                      : (size(i + 2) + pad - reach - 1) / step + 1;
    TORCH_CHECK(length > 0, "the kernel is larger than its padded input, ", input.sizes(), " with a weight of ",
                weight.sizes());
    out.push_back(length);
  }
  return at::empty(out, input.options(), input.suggest_memory_format());
}

using Optional = std::optional<at::Tensor>;

std::tuple<at::Tensor, at::Tensor, at::Tensor> batch_norm(const at::Tensor& input, const Optional&, const Optional&,
                                                          const Optional&, const Optional&, bool training, double,
                                                          double) {
  const at::Tensor statistics = at::empty({training ? input.size(1) : 0}, input.options());
  return {at::empty_like(input), statistics, at::empty_like(statistics)};
}

std::tuple<at::Tensor, at::Tensor> var_mean(const at::Tensor& self, at::OptionalIntArrayRef dim,
                                            const std::optional<at::Scalar>&, bool keepdim) {
  const at::Tensor reduced = at::sum(self, dim, keepdim);
  return {reduced, at::empty_like(reduced)};
}

at::Tensor index_select(const at::Tensor& self, int64_t dim, const at::Tensor& index) {
  auto sizes = self.sizes().vec();
  if (!sizes.empty()) sizes[static_cast<size_t>(at::maybe_wrap_dim(dim, self.dim()))] = index.numel();
  return at::empty(sizes, self.options());
}

at::Tensor& where_out(const at::Tensor& condition, const at::Tensor& self, const at::Tensor& other, at::Tensor& out) {
  const auto sizes = at::infer_size(at::infer_size(condition.sizes(), self.sizes()), other.sizes());
  if (out.sizes() != at::IntArrayRef(sizes)) out.resize_(sizes);
  return out;
}

at::Tensor fft_r2c(const at::Tensor& self, at::IntArrayRef dims, int64_t, bool onesided) {
  auto sizes = self.sizes().vec();
  if (onesided && !dims.empty()) {
    int64_t& last = sizes[static_cast<size_t>(at::maybe_wrap_dim(dims.back(), self.dim()))];
    last = last / 2 + 1;
  }
  return at::empty(sizes, self.options().dtype(c10::toComplexType(self.scalar_type())));
}

at::Tensor fft_c2r(const at::Tensor& self, at::IntArrayRef dims, int64_t, c10::SymInt last) {
  auto sizes = self.sizes().vec();
  if (!dims.empty()) sizes[static_cast<size_t>(at::maybe_wrap_dim(dims.back(), self.dim()))] = last.expect_int();
  return at::empty(sizes, self.options().dtype(c10::toRealValueType(self.scalar_type())));
}

at::Tensor fft_c2c(const at::Tensor& self, c10::SymIntArrayRef, int64_t, bool) { return at::empty_like(self); }

at::Tensor grid_sampler(const at::Tensor& input, const at::Tensor& grid, int64_t, int64_t, bool) {
  return at::empty({input.size(0), input.size(1), grid.size(1), grid.size(2)}, input.options());
}

TORCH_LIBRARY_IMPL(aten, Meta, m) {
  m.impl("convolution_overrideable", convolution);
  m.impl("native_batch_norm", batch_norm);
  m.impl("var_mean.correction", var_mean);
  m.impl("index_select", index_select);
  m.impl("randperm.generator_out", [](c10::SymInt n, std::optional<at::Generator>, at::Tensor& out) -> at::Tensor& {
    out.resize_({n.expect_int()});
    return out;
  });
  m.impl("where.self_out", where_out);
  m.impl("_fft_r2c", fft_r2c);
  m.impl("_fft_c2r", fft_c2r);
  m.impl("_fft_c2c", fft_c2c);
  m.impl("grid_sampler_2d", grid_sampler);
  m.impl("abs.out", [](const at::Tensor& self, at::Tensor& out) -> at::Tensor& {
    if (out.sizes() != self.sizes()) out.resize_(self.sizes());
    return out;
  });
  m.impl("roll", [](const at::Tensor& self, c10::SymIntArrayRef, at::IntArrayRef) { return at::empty_like(self); });
  m.impl("hardtanh", [](const at::Tensor& self, const at::Scalar&, const at::Scalar&) { return at::empty_like(self); });
  m.impl("relu", [](const at::Tensor& self) { return at::empty_like(self); });
}

}  // namespace
}  // namespace torchgraft
