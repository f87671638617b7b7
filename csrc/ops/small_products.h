// Products of matrices so small that their operands stay in the first-level cache, for *_kernel.cpp.
//
// Everything here has rows that are a multiple of a vector long, padded with zeros, so no product has a tail.
#pragma once

#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>

#include <algorithm>
#include <cstdint>
#include <vector>

namespace torchgraft::CPU_CAPABILITY {

// Stretches of samples or rows whose sums are kept apart, so that results do not depend on the number of threads.
constexpr int64_t kStretches = 32;

template <typename T>
constexpr int64_t padded(int64_t n) {
  constexpr int64_t width = at::vec::Vectorized<T>::size();
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
  using V = at::vec::Vectorized<T>;
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
  constexpr int64_t width = at::vec::Vectorized<T>::size();
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

}  // namespace torchgraft::CPU_CAPABILITY
