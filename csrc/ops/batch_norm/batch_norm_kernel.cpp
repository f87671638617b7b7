#include "batch_norm.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <vector>

// Plain loops over the channels of a row, which the compiler vectorizes for each instruction set.
namespace torchgraft::CPU_CAPABILITY {
namespace {

// Adds the two terms of `term(row, channel)` over all rows, each stretch of rows for itself.
template <typename Term>
void two_sums(double* first_out, double* second_out, int64_t rows, int64_t channels, const Term& term) {
  const int64_t stretches = std::clamp<int64_t>(rows / 32, 1, 64);
  std::vector<double> partial(static_cast<size_t>(2 * stretches * channels));
  at::parallel_for(0, stretches, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      double* first = partial.data() + 2 * part * channels;
      double* second = first + channels;
      for (int64_t r = rows * part / stretches; r < rows * (part + 1) / stretches; ++r) {
        term(r, first, second);
      }
    }
  });
  std::fill_n(first_out, channels, 0.0);
  std::fill_n(second_out, channels, 0.0);
  for (int64_t part = 0; part < stretches; ++part) {
    const double* first = partial.data() + 2 * part * channels;
    for (int64_t c = 0; c < channels; ++c) {
      first_out[c] += first[c];
      second_out[c] += first[channels + c];
    }
  }
}

template <typename Row>
void for_rows(int64_t rows, int64_t channels, const Row& row) {
  at::parallel_for(0, rows, std::max<int64_t>(1, 16384 / channels), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      row(r * channels);
    }
  });
}

}  // namespace

void batch_statistics_kernel(const at::Tensor& mean, const at::Tensor& variance, const at::Tensor& x) {
  const int64_t channels = mean.numel();
  const int64_t rows = x.numel() / channels;
  const auto* values = x.const_data_ptr<float>();
  auto* means = mean.mutable_data_ptr<double>();
  auto* variances = variance.mutable_data_ptr<double>();
  // Differences from the first row, so that the squares of a large mean do not hide a small variance.
  two_sums(means, variances, rows, channels, [&](int64_t r, double* sum, double* squares) {
    const float* row = values + r * channels;
    for (int64_t c = 0; c < channels; ++c) {
      const double d = static_cast<double>(row[c]) - static_cast<double>(values[c]);
      sum[c] += d;
      squares[c] += d * d;
    }
  });
  const auto n = static_cast<double>(rows);
  for (int64_t c = 0; c < channels; ++c) {
    const double shift = means[c] / n;
    means[c] = static_cast<double>(values[c]) + shift;
    const double var = variances[c] / n - shift * shift;
    variances[c] = var < 0 ? 0 : var;  // keeps NaN
  }
}

void batch_normalize_kernel(const at::Tensor& y, const at::Tensor& x, const at::Tensor& mean, const at::Tensor& scale,
                            const at::Tensor& shift) {
  const int64_t channels = mean.numel();
  const auto* values = x.const_data_ptr<float>();
  const auto* m = mean.const_data_ptr<float>();
  const auto* s = scale.const_data_ptr<float>();
  const auto* b = shift.const_data_ptr<float>();
  auto* out = y.mutable_data_ptr<float>();
  for_rows(x.numel() / channels, channels, [&](int64_t at) {
    for (int64_t c = 0; c < channels; ++c) {
      out[at + c] = (values[at + c] - m[c]) * s[c] + b[c];
    }
  });
}

void batch_gradient_sums_kernel(const at::Tensor& sum_g, const at::Tensor& sum_gx, const at::Tensor& grad,
                                const at::Tensor& x, const at::Tensor& mean) {
  const int64_t channels = mean.numel();
  const auto* values = x.const_data_ptr<float>();
  const auto* g = grad.const_data_ptr<float>();
  const auto* m = mean.const_data_ptr<float>();
  two_sums(sum_g.mutable_data_ptr<double>(), sum_gx.mutable_data_ptr<double>(), x.numel() / channels, channels,
           [&](int64_t r, double* sum, double* product) {
             const float* xr = values + r * channels;
             const float* gr = g + r * channels;
             for (int64_t c = 0; c < channels; ++c) {
               const auto gc = static_cast<double>(gr[c]);
               sum[c] += gc;
               product[c] += gc * (static_cast<double>(xr[c]) - static_cast<double>(m[c]));
             }
           });
}

void batch_input_gradient_kernel(const at::Tensor& grad_x, const at::Tensor& grad, const at::Tensor& x,
                                 const at::Tensor& mean, const at::Tensor& mean_g, const at::Tensor& slope,
                                 const at::Tensor& scale) {
  const int64_t channels = mean.numel();
  const auto* values = x.const_data_ptr<float>();
  const auto* g = grad.const_data_ptr<float>();
  const auto* m = mean.const_data_ptr<float>();
  const auto* mg = mean_g.const_data_ptr<float>();
  const auto* k = slope.const_data_ptr<float>();
  const auto* s = scale.const_data_ptr<float>();
  auto* out = grad_x.mutable_data_ptr<float>();
  for_rows(x.numel() / channels, channels, [&](int64_t at) {
    for (int64_t c = 0; c < channels; ++c) {
      out[at + c] = (g[at + c] - mg[c] - (values[at + c] - m[c]) * k[c]) * s[c];
    }
  });
}

}  // namespace torchgraft::CPU_CAPABILITY
