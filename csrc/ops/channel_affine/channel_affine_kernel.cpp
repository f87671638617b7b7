#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#if defined(CPU_CAPABILITY_AVX2) || defined(CPU_CAPABILITY_AVX512)
#include <immintrin.h>
#endif

#include "channel_affine.h"

// Plain loops that the compiler vectorizes for each instruction set; only bit masks need intrinsics.
namespace torchgraft::CPU_CAPABILITY {
namespace {

// Elements that one pass handles while they are in the first-level cache.
constexpr int64_t kChunk = 2048;

// Factors per element of one chunk. With inner = 1 they repeat with the channels, so they are laid out once, long
// enough for long inner loops; otherwise they are constant along a run of `inner` elements.
template <typename Arithmetic>
class Factors {
 public:
  Factors(const at::Tensor& values, int64_t period, int64_t channels) {
    if (!values.defined()) {
      return;
    }
    const auto* source = values.const_data_ptr<Arithmetic>();
    values_.resize(static_cast<size_t>(period));
    for (int64_t i = 0; i < period; ++i) {
      values_[static_cast<size_t>(i)] = source[i % channels];
    }
  }
  const Arithmetic* data() const { return values_.data(); }

 private:
  std::vector<Arithmetic> values_;
};

// Length of a chunk that starts at channel 0 and at a whole byte of the mask.
int64_t chunk_length(ChannelLayout layout) {
  if (layout.inner != 1) {
    return kChunk;
  }
  const int64_t unit = std::lcm(layout.channels, int64_t{8});
  return unit * std::max<int64_t>(1, kChunk / unit);
}

template <typename T>
void pack_mask(const T* values, int64_t count, uint8_t* bits) {
  for (int64_t i = 0; i < count; i += 8) {
    unsigned byte = 0;
    for (int64_t j = 0; j < std::min<int64_t>(8, count - i); ++j) {
      byte |= static_cast<unsigned>(!(static_cast<float>(values[i + j]) <= 0)) << j;
    }
    bits[i / 8] = static_cast<uint8_t>(byte);
  }
}

inline void pack_mask(const float* values, int64_t count, uint8_t* bits) {
  int64_t i = 0;
#if defined(CPU_CAPABILITY_AVX512)
  for (; i + 16 <= count; i += 16) {
    const __mmask16 mask = _mm512_cmp_ps_mask(_mm512_loadu_ps(values + i), _mm512_setzero_ps(), _CMP_NLE_UQ);
    bits[i / 8] = static_cast<uint8_t>(mask);
    bits[i / 8 + 1] = static_cast<uint8_t>(mask >> 8);
  }
#elif defined(CPU_CAPABILITY_AVX2)
  for (; i + 8 <= count; i += 8) {
    const __m256 keep = _mm256_cmp_ps(_mm256_loadu_ps(values + i), _mm256_setzero_ps(), _CMP_NLE_UQ);
    bits[i / 8] = static_cast<uint8_t>(_mm256_movemask_ps(keep));
  }
#endif
  if (i < count) {
    pack_mask<float>(values + i, count - i, bits + i / 8);
  }
}

template <typename T>
void apply_mask(const T* values, const uint8_t* bits, int64_t count, T* out) {
  for (int64_t i = 0; i < count; ++i) {
    out[i] = (bits[i / 8] >> (i % 8)) & 1 ? values[i] : T(0);
  }
}

inline void apply_mask(const float* values, const uint8_t* bits, int64_t count, float* out) {
  int64_t i = 0;
#if defined(CPU_CAPABILITY_AVX512)
  for (; i + 16 <= count; i += 16) {
    const auto mask = static_cast<__mmask16>(bits[i / 8] | (bits[i / 8 + 1] << 8));
    _mm512_storeu_ps(out + i, _mm512_maskz_loadu_ps(mask, values + i));
  }
#elif defined(CPU_CAPABILITY_AVX2)
  const __m256i lanes = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  for (; i + 8 <= count; i += 8) {
    const __m256i byte = _mm256_and_si256(_mm256_set1_epi32(bits[i / 8]), lanes);
    const __m256 keep = _mm256_castsi256_ps(_mm256_cmpeq_epi32(byte, lanes));
    _mm256_storeu_ps(out + i, _mm256_and_ps(keep, _mm256_loadu_ps(values + i)));
  }
#endif
  if (i < count) {
    apply_mask<float>(values + i, bits + i / 8, count - i, out + i);
  }
}

// Runs body(begin, end) over chunks, in parallel.
template <typename Body>
void for_chunks(int64_t numel, int64_t length, const Body& body) {
  const int64_t chunks = (numel + length - 1) / length;
  at::parallel_for(0, chunks, std::max<int64_t>(1, 16384 / length), [&](int64_t first, int64_t last) {
    for (int64_t chunk = first; chunk < last; ++chunk) {
      body(chunk * length, std::min(numel, (chunk + 1) * length));
    }
  });
}

// Calls body(begin, end, channel) for every run of elements of one channel in [begin, end).
template <typename Body>
void for_runs(int64_t begin, int64_t end, ChannelLayout layout, const Body& body) {
  while (begin < end) {
    const int64_t run = begin / layout.inner;
    const int64_t stop = std::min(end, (run + 1) * layout.inner);
    body(begin, stop, run % layout.channels);
    begin = stop;
  }
}

template <typename T, typename A, bool kShift, bool kResidual, bool kRelu>
inline T affine(T x, A scale, A shift, T residual) {
  A y = static_cast<A>(x) * scale;
  if constexpr (kShift) {
    y += shift;
  }
  if constexpr (kResidual) {
    y += static_cast<A>(residual);
  }
  if constexpr (kRelu) {
    y = y < A(0) ? A(0) : y;  // keeps NaN, as relu does
  }
  return static_cast<T>(y);
}

template <typename T, typename A, bool kShift, bool kResidual, bool kRelu>
void affine_pass(T* out, const T* x, const T* residual, const at::Tensor& scale, const at::Tensor& shift, uint8_t* mask,
                 int64_t numel, ChannelLayout layout) {
  const int64_t length = chunk_length(layout);
  if (layout.inner == 1) {
    const Factors<A> scales(scale, std::min(length, numel), layout.channels);
    const Factors<A> shifts(shift, std::min(length, numel), layout.channels);
    for_chunks(numel, length, [&](int64_t begin, int64_t end) {
      const A* s = scales.data();
      const A* t = shifts.data();
      const T* from = x + begin;
      const T* add = kResidual ? residual + begin : nullptr;
      T* to = out + begin;
      const int64_t count = end - begin;
      for (int64_t i = 0; i < count; ++i) {
        to[i] = affine<T, A, kShift, kResidual, kRelu>(from[i], s[i], kShift ? t[i] : A(0), kResidual ? add[i] : T(0));
      }
      if (mask != nullptr) {
        pack_mask(to, count, mask + begin / 8);
      }
    });
    return;
  }
  const auto* scales = scale.const_data_ptr<A>();
  const auto* shifts = kShift ? shift.const_data_ptr<A>() : nullptr;
  for_chunks(numel, length, [&](int64_t begin, int64_t end) {
    for_runs(begin, end, layout, [&](int64_t first, int64_t last, int64_t channel) {
      const A s = scales[channel];
      const A t = kShift ? shifts[channel] : A(0);
      for (int64_t i = first; i < last; ++i) {
        out[i] = affine<T, A, kShift, kResidual, kRelu>(x[i], s, t, kResidual ? residual[i] : T(0));
      }
    });
    if (mask != nullptr) {
      pack_mask(out + begin, end - begin, mask + begin / 8);
    }
  });
}

template <typename T, typename A, bool kShift, bool kResidual>
void affine_pass(bool relu, T* out, const T* x, const T* residual, const at::Tensor& scale, const at::Tensor& shift,
                 uint8_t* mask, int64_t numel, ChannelLayout layout) {
  if (relu) {
    affine_pass<T, A, kShift, kResidual, true>(out, x, residual, scale, shift, mask, numel, layout);
  } else {
    affine_pass<T, A, kShift, kResidual, false>(out, x, residual, scale, shift, mask, numel, layout);
  }
}

}  // namespace

void norm_terms_kernel(const at::Tensor& scale, const at::Tensor& shift, const at::Tensor& weight,
                       const at::Tensor& bias, const at::Tensor& mean, const at::Tensor& variance, double eps) {
  AT_DISPATCH_FLOATING_TYPES(mean.scalar_type(), "norm_terms", [&] {
    auto* alpha = scale.mutable_data_ptr<scalar_t>();
    auto* beta = shift.mutable_data_ptr<scalar_t>();
    const auto* means = mean.const_data_ptr<scalar_t>();
    const auto* variances = variance.const_data_ptr<scalar_t>();
    const scalar_t* weights = weight.defined() ? weight.const_data_ptr<scalar_t>() : nullptr;
    const scalar_t* biases = bias.defined() ? bias.const_data_ptr<scalar_t>() : nullptr;
    for (int64_t c = 0; c < mean.numel(); ++c) {
      const scalar_t inverse = 1 / std::sqrt(variances[c] + static_cast<scalar_t>(eps));
      alpha[c] = inverse * (weights != nullptr ? weights[c] : scalar_t(1));
      beta[c] = (biases != nullptr ? biases[c] : scalar_t(0)) - means[c] * alpha[c];
    }
  });
}

void channel_affine_kernel(const at::Tensor& out, const at::Tensor& x, const at::Tensor& scale, const at::Tensor& shift,
                           const at::Tensor& residual, bool relu, uint8_t* mask, ChannelLayout layout) {
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, x.scalar_type(), "channel_affine", [&] {
    using A = at::opmath_type<scalar_t>;
    auto* to = out.mutable_data_ptr<scalar_t>();
    const auto* from = x.const_data_ptr<scalar_t>();
    const scalar_t* add = residual.defined() ? residual.const_data_ptr<scalar_t>() : nullptr;
    const int64_t n = x.numel();
    if (shift.defined()) {
      if (add != nullptr) {
        affine_pass<scalar_t, A, true, true>(relu, to, from, add, scale, shift, mask, n, layout);
      } else {
        affine_pass<scalar_t, A, true, false>(relu, to, from, add, scale, shift, mask, n, layout);
      }
    } else if (add != nullptr) {
      affine_pass<scalar_t, A, false, true>(relu, to, from, add, scale, shift, mask, n, layout);
    } else {
      affine_pass<scalar_t, A, false, false>(relu, to, from, add, scale, shift, mask, n, layout);
    }
  });
}

void channel_mask_kernel(const at::Tensor& masked, const at::Tensor& scaled, const at::Tensor& grad,
                         const at::Tensor& scale, const uint8_t* mask, ChannelLayout layout) {
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, grad.scalar_type(), "channel_mask", [&] {
    using A = at::opmath_type<scalar_t>;
    const auto* from = grad.const_data_ptr<scalar_t>();
    scalar_t* plain = masked.defined() ? masked.mutable_data_ptr<scalar_t>() : nullptr;
    scalar_t* times = scaled.defined() ? scaled.mutable_data_ptr<scalar_t>() : nullptr;
    const int64_t length = chunk_length(layout);
    const int64_t n = grad.numel();
    const Factors<A> factors(layout.inner == 1 ? scale : at::Tensor(), std::min(length, n), layout.channels);
    for_chunks(n, length, [&](int64_t begin, int64_t end) {
      // The masked values go where there is room for them, then are scaled from there.
      const scalar_t* values = from + begin;
      if (mask != nullptr) {
        scalar_t* room = (plain != nullptr ? plain : times) + begin;
        apply_mask(values, mask + begin / 8, end - begin, room);
        values = room;
      }
      if (times == nullptr) {
        return;
      }
      if (layout.inner == 1) {
        const A* s = factors.data();
        for (int64_t i = 0; i < end - begin; ++i) {
          times[begin + i] = static_cast<scalar_t>(static_cast<A>(values[i]) * s[i]);
        }
        return;
      }
      const auto* scales = scale.const_data_ptr<A>();
      for_runs(begin, end, layout, [&](int64_t first, int64_t last, int64_t channel) {
        const A s = scales[channel];
        for (int64_t i = first; i < last; ++i) {
          times[i] = static_cast<scalar_t>(static_cast<A>(values[i - begin]) * s);
        }
      });
    });
  });
}

namespace {

// Adds the rows of `block` partial sums in order.
template <typename A>
void finish_sums(const std::vector<A>& partial, int64_t blocks, int64_t channels, A* out) {
  for (int64_t c = 0; c < channels; ++c) {
    out[c] = A(0);
  }
  for (int64_t b = 0; b < blocks; ++b) {
    const A* row = partial.data() + b * channels;
    for (int64_t c = 0; c < channels; ++c) {
      out[c] += row[c];
    }
  }
}

template <typename T, typename A>
void reduce_rows(A* sum_gx, A* sum_g, T* scaled, const T* g, const T* x, const A* scale, int64_t rows,
                 int64_t channels) {
  // A fixed number of blocks of whole rows: the order of summation depends on the sizes alone.
  const int64_t blocks = std::clamp<int64_t>(rows / 16, 1, 64);
  std::vector<A> partial_gx(x != nullptr ? static_cast<size_t>(blocks * channels) : 0);
  std::vector<A> partial_g(static_cast<size_t>(blocks * channels));
  at::parallel_for(0, blocks, 1, [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b) {
      A* pg = partial_g.data() + b * channels;
      A* pgx = x != nullptr ? partial_gx.data() + b * channels : nullptr;
      for (int64_t r = rows * b / blocks; r < rows * (b + 1) / blocks; ++r) {
        const T* gr = g + r * channels;
        for (int64_t c = 0; c < channels; ++c) {
          pg[c] += static_cast<A>(gr[c]);
        }
        if (pgx != nullptr) {
          const T* xr = x + r * channels;
          for (int64_t c = 0; c < channels; ++c) {
            pgx[c] += static_cast<A>(gr[c]) * static_cast<A>(xr[c]);
          }
        }
        if (scaled != nullptr) {
          T* out = scaled + r * channels;
          for (int64_t c = 0; c < channels; ++c) {
            out[c] = static_cast<T>(static_cast<A>(gr[c]) * scale[c]);
          }
        }
      }
    }
  });
  if (x != nullptr) {
    finish_sums(partial_gx, blocks, channels, sum_gx);
  }
  finish_sums(partial_g, blocks, channels, sum_g);
}

template <typename T, typename A>
void reduce_planes(A* sum_gx, A* sum_g, T* scaled, const T* g, const T* x, const A* scale, int64_t planes,
                   ChannelLayout layout) {
  // Sixteen interleaved sums per plane: a fixed order that vectorizes.
  constexpr int64_t kLanes = 16;
  std::vector<A> plane_gx(static_cast<size_t>(planes));
  std::vector<A> plane_g(static_cast<size_t>(planes));
  at::parallel_for(0, planes, std::max<int64_t>(1, 16384 / layout.inner), [&](int64_t first, int64_t last) {
    for (int64_t p = first; p < last; ++p) {
      const T* gp = g + p * layout.inner;
      const T* xp = x != nullptr ? x + p * layout.inner : nullptr;
      A lanes_g[kLanes] = {};
      A lanes_gx[kLanes] = {};
      int64_t i = 0;
      for (; i + kLanes <= layout.inner; i += kLanes) {
        for (int64_t j = 0; j < kLanes; ++j) {
          lanes_g[j] += static_cast<A>(gp[i + j]);
        }
        if (xp != nullptr) {
          for (int64_t j = 0; j < kLanes; ++j) {
            lanes_gx[j] += static_cast<A>(gp[i + j]) * static_cast<A>(xp[i + j]);
          }
        }
      }
      for (int64_t j = 0; i < layout.inner; ++i, ++j) {
        lanes_g[j] += static_cast<A>(gp[i]);
        lanes_gx[j] += xp != nullptr ? static_cast<A>(gp[i]) * static_cast<A>(xp[i]) : A(0);
      }
      A total_g = 0;
      A total_gx = 0;
      for (int64_t j = 0; j < kLanes; ++j) {
        total_g += lanes_g[j];
        total_gx += lanes_gx[j];
      }
      plane_g[static_cast<size_t>(p)] = total_g;
      plane_gx[static_cast<size_t>(p)] = total_gx;
      if (scaled != nullptr) {
        const A s = scale[p % layout.channels];
        T* out = scaled + p * layout.inner;
        for (int64_t k = 0; k < layout.inner; ++k) {
          out[k] = static_cast<T>(static_cast<A>(gp[k]) * s);
        }
      }
    }
  });
  const int64_t batches = planes / layout.channels;
  if (x != nullptr) {
    finish_sums(plane_gx, batches, layout.channels, sum_gx);
  }
  finish_sums(plane_g, batches, layout.channels, sum_g);
}

}  // namespace

void channel_reduce_kernel(const at::Tensor& grad_scale, const at::Tensor& grad_shift, const at::Tensor& scaled,
                           const at::Tensor& grad, const at::Tensor& x, const at::Tensor& scale, ChannelLayout layout) {
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, grad.scalar_type(), "channel_reduce", [&] {
    using A = at::opmath_type<scalar_t>;
    const auto* g = grad.const_data_ptr<scalar_t>();
    const scalar_t* values = x.defined() ? x.const_data_ptr<scalar_t>() : nullptr;
    scalar_t* out = scaled.defined() ? scaled.mutable_data_ptr<scalar_t>() : nullptr;
    const A* factors = scaled.defined() ? scale.const_data_ptr<A>() : nullptr;
    A* sum_gx = x.defined() ? grad_scale.mutable_data_ptr<A>() : nullptr;
    A* sum_g = grad_shift.mutable_data_ptr<A>();
    if (layout.inner == 1) {
      const int64_t rows = grad.numel() / layout.channels;
      reduce_rows<scalar_t, A>(sum_gx, sum_g, out, g, values, factors, rows, layout.channels);
    } else {
      const int64_t planes = grad.numel() / layout.inner;
      reduce_planes<scalar_t, A>(sum_gx, sum_g, out, g, values, factors, planes, layout);
    }
  });
}

}  // namespace torchgraft::CPU_CAPABILITY
