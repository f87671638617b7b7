#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>

#include <algorithm>
#include <vector>

#include "kronecker_linear.h"

// A row of x, read as M [a1, b1], becomes Aᵀ M B: two small products whose operands all stay in the first-level cache,
// where products of all rows at once would write what lies between them to memory and read it back. With G [a2, b2] a
// row of the gradient and T = Aᵀ M, H = G Bᵀ:
//
//   grad M = A H     grad A = Σ M Hᵀ     grad B = Σ Tᵀ G
//
// Everything here has rows that are a multiple of a vector long, padded with zeros, so no product has a tail.
namespace torchgraft::CPU_CAPABILITY {
namespace {

using at::vec::Vectorized;

// Stretches of rows whose sums are kept apart.
constexpr int64_t kStretches = 32;

template <typename T>
constexpr int64_t padded(int64_t n) {
  constexpr int64_t width = Vectorized<T>::size();
  return (n + width - 1) / width * width;
}

// A matrix of which single numbers are read, element (i, k) at data[i * row + k * column].
template <typename T>
struct Strided {
  const T* data;
  int64_t row, column;
};

// c[i][j] (+)= Σ_k p(i, k) q[k][j] for i < Rows and j < Vectors * V.
template <typename T, int Rows, int Vectors, bool Accumulate>
inline void tile(T* c, int64_t ldc, Strided<T> p, const T* q, int64_t ldq, int64_t depth) {
  using V = Vectorized<T>;
  V sum[Rows][Vectors];
  for (int i = 0; i < Rows; ++i) {
    for (int v = 0; v < Vectors; ++v) {
      sum[i][v] = Accumulate ? V::loadu(c + i * ldc + v * V::size()) : V(T(0));
    }
  }
  for (int64_t k = 0; k < depth; ++k) {
    V right[Vectors];
    for (int v = 0; v < Vectors; ++v) {
      right[v] = V::loadu(q + k * ldq + v * V::size());
    }
    for (int i = 0; i < Rows; ++i) {
      const V left(p.data[i * p.row + k * p.column]);
      for (int v = 0; v < Vectors; ++v) {
        sum[i][v] = at::vec::fmadd(left, right[v], sum[i][v]);
      }
    }
  }
  for (int i = 0; i < Rows; ++i) {
    for (int v = 0; v < Vectors; ++v) {
      sum[i][v].store(c + i * ldc + v * V::size());
    }
  }
}

template <typename T, int Rows, bool Accumulate>
void rows_of_tiles(T* c, int64_t ldc, Strided<T> p, const T* q, int64_t ldq, int64_t n, int64_t depth) {
  constexpr int64_t width = Vectorized<T>::size();
  int64_t j = 0;
  for (; j + 3 * width <= n; j += 3 * width) {
    tile<T, Rows, 3, Accumulate>(c + j, ldc, p, q + j, ldq, depth);
  }
  if (j + 2 * width <= n) {
    tile<T, Rows, 2, Accumulate>(c + j, ldc, p, q + j, ldq, depth);
  } else if (j < n) {
    tile<T, Rows, 1, Accumulate>(c + j, ldc, p, q + j, ldq, depth);
  }
}

// C [m, n] (+)= P Q for P [m, depth] and Q [depth, n]; n a multiple of a vector's length.
template <typename T, bool Accumulate = false>
void multiply(T* c, int64_t ldc, Strided<T> p, const T* q, int64_t ldq, int64_t m, int64_t n, int64_t depth) {
  int64_t i = 0;
  const auto from = [&](int64_t row) { return Strided<T>{p.data + row * p.row, p.row, p.column}; };
  for (; i + 8 <= m; i += 8) {
    rows_of_tiles<T, 8, Accumulate>(c + i * ldc, ldc, from(i), q, ldq, n, depth);
  }
  for (; i + 4 <= m; i += 4) {
    rows_of_tiles<T, 4, Accumulate>(c + i * ldc, ldc, from(i), q, ldq, n, depth);
  }
  for (; i < m; ++i) {
    rows_of_tiles<T, 1, Accumulate>(c + i * ldc, ldc, from(i), q, ldq, n, depth);
  }
}

// Memory for a matrix [rows, columns] with rows of padded length; the padding is zero and stays so.
template <typename T>
class Padded {
 public:
  Padded(int64_t rows, int64_t columns)
      : rows_(rows), columns_(columns), stride_(padded<T>(columns)), data_(static_cast<size_t>(rows * stride_)) {}

  T* data() { return data_.data(); }
  int64_t stride() const { return stride_; }
  Strided<T> plain() const { return {data_.data(), stride_, 1}; }
  Strided<T> transposed() const { return {data_.data(), 1, stride_}; }

  // The dense matrix `source` with padded rows: itself if they are so already, else a copy here.
  const T* of(const T* source) {
    if (columns_ == stride_) {
      return source;
    }
    for (int64_t i = 0; i < rows_; ++i) {
      std::copy_n(source + i * columns_, columns_, data() + i * stride_);
    }
    return data();
  }

  // Takes source(i, j) in.
  template <typename F>
  void fill(const F& source) {
    for (int64_t i = 0; i < rows_; ++i) {
      for (int64_t j = 0; j < columns_; ++j) {
        data_[static_cast<size_t>(i * stride_ + j)] = source(i, j);
      }
    }
  }

  // Adds factor * this to the dense matrix `target`.
  void add_to(T* target, T factor) const {
    for (int64_t i = 0; i < rows_; ++i) {
      const T* row = data_.data() + i * stride_;
      for (int64_t j = 0; j < columns_; ++j) {
        target[i * columns_ + j] += factor * row[j];
      }
    }
  }

  // target += P Q for the dense matrix `target`, by way of this memory if its rows are not padded.
  void add_product_to(T* target, Strided<T> p, const T* q, int64_t depth) {
    if (columns_ == stride_) {
      multiply<T, true>(target, stride_, p, q, stride_, rows_, stride_, depth);
    } else {
      multiply(data(), stride_, p, q, stride_, rows_, stride_, depth);
      add_to(target, T(1));
    }
  }

  // this (+)= P Q.
  template <bool Accumulate = false>
  void assign_product(Strided<T> p, const T* q, int64_t depth) {
    multiply<T, Accumulate>(data(), stride_, p, q, stride_, rows_, stride_, depth);
  }

 private:
  int64_t rows_, columns_, stride_;
  std::vector<T> data_;
};

template <typename T>
void forward(T* y, const T* x, const T* a, const T* b, T scale, const KroneckerShape& s) {
  Padded<T> right(s.b1, s.b2);
  right.fill([&](int64_t i, int64_t j) { return scale * b[i * s.b2 + j]; });
  const Strided<T> a_transposed{a, 1, s.a2};
  at::parallel_for(0, s.rows, 16, [&](int64_t first, int64_t last) {
    Padded<T> m(s.a1, s.b1);
    Padded<T> t(s.a2, s.b1);
    Padded<T> product(s.a2, s.b2);
    for (int64_t r = first; r < last; ++r) {
      t.assign_product(a_transposed, m.of(x + r * s.in()), s.a1);
      product.add_product_to(y + r * s.out(), t.plain(), right.data(), s.b1);
    }
  });
}

template <typename T>
struct Gradients {
  T* x;
  T* a;
  T* b;
};

template <typename T>
void backward(Gradients<T> to, const T* grad, const T* x, const T* a, const T* b, T scale, const KroneckerShape& s) {
  Padded<T> b_transposed(s.b2, s.b1);
  b_transposed.fill([&](int64_t i, int64_t j) { return scale * b[j * s.b2 + i]; });
  const Strided<T> a_plain{a, s.a2, 1};
  const Strided<T> a_transposed{a, 1, s.a2};
  const int64_t stretch = std::max<int64_t>(16, (s.rows + kStretches - 1) / kStretches);
  const int64_t stretches = (s.rows + stretch - 1) / stretch;
  std::vector<Padded<T>> sums_a(static_cast<size_t>(to.a != nullptr ? stretches : 0), Padded<T>(s.a1, s.a2));
  std::vector<Padded<T>> sums_b(static_cast<size_t>(to.b != nullptr ? stretches : 0), Padded<T>(s.b1, s.b2));
  at::parallel_for(0, stretches, 1, [&](int64_t first, int64_t last) {
    Padded<T> m(s.a1, s.b1);
    Padded<T> t(s.a2, s.b1);
    Padded<T> g(s.a2, s.b2);
    Padded<T> h(s.a2, s.b1);
    Padded<T> h_transposed(s.b1, s.a2);
    Padded<T> grad_m(s.a1, s.b1);
    for (int64_t part = first; part < last; ++part) {
      for (int64_t r = part * stretch; r < std::min(s.rows, (part + 1) * stretch); ++r) {
        const T* m_row = x + r * s.in();
        const T* g_row = grad + r * s.out();
        if (to.x != nullptr || to.a != nullptr) {
          h.assign_product({g_row, s.b2, 1}, b_transposed.data(), s.b2);
        }
        if (to.x != nullptr) {
          grad_m.add_product_to(to.x + r * s.in(), a_plain, h.data(), s.a2);
        }
        if (to.a != nullptr) {
          const Strided<T> from = h.plain();
          h_transposed.fill([&](int64_t i, int64_t j) { return from.data[j * from.row + i]; });
          sums_a[static_cast<size_t>(part)].template assign_product<true>({m_row, s.b1, 1}, h_transposed.data(), s.b1);
        }
        if (to.b != nullptr) {
          t.assign_product(a_transposed, m.of(m_row), s.a1);
          sums_b[static_cast<size_t>(part)].template assign_product<true>(t.transposed(), g.of(g_row), s.a2);
        }
      }
    }
  });
  const auto total = [](T* target, int64_t size, const std::vector<Padded<T>>& sums, T factor) {
    if (target != nullptr) {
      std::fill_n(target, size, T(0));
      for (const Padded<T>& sum : sums) {
        sum.add_to(target, factor);
      }
    }
  };
  total(to.a, s.a1 * s.a2, sums_a, T(1));  // H has the scale in it
  total(to.b, s.b1 * s.b2, sums_b, scale);
}

}  // namespace

void kronecker_forward_kernel(const at::Tensor& y, const at::Tensor& x, const at::Tensor& a, const at::Tensor& b,
                              double scale, const KroneckerShape& shape) {
  AT_DISPATCH_FLOATING_TYPES(y.scalar_type(), "kronecker_linear", [&] {
    forward(y.mutable_data_ptr<scalar_t>(), x.const_data_ptr<scalar_t>(), a.const_data_ptr<scalar_t>(),
            b.const_data_ptr<scalar_t>(), static_cast<scalar_t>(scale), shape);
  });
}

void kronecker_backward_kernel(const at::Tensor& grad_x, const at::Tensor& grad_a, const at::Tensor& grad_b,
                               const at::Tensor& grad, const at::Tensor& x, const at::Tensor& a, const at::Tensor& b,
                               double scale, const KroneckerShape& shape) {
  AT_DISPATCH_FLOATING_TYPES(grad.scalar_type(), "kronecker_linear_backward", [&] {
    const auto target = [](const at::Tensor& t) { return t.defined() ? t.mutable_data_ptr<scalar_t>() : nullptr; };
    backward<scalar_t>({target(grad_x), target(grad_a), target(grad_b)}, grad.const_data_ptr<scalar_t>(),
                       x.const_data_ptr<scalar_t>(), a.const_data_ptr<scalar_t>(), b.const_data_ptr<scalar_t>(),
                       static_cast<scalar_t>(scale), shape);
  });
}

}  // namespace torchgraft::CPU_CAPABILITY
