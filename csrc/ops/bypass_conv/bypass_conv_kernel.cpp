#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <vector>

#include "../small_products.h"
#include "bypass_conv.h"

// A bottleneck is about as wide as a vector of the processor, so a whole sample stays in the cache. A position of the
// kernel is a product of the patches that it reaches, moved by its offset, with a small matrix; no map is laid out
// anew, no product is padded, and what lies between the operations is never written to memory.
namespace torchgraft::CPU_CAPABILITY {
namespace {

template <typename T>
using Vec = at::vec::Vectorized<T>;

template <typename T>
Vec<T> sigmoid(const Vec<T>& t) {
  return Vec<T>(T(1)) / (Vec<T>(T(1)) + (Vec<T>(T(-1.702)) * t).exp());
}

// φ(t) = t σ(1.702 t), and φ'(t).
template <typename T>
Vec<T> quick_gelu(const Vec<T>& t) {
  return t * sigmoid(t);
}

template <typename T>
Vec<T> quick_gelu_slope(const Vec<T>& t) {
  const Vec<T> s = sigmoid(t);
  return s * (Vec<T>(T(1)) + Vec<T>(T(1.702)) * t * (Vec<T>(T(1)) - s));
}

// `count` patches from token `to` on see those from token `from` on.
struct Run {
  int64_t from, to, count;
};

// The runs of one position of the kernel; the center sees all tokens.
std::vector<Run> runs_of(const BypassShape& s, int64_t row, int64_t column) {
  const int64_t dy = row - s.side / 2;
  const int64_t dx = column - s.side / 2;
  if (dy == 0 && dx == 0) {
    return {{0, 0, s.length}};
  }
  std::vector<Run> runs;
  const int64_t x0 = std::max<int64_t>(0, -dx);
  const int64_t count = std::min(s.width, s.width - dx) - x0;
  for (int64_t y = std::max<int64_t>(0, -dy); count > 0 && y < std::min(s.height, s.height - dy); ++y) {
    const int64_t to = s.before + y * s.width + x0;
    runs.push_back({to + dy * s.width + dx, to, count});
  }
  return runs;
}

// One position of the kernel: its matrix [in, out], and where it reads and writes.
template <typename T>
struct Position {
  Padded<T> matrix;
  std::vector<Run> runs;
};

// Element (i, j) of the matrix of position p is at weight[index(...)]: the layout [out, in, side, side].
int64_t weight_index(const BypassShape& s, int64_t p, int64_t in, int64_t out) {
  return (out * s.channels + in) * s.side * s.side + p;
}

template <typename T>
std::vector<Position<T>> positions_of(const T* weight, const BypassShape& s, bool transposed) {
  std::vector<Position<T>> positions;
  for (int64_t p = 0; p < s.side * s.side; ++p) {
    Padded<T> matrix(s.channels, s.channels);
    matrix.fill(
        [&](int64_t i, int64_t j) { return weight[transposed ? weight_index(s, p, j, i) : weight_index(s, p, i, j)]; });
    positions.push_back({std::move(matrix), runs_of(s, p / s.side, p % s.side)});
  }
  return positions;
}

// to[i] = f(from[i]) for whole vectors.
template <typename T, typename F>
void map_vectors(T* to, int64_t size, const F& f) {
  for (int64_t i = 0; i < size; i += Vec<T>::size()) {
    f(i).store(to + i);
  }
}

// Rows of tokens with padded length.
template <typename T>
struct Tokens {
  explicit Tokens(const BypassShape& s)
      : columns(s.channels), stride(padded<T>(s.channels)), data(static_cast<size_t>(s.length * stride)) {}

  int64_t columns, stride;
  std::vector<T> data;

  T* row(int64_t i) { return data.data() + i * stride; }
  int64_t size() const { return static_cast<int64_t>(data.size()); }

  void load(const T* source) { copy(source, columns, data.data(), stride); }
  void store(T* target) const { copy(data.data(), stride, target, columns); }

 private:
  void copy(const T* from, int64_t from_stride, T* to, int64_t to_stride) const {
    for (int64_t i = 0; i < size() / stride; ++i) {
      std::copy_n(from + i * from_stride, columns, to + i * to_stride);
    }
  }
};

template <typename T>
void forward(T* out, T* mixed, const T* z, const T* weight, const T* bias, const BypassShape& s) {
  auto positions = positions_of(weight, s, false);
  at::parallel_for(0, s.batch, 1, [&](int64_t first, int64_t last) {
    Tokens<T> u(s);
    Tokens<T> m(s);
    for (int64_t b = first; b < last; ++b) {
      u.load(z + b * s.sample());
      map_vectors(u.row(0), u.size(), [&](int64_t i) { return quick_gelu(Vec<T>::loadu(u.row(0) + i)); });
      for (int64_t i = 0; i < s.length; ++i) {
        bias != nullptr ? std::copy_n(bias, s.channels, m.row(i)) : std::fill_n(m.row(i), s.channels, T(0));
      }
      for (Position<T>& at : positions) {
        for (const Run& run : at.runs) {
          multiply<T, true>(m.row(run.to), m.stride, {u.row(run.from), u.stride, 1}, at.matrix.data(), m.stride,
                            run.count, m.stride, s.channels);
        }
      }
      m.store(mixed + b * s.sample());
      map_vectors(m.row(0), m.size(), [&](int64_t i) { return quick_gelu(Vec<T>::loadu(m.row(0) + i)); });
      m.store(out + b * s.sample());
    }
  });
}

template <typename T>
struct Gradients {
  T* z;
  T* weight;
  T* bias;
};

// What one stretch of samples adds to the gradients of kernel and bias.
template <typename T>
struct Sums {
  std::vector<Padded<T>> positions;
  std::vector<T> bias;
};

template <typename T>
void backward(Gradients<T> to, const T* grad, const T* z, const T* mixed, const T* weight, const BypassShape& s) {
  auto positions = positions_of(weight, s, true);
  const int64_t stretch = (s.batch + kStretches - 1) / kStretches;
  const int64_t stretches = (s.batch + stretch - 1) / stretch;
  const Sums<T> none{std::vector<Padded<T>>(positions.size(), Padded<T>(s.channels, s.channels)),
                     std::vector<T>(static_cast<size_t>(s.channels))};
  std::vector<Sums<T>> sums(static_cast<size_t>(stretches), none);
  at::parallel_for(0, stretches, 1, [&](int64_t first, int64_t last) {
    Tokens<T> start(s);
    Tokens<T> u(s);
    Tokens<T> d(s);
    Tokens<T> grad_u(s);
    for (int64_t b = first * stretch; b < std::min(s.batch, last * stretch); ++b) {
      Sums<T>& sum = sums[static_cast<size_t>(b / stretch)];
      u.load(mixed + b * s.sample());
      d.load(grad + b * s.sample());
      map_vectors(d.row(0), d.size(), [&](int64_t i) {
        return Vec<T>::loadu(d.row(0) + i) * quick_gelu_slope(Vec<T>::loadu(u.row(0) + i));
      });
      start.load(z + b * s.sample());
      map_vectors(u.row(0), u.size(), [&](int64_t i) { return quick_gelu(Vec<T>::loadu(start.row(0) + i)); });
      std::fill(grad_u.data.begin(), grad_u.data.end(), T(0));
      for (size_t p = 0; p < positions.size(); ++p) {
        Position<T>& at = positions[p];
        Padded<T>& total = sum.positions[p];
        for (const Run& run : at.runs) {
          if (to.z != nullptr) {
            multiply<T, true>(grad_u.row(run.from), u.stride, {d.row(run.to), u.stride, 1}, at.matrix.data(), u.stride,
                              run.count, u.stride, s.channels);
          }
          if (to.weight != nullptr) {
            total.template assign_product<true>({u.row(run.from), 1, u.stride}, d.row(run.to), run.count);
          }
        }
      }
      for (int64_t i = 0; to.bias != nullptr && i < s.length; ++i) {
        for (int64_t c = 0; c < s.channels; ++c) {
          sum.bias[static_cast<size_t>(c)] += d.row(i)[c];
        }
      }
      if (to.z != nullptr) {
        map_vectors(grad_u.row(0), grad_u.size(), [&](int64_t i) {
          return Vec<T>::loadu(grad_u.row(0) + i) * quick_gelu_slope(Vec<T>::loadu(start.row(0) + i));
        });
        grad_u.store(to.z + b * s.sample());
      }
    }
  });
  for (size_t p = 0; to.weight != nullptr && p < positions.size(); ++p) {
    for (int64_t in = 0; in < s.channels; ++in) {
      for (int64_t out = 0; out < s.channels; ++out) {
        T total = 0;
        for (Sums<T>& sum : sums) {
          total += sum.positions[p].data()[in * sum.positions[p].stride() + out];
        }
        to.weight[weight_index(s, static_cast<int64_t>(p), in, out)] = total;
      }
    }
  }
  for (int64_t c = 0; to.bias != nullptr && c < s.channels; ++c) {
    T total = 0;
    for (const Sums<T>& sum : sums) {
      total += sum.bias[static_cast<size_t>(c)];
    }
    to.bias[c] = total;
  }
}

}  // namespace

void bypass_conv_forward_kernel(const at::Tensor& out, const at::Tensor& mixed, const at::Tensor& z,
                                const at::Tensor& weight, const at::Tensor& bias, const BypassShape& shape) {
  AT_DISPATCH_FLOATING_TYPES(z.scalar_type(), "bypass_conv", [&] {
    forward(out.mutable_data_ptr<scalar_t>(), mixed.mutable_data_ptr<scalar_t>(), z.const_data_ptr<scalar_t>(),
            weight.const_data_ptr<scalar_t>(), bias.defined() ? bias.const_data_ptr<scalar_t>() : nullptr, shape);
  });
}

void bypass_conv_backward_kernel(const at::Tensor& grad_z, const at::Tensor& grad_weight, const at::Tensor& grad_bias,
                                 const at::Tensor& grad, const at::Tensor& z, const at::Tensor& mixed,
                                 const at::Tensor& weight, const BypassShape& shape) {
  AT_DISPATCH_FLOATING_TYPES(z.scalar_type(), "bypass_conv_backward", [&] {
    const auto target = [](const at::Tensor& t) { return t.defined() ? t.mutable_data_ptr<scalar_t>() : nullptr; };
    backward<scalar_t>({target(grad_z), target(grad_weight), target(grad_bias)}, grad.const_data_ptr<scalar_t>(),
                       z.const_data_ptr<scalar_t>(), mixed.const_data_ptr<scalar_t>(),
                       weight.const_data_ptr<scalar_t>(), shape);
  });
}

}  // namespace torchgraft::CPU_CAPABILITY
