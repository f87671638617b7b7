#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <vector>

#include "../small_products.h"
#include "kronecker_linear.h"

// A row of x, read as M [a1, b1], becomes Aᵀ M B: two small products whose operands all stay in the first-level cache,
// where products of all rows at once would write what lies between them to memory and read it back. With G [a2, b2] a
// row of the gradient and T = Aᵀ M, H = G Bᵀ:
//
//   grad M = A H     grad A = Σ M Hᵀ     grad B = Σ Tᵀ G
namespace torchgraft::CPU_CAPABILITY {
namespace {

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
