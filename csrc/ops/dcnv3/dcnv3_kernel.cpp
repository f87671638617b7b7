#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>

#include <algorithm>
#include <vector>

#include "dcnv3.h"
#include "geometry.h"

// The channels of a group lie next to each other and share their sampling points: a point's position, corners and
// weights are computed once, and every corner is then a product of vectors of channels.
namespace torchgraft::CPU_CAPABILITY {
namespace {

using at::vec::Vectorized;

// Positions of the points of an output pixel without their offsets.
template <typename T>
struct Grid {
  std::vector<T> y, x;

  explicit Grid(const Dcnv3Shape& s) {
    const T scale = static_cast<T>(s.offset_scale);
    // Columns outside, rows inside: the order of the offsets.
    for (int64_t i = 0; i < s.kernel_width; ++i) {
      for (int64_t j = 0; j < s.kernel_height; ++j) {
        if (s.remove_center && i == s.kernel_width / 2 && j == s.kernel_height / 2) {
          continue;
        }
        x.push_back(grid_position(i, s.kernel_width, s.pad_width, s.dilation_width, scale));
        y.push_back(grid_position(j, s.kernel_height, s.pad_height, s.dilation_height, scale));
      }
    }
  }
};

// out[c] = sum over the corners of values[t][c] * weights[t].
template <typename T>
void gather(T* out, const T* const* values, const T* weights, int64_t count, int64_t depth) {
  using V = Vectorized<T>;
  int64_t c = 0;
  for (; c + V::size() <= depth; c += V::size()) {
    V sum(T(0));
    for (int64_t t = 0; t < count; ++t) {
      sum = at::vec::fmadd(V::loadu(values[t] + c), V(weights[t]), sum);
    }
    sum.store(out + c);
  }
  if (c < depth) {
    const int64_t length = depth - c;
    V sum(T(0));
    for (int64_t t = 0; t < count; ++t) {
      sum = at::vec::fmadd(V::loadu(values[t] + c, length), V(weights[t]), sum);
    }
    sum.store(out + c, static_cast<int>(length));
  }
}

template <typename T>
void forward(T* out, const T* x, const T* offset, const T* mask, const Dcnv3Shape& s) {
  const Grid<T> grid(s);
  const int64_t points = s.points();
  const int64_t channels = s.channels();
  const T scale = static_cast<T>(s.offset_scale);
  const int64_t rows = s.batch * s.out_height;
  const int64_t work = std::max<int64_t>(1, s.out_width * channels * points);
  at::parallel_for(0, rows, std::max<int64_t>(1, 32768 / work), [&](int64_t first, int64_t last) {
    std::vector<const T*> values(static_cast<size_t>(4 * points));
    std::vector<T> weights(static_cast<size_t>(4 * points));
    Sample<T> sample;
    for (int64_t row = first; row < last; ++row) {
      const T* image = x + row / s.out_height * s.in_height * s.in_width * channels;
      const T base_y = static_cast<T>(row % s.out_height * s.stride_height);
      for (int64_t column = 0; column < s.out_width; ++column) {
        const int64_t pixel = row * s.out_width + column;
        const T base_x = static_cast<T>(column * s.stride_width);
        for (int64_t g = 0; g < s.groups; ++g) {
          const T* shift = offset + (pixel * s.groups + g) * points * 2;
          const T* factor = mask + (pixel * s.groups + g) * points;
          int64_t count = 0;
          for (int64_t p = 0; p < points; ++p) {
            const T at_x = base_x + grid.x[static_cast<size_t>(p)] + scale * shift[2 * p];
            const T at_y = base_y + grid.y[static_cast<size_t>(p)] + scale * shift[2 * p + 1];
            if (!locate(sample, at_y, at_x, s)) {
              continue;
            }
            for (int corner = 0; corner < 4; ++corner) {
              if (sample.pixel[corner] >= 0) {
                values[static_cast<size_t>(count)] = image + sample.pixel[corner] * channels + g * s.depth;
                weights[static_cast<size_t>(count)] = sample.weight[corner] * factor[p];
                ++count;
              }
            }
          }
          gather(out + pixel * channels + g * s.depth, values.data(), weights.data(), count, s.depth);
        }
      }
    }
  });
}

// The sum of a[c] * b[c].
template <typename T>
T dot(const T* a, const T* b, int64_t depth) {
  using V = Vectorized<T>;
  V sum(T(0));
  int64_t c = 0;
  for (; c + V::size() <= depth; c += V::size()) {
    sum = at::vec::fmadd(V::loadu(a + c), V::loadu(b + c), sum);
  }
  if (c < depth) {
    sum = at::vec::fmadd(V::loadu(a + c, depth - c), V::loadu(b + c, depth - c), sum);
  }
  return at::vec::vec_reduce_all<T>([](V& u, V& v) { return u + v; }, sum);
}

// to[c] += from[c] * factor.
template <typename T>
void add_scaled(T* to, const T* from, T factor, int64_t depth) {
  using V = Vectorized<T>;
  int64_t c = 0;
  for (; c + V::size() <= depth; c += V::size()) {
    at::vec::fmadd(V::loadu(from + c), V(factor), V::loadu(to + c)).store(to + c);
  }
  if (c < depth) {
    const int64_t length = depth - c;
    at::vec::fmadd(V::loadu(from + c, length), V(factor), V::loadu(to + c, length))
        .store(to + c, static_cast<int>(length));
  }
}

// A group of an image owns its channels of grad_x, so groups of images can run side by side.
template <typename T>
void backward(T* grad_x, T* grad_offset, T* grad_mask, const T* grad, const T* x, const T* offset, const T* mask,
              const Dcnv3Shape& s) {
  const Grid<T> grid(s);
  const int64_t points = s.points();
  const int64_t channels = s.channels();
  const T scale = static_cast<T>(s.offset_scale);
  const bool needs_dots = grad_offset != nullptr || grad_mask != nullptr;
  at::parallel_for(0, s.batch * s.groups, 1, [&](int64_t first, int64_t last) {
    Sample<T> sample;
    for (int64_t unit = first; unit < last; ++unit) {
      const int64_t n = unit / s.groups;
      const int64_t g = unit % s.groups;
      const int64_t start = n * s.in_height * s.in_width * channels + g * s.depth;
      for (int64_t row = 0; row < s.out_height; ++row) {
        for (int64_t column = 0; column < s.out_width; ++column) {
          const int64_t pixel = (n * s.out_height + row) * s.out_width + column;
          const T* t = grad + pixel * channels + g * s.depth;
          const int64_t point = (pixel * s.groups + g) * points;
          for (int64_t p = 0; p < points; ++p) {
            const T factor = mask[point + p];
            const T at_x = static_cast<T>(column * s.stride_width) + grid.x[static_cast<size_t>(p)] +
                           scale * offset[2 * (point + p)];
            const T at_y = static_cast<T>(row * s.stride_height) + grid.y[static_cast<size_t>(p)] +
                           scale * offset[2 * (point + p) + 1];
            const bool inside = locate(sample, at_y, at_x, s);
            T dots[4] = {0, 0, 0, 0};
            for (int corner = 0; inside && corner < 4; ++corner) {
              if (sample.pixel[corner] < 0) {
                continue;
              }
              const int64_t place = start + sample.pixel[corner] * channels;
              if (needs_dots) {
                dots[corner] = dot(t, x + place, s.depth);
              }
              if (grad_x != nullptr) {
                add_scaled(grad_x + place, t, factor * sample.weight[corner], s.depth);
              }
            }
            if (grad_mask != nullptr) {
              T sum = 0;
              for (int corner = 0; inside && corner < 4; ++corner) {
                sum += sample.weight[corner] * dots[corner];
              }
              grad_mask[point + p] = sum;
            }
            if (grad_offset != nullptr) {
              const T down = inside ? sample.down : T(0);
              const T across = inside ? sample.across : T(0);
              const T by_x = (T(1) - down) * (dots[1] - dots[0]) + down * (dots[3] - dots[2]);
              const T by_y = (T(1) - across) * (dots[2] - dots[0]) + across * (dots[3] - dots[1]);
              grad_offset[2 * (point + p)] = scale * factor * by_x;
              grad_offset[2 * (point + p) + 1] = scale * factor * by_y;
            }
          }
        }
      }
    }
  });
}

template <typename T>
T* pointer_or_null(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.mutable_data_ptr<T>() : nullptr;
}

}  // namespace

void dcnv3_forward_kernel(const at::Tensor& out, const at::Tensor& x, const at::Tensor& offset, const at::Tensor& mask,
                          const Dcnv3Shape& shape) {
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "dcnv3", [&] {
    forward(out.mutable_data_ptr<scalar_t>(), x.const_data_ptr<scalar_t>(), offset.const_data_ptr<scalar_t>(),
            mask.const_data_ptr<scalar_t>(), shape);
  });
}

void dcnv3_backward_kernel(const at::Tensor& grad_x, const at::Tensor& grad_offset, const at::Tensor& grad_mask,
                           const at::Tensor& grad, const at::Tensor& x, const at::Tensor& offset,
                           const at::Tensor& mask, const Dcnv3Shape& shape) {
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "dcnv3_backward", [&] {
    backward(pointer_or_null<scalar_t>(grad_x), pointer_or_null<scalar_t>(grad_offset),
             pointer_or_null<scalar_t>(grad_mask), grad.const_data_ptr<scalar_t>(), x.const_data_ptr<scalar_t>(),
             offset.const_data_ptr<scalar_t>(), mask.const_data_ptr<scalar_t>(), shape);
  });
}

}  // namespace torchgraft::CPU_CAPABILITY
