#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>

#include <algorithm>
#include <vector>

#include "group_conv.h"

// Channels lie next to each other, so every tap is an elementwise product of vectors of channels; the sum within a
// group comes last, once per output pixel. The backward pass spreads the gradient over the channels of each group
// first, and is then a depth-wise one.
namespace torchgraft::CPU_CAPABILITY {
namespace {

using at::vec::Vectorized;

// Input row of an output row for tap k, or -1 outside the map.
inline int64_t source(int64_t out, int64_t k, int64_t stride, int64_t pad, int64_t dilation, int64_t size) {
  const int64_t in = out * stride - pad + k * dilation;
  return in >= 0 && in < size ? in : -1;
}

// Output row that reads an input row with tap k, or -1 if none does.
inline int64_t reader(int64_t in, int64_t k, int64_t stride, int64_t pad, int64_t dilation, int64_t size) {
  const int64_t out = in + pad - k * dilation;
  return out >= 0 && out % stride == 0 && out / stride < size ? out / stride : -1;
}

// The taps that reach one pixel: where the channels of what they read lie, and those of their weights.
template <typename T>
class Reach {
 public:
  explicit Reach(const GroupConvShape& shape)
      : shape_(shape), values_(static_cast<size_t>(shape.taps())), weights_(static_cast<size_t>(shape.taps())) {}

  // `row_of(kh)` and `column_of(kw)` are where a tap reads in `map` [H, width, C], or -1 where it reads nothing.
  template <typename Row, typename Column>
  void gather(const T* map, int64_t width, const T* taps, const Row& row_of, const Column& column_of) {
    const int64_t channels = shape_.channels();
    count_ = 0;
    for (int64_t kh = 0; kh < shape_.kernel_height; ++kh) {
      const int64_t row = row_of(kh);
      if (row < 0) {
        continue;
      }
      for (int64_t kw = 0; kw < shape_.kernel_width; ++kw) {
        const int64_t column = column_of(kw);
        if (column >= 0) {
          values_[count_] = map + (row * width + column) * channels;
          weights_[count_] = taps + (kh * shape_.kernel_width + kw) * channels;
          ++count_;
        }
      }
    }
  }

  // sums[c] = sum over the gathered taps of value[c] * weight[c].
  void products(T* sums) const;

 private:
  const GroupConvShape& shape_;
  std::vector<const T*> values_;
  std::vector<const T*> weights_;
  size_t count_ = 0;
};

template <typename T>
void Reach<T>::products(T* sums) const {
  using V = Vectorized<T>;
  const int64_t channels = shape_.channels();
  // Held here, where no store to `sums` can make the compiler read them again.
  const size_t count = count_;
  const T* const* values = values_.data();
  const T* const* weights = weights_.data();
  int64_t c = 0;
  for (; c + 2 * V::size() <= channels; c += 2 * V::size()) {
    V first(T(0));
    V second(T(0));
    for (size_t t = 0; t < count; ++t) {
      first = at::vec::fmadd(V::loadu(values[t] + c), V::loadu(weights[t] + c), first);
      second = at::vec::fmadd(V::loadu(values[t] + c + V::size()), V::loadu(weights[t] + c + V::size()), second);
    }
    first.store(sums + c);
    second.store(sums + c + V::size());
  }
  for (; c < channels; c += V::size()) {
    const int64_t length = std::min<int64_t>(V::size(), channels - c);
    V sum(T(0));
    for (size_t t = 0; t < count; ++t) {
      sum = at::vec::fmadd(V::loadu(values[t] + c, length), V::loadu(weights[t] + c, length), sum);
    }
    sum.store(sums + c, static_cast<int>(length));
  }
}

template <typename T>
void forward(T* out, const T* x, const T* taps, const T* bias, const GroupConvShape& s) {
  const int64_t channels = s.channels();
  const int64_t rows = s.batch * s.out_height;
  const int64_t work = std::max<int64_t>(1, s.out_width * channels * s.taps());
  at::parallel_for(0, rows, std::max<int64_t>(1, 65536 / work), [&](int64_t first, int64_t last) {
    std::vector<T> sums(static_cast<size_t>(channels));
    Reach<T> reach(s);
    for (int64_t row = first; row < last; ++row) {
      const T* image = x + row / s.out_height * s.in_height * s.in_width * channels;
      const auto row_of = [&s, oh = row % s.out_height](int64_t kh) {
        return source(oh, kh, s.stride_height, s.pad_height, s.dilation_height, s.in_height);
      };
      for (int64_t ow = 0; ow < s.out_width; ++ow) {
        reach.gather(image, s.in_width, taps, row_of, [&s, ow](int64_t kw) {
          return source(ow, kw, s.stride_width, s.pad_width, s.dilation_width, s.in_width);
        });
        reach.products(sums.data());
        T* pixel = out + (row * s.out_width + ow) * s.groups;
        const T* from = sums.data();
        for (int64_t g = 0; g < s.groups; ++g, from += s.per_group) {
          T sum = bias != nullptr ? bias[g] : T(0);
          for (int64_t j = 0; j < s.per_group; ++j) {
            sum += from[j];
          }
          pixel[g] = sum;
        }
      }
    }
  });
}

// [OH, OW, G] to [OH, OW, C]: every channel of a group gets the group's value.
template <typename T>
void spread(T* wide, const T* narrow, int64_t count, int64_t per_group) {
  for (int64_t i = 0; i < count; ++i) {
    const T value = narrow[i];
    for (int64_t j = 0; j < per_group; ++j) {
      wide[i * per_group + j] = value;
    }
  }
}

// Gradient of one image: every input pixel gathers from the output pixels that read it.
template <typename T>
void input_gradient(T* grad_x, const T* wide, const T* taps, const GroupConvShape& s, Reach<T>& reach) {
  for (int64_t ih = 0; ih < s.in_height; ++ih) {
    const auto row_of = [&s, ih](int64_t kh) {
      return reader(ih, kh, s.stride_height, s.pad_height, s.dilation_height, s.out_height);
    };
    for (int64_t iw = 0; iw < s.in_width; ++iw) {
      reach.gather(wide, s.out_width, taps, row_of, [&s, iw](int64_t kw) {
        return reader(iw, kw, s.stride_width, s.pad_width, s.dilation_width, s.out_width);
      });
      reach.products(grad_x + (ih * s.in_width + iw) * s.channels());
    }
  }
}

// Adds one image's share of the weight's gradient to `sums` [kh * kw, C].
template <typename T>
void weight_gradient(T* sums, const T* wide, const T* x, const GroupConvShape& s) {
  using V = Vectorized<T>;
  const int64_t channels = s.channels();
  for (int64_t oh = 0; oh < s.out_height; ++oh) {
    for (int64_t kh = 0; kh < s.kernel_height; ++kh) {
      const int64_t ih = source(oh, kh, s.stride_height, s.pad_height, s.dilation_height, s.in_height);
      if (ih < 0) {
        continue;
      }
      for (int64_t kw = 0; kw < s.kernel_width; ++kw) {
        // Output columns whose input column lies inside the map.
        const int64_t shift = kw * s.dilation_width - s.pad_width;
        const int64_t begin = shift >= 0 ? 0 : (-shift + s.stride_width - 1) / s.stride_width;
        const int64_t end = std::min(s.out_width, (s.in_width - shift + s.stride_width - 1) / s.stride_width);
        T* sum = sums + (kh * s.kernel_width + kw) * channels;
        for (int64_t c = 0; c < channels; c += V::size()) {
          const int64_t length = std::min<int64_t>(V::size(), channels - c);
          V total = V::loadu(sum + c, length);
          for (int64_t ow = begin; ow < end; ++ow) {
            const T* g = wide + (oh * s.out_width + ow) * channels + c;
            const T* v = x + (ih * s.in_width + ow * s.stride_width + shift) * channels + c;
            total = length == V::size() ? at::vec::fmadd(V::loadu(g), V::loadu(v), total)
                                        : at::vec::fmadd(V::loadu(g, length), V::loadu(v, length), total);
          }
          total.store(sum + c, static_cast<int>(length));
        }
      }
    }
  }
}

template <typename T>
void backward(T* grad_x, T* grad_taps, const T* grad, const T* x, const T* taps, const GroupConvShape& s) {
  const int64_t channels = s.channels();
  const int64_t pixels = s.out_height * s.out_width;
  const int64_t in_image = s.in_height * s.in_width * channels;
  std::vector<T> partial(grad_taps != nullptr ? static_cast<size_t>(s.batch * s.taps() * channels) : 0);
  at::parallel_for(0, s.batch, 1, [&](int64_t first, int64_t last) {
    std::vector<T> wide(static_cast<size_t>(pixels * channels));
    Reach<T> reach(s);
    for (int64_t b = first; b < last; ++b) {
      spread(wide.data(), grad + b * pixels * s.groups, pixels * s.groups, s.per_group);
      if (grad_x != nullptr) {
        input_gradient(grad_x + b * in_image, wide.data(), taps, s, reach);
      }
      if (grad_taps != nullptr) {
        weight_gradient(partial.data() + b * s.taps() * channels, wide.data(), x + b * in_image, s);
      }
    }
  });
  if (grad_taps != nullptr) {
    const int64_t size = s.taps() * channels;
    std::fill(grad_taps, grad_taps + size, T(0));
    for (int64_t b = 0; b < s.batch; ++b) {
      for (int64_t i = 0; i < size; ++i) {
        grad_taps[i] += partial[static_cast<size_t>(b * size + i)];
      }
    }
  }
}

}  // namespace

void group_conv_forward_kernel(const at::Tensor& out, const at::Tensor& x, const at::Tensor& taps,
                               const at::Tensor& bias, const GroupConvShape& shape) {
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "group_conv", [&] {
    forward(out.mutable_data_ptr<scalar_t>(), x.const_data_ptr<scalar_t>(), taps.const_data_ptr<scalar_t>(),
            bias.defined() ? bias.const_data_ptr<scalar_t>() : nullptr, shape);
  });
}

void group_conv_backward_kernel(const at::Tensor& grad_x, const at::Tensor& grad_taps, const at::Tensor& grad,
                                const at::Tensor& x, const at::Tensor& taps, const GroupConvShape& shape) {
  AT_DISPATCH_FLOATING_TYPES(grad.scalar_type(), "group_conv_backward", [&] {
    backward(grad_x.defined() ? grad_x.mutable_data_ptr<scalar_t>() : nullptr,
             grad_taps.defined() ? grad_taps.mutable_data_ptr<scalar_t>() : nullptr, grad.const_data_ptr<scalar_t>(),
             x.defined() ? x.const_data_ptr<scalar_t>() : nullptr, taps.const_data_ptr<scalar_t>(), shape);
  });
}

}  // namespace torchgraft::CPU_CAPABILITY
